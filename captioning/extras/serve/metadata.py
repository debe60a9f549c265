"""Captions in the photographs' own metadata, by exiftool: the pixels and all other tags stay."""

import html
import json
import os
import shutil
import subprocess
from pathlib import Path

from captioning.captions import Caption
from captioning.errors import InputError
from captioning.extras.serve.folders import UnsuitableError, require_not_read_only
from captioning.files import replacing

TAGS = ("XMP-dc:Description", "XMP-iptcCore:AltTextAccessibility")
INSTALL = "Debian: apt install libimage-exiftool-perl, macOS: brew install exiftool"
# exiftool would outlive this process if that was killed; cat ends with it
EXIFTOOL = r"{ cat; printf '%s\n' -stay_open False; } | exiftool -stay_open True -@ - 2>&1"
DONE = b"{ready}\n"


class Metadata:
    """XMP's description and IPTC's alt text; InputError if exiftool is not installed."""

    def __init__(self):
        if not shutil.which("exiftool"):
            raise InputError(f"--write-metadata needs exiftool ({INSTALL})")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(["sh", "-c", EXIFTOOL], **pipes)

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
            message = self._run(*arguments, "-o", copy, image)
            if not copy.exists():
                problem = message.strip().partition(" - /")[0]
                raise UnsuitableError(f"{image}: its metadata cannot be written ({problem})")
            shutil.copystat(image, copy)

    def close(self) -> None:
        """End exiftool."""
        with self._process:
            self._process.stdin.close()
