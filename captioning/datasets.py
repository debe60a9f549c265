"""Flickr8k: images, their captions and splits; other data sets: `extras/data/layouts.py`."""

import contextlib
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.contrib.concurrent import thread_map

from captioning.errors import InputError
from captioning.readers import READERS, Captions, Rows, Splits, read_names

SPLITS = ("train", "dev", "test")
IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jpe|jfif|jp2|png|gif|bmp|webp|tiff?|avif)", re.IGNORECASE)
IMAGE_FOLDER = re.compile(r"[Ii]mages|Flicke?r8k_Dataset|flickr30k[-_]images")


@dataclass(frozen=True)
class CaptionDataset:
    """Images with their captions and splits; every image named here exists and has a caption."""

    layout: str
    image_folder: Path  # the folder that image names are relative to
    captions: Captions
    splits: Splits  # a split that the data lacks is absent
    split_origin: str  # where the splits come from, or how they were drawn
    summary: dict[str, int]  # what was odd, in words -> how often
    problems: list[str]  # the broken rows that were skipped, each with its file and line number

    def describe(self) -> str:
        """Say in several lines what was read and what was odd about it."""
        images, captions = len(self.captions), sum(map(len, self.captions.values()))
        sizes = [f"{name} {len(self.splits[name]):,}" for name in SPLITS if name in self.splits]
        absent = [f"no {name}" for name in SPLITS if name not in self.splits]
        lines = [
            f"layout: {self.layout}, images in {self.image_folder}",
            f"captions: {captions:,} of {images:,} images ({captions / images:.2f} per image)",
            f"splits: {', '.join(sizes + absent)} images ({self.split_origin})",
        ]
        lines += [f"  {count:,} {what}" for what, count in self.summary.items()]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems[:5]])


def read_dataset(folder: str | Path, *, seed: int = 0) -> CaptionDataset:
    """Read the data set in `folder`; InputError if it is unknown, empty, or contradicts itself.

    The splits are the official ones, else Karpathy's, else drawn by image with `seed`.
    """
    folder = Path(folder).expanduser()
    # Six folders deep, links too. Of several files of one name, that of the upper folder counts.
    files = [file for depth in range(6) for file in sorted(folder.glob("*/" * depth + "*"))]
    by_name = {file.name: file for file in reversed(files)}
    reader = next((reader for reader in READERS if reader.find(files)), None)
    if not reader:
        from captioning.extras.data import layouts

        reader = layouts.find_reader(folder, files)
    paths = reader.find(files)
    counts, problems = Counter(), []
    captions, splits = _collect((reader.read(path, problems) for path in paths), counts)
    if not captions:
        raise InputError("; ".join([f"{paths[0]}: holds no usable caption", *problems[:1]]))
    origin = f"splits of {', '.join(path.name for path in paths)}"
    lists = {split: by_name.get(f"Flickr_8k.{split}Images.txt") for split in SPLITS}
    if any(lists.values()):
        rows = {split: read_names(path, problems) for split, path in lists.items() if path}
        splits = {split: [name for name, *_ in rows[split]] for split in rows}
        origin = "official split files"
    elif karpathy := by_name.get(reader.karpathy):
        from captioning.extras.data import layouts

        _, splits = _collect([layouts.read_karpathy(karpathy, [])], Counter())
        origin = f"splits of {karpathy.name}"
    image_folder, images = _find_images(folder, files)
    if not images.issuperset(itertools.chain(captions, *splits.values())):
        with contextlib.suppress(ImportError):  # optional, as all extras
            from captioning.extras.data.layouts import match_names

            captions, splits = match_names(captions, splits, image_folder, images, counts)
    if not captions.keys() & images:
        problem = f"none of its captions belongs to an image in {image_folder}; it names"
        names = f"{next(iter(captions))[:60]!r} etc., the images are {min(images)[:60]!r} etc."
        raise InputError(f"{paths[0]}: {problem} {names}")
    if missing := [image for image in captions if image not in images]:
        what = f"caption rows whose image is missing (skipped), e.g. {missing[0][:60]!r}"
        counts[what] = sum(len(captions.pop(image)) for image in missing)
    counts["repeated captions (kept)"] = sum(len(t) - len({*t}) for t in captions.values())
    splits = _usable(image_folder, splits, captions, counts)
    split_of = {image: split for split in splits for image in splits[split]}
    copies = _find_copies(image_folder, sorted(split_of or captions))
    counts["images that show the same picture as another"] = len(copies)
    if apart := [pair for pair in copies.items() if len({*map(split_of.get, pair)}) > 1]:
        counts[f"of these not in one split, e.g. {' and '.join(apart[0])}"] = len(apart)
    if not splits:
        splits = split_by_image(captions, seed, copies)
        origin = f"seeded by image (seed {seed}, 80/10/10)"
    counts["images without captions"] = len(images) - len(captions)
    counts["images in no split"] = len(captions) - sum(map(len, splits.values()))
    counts["broken rows (skipped)"] = len(problems)
    summary = {what: count for what, count in counts.items() if count}
    return CaptionDataset(reader.layout, image_folder, captions, splits, origin, summary, problems)


def _collect(files: Iterable[Rows], counts: Counter[str]) -> tuple[Captions, Splits]:
    """Join the rows of all files; white space in captions becomes single spaces."""
    captions, splits = {}, {}
    for name, texts, split in itertools.chain.from_iterable(files):
        texts = [" ".join(text.split()) for text in texts]
        counts["empty captions (skipped)"] += texts.count("")
        if any(texts):
            captions.setdefault(name, []).extend(filter(None, texts))
        if split:
            splits.setdefault(split, []).append(name)
    return captions, splits


def _find_images(folder: Path, files: list[Path]) -> tuple[Path, set[str]]:
    """The fullest folder with a usual name, else `folder`, and the images in it."""
    images = [f for f in files if IMAGE_SUFFIX.fullmatch(f.suffix) and f.name[0] != "."]
    if not images:
        raise InputError(f"{folder}: holds no images; expected .jpg, .png, .webp, .tif etc.")
    above = Counter(parent for image in images for parent in image.parents)
    usual = [p for p in above if IMAGE_FOLDER.fullmatch(p.name) and p.is_relative_to(folder)]
    fullest = max(usual, key=lambda path: (above[path], len(path.parts)), default=folder)
    inside = [image.relative_to(fullest) for image in images if image.is_relative_to(fullest)]
    return fullest, {image.as_posix() for image in inside}


def _usable(folder: Path, splits: Splits, captions: Captions, counts: Counter[str]) -> Splits:
    """The images of each split that have captions; none may be in two splits."""
    usable = {}
    for one, other in itertools.combinations(splits, 2):
        if both := set(splits[one]).intersection(splits[other]):
            raise InputError(f"{folder}: {min(both)} is in two splits, {one} and {other}")
    for split, names in splits.items():
        members = dict.fromkeys(names)
        usable[split] = [image for image in members if image in captions]
        counts["split entries given twice"] += len(names) - len(members)
        skipped = f"{split} entries without image or captions (skipped)"
        counts[skipped] = len(members) - len(usable[split])
    if splits and not any(usable.values()):
        raise InputError(f"{folder}: the given splits name no image with captions")
    return {split: images for split, images in usable.items() if images}


def _find_copies(folder: Path, images: list[str]) -> dict[str, str]:
    """Image -> the first image, by name, of the same picture at 32 x 32 pixels, if not itself."""

    def picture(image: str) -> bytes | None:
        # Pillow raises many kinds of errors; step 2 reports damaged images
        with contextlib.suppress(Exception), Image.open(folder / image) as opened:
            small = opened.convert("F").resize((32, 32))  # also keeps 16 bits
            return hashlib.sha256(small.tobytes()).digest()

    pictures = thread_map(picture, images, desc="comparing images", leave=False, delay=2)
    first, copies = {}, {}
    for image, pixels in zip(images, pictures, strict=True):
        if pixels and first.setdefault(pixels, image) != image:
            copies[image] = first[pixels]
    return copies


def split_by_image(images: Iterable[str], seed: int, copies: Mapping[str, str] = {}) -> Splits:
    """Split images 80/10/10 by a hash of seed and name; `copies` go with what they map to."""
    drawn = set(images) - copies.keys()
    shuffled = sorted(drawn, key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest())
    held_out = max(1, len(shuffled) // 10) if len(shuffled) >= 3 else 0
    drawn_splits = ["dev"] * held_out + ["test"] * held_out + ["train"] * len(shuffled)
    split_of = dict(zip(shuffled, drawn_splits, strict=False))
    split_of |= {image: split_of[original] for image, original in copies.items()}
    splits = {split: sorted(i for i in split_of if split_of[i] == split) for split in SPLITS}
    return {split: names for split, names in splits.items() if names}
