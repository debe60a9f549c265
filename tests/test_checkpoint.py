"""One file that works anywhere, and that is refused in one line if it is not what it says."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from captioning.checkpoint import Checkpoint
from captioning.files import InputError
from captioning.model import MergeDecoder, ModelConfig
from captioning.vocabulary import SPECIALS, START, Vocabulary

MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
WORDS = ("a", "dog", "cat", "runs", "sits")
ENCODER = {
    "name": "synthetic",
    "image_size": 32,
    "grid_shape": [2, 2, 6],
    "fingerprint": "0123456789abcdef",
}


def make(attention):
    vocabulary = Vocabulary([*SPECIALS, *WORDS], [0, 9, 9, 1, 5, 4, 3, 2, 1])
    shape = (4, 6) if attention == "grid" else (6,)
    model = MergeDecoder(
        ModelConfig(9, shape, 5, units=8, attention=attention, heads=2),
        np.random.default_rng(0).normal(size=(9, 5)),
    )
    model.build_for_captions()
    return Checkpoint(model, vocabulary, ENCODER, {"epoch": 3, "seen": "Zoë's \N{DOG FACE}"})


@pytest.fixture(scope="module")
def checkpoint():
    return make("grid")


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    checkpoint.save(path)
    return path


def logits(model):
    shape = (2, *model.config.feature_shape)
    features = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    words = tf.constant([[[START, 4, 5]], [[START, 6, 7]]])
    return np.asarray(model(words, tf.constant(features)))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in MEMBERS}


def write(path, contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def crafted(saved, tmp_path):
    """A function that writes the saved checkpoint anew after `edit(config)`."""

    def craft(edit):
        contents = members(saved)
        whole = json.loads(contents["config.json"])
        edit(whole)
        contents["config.json"] = json.dumps(whole)
        return write(tmp_path / "crafted.keras", contents)

    return craft


def refusal(path):
    """The message with which `path` is refused: one or two lines that name it."""
    with pytest.raises(InputError) as error:
        Checkpoint.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) <= 2
    assert len(message) < 600
    return message


@pytest.mark.parametrize("attention", ["none", "grid"])
def test_what_was_saved_is_loaded(attention, tmp_path):
    checkpoint = make(attention)
    checkpoint.save(tmp_path / "model.keras")
    loaded = Checkpoint.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(loaded.model), logits(checkpoint.model))
    assert loaded.model.config == checkpoint.model.config
    assert loaded.vocabulary == checkpoint.vocabulary
    assert loaded.encoder == checkpoint.encoder
    assert loaded.facts == checkpoint.facts


def test_a_copy_works_elsewhere_and_saves_the_same_again(checkpoint, saved, tmp_path):
    copy = tmp_path / "further down" / "renamed.keras"
    copy.parent.mkdir()
    shutil.copy(saved, copy)
    loaded = Checkpoint.load(copy)
    loaded.save(copy)
    np.testing.assert_array_equal(logits(Checkpoint.load(copy).model), logits(checkpoint.model))
    assert [path.name for path in copy.parent.iterdir()] == ["renamed.keras"]


def test_a_checkpoint_may_be_loaded_with_another_precision(saved, checkpoint):
    loaded = Checkpoint.load(saved, "mixed_bfloat16")
    assert loaded.model.compute_dtype == "bfloat16"
    np.testing.assert_allclose(logits(loaded.model), logits(checkpoint.model), atol=0.3)


def test_a_missing_file_is_told(tmp_path):
    assert "no such checkpoint" in refusal(tmp_path / "gone.keras")
    assert "a folder; name a checkpoint in it" in refusal(tmp_path)


def test_damaged_files_are_refused(saved, tmp_path):
    whole, path = saved.read_bytes(), tmp_path / "damaged.keras"
    for content in (
        b"",
        b"\0" * 1000,
        whole[: len(whole) // 2],
        whole[:-30],
        whole[len(whole) // 2 :],
    ):
        path.write_bytes(content)
        assert "damaged" in refusal(path)


def test_flipped_bytes_never_give_another_model(saved, checkpoint, tmp_path):
    whole, path = saved.read_bytes(), tmp_path / "flipped.keras"
    expected, rng, refused = logits(checkpoint.model), np.random.default_rng(0), 0
    for position in rng.integers(0, len(whole), 12):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        try:
            loaded = Checkpoint.load(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
        else:
            np.testing.assert_array_equal(logits(loaded.model), expected)
    assert refused > 6


def test_other_archives_are_refused(saved, tmp_path):
    plain = write(tmp_path / "plain.keras", {"hello.txt": "hello"})
    assert "not a checkpoint of train.py" in refusal(plain)
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(other)
    assert "Sequential" in refusal(other)
    functional = keras.Input((3,))
    functional = keras.Model(functional, keras.layers.Lambda(lambda x: x)(functional))
    functional.save(other)
    assert "Functional" in refusal(other)


@pytest.mark.parametrize("name", ["../planted.txt", "/planted.txt", "assets/x", "config.json "])
def test_further_members_are_refused_and_not_unpacked(saved, tmp_path, name):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = write(folder / "more.keras", {**members(saved), name: "planted"})
    assert "not a checkpoint of train.py" in refusal(path)
    assert not list(tmp_path.glob("**/planted*"))


def test_a_member_named_twice_is_refused(saved, tmp_path):
    path = tmp_path / "twice.keras"
    shutil.copy(saved, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", members(saved)["config.json"])
    assert "not a checkpoint of train.py" in refusal(path)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_missing_member_is_refused(saved, tmp_path, name):
    contents = members(saved)
    del contents[name]
    assert "not a checkpoint of train.py" in refusal(write(tmp_path / "less.keras", contents))


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(saved, tmp_path, name, monkeypatch):
    path = tmp_path / "bomb.keras"
    size = 3_000_000_000 if name.endswith("h5") else 200_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, content in members(saved).items():
            archive.writestr(member, b" " * 1000 if member == name else content)
    # Zeroes of that size take seconds to pack; the directory that claims them does not.
    content = path.read_bytes()
    claimed = content.replace((1000).to_bytes(4, "little"), size.to_bytes(4, "little"))
    assert claimed != content
    path.write_bytes(claimed)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    assert "GB" in refusal(path)


def test_another_version_is_told(crafted):
    def later(whole):
        whole["config"]["description"]["version"] = 2

    message = refusal(crafted(later))
    assert "version 2" in message
    assert "version 1" in message


PLANTED = []


class Planted:
    """What a crafted archive names: to build or to import it leaves a trace."""

    def __init__(self, *_, **__):
        PLANTED.append("built")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        """Leave a trace."""
        return cls()


@pytest.mark.parametrize("key", ["module", "registered_name", "build_config", "dtype"])
def test_code_that_an_archive_names_does_not_run(saved, crafted, tmp_path, monkeypatch, key):
    trace = tmp_path / "trace"
    (tmp_path / "planted_module.py").write_text(f"open({str(trace)!r}, 'w')\nclass Planted: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    keras.saving.register_keras_serializable("planted")(Planted)
    thing = {"class_name": "Planted", "registered_name": "planted>Planted", "config": {}}
    outside = {"class_name": "Planted", "module": "planted_module", "config": {}}

    def edit(whole):
        if key == "module":
            whole["module"], whole["class_name"] = "planted_module", "Planted"
        elif key == "registered_name":
            whole["registered_name"], whole["class_name"] = "planted>Planted", "Planted"
        elif key == "build_config":
            whole["build_config"] = whole["compile_config"] = thing
            whole["config"]["description"]["facts"] = outside
        else:
            whole["config"]["dtype"] = thing

    path = crafted(edit)
    if key == "build_config":  # silently unused
        assert Checkpoint.load(path).facts == outside
    else:
        refusal(path)
    assert PLANTED == []
    assert not trace.exists()
    assert "planted_module" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("units", 999_999),
        ("units", 10**12),
        ("units", 0),
        ("units", 8.0),
        ("units", "8"),
        ("units", True),
        ("units", 9),
        ("embedding_size", 900_000),
        ("vocabulary_size", 10**9),
        ("vocabulary_size", 8),
        ("heads", 0),
        ("rnn", "lambda"),
        ("rnn", ["gru"]),
        ("rnn", "lstm"),
        ("attention", "all"),
        ("attention", None),
        ("word_dropout", -1),
        ("image_dropout", float("nan")),
        ("merge_dropout", "0"),
        ("train_embeddings", "yes"),
        ("feature_shape", [6, 6, 6]),
        ("feature_shape", []),
        ("feature_shape", 6),
        ("feature_shape", "66"),
        ("feature_shape", [10**6] * 2),
        ("extra", 1),
    ],
)
def test_a_description_that_is_no_model_is_refused(crafted, key, value):
    message = refusal(crafted(lambda whole: whole["config"]["config"].update({key: value})))
    assert "not a checkpoint of train.py" in message or "weights do not fit" in message


def test_heads_that_do_not_share_the_units_evenly_are_refused(crafted):
    refusal(crafted(lambda whole: whole["config"]["config"].update(units=12, heads=5)))


@pytest.mark.parametrize("dtype", ["float16", "int8", "x", None, 3, {}, ["float32"]])
def test_another_precision_is_refused(crafted, dtype):
    refusal(crafted(lambda whole: whole["config"].update(dtype=dtype)))


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"tokenizer": "words", "words": 10**9, "counts": 10**9},
        {"tokenizer": "words", "words": [*SPECIALS, "a"], "counts": [0] * 5},
        {"tokenizer": "os.system", "words": [*SPECIALS, *WORDS], "counts": [0] * 9},
        {"tokenizer": "words", "words": [*SPECIALS, *"ABCD", "\x1b[2J"], "counts": [0] * 9},
        [],
        None,
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(crafted, vocabulary):
    refusal(crafted(lambda whole: whole["config"]["description"].update(vocabulary=vocabulary)))


@pytest.mark.parametrize(
    "encoder",
    [
        None,
        "synthetic",
        {},
        {**ENCODER, "name": 7},
        {**ENCODER, "image_size": 10**9},
        {**ENCODER, "image_size": "32"},
        {**ENCODER, "grid_shape": [2, 2]},
        {**ENCODER, "grid_shape": [2, 2, 7]},
        {**ENCODER, "grid_shape": None},
        {**ENCODER, "fingerprint": None},
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(crafted, encoder):
    refusal(crafted(lambda whole: whole["config"]["description"].update(encoder=encoder)))


@pytest.mark.parametrize("config", ["[]", "7", "null", "{}", '{"class_name": "MergeDecoder"}'])
def test_a_configuration_that_is_no_object_is_refused(saved, tmp_path, config):
    refusal(write(tmp_path / "odd.keras", {**members(saved), "config.json": config}))


def test_an_endlessly_nested_configuration_is_refused(saved, tmp_path):
    nested = "[" * 200_000 + "]" * 200_000
    refusal(write(tmp_path / "nested.keras", {**members(saved), "config.json": nested}))


@pytest.fixture
def with_weights(saved, tmp_path):
    """A function that writes the checkpoint anew after `edit(hdf5 file, path of a kernel)`."""

    def craft(edit):
        contents = members(saved)
        weights = io.BytesIO(contents["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            edit(file, "image_dense/vars/0")
        contents["model.weights.h5"] = weights.getvalue()
        return write(tmp_path / "weights.keras", contents)

    return craft


def replaced(value):
    def edit(file, kernel):
        del file[kernel]
        file[kernel] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        replaced(np.zeros((7, 8), np.float32)),
        replaced(np.zeros((8, 6), np.float32)),
        replaced(np.zeros((6, 8), "S3")),
        lambda file, kernel: file.pop(kernel),
        lambda file, kernel: file.pop("image_dense"),
        lambda file, kernel: file.clear(),
    ],
    ids=["wide", "transposed", "text", "no kernel", "no layer", "nothing"],
)
def test_weights_that_do_not_fit_are_refused(with_weights, edit):
    assert "weights do not fit" in refusal(with_weights(edit))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(with_weights, value):
    assert "NaN" in refusal(with_weights(replaced(np.full((6, 8), value, np.float32))))


def test_weights_outside_the_archive_are_not_read(with_weights, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones((6, 8), np.float32).tobytes())

    def external(file, kernel):
        del file[kernel]
        file.create_dataset(kernel, (6, 8), np.float32, external=[(str(secret), 0, 6 * 8 * 4)])

    refusal(with_weights(external))

    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.ones((6, 8), np.float32)

    def linked(file, kernel):
        del file[kernel]
        file[kernel] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel")

    refusal(with_weights(linked))


def test_a_failed_save_leaves_the_old_file(saved, checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "kept.keras"
    shutil.copy(saved, path)
    before = path.read_bytes()

    def fail(temporary):
        Path(temporary).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.model, "save", fail)
    with pytest.raises(InputError, match="free some space"):
        checkpoint.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.keras"]
