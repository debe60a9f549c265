"""The on-disk cache of image features: resumable, memory-mapped, the same bytes every time.

A cache is a folder:

    index.json     the encoder, the images in row order, the pictures that could not be read
    pooled.npy     float32 (images, channels): the mean over the grid
    grid.npy       float16 (images, rows, columns, channels), where it was asked for

While it is being made the arrays are called `*.npy.part` and `progress.json` says how many rows
are safely on disk; a run that was killed goes on from there.
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioning.encoders import Encoder, load_image
from captioning.files import InputError, exclusive, read_json, write_error, write_json

VERSION = 1
SAVE_SECONDS = 5.0  # at most this much work is lost when the process is killed
MADE_BY = "image_extraction.ipynb"


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """A finished cache.

    Attributes:
        folder: where it lies.
        encoder: what `Encoder.describe` gave.
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
        index = read_json(folder / "index.json", MADE_BY)
        if not isinstance(index, dict) or index.get("version") != VERSION:
            raise InputError(
                f"{folder / 'index.json'}: not a feature index of version {VERSION}; "
                f"run {MADE_BY} again"
            )
        rows, columns, channels = index["encoder"]["grid_shape"]
        count = len(index["images"])
        pooled = _open_array(folder / "pooled.npy", (count, channels), np.float32)
        grid = None
        if index["has_grid"]:
            grid = _open_array(folder / "grid.npy", (count, rows, columns, channels), np.float16)
        return cls(
            folder,
            index["encoder"],
            index["mirrored"],
            index["images"],
            index["failed"],
            pooled,
            grid,
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


def _open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
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


def cache_folder(prepared: str | os.PathLike, encoder_name: str, mirrored: bool = False) -> Path:
    """Where the features of an encoder lie in a prepared folder."""
    name = Path(encoder_name).stem if encoder_name.endswith(".keras") else encoder_name
    return Path(prepared) / "features" / (name + ("-mirrored" if mirrored else ""))


def encode_images(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    """Run the CNN: uint8 or float RGB (batch, size, size, 3) -> float32 grid.

    Returns:
        float32 (batch, rows, columns, channels).
    """
    grid = np.asarray(_compiled(encoder.model)(images.astype(np.float32)))
    return grid.reshape(len(images), *encoder.grid_shape)


def _compiled(model):
    """The model's forward pass as one graph, made once per model."""
    if not hasattr(model, "_forward_graph"):
        import tensorflow as tf

        shape = (None, *model.input_shape[1:])
        model._forward_graph = tf.function(
            lambda batch: model(batch, training=False),
            input_signature=[tf.TensorSpec(shape, tf.float32)],
        )
    return model._forward_graph


def extract_features(
    folder: str | os.PathLike,
    image_folder: str | os.PathLike,
    images: Sequence[str],
    encoder: Encoder,
    *,
    mirrored: bool = False,
    keep_grid: bool = True,
    batch_size: int = 16,
) -> FeatureCache:
    """Encode `images` into the cache `folder`, going on where a killed run stopped.

    Pictures are read by a pool of threads while the CNN works on the batch before. A picture that
    cannot be read is recorded with the reason, and the rest goes on. A finished cache of the same
    images and encoder is returned as it is.

    Args:
        folder: the cache; see `cache_folder`.
        image_folder: where the image files lie.
        images: file names, one a row.
        encoder: the CNN.
        mirrored: flip every image left to right.
        keep_grid: also keep the grid before pooling (rows x columns times larger).
        batch_size: images per CNN pass.

    Raises:
        InputError: the folder cannot be written, is full, or is in use by another run.
    """
    folder, image_folder, images = Path(folder), Path(image_folder), list(images)
    if not images:
        raise InputError(f"{image_folder}: no images to encode")
    if len(set(images)) != len(images):
        raise InputError(f"{folder}: an image is listed twice")
    plan = {
        "version": VERSION,
        "encoder": encoder.describe(),
        "mirrored": mirrored,
        "has_grid": keep_grid,
        "batch_size": batch_size,
        "images": images,
    }
    with exclusive(folder):
        if (folder / "index.json").exists():
            index = read_json(folder / "index.json", MADE_BY)
            if isinstance(index, dict) and {**index, "failed": None} == {**plan, "failed": None}:
                return FeatureCache.open(folder)
            for name in ("index.json", "progress.json"):
                (folder / name).unlink(missing_ok=True)
        _fill(folder, image_folder, plan, encoder)
    return FeatureCache.open(folder)


def _fill(folder: Path, image_folder: Path, plan: dict, encoder: Encoder) -> None:
    images, batch_size = plan["images"], plan["batch_size"]
    progress = _read_progress(folder, plan)
    done, failed = progress["done"], progress["failed"]
    arrays = _working_arrays(folder, plan, resume=done > 0)

    def save() -> None:
        try:
            for array in arrays.values():
                array.flush()
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / "progress.json", {**plan, "done": done, "failed": failed}, indent=None)

    saved_at = time.monotonic()
    size, mirrored = encoder.image_size, plan["mirrored"]
    with tqdm(total=len(images), initial=done, unit="image", desc=encoder.name) as bar:
        for pixels, unread in _batches(image_folder, images[done:], batch_size, size, mirrored):
            grid = encode_images(encoder, pixels)
            for offset, reason in unread.items():
                failed[images[done + offset]] = reason
                grid[offset] = 0
            rows = slice(done, done + len(grid))
            arrays["pooled"][rows] = grid.mean((1, 2))
            if plan["has_grid"]:
                arrays["grid"][rows] = grid
            done += len(grid)
            bar.update(len(grid))
            if time.monotonic() - saved_at > SAVE_SECONDS:
                save()
                saved_at = time.monotonic()
    save()
    for name in arrays:
        (folder / f"{name}.npy.part").replace(folder / f"{name}.npy")
    write_json(folder / "index.json", {**plan, "failed": failed}, indent=None)
    (folder / "progress.json").unlink()


def _read_progress(folder: Path, plan: dict) -> dict:
    """What an earlier run of the same plan has safely stored; nothing if there was none."""
    path = folder / "progress.json"
    if path.exists():
        progress = read_json(path, MADE_BY)
        if isinstance(progress, dict) and all(progress.get(key) == plan[key] for key in plan):
            return progress
    return {"done": 0, "failed": {}}


def _working_arrays(folder: Path, plan: dict, resume: bool) -> dict[str, np.memmap]:
    count, grid_shape = len(plan["images"]), plan["encoder"]["grid_shape"]
    layout = {"pooled": ((count, grid_shape[-1]), np.float32)}
    if plan["has_grid"]:
        layout["grid"] = ((count, *grid_shape), np.float16)
    arrays = {}
    for name, (shape, dtype) in layout.items():
        path = folder / f"{name}.npy.part"
        finished = folder / f"{name}.npy"
        try:
            if resume and not path.exists():
                finished.replace(path)  # killed between the last rename and the index
            mode = "r+" if resume else "w+"
            if resume:
                arrays[name] = np.lib.format.open_memmap(path, mode)
            else:
                arrays[name] = np.lib.format.open_memmap(path, mode, dtype, shape)
                # reserve the space now: a full disk is an error here, not a crash in mid-run
                with path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink(missing_ok=True)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise InputError(
                f"{write_error(path, error)}\n{size / 1e6:,.0f} MB are needed"
            ) from None
    return arrays


def _batches(
    image_folder: Path, images: list[str], batch_size: int, size: int, mirrored: bool
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """Yield (uint8 (batch, size, size, 3), {row in the batch: why it could not be read})."""

    def read(name: str) -> np.ndarray | str:
        try:
            pixels = load_image(image_folder / name, size)
            return pixels[:, ::-1] if mirrored else pixels
        except InputError as error:
            return str(error)

    starts = range(0, len(images), batch_size)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def submit(start: int) -> list[concurrent.futures.Future]:
            return [pool.submit(read, name) for name in images[start : start + batch_size]]

        ahead = submit(0)
        for start in starts:
            current, ahead = ahead, submit(start + batch_size)
            results = [future.result() for future in current]
            pixels = np.zeros((len(results), size, size, 3), np.uint8)
            unread = {}
            for row, result in enumerate(results):
                if isinstance(result, str):
                    unread[row] = result
                else:
                    pixels[row] = result
            yield pixels, unread
