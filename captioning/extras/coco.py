"""Captions in JSON: COCO's files, A. Karpathy's files of captions and splits, and JSON lines.

The readers yield an image's name, its captions, and its split ("" if the file has none). Broken
entries are skipped and described in `problems`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from captioning.errors import InputError, reason

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}

Rows = Iterator[tuple[str, list[str], str]]


def read_json(path: Path, problems: list[str]) -> Rows:
    """Read a file such as `captions.jsonl`, `dataset_coco.json` or `captions_train2014.json`.

    Raises:
        InputError: the file is not JSON, or has no list of images (and annotations).
    """
    if path.suffix == ".jsonl":
        return _read_jsonl(path, problems)
    if path.name.startswith("dataset_"):
        return _read_karpathy(path, problems)
    return _read_coco(path, problems)


def _read_jsonl(path: Path, problems: list[str]) -> Rows:
    """Read lines `{"image": "a.jpg", "caption": "..."}`, or with `"captions": [...]`."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
            row = None
        match row:
            case {"image": str(name), "captions": list(texts)} if _are_texts(name, *texts):
                yield name.strip(), texts, ""
            case {"image": str(name), "caption": text} if _are_texts(name, text):
                yield name.strip(), [text], ""
            case _:
                expected = 'expected {"image": "a.jpg", "caption": "..."}'
                got = line.decode(errors="replace")[:40]
                problems.append(f"{path.name}, line {number}: {expected}; got {got!r}")


def _read_karpathy(path: Path, problems: list[str]) -> Rows:
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


def _read_coco(path: Path, problems: list[str]) -> Rows:
    """Read COCO's own captions; ids may be text; images lie in a folder such as `train2014`."""
    content = _load(path, "annotations")
    captions: dict[str, list[str]] = {}  # an image's id -> its captions
    for number, entry in enumerate(content["annotations"], start=1):
        match entry:
            case {"image_id": int() | str() as image, "caption": text} if _are_texts(text):
                captions.setdefault(str(image), []).append(text)
            case _:
                expected = "expected image_id and caption"
                problems.append(f"{path.name}, annotation {number}: {expected}")
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
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        why = f"not JSON, or incomplete ({reason(error)}); get it again"
        raise InputError(f"{path}: {why}") from None
    for key in ("images", *lists):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: no list {key!r} in it; expected a JSON file of captions")
    return content
