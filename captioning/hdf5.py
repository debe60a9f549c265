"""Weights from strangers: HDF5 that is read in Python and written anew.

Keras keeps weights in HDF5. Its library is written in C, and files made for the purpose make it
write outside its memory (CVE-2025-44905 is one of some thirty such holes in the version that comes
with TensorFlow 2.21). So a file that somebody else may have made is not given to it: pyfive reads
that, in Python and within bounds, and Keras gets a copy of what was found.
"""

import contextlib
import io
import math
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyfive

from captioning.files import InputError, write_error

MAX_OBJECTS = 20_000  # groups and arrays; the largest of keras.applications have some thousand
MAX_DEPTH = 50
PASSES = 8  # how often the bytes of a file may be read over, counting each reading as ...
LEAST_CHARGE = 512  # ... so many bytes at least
ALLOWANCE = 5_000_000  # bytes that may be read of any file, however small
WEIGHTS = "model.weights.h5"  # the member of a `.keras` archive
CONTIGUOUS = 1  # HDF5's number of the layout of an array in one piece
DEFLATE, SHUFFLE = 1, 2  # HDF5's numbers of the filters that Keras' files may use
NUMBERS = "fiub"  # kinds of NumPy's types


@contextlib.contextmanager
def rewritten(data: bytes, most: int, name: str = WEIGHTS) -> Iterator[Path]:
    """Within the block, a file of the same groups, arrays and attributes that is fit for HDF5.

    Args:
        data: an HDF5 file.
        most: bytes that its arrays may take together.
        name: of the copy; Keras goes by its suffix.

    Raises:
        ValueError: `data` is no HDF5, or not of the kind that Keras writes.
        InputError: there is no space for the copy.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix="captioning-")
    except OSError as error:
        raise InputError(
            f"no folder for temporary files can be written ({error.strerror or error}); "
            "set TMPDIR to one that can"
        ) from None
    with temporary as folder:
        path, objects, size = Path(folder) / name, _objects(data, most), 0
        try:
            with h5py.File(path, "w") as copy, warnings.catch_warnings(action="ignore"):
                for place, array, attributes in objects:
                    if array is None:
                        made = copy.require_group(place)
                    else:
                        size += array.nbytes
                        made = copy.create_dataset(place, data=array)
                    made.attrs.update(attributes)
        except OSError as error:
            size += sum(array.nbytes for _, array, _ in objects if array is not None)
            raise write_error(path, error, size) from error
        yield path


def load_archived(model, archive: Path, most: int) -> None:
    """Give a Keras model its weights, from the `.keras` archive that it came in.

    Args:
        model: as its configuration says, built.
        archive: the `.keras` file.
        most: bytes that its weights may take.

    Raises:
        ValueError: they are damaged or do not fit.
        InputError: there is no space for a copy of them.
    """
    with zipfile.ZipFile(archive) as members:
        data = members.read(WEIGHTS)
    with rewritten(data, most) as copy:
        model.load_weights(copy)


class _Bounded(io.BytesIO):
    """A file in memory that is read some times over and no more; one that leads in circles ends."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._left = PASSES * len(data) + ALLOWANCE

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self._left -= max(len(piece), LEAST_CHARGE)
        if self._left < 0:
            raise ValueError("it leads in circles")
        return piece


def _objects(data: bytes, most: int) -> Iterator[tuple[str, np.ndarray | None, dict]]:
    """All groups, before what is in them, and arrays: place, the array or None, attributes."""
    try:
        pending = [("/", pyfive.File(_Bounded(data), decode_strings=True))]
        count = 0
        while pending:
            place, group = pending.pop()
            yield place, None, _attributes(group)
            for name in group:
                item, inside = group[name], f"{place}{name}"
                count += 1
                if count > MAX_OBJECTS or inside.count("/") > MAX_DEPTH:
                    raise ValueError(f"it holds more than {MAX_OBJECTS:,} things, or too deep")
                if isinstance(item, pyfive.Group):
                    pending.append((f"{inside}/", item))
                else:
                    array = _array(item, most, len(data))
                    most -= array.nbytes
                    yield inside, array, _attributes(item)
    except Exception as error:  # pyfive raises many kinds, and asserts
        raise ValueError(f"not HDF5 of Keras: {error or type(error).__name__}") from error


def _attributes(item: pyfive.Group | pyfive.Dataset) -> dict:
    """The attributes of a group or array, as h5py writes them: text and numbers."""
    attributes = dict(item.attrs)
    for key, value in attributes.items():
        array = np.asarray(value)
        if array.dtype == object and all(isinstance(text, str | bytes) for text in array.flat):
            attributes[key] = np.array(value, h5py.string_dtype())
        elif array.dtype.kind not in f"{NUMBERS}SU":
            raise ValueError(f"{item.name} has an attribute that is neither text nor numbers")
    return attributes


def _array(stored: pyfive.Dataset, most: int, file_size: int) -> np.ndarray:
    size = math.prod(stored.shape) * stored.dtype.itemsize
    if stored.dtype.kind not in NUMBERS:
        raise ValueError(f"{stored.name} is no array of numbers")
    if size > most:
        raise ValueError(f"{stored.name} takes {size / 1e6:,.0f} MB")
    if stored.chunks is not None:
        return _from_chunks(stored, most)
    in_one_piece = stored.id.layout_class == CONTIGUOUS
    if size and in_one_piece and stored.id.data_offset + size > file_size:
        raise ValueError(f"{stored.name} is not in the file")
    return np.asarray(stored[()])


def _from_chunks(stored: pyfive.Dataset, most: int) -> np.ndarray:
    """An array that is stored in pieces, each of them packed."""
    shape, pieces = stored.chunks, stored.id
    size = math.prod(shape) * stored.dtype.itemsize
    filters = [entry["filter_id"] for entry in pieces.filter_pipeline or ()]
    if size > most or not {DEFLATE, SHUFFLE}.issuperset(filters):
        raise ValueError(f"{stored.name} is packed in a way that Keras' files are not")
    count = math.prod(-(-length // step) for length, step in zip(stored.shape, shape, strict=True))
    if pieces.get_num_chunks() != count:
        raise ValueError(f"{stored.name} is not in the file as a whole")
    array = np.empty(stored.shape, stored.dtype)
    for number in range(count):
        start = pieces.get_chunk_info(number).chunk_offset
        skipped, packed = pieces.read_direct_chunk(start)
        for place in reversed(range(len(filters))):
            if skipped >> place & 1:
                continue
            if filters[place] == DEFLATE:
                packed = _inflated(packed, size)
            else:
                packed = _unshuffled(packed, stored.dtype.itemsize)
        piece = np.frombuffer(packed, stored.dtype).reshape(shape)
        region = array[
            tuple(slice(one, one + step) for one, step in zip(start, shape, strict=True))
        ]
        region[...] = piece[tuple(map(slice, region.shape))]  # the last piece may reach beyond
    return array


def _inflated(packed: bytes, size: int) -> bytes:
    """Undo HDF5's filter deflate."""
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed, size)
    if unpacker.unconsumed_tail:
        raise ValueError("it unpacks to more than it says")
    return data


def _unshuffled(data: bytes, itemsize: int) -> bytes:
    """Undo HDF5's filter shuffle, which puts the first bytes of all numbers first, and so on."""
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()
