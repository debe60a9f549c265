"""Fetching Flickr8k: transfers that resume, archives checked before a byte is unpacked.

The work goes on in `downloads/NAME/` beside the target folder NAME. The target itself appears
in one rename, when everything has arrived, was found sound and is unpacked.
"""

import contextlib
import hashlib
import http
import http.client
import ipaddress
import os
import re
import shutil
import stat
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from captioning.files import InputError, exclusive, read_json, write_error, write_json

SOURCE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/"

ATTEMPTS = 4  # in a row without a new byte
RETRY_PAUSE_SECONDS = 1.0  # doubled after every fruitless attempt
TIMEOUT_SECONDS = 20.0
CHUNK_BYTES = 1 << 16

# Flickr8k unpacks to 1.1 GB; its photographs do not compress, its texts about fivefold.
MAX_UNPACKED_BYTES = 4 << 30
MAX_COMPRESSION_RATIO = 100
SMALL_BYTES = 1 << 20  # a ratio says nothing about an archive that unpacks to less

RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True)
class Archive:
    """One archive of the data set: its file name, published MD5 sum, and where it unpacks."""

    name: str
    md5: str
    folder: str


# The sums are those the R package torchvision (mlverse/torchvision) publishes for SOURCE.
# The images come inside a folder Flicker8k_Dataset, the text files loose.
ARCHIVES = (
    Archive("Flickr8k_text.zip", "bf6c1abcb8e4a833b7f922104de18627", "Flickr8k_text"),
    Archive("Flickr8k_Dataset.zip", "f18a1e2920de5bd84dae7cf08ec78978", "."),
)


class TransferError(Exception):
    """The server could not be reached, or broke off; says whether to `retry`."""

    def __init__(self, reason: object, retry: bool = True):
        """Keep the `reason` on one line."""
        super().__init__(" ".join(str(reason).split()))
        self.retry = retry


class StalePartError(TransferError):
    """The bytes already here do not fit the file that the server has."""


def work_folder(folder: Path) -> Path:
    """Where archives wait and are unpacked before `folder` appears.

    A link to a larger disk is followed: the last step renames within one file system.
    """
    target = Path(os.path.realpath(folder))
    return target.parent / "downloads" / target.name


def download_flickr8k(folder: Path, source: str = SOURCE) -> None:
    """Fetch both archives from below `source` and unpack them as `folder`.

    What has arrived stays in :func:`work_folder` when the transfer is interrupted, and the next
    call resumes it. The published MD5 sums are required of `SOURCE`; archives from elsewhere (a
    mirror may hold other image sizes) are checked for length and integrity alone.

    Raises:
        InputError: `source` is not https, cannot be reached or sends unsound archives; `folder`
            is not empty, cannot be written, or is being filled by another run.
    """
    source = source.rstrip("/") + "/"
    _require_secure(source)
    target = Path(os.path.realpath(folder))
    work = work_folder(folder)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(
                f"{folder}: is there already but holds no data set of a known layout;"
                " choose another folder or remove this one"
            )
        work.mkdir(parents=True, exist_ok=True)  # here, or a refusal names a file within it
        with exclusive(work):
            staging = work / "unpacked"
            try:
                shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
                _fetch_all(folder, source)
                for archive in ARCHIVES:
                    unpack(work / f"{archive.name}.part", staging / archive.folder)
                if target.exists():
                    target.rmdir()
                staging.rename(target)
                shutil.rmtree(work)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                (work / ".lock").unlink(missing_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        for empty in (work, work.parent):  # they stay if they hold anything
            with contextlib.suppress(OSError):
                empty.rmdir()


def _fetch_all(folder: Path, source: str) -> None:
    """Bring all archives from below `source` to the work folder of `folder`, and check them."""
    for archive in ARCHIVES:
        arrived = work_folder(folder) / f"{archive.name}.part"
        try:
            fetch(urljoin(source, archive.name), arrived)
        except TransferError as error:
            raise InputError(
                f"cannot reach {urlsplit(source).hostname}: {error}; get the two archives"
                f" by other means and unpack them into {folder}"
            ) from error
        try:
            check_archive(arrived, archive.md5 if source == SOURCE else None)
        except InputError:
            arrived.unlink()  # resuming it would only repeat the error
            raise


# ---- the transfer -------------------------------------------------------------------------------


def fetch(url: str, path: Path) -> None:
    """Bring the file at `url` to `path`, resuming what is there and retrying broken transfers.

    Beside `path`, a `.json` keeps the address, the length and the server's validator (RFC 9110,
    If-Range): bytes of an older version of the file are never mixed with those of a newer one.

    Raises:
        TransferError: the server cannot be reached, refuses, or breaks off time and again.
        InputError: `path` cannot be written.
    """
    most, fruitless = _size(path), 0
    while True:
        try:
            return _transfer(url, path)
        except OSError as error:  # of the disk; those of the network are TransferErrors
            length = _read_state(_state_file(path), url).get("length")
            raise write_error(path, error, length and length - _size(path)) from error
        except TransferError as error:
            if isinstance(error, StalePartError):
                path.unlink(missing_ok=True)
            fruitless = 1 if _size(path) > most else fruitless + 1
            most = max(most, _size(path))
            if not error.retry or fruitless >= ATTEMPTS:
                raise
            time.sleep(RETRY_PAUSE_SECONDS * 2 ** (fruitless - 1))


def _transfer(url: str, path: Path) -> None:
    """One attempt of :func:`fetch`."""
    state_file = _state_file(path)
    state = _read_state(state_file, url)
    present = _size(path) if state else 0
    if present and present == state["length"]:
        return
    headers = {}
    if present and state["validator"]:
        headers = {"Range": f"bytes={present}-", "If-Range": state["validator"]}
    opener = urllib.request.build_opener(_SecureRedirects)
    with contextlib.ExitStack() as stack:
        with _network_errors():
            request = urllib.request.Request(url, headers=headers)
            response = stack.enter_context(opener.open(request, timeout=TIMEOUT_SECONDS))
        start, length = _extent(response)
        if start not in (0, present) or (start and length != state["length"]):
            raise StalePartError("the server sent another part of the file than was asked for")
        file = stack.enter_context(path.open("ab" if start else "wb"))
        validator = _validator(response)
        write_json(state_file, {"url": url, "length": length, "validator": validator})
        progress = stack.enter_context(
            tqdm(total=length, initial=start, unit="B", unit_scale=True, desc=path.stem)
        )
        received = start
        while chunk := _read_chunk(response):
            file.write(chunk)
            received += len(chunk)
            progress.update(len(chunk))
    if length is not None and received != length:
        raise TransferError(f"the transfer broke off after {received:,} of {length:,} bytes")


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_state(state_file: Path, url: str) -> dict:
    """What is known about the bytes already here; empty if nothing, or of another address."""
    try:
        state = read_json(state_file, "the download")
    except InputError:
        return {}
    known = isinstance(state, dict) and state.keys() == {"url", "length", "validator"}
    return state if known and state["url"] == url else {}


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The offset at which the response begins and the length of the whole file, if told."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
        if match is None:
            raise StalePartError(f"the server sent an unusable Content-Range {content_range!r}")
        return int(match[1]), int(match[2])
    return 0, response.length


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _read_chunk(response: http.client.HTTPResponse) -> bytes:
    with _network_errors():
        return response.read1(CHUNK_BYTES)


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turn what urllib raises into TransferError, so that a full disk is not mistaken for it."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:  # closes the connection
            status = f"the server answered {error.code} {error.reason}"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise StalePartError(status) from error
            raise TransferError(status, retry=error.code in RETRIED_STATUSES) from error
    except urllib.error.URLError as error:
        raise TransferError(error.reason) from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise TransferError(str(error) or type(error).__name__) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that would do as a source."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        try:
            _require_secure(newurl)
        except InputError as error:
            fp.close()
            raise TransferError(error, retry=False) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_secure(url: str) -> None:
    """Refuse an address other than https://, unless http:// to this machine itself."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError as error:
        raise InputError(f"{url}: not a usable address ({error})") from None
    if host and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        return
    raise InputError(f"{url}: not a usable address; expected one that begins with https://")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- the archives -------------------------------------------------------------------------------


def check_archive(path: Path, md5: str | None = None) -> None:
    """Read the whole zip archive `path`, writing nothing.

    Raises:
        InputError: it differs from its `md5` sum, is damaged, or holds what no data set holds: a
            member that leads outside the folder it is unpacked into, a link or device, or more
            data than its size can honestly unpack to.
    """
    if md5 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if found.hexdigest() != md5:
            raise _unsound(path, f"its MD5 sum is {found.hexdigest()}, expected {md5}")
    try:
        with zipfile.ZipFile(path) as archive:
            reason = _objection(archive, _size(path))
            damaged = None if reason else archive.testzip()
    except ARCHIVE_ERRORS as error:
        raise _unsound(path, f"not an undamaged zip file: {error}") from error
    if reason or damaged:
        raise _unsound(path, reason or f"its member {damaged!r} is damaged")


def _unsound(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path.stem}: refused, nothing was unpacked: {reason};"
        " run the same command again to fetch it anew"
    )


def _objection(archive: zipfile.ZipFile, archive_bytes: int) -> str | None:
    """Why the archive is not to be unpacked, judged by its table of contents alone."""
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:]", member.filename):
            return f"its member {member.filename!r} leads outside the target folder"
        # The upper half holds the Unix mode; archives made on other systems leave it 0.
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"its member {member.filename!r} is neither a file nor a folder"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"its member {member.filename!r} is compressed in an unusual way"
        if member.flag_bits & 1:
            return f"its member {member.filename!r} is encrypted"
    # zipfile stops reading a member at the size declared here, so a lie unpacks to no more.
    unpacked = sum(member.file_size for member in archive.infolist())
    allowed = max(SMALL_BYTES, MAX_COMPRESSION_RATIO * archive_bytes)
    if unpacked > min(allowed, MAX_UNPACKED_BYTES):
        return f"it would unpack from {archive_bytes:,} to {unpacked:,} bytes"
    return None


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive that passed :func:`check_archive` into `folder`.

    The `__MACOSX` members, which the usual archives carry, are left out.

    Raises:
        InputError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        for member in tqdm(archive.infolist(), desc=f"unpacking {path.stem}", unit="file"):
            if PurePosixPath(member.filename).parts[:1] != ("__MACOSX",):
                try:
                    archive.extract(member, folder)
                except OSError as error:
                    raise write_error(folder / member.filename, error, size) from error
