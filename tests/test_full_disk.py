"""A disk that is full, in every step that writes: one line says so, and nothing is lost.

A limit on the size of files stands for the disk: the system refuses the same write.
"""

import contextlib
import resource
import shutil

import numpy as np
import pytest
from PIL import Image
from test_training import contents

from captioning.checkpoint import Checkpoint
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.errors import InputError
from captioning.features import FeatureCache, extract_features
from captioning.prepared import Prepared, write_captions, write_embeddings

FULL = r"cannot be written \(File too large\); [\d,.]+ MB are needed, [\d,.]+ MB are free"
FAR = 10**9


@contextlib.contextmanager
def files_of_at_most(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class PatchMeans:
    """An encoder without a network: the means of 64 x 64 patches."""

    name, image_size, grid_shape = "patches", 128, (2, 2, 3)

    def to_json(self):
        shape = list(self.grid_shape)
        return {"name": self.name, "image_size": 128, "grid_shape": shape, "fingerprint": "f" * 16}

    def encode(self, images):
        return images.reshape(-1, 2, 64, 2, 64, 3).mean((2, 4)).astype(np.float32)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(80):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def writers(tmp_path, prepared, checkpoint, pictures):
    """What writes (name -> folder, function, a file that is larger than the limit)."""
    loaded, copy = Checkpoint.load(checkpoint), tmp_path / "prepared"
    vectors = {word: np.ones(100, np.float32) for word in loaded.vocabulary.words}
    matrix = embedding_matrix(loaded.vocabulary, WordVectors(100, vectors))
    names = [f"{number}.png" for number in range(80)]
    return {
        "embeddings": (copy, lambda: write_embeddings(copy, matrix, "made up")),
        "features": (copy, lambda: extract_features(copy / "c", pictures, names, PatchMeans())),
        "checkpoint": (copy, lambda: loaded.save(copy / "a.safetensors")),
    }


@pytest.mark.parametrize("name", ["embeddings", "features", "checkpoint"])
@pytest.mark.parametrize("size", [0, 100, 700])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path, tiny_prepared, tiny_checkpoint, pictures, name, size
):
    shutil.copytree(tiny_prepared, tmp_path / "prepared")
    folder, write = writers(tmp_path, tiny_prepared, tiny_checkpoint, pictures)[name]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with files_of_at_most(size), pytest.raises(InputError, match=FULL) as error:
        write()
    assert len(str(error.value).splitlines()) == 1
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }
    write()  # when there is space again
    if name == "features":
        assert len(FeatureCache.open(folder / "c").images) == 80


def test_captions_that_do_not_fit_leave_the_old_ones(tmp_path, tiny_prepared, tiny_captions):
    from captioning.datasets import CaptionDataset

    folder = shutil.copytree(tiny_prepared, tmp_path / "prepared")
    old = Prepared(folder)
    captions = {name: [*texts, "word " * 500] for name, texts in tiny_captions["train"].items()}
    dataset = CaptionDataset("x", folder, captions, {"train": list(captions)}, "x", {}, [])
    with files_of_at_most(2000), pytest.raises(InputError, match=FULL):
        write_captions(folder, dataset, old.vocabulary, 30, {})
    assert Prepared(folder).references("train") == old.references("train")
    write_captions(folder, dataset, old.vocabulary, 30, {})
    assert len(Prepared(folder).references("train")[0]) == 4


def test_training_on_a_full_disk_keeps_its_epochs_and_resumes(
    tmp_path, tiny_prepared, train_tiny, monkeypatch
):
    from captioning.runs import Run

    whole = train_tiny(tiny_prepared, tmp_path / "whole", "--epochs", 3)
    save = Run.save

    def save_with_little_space(run):
        with files_of_at_most(FAR if len(run.history) < 2 else 5000):
            save(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_with_little_space)
        with pytest.raises(InputError, match=FULL):
            train_tiny(tiny_prepared, tmp_path / "full", "--epochs", 3)
    assert Checkpoint.load(tmp_path / "full" / "epoch-001.safetensors").facts["epoch"] == 1
    train_tiny(tiny_prepared, tmp_path / "full", "--epochs", 3, "--resume")
    assert contents(tmp_path / "full") == contents(whole)
