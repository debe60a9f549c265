"""Reading caption data sets: images, raw captions and splits, in the layouts users have.

Which layouts there are stands in :mod:`captioning.layouts`; here it is found out which images,
captions and splits belong together.

Nothing odd in the data is dropped in silence: it is counted, and the counts are part of what
:meth:`CaptionDataset.describe` prints. Getting Flickr8k:

    python -m captioning.dataset download --to data/flickr8k

(1.1 GB; some minutes; an interrupted download resumes).
"""

import contextlib
import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from captioning.caption_files import SPLITS, Captions, Quirks, SplitFile
from captioning.cli import ArgumentParser, run
from captioning.download import SOURCE, download_flickr8k
from captioning.files import InputError
from captioning.layouts import LAYOUTS, Found

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
HELD_OUT_FRACTION = 10  # one image in so many goes to dev, one to test, if no split is given
PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class CaptionDataset:
    """Images with their captions and splits; every image named here exists and has a caption.

    Attributes:
        layout: name of the layout that was recognised.
        image_folder: where the images are.
        captions: image file name (relative to `image_folder`) -> its captions as they stand in
            the file, without surrounding blanks, in the order of the file.
        splits: "train", "dev", "test" -> image names. A split that the data lacks is absent.
        split_origin: where the splits come from, or how they were drawn.
        summary: what was odd, in words -> how often.
        problems: the broken rows that were skipped, each with its file and line number.
    """

    layout: str
    image_folder: Path
    captions: dict[str, list[str]]
    splits: dict[str, list[str]]
    split_origin: str
    summary: dict[str, int]
    problems: list[str]

    def describe(self) -> str:
        """Tell in several lines what was read and what was odd about it."""
        images = len(self.captions)
        captions = sum(map(len, self.captions.values()))
        sizes = [f"{name} {len(self.splits[name]):,}" for name in SPLITS if name in self.splits]
        absent = [f"no {name}" for name in SPLITS if name not in self.splits]
        lines = [
            f"layout: {self.layout}, images in {self.image_folder}",
            f"captions: {captions:,} of {images:,} images ({captions / images:.2f} an image)",
            f"splits: {', '.join(sizes + absent)} images ({self.split_origin})",
        ]
        lines += [f"  {count:,} {what}" for what, count in self.summary.items()]
        lines += [f"  {problem}" for problem in self.problems[:PROBLEMS_SHOWN]]
        unshown = len(self.problems) - PROBLEMS_SHOWN
        if unshown > 0:
            lines.append(f"  and {unshown:,} more broken rows")
        return "\n".join(lines)


def read_dataset(folder: str | os.PathLike, *, seed: int = 0) -> CaptionDataset:
    """Read the data set in `folder`, whichever of the `LAYOUTS` it has.

    Official split files are used where they are, as they are: a split whose file is missing is
    absent. Else Karpathy's splits are, else COCO's own. Without any, images (never captions) are
    split 80/10/10 at random by `seed`.

    Raises:
        InputError: `folder` is missing or has no known layout; its files hold nothing usable; an
            image is in two splits; `seed` is below 0.
    """
    folder = Path(folder)
    if seed < 0:
        raise InputError(f"seed {seed}: expected a whole number from 0 up")
    with _read_errors():
        found = find_layout(folder)
        if found is None:
            raise InputError(_not_recognised(folder))
        return _read_found(found, seed)


def _read_found(found: Found, seed: int) -> CaptionDataset:
    quirks = Quirks()
    images = list_images(found.image_folder, quirks, found.image_parts, found.own_files)
    names = ImageNames(images, found.image_folder.name, found.layout.by_file_name)
    content = found.read(quirks)
    captions = _keep_existing(content.captions, names, quirks)
    if not captions:
        raise InputError(
            f"{found.caption_files[0]}: none of its captions belongs to an image in"
            f" {found.image_folder} ({len(images):,} images); expected the captions of these images"
        )
    quirks.count("images without captions", len(images) - len(captions))
    _count_spelling(captions, quirks)

    if content.splits:
        splits = _usable_splits(content.splits, names, captions, quirks)
        split_origin = content.split_origin
    else:
        splits = split_by_image(captions, seed)
        split_origin = f"seeded by image (seed {seed}, 80/10/10)"
    in_split = sum(map(len, splits.values()))
    quirks.count("images in no split", len(captions) - in_split)
    return CaptionDataset(
        layout=found.layout.name,
        image_folder=found.image_folder,
        captions=captions,
        splits=splits,
        split_origin=split_origin,
        summary=dict(quirks.counts),
        problems=quirks.problems,
    )


# ---- images -------------------------------------------------------------------------------------


def list_images(
    image_folder: Path,
    quirks: Quirks,
    parts: Iterable[str] = ("",),
    own_files: Collection[str] = (),
) -> set[str]:
    """List the images in and below `image_folder` by their relative names, "/" between parts.

    A link that leads out of the folder, or to nothing, is refused; linked folders are not entered.

    Args:
        image_folder: what names are relative to.
        quirks: where is counted what is no image.
        parts: the subfolders to look into; "" for all of the folder.
        own_files: names of the data set's own files, which may lie among the images.
    """
    root = os.path.realpath(image_folder)
    images = set()
    pending = [f"{part}/" if part else "" for part in parts]
    while pending:
        parent = pending.pop()
        # One listing of each folder: asking the disk per caption row takes minutes on a server.
        with os.scandir(image_folder / parent) as entries:
            for entry in entries:
                name = parent + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
                    if entry.name not in own_files:
                        quirks.count("files in the image folder that are not images")
                elif entry.is_symlink() and not _links_inside(entry.path, root):
                    quirks.count("links to no file in the image folder (refused)")
                elif entry.is_file():
                    images.add(name)
    if not images:
        raise InputError(f"{image_folder}: holds no images; expected {_listed(IMAGE_SUFFIXES)}")
    return images


def _links_inside(link: str, root: str) -> bool:
    target = Path(os.path.realpath(link))
    return target.is_relative_to(root) and target.is_file()


def leads_outside(name: str) -> bool:
    """Whether an image name is absolute or climbs, by the rules of this system or Windows'."""
    path = PureWindowsPath(name)  # it takes both slashes
    return bool(path.drive or path.root) or ".." in path.parts


# ---- captions ------------------------------------------------------------------------------------


class ImageNames:
    """Finds the image that is meant by a name in a caption file or a split.

    Args:
        images: the images that are there, relative to the image folder.
        folder_name: of the image folder, for names that begin with it.
        by_file_name: an image may lie in another subfolder than its name says, and without the
            prefix that COCO's images had in 2014 (COCO_val2014_000000000042.jpg).
    """

    def __init__(self, images: set[str], folder_name: str, by_file_name: bool = False):
        """Keep the images; what takes time is made when it is first needed."""
        self._images = images
        self._prefix = f"{folder_name}/"
        self._by_file_name = by_file_name

    def find(self, name: str) -> str | None:
        """The image of that name, or None; none leads out of the image folder."""
        if name in self._images:
            return name
        if leads_outside(name):
            return None
        inside = name.removeprefix(self._prefix)
        if inside in self._images:
            return inside
        if not name.isascii() and (found := self._composed.get(_compose(inside))):
            return found
        if self._by_file_name:
            file_name = PurePosixPath(name).name
            return self._files.get(file_name) or self._files.get(_COCO_PREFIX.sub("", file_name))
        return None

    @cached_property
    def _composed(self) -> dict[str, str]:
        """Names with composed accents: some systems and programs write them decomposed."""
        return {_compose(image): image for image in self._images if not image.isascii()}

    @cached_property
    def _files(self) -> dict[str, str | None]:
        """File name -> image; None where there are several of that file name."""
        found: dict[str, str | None] = {}
        for image in self._images:
            file_name = PurePosixPath(image).name
            for key in {file_name, _COCO_PREFIX.sub("", file_name)}:
                found[key] = None if key in found else image
        return found


_COCO_PREFIX = re.compile(r"^COCO_(?:train|val)2014_")


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _keep_existing(captions: Captions, names: ImageNames, quirks: Quirks) -> Captions:
    existing: Captions = {}
    for name, texts in captions.items():
        if image := names.find(name):
            existing.setdefault(image, []).extend(texts)
        elif leads_outside(name):
            quirks.count("caption rows whose image name leads outside (refused)", len(texts))
        else:
            quirks.count("caption rows whose image is missing (skipped)", len(texts))
    return existing


def _count_spelling(captions: dict[str, list[str]], quirks: Quirks) -> None:
    """Count what tokenising will meet. All of it is kept."""
    for texts in captions.values():
        quirks.count("captions given twice for their image (kept)", len(texts) - len(set(texts)))
        quirks.count("captions in capitals (kept)", sum(text.isupper() for text in texts))
        quirks.count(
            "captions with characters beyond ASCII (kept)",
            sum(not text.isascii() for text in texts),
        )


# ---- splits -------------------------------------------------------------------------------------


def _usable_splits(
    files: dict[str, SplitFile], names: ImageNames, captions: Captions, quirks: Quirks
) -> dict[str, list[str]]:
    meant = {}
    for split, (path, images) in files.items():
        unique = list(dict.fromkeys(names.find(image) or image for image in images))
        quirks.count("split entries given twice", len(images) - len(unique))
        meant[split] = SplitFile(path, unique)
    _refuse_overlap(meant)
    splits = {}
    for split, (_, images) in meant.items():
        usable = [image for image in images if image in captions]
        quirks.count(
            f"{split} entries without image or captions (skipped)", len(images) - len(usable)
        )
        if usable:
            splits[split] = usable
    if not splits:
        paths = _listed({str(path) for path, _ in files.values()})
        raise InputError(f"{paths}: no entry names an image with captions; expected image names")
    return splits


def _refuse_overlap(files: dict[str, SplitFile]) -> None:
    """Raise InputError if an image is in two splits: a score on it would measure memory."""
    first: dict[str, str] = {}
    for split, (path, images) in files.items():
        for image in images:
            if (other := first.setdefault(image, split)) != split:
                one = files[other].path
                where = f"{one} and {path}" if one != path else f"{other} and {split} of {path}"
                raise InputError(f"{image} is in two splits, {where}; remove it from one of them")


def split_by_image(images: Iterable[str], seed: int) -> dict[str, list[str]]:
    """Split images 80/10/10 into train, dev and test; of three or more, each gets at least one.

    The order is that of a hash of seed and name: the same on every machine, whatever the order
    of the files.
    """
    shuffled = sorted(images, key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest())
    held_out = max(1, len(shuffled) // HELD_OUT_FRACTION) if len(shuffled) >= len(SPLITS) else 0
    splits = {
        "train": shuffled[2 * held_out :],
        "dev": shuffled[:held_out],
        "test": shuffled[held_out : 2 * held_out],
    }
    return {split: sorted(names) for split, names in splits.items() if names}


# ---- layouts ------------------------------------------------------------------------------------


def find_layout(folder: Path) -> Found | None:
    """Recognise the layout of `folder`; None if it has none that is known."""
    with _read_errors():
        return next((found for layout in LAYOUTS if (found := layout.find(folder))), None)


def _not_recognised(folder: Path) -> str:
    if not folder.exists():
        finding = "no such folder"
    elif not folder.is_dir():
        finding = "not a folder"
    elif not any(folder.iterdir()):
        finding = "an empty folder"
    else:
        finding = "not a data set of a known layout"
    expected = "; ".join(f"{layout.contents} ({layout.name})" for layout in LAYOUTS)
    return (
        f"{folder}: {finding}; expected one of: {expected}\n"
        f"get Flickr8k with: python -m captioning.dataset download --to {folder}"
    )


@contextlib.contextmanager
def _read_errors() -> Iterator[None]:
    """Turn the operating system's refusal to read a file into a message."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


# ---- command line -------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m captioning.dataset`; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m captioning.dataset", description="Get the caption data set Flickr8k."
    )
    commands = parser.add_subparsers(required=True)
    download = commands.add_parser("download", help="fetch Flickr8k (1.1 GB) and unpack it")
    download.add_argument(
        "--to",
        type=Path,
        default=Path("data/flickr8k"),
        metavar="DIR",
        help="folder for the data set (default: %(default)s)",
    )
    download.add_argument(
        "--from",
        dest="source",
        default=SOURCE,
        metavar="URL",
        help="where the two archives are (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if find_layout(options.to) is not None:
        print(f"{options.to}: a data set is already there, nothing to do", file=sys.stderr)
        return 0
    download_flickr8k(options.to, options.source)
    print(read_dataset(options.to).describe())
    return 0


if __name__ == "__main__":
    run(main, "stopped; what has arrived is kept beside the folder that was named, go on with")
