"""One table of bad input: what it is, how it enters, and what comes out.

Every case goes through the command's own entry point, in this process. `pytest -s` shows every
message. More: test_datasets.py, test_embeddings.py (what only a notebook reads), test_images.py,
test_checkpoint.py, test_prepared.py, test_features.py.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.captioner import Captioner
from captioning.images import MAX_PIXELS

TRAIN = ["train.py", "--epochs", "1", "--units", "16", "--heads", "2"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


# ---- how input comes in: the path that is bad -> status, stdout, stderr --------------------------


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """The good model, loaded once and not for every picture."""
    return Captioner.load(tiny_checkpoint)


@pytest.fixture
def enter(script, monkeypatch, tiny_checkpoint, photographs, loaded):
    """Functions that hand a bad file or folder to the program, by kind."""
    load, good = Captioner.load, photographs[0]
    monkeypatch.setattr(
        Captioner,
        "load",
        lambda path=None, *_: loaded if path == str(tiny_checkpoint) else load(path),
    )

    def picture(path):
        """Among several pictures first: the good one beside it is captioned all the same."""
        command = ["test.py", "--model", tiny_checkpoint, "--image"]
        status, out, err = script(*command, path, good)
        assert status in (0, 1)
        assert out.splitlines()[-1].startswith(f"{good}: ")
        alone = script(*command, path)
        assert (alone[0], alone[2]) == (2 * status, err)
        return alone

    return {
        "picture": picture,
        "model": lambda path: script("test.py", "--image", good, "--model", path),
        "train": lambda path: script(*TRAIN, "--data", path, "--output", path.with_name("run")),
        "score": lambda path: script(
            "test.py", "--split", "dev", "--data", path, "--model", tiny_checkpoint
        ),
    }


# ---- how it is made: path -> None ----------------------------------------------------------------


def nothing(path):
    pass


def holding(content):
    """A maker of a file with this text."""
    return lambda path: path.write_text(content)


def cut(share):
    """Cut the file to a share of its bytes."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def in_folder(name, change):
    """Change the one file of that name in a folder."""

    def make(folder):
        (path,) = folder.glob(name)
        change(path)

    return make


def json_edited(edit):
    """Change the content of a JSON file."""

    def change(path):
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))

    return change


def saved(kind, share):
    """A maker of the first `share` of a picture file."""

    def make(path):
        Image.fromarray(PIXELS).save(path, kind)
        cut(share)(path)

    return make


def huge(path):
    Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1)).save(path, "PNG")


def float_tiff(value):
    pixels = np.ones((30, 30), np.float32)
    pixels[3, 4] = value
    return lambda path: Image.fromarray(pixels).save(path, "TIFF")


def replaced_by(make):
    def remake(path):
        path.unlink()
        make(path)

    return remake


# ---- the table ----------------------------------------------------------------------------------

DAMAGED = "damaged, or not written by train.py"
BAD = {
    # how it comes in, and what it is: (file name, how it is made, what the message says)
    "picture: empty file": ("a.jpg", Path.touch, "not a picture"),
    "picture: text as JPEG": ("a.jpg", holding("no picture"), "not a picture"),
    "picture: PDF as PNG": ("a.png", holding("%PDF-1.4\n%%EOF"), "not a picture"),
    "picture: JPEG cut in its header": ("a.jpg", saved("JPEG", 0.02), "a.jpg"),
    "picture: JPEG cut in the middle": ("a.jpg", saved("JPEG", 0.6), "damaged picture"),
    "picture: PNG cut in the middle": ("a.png", saved("PNG", 0.5), "damaged picture"),
    "picture: decompression bomb": ("a.png", huge, "too large"),
    "picture: TIFF with NaN": ("a.tif", float_tiff(np.nan), "pixels are not numbers"),
    "picture: TIFF with infinity": ("a.tif", float_tiff(np.inf), "pixels are not numbers"),
    "picture: empty folder": ("a.jpg", Path.mkdir, "a folder without pictures"),
    "picture: pipe": ("a.jpg", os.mkfifo, "no such file"),
    "picture: dangling link": ("a.jpg", lambda path: path.symlink_to("nowhere"), "no such file"),
    "picture: link to itself": ("a.jpg", lambda path: path.symlink_to(path.name), "no such file"),
    "picture: missing": ("a.jpg", nothing, "no such file"),
    "picture: name too long": ("a" * 300 + ".jpg", nothing, "File name too long"),
    "model: missing": ("x", Path.unlink, "no such file; train.py writes it"),
    "model: cut in the middle": ("x", cut(0.5), DAMAGED),
    "model: a header of exabytes": ("x", holding("{" * 9), DAMAGED),  # its size is 8 bytes
    "model: a folder": ("x", replaced_by(Path.mkdir), "a folder; train.py writes"),
    "model: a pipe": ("x", replaced_by(os.mkfifo), "no such file; train.py writes it"),
    "train: no folder": ("in", shutil.rmtree, "no such file; caption_extraction.ipynb"),
    "train: description of another version": (
        "in",
        in_folder("prepared.json", json_edited(lambda value: value.update(version=9))),
        "prepared.json: cannot be used (of another version)",
    ),
    "train: description cut": ("in", in_folder("prepared.json", cut(0.5)), "not JSON"),
    "train: no dev split": (
        "in",
        in_folder("prepared.json", json_edited(lambda value: value["splits"].pop("dev"))),
        "has no dev split",
    ),
    "train: tokens cut": ("in", in_folder("tokens/train.*", cut(0.5)), "safetensors: damaged"),
    "train: no features": ("in", in_folder("features", shutil.rmtree), "no features"),
    "train: features of two encoders": (
        "in",
        in_folder("features/*", lambda path: shutil.copytree(path, path.with_name("other"))),
        "choose with --encoder",
    ),
    "train: features of other images": (
        "in",
        in_folder("features/*/index.json", json_edited(lambda v: v["images"].__setitem__(0, "x"))),
        "1 images are not in it",
    ),
    "train: features cut": ("in", in_folder("features/*/pooled.npy", cut(0.5)), "tiny: damaged"),
    "score: another encoder": (
        "in",
        in_folder("features/*/index.json", json_edited(lambda v: v["encoder"].update(name="x"))),
        "not with",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_is_one_or_two_lines(enter, tmp_path, tiny_checkpoint, tiny_prepared, name):
    file, make, said = BAD[name]
    kind, place = name.split(":")[0], tmp_path / file
    if kind == "model":
        shutil.copy(tiny_checkpoint, place)
    elif kind != "picture":
        shutil.copytree(tiny_prepared, place)
    make(place)
    status, out, err = enter[kind](place)
    print(f"\n{name}\n    {err.strip()}")
    assert (status, out) == (2, "")
    *greeting, first, last = ["", *err.strip().splitlines()]
    error = last if last.startswith("error: ") else f"{first}\n{last}"
    assert error.startswith("error: ")
    assert not any(greeting) or kind == "train"
    assert said in error
    assert str(tmp_path) in error  # the file or its folder is named
