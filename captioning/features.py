"""The on-disk cache of image features: resumable, memory-mapped, the same bytes every time.

A cache is a folder:

    index.json     the encoder, the images in row order, the pictures that could not be read
    pooled.npy     float32 (images, channels): the mean over the grid
    grid.npy       float16 (images, rows, columns, channels), where it was asked for

While it is being made the arrays are called `*.npy.part` and `progress.json` says how many rows
are safely on disk; a run that was killed goes on from there.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioning.encoders import Encoder, encode_images, load_image, require_same_encoder
from captioning.files import InputError, exclusive, read_json, write_error, write_json

VERSION = 1
BATCH_SIZE = 8  # on processors, more is not faster, and one pass is how long Ctrl-C may wait
SAVE_SECONDS = 5.0  # at most this much work is lost when the process is killed
MADE_BY = "image_extraction.ipynb"


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """A finished cache.

    Attributes:
        folder: where it lies.
        encoder: what `Encoder.describe` gave; see `require_same_encoder`.
        mirrored: whether the images were flipped left to right.
        images: file names; row r of the arrays belongs to images[r].
        failed: file name -> reason, for the pictures that could not be read (their rows are zero).
        pooled: float32 (images, channels), memory-mapped.
        grid: float16 (images, rows, columns, channels), memory-mapped, or None.
    """

    folder: Path
    encoder: dict
    mirrored: bool
    images: list[str]
    failed: dict[str, str]
    pooled: np.ndarray = dataclasses.field(repr=False)
    grid: np.ndarray | None = dataclasses.field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "FeatureCache":
        """Open a finished cache.

        Raises:
            InputError: it is missing, unfinished, damaged or of another version.
        """
        folder = Path(folder)
        if not (folder / "index.json").exists() and (folder / "progress.json").exists():
            raise InputError(f"{folder}: unfinished; run {MADE_BY} again, it goes on where it was")
        index = _read_record(folder / "index.json")
        arrays = {
            name: _open_array(folder / f"{name}.npy", shape, dtype, "r")
            for name, (shape, dtype) in array_layout(index).items()
        }
        return cls(
            folder,
            index["encoder"],
            index["mirrored"],
            index["images"],
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
                f"{self.folder}: {len(missing)} images are not in it, {missing[0]} among them; "
                f"run {MADE_BY} again for this data set"
            )
        return np.array(
            [-1 if image in self.failed else row_of[image] for image in images], np.int64
        )


def read_rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copy rows of a memory-mapped array, each read from the disk at one go.

    A system that is asked for a page reads ahead, up to megabytes that nobody wants where rows are
    drawn at random. Told what is wanted, it reads that and no more.
    """
    mapped = array.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        size, start = array[0].nbytes, array.offset % mmap.ALLOCATIONGRANULARITY
        for row in rows.tolist():
            begin = start + row % len(array) * size
            page = begin - begin % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # it is advice, which a system need not take
                mapped.madvise(mmap.MADV_WILLNEED, page, begin + size - page)
    return array[rows]


def cache_folder(prepared: str | os.PathLike, encoder_name: str, mirrored: bool = False) -> Path:
    """Where the features of an encoder lie in a prepared folder."""
    name = Path(encoder_name).stem if encoder_name.endswith(".keras") else encoder_name
    return Path(prepared) / "features" / (name + ("-mirrored" if mirrored else ""))


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
    """Encode `images` into the cache `folder`, going on where a stopped run was.

    Pictures are read by a pool of threads while the CNN works on the batch before. A picture that
    cannot be read is recorded with the reason, and the rest goes on. A finished cache of the same
    images is returned as it is (remove the folder to give unreadable pictures another try); one of
    more or fewer images is made anew, one of quite other images is refused. On Ctrl-C what is done
    is saved before KeyboardInterrupt goes on its way.

    Args:
        folder: the cache; see `cache_folder`.
        image_folder: where the image files lie.
        images: file names, one a row.
        encoder: the CNN.
        mirrored: flip every image left to right.
        keep_grid: also keep the grid before pooling (rows x columns times larger).
        batch_size: images per CNN pass.

    Raises:
        InputError: no image can be read, or the folder is in use by another run, holds features
            of another encoder, is full or cannot be written.
    """
    folder, image_folder, images = Path(folder), Path(image_folder), list(images)
    if not image_folder.is_dir():
        raise InputError(f"{image_folder}: no such folder of images")
    if not images:
        raise InputError(f"{image_folder}: no images to encode")
    if len(set(images)) != len(images):
        raise InputError(f"{folder}: an image is listed twice")
    plan = {
        "version": VERSION,
        "encoder": encoder.describe(),
        "mirrored": mirrored,
        "has_grid": keep_grid,
        "images": images,
    }
    with exclusive(folder):
        finished = _recorded(folder / "index.json", plan)
        if not finished and not keep_grid:  # a cache that also has the grid will do
            finished = _recorded(folder / "index.json", {**plan, "has_grid": True})
        if finished:
            with contextlib.suppress(InputError):  # arrays gone or damaged: make them anew
                cache = FeatureCache.open(folder)
                (folder / "progress.json").unlink(missing_ok=True)
                return cache
        _fill(folder, image_folder, plan, encoder, batch_size)
        return FeatureCache.open(folder)


def _fill(folder: Path, image_folder: Path, plan: dict, encoder: Encoder, batch_size: int) -> None:
    """Encode what is still to do, save from time to time, and give the files their names.

    The order on disk is what makes it safe to be killed: rows, then the count of rows that are
    there, then the final names, and last the index, without which a cache is unfinished.
    """
    images, names = plan["images"], list(array_layout(plan))
    arrays, done, failed = _start(folder, plan)

    def save() -> None:
        try:
            for array in arrays.values():
                array.flush()
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / "progress.json", {**plan, "done": done, "failed": failed}, indent=None)

    batches = _batches(image_folder, images[done:], batch_size, encoder, plan["mirrored"])
    name = Path(encoder.name).stem
    bar = tqdm(total=len(images), initial=done, unit="image", desc=name, mininterval=0.5)
    try:
        with bar, contextlib.closing(batches):
            saved_at = time.monotonic()
            for grid, unread in batches:
                for offset, reason in unread.items():
                    failed[images[done + offset]] = reason
                rows = slice(done, done + len(grid))
                for name in names:
                    _store(arrays[name], rows, grid if name == "grid" else grid.mean((1, 2)))
                done += len(grid)
                bar.update(len(grid))
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    save()
                    saved_at = time.monotonic()
    except KeyboardInterrupt:
        save()
        raise
    if len(failed) == len(images):
        (folder / "progress.json").unlink(missing_ok=True)
        raise InputError(
            f"{image_folder}: none of the {len(images)} images can be read; "
            f"{images[0]}: {failed[images[0]]}"
        )
    save()
    finish_arrays(folder, plan, failed)
    (folder / "progress.json").unlink()


def finish_arrays(folder: Path, plan: dict, failed: dict[str, str]) -> None:
    """Give the filled arrays their names, and last the index, which makes them a cache."""
    for name in array_layout(plan):
        (folder / f"{name}.npy.part").replace(folder / f"{name}.npy")
    write_json(folder / "index.json", {**plan, "failed": failed}, indent=None)


def _batches(
    image_folder: Path, images: list[str], batch_size: int, encoder: Encoder, mirrored: bool
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """Yield (grid, {row in the batch: why it could not be read}), reading a batch ahead.

    A grid is float32 (batch, rows, columns, channels); rows that could not be read are zero.
    """
    size = encoder.image_size

    def read(name: str) -> np.ndarray | str:
        path = image_folder / name
        try:
            pixels = load_image(path, size)
            return pixels[:, ::-1] if mirrored else pixels
        except InputError as error:
            return str(error).removeprefix(f"{path}: ")

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def submit(start: int) -> list[concurrent.futures.Future]:
        return [pool.submit(read, name) for name in images[start : start + batch_size]]

    try:
        ahead = submit(0)
        for start in range(0, len(images), batch_size):
            results = [future.result() for future in ahead]
            unread = {row: text for row, text in enumerate(results) if isinstance(text, str)}
            pixels = np.zeros((len(results), size, size, 3), np.uint8)
            for row, result in enumerate(results):
                if row not in unread:
                    pixels[row] = result
            ahead = submit(start + batch_size)  # not before: the readers would hold Python up
            grid = encode_images(encoder, pixels)
            grid[list(unread)] = 0
            yield grid, unread
    finally:
        pool.shutdown(cancel_futures=True)


def _store(array: np.ndarray, rows: slice, features: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        array[rows] = features
    if not np.isfinite(array[rows]).all():
        raise InputError(f"the encoder gives features that are no numbers or beyond {array.dtype}")


def array_layout(plan: dict) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name -> (shape, dtype) of the arrays in a cache."""
    count, grid_shape = len(plan["images"]), plan["encoder"]["grid_shape"]
    layout = {"pooled": ((count, grid_shape[-1]), np.float32)}
    if plan["has_grid"]:
        layout["grid"] = ((count, *grid_shape), np.float16)
    return layout


def _start(folder: Path, plan: dict) -> tuple[dict[str, np.memmap], int, dict[str, str]]:
    """The arrays to fill, how many rows are in them, and the failures so far."""
    progress = _recorded(folder / "progress.json", plan)
    if progress:
        with contextlib.suppress(InputError):  # arrays gone or damaged: make them anew
            return _reopen_arrays(folder, plan), progress["done"], progress["failed"]
    remove_arrays(folder)
    return new_arrays(folder, plan), 0, {}


def remove_arrays(folder: Path) -> None:
    """Clear a cache for new arrays; what vouches for the old ones goes before them."""
    arrays = (*folder.glob("*.npy"), *folder.glob("*.npy.part"))
    for path in (folder / "progress.json", folder / "index.json", *arrays):
        path.unlink(missing_ok=True)


def _reopen_arrays(folder: Path, plan: dict) -> dict[str, np.memmap]:
    arrays = {}
    for name, (shape, dtype) in array_layout(plan).items():
        part, finished = folder / f"{name}.npy.part", folder / f"{name}.npy"
        if finished.exists():
            finished.replace(part)  # killed between the final names and the index
        arrays[name] = _open_array(part, shape, dtype, "r+")
    return arrays


def new_arrays(folder: Path, plan: dict) -> dict[str, np.memmap]:
    """Make the arrays of `plan` under their unfinished names, their space on the disk reserved.

    Raises:
        InputError: there is not enough space.
    """
    arrays, layout = {}, array_layout(plan)
    for name, (shape, dtype) in layout.items():
        path = folder / f"{name}.npy.part"
        try:
            arrays[name] = np.lib.format.open_memmap(path, "w+", dtype, shape)
            # reserve the space now: a full disk is an error here, not a crash in mid-run
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            for part in folder.glob("*.npy.part"):
                part.unlink()
            needed = sum(
                math.prod(shape) * np.dtype(kind).itemsize for shape, kind in layout.values()
            )
            raise write_error(path, error, needed) from None
    return arrays


def _open_array(path: Path, shape: tuple[int, ...], dtype: type, mode: str) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, mode)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run {MADE_BY} again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); run {MADE_BY} again") from None
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{path}: holds {array.dtype} {array.shape}, its index says "
            f"{np.dtype(dtype)} {shape}; run {MADE_BY} again"
        )
    return array


def _read_record(path: Path) -> dict:
    """Read `index.json` or `progress.json`.

    Raises:
        InputError: it is missing, damaged or of another version.
    """
    record = read_json(path, MADE_BY)
    kinds = {"encoder": dict, "mirrored": bool, "has_grid": bool, "images": list, "failed": dict}
    if (
        not isinstance(record, dict)
        or record.get("version") != VERSION
        or not all(isinstance(record.get(key), kind) for key, kind in kinds.items())
        or not {"name", "image_size", "grid_shape", "fingerprint"} <= set(record["encoder"])
    ):
        raise InputError(f"{path}: no feature index of version {VERSION}; run {MADE_BY} again")
    return record


def _recorded(path: Path, plan: dict) -> dict | None:
    """What `path` records, if it is of this plan; None if it is not, or cannot be used.

    Raises:
        InputError: it is of another encoder, or of another data set, whose features are not to be
            lost for a wrong folder name.
    """
    try:
        record = _read_record(path)
    except InputError:
        return None
    require_same_encoder(path.parent, record["encoder"], plan["encoder"])
    if set(record["images"]).isdisjoint(plan["images"]):
        raise InputError(
            f"{path.parent}: holds features of another data set ({len(record['images']):,} images, "
            f"{record['images'][0]} among them);\nchoose another folder, or remove this one"
        )
    same = all(record[key] == plan[key] for key in ("images", "mirrored", "has_grid"))
    return record if same else None
