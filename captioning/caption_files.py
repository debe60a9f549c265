"""Reading files of captions and of splits that hold a row a line.

What is broken in a file is skipped, counted and told with its line; only a file without anything
usable is an error.
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from captioning.files import InputError

SPLITS = ("train", "dev", "test")
MAX_LINE_BYTES = 1 << 16  # the longest caption of Flickr8k has 199 characters

Captions = dict[str, list[str]]  # image name -> its captions, in the order of the file


@dataclass
class Quirks:
    """What is odd about a data set, gathered while it is read."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def count(self, what: str, times: int = 1) -> None:
        """Note that `what` was met so many `times`; none is not worth a note."""
        if times:
            self.counts[what] += times

    def skip_row(self, path: Path, number: int, why: str, row: str = "line") -> None:
        """Note that a broken row was left out, and where; `row` is what the file calls one."""
        self.count("broken rows (skipped)")
        self.problems.append(f"{path.name}, {row} {number}: {why}")

    def add_problems(self, other: "Quirks") -> None:
        """Take over the broken rows of `other`, and nothing else that it counted."""
        self.count("broken rows (skipped)", len(other.problems))
        self.problems += other.problems


def read_lines(path: Path, quirks: Quirks) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of every line of `path` that is neither blank nor broken.

    Lines may end in LF, CRLF or CR; a byte-order mark is taken off.

    Raises:
        InputError: the text is not UTF-8 from its first mark on.
    """
    data = path.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        quirks.count("text files with a byte-order mark")
        data = data.removeprefix(codecs.BOM_UTF8)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: text in UTF-16, expected UTF-8; save it anew in that encoding")
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
                quirks.skip_row(path, line_number, f"not UTF-8: {shortened(line)}")


# ---- captions with a number each ----------------------------------------------------------------


def read_token_file(path: Path, quirks: Quirks) -> Captions:
    """Read rows `image.jpg#0<TAB>caption` into image name -> captions.

    Of rows with the same `image.jpg#0`, the first counts.

    Raises:
        InputError: no row is usable.
    """

    def cut(line: str) -> tuple[str, str, str]:
        identifier, tab, caption = line.partition("\t")
        name, _, number = identifier.strip().rpartition("#")
        return name, number if tab else "", caption

    return _read_numbered(path, quirks, cut, "expected image.jpg#0, a tab, a caption")


def read_results_csv(path: Path, quirks: Quirks) -> Captions:
    """Read Flickr30k's rows `image.jpg| 0| caption` below a header into image name -> captions.

    Of rows with the same image and number, the first counts.

    Raises:
        InputError: no row is usable.
    """

    def cut(line: str) -> tuple[str, str, str]:
        name, number, caption = (*line.split("|", 2), "", "")[:3]
        return name.strip(), number.strip(), caption

    header = ("image_name", "comment_number", "comment")
    return _read_numbered(path, quirks, cut, "expected image.jpg| 0| a caption", header)


def _read_numbered(
    path: Path,
    quirks: Quirks,
    cut: Callable[[str], tuple[str, str, str]],
    expected: str,
    header: tuple[str, str, str] | None = None,
) -> Captions:
    """Read lines that `cut` turns into image name, number and caption."""
    captions: Captions = {}
    seen: dict[tuple[str, str], str] = {}
    for position, (line_number, line) in enumerate(read_lines(path, quirks)):
        name, number, caption = cut(line)
        caption = caption.strip()
        if position == 0 and (name, number, caption) == header:
            continue
        if not (name and number.isascii() and number.isdigit()):
            quirks.skip_row(path, line_number, f"{expected}; got {shortened(line)}")
        elif not caption:
            quirks.count("empty captions (skipped)")
        elif (name, number) not in seen:
            seen[name, number] = caption
            captions.setdefault(name, []).append(caption)
        elif seen[name, number] == caption:
            quirks.count("duplicate rows (skipped)")
        else:
            another = "has another caption above"
            quirks.skip_row(path, line_number, f"{shortened(f'{name}#{number}')} {another}")
    return require_captions(captions, path, quirks)


# ---- captions without numbers -------------------------------------------------------------------


def read_caption_csv(path: Path, quirks: Quirks) -> Captions:
    """Read CSV rows `image,caption`, with or without a header, into image name -> captions.

    A row is one line: a quote left open breaks its own row, not all that follow.

    Raises:
        InputError: no row is usable.
    """
    captions: Captions = {}
    header = ["image", "caption"]
    for position, (line_number, line) in enumerate(read_lines(path, quirks)):
        try:
            row = [value.strip() for value in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            quirks.skip_row(path, line_number, f"{error}: {shortened(line)}")
            continue
        if position == 0 and [value.lower() for value in row] == header:
            continue
        if len(row) != len(header) or not row[0]:
            expected = "expected image,caption (a caption with a comma in quotes)"
            quirks.skip_row(path, line_number, f"{expected}; got {shortened(line)}")
        elif not row[1]:
            quirks.count("empty captions (skipped)")
        else:
            captions.setdefault(row[0], []).append(row[1])
    return require_captions(captions, path, quirks)


def read_caption_lines(path: Path, quirks: Quirks) -> Captions:
    """Read lines `{"image": "a.jpg", "caption": "..."}`, or with `"captions": [...]`.

    Raises:
        InputError: no line is usable.
    """
    captions: Captions = {}
    for line_number, line in read_lines(path, quirks):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
            row = None
        row = row if isinstance(row, dict) else {}
        texts = row.get("captions", [row.get("caption")])
        name = row.get("image")
        if not is_text(name) or not name.strip() or not isinstance(texts, list):
            expected = 'expected {"image": "a.jpg", "caption": "..."}'
            quirks.skip_row(path, line_number, f"{expected}; got {shortened(line)}")
            continue
        for text in texts:
            if not is_text(text):
                quirks.skip_row(path, line_number, f"a caption of {shortened(name)} is no text")
            elif caption := on_one_line(text, quirks):
                captions.setdefault(name.strip(), []).append(caption)
    return require_captions(captions, path, quirks)


# ---- values out of JSON -------------------------------------------------------------------------


def is_text(value: object) -> bool:
    """Whether a value is text of a sensible length; half a surrogate pair, as in JSON, is not."""
    if not isinstance(value, str) or len(value) > MAX_LINE_BYTES:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def on_one_line(caption: str, quirks: Quirks) -> str:
    """A caption without line ends, of which JSON may hold some, and without surrounding blanks."""
    filled = [line.strip() for line in caption.splitlines() if line.strip()]
    quirks.count("captions of several lines (joined)", len(filled) > 1)
    quirks.count("empty captions (skipped)", not filled)
    return " ".join(filled)


def require_captions(captions: Captions, path: Path, quirks: Quirks) -> Captions:
    """Give `captions` back, or raise InputError if there are none, with the first problem."""
    if captions:
        return captions
    first = f"; {quirks.problems[0]}" if quirks.problems else ""
    raise InputError(f"{path}: holds no usable caption{first}")


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


def shortened(text: str | bytes, length: int = 40) -> str:
    """Quote the beginning of what was read, so that a message stays a line."""
    return repr(text[:length]) + ("..." if len(text) > length else "")
