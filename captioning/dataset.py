"""Reading caption data sets: images, raw captions and splits, in the layouts users have.

Nothing odd in the data is dropped in silence: it is counted, and the counts are part of what
:meth:`CaptionDataset.describe` prints. Getting Flickr8k:

    python -m captioning.dataset download --to data/flickr8k

(1.1 GB; some minutes; an interrupted download resumes).
"""

import argparse
import codecs
import contextlib
import csv
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from captioning.download import SOURCE, download_flickr8k, work_folder
from captioning.files import InputError

SPLITS = ("train", "dev", "test")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
MAX_LINE_BYTES = 1 << 16  # the longest caption of Flickr8k has 199 characters
HELD_OUT_FRACTION = 10  # one image in so many goes to dev, one to test, if no split is given
PROBLEMS_SHOWN = 5
INTERRUPTED = 130  # the exit status of a command that ended by Ctrl-C


@dataclass(frozen=True)
class CaptionDataset:
    """Images with their captions and splits; every image named here exists and has a caption.

    Attributes:
        layout: name of the layout that was recognised.
        image_folder: where the images are.
        captions: image file name (relative to `image_folder`) -> its captions as they stand in
            the file, without surrounding blanks, in the order of the file.
        splits: "train", "dev", "test" -> image names. A split that the data lacks is absent.
        split_origin: "official split files", or how the split was drawn.
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


@dataclass
class Quirks:
    """What is odd about a data set, gathered while it is read."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def count(self, what: str, times: int = 1) -> None:
        """Note that `what` was met so many `times`; none is not worth a note."""
        if times:
            self.counts[what] += times

    def skip_row(self, path: Path, line_number: int, why: str) -> None:
        """Note that a broken row was left out, and where."""
        self.count("broken rows (skipped)")
        self.problems.append(f"{path.name}, line {line_number}: {why}")


def read_dataset(folder: str | os.PathLike, *, seed: int = 0) -> CaptionDataset:
    """Read the data set in `folder`, whichever of the `LAYOUTS` it has.

    Official split files are used where they are, as they are: a split whose file is missing is
    absent. Without any, images (never captions) are split 80/10/10 at random by `seed`.

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
        return _read_layout(folder, *found, seed)


def _read_layout(
    folder: Path, layout: "Layout", image_folder: Path, caption_file: Path, seed: int
) -> CaptionDataset:
    quirks = Quirks()
    images = list_images(image_folder, quirks)
    captions = _keep_existing(layout.read_captions(caption_file, quirks), images, quirks)
    if not captions:
        raise InputError(
            f"{caption_file}: none of its captions belongs to an image in {image_folder}"
            f" ({len(images):,} images); expected the captions of these images"
        )
    quirks.count("images without captions", len(images) - len(captions))
    _count_spelling(captions, quirks)

    files = layout.read_splits([caption_file.parent, folder], quirks)
    _refuse_overlap(files)
    if files:
        splits = _usable_splits(files, captions, quirks)
        split_origin = "official split files"
    else:
        splits = split_by_image(captions, seed)
        split_origin = f"seeded by image (seed {seed}, 80/10/10)"
    in_split = sum(map(len, splits.values()))
    quirks.count("images in no split", len(captions) - in_split)
    return CaptionDataset(
        layout=layout.name,
        image_folder=image_folder,
        captions=captions,
        splits=splits,
        split_origin=split_origin,
        summary=dict(quirks.counts),
        problems=quirks.problems,
    )


# ---- images -------------------------------------------------------------------------------------


def list_images(image_folder: Path, quirks: Quirks) -> set[str]:
    """List the images in and below `image_folder` by their relative names, "/" between parts.

    A link that leads out of the folder, or to nothing, is refused; linked folders are not entered.
    """
    root = os.path.realpath(image_folder)
    images = set()
    pending = [""]
    while pending:
        parent = pending.pop()
        # One listing of each folder: asking the disk per caption row takes minutes on a server.
        with os.scandir(image_folder / parent) as entries:
            for entry in entries:
                name = parent + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
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


# ---- captions -----------------------------------------------------------------------------------


def read_lines(path: Path, quirks: Quirks) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of every line of `path` that is neither blank nor broken.

    Lines may end in LF, CRLF or CR; a byte-order mark is taken off.
    """
    data = path.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        quirks.count("text files with a byte-order mark")
        data = data.removeprefix(codecs.BOM_UTF8)
    quirks.count("lines that end in CRLF", data.count(b"\r\n"))
    for line_number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            quirks.count("blank lines")
        elif len(line) > MAX_LINE_BYTES:
            quirks.skip_row(path, line_number, f"{len(line):,} bytes long")
        else:
            try:
                yield line_number, line.decode("utf-8")
            except UnicodeDecodeError:
                quirks.skip_row(path, line_number, f"not UTF-8: {_shortened(line)}")


def read_token_file(path: Path, quirks: Quirks) -> dict[str, list[str]]:
    """Read rows `image.jpg#0<TAB>caption` into image name -> captions.

    Of rows with the same `image.jpg#0`, the first counts.

    Raises:
        InputError: no row is usable.
    """
    captions: dict[str, list[str]] = {}
    seen: dict[tuple[str, str], str] = {}
    for line_number, line in read_lines(path, quirks):
        identifier, tab, caption = line.partition("\t")
        name, _, number = identifier.strip().rpartition("#")
        caption = caption.strip()
        if not (tab and name and number.isascii() and number.isdigit()):
            expected = "expected image.jpg#0, a tab, a caption"
            quirks.skip_row(path, line_number, f"{expected}; got {_shortened(line)}")
        elif not caption:
            quirks.count("empty captions (skipped)")
        elif (name, number) not in seen:
            seen[name, number] = caption
            captions.setdefault(name, []).append(caption)
        elif seen[name, number] == caption:
            quirks.count("duplicate rows (skipped)")
        else:
            another = "has another caption above"
            quirks.skip_row(path, line_number, f"{_shortened(identifier)} {another}")
    return _require_rows(captions, path, quirks)


def read_caption_csv(path: Path, quirks: Quirks) -> dict[str, list[str]]:
    """Read CSV rows `image,caption`, with or without a header, into image name -> captions.

    A row is one line: a quote left open breaks its own row, not all that follow.

    Raises:
        InputError: no row is usable.
    """
    captions: dict[str, list[str]] = {}
    header = ["image", "caption"]
    for position, (line_number, line) in enumerate(read_lines(path, quirks)):
        try:
            row = [value.strip() for value in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            quirks.skip_row(path, line_number, f"{error}: {_shortened(line)}")
            continue
        if position == 0 and [value.lower() for value in row] == header:
            continue
        if len(row) != len(header) or not row[0]:
            expected = "expected image,caption (a caption with a comma in quotes)"
            quirks.skip_row(path, line_number, f"{expected}; got {_shortened(line)}")
        elif not row[1]:
            quirks.count("empty captions (skipped)")
        else:
            captions.setdefault(row[0], []).append(row[1])
    return _require_rows(captions, path, quirks)


def _require_rows(
    captions: dict[str, list[str]], path: Path, quirks: Quirks
) -> dict[str, list[str]]:
    if captions:
        return captions
    first = f"; {quirks.problems[0]}" if quirks.problems else ""
    raise InputError(f"{path}: holds no usable caption{first}")


def _keep_existing(
    captions: dict[str, list[str]], images: set[str], quirks: Quirks
) -> dict[str, list[str]]:
    existing = {}
    for name, texts in captions.items():
        if name in images:
            existing[name] = texts
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


class SplitFile(NamedTuple):
    """One split as its file gives it."""

    path: Path
    images: list[str]


def read_flickr8k_splits(folders: Iterable[Path], quirks: Quirks) -> dict[str, SplitFile]:
    """Read `Flickr_8k.trainImages.txt` and its like, each from the first folder that has it."""
    files = {}
    for split in SPLITS:
        for folder in folders:
            path = folder / f"Flickr_8k.{split}Images.txt"
            if path.is_file():
                lines = [line.strip() for _, line in read_lines(path, quirks)]
                images = list(dict.fromkeys(lines))
                quirks.count("split entries given twice", len(lines) - len(images))
                files[split] = SplitFile(path, images)
                break
    return files


def _refuse_overlap(files: dict[str, SplitFile]) -> None:
    """Raise InputError if an image is in two splits: a score on it would measure memory."""
    first: dict[str, Path] = {}
    for path, images in files.values():
        for image in images:
            if first.setdefault(image, path) != path:
                raise InputError(
                    f"{image} is in two splits, {first[image]} and {path};"
                    " remove it from one of them"
                )


def _usable_splits(
    files: dict[str, SplitFile], captions: dict[str, list[str]], quirks: Quirks
) -> dict[str, list[str]]:
    splits = {}
    for split, (_, images) in files.items():
        usable = [image for image in images if image in captions]
        quirks.count(
            f"{split} entries without image or captions (skipped)", len(images) - len(usable)
        )
        if usable:
            splits[split] = usable
    if not splits:
        paths = _listed(str(path) for path, _ in files.values())
        raise InputError(f"{paths}: no entry names an image with captions; expected image names")
    return splits


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


@dataclass(frozen=True)
class Layout:
    """How one publisher arranges a data set; a further one is a further row of `LAYOUTS`.

    Attributes:
        name: what it is called in summaries.
        contents: what a folder of this layout holds, for messages.
        image_folders: where the images may be, the first that exists counts.
        caption_files: where the captions may be, likewise.
        read_captions: the reader of the caption file.
        read_splits: the reader of split files in the caption file's folder or the data set's.
    """

    name: str
    contents: str
    image_folders: tuple[str, ...]
    caption_files: tuple[str, ...]
    read_captions: Callable[[Path, Quirks], dict[str, list[str]]]
    read_splits: Callable[[list[Path], Quirks], dict[str, SplitFile]]


# Some tools unpack an archive into a folder named after it: the innermost folder counts.
_OFFICIAL_IMAGE_FOLDERS = (
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset/Flickr8k_Dataset",
    "Flicker8k_Dataset/Flicker8k_Dataset",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)
_KAGGLE_PARENTS = (
    "Flickr_Data/Flickr_Data/",
    "flickr_data/Flickr_Data/",
    "Flickr_Data/",
    "flickr_data/",
    "",
)

LAYOUTS = (
    Layout(
        name="official",
        contents="Flicker8k_Dataset/ and Flickr8k_text/Flickr8k.token.txt",
        image_folders=_OFFICIAL_IMAGE_FOLDERS,
        caption_files=(
            "Flickr8k_text/Flickr8k_text/Flickr8k.token.txt",
            "Flickr8k_text/Flickr8k.token.txt",
            "Flickr8k.token.txt",
        ),
        read_captions=read_token_file,
        read_splits=read_flickr8k_splits,
    ),
    Layout(
        name="kaggle-nested",
        contents="Flickr_Data/Images/ and Flickr_Data/Flickr_TextData/Flickr8k.token.txt",
        image_folders=tuple(f"{parent}Images" for parent in _KAGGLE_PARENTS),
        caption_files=tuple(
            f"{parent}Flickr_TextData/Flickr8k.token.txt" for parent in _KAGGLE_PARENTS
        ),
        read_captions=read_token_file,
        read_splits=read_flickr8k_splits,
    ),
    Layout(
        name="kaggle-csv",
        contents="Images/ and captions.txt",
        image_folders=("Images",),
        caption_files=("captions.txt",),
        read_captions=read_caption_csv,
        read_splits=read_flickr8k_splits,
    ),
)


def find_layout(folder: Path) -> tuple[Layout, Path, Path] | None:
    """Recognise the layout of `folder`; also returns its image folder and caption file."""
    with _read_errors():
        for layout in LAYOUTS:
            images = [path for name in layout.image_folders if (path := folder / name).is_dir()]
            captions = [path for name in layout.caption_files if (path := folder / name).is_file()]
            if images and captions:
                return layout, images[0], captions[0]
    return None


def _not_recognised(folder: Path) -> str:
    if not folder.exists():
        finding = "no such folder"
    elif not folder.is_dir():
        finding = "not a folder"
    elif not any(folder.iterdir()):
        finding = "an empty folder"
    else:
        finding = "not a data set of a known layout"
    expected = "; or ".join(f"{layout.contents} ({layout.name})" for layout in LAYOUTS)
    return (
        f"{folder}: {finding}; expected {expected}\n"
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


def _shortened(text: str | bytes, length: int = 40) -> str:
    """Quote the beginning of what was read, so that a message stays a line."""
    return repr(text[:length]) + ("..." if len(text) > length else "")


# ---- command line -------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m captioning.dataset`; returns the exit status."""
    parser = argparse.ArgumentParser(
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
    try:
        if find_layout(options.to) is not None:
            print(f"{options.to}: a data set is already there, nothing to do", file=sys.stderr)
            return 0
        download_flickr8k(options.to, options.source)
        print(read_dataset(options.to).describe())
        return 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"what has arrived is kept in {work_folder(options.to)}"
        print(f"interrupted; {kept}, the same command resumes it", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
