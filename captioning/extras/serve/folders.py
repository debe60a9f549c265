"""Captions of many pictures: in a CSV file, in a text file beside each, in their own metadata.

Each place knows which pictures it has captions of: a run that was killed resumes if repeated.
"""

import argparse
import csv
import html
import io
import json
import os
import shutil
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from subprocess import PIPE, Popen

from captioning.captions import Caption
from captioning.errors import InputError, log
from captioning.files import csv_bytes, replacing, require_writable, write_bytes, write_error

HEAD = "image,caption,confidence"  # of a CSV file
TAGS = ("XMP-dc:Description", "XMP-iptcCore:AltTextAccessibility")
INSTALL = "Debian: apt install libimage-exiftool-perl, macOS: brew install exiftool"
# exiftool would outlive this process if that was killed; cat ends with it
EXIFTOOL = r"{ cat; printf '%s\n' -stay_open False; } | exiftool -stay_open True -@ - 2>&1"
DONE = b"{ready}\n"
csv.field_size_limit(2**31 - 1)  # a quote that is not closed reaches to the end of the table


class Outputs:
    """The places that the command line names; InputError if one of them cannot be written."""

    def __init__(self, images: Sequence[Path], options: argparse.Namespace):
        self.existing, self.skipped, self._pending = options.existing, 0, {}
        if options.sidecar or options.write_metadata:
            for folder in {image.parent for image in images if image.parent.is_dir()}:
                require_writable(folder / "*")
        self.places = [Table(Path(options.csv))] if options.csv else []
        self.places += [Sidecars()] if options.sidecar else []
        self.places += [Metadata()] if options.write_metadata else []
        if self.existing != "skip" and not self.places:
            raise InputError("--existing goes with --csv, --sidecar or --write-metadata")

    def todo(self, images: Iterable[Path]) -> Iterator[Path]:
        """The images that some place needs a caption of."""
        for image in images:
            skips = self.existing == "skip"
            places = [place for place in self.places if not (skips and place.has(image))]
            if places or not self.places:
                self._pending[image] = places
                yield image
            else:
                self.skipped += 1

    def write(self, image: Path, caption: Caption) -> bool:
        """Write a caption to the places that need it; reports a picture that cannot hold it."""
        try:
            for place in self._pending.pop(image, []):
                place.write(image, caption, append=self.existing == "append")
        except UnsuitableError as error:
            log(f"error: {error}")
            return False
        return True

    def close(self) -> None:
        """Finish, after the last caption."""
        for place in self.places:
            if not isinstance(place, Sidecars):
                place.close()


class UnsuitableError(InputError):
    """A picture that cannot hold its caption; others may."""


def separate(images: Sequence[Path]) -> list[Path]:
    """The images whose text files differ; others, such as a.jpg and a.png, are reported."""
    owners = Counter(image.with_suffix(".txt") for image in dict.fromkeys(images))
    for path in (path for path, count in owners.items() if count > 1):
        names = ", ".join(dict.fromkeys(i.name for i in images if i.with_suffix(".txt") == path))
        log(f"error: {path}: would be the text file of {names}; all are skipped: rename them")
    return [image for image in images if owners[image.with_suffix(".txt")] == 1]


def require_not_read_only(path: Path) -> None:
    """Renaming a file over a read-only one would replace it."""
    if path.exists() and not (os.access(path, os.W_OK) and path.stat().st_mode & stat.S_IWUSR):
        raise UnsuitableError(f"{path}: is read-only; allow writing (chmod u+w), or leave it out")


class Sidecars:
    """`photo.txt` beside `photo.jpg`, one caption per line."""

    def has(self, image: Path) -> bool:
        """Whether the image has a text file."""
        return image.with_suffix(".txt").exists()

    def write(self, image: Path, caption: Caption, append: bool) -> None:
        """Write the file, or append a line."""
        path = image.with_suffix(".txt")
        require_not_read_only(path)
        old = path.read_bytes() if append and path.exists() else b""
        line_end = b"\n" if old and not old.endswith(b"\n") else b""
        write_bytes(path, old + line_end + f"{caption.text}\n".encode())


class Table:
    """A CSV file of this command. Rows are appended; one that a kill cut off is dropped."""

    def __init__(self, path: Path):
        require_writable(path)
        require_not_read_only(path)
        self.path, self._rows = path, defaultdict(list)  # by image
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape") if path.exists() else ""
        if text[: len(HEAD)] != HEAD[: len(text)]:
            raise InputError(f"{path}: expected a CSV file that begins {HEAD}; choose another name")
        rows = list(filter(None, csv.reader(io.StringIO(text, newline=""))))[1:]
        if text.endswith("\n") and rows and len(rows[-1]) == 2:  # no row that a kill cut off
            raise InputError(f"{path}: close the quote in the row of {rows[-1][0]}")
        self._is_outdated = not text.endswith("\n") or bool(rows and len(rows[-1]) < 3)
        for row in rows[:-1] if self._is_outdated else rows:
            self._rows[row[0]].append(row)
        self.close()

    def has(self, image: Path) -> bool:
        """Whether the image has a row."""
        return str(image) in self._rows

    def write(self, image: Path, caption: Caption, append: bool) -> None:
        """Append a row; unless `append`, `close` removes the earlier ones of the image."""
        if self.has(image) and not append:
            del self._rows[str(image)]
            self._is_outdated = True
        row = (str(image), caption.text, f"{caption.confidence:.4f}")
        try:
            with self.path.open("ab") as file:
                file.write(csv_bytes([row]))
        except OSError as error:
            raise write_error(self.path, error) from None
        self._rows[row[0]].append(row)

    def close(self) -> None:
        """Remove the rows that were replaced or cut off."""
        if self._is_outdated:
            write_bytes(self.path, csv_bytes([HEAD.split(","), *chain(*self._rows.values())]))
            self._is_outdated = False


class Metadata:
    """XMP's description and IPTC's alt text; InputError if exiftool is not installed."""

    def __init__(self):
        if not shutil.which("exiftool"):
            raise InputError(f"--write-metadata needs exiftool ({INSTALL})")
        self._process = Popen(["sh", "-c", EXIFTOOL], stdin=PIPE, stdout=PIPE)

    def _run(self, *arguments: object) -> str:
        """Let exiftool work, and return what it prints."""
        lines = []
        for argument in map(str, arguments):
            if "\n" in argument:  # in a file name; written with the escapes of C
                argument = "#[CSTR]" + argument.replace("\\", r"\\").replace("\n", r"\n")
            lines.append(os.fsencode(argument) + b"\n")
        self._process.stdin.write(b"".join([*lines, b"-execute\n"]))
        self._process.stdin.flush()
        printed = b""
        while not printed.endswith(DONE):
            printed += (line := self._process.stdout.readline())
            if not line:
                raise InputError("exiftool ended; run the same command again")
        return printed.removesuffix(DONE).decode(errors="replace")

    def _read(self, image: Path) -> dict[str, str]:
        """The texts of the tags that are there, by names without group, in all languages."""
        printed = self._run("-j", *(f"-{tag}" for tag in TAGS), image.resolve())
        found = json.loads(printed[printed.find("[{") : printed.rfind("}]") + 2] or "[{}]")[0]
        return {name: str(text) for name, text in found.items() if name != "SourceFile"}

    def has(self, image: Path) -> bool:
        """Whether one of the tags is there."""
        return bool(self._read(image))

    def write(self, image: Path, caption: Caption, append: bool) -> None:
        """Write both tags into a copy, which then replaces the picture."""
        image, old = image.resolve(), self._read(image) if append else {}
        require_not_read_only(image)
        arguments = ["-E", "-tagsFromFile", "@", "-XMP-x:XMPToolkit"]  # who wrote the other tags
        for tag in TAGS:
            texts = [old.get(tag.partition(":")[2]), caption.text]
            text = html.escape("\n".join(filter(None, texts))).replace("\n", "&#10;")
            arguments.append(f"-{tag}-x-default={text}")
        with replacing(image) as copy:
            shutil.copyfile(image, copy)
            message = self._run(*arguments, "-overwrite_original", copy)
            if "1 image files updated" not in message:
                problem = message.strip().partition(" - /")[0]
                raise UnsuitableError(f"{image}: its metadata cannot be written ({problem})")
            shutil.copystat(image, copy)

    def close(self) -> None:
        """End exiftool."""
        with self._process:
            self._process.stdin.close()
