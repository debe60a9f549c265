"""A disk that is full, in every step that writes: a line that says so, and nothing is lost.

The disk is a tmpfs of some kilobytes where the system lets us mount one (root), else a limit on
the size of files.
"""

import os
import re
import resource
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
from PIL import Image
from test_download import TEXT_FILES, noise, server, zipped  # noqa: F401
from test_features import PatchMeans, contents
from test_killed import check_finished_files
from test_scripts import train

from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.dataset import CaptionDataset, main, read_dataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.features import extract_features
from captioning.files import InputError
from captioning.prepared import Prepared, write_captions, write_embeddings
from captioning.vocabulary import Vocabulary, tokenize

FULL = r"cannot be written \((No space left on device|File too large)\); [\d,.]+ MB are needed, "


class SmallDisk:
    """A folder that is a disk of its own, with as little space as is wanted."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        self.is_mounted = (
            bool(shutil.which("mount"))
            and not subprocess.run(command, capture_output=True).returncode
        )
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave(self, kilobytes):
        """Let no more than so many kilobytes be written."""
        if not self.is_mounted:
            size = -1 if kilobytes > 10_000 else 1024 * kilobytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.limits[1]))
            return
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        size = used + max(state.f_frsize, 1024 * kilobytes)  # a page at least
        option = f"remount,size={size}"
        subprocess.run(["mount", "-o", option, str(self.folder)], check=True, capture_output=True)

    def close(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()


def left_overs(folder):
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def refusal(call, *arguments):
    """The message with which a call is refused for want of space; None if it succeeds."""
    try:
        call(*arguments)
    except InputError as error:
        print(error)
        assert re.search(FULL, str(error))
        return str(error)
    return None


def dataset(word, folder):
    captions = {f"{n}.jpg": [f"A {word} runs {n} times ."] * 5 for n in range(300)}
    return CaptionDataset("csv", folder, captions, {"train": list(captions)}, "drawn", {}, [])


def test_prepared_captions_and_vectors(disk):
    folder = disk.folder / "prepared"
    old, new = (dataset(word, disk.folder) for word in ("dog", "cat"))
    vocabularies = [
        Vocabulary.from_captions([tokenize(data.captions["0.jpg"][0]), ["times"]], min_count=1)
        for data in (old, new)
    ]
    vectors = [
        embedding_matrix(
            words, WordVectors(2000, dict.fromkeys(words.words[4:], np.ones(2000, np.float32)))
        )
        for words in vocabularies
    ]
    write_captions(folder, old, vocabularies[0], {})
    write_embeddings(folder, vectors[0], "made up")
    refused = 0
    for kilobytes in (0, 8, 20, 40, 70, 20_000):
        disk.leave(kilobytes)
        message = refusal(write_captions, folder, new, vocabularies[1], {})
        assert not left_overs(folder)
        if message is None:
            break
        refused += 1
        assert str(folder) in message
        prepared = Prepared(folder)
        assert prepared.references("train") == list(old.captions.values())
        assert len(prepared.tokens("train")) == 1500
        assert len(prepared.embeddings()) == len(vocabularies[0])
    assert refused > 1
    assert Prepared(folder).references("train") == list(new.captions.values())

    before = (folder / "embeddings.npy").read_bytes()
    disk.leave(4)
    message = refusal(write_embeddings, folder, vectors[1], "made up")
    assert "embeddings.npy: cannot be written" in message
    assert (folder / "embeddings.npy").read_bytes() == before
    disk.leave(20_000)
    write_embeddings(folder, vectors[1], "made up")
    assert len(Prepared(folder).embeddings()) == len(vocabularies[1])


def test_features(disk, tmp_path):
    pictures, images = tmp_path / "pictures", [f"{n}.png" for n in range(400)]
    pictures.mkdir()
    for image in images:
        Image.new("RGB", (8, 8), (len(image), 0, 0)).save(pictures / image)
    folder = disk.folder / "features"
    for kilobytes in (0, 20):
        disk.leave(kilobytes)
        message = refusal(extract_features, folder, pictures, images, PatchMeans())
        assert "npy.part: cannot be written" in message
        assert contents(folder) == {}
    disk.leave(20_000)
    extract_features(folder, pictures, images, PatchMeans())
    extract_features(tmp_path / "whole", pictures, images, PatchMeans())
    assert contents(folder) == contents(tmp_path / "whole")


def test_training(disk, script, tiny_prepared, tmp_path):
    run, known = disk.folder / "run", set()
    refused = 0
    for kilobytes in (8, 100, 20_000):
        disk.leave(kilobytes)
        status, _, err = script(*train(tiny_prepared, run, 4), "--resume")
        check_finished_files(run, known)
        assert not left_overs(run)
        if status == 0:
            break
        refused += 1
        error = err.strip().splitlines()[-1]
        print(error)
        assert status == 2
        assert error.startswith(f"error: {run}")
        assert re.search(FULL, error)
    assert refused > 1
    disk.leave(20_000)
    straight = tmp_path / "straight"
    assert script(*train(tiny_prepared, straight, 4))[0] == 0
    one, other = (
        Checkpoint.load(folder / "epoch-004.keras").model.weights for folder in (run, straight)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("without_meteor")
def test_drawings_and_reports(disk, script, tiny_checkpoint, tiny_prepared, photographs):
    for name, command in (
        ("out.png", ["--image", photographs[0], "--save"]),
        ("out.html", ["--split", "dev", "--data", tiny_prepared, "--report"]),
    ):
        out = disk.folder / name
        command = ["test.py", "--model", tiny_checkpoint, *command, out]
        out.write_bytes(b"of an earlier run")
        disk.leave(4)
        status, _, err = script(*command)
        print(err)
        assert status == 2
        assert len(err.strip().splitlines()) == 1
        assert err.startswith(f"error: {out}: cannot be written")
        assert re.search(FULL, err)
        assert out.read_bytes() == b"of an earlier run"
        assert not left_overs(disk.folder)
        disk.leave(20_000)
        assert script(*command)[0] == 0
        assert out.stat().st_size > 5000


def test_weights_on_their_way_to_keras(disk, monkeypatch):
    """They are written anew for Keras, to a temporary file."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    disk.leave(200)
    message = refusal(Captioner.load)
    assert "model.weights.h5: cannot be written" in message
    assert "24.83 MB are needed" in message
    assert not list(disk.folder.iterdir())
    disk.leave(40_000)
    assert Captioner.load().has_attention
    assert not list(disk.folder.iterdir())


def test_download(disk, server, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("no_proxy", "*")
    images = {f"Flicker8k_Dataset/{image}.jpg": noise(300_000) for image in "abc"}
    server.files["/Flickr8k_Dataset.zip"] = zipped(images)
    server.files["/Flickr8k_text.zip"] = zipped(TEXT_FILES)
    target = disk.folder / "flickr8k"
    command = ["download", "--to", str(target), "--from", server.url]
    said = []
    for kilobytes in (200, 800, 20_000):
        disk.leave(kilobytes)
        try:
            main(command)
            break
        except InputError as error:
            said.append(str(error))
        assert not target.exists()
    print(*said, sep="\n")
    if disk.is_mounted:  # a limit on the size of one file lets the small ones be unpacked
        assert "Flickr8k_Dataset.zip.part: cannot be written" in said[0]
        assert "unpacked" in said[-1]
        assert "MB are needed" in said[-1]
        resumed = [asked for path, asked in server.requests if path == "/Flickr8k_Dataset.zip"]
        assert any(resumed)  # what had arrived was not fetched again
    assert len(read_dataset(target).captions) == 3
