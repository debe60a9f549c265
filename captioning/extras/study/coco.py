"""Captions of a split as the evaluation tools of COCO, and SPICE, read them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from captioning.errors import log
from captioning.files import json_bytes, write_bytes

NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.\w+")  # COCO_val2014_000000391895.jpg


def write_results(path: str | os.PathLike, images: Sequence[str], captions: Sequence[str]) -> None:
    """Write a list of {"image_id", "caption"}; the ids are COCO's if all names carry them."""
    found = [NAME.fullmatch(Path(image).name) for image in images]
    ids = [int(match[1]) for match in found] if all(found) else list(images)
    results = [{"image_id": id_, "caption": text} for id_, text in zip(ids, captions, strict=True)]
    write_bytes(path, json_bytes(results, None))
    log(f"wrote {path}; image_id: {'COCO numbers' if all(found) else 'file names'}")
