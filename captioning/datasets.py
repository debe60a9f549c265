"""Caption data sets: images, their captions and splits, in the layouts that publishers use.

`python -m captioning download --to data/flickr8k` fetches Flickr8k (1.1 GB). A further layout is
a further row of `READERS`. Nothing is skipped silently: it is counted, and `describe` reports it.
"""

import codecs
import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from unicodedata import normalize

from PIL import Image
from tqdm.auto import tqdm

from captioning.errors import InputError

SPLITS = ("train", "dev", "test")
HELD_OUT_FRACTION = 10  # without given splits, 1/10 of the images goes to dev and 1/10 to test
MAX_DEPTH = 6  # of the search for files, in folders
PROBLEMS_SHOWN = 5
IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jpe|jfif|jp2|png|gif|bmp|webp|tiff?|avif)", re.IGNORECASE)
IMAGE_FOLDER = re.compile(r"[Ii]mages|Flicke?r8k_Dataset|flickr30k[-_]images")
COCO_PREFIX = re.compile(r"coco_(train|val)2014_(?=[0-9]{12})")  # the same images lack it in 2017
COCO_NUMBER = re.compile(r"(^|/)[0-9]{12}(\.jpg)?$")

Captions = dict[str, list[str]]  # image name -> its captions, in the order of the file
Splits = dict[str, list[str]]  # "train", "dev", "test" -> image names


class Reader(NamedTuple):
    """How a caption file is recognised and read."""

    pattern: str  # of the file's path
    layout: str
    karpathy: str = ""  # the name of A. Karpathy's file of splits for this data set
    row: str = ""  # what a line holds; JSON is read elsewhere
    parse: Callable[[str], Iterable[str]] | None = None  # a line -> image name and caption


TOKEN = "image.jpg#0, a tab, a caption", lambda line: re.split(r"#[0-9]+ *\t", line, maxsplit=1)
BARS = "image.jpg| 0| a caption", lambda line: re.split(r"\|[^|]*\|", line, maxsplit=1)
CSV = 'image,"a caption"', lambda line: next(csv.reader([line], strict=True))
FLICKR8K, FLICKR30K, COCO = (f"dataset_{name}.json" for name in ("flickr8k", "flickr30k", "coco"))
NAMES = Reader("Flickr_8k.*Images.txt", "", "", "image.jpg", lambda line: (line, ""))
READERS = (
    Reader("Flickr_TextData/Flickr8k.token.txt", "kaggle-nested", FLICKR8K, *TOKEN),
    Reader("Flickr8k.token.txt", "official", FLICKR8K, *TOKEN),
    Reader("captions.txt", "kaggle-csv", FLICKR8K, *CSV),
    Reader("results_20130124.token", "flickr30k", FLICKR30K, *TOKEN),
    Reader("results.csv", "flickr30k-csv", FLICKR30K, *BARS),
    Reader("captions_*2014.json", "coco-2014", COCO),
    Reader("captions_*2017.json", "coco-2017", COCO),
    Reader("captions.csv", "plain-csv", "", *CSV),
    Reader("captions.jsonl", "plain-jsonl"),
    Reader(FLICKR8K, "karpathy-flickr8k"),
    Reader(FLICKR30K, "karpathy-flickr30k"),
    Reader(COCO, "karpathy-coco"),
)


@dataclass(frozen=True)
class CaptionDataset:
    """Images with their captions and splits; every image named here is there and has a caption."""

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
        lines += [f"  {problem}" for problem in self.problems[:PROBLEMS_SHOWN]]
        return "\n".join(lines)


def read_dataset(folder: str | os.PathLike, *, seed: int = 0) -> CaptionDataset:
    """Read the data set in `folder`.

    Official split files are used if they are there, else Karpathy's splits, else COCO's own.
    Without any, images (never captions) are split 80/10/10 at random by `seed`.

    Raises:
        InputError: no data set of a known layout, nothing usable in it, or an image in two splits.
    """
    try:
        return _read(Path(folder).expanduser(), seed)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _read(folder: Path, seed: int) -> CaptionDataset:
    # Links are followed. Of several files of one name, that of the upper folder counts.
    files = [file for depth in range(MAX_DEPTH) for file in sorted(folder.glob("*/" * depth + "*"))]
    by_name = {file.name: file for file in reversed(files)}
    reader, paths = _find_captions(folder, files)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    captions, splits = _read_captions(reader, paths, counts, problems)
    origin = f"splits of {', '.join(path.name for path in paths)}"
    official = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}
    if official := {split: by_name[name] for split, name in official.items() if name in by_name}:
        rows = {split: _read_lines(path, NAMES, problems) for split, path in official.items()}
        splits = {split: [name for name, *_ in rows[split]] for split in rows}
        origin = "official split files"
    elif karpathy := by_name.get(reader.karpathy):
        _, splits = _read_captions(reader, [karpathy], Counter(), [])
        origin = f"splits of {karpathy.name}"
    images = Images(folder, files)
    captions = _by_image(captions, images, paths[0], counts)
    split_of: dict[str, str] = {}
    if splits:
        splits = _usable_splits(splits, images, captions, counts)
        split_of = {image: split for split in splits for image in splits[split]}
    copies = _copies(images.folder, sorted(split_of or captions))
    counts["images that show the same picture as another"] = len(copies)
    apart = [pair for pair in copies.items() if len({*map(split_of.get, pair)}) > 1]
    if apart:
        counts[f"of these not in one split, e.g. {' and '.join(apart[0])}"] = len(apart)
    if not splits:
        splits = split_by_image(captions, seed, copies)
        origin = f"seeded by image (seed {seed}, 80/10/10)"
    counts["images without captions"] = len(images.names) - len(captions)
    counts["images in no split"] = len(captions) - sum(map(len, splits.values()))
    counts["broken rows (skipped)"] = len(problems)
    found = reader.layout, images.folder, captions, splits, origin
    return CaptionDataset(*found, {what: n for what, n in counts.items() if n}, problems)


def leads_outside(name: str) -> bool:
    """Whether an image name is absolute or contains "..", by the rules of POSIX or Windows."""
    path = PureWindowsPath(name)  # it takes both slashes
    return bool(path.drive or path.root) or ".." in path.parts


def _key(name: str) -> str:
    """What the spellings of a name have in common; some systems decompose accents."""
    return COCO_PREFIX.sub("", normalize("NFC", name).replace("\\", "/").casefold())


class Images:
    """The images of a data set, and what the names in its caption and split files mean."""

    def __init__(self, folder: Path, files: list[Path]):
        """Find the image folder: the fullest one with a usual name, else `folder` itself."""
        images = [f for f in files if IMAGE_SUFFIX.fullmatch(f.suffix) and f.name[0] != "."]
        if not images:
            raise InputError(f"{folder}: holds no images; expected .jpg, .png, .webp, .tif etc.")
        above: Counter[Path] = Counter()
        for parent, count in Counter(image.parent for image in images).items():
            above.update(dict.fromkeys([parent, *parent.parents], count))
        usual = [p for p in above if IMAGE_FOLDER.fullmatch(p.name) and p.is_relative_to(folder)]
        self.folder = max(usual, key=lambda path: (above[path], len(path.parts)), default=folder)
        self.names: set[str] = set()  # relative to it
        self._by_key: dict[str, set[str]] = {}
        for image in images:
            if image.is_relative_to(self.folder):
                inside = image.relative_to(self.folder).as_posix()
                self.names.add(inside)
                for path in {inside, f"{self.folder.name}/{inside}", image.name}:
                    for spelling in (path, path.removesuffix(image.suffix)):
                        self._by_key.setdefault(_key(spelling), set()).add(inside)

    def find(self, name: str) -> tuple[str | None, bool]:
        """The only image that `name` can mean, or None; and whether it is spelled otherwise.

        Of absolute paths, and of COCO's images, the file name counts.
        """
        key = _key(name)
        if leads_outside(name) or COCO_NUMBER.search(key):
            key = key.rpartition("/")[2]
        fits = self._by_key.get(key, set())
        if name in self.names:
            return name, False
        if len(fits) != 1 or ".." in PureWindowsPath(name).parts:
            return None, False
        image = min(fits)
        same = [normalize("NFC", path) for path in (name, image, f"{self.folder.name}/{image}")]
        return image, same[0] not in same[1:]


def _copies(folder: Path, images: list[str]) -> dict[str, str]:
    """Image -> the first image, by name, of the same picture at 32 x 32 pixels, if not itself.

    Damaged images are left out. 224 x 224 pixels take 0.9 ms of one core, 500 x 375 take 2 ms.
    """

    def picture(image: str) -> bytes | None:
        try:
            with Image.open(folder / image) as opened:
                deep = opened.mode.startswith("I")  # 16 bits, which RGB would cut off
                small = (opened if deep else opened.convert("RGB")).resize((32, 32))
        except Exception:  # Pillow raises many kinds; step 2 reports damaged images
            return None
        return hashlib.sha256(small.tobytes()).digest()

    first: dict[bytes, str] = {}
    copies = {}
    with ThreadPoolExecutor() as pool:
        pictures = pool.map(picture, images)
        for image in tqdm(images, "comparing images", leave=False, delay=2):
            if (pixels := next(pictures)) and first.setdefault(pixels, image) != image:
                copies[image] = first[pixels]
    return copies


def _find_captions(folder: Path, files: list[Path]) -> tuple[Reader, list[Path]]:
    for reader in READERS:
        if paths := [file for file in files if file.match(reader.pattern)]:
            return reader, [path for path in paths if path.parent == paths[0].parent]
    finding = "no data set of a known layout" if folder.is_dir() else "no such folder"
    expected = ", ".join(f"{reader.pattern} ({reader.layout})" for reader in READERS)
    raise InputError(
        f"{folder}: {finding}; expected images and one of {expected}\n"
        f"get Flickr8k with: python -m captioning download --to {folder}"
    )


def _read_captions(
    reader: Reader, paths: list[Path], counts: Counter[str], problems: list[str]
) -> tuple[Captions, Splits]:
    captions: Captions = {}
    splits: Splits = {}
    for path in paths:
        if path.suffix.startswith(".json"):
            from captioning.extras.coco import read_json

            rows = read_json(path, problems)
        else:
            rows = _read_lines(path, reader, problems)
        for name, texts, split in rows:
            texts = [" ".join(text.split()) for text in texts]
            counts["empty captions (skipped)"] += texts.count("")
            if name and any(texts):
                captions.setdefault(name, []).extend(filter(None, texts))
            if split:
                splits.setdefault(split, []).append(name)
    if not captions:
        raise InputError("; ".join([f"{paths[0]}: holds no usable caption", *problems[:1]]))
    return captions, splits


def _read_lines(
    path: Path, reader: Reader, problems: list[str]
) -> Iterator[tuple[str, list[str], str]]:
    """Yield image name, caption and no split for each line; `problems` gets the broken ones."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: is UTF-16; save it as UTF-8")
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            name, text = map(str.strip, reader.parse(line.decode("utf-8-sig")))
        except (ValueError, csv.Error):
            name = ""
        if not name and line.strip():
            got = line.decode(errors="replace")[:40]
            problems.append(f"{path.name}, line {number}: expected {reader.row}; got {got!r}")
        elif name.lower() not in ("", "image", "image_name"):  # a blank line or header
            yield name, [text], ""


def _by_image(captions: Captions, images: Images, path: Path, counts: Counter[str]) -> Captions:
    """The captions of the images that exist."""
    found = {name: images.find(name) for name in captions}
    names_of = Counter(image for image, _ in found.values())
    existing: Captions = {}
    missing, guessed = [], []
    for name, (image, is_guess) in found.items():
        if image is None or (is_guess and names_of[image] > 1):
            missing.append(name)
        else:
            existing.setdefault(image, []).extend(captions[name])
            guessed += [f"{name[:60]!r} for {image[:60]!r}"] if is_guess else []
    if not existing:
        raise InputError(
            f"{path}: none of its captions belongs to an image in {images.folder}; it names"
            f" {missing[0][:60]!r} etc., the images are {min(images.names)[:60]!r} etc."
        )
    if guessed:
        counts[f"image names matched despite their spelling, e.g. {guessed[0]}"] = len(guessed)
    if missing:
        what = f"caption rows whose image is missing (skipped), e.g. {missing[0][:60]!r}"
        counts[what] = sum(len(captions[name]) for name in missing)
    counts["repeated captions (kept)"] = sum(len(t) - len({*t}) for t in existing.values())
    return existing


def _usable_splits(
    splits: Splits, images: Images, captions: Captions, counts: Counter[str]
) -> Splits:
    """The images of each split that exist and have captions; none may be in two splits."""
    usable = {}
    split_of: dict[str, str] = {}
    for split, names in splits.items():
        members = dict.fromkeys(images.find(name)[0] or name for name in names)
        for image in members:
            if (other := split_of.setdefault(image, split)) != split:
                raise InputError(
                    f"{images.folder}: {image} is in two splits, {other} and {split}; remove one"
                )
        usable[split] = [image for image in members if image in captions]
        counts["split entries given twice"] += len(names) - len(members)
        skipped = f"{split} entries without image or captions (skipped)"
        counts[skipped] = len(members) - len(usable[split])
    if not any(usable.values()):
        raise InputError(f"{images.folder}: the given splits name no image with captions")
    return {split: members for split, members in usable.items() if members}


def split_by_image(images: Iterable[str], seed: int, copies: Mapping[str, str] = {}) -> Splits:
    """Split images 80/10/10 into train, dev and test; of three or more, each gets at least one.

    The order is that of a hash of seed and name: the same on every machine. An image in `copies`
    goes to the split of the one that it maps to.
    """
    drawn = set(images) - copies.keys()
    shuffled = sorted(drawn, key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest())
    held_out = max(1, len(shuffled) // HELD_OUT_FRACTION) if len(shuffled) >= len(SPLITS) else 0
    splits = {
        "train": shuffled[2 * held_out :],
        "dev": shuffled[:held_out],
        "test": shuffled[held_out : 2 * held_out],
    }
    split_of = {image: split for split in splits for image in splits[split]}
    for image, original in copies.items():
        splits[split_of[original]].append(image)
    return {split: sorted(names) for split, names in splits.items() if names}
