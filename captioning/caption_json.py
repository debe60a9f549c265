"""Reading the JSON files of captions that COCO and A. Karpathy publish.

They are large (Karpathy's for COCO has 150 MB), and as Python objects many times larger. So a
file is walked through entry by entry: in memory are its text, one entry, and the captions.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from captioning.caption_files import (
    Captions,
    Quirks,
    SplitFile,
    is_text,
    on_one_line,
    require_captions,
    shortened,
)
from captioning.files import InputError

MAX_BYTES = 1_000_000_000  # dataset_coco.json has 150 MB, captions_train2014.json 67 MB
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
_BLANKS = re.compile(r"[ \t\n\r]*")


def read_karpathy(path: Path, quirks: Quirks) -> tuple[Captions, dict[str, SplitFile]]:
    """Read Karpathy's captions and splits; "restval" is more of "train", "val" is "dev".

    An image is named `filepath/filename` where it has a `filepath` (COCO), else `filename`.

    Raises:
        InputError: the file is no JSON object, or holds no usable caption.
    """
    captions: Captions = {}
    splits: dict[str, list[str]] = {}
    for _, number, entry in _entries(path, ("images",)):
        entry = entry if isinstance(entry, dict) else {}
        name, sentences = entry.get("filename"), entry.get("sentences")
        place = entry.get("filepath", "")
        split = entry.get("split")
        if not (is_text(name) and name and is_text(place) and isinstance(sentences, list)):
            why = "expected filename, split and sentences"
            quirks.skip_row(path, number, f"{why}; got {_keys(entry)}", "image")
            continue
        if not isinstance(split, str) or split not in KARPATHY_SPLITS:
            got = shortened(split) if isinstance(split, str) else "none"
            why = f"split {got}, expected one of {', '.join(KARPATHY_SPLITS)}"
            quirks.skip_row(path, number, why, "image")
            continue
        name = f"{place}/{name}" if place else name
        for sentence in sentences:
            text = sentence.get("raw") if isinstance(sentence, dict) else None
            if not is_text(text):
                quirks.skip_row(path, number, "a sentence has no text as its 'raw'", "image")
            elif caption := on_one_line(text, quirks):
                captions.setdefault(name, []).append(caption)
        splits.setdefault(KARPATHY_SPLITS[split], []).append(name)
    require_captions(captions, path, quirks)
    return captions, {split: SplitFile(path, images) for split, images in splits.items()}


def read_coco(path: Path, quirks: Quirks) -> Captions:
    """Read COCO's own captions: images have an id and a name, annotations an image's id.

    Raises:
        InputError: the file is no JSON object, or holds no usable caption.
    """
    names: dict[int, str] = {}
    captions_of: dict[int, list[str]] = {}  # image id -> captions
    first: dict[int, int] = {}  # image id -> its first annotation's number, for messages
    for key, number, entry in _entries(path, ("images", "annotations")):
        entry = entry if isinstance(entry, dict) else {}
        if key == "images":
            image, name = entry.get("id"), entry.get("file_name")
            if type(image) is int and is_text(name) and name and image not in names:
                names[image] = name
            else:
                why = "expected an id of its own and a file_name"
                quirks.skip_row(path, number, f"{why}; got {_keys(entry)}", "image")
            continue
        image, text = entry.get("image_id"), entry.get("caption")
        if type(image) is not int or not is_text(text):
            why = "expected image_id and caption"
            quirks.skip_row(path, number, f"{why}; got {_keys(entry)}", "annotation")
        elif caption := on_one_line(text, quirks):
            captions_of.setdefault(image, []).append(caption)
            first.setdefault(image, number)
    captions: Captions = {}
    for image, name in names.items():
        if image in captions_of:
            captions.setdefault(name, []).extend(captions_of.pop(image))
    for image in captions_of:
        quirks.skip_row(path, first[image], f"no image has the id {image}", "annotation")
    return require_captions(captions, path, quirks)


def _keys(entry: dict) -> str:
    """What an entry has instead; its values may be of any size and depth."""
    return shortened(", ".join(entry)) if entry else "nothing of the kind"


# ---- a large JSON file, entry by entry ----------------------------------------------------------


def _entries(path: Path, keys: Collection[str]) -> Iterator[tuple[str, int, object]]:
    """Yield (key, number from 1, entry) for each entry of the lists under `keys`.

    Raises:
        InputError: the file is too large, or no JSON object with at least one of these lists.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        limit = f"expected at most {MAX_BYTES / 1e6:,.0f} MB of JSON"
        raise InputError(f"{path}: {size / 1e6:,.0f} MB, {limit}; is it a file of captions?")
    found = set()
    try:
        for key, number, entry in _walk(path.read_text(encoding="utf-8-sig"), keys):
            found.add(key)
            if number:
                yield key, number, entry
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: not JSON, or cut short ({reason}); get it anew") from None
    except MemoryError:
        raise InputError(f"{path}: {size / 1e6:,.0f} MB do not fit into the memory") from None
    if not found:
        lists = " or ".join(repr(key) for key in keys)
        raise InputError(f"{path}: no list {lists} in it; expected a JSON file of captions")


def _walk(text: str, keys: Collection[str]) -> Iterator[tuple[str, int, object]]:
    """Yield (key, 0, None) at the beginning of each wanted list, then its entries."""
    decode = json.JSONDecoder().raw_decode
    position = 0

    def meets(character: str) -> bool:
        """Whether `character` comes next, blanks aside; if so it is passed."""
        nonlocal position
        position = _BLANKS.match(text, position).end()
        if text[position : position + 1] != character:
            return False
        position += 1
        return True

    def require(character: str) -> None:
        if not meets(character):
            raise json.JSONDecodeError(f"Expecting {character!r}", text, position)

    def value() -> object:
        nonlocal position
        position = _BLANKS.match(text, position).end()
        decoded, position = decode(text, position)
        return decoded

    require("{")
    if not meets("}"):
        while True:
            key = value()
            require(":")
            if isinstance(key, str) and key in keys and meets("["):
                yield key, 0, None
                number = 0
                if not meets("]"):
                    while True:
                        number += 1
                        yield key, number, value()
                        if not meets(","):
                            break
                    require("]")
            else:
                value()
            if not meets(","):
                break
        require("}")
    if not meets(""):
        raise json.JSONDecodeError("Extra data", text, position)
