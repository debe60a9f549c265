"""A checkpoint: one complete file, safe to load from anybody, the same bytes for the same model."""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from captioning.checkpoint import Checkpoint
from captioning.config import Config
from captioning.errors import InputError
from captioning.files import read_tensors, tensor_bytes
from captioning.model import MergeDecoder
from captioning.vocabulary import SPECIALS, Vocabulary

ROOT = Path(__file__).resolve().parent.parent
ENCODER = {"name": "tiny", "image_size": 32, "grid_shape": [2, 3, 4], "fingerprint": "0" * 16}
WORDS = [*SPECIALS, "a", "dog", "runs"]


def make(rnn="gru", attention="none", **settings):
    config = Config(rnn=rnn, attention=attention, units=8, heads=2, max_words=7, **settings)
    shape = (6, 4) if attention == "grid" else (4,)
    model = MergeDecoder(config, len(WORDS), shape, embedding_size=5)
    vocabulary = Vocabulary(WORDS, [1] * len(WORDS))
    return Checkpoint(model, vocabulary, ENCODER, {"epoch": 3, "training pictures": ["0" * 16]})


def logits(checkpoint):
    model = checkpoint.model
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, *model.feature_shape)).astype(np.float32)
    words = rng.integers(4, len(WORDS), (2, 3, 5)).astype(np.int32)
    return np.asarray(model(tf.constant(words), tf.constant(features)))


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("attention", ["none", "grid"])
def test_what_is_saved_is_loaded(tmp_path, rnn, attention):
    saved = make(rnn, attention)
    saved.save(tmp_path / "a.safetensors")
    loaded = Checkpoint.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(logits(loaded), logits(saved))
    assert loaded.model.config == saved.model.config
    assert loaded.vocabulary == saved.vocabulary
    assert (loaded.encoder, loaded.facts) == (saved.encoder, saved.facts)
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_precision_may_be_chosen_on_loading(tmp_path):
    make(bfloat16=True).save(tmp_path / "a.safetensors")
    assert Checkpoint.load(tmp_path / "a.safetensors").model.compute_dtype == "bfloat16"
    exact = Checkpoint.load(tmp_path / "a.safetensors", "float32")
    assert exact.model.compute_dtype == "float32"


def test_the_file_works_in_another_folder_and_process(tiny_checkpoint, photographs, tmp_path):
    copy = shutil.copy(tiny_checkpoint, tmp_path / "copied.safetensors")
    command = [sys.executable, ROOT / "test.py", "--json", "--image", photographs[0], "--model"]
    found = [
        json.loads(subprocess.run([*command, path], capture_output=True, cwd=folder).stdout)
        for path, folder in ((tiny_checkpoint, ROOT), (copy, tmp_path))
    ]
    assert [line.pop("model") for line in found] == [str(tiny_checkpoint), str(copy)]
    assert found[0] == found[1]


def edit(name, value):
    """An edit of the header: `name` is the path of a key."""
    *path, last = name.split("/")

    def change(header, tensors):
        for key in path:
            header = header[key]
        header[last] = value

    return change


def drop(header, tensors):
    del tensors["word_dense/kernel"]


def reshape(header, tensors):
    tensors["word_dense/kernel"] = tensors["word_dense/kernel"].reshape(-1)


def nan(header, tensors):
    tensors["word_dense/bias"][0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("version", 99), "version 99"),
        (edit("config", {}), "not a checkpoint of train.py"),
        (edit("config/units", 2**30), "not a checkpoint of train.py"),
        (edit("config/units", "8"), "units is '8'"),
        (edit("config/rnn", "transformer"), "rnn is 'transformer'"),
        (edit("config/code", "print()"), "not a checkpoint of train.py"),
        (edit("config/max_words", 2**40), "max_words"),
        (edit("config/dropout", float("nan")), "dropout"),
        (edit("encoder/grid_shape", [2**20, 2**20, 2**20]), "not a checkpoint of train.py"),
        (edit("encoder/grid_shape", "x"), "not a checkpoint of train.py"),
        (edit("vocabulary/words", WORDS * 2), "not a valid vocabulary"),
        (edit("vocabulary/words", [*SPECIALS, "a", "b", "\x1b[2J"]), "not a valid vocabulary"),
        (edit("facts", 3), "not a checkpoint of train.py"),
        (drop, "not the weights of"),
        (reshape, "not the weights of"),
        (nan, "NaN or infinity"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_untrusted_file_is_one_clear_error(tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    make().save(path)
    header, tensors = read_tensors(path, "")
    header, tensors = json.loads(json.dumps(header)), {k: v.copy() for k, v in tensors.items()}
    change(header, tensors)
    path.write_bytes(tensor_bytes(tensors, header))
    with pytest.raises(InputError, match=message) as error:
        Checkpoint.load(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) <= 2


def test_files_of_other_kinds_are_rejected(tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"not written by train\.py"):
        Checkpoint.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such file"):
        Checkpoint.load(tmp_path / "gone.safetensors")
    (tmp_path / "old.keras").write_bytes(b"PK\3\4" * 100)
    with pytest.raises(InputError, match=r"run train\.py again"):
        Checkpoint.load(tmp_path / "old.keras")


def test_every_byte_cut_off_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    make().save(path)
    data = path.read_bytes()
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="damaged"):
            Checkpoint.load(path)


def test_the_configuration_of_the_command_line_is_that_of_the_library():
    """Defaults are stated once."""
    parser = argparse.ArgumentParser()
    Config.add_options(parser)
    assert Config.from_options(parser.parse_args([])) == Config()
    assert Config.from_json(dataclasses.asdict(Config())) == Config()
    with pytest.raises(ValueError, match="expected a whole number"):
        Config.from_json({"seed": 10**400})
