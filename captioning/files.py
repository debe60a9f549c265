"""Atomic files, a lock on a folder, JSON and tensors.

Everything the project writes goes through :func:`replacing`: a temporary file in the same folder,
flushed to disk, then renamed. A reader sees the old file or the new one, never a part of either,
whenever the process dies.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock
import numpy as np
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from captioning.errors import InputError, log, reason

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, or the user's quota
HEADER = "captioning"  # the entry of a .safetensors file's metadata that holds our JSON
TEMPORARY = re.compile(r"\..+\.captioning-\d+(\..+)?")  # names of temporary files


def shipped(name: str) -> Path:
    """The path of a file that comes with the project, such as a model.

    The repository has it at the top level, an installation inside the package.
    """
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / name
    return installed if installed.exists() else package.parent / name


def _temporary(path: Path) -> Path:
    """Keeps the suffix: libraries choose formats by it."""
    return path.with_name(f".{path.stem}.captioning-{os.getpid()}{path.suffix}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Args:
        path: the file to write.
        size: the bytes it needs, for the message if the disk is full.

    Raises:
        InputError: the folder cannot be written or the disk is full; names the file.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _discard(temporary)  # before free space is measured
        raise write_error(path, error, size) from error
    finally:
        _discard(temporary)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def replace_together(files: dict[Path, bytes], stale: Iterable[Path] = ()) -> None:
    """Replace related files as a unit; the last one is the commit marker.

    All are written under temporary names first, so a full disk leaves the old files as they were.
    Then the old marker is removed, then the `stale` files, and the new files are renamed in the
    order of `files`: a process that is killed in between leaves no marker.
    """
    temporaries = {path: _temporary(path) for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporaries[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in (list(files)[-1], *stale):
            path.unlink(missing_ok=True)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        for temporary in temporaries.values():
            _discard(temporary)
        raise write_error(path, error, sum(map(len, files.values()))) from error


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` for this process; the lock ends with the process, however it ends.

    Temporary files that a killed run left there are removed.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    folder = Path(folder)
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"{folder}: in use by another run; wait for it, stop it, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        unsupported = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        if isinstance(error, OSError) and error.errno not in unsupported:
            raise write_error(folder, error) from error
        log(f"{folder}: this file system has no locks; do not start a second run in it")
    try:
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name) and path.is_file():
                _discard(path)
        yield
    finally:
        lock.release()


def require_writable(path: str | os.PathLike) -> None:
    """Raise InputError unless the file `path` can be written; for a check before long work."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _discard(temporary)


def write_error(path: str | os.PathLike, error: OSError, size: int | None = None) -> InputError:
    """The message for a file that cannot be written: the system's reason and a remedy.

    Args:
        path: the file.
        error: what the system raised.
        size: the bytes that `path` needs, if known.
    """
    if error.errno in FULL:
        remedy = "free some space (or raise the limit) and run the same command again"
        if size is not None:
            existing = next(folder for folder in Path(path).absolute().parents if folder.exists())
            free = shutil.disk_usage(existing).free
            remedy = f"{size / 1e6:,.2f} MB are needed, {free / 1e6:,.2f} MB are free; {remedy}"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose a folder you may write to"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        remedy = "it is a file where a folder is expected; choose another name"
    else:
        remedy = "check the path"
    refusal = os.strerror(error.errno) if error.errno else error  # libraries add paragraphs
    return InputError(f"{path}: cannot be written ({refusal}); {remedy}")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def json_bytes(value: object, indent: int | None = 1) -> bytes:
    """`value` as UTF-8 JSON with a final line end."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def write_json(path: str | os.PathLike, value: object, indent: int | None = 1) -> None:
    """Write `value` to `path` as UTF-8 JSON, atomically."""
    write_bytes(path, json_bytes(value, indent))


def read_json(path: str | os.PathLike, made_by: str) -> dict:
    """Read a JSON object; `made_by` names what writes such a file.

    Raises:
        InputError: the file is missing, unreadable, or not a JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("expected an object")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {made_by} writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else f"not JSON: {reason(error)}"
        raise InputError(f"{path}: {problem}; run {made_by} again") from None
    return value


def write_tensors(path: str | os.PathLike, tensors: dict, header: dict) -> None:
    """Write named arrays and a JSON header as `.safetensors`, atomically; same input, same bytes.

    Args:
        path: the file.
        tensors: name -> NumPy array.
        header: JSON-ready; one entry of the file's metadata, whose order would vary otherwise.
    """
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    text = json.dumps(header, ensure_ascii=False)
    write_bytes(path, safetensors.numpy.save(tensors, {HEADER: text}))


def read_tensors(path: str | os.PathLike, made_by: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read what `write_tensors` wrote: the header and the arrays.

    The format holds numbers and text alone, so the file may be untrusted.

    Raises:
        InputError: the file is missing, damaged or has no header of this project.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {kind}; {made_by} writes it")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        problem = "no header of this project" if isinstance(error, KeyError) else reason(error)
        raise InputError(f"{path}: damaged, or not written by {made_by} ({problem})") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged, or not written by {made_by}")
    return header, tensors
