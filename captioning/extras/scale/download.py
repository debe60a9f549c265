"""Download Flickr8k: `python -m captioning download --to data/flickr8k` (1.1 GB, some minutes).

What has arrived waits in `DIR.part` beside the folder, so an interrupted download resumes. The
folder itself appears in one rename, when both archives are complete, checked and unpacked.
"""

import argparse
import contextlib
import hashlib
import shutil
import struct
import time
import zipfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

from captioning.datasets import read_dataset
from captioning.errors import InputError, log, reason
from captioning.files import locked, write_error

SOURCE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/"
# name -> published MD5 sum, folder to unpack into (the images bring their own)
ARCHIVES = {
    "Flickr8k_text.zip": ("bf6c1abcb8e4a833b7f922104de18627", "Flickr8k_text"),
    "Flickr8k_Dataset.zip": ("f18a1e2920de5bd84dae7cf08ec78978", "."),
}
NEEDED_BYTES = 2_300_000_000  # the archives, and as much again unpacked
MAX_UNPACKED_BYTES = 4 << 30  # a small archive can unpack to more than the disk holds
ATTEMPTS = 4  # in a row without a new byte
PAUSE_SECONDS = 1.0  # doubled after each of them
TIMEOUT_SECONDS = 20.0
CHUNK_BYTES = 1 << 16
UNPACK_ERRORS = zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError
UNPACK_ERRORS += FileExistsError, IsADirectoryError, NotADirectoryError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    text = "folder for the data set (default: %(default)s)"
    add("--to", type=Path, default=Path("data/flickr8k"), metavar="DIR", help=text)
    text = "where the two archives are (default: %(default)s)"
    add("--from", dest="source", default=SOURCE, metavar="URL", help=text)


def main(options: argparse.Namespace) -> None:
    """Download the data set unless the folder holds something, and say what it holds."""
    folder = options.to.expanduser()
    if folder.is_dir() and any(folder.iterdir()):
        log(f"{folder}: not empty, so nothing is downloaded")
    else:
        download_flickr8k(folder, options.source)
    print(read_dataset(folder).describe())


def download_flickr8k(folder: Path, source: str = SOURCE) -> None:
    """Download both archives from below `source` and unpack them as `folder`, new or empty.

    The published sums are required of `SOURCE`. A mirror may hold images of other sizes; its
    archives are checked by the sums inside them. InputError if anything fails.
    """
    target = folder.resolve()  # a link to a larger disk is followed
    work = target.with_name(f"{target.name}.part")
    try:
        with locked(work):
            try:
                shutil.rmtree(work / "unpacked", ignore_errors=True)  # of a run that was killed
                for name, (md5, place) in ARCHIVES.items():
                    fetch(f"{source.rstrip('/')}/{name}", work / name)
                    unpack(work / name, work / "unpacked" / place, md5 if source == SOURCE else "")
                if target.exists():
                    target.rmdir()
                (work / "unpacked").rename(target)
                for name in ARCHIVES:
                    (work / name).unlink()
            finally:
                for name in (".lock", *(f"{name}.part" for name in ARCHIVES)):
                    if (work / name).exists() and not (work / name).stat().st_size:
                        (work / name).unlink()
                with contextlib.suppress(OSError):  # not empty: what has arrived stays
                    work.rmdir()
    except OSError as error:
        raise write_error(folder, error, NEEDED_BYTES) from error


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, unless it is there; resume, and retry broken transfers."""
    part = path.with_name(f"{path.name}.part")
    part.touch()
    session = requests.Session()
    del session.adapters["http://"]  # redirects to it are rejected too
    for host in ("127.0.0.1", "localhost"):
        session.mount(f"http://{host}:", requests.adapters.HTTPAdapter())
    fruitless = 0
    while not path.exists():
        present = part.stat().st_size
        try:
            _transfer(session, url, part)
            part.rename(path)
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # of the address
                raise InputError(f"{url}: expected an address with https:// ({error})") from None
            fruitless = 0 if part.stat().st_size > present else fruitless + 1
            status = "" if error.response is None else error.response.status_code
            if fruitless == ATTEMPTS or status in (401, 403, 404, 410):
                what = f"{type(error).__name__} {status}".strip()
                remedy = f"try again, or unpack {path.name} from elsewhere into the folder"
                raise InputError(f"{url}: cannot be downloaded ({what}); {remedy}") from None
            time.sleep(PAUSE_SECONDS * 2**fruitless)


def _transfer(session: requests.Session, url: str, part: Path) -> None:
    """One attempt: the bytes after those that are there, or all if the server sends all."""
    present = part.stat().st_size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={present}-"} if present else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if content_range == f"bytes */{present}":
                return  # it was complete
            part.write_bytes(b"")
            raise requests.ConnectionError("the server has another file than before")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            present = 0
        elif not content_range.startswith(f"bytes {present}-"):
            raise requests.ConnectionError("the server sent another part than was asked for")
        total = present + int(response.headers.get("Content-Length", 0))
        progress = tqdm(total=total, initial=present, unit="B", unit_scale=True, desc=part.stem)
        with progress, part.open("ab" if present else "wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                progress.update(file.write(chunk))


def unpack(path: Path, folder: Path, md5: str = "") -> None:
    """Check the archive `path` and unpack it; if it is unsound, remove it and raise InputError."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if md5 and found.hexdigest() != md5:
            raise ValueError(f"MD5 sum {found.hexdigest()}, expected {md5}")
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes")
            for name in tqdm(archive.namelist(), desc=f"unpacking {path.stem}", unit="file"):
                if not name.startswith("__MACOSX/"):
                    archive.extract(name, folder)  # never outside of it
    except UNPACK_ERRORS as error:
        path.unlink()
        problem = f"not used and removed: {reason(error)}"
        raise InputError(f"{path.name}: {problem}; run the same command again") from None
