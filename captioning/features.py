"""The cache of image features: memory-mapped, resumable, and aware of changed images.

A cache is a folder:

    index.json     the encoder, the images in row order, the state of each image's file
    pooled.npy     float32 (images, channels): the mean over the grid
    grid.npy       float16 (images, rows, columns, channels), if it was asked for

The index says of each row which file it was made from (size, time of change, digest), or that it
is still to be encoded; so a run that was killed resumes, and a later run encodes what has changed.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import math
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from captioning.encoders import Encoder, require_same_encoder
from captioning.errors import InputError
from captioning.files import locked, read_json, write_error, write_json
from captioning.images import load_image

VERSION = 2
BATCH_SIZE = 8  # larger is not faster on a CPU
SAVE_SECONDS = 5.0  # at most this much work is lost when the process is killed
MADE_BY = "image_extraction.ipynb"
MIRRORED = "-mirrored"


class FileState(NamedTuple):
    """What a row was made from.

    Attributes:
        size, changed: bytes of the file, and its time of modification (ns).
        digest: of its bytes; the same for a copy or a renamed file.
        picture: see `picture_hash`; nearly the same for a recompressed copy.
    """

    size: int
    changed: int
    digest: str
    picture: str


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """A finished cache.

    Attributes:
        folder: where it is.
        encoder: `Encoder.to_json`, see `require_same_encoder`.
        mirrored: whether the images were flipped left to right.
        images: file names; row r of the arrays belongs to images[r].
        files: the state of each image's file; None for one that could not be read.
        failed: file name -> reason, for the images that could not be read (their rows are zero).
        pooled: float32 (images, channels), memory-mapped.
        grid: float16 (images, rows, columns, channels), memory-mapped, or None.
    """

    folder: Path
    encoder: dict
    mirrored: bool
    images: list[str]
    files: list[FileState | None] = dataclasses.field(repr=False)
    failed: dict[str, str]
    pooled: np.ndarray = dataclasses.field(repr=False)
    grid: np.ndarray | None = dataclasses.field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike, unfinished: bool = False) -> "FeatureCache":
        """Open a cache.

        Raises:
            InputError: it is missing, damaged, of another version, or unfinished (unless that is
                allowed).
        """
        folder = Path(folder)
        index = read_json(folder / "index.json", MADE_BY)
        if index.get("version") != VERSION:
            raise InputError(f"{folder}: not features of version {VERSION}; run {MADE_BY} again")
        if not index["complete"] and not unfinished:
            raise InputError(f"{folder}: unfinished; run {MADE_BY} again, it resumes")
        arrays = {
            name: _open_array(folder / f"{name}.npy", shape, dtype)
            for name, (shape, dtype) in array_layout(index).items()
        }
        return cls(
            folder,
            index["encoder"],
            index["mirrored"],
            index["images"],
            [FileState(*state) if state else None for state in index["files"]],
            index["failed"],
            arrays["pooled"],
            arrays.get("grid"),
        )

    def rows(self, images: Sequence[str]) -> np.ndarray:
        """Row numbers of `images`, int64 (images,); -1 for one that could not be read.

        Raises:
            InputError: an image is not in the cache.
        """
        row_of = {image: row for row, image in enumerate(self.images)}
        missing = [image for image in images if image not in row_of]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing)} images are not in it, such as {missing[0]}; "
                f"run {MADE_BY} again for this data set"
            )
        return np.array(
            [-1 if image in self.failed else row_of[image] for image in images], np.int64
        )

    def pictures(self, images: Sequence[str]) -> list[str]:
        """The perceptual hashes of those of `images` that could be read."""
        states = (self.files[row] for row in self.rows(images) if row >= 0)
        return [state.picture for state in states]

    def read(self, rows: np.ndarray, feature_shape: tuple[int, ...]) -> np.ndarray:
        """Features as a model takes them, in the type of the cache: (rows, *feature_shape).

        Raises:
            InputError: the model needs the grid, and the cache has none.
        """
        array = self.pooled if len(feature_shape) == 1 else self.grid
        if array is None:
            raise InputError(
                f"{self.folder}: has pooled features only, and attention needs the grid; run "
                f"{MADE_BY} again with keep_grid = True"
            )
        _advise(array, rows)
        return array[rows].reshape(len(rows), *feature_shape)


def _advise(array: np.memmap, rows: np.ndarray) -> None:
    """madvise(WILLNEED) on rows before reading them: random reads else read ahead megabytes."""
    mapped = array.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        size, start = array[0].nbytes, array.offset % mmap.ALLOCATIONGRANULARITY
        for row in rows.tolist():
            begin = start + row % len(array) * size
            page = begin - begin % mmap.PAGESIZE
            with contextlib.suppress(OSError):
                mapped.madvise(mmap.MADV_WILLNEED, page, begin + size - page)


def cache_folder(prepared: str | os.PathLike, encoder_name: str, mirrored: bool = False) -> Path:
    """Where the features of an encoder are in a prepared folder."""
    name = Path(encoder_name).stem if encoder_name.endswith(".keras") else encoder_name
    return Path(prepared).expanduser() / "features" / (name + (MIRRORED if mirrored else ""))


def open_caches(
    data: str | os.PathLike, encoder: str | None = None, mirrored: bool = True
) -> list[FeatureCache]:
    """The feature cache of a prepared folder, then that of the mirrored images if it exists.

    Args:
        data: the prepared folder.
        encoder: whose features; may be None if the folder has those of one encoder.
        mirrored: whether to look for the features of the mirrored images.

    Raises:
        InputError: there is no such cache, or there are several to choose from.
    """
    if encoder is None:
        place = Path(data, "features")
        names = [path.parent.name for path in sorted(place.glob("*/index.json"))]
        names = [name for name in names if not name.endswith(MIRRORED)]
        if len(names) > 1:
            raise InputError(f"{place}: features of {', '.join(names)}; choose with --encoder")
        if not names:
            raise InputError(f"{place}: no features; run {MADE_BY} first (or merge its shards)")
        encoder = names[0]
    caches = [FeatureCache.open(cache_folder(data, encoder))]
    mirror = cache_folder(data, encoder, mirrored=True)
    if mirrored and (mirror / "index.json").exists():
        caches.append(FeatureCache.open(mirror))
        require_same_encoder(mirror, caches[1].encoder, caches[0].encoder)
    return caches


def picture_hash(pixels: np.ndarray) -> str:
    """64-bit perceptual hash (difference hash) of pixels (height, width, 3), as 16 hex digits."""
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def extract_features(
    folder: str | os.PathLike,
    image_folder: str | os.PathLike,
    images: Sequence[str],
    encoder: Encoder,
    *,
    mirrored: bool = False,
    keep_grid: bool = True,
    batch_size: int = BATCH_SIZE,
) -> FeatureCache:
    """Encode `images` into the cache `folder`; what it holds already of the same files is kept.

    Threads read the images while the CNN works on the previous batch. An image that cannot be
    read is recorded with the reason, and tried again by the next run. On Ctrl-C, completed rows
    are saved, then KeyboardInterrupt is re-raised.

    Args:
        folder: the cache; see `cache_folder`.
        image_folder: where the image files are.
        images: file names, one per row.
        encoder: the CNN.
        mirrored: flip every image left to right.
        keep_grid: also keep the grid before pooling (rows x columns times larger).
        batch_size: images per CNN pass.

    Raises:
        InputError: no image can be read, or the folder is in use by another run, holds features
            of another encoder or other data, is full or cannot be written.
    """
    folder, image_folder, images = Path(folder), Path(image_folder), list(images)
    if not image_folder.is_dir() or not images:
        raise InputError(f"{image_folder}: no images to encode")
    with locked(folder):
        old = None
        with contextlib.suppress(InputError):
            old = FeatureCache.open(folder, unfinished=True)
        plan = {
            "version": VERSION,
            "complete": False,
            "encoder": encoder.to_json(),
            "mirrored": mirrored,
            "has_grid": keep_grid,
            "images": images,
            "files": [None] * len(images),
            "failed": {},
        }
        if old:
            require_same_encoder(folder, old.encoder, plan["encoder"])
            if keep_grid and old.grid is None:
                old = None
        arrays = _start(folder, image_folder, plan, old)
        _fill(folder, image_folder, plan, arrays, encoder, batch_size)
        return FeatureCache.open(folder)


def array_layout(plan: dict) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name -> (shape, dtype) of the arrays in a cache."""
    rows, grid_shape = len(plan["images"]), plan["encoder"]["grid_shape"]
    layout = {"pooled": ((rows, grid_shape[-1]), np.float32)}
    if plan["has_grid"]:
        layout["grid"] = ((rows, *grid_shape), np.float16)
    return layout


def _start(folder: Path, image_folder: Path, plan: dict, old: FeatureCache | None) -> dict:
    """The arrays to fill; rows of unchanged files are in place, and `plan` says which."""
    kept = _unchanged_rows(image_folder, plan, old) if old else {}
    in_place = old and old.images == plan["images"] and (old.grid is not None) == plan["has_grid"]
    if in_place and all(row == source for row, source in kept.items()):
        write_json(folder / "index.json", plan, indent=None)  # before a row is overwritten
        return {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+")
            for name in array_layout(plan)
        }
    arrays = new_arrays(folder, plan)
    for name, array in arrays.items():
        for row, source in kept.items():
            array[row] = getattr(old, name)[source]
        array.flush()
    (folder / "index.json").unlink(missing_ok=True)
    for name in arrays:
        (folder / f"{name}.npy.part").replace(folder / f"{name}.npy")
    write_json(folder / "index.json", plan, indent=None)
    return arrays


def _unchanged_rows(image_folder: Path, plan: dict, old: FeatureCache) -> dict[int, int]:
    """Row -> row of `old` that was made from the same bytes; notes the files in `plan`."""
    by_name = {image: row for row, image in enumerate(old.images)}
    by_digest = {state.digest: row for row, state in enumerate(old.files) if state}
    kept = {}
    for row, image in enumerate(plan["images"]):
        source = by_name.get(image)
        state = old.files[source] if source is not None else None
        try:
            now = (image_folder / image).stat()
            if state is None or (state.size, state.changed) != (now.st_size, now.st_mtime_ns):
                source = by_digest.get(_digest((image_folder / image).read_bytes()))
                state = old.files[source] if source is not None else None
        except OSError:
            continue
        if state is not None:
            kept[row] = source
            plan["files"][row] = state._replace(size=now.st_size, changed=now.st_mtime_ns)
    return kept


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _fill(folder, image_folder: Path, plan: dict, arrays: dict, encoder, batch_size: int) -> None:
    """Encode the rows that are still to do, and save from time to time.

    The order on disk makes it safe to be killed: first the rows, then the index that has them.
    """
    todo = [row for row, state in enumerate(plan["files"]) if state is None]

    def save(complete: bool = False) -> None:
        try:
            for array in arrays.values():
                array.flush()
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / "index.json", {**plan, "complete": complete}, indent=None)

    names = [plan["images"][row] for row in todo]
    batches = _batches(image_folder, names, batch_size, encoder, plan["mirrored"])
    bar = tqdm(total=len(todo), unit="image", desc=Path(encoder.name).stem, disable=not todo)
    try:
        with bar, contextlib.closing(batches):
            saved_at = time.monotonic()
            for grid, results in batches:
                rows, todo = todo[: len(grid)], todo[len(grid) :]
                for row, result in zip(rows, results, strict=True):
                    if isinstance(result, FileState):
                        plan["files"][row] = result
                    else:
                        plan["failed"][plan["images"][row]] = result
                if np.abs(grid).max() > np.finfo(np.float16).max or np.isnan(grid).any():
                    raise InputError("the encoder's features are NaN or too large for float16")
                arrays["pooled"][rows] = grid.mean((1, 2))
                if "grid" in arrays:
                    arrays["grid"][rows] = grid
                bar.update(len(rows))
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    save()
                    saved_at = time.monotonic()
    except KeyboardInterrupt:
        save()
        raise
    if not any(plan["files"]):
        image, problem = next(iter(plan["failed"].items()))
        raise InputError(
            f"{image_folder}: none of the {len(plan['images'])} images can be read; {image}: {problem}"
        )
    save(complete=True)


def _batches(
    image_folder: Path, images: list[str], batch_size: int, encoder: Encoder, mirrored: bool
) -> Iterator[tuple[np.ndarray, list[FileState | str]]]:
    """Yield (grid, the state of each file or why it could not be read), reading one batch ahead.

    A grid is float32 (batch, rows, columns, channels); rows that could not be read are zero. The
    CNN always sees `batch_size` images: its rounding may depend on that.
    """
    size = encoder.image_size

    def read(name: str) -> tuple[FileState, np.ndarray] | str:
        path = image_folder / name
        try:
            status, data = path.stat(), path.read_bytes()
            pixels = load_image(io.BytesIO(data), size)
        except OSError as error:
            return error.strerror or str(error)
        except InputError as error:
            return str(error).removeprefix("the picture: ")
        state = FileState(status.st_size, status.st_mtime_ns, _digest(data), picture_hash(pixels))
        return state, pixels[:, ::-1] if mirrored else pixels

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def submit(start: int) -> list[concurrent.futures.Future]:
            return [pool.submit(read, name) for name in images[start : start + batch_size]]

        try:
            ahead = submit(0)
            for start in range(0, len(images), batch_size):
                results = [future.result() for future in ahead]
                pixels = np.zeros((batch_size, size, size, 3), np.uint8)
                for row, result in enumerate(results):
                    if not isinstance(result, str):
                        pixels[row] = result[1]
                ahead = submit(start + batch_size)
                grid = encoder.encode(pixels)[: len(results)]
                grid[[isinstance(result, str) for result in results]] = 0
                yield grid, [r if isinstance(r, str) else r[0] for r in results]
        finally:
            pool.shutdown(cancel_futures=True)


def new_arrays(folder: Path, plan: dict) -> dict[str, np.memmap]:
    """Create the arrays of `plan` as `*.npy.part`, their disk space reserved.

    Raises:
        InputError: there is not enough space.
    """
    arrays, layout = {}, array_layout(plan)
    needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    for name, (shape, dtype) in layout.items():
        path = folder / f"{name}.npy.part"
        try:
            arrays[name] = np.lib.format.open_memmap(path, "w+", dtype, shape)
            size = path.stat().st_size
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
                with path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            for part in layout:
                (folder / f"{part}.npy.part").unlink(missing_ok=True)
            raise write_error(path, error, needed) from None
    return arrays


def _open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run {MADE_BY} again") from None
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{path}: holds {array.dtype} {array.shape}, its index says "
            f"{np.dtype(dtype)} {shape}; run {MADE_BY} again"
        )
    return array
