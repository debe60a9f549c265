"""One table of bad (and odd but good) input: what it is, how it enters, and what comes out.

Every case goes through the command's own entry point, in this process; what only a notebook reads
goes through the same library calls under the same handler. `pytest -s` shows every message.
"""

import gzip
import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from gensim.test.utils import datapath
from PIL import Image, ImageCms, PngImagePlugin
from safetensors.numpy import save_file

from captioning.captioner import Captioner
from captioning.datasets import read_dataset
from captioning.errors import run
from captioning.extras.data.vectors import read_vectors
from captioning.files import read_tensors, tensor_bytes

TRAIN = ["train.py", "--epochs", "1", "--units", "16", "--heads", "2"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


# ---- how input comes in: the path that is bad -> status, stdout, stderr --------------------------


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """The good model, loaded once and not for every picture."""
    return Captioner.load(tiny_checkpoint)


@pytest.fixture
def enter(script, monkeypatch, capfd, tiny_checkpoint, photographs, loaded):
    """Functions that hand a bad file or folder to the program, by kind."""
    load, good = Captioner.load, photographs[0]
    monkeypatch.setattr(
        Captioner,
        "load",
        lambda path=None, encoder=None: loaded if path == str(tiny_checkpoint) else load(path),
    )

    def library(call):
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(call, "stopped")
        return exit_.value.code, *capfd.readouterr()

    def picture(path):
        """Among several pictures first: the good one beside it is captioned all the same."""
        command = ["test.py", "--model", tiny_checkpoint, "--image"]
        status, out, err = script(*command, path, good)
        assert status in (0, 1)
        assert out.splitlines()[-1].startswith(f"{good}: ")
        alone = script(*command, path)
        assert (alone[0], alone[2]) == (2 * status, err)
        return alone

    def train(path, *options):
        return script(*TRAIN, "--data", path, "--output", path.with_name("run"), *options)

    return {
        "picture": picture,
        "data set": lambda path: library(lambda: print(read_dataset(path).describe())),
        "word vectors": lambda path: library(lambda: print(read_vectors(path, ["dog"]).vectors)),
        "model": lambda path: script("test.py", "--image", good, "--model", path),
        "train": train,
        "resume": lambda path: train(path, "--resume"),
        "attention": lambda path: train(path, "--attention", "grid"),
        "score": lambda path: script(
            "test.py", "--split", "dev", "--data", path, "--model", tiny_checkpoint
        ),
    }


# ---- how it is made: path -> None ----------------------------------------------------------------


def nothing(path):
    pass


def holding(content):
    """A maker of a file with this text, JSON or bytes."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


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


def png_of_zeros(width, height):
    """A grey PNG of zeros, small however large the picture."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (width + 1)), 9)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(kind, pixels=PIXELS, mode=None, share=1.0, **options):
    """A maker of a picture file, or of the first `share` of it."""

    def make(path):
        Image.fromarray(pixels).convert(mode).save(path, kind, **options)
        cut(share)(path)

    return make


def float_tiff(value):
    pixels = np.ones((30, 30), np.float32)
    pixels[3, 4] = value
    return saved("TIFF", pixels, "F")


def without_end_marker(path):
    saved("JPEG")(path)
    path.write_bytes(path.read_bytes().removesuffix(b"\xff\xd9"))


# orientation 6, and a resolution that is text
ODD_EXIF = b"Exif\0\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0")
ODD_EXIF += struct.pack("<HHI4s", 0x11A, 2, 4, b"72\0\0") + bytes(4)
LONG_TEXT = PngImagePlugin.PngInfo()
LONG_TEXT.add_text("comment", "x" * 2_000_000, zip=True)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(PIXELS // 2)]}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

NAMES = [f"{number}.jpg" for number in range(6)]
ROWS = [f"{name}#{n}\ta dog runs {n} ." for name in NAMES for n in range(2)]


def dataset(rows=ROWS, splits=None, images=NAMES, encoding="utf-8"):
    """A maker of a folder in the official layout."""

    def make(folder):
        (folder / "Flickr8k_text").mkdir(parents=True)
        (folder / "Flicker8k_Dataset").mkdir()
        for name in images:
            saved("PNG")(folder / "Flicker8k_Dataset" / name)
        for split, names in (splits or {}).items():
            path = folder / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt"
            path.write_text("\n".join(names))
        text = "\n".join(rows).encode(encoding, "surrogateescape")
        (folder / "Flickr8k_text" / "Flickr8k.token.txt").write_bytes(text)

    return make


def one_row_more(row):
    return dataset([*ROWS[:3], row, *ROWS[3:]])


def beside_pictures(name, content, images="Images"):
    """A maker of a folder of pictures with one file of captions."""

    def make(folder):
        (folder / images).mkdir(parents=True)
        for image in NAMES:
            saved("PNG")(folder / images / image)
        holding(content)(folder / name)

    return make


def karpathy(**image):
    """The same with Karpathy's JSON, one good image first."""
    good = {"filename": NAMES[0], "split": "train", "sentences": [{"raw": "A dog"}]}
    images = [good, {"sentences": [], **image}]
    return beside_pictures("dataset_flickr8k.json", {"images": images})


def zipped(*names):
    def make(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "dog 1 2\n")

    return make


MODEL = Path(datapath("lee_fasttext_new.bin")).read_bytes()


def edited(edit):
    """Change the header and the tensors of a checkpoint."""

    def make(path):
        header, tensors = read_tensors(path, "")
        edit(header, tensors)
        path.write_bytes(tensor_bytes(tensors, header))

    return make


def replaced_by(make):
    def remake(path):
        path.unlink()
        make(path)

    return remake


def pickled(path):
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def damaged_state(folder):
    folder.with_name("run").mkdir()
    zipped("a.npy")(folder.with_name("run") / "resume.safetensors")


# ---- the table ----------------------------------------------------------------------------------

DAMAGED = "damaged, or not written by train.py"
BAD = {
    # how it comes in, and what it is: (file name, how it is made, what the message says)
    "picture: empty file": ("a.jpg", Path.touch, "not a picture"),
    "picture: text as JPEG": ("a.jpg", holding("no picture"), "not a picture"),
    "picture: PDF as PNG": ("a.png", holding("%PDF-1.4\n%%EOF"), "not a picture"),
    "picture: JPEG cut in its header": ("a.jpg", saved("JPEG", share=0.02), "a.jpg"),
    "picture: JPEG cut in the middle": ("a.jpg", saved("JPEG", share=0.6), "damaged picture"),
    "picture: JPEG without last bytes": ("a.jpg", saved("JPEG", share=0.97), "damaged picture"),
    "picture: PNG cut in the middle": ("a.png", saved("PNG", share=0.5), "damaged picture"),
    "picture: decompression bomb": ("a.png", holding(png_of_zeros(40_000, 40_000)), "too large"),
    "picture: TIFF with NaN": ("a.tif", float_tiff(np.nan), "pixels are not numbers"),
    "picture: TIFF with infinity": ("a.tif", float_tiff(np.inf), "pixels are not numbers"),
    "picture: empty folder": ("a.jpg", Path.mkdir, "a folder without pictures"),
    "picture: pipe": ("a.jpg", os.mkfifo, "no such file"),
    "picture: dangling link": ("a.jpg", lambda path: path.symlink_to("nowhere"), "no such file"),
    "picture: link to itself": ("a.jpg", lambda path: path.symlink_to(path.name), "no such file"),
    "picture: missing": ("a.jpg", nothing, "no such file"),
    "picture: name too long": ("a" * 300 + ".jpg", nothing, "File name too long"),
    "data set: no such folder": ("in", nothing, "no such folder"),
    "data set: a file": ("in", Path.touch, "no such folder"),
    "data set: empty folder": ("in", Path.mkdir, "no data set of a known layout"),
    "data set: no pictures": ("in", dataset(images=[]), "holds no images"),
    "data set: empty caption file": ("in", dataset([]), "holds no usable caption"),
    "data set: no tabs": ("in", dataset(["0.jpg#0 a dog"]), "line 1: expected image.jpg#0, a tab"),
    "data set: UTF-16": ("in", dataset(encoding="utf-16"), "is UTF-16; save it as UTF-8"),
    "data set: other pictures": ("in", dataset(["x.jpg#0\ta"]), "none of its captions belongs"),
    "data set: leads outside": ("in", dataset(["/etc/group#0\ta"]), "none of its captions belongs"),
    "data set: a picture in two splits": (
        "in",
        dataset(splits={"train": NAMES[:4], "dev": NAMES[3:]}),
        "3.jpg is in two splits, train and dev",
    ),
    "data set: splits of unknown pictures": (
        "in",
        dataset(splits={"train": ["x.jpg"], "dev": ["y.jpg"]}),
        "the given splits name no image",
    ),
    "data set: results.csv of broken rows": (
        "in",
        beside_pictures("results.csv", "image_name| n| comment\n0.jpg| 4   A", "flickr30k_images"),
        "line 2: expected image.jpg| 0| a caption",
    ),
    "data set: JSON cut short": (
        "in",
        beside_pictures("dataset_flickr8k.json", '{"images": [{'),
        "incomplete",
    ),
    "data set: JSON of something else": (
        "in",
        beside_pictures("dataset_flickr8k.json", {}),
        "no list 'images'",
    ),
    "data set: JSON without captions": (
        "in",
        beside_pictures("dataset_flickr8k.json", {"images": [1]}),
        "image 1: expected a filename, sentences and a split",
    ),
    "data set: JSON, a picture in two splits": (
        "in",
        karpathy(filename=NAMES[0], split="val"),
        "0.jpg is in two splits, train and dev",
    ),
    "data set: no captions": ("in", beside_pictures("captions.jsonl", "{}\n"), "line 1: expected"),
    "word vectors: missing": ("x.vec", nothing, "no such file"),
    "word vectors: empty": ("x.vec", Path.touch, "line 1: expected a word and its numbers"),
    "word vectors: a page": ("x.vec", holding("<html> <body> No"), "line 1: expected a word and"),
    "word vectors: other dimension": (
        "x.vec",
        holding("2 3\na 1 2\ndog 1 2\n"),
        "line 3: expected 3",
    ),
    "word vectors: more rows": ("x.vec", holding("9 2\na 1 2\nb 1 2\n"), "2 of 9 words, cut short"),
    "word vectors: uneven rows": ("x.vec", holding("a 1 2\ndog 1\n"), "line 2: expected 2 numbers"),
    "word vectors: NaN": ("x.vec", holding("a 1 2\ndog nan 2\n"), "holds NaN"),
    "word vectors: no number": ("x.vec", holding("a 1 2\ndog x 2\n"), "line 2: expected 2 numbers"),
    "word vectors: endless line": ("x.vec", holding("x" * 3_000_000), "line 1: expected a word"),
    "word vectors: French": ("x.vec", holding("chat 1 2\nun 3 4\n"), "holds none of the 1 words"),
    "word vectors: cut": (
        "x.vec.gz",
        holding(gzip.compress(b"a 1 2\n" * 99)[:20]),
        "cannot be read",
    ),
    "word vectors: two texts": ("x.zip", zipped("a.vec", "b.vec"), "holds a.vec, b.vec"),
    "word vectors: model cut": ("x.bin", holding(MODEL[:10_000]), "not a FastText model"),
    "word vectors: model header cut": ("x.bin", holding(MODEL[:20]), "not a FastText model"),
    "word vectors: text as model": ("x.bin", holding("dog 1 2\n"), "not a FastText model"),
    "word vectors: model in gzip": ("x.bin.gz", Path.touch, "unpack it first"),
    "model: missing": ("x", Path.unlink, "no such file; train.py writes it"),
    "model: empty": ("x", cut(0), DAMAGED),
    "model: cut in the middle": ("x", cut(0.5), DAMAGED),
    "model: all but the last byte": ("x", cut(0.9999), DAMAGED),
    "model: text": ("x", holding("no model"), DAMAGED),
    "model: a header of exabytes": ("x", holding(struct.pack("<Q", 2**62) + b"{}"), DAMAGED),
    "model: of another program": (
        "x",
        lambda path: save_file({"weight": np.zeros(3)}, path, {"format": "pt"}),
        "not written by train.py",
    ),
    "model: a folder": ("x", replaced_by(Path.mkdir), "a folder; train.py writes"),
    "model: a pipe": ("x", replaced_by(os.mkfifo), "no such file; train.py writes it"),
    "model: newer version": ("x", edited(lambda h, _: h.update(version=99)), "version 99"),
    "model: no bias": ("x", edited(lambda _, t: t.pop("word_dense/bias")), "not the weights of"),
    "model: NaN": ("x", edited(lambda _, t: t["word_dense/bias"].fill(np.nan)), "NaN or infinity"),
    "model: of absurd width": (
        "x",
        edited(lambda h, _: h["config"].update(units=2**30)),
        "its tensors are not the weights of its configuration",
    ),
    "model: of absurd length": (
        "x",
        edited(lambda h, _: h["config"].update(max_words=2**30)),
        "not a checkpoint of train.py (max_words",
    ),
    "model: with a word that is no text": (
        "x",
        edited(lambda h, _: h["vocabulary"]["words"].__setitem__(5, "\x1b[2J")),
        "not a valid vocabulary",
    ),
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
    "train: another vocabulary": (
        "in",
        in_folder("vocabulary.json", json_edited(lambda value: value["words"].append("x"))),
        "vocabulary",
    ),
    "train: no vocabulary": ("in", in_folder("vocabulary.json", Path.unlink), "no such file"),
    "train: no word vectors": ("in", in_folder("embeddings.npy", Path.unlink), "No such file"),
    "train: word vectors cut": ("in", in_folder("embeddings.npy", cut(0.5)), "npy: cannot be used"),
    "train: word vectors pickled": ("in", in_folder("embeddings.npy", pickled), "cannot be used"),
    "train: no tokens": ("in", in_folder("tokens/train.*", Path.unlink), "no such file"),
    "train: tokens cut": ("in", in_folder("tokens/train.*", cut(0.5)), "safetensors: damaged"),
    "train: no captions": ("in", in_folder("captions/dev.jsonl", Path.unlink), "No such file"),
    "train: captions cut": ("in", in_folder("captions/dev.jsonl", cut(0.5)), "dev.jsonl: "),
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
    "train: features pickled": ("in", in_folder("features/*/pooled.npy", pickled), "tiny: damaged"),
    "train: index cut": ("in", in_folder("features/*/index.json", cut(0.5)), "not JSON"),
    "attention: no grid": ("in", in_folder("features/*/grid.npy", Path.unlink), "No such file"),
    "score: another encoder": (
        "in",
        in_folder("features/*/index.json", json_edited(lambda v: v["encoder"].update(name="x"))),
        "not with",
    ),
    "resume: damaged state": ("in", damaged_state, "resume.safetensors: damaged"),
}
GOOD = {
    # how it comes in, and what it is: (file name, how it is made, what the output says)
    "picture: JPEG without its end marker": ("a.jpg", without_end_marker, ""),
    "picture: JPEG with an odd EXIF tag": ("a.jpg", saved("JPEG", exif=ODD_EXIF), ""),
    "picture: PNG with 2 MB of text": ("a.png", saved("PNG", pnginfo=LONG_TEXT), ""),
    "picture: PNG named .jpg": ("a.jpg", saved("PNG"), ""),
    "picture: animation": ("a.gif", saved("GIF", **FRAMES), ""),
    "picture: one pixel": ("a.png", saved("PNG", PIXELS[:1, :1]), ""),
    "picture: 16 bits": ("a.png", saved("PNG", PIXELS[..., 0].astype(np.uint16) * 257), ""),
    "picture: CMYK": ("a.jpg", saved("JPEG", mode="CMYK"), ""),
    "picture: CMYK with a profile": ("a.jpg", saved("JPEG", mode="CMYK", icc_profile=SRGB), ""),
    "picture: transparent": ("a.png", saved("PNG", np.dstack([PIXELS, PIXELS[..., 0]])), ""),
    "data set: one broken row": (
        "in",
        one_row_more("0.jpg#x\ta dog"),
        "line 4: expected image.jpg#0, a tab",
    ),
    "data set: one long row": ("in", one_row_more("0.jpg#7\t" + "x" * 10**7), "captions: 13 of 6"),
    "data set: not UTF-8": ("in", one_row_more("0.jpg#7\t\udcff\udcfe"), "line 4: expected image"),
    "data set: one name outside": (
        "in",
        one_row_more("../../etc/passwd#0\ta"),
        "1 caption rows whose image is missing",
    ),
    "data set: one unknown split entry": (
        "in",
        dataset(splits={"train": [*NAMES[:4], "x.jpg"], "dev": NAMES[4:]}),
        "1 train entries without image",
    ),
    "data set: JSON with another split": (
        "in",
        karpathy(filename=NAMES[1], split="x"),
        "image 2: expected a filename, sentences and a split (train",
    ),
    "data set: one line cut short": (
        "in",
        beside_pictures("captions.jsonl", '{"image": "0.jpg", "caption": "A"}\n{"image'),
        "line 2: expected {",
    ),
    "data set: one caption": ("in", dataset(ROWS[:1], images=NAMES[:1]), "captions: 1 of 1 images"),
    "word vectors: words with spaces": ("x.vec", holding("hot dog 1 2\ndog 3 4\n"), "[3., 4.]"),
    "word vectors: a word twice": ("x.vec", holding("dog 1 2\ndog 3 4\n"), "[1., 2.]"),
    "train: batches beyond the data": ("in", nothing, "epoch   1/1"),
}


@pytest.fixture
def outcome(enter, tmp_path, tiny_checkpoint, tiny_prepared):
    """A function: a case of the table -> status, stdout, stderr."""

    def try_out(name, file, make):
        kind, place = name.split(":")[0], tmp_path / file
        if kind == "model":
            shutil.copy(tiny_checkpoint, place)
        elif file == "in" and kind != "data set":
            shutil.copytree(tiny_prepared, place)
        make(place)
        status, out, err = enter[kind](place)
        print(f"\n{name}\n    {err.strip() or out.strip()}")
        return status, out, err

    return try_out


@pytest.mark.parametrize("name", BAD)
def test_the_error_is_one_or_two_lines(outcome, tmp_path, name):
    *case, said = BAD[name]
    status, out, err = outcome(name, *case)
    assert (status, out) == (2, "")
    *greeting, first, last = ["", *err.strip().splitlines()]
    error = last if last.startswith("error: ") else f"{first}\n{last}"
    assert error.startswith("error: ")
    assert not any(greeting) or name.startswith(("train", "resume", "attention"))
    assert said in error
    assert str(tmp_path) in error  # the file or its folder is named


@pytest.mark.parametrize("name", GOOD)
def test_odd_input_is_read(outcome, name):
    *case, said = GOOD[name]
    status, out, err = outcome(name, *case)
    assert status == 0
    assert said in out
    assert err == "" or name.startswith("train")
