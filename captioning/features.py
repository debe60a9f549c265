"""The cache of image features, a folder: memory-mapped, resumable, aware of changed images.

    index.json     the encoder, the images in row order, the digest of each image's file
    pooled.npy     float32 (images, channels): the mean over the grid
    grid.npy       float16 (images, rows, columns, channels), if it was asked for

A run encodes the rows without a digest. A later one keeps those whose digest is that of a file (of
any name), so a killed run resumes.
"""

import contextlib
import hashlib
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from captioning.encoders import require_same_encoder
from captioning.errors import InputError, log, reason
from captioning.files import json_bytes, locked, read_json, replacing, write_bytes
from captioning.images import load_image

VERSION = 3
BATCH_SIZE = 8  # larger is not faster on a CPU
SAVE_EVERY = 32  # batches; at most these are lost when the process is killed
MADE_BY = "image_extraction.ipynb"


@dataclass(frozen=True)
class FeatureCache:
    """An open cache; row r of the lists and arrays belongs to images[r]."""

    folder: Path
    encoder: dict  # `Encoder.to_json`
    mirrored: bool  # whether the images were flipped left to right
    images: list[str]  # file names
    digests: list[str | None]  # of the files; None: not encoded
    hashes: list[str | None]  # perceptual, see `picture_hash`
    failed: dict[str, str]  # file name -> why it could not be read; its row is zero
    pooled: np.ndarray  # float32 (images, channels)
    grid: np.ndarray | None = None  # float16 (images, rows, columns, channels)

    @classmethod
    def open(cls, folder: str | Path, unfinished: bool = False) -> "FeatureCache":
        """Open a cache; InputError if it is missing, damaged or (unless allowed) unfinished."""
        index = read_json(Path(folder, "index.json"), MADE_BY)
        if index.pop("version", None) != VERSION or not (index.pop("complete") or unfinished):
            raise InputError(f"{folder}: unfinished or of an old version; run {MADE_BY} again")
        try:
            arrays = {n: np.load(Path(folder, f"{n}.npy"), "r") for n in index.pop("arrays")}
        except Exception as error:  # NumPy's reader raises many types
            raise InputError(f"{folder}: damaged ({reason(error)}); run {MADE_BY} again") from None
        return cls(Path(folder), **index, **arrays)

    def rows(self, images: Sequence[str]) -> np.ndarray:
        """Row numbers, int64 (images,); -1 for an unreadable image, InputError for an unknown."""
        row_of = {image: row for row, image in enumerate(self.images)}
        if missing := [image for image in images if image not in row_of]:
            lacks = f"{len(missing)} images are not in it, such as {missing[0]}"
            raise InputError(f"{self.folder}: {lacks}; run both notebooks again for this data set")
        return np.array([-1 if name in self.failed else row_of[name] for name in images], np.int64)

    def pictures(self, images: Sequence[str]) -> list[str]:
        """The perceptual hashes of those of `images` that could be read."""
        return [self.hashes[row] for row in self.rows(images) if row >= 0]

    def read(self, rows: np.ndarray, feature_shape: tuple[int, ...]) -> np.ndarray:
        """Features for a model: pooled (rows, C) or grid (rows, P, C), as `feature_shape` says."""
        array = self.pooled if len(feature_shape) == 1 else self.grid
        if array is None:
            remedy = f"run {MADE_BY} again with keep_grid = True"
            raise InputError(f"{self.folder}: has no grid, which attention needs; {remedy}")
        size, start = array[0].nbytes, array.offset % mmap.ALLOCATIONGRANULARITY
        for row in rows.tolist() if hasattr(mmap, "MADV_WILLNEED") else ():
            begin = start + row % len(array) * size
            page = begin - begin % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # advice: else each read would be of megabytes
                array.base.madvise(mmap.MADV_WILLNEED, page, begin + size - page)
        return array[rows].reshape(len(rows), *feature_shape)


def cache_folder(prepared: str | Path, encoder_name: str, mirrored: bool = False) -> Path:
    """Where the features of an encoder are in a prepared folder."""
    name = Path(encoder_name).stem if encoder_name.endswith(".keras") else encoder_name
    return Path(prepared).expanduser() / "features" / (name + "-mirrored" * mirrored)


def open_caches(data: str, encoder: str | None = None, mirrored: bool = True) -> list[FeatureCache]:
    """The cache of a prepared folder (of its only encoder if None), then any mirrored one."""
    place = Path(data, "features").expanduser()
    found = sorted(path.parent.name for path in place.glob("*/index.json"))
    names = [encoder] if encoder else [name for name in found if not name.endswith("-mirrored")]
    if not names:
        merge = f"python -m captioning shards merge {place}/*"
        raise InputError(f"{place}: no features; run {MADE_BY}, or merge its shards:\n{merge}")
    if len(names) > 1:
        raise InputError(f"{place}: features of {', '.join(names)}; choose with --encoder")
    caches = [FeatureCache.open(cache_folder(data, names[0]))]
    mirror = cache_folder(data, names[0], mirrored=True)
    if mirrored and mirror.name in found:
        caches.append(FeatureCache.open(mirror))
        require_same_encoder(mirror, caches[1].encoder, caches[0].encoder)
    return caches


def picture_hash(pixels: np.ndarray) -> str:
    """64-bit difference hash of uint8 (height, width, 3), as 16 hex digits."""
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def extract_features(
    folder, image_folder, images, encoder, mirrored=False, keep_grid=True, batch_size=BATCH_SIZE
) -> FeatureCache:
    """Encode the files `images` by an `Encoder` into the cache `folder`; unchanged rows are kept.

    InputError if no image can be read, or the folder is in use, full, or another encoder's.
    """
    folder, paths = Path(folder), [Path(image_folder, image) for image in images]
    with locked(folder):
        old = None
        with contextlib.suppress(InputError):  # missing or damaged: all rows are encoded
            old = FeatureCache.open(folder, unfinished=True)
        if old:
            require_same_encoder(folder, old.encoder, encoder.to_json())
        has_grid = keep_grid or (old and old.grid is not None)
        index = {
            "version": VERSION,
            "complete": False,
            "encoder": encoder.to_json(),
            "mirrored": mirrored,
            "arrays": ["pooled", "grid"] if has_grid else ["pooled"],
            "images": list(images),
            "digests": [None] * len(paths),
            "hashes": [None] * len(paths),
            "failed": {},
        }
        arrays = _keep_rows(folder, paths, index, old)
        _encode_rows(folder, paths, index, arrays, encoder, batch_size)
    if len(index["failed"]) == len(paths):
        raise InputError(f"no image can be read, such as {paths[0]}: {index['failed'][images[0]]}")
    return FeatureCache.open(folder)


def _keep_rows(folder: Path, paths: list[Path], index: dict, old: FeatureCache | None) -> dict:
    """The arrays with the rows that `old` has of the same bytes; `index` gets their digests."""
    kept = {}
    if old and all(getattr(old, name) is not None for name in index["arrays"]):
        row_of = {digest: row for row, digest in enumerate(old.digests) if digest}
        kept = {row: row_of[d] for row, path in enumerate(paths) if (d := _digest(path)) in row_of}
    for row, source in kept.items():
        index["digests"][row], index["hashes"][row] = old.digests[source], old.hashes[source]
    same = old and old.images == index["images"]
    if same and kept and all(index["digests"][row] == old.digests[row] for row in kept):
        write_bytes(folder / "index.json", json_bytes(index, None))  # before rows are overwritten
        return {name: np.load(folder / f"{name}.npy", "r+") for name in index["arrays"]}
    with new_arrays(folder, index) as arrays:
        for name, array in arrays.items():
            for row, source in kept.items():
                array[row] = getattr(old, name)[source]
    return arrays


def _digest(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


@contextlib.contextmanager
def new_arrays(folder: Path, index: dict) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays to fill, by name; then they and `index` replace those of the cache."""
    shape, arrays = index["encoder"]["grid_shape"], {}
    blank = {"pooled": np.zeros(shape[-1:], np.float32), "grid": np.zeros(shape, np.float16)}
    with contextlib.ExitStack() as stack:
        for name in index["arrays"]:
            zeros = np.broadcast_to(blank[name], (len(index["images"]), *blank[name].shape))
            path = stack.enter_context(replacing(folder / f"{name}.npy", zeros.nbytes))
            with path.open("wb+") as file:  # not "wb": NumPy would hide the system's error
                np.save(file, zeros)  # a full disk is an error here, not a crash later
            arrays[name] = np.load(path, "r+")
        yield arrays
        (folder / "index.json").unlink(missing_ok=True)  # it is the commit marker
    write_bytes(folder / "index.json", json_bytes(index, None))


def _encode_rows(folder, paths: list[Path], index: dict, arrays: dict, encoder, batch_size) -> None:
    """Encode the rows without a digest, and save them now and then: the rows before the index."""
    todo = [row for row, digest in enumerate(index["digests"]) if digest is None]
    batches = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    size, flip, failed = encoder.image_size, -1 if index["mirrored"] else 1, index["failed"]

    def save() -> None:
        for array in arrays.values():
            array.flush()
        write_bytes(folder / "index.json", json_bytes(index, None))

    try:
        with ThreadPoolExecutor() as pool:
            for number, rows in enumerate(tqdm(batches, unit="batch", disable=not todo), start=1):
                images = pool.map(lambda row: _read(paths[row], size), rows)
                digests, hashes, problems, pixels = zip(*images, strict=True)
                batch = np.zeros((batch_size, size, size, 3), np.uint8)  # rounding varies with it
                batch[: len(rows)] = pixels
                grid = encoder.encode(batch[:, :, ::flip])[: len(rows)]
                grid[[problem is not None for problem in problems]] = 0
                if not (np.abs(grid) <= np.finfo(np.float16).max).all():
                    raise InputError("the encoder's features are NaN or too large for float16")
                for name, array in arrays.items():
                    array[rows] = grid if name == "grid" else grid.mean((1, 2))
                for i, row in enumerate(rows):
                    index["hashes"][row], index["digests"][row] = hashes[i], digests[i]
                    if problems[i]:
                        failed[index["images"][row]] = problems[i]
                if number % SAVE_EVERY == 0:
                    save()
        index["complete"] = True
    finally:  # on Ctrl-C as well
        save()
    counts = f"{len(todo) - len(failed):,} encoded, {len(failed):,} failed"
    log(f"{folder}: {len(paths) - len(todo):,} images kept, {counts}")


def _read(path: Path, size: int) -> tuple[str | None, str | None, str | None, np.ndarray]:
    """Digest and `picture_hash` of an image, or None and the problem; pixels (size, size, 3)."""
    try:
        digest, pixels = _digest(path), load_image(path, size)
        return digest, picture_hash(pixels), None, pixels
    except InputError as error:
        return None, None, str(error).removeprefix(f"{path}: "), np.zeros((size, size, 3), np.uint8)
