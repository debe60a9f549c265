"""Caption data sets other than Flickr8k: Flickr30k, COCO, plain tables, A. Karpathy's files.

A further layout is a further row of `READERS`. A reader yields an image's name, captions and split
("" if the file has none), skips broken entries, and describes them in `problems`.
"""

import json
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path, PureWindowsPath
from unicodedata import normalize

from captioning import readers
from captioning.errors import InputError
from captioning.files import read_json
from captioning.readers import Captions, Reader, Rows, Splits, read_csv, read_lines, read_tokens

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
COCO_NAME = re.compile(r"(?:.*/)?(?:coco_(?:train|val)2014_)?([0-9]{12})(?=$|\.jpg$)")


def parse_json(line: str) -> tuple[str, str | list[str]]:
    """The name and what is written of `{"image": "a.jpg", "caption": "..."}`, or `"captions"`."""
    match json.loads(line):
        case {"image": str(name), "captions": list(texts)} if _are_texts(name, *texts):
            return name, texts
        case {"image": str(name), "caption": text} if _are_texts(name, text):
            return name, text
    raise ValueError


def read_karpathy(path: Path, problems: list[str]) -> Rows:
    """Read Karpathy's captions and splits; an image is named `filepath/filename` or `filename`."""
    for number, entry in enumerate(_load(path)["images"], start=1):
        match entry:
            case {"filename": name, "split": str(split), "sentences": list(sentences)} if (
                split in KARPATHY_SPLITS and _are_texts(name, entry.get("filepath", ""))
            ):
                name = "/".join(filter(None, (entry.get("filepath"), name)))
                raw = [sentence.get("raw") for sentence in sentences if isinstance(sentence, dict)]
                texts = [text for text in raw if _are_texts(text)]
                yield name, texts, KARPATHY_SPLITS[split]
                if len(texts) < len(sentences):
                    problems.append(f"{path.name}, image {number}: a sentence without text as raw")
            case _:
                expected = f"a filename, sentences and a split ({', '.join(KARPATHY_SPLITS)})"
                problems.append(f"{path.name}, image {number}: expected {expected}")


def read_coco(path: Path, problems: list[str]) -> Rows:
    """Read COCO's own captions; ids may be text; images lie in a folder such as `train2014`."""
    content = _load(path, "annotations")
    captions = defaultdict(list)  # an image's id -> its captions
    for number, entry in enumerate(content["annotations"], start=1):
        match entry:
            case {"image_id": int() | str() as image, "caption": text} if _are_texts(text):
                captions[str(image)].append(text)
            case _:
                problems.append(f"{path.name}, annotation {number}: expected image_id and caption")
    part = path.stem.removeprefix("captions_")
    split = "train" if part.startswith("train") else "dev"
    for number, entry in enumerate(content["images"], start=1):
        match entry:
            case {"id": int() | str() as image, "file_name": str(name)} if _are_texts(name):
                name = name if "/" in name else f"{part}/{name}"
                yield name, captions.pop(str(image), []), split
            case _:
                problems.append(f"{path.name}, image {number}: expected an id and a file_name")
    for image in captions:
        problems.append(f"{path.name}: no image has the id {image[:40]!r} of its annotations")


def _are_texts(*values: object) -> bool:
    """Whether all are text that UTF-8 can hold; JSON may escape half a character."""
    return all(isinstance(v, str) and v.encode(errors="ignore").decode() == v for v in values)


def _load(path: Path, *lists: str) -> dict[str, list]:
    content = read_json(path, "the download")
    for key in ("images", *lists):
        if not isinstance(content.get(key), list):
            raise InputError(f"{path}: no list {key!r} in it; expected a JSON file of captions")
    return content


FLICKR30K, COCO = "dataset_flickr30k.json", "dataset_coco.json"
read_json_lines = partial(read_lines, '{"image": "a.jpg", "caption": "..."}', parse_json)
read_bars = partial(read_lines, "a.jpg| 0| a caption", partial(re.split, r"\|[^|]*\|", maxsplit=1))
READERS = (
    Reader("results_20130124.token", "flickr30k", FLICKR30K, read_tokens),
    Reader("results.csv", "flickr30k-csv", FLICKR30K, read_bars),
    Reader("captions_*2014.json", "coco-2014", COCO, read_coco),
    Reader("captions_*2017.json", "coco-2017", COCO, read_coco),
    Reader("captions.csv", "plain-csv", "", read_csv),
    Reader("captions.jsonl", "plain-jsonl", "", read_json_lines),
    Reader("dataset_flickr8k.json", "karpathy-flickr8k", "", read_karpathy),
    Reader(FLICKR30K, "karpathy-flickr30k", "", read_karpathy),
    Reader(COCO, "karpathy-coco", "", read_karpathy),
)


def find_reader(folder: Path, files: list[Path]) -> Reader:
    """The reader of the caption file among `files`; InputError if there is none."""
    if reader := next((reader for reader in READERS if reader.find(files)), None):
        return reader
    finding = "no data set of a known layout" if folder.is_dir() else "no such folder"
    expected = ", ".join(f"{r.pattern} ({r.layout})" for r in (*readers.READERS, *READERS))
    remedy = f"get Flickr8k with: python -m captioning download --to {folder}"
    raise InputError(f"{folder}: {finding}; expected images and one of {expected}\n{remedy}")


def match_names(
    captions: Captions, splits: Splits, folder: Path, images: set[str], counts: Counter[str]
) -> tuple[Captions, Splits]:
    """Replace the names in `captions` and `splits` by those of the images that they can only mean.

    Upper and lower case, accents, slashes, a missing suffix, and folders may differ. A name stays
    as it is if it can mean several images, or if its image has another name too.
    """
    by_key = defaultdict(set)
    for image in images:
        path = Path(image)
        for name in (image, f"{folder.name}/{image}", path.name):
            by_key[_key(name)].add(image)
            by_key[_key(name.removesuffix(path.suffix))].add(image)

    def find(name: str) -> str:
        fits = by_key.get(_key(name), ())
        is_clear = name not in images and len(fits) == 1 and ".." not in PureWindowsPath(name).parts
        return min(fits) if is_clear else name

    found = {name: find(name) for name in captions}
    names_of = Counter(found.values())
    matched, respelled = defaultdict(list), []
    for name, image in found.items():
        same = [normalize("NFC", path) for path in (image, f"{folder.name}/{image}")]
        is_respelled = normalize("NFC", name) not in same
        if is_respelled and names_of[image] > 1:
            image = name  # as it is
        elif is_respelled:
            respelled.append(f"{name[:60]!r} for {image[:60]!r}")
        matched[image] += captions[name]
    if respelled:
        counts[f"image names matched despite their spelling, e.g. {respelled[0]}"] = len(respelled)
    return dict(matched), {split: list(map(find, names)) for split, names in splits.items()}


def _key(name: str) -> str:
    """What the spellings of a name have in common; COCO's of 2014 and 2017 share a number."""
    key = COCO_NAME.sub(r"\1", normalize("NFC", name).replace("\\", "/").casefold())
    path = PureWindowsPath(name)  # it takes both slashes
    leads_outside = path.drive or path.root or ".." in path.parts
    return key.rpartition("/")[2] if leads_outside else key
