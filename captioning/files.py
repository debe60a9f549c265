"""Files that are whole or absent, and errors a user can act on.

Everything the project writes goes through :func:`replacing`: a temporary name in the same
folder, flushed to disk, then renamed into place. A reader sees the old file or the new one,
never half of either, whenever the process dies.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, or what the user may have of it
MAX_JSON_BYTES = 100_000_000  # a vocabulary of a million words has 30 MB


def shipped(name: str) -> Path:
    """Where a file lies that comes with the project and is no module, such as a model.

    Installed, that is a folder inside the package; the repository has it at the top level.

    Args:
        name: its path from the top of the repository.
    """
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / name
    return installed if installed.exists() else package.parent / name


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one or two lines: what came, what was expected, how to mend it. The scripts
    print it to stderr and exit with status 2, without a traceback.
    """


def reason(error: Exception) -> str:
    """What a library's message says, in a line: its first, and the next if that one ends in ":"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return one_line(first or type(error).__name__)


def one_line(text: str, length: int = 300) -> str:
    """The beginning of `text`, fit to be shown in a line."""
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return text if text.isprintable() else repr(text)  # escape codes garble a terminal


@contextlib.contextmanager
def replacing(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    The temporary file keeps the suffix of `path` (libraries choose formats by it). If the block
    raises, the temporary file is removed and `path` is left as it was.

    Args:
        path: the file to write.
        size: about how many bytes that takes, to be told if the disk is full.

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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` for this process alone; the lock ends with the process, however it ends.

    Temporary files that a killed run left there are removed.

    Raises:
        InputError: another run holds it (the message names its process id), or nothing can be
            written there.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except FileExistsError:
        raise InputError(f"{folder}: is a file, expected a folder; choose another name") from None
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{folder}: in use by another run (process {holder}); "
                "wait for it, stop it, or choose another folder"
            ) from None
        try:
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                file.close()  # which tries to write once more
            raise write_error(path, error, len(str(os.getpid()))) from error
        for left_over in path.parent.glob(".*.tmp*"):  # of a run that was killed while writing
            left_over.unlink(missing_ok=True)
        yield


def same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether both names lead to one file, and it is there."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121 - pathlib's needs the first to be there
    except OSError:
        return False


def require_writable(path: str | os.PathLike) -> None:
    """Make the folder of `path` and see that a file can be made there, before the work for it.

    Raises:
        InputError: none can.
    """
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
    """Turn the operating system's refusal to write `path` into a message with a remedy.

    Args:
        path: the file.
        error: the refusal.
        size: the bytes that `path` needs, if they are known.
    """
    if error.errno in FULL:
        remedy = "free some space (or raise the limit) and run the same command again"
        if size is not None:
            remedy = f"{_megabytes(size)} are needed, {_free(path)} are free; {remedy}"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose a folder you may write to"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        remedy = "a file stands where a folder is expected; choose another name"
    else:
        remedy = "check the path"
    refusal = os.strerror(error.errno) if error.errno else error  # libraries add whole paragraphs
    return InputError(f"{path}: cannot be written ({refusal}); {remedy}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def _free(path: str | os.PathLike) -> str:
    """The space on the disk of `path`, or of the nearest folder above it that is there."""
    for folder in Path(path).absolute().parents:
        with contextlib.suppress(OSError):
            return _megabytes(shutil.disk_usage(folder).free)
    return "0 MB"


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_together(files: dict[Path, bytes], stale: Iterable[Path] = ()) -> None:
    """Write several files of one meaning; the last vouches for the others.

    All are written under temporary names before any of the old ones is touched, so that a full
    disk leaves those as they were. Then the old file that vouches goes, then the `stale` ones, and
    the new files get their names in the order of `files`: killed in between, none vouches.
    """
    temporaries = {path: _temporary(path) for path in files}
    size = sum(map(len, files.values()))
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
            _discard(temporary)  # before free space is measured
        raise write_error(path, error, size) from error
    finally:
        for temporary in temporaries.values():
            _discard(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def json_bytes(value: object, indent: int | None = 1) -> bytes:
    """Give `value` as UTF-8 JSON, a line at its end."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def write_json(path: str | os.PathLike, value: object, indent: int | None = 1) -> None:
    """Write `value` to `path` as UTF-8 JSON, whole or not at all."""
    write_bytes(path, json_bytes(value, indent))


def require_file(path: Path) -> None:
    """Raise InputError if `path` is there and no file: opening a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: a folder or a device, expected a file; remove it")


def refuse_bomb(archive: zipfile.ZipFile, most: int) -> None:
    """Raise ValueError if the members of an archive would take more than `most` bytes."""
    size = sum(member.file_size for member in archive.infolist())
    if size > most:
        raise ValueError(f"it unpacks to {size / 1e9:,.1f} GB")


def read_json(path: str | os.PathLike, made_by: str) -> object:
    """Read the JSON file `path`; `made_by` tells the user what writes such a file.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        require_file(path)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(
                f"{path}: {path.stat().st_size / 1e6:,.0f} MB, expected at most "
                f"{MAX_JSON_BYTES / 1e6:,.0f} MB of JSON; write it anew with {made_by}"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it is written by {made_by}") from None
    except (OSError, ValueError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise InputError(f"{path}: {problem}; write it anew with {made_by}") from None
