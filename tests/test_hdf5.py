"""HDF5 from strangers is read in Python; its C library sees copies alone."""

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from captioning.checkpoint import Checkpoint
from captioning.encoders import load_encoder
from captioning.hdf5 import rewritten

MOST = 1_000_000
NUMBERS = np.arange(77, dtype=np.float32).reshape(11, 7)
PACKED = {"compression": "gzip", "shuffle": True, "chunks": (4, 3)}  # pieces reach beyond


@pytest.fixture
def made(tmp_path):
    """A function that gives the bytes of an HDF5 file, which `fill` is called to fill."""

    def make(fill, **options):
        path = tmp_path / "made.h5"
        with h5py.File(path, "w", **options) as file:
            fill(file)
        return path.read_bytes()

    return make


def contents(path):
    """Place -> what is there, with its attributes."""
    found = {}

    def add(place, item):
        value = (item.dtype, item[()].tolist()) if isinstance(item, h5py.Dataset) else None
        attributes = {key: np.asarray(given).tolist() for key, given in item.attrs.items()}
        found[place] = (value, attributes)

    with h5py.File(path) as file:
        add("/", file)
        file.visititems(add)
    return found


def fill_all(file):
    """What Keras' files hold, and what they might."""
    file.create_dataset("layers/dense/vars/0", data=NUMBERS)
    file.create_dataset("layers/dense/vars/1", data=NUMBERS, **PACKED)
    file.create_dataset("deflated", data=NUMBERS, compression="gzip", chunks=NUMBERS.shape)
    file.create_dataset("pieces", data=NUMBERS, chunks=(11, 7))
    file.create_dataset("doubles", data=NUMBERS.astype(np.float64), **PACKED)
    file.create_dataset("halves", data=NUMBERS.astype(np.float16))
    file.create_dataset("big_endian", data=NUMBERS.astype(">i8"))
    file.create_dataset("count", data=np.int64(3))
    file.create_dataset("none", data=np.zeros((0, 4), np.float32))
    file.create_group("empty")
    file["layers/dense/vars"].attrs["name"] = "dense_7"
    file["count"].attrs["é"] = 1.5
    file.attrs["layer_names"] = [b"dense", b"dropout"]
    file.attrs["weight_names"] = ["dense/kernel", "é"]


def fill_plainly(file):
    """What pyfive reads of files in HDF5's newer formats, which Keras does not ask for."""
    file.create_dataset("layers/dense/vars/0", data=NUMBERS)
    file["layers/dense/vars"].attrs["name"] = "dense_7"


@pytest.mark.parametrize(
    ("fill", "libver"), [(fill_all, "earliest"), (fill_plainly, "v108"), (fill_plainly, "latest")]
)
def test_a_copy_has_all_that_was_there(made, tmp_path, fill, libver):
    data = made(fill, libver=libver)
    with rewritten(data, MOST, "x.weights.h5") as copy:
        assert copy.name == "x.weights.h5"
        assert contents(copy) == contents(tmp_path / "made.h5")
    assert not copy.exists()
    assert not copy.parent.exists()


@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_what_keras_wrote_keras_reads_from_the_copy(tmp_path, ending):
    import keras

    def network():
        layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
        return keras.Sequential([keras.Input((8, 8, 3)), *layers])

    one, other = network(), network()
    for variable in one.weights:
        variable.assign(np.random.default_rng(0).random(variable.shape))
    path = tmp_path / f"network{ending}"
    one.save_weights(path) if ending == ".weights.h5" else one.save(path)
    with rewritten(path.read_bytes(), MOST, path.name) as copy:
        other.load_weights(copy)
    for left, right in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_strangers_files_do_not_reach_hdf5(tiny_checkpoint, tiny_encoder, tmp_path, monkeypatch):
    import keras

    weights = tmp_path / "resnet50.weights.h5"
    keras.applications.ResNet50(include_top=False, weights=None).save_weights(weights)
    opened = []

    class Watched(h5py.File):
        def __init__(self, name, *arguments, **options):
            opened.append(name)
            super().__init__(name, *arguments, **options)

    monkeypatch.setattr(h5py, "File", Watched)
    Checkpoint.load(tiny_checkpoint)
    load_encoder(tiny_encoder)
    load_encoder("resnet50", weights=weights, image_size=64)
    assert len(opened) == 6  # each copy is written and read
    assert all(Path(name).parent.name.startswith("captioning-") for name in opened)


def bomb(file):
    dataset = file.create_dataset("x", (1000,), np.uint8, chunks=(1000,), compression="gzip")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(300_000_000), 1))


def circle(file):
    file["a/b/c"] = file.create_group("a/b")


def many(file):
    for number in range(300):
        for other in range(100):
            file.create_group(f"{number}/{other}")


def large(file):
    file.create_dataset("x", (10**12,), np.float32, chunks=(1000,), compression="gzip")


def large_piece(file):
    whole = {"chunks": (100_000_000,), "maxshape": (None,), "compression": "gzip"}
    file.create_dataset("x", (10,), np.float32, **whole)[:] = 1


def two_that_are_large_together(file):
    for name in "ab":
        file.create_dataset(name, data=np.zeros(MOST // 5, np.float32))


def elsewhere(file):
    file.create_dataset("x", (6,), np.float32, external=[("/etc/hostname", 0, 24)])


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (bomb, "unpacks to more than it says"),
        (circle, "more than 20,000 things, or too deep"),
        (many, "more than 20,000 things, or too deep"),
        (large, "takes 4,000,000 MB"),
        (large_piece, "packed in a way"),
        (two_that_are_large_together, "takes 1 MB"),
        (elsewhere, "not in the file"),
        (lambda file: file.create_dataset("x", (6,), np.float32), "not in the file"),
        (
            lambda file: file.create_dataset("x", (6,), np.float32, chunks=(3,)),
            "not in the file as a whole",
        ),
        (lambda file: file.create_dataset("x", data=NUMBERS, compression="lzf"), "packed in a way"),
        (lambda file: file.create_dataset("x", data=NUMBERS, fletcher32=True), "packed in a way"),
        (lambda file: file.create_dataset("x", data=[b"a", b"b"]), "no array of numbers"),
        (lambda file: file.create_dataset("x", data=["é", "b"]), "no array of numbers"),
        (lambda file: file.create_dataset("x", data=np.zeros(3, "f4,i4")), "no array of numbers"),
        (lambda file: file.attrs.__setitem__("x", np.zeros(3, "f4,i4")), "neither text nor numb"),
        (lambda file: file.attrs.__setitem__("x", file.ref), "neither text nor numbers"),
        (lambda file: file.__setitem__("x", h5py.SoftLink("/y")), "not HDF5 of Keras"),
        (lambda file: file.__setitem__("x", h5py.SoftLink("/x")), "not HDF5 of Keras"),
        (lambda file: file.__setitem__("x", h5py.ExternalLink("y", "z")), "not HDF5 of Keras"),
        (lambda file: file.__setitem__("x", np.dtype("f4")), "not HDF5 of Keras"),
    ],
)
def test_what_keras_does_not_write_is_refused(made, fill, told):
    with pytest.raises(ValueError, match=told), rewritten(made(fill), MOST):
        pass


@pytest.mark.parametrize("data", [b"", b"text", b"\x89HDF\r\n\x1a\n", b"CDF\1" + bytes(1000)])
def test_what_is_no_hdf5_is_refused(data):
    with pytest.raises(ValueError, match="not HDF5 of Keras"), rewritten(data, MOST):
        pass
