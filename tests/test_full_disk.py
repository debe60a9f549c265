"""A disk that is full, in every step that writes: one line says so, and nothing is lost.

A limit on the size of files stands for the disk: the system refuses the same write.
"""

import contextlib
import resource
import shutil

import numpy as np
import pytest
from test_features import PatchMeans, contents, extract, picture

from captioning import features
from captioning.checkpoint import Checkpoint
from captioning.datasets import CaptionDataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.errors import InputError
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


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(80):
        (folder / f"{number:02}.png").write_bytes(picture(number))
    return folder


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["embeddings", "features", "checkpoint"])
@pytest.mark.parametrize("size", [0, 100, 700])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path, tiny_prepared, tiny_checkpoint, pictures, name, size
):
    folder = shutil.copytree(tiny_prepared, tmp_path / "prepared")
    loaded = Checkpoint.load(tiny_checkpoint)
    vectors = {word: np.ones(100, np.float32) for word in loaded.vocabulary.words}
    matrix = embedding_matrix(loaded.vocabulary, WordVectors(100, vectors))
    images = sorted(path.name for path in pictures.iterdir())
    write = {
        "embeddings": lambda: write_embeddings(folder, matrix, "made up"),
        "features": lambda: extract(folder / "cache", pictures, images),
        "checkpoint": lambda: loaded.save(folder / "a.safetensors"),
    }[name]
    before = files(folder)
    with files_of_at_most(size), pytest.raises(InputError, match=FULL) as error:
        write()
    assert len(str(error.value).splitlines()) == 1
    assert files(folder) == before
    write()  # when there is space again
    if name == "features":
        assert features.FeatureCache.open(folder / "cache").images == images


def test_a_disk_that_fills_up_during_an_extraction_loses_nothing(tmp_path, pictures, monkeypatch):
    class FillsTheDisk(PatchMeans):
        def encode(self, images):
            if len(self.batches) == 3:
                disk.enter_context(files_of_at_most(100))
            return super().encode(images)

    monkeypatch.setattr(features, "SAVE_EVERY", 1)
    monkeypatch.setattr(features, "tqdm", lambda batches, **_: batches)  # it writes to a file here
    images, encoder = sorted(path.name for path in pictures.iterdir()), PatchMeans()
    with contextlib.ExitStack() as disk, pytest.raises(InputError, match=rf"index\.json: {FULL}"):
        extract(tmp_path / "cache", pictures, images, FillsTheDisk())
    extract(tmp_path / "cache", pictures, images, encoder)
    assert len(encoder.batches) == 17  # of 20
    extract(tmp_path / "whole", pictures, images)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_captions_that_do_not_fit_leave_the_old_ones(tmp_path, tiny_prepared, tiny_captions):
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
