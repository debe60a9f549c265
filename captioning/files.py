"""Atomic files, a lock on a folder, JSON and tensors.

Files are written by `replacing`: whenever the process dies, a reader sees the old file or the new
one, never a part of either. Feature arrays and CSV tables grow in place; their readers know it.
"""

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import safe_open

from captioning.errors import InputError, log, reason

HEADER = "captioning"  # the entry of a .safetensors file's metadata that holds our JSON


def shipped(name: str) -> Path:
    """A file that comes with the project: at the top of the repository, or installed with it."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / name
    return installed if installed.exists() else package.parent / name


@contextlib.contextmanager
def replacing(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path, renamed to `path` on success; InputError says if `size` bytes fit."""
    path = Path(path)  # its suffix is kept: libraries choose formats by it
    temporary = path.with_name(f".{path.stem}.captioning-{os.getpid()}{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # before free space is measured
    except OSError as error:
        raise write_error(path, error, size) from error


def _discard_temporaries(folder: Path) -> None:
    for path in folder.glob(".*.captioning-[0-9]*"):  # of killed runs, see above
        with contextlib.suppress(OSError):
            path.unlink()


def replace_together(files: dict[Path, bytes]) -> None:
    """Replace related files, where no other run writes; the last one is the commit marker."""
    size, marker = sum(map(len, files.values())), list(files)[-1]
    for folder in {path.parent for path in files if path.parent.exists()}:
        _discard_temporaries(folder)
    with contextlib.ExitStack() as renamed:  # in the reverse of this order
        for path, data in reversed(files.items()):
            renamed.enter_context(replacing(path, size)).write_bytes(data)  # the disk may be full
        marker.unlink(missing_ok=True)  # until the end, for a process that is killed


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` while this process lives, and remove what a killed run left; or InputError."""
    import filelock  # brings asyncio, which captions do not need

    folder = Path(folder)
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        remedy = "wait for it, stop it, or choose another folder"
        raise InputError(f"{folder}: in use by another run; {remedy}") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # network disks
            raise write_error(folder, error) from error
        log(f"{folder}: this file system has no locks; do not start a second run in it")
    try:
        _discard_temporaries(folder)
        yield
    finally:
        lock.release()


def require_writable(path: str | os.PathLike) -> None:
    """Raise InputError unless the file `path` can be written; for a check before long work."""
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a file")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=Path(path).parent).close()
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: str | os.PathLike, error: OSError, size: int | None = None) -> InputError:
    """The message for a file of `size` bytes that cannot be written."""
    remedy = "choose a folder you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # the disk, or the user's quota
        remedy = "free some space (or raise the limit) and run the same command again"
        if size is not None:
            existing = next(folder for folder in Path(path).absolute().parents if folder.exists())
            free = shutil.disk_usage(existing).free
            remedy = f"{size / 1e6:,.2f} MB are needed, {free / 1e6:,.2f} MB are free; {remedy}"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        remedy = "it is a file where a folder is expected; choose another name"
    return InputError(f"{path}: cannot be written ({reason(error)}); {remedy}")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def csv_bytes(rows: Iterable[Iterable]) -> bytes:
    """Rows as the text of a CSV file; file names that are not UTF-8 are kept."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def json_bytes(value: object, indent: int | None = 1) -> bytes:
    """`value` as UTF-8 JSON with a final line end."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def read_json(path: str | os.PathLike, made_by: str) -> dict:
    """Read a JSON object, or raise an InputError that names what writes it."""
    try:
        return {**json.loads(Path(path).read_bytes())}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {made_by} writes it") from None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({reason(error)}); run {made_by} again") from None


def tensor_bytes(tensors: dict[str, np.ndarray], header: dict) -> bytes:
    """Named arrays and a JSON header in the format `.safetensors`; same input, same bytes."""
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    # one entry of metadata alone: their order varies
    return safetensors.numpy.save(tensors, {HEADER: json.dumps(header, ensure_ascii=False)})


def read_tensors(path: str | os.PathLike, made_by: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read the header and the arrays of a `.safetensors` file, maybe untrusted; or InputError."""
    if not Path(path).is_file():
        kind = "a folder" if Path(path).is_dir() else "no such file"
        raise InputError(f"{path}: {kind}; {made_by} writes it")
    try:
        with safe_open(path, framework="numpy") as file:
            header = dict(json.loads((file.metadata() or {})[HEADER]))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises many types
        problem = f"damaged, or not written by {made_by} ({reason(error)})"
        raise InputError(f"{path}: {problem}; run {made_by} again") from None
