"""Caption files with one caption per line: those of Flickr8k, and readers for others like them."""

import csv
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from captioning.errors import InputError

Captions = dict[str, list[str]]  # image name -> its captions, in the order of the file
Splits = dict[str, list[str]]  # "train", "dev", "test" -> image names
Rows = Iterator[tuple[str, list[str], str]]  # image name, captions, split ("" if not given)


def read_lines(expected: str, parse: Callable, path: Path, problems: list[str]) -> Rows:
    """Yield the image name and the caption, or captions, that `parse` finds in each line."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}: is UTF-16; save it as UTF-8")
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            name, texts = parse(line.decode("utf-8-sig"))
        except (ValueError, RecursionError, csv.Error):
            name = ""
        name = name.strip()
        if not name and line.strip():
            got = line.decode(errors="replace")[:40]
            problems.append(f"{path.name}, line {number}: expected {expected}; got {got!r}")
        elif name.lower() not in ("", "image", "image_name"):  # a blank line or header
            yield name, [texts] if isinstance(texts, str) else texts, ""


class Reader(NamedTuple):
    """How a caption file is recognised and read."""

    pattern: str  # of the file's path
    layout: str
    karpathy: str  # the name of A. Karpathy's file of splits for this data set
    read: Callable[[Path, list[str]], Rows]  # appends broken rows to the list

    def find(self, files: list[Path]) -> list[Path]:
        """The caption files among `files`, all in one folder."""
        paths = [file for file in files if file.match(self.pattern)]
        return [path for path in paths if path.parent == paths[0].parent]


KARPATHY = "dataset_flickr8k.json"
read_names = partial(read_lines, "image.jpg", lambda line: (line, ""))
read_csv = partial(read_lines, 'a.jpg,"a caption"', lambda x: next(csv.reader([x], strict=True)))
split_token_line = partial(re.split, r"#[0-9]+ *\t", maxsplit=1)
read_tokens = partial(read_lines, "image.jpg#0, a tab, a caption", split_token_line)
READERS = (
    Reader("Flickr_TextData/Flickr8k.token.txt", "kaggle-nested", KARPATHY, read_tokens),
    Reader("Flickr8k.token.txt", "official", KARPATHY, read_tokens),
    Reader("captions.txt", "kaggle-csv", KARPATHY, read_csv),
)
