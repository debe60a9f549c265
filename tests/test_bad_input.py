"""One table of bad (and odd but good) input: what it is, how it enters, and what comes out.

Every case goes through the command's own entry point, in this process; what only a notebook reads
goes through the same library calls under the same handler. `pytest -s` shows every message.
"""

import gzip
import json
import os
import shutil
import struct
import sys
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
from captioning.extras.vectors import read_vectors
from captioning.files import read_tensors, tensor_bytes

SIZES = ["--epochs", "1", "--units", "16", "--heads", "2"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


# ---- how input comes in: (script, folder of the case, what is bad there) -> status, stdout, stderr


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """The good model, loaded once and not for every picture."""
    return Captioner.load(tiny_checkpoint)


@pytest.fixture
def enter(script, monkeypatch, capfd, tiny_checkpoint, photographs, loaded):
    """Functions that hand a bad file or folder to the program, by kind."""
    load = Captioner.load
    monkeypatch.setattr(
        Captioner,
        "load",
        lambda path=None, encoder=None: loaded if path == str(tiny_checkpoint) else load(path),
    )

    def library(call):
        monkeypatch.setattr(sys, "argv", ["notebook"])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(call, "stopped")
        return exit_.value.code, *capfd.readouterr()

    def picture(path):
        """Among several pictures first: the good one beside it is captioned all the same."""
        good = photographs[0]
        command = ["test.py", "--model", tiny_checkpoint, "--image"]
        status, out, err = script(*command, path, good)
        assert status in (0, 1)
        assert out.splitlines()[-1].startswith(f"{good}: ")
        alone = script(*command, path)
        assert alone[0] == 2 * status
        assert alone[2] == err
        return alone

    return {
        "picture": picture,
        "dataset": lambda path: library(lambda: print(read_dataset(path).describe())),
        "vectors": lambda path: library(lambda: print(read_vectors(path, ["dog"]).vectors)),
        "model": lambda path: script("test.py", "--image", photographs[0], "--model", path),
        "train": lambda path: script(
            "train.py", "--data", path, "--output", path.with_name("run"), *SIZES
        ),
        "resume": lambda path: script(
            "train.py", "--data", path, "--output", path.with_name("run"), *SIZES, "--resume"
        ),
        "attention": lambda path: script(
            *("train.py", "--data", path, "--output", path.with_name("run"), *SIZES),
            *("--attention", "grid"),
        ),
        "score": lambda path: script(
            "test.py", "--split", "dev", "--data", path, "--model", tiny_checkpoint
        ),
    }


# ---- pictures -----------------------------------------------------------------------------------


def png_of_zeros(width, height):
    """A grey PNG of zeros, small however large the picture."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (width + 1)), 9)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(path, share=1.0):
    Image.fromarray(PIXELS).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def png(path, pixels=PIXELS, **options):
    Image.fromarray(pixels).save(path, "PNG", **options)


def float_tiff(path, value):
    pixels = np.ones((30, 30), np.float32)
    pixels[3, 4] = value
    Image.fromarray(pixels).save(path, "TIFF")


def cmyk(path, profile):
    options = {"icc_profile": profile} if profile else {}
    Image.fromarray(PIXELS).convert("CMYK").save(path, "JPEG", **options)


def frames(path):
    pictures = [Image.fromarray(PIXELS // n) for n in (1, 2, 3)]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:])


def without_end_marker(path):
    jpeg(path)
    path.write_bytes(path.read_bytes().removesuffix(b"\xff\xd9"))


def odd_exif(path):
    """Orientation 6, and a resolution that is text."""
    entries = struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0")
    entries += struct.pack("<HHI4s", 0x11A, 2, 4, b"72\0\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + entries + bytes(4)
    Image.fromarray(PIXELS).save(path, "JPEG", exif=exif)


def much_text(path):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    png(path, pnginfo=text)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PICTURES = {
    # what it is: (file name, how it is made, what the message says; "" for a good picture)
    "empty file": ("a.jpg", Path.touch, "not a picture"),
    "text as JPEG": ("a.jpg", lambda path: path.write_text("no picture"), "not a picture"),
    "JPEG cut in its header": ("a.jpg", lambda path: jpeg(path, 0.02), "a.jpg"),
    "JPEG without its last bytes": ("a.jpg", lambda path: jpeg(path, 0.97), "damaged picture"),
    "JPEG without its end marker": ("a.jpg", without_end_marker, ""),
    "JPEG with an odd EXIF tag": ("a.jpg", odd_exif, ""),
    "PNG with 2 MB of text": ("a.png", much_text, ""),
    "JPEG cut in the middle": ("a.jpg", lambda path: jpeg(path, 0.6), "damaged picture"),
    "PNG cut in the middle": (
        "a.png",
        lambda path: path.write_bytes(png_of_zeros(800, 800)[:60]),
        "damaged picture",
    ),
    "PDF as PNG": ("a.png", lambda path: path.write_bytes(b"%PDF-1.4\n%%EOF"), "not a picture"),
    "zip as PNG": ("a.png", lambda path: zipfile.ZipFile(path, "w").close(), "not a picture"),
    "SVG": ("a.svg", lambda path: path.write_text("<svg/>"), "not a picture"),
    "decompression bomb": (
        "a.png",
        lambda path: path.write_bytes(png_of_zeros(40_000, 40_000)),
        "too large",
    ),
    "TIFF with NaN": ("a.tif", lambda path: float_tiff(path, np.nan), "pixels are not numbers"),
    "TIFF with infinity": (
        "a.tif",
        lambda path: float_tiff(path, np.inf),
        "pixels are not numbers",
    ),
    "empty folder": ("a.jpg", Path.mkdir, "a folder"),
    "pipe": ("a.jpg", os.mkfifo, "no such file"),
    "dangling link": ("a.jpg", lambda path: path.symlink_to("nowhere"), "no such file"),
    "link to itself": ("a.jpg", lambda path: path.symlink_to(path.name), "a.jpg"),
    "missing": ("a.jpg", lambda path: None, "no such file"),
    "name too long": ("a" * 300 + ".jpg", lambda path: None, "a.jpg"),
    "PNG named .jpg": ("a.jpg", png, ""),
    "animation": ("a.gif", frames, ""),
    "one pixel": ("a.png", lambda path: png(path, PIXELS[:1, :1]), ""),
    "16 bits": ("a.png", lambda path: png(path, PIXELS[..., 0].astype(np.uint16) * 257), ""),
    "CMYK": ("a.jpg", lambda path: cmyk(path, None), ""),
    "CMYK with a profile": ("a.jpg", lambda path: cmyk(path, SRGB), ""),
    "transparent": ("a.png", lambda path: png(path, np.dstack([PIXELS, PIXELS[..., 0]])), ""),
}


# ---- data sets ----------------------------------------------------------------------------------

NAMES = [f"{number}.jpg" for number in range(6)]
ROWS = [f"{name}#{n}\ta dog runs {n} ." for name in NAMES for n in range(2)]


def dataset(rows=ROWS, splits=None, images=NAMES):
    """A maker of a folder in the official layout."""

    def make(folder):
        for name in ("Flicker8k_Dataset", "Flickr8k_text"):
            (folder / name).mkdir(parents=True)
        for name in images:
            png(folder / "Flicker8k_Dataset" / name)
        lines = [row if isinstance(row, bytes) else row.encode() for row in rows]
        (folder / "Flickr8k_text" / "Flickr8k.token.txt").write_bytes(b"\n".join(lines))
        for split, names in (splits or {}).items():
            path = folder / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt"
            path.write_text("\n".join(names))

    return make


def broken_row(row):
    return dataset([*ROWS[:3], row, *ROWS[3:]])


def utf16(folder):
    dataset()(folder)
    path = folder / "Flickr8k_text" / "Flickr8k.token.txt"
    path.write_text(path.read_text(), encoding="utf-16")


def beside_pictures(name, content):
    """A maker of a folder of pictures with one file of captions."""

    def make(folder):
        for image in NAMES:
            (folder / "Images").mkdir(parents=True, exist_ok=True)
            png(folder / "Images" / image)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)

    return make


def karpathy(*images):
    """The same with Karpathy's JSON, one good image first."""
    good = {"filename": NAMES[0], "split": "train", "sentences": [{"raw": "A dog"}]}
    return beside_pictures("dataset_flickr8k.json", {"images": [good, *images]})


def flickr30k(folder):
    beside_pictures("results.csv", "image_name| comment_number| comment\n0.jpg| 4   A dog\n")(
        folder
    )
    (folder / "Images").rename(folder / "flickr30k_images")


DATASETS = {
    # what it is: (maker, status, what is said)
    "no such folder": (lambda folder: None, 2, "no such folder"),
    "a file": (Path.touch, 2, "not a folder"),
    "empty folder": (Path.mkdir, 2, "an empty folder"),
    "pictures without captions": (
        lambda folder: (folder / "Images").mkdir(parents=True),
        2,
        "not a data set of a known layout",
    ),
    "no pictures": (dataset(images=[]), 2, "holds no images"),
    "empty caption file": (dataset([]), 2, "holds no usable caption"),
    "no tab in any row": (dataset([row.replace("\t", " ") for row in ROWS]), 2, "line 1: expected"),
    "captions in UTF-16": (utf16, 2, "UTF-16, expected UTF-8"),
    "captions of other pictures": (dataset(["x.jpg#0\ta dog"]), 2, "none of its captions belongs"),
    "names that lead outside": (
        dataset(["../../etc/passwd#0\ta", "/etc/passwd#0\ta"]),
        2,
        "none of its captions belongs",
    ),
    "a picture in two splits": (
        dataset(splits={"train": NAMES[:4], "dev": NAMES[3:]}),
        2,
        "3.jpg is in two splits",
    ),
    "splits of unknown pictures": (
        dataset(splits={"train": ["x.jpg"], "dev": ["y.jpg"]}),
        2,
        "no entry names an image with captions",
    ),
    "one row without tab": (broken_row("0.jpg#7 no tab"), 0, "line 4: expected image.jpg#0, a tab"),
    "one row without number": (broken_row("0.jpg#x\ta dog"), 0, "line 4: expected image.jpg#0"),
    "one number given twice": (broken_row("0.jpg#0\tanother"), 0, "line 4: '0.jpg#0' has another"),
    "one row of 10 MB": (broken_row("0.jpg#7\t" + "x" * 10_000_000), 0, "line 4: 10,000,008 bytes"),
    "one row not UTF-8": (broken_row(b"0.jpg#7\t\xff\xfe"), 0, "line 4: not UTF-8"),
    "one name outside": (broken_row("../../etc/passwd#0\ta"), 0, "1 caption rows whose image name"),
    "one unknown split entry": (
        dataset(splits={"train": [*NAMES[:4], "x.jpg"], "dev": NAMES[4:]}),
        0,
        "1 train entries without image",
    ),
    "results.csv of broken rows": (flickr30k, 2, "line 2: expected image.jpg| 0| a caption"),
    "JSON cut short": (beside_pictures("dataset_flickr8k.json", '{"images": [{'), 2, "cut short"),
    "JSON of something else": (beside_pictures("dataset_flickr8k.json", {}), 2, "no list 'images'"),
    "JSON without captions": (
        beside_pictures("dataset_flickr8k.json", {"images": [1]}),
        2,
        "image 1: expected filename, split and sentences",
    ),
    "JSON with another split": (
        karpathy({"filename": NAMES[1], "split": "x", "sentences": []}),
        0,
        "image 2: split 'x', expected one of train",
    ),
    "JSON, a picture in two splits": (
        karpathy({"filename": NAMES[0], "split": "val", "sentences": []}),
        2,
        "0.jpg is in two splits, train and dev of",
    ),
    "lines without captions": (beside_pictures("captions.jsonl", "{}\n"), 2, "line 1: expected {"),
    "one line cut short": (
        beside_pictures("captions.jsonl", '{"image": "0.jpg", "caption": "A"}\n{"image'),
        0,
        "line 2: expected {",
    ),
    "one caption": (dataset(ROWS[:1], images=NAMES[:1]), 0, "captions: 1 of 1 images"),
}


# ---- word vectors -------------------------------------------------------------------------------


def packed(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "dog 1 2\n")


def lee(share):
    whole = Path(datapath("lee_fasttext_new.bin")).read_bytes()
    return whole[: int(share * len(whole))]


VECTORS = {
    # what it is: (file name, content, status, what is said)
    "missing": ("x.vec", None, 2, "no such file"),
    "empty": ("x.vec", "", 2, "line 1: announces vectors of 0"),
    "a page": ("x.vec", "<html> <body> Not found", 2, "line 1: announces vectors of 0"),
    "header of another dimension": ("x.vec", "2 3\na 1 2\ndog 1 2\n", 2, "line 3: 2 numbers, exp"),
    "header of more rows": ("x.vec", "9 2\na 1 2\ndog 1 2\n", 2, "line 3: the file ends too early"),
    "uneven rows": ("x.vec", "a 1 2\ndog 1 2 3\n", 2, "line 2: 3 numbers, expected 2"),
    "NaN": ("x.vec", "a 1 2\ndog nan 2\n", 2, "line 2: the vector holds NaN"),
    "no number": ("x.vec", "a 1 2\ndog x 2\n", 2, "line 2: could not convert"),
    "one endless line": ("x.vec", "x" * 3_000_000, 2, "line 1: too long"),
    "none of the words": ("x.vec", "chien 1 2\nchat 3 4\n", 2, "holds none of the 1 words"),
    "words with spaces": ("x.vec", "hot dog 1 2\ndog 3 4\n", 0, "[3., 4.]"),
    "a word twice": ("x.vec", "dog 1 2\ndog 3 4\n", 0, "[1., 2.]"),
    "packed, cut": ("x.vec.gz", gzip.compress(b"dog 1 2\n" * 99)[:20], 2, "damaged or cut short"),
    "two texts in a zip": ("x.zip", lambda p: packed(p, "a.vec", "b.vec"), 2, "found a.vec, b.vec"),
    "model cut short": ("x.bin", lee(0.5), 2, "or cut short"),
    "model cut in its header": ("x.bin", lee(0.0002), 2, "or cut short"),
    "model with a damaged setting": (
        "x.bin",
        lambda p: p.write_bytes(lee(1)[:44] + b"\xff" * 4 + lee(1)[48:]),
        2,
        "damaged FastText model",
    ),
    "text as model": ("x.bin", "dog 1 2\n", 2, "no FastText model"),
    "model in gzip": ("x.bin.gz", "", 2, "unpack it first"),
}


# ---- checkpoints --------------------------------------------------------------------------------


def edited(edit):
    """A maker of a checkpoint whose header and tensors `edit` has changed."""

    def make(path, checkpoint):
        header, tensors = read_tensors(checkpoint, "")
        edit(header, tensors)
        path.write_bytes(tensor_bytes(tensors, header))

    return make


def cut(share):
    return lambda path, checkpoint: path.write_bytes(
        checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)]
    )


def foreign(path, _):
    save_file({"weight": np.zeros(3)}, path, {"format": "pt"})


def huge_header(path, _):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


MODELS = {
    # what it is: (maker, what the message says)
    "missing": (lambda path, _: None, "no such file"),
    "empty": (cut(0), "damaged, or not written by train.py"),
    "cut in the middle": (cut(0.5), "damaged, or not written by train.py"),
    "all but the last byte": (cut(0.9999), "damaged, or not written by train.py"),
    "text": (lambda path, _: path.write_text("no model"), "damaged, or not written by train.py"),
    "a header of exabytes": (huge_header, "damaged, or not written by train.py"),
    "of another program": (foreign, "not written by train.py"),
    "a folder": (lambda path, _: path.mkdir(), "a folder"),
    "a pipe": (lambda path, _: os.mkfifo(path), "no such file"),
    "of a newer version": (edited(lambda h, _: h.update(version=99)), "version 99"),
    "without a tensor": (edited(lambda _, t: t.pop("word_dense/bias")), "not the weights of"),
    "with NaN": (edited(lambda _, t: t["word_dense/bias"].fill(np.nan)), "NaN or infinity"),
    "of absurd width": (
        edited(lambda h, _: h["config"].update(units=2**30)),
        "not a checkpoint of train.py (image_dense",
    ),
    "of absurd length": (
        edited(lambda h, _: h["config"].update(max_words=2**30)),
        "not a checkpoint of train.py (max_words",
    ),
    "with a word that is no text": (
        edited(lambda h, _: h["vocabulary"]["words"].__setitem__(5, "\x1b[2J")),
        "not a valid vocabulary",
    ),
}


# ---- prepared folders ---------------------------------------------------------------------------


def replaced(name, change):
    """A maker that changes the file `name` of a good prepared folder."""

    def make(folder):
        (path,) = folder.glob(name)
        change(path)

    return make


def reworded(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(path):
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def with_nan(path):
    matrix = np.load(path)
    matrix[5, 0] = np.nan
    np.save(path, matrix)


def other_vocabulary(path):
    value = json.loads(path.read_text())
    value["words"][5] += "x"
    path.write_text(json.dumps(value))


def second_encoder(path):
    shutil.copytree(path, path.with_name("other"))


def fewer_images(path):
    value = json.loads(path.read_text())
    value["images"][0] = "x.jpg"
    path.write_text(json.dumps(value))


def other_encoder(path):
    value = json.loads(path.read_text())
    value["encoder"]["fingerprint"] = "f" * 16
    path.write_text(json.dumps(value))


PREPARED = {
    # what it is: (maker, how it comes in, what the message says)
    "missing": (shutil.rmtree, "train", "caption_extraction.ipynb"),
    "of another version": (
        replaced("prepared.json", reworded(version=9)),
        "train",
        "not a description of version 2",
    ),
    "description cut": (replaced("prepared.json", halved), "train", "not JSON"),
    "no dev split": (
        replaced("prepared.json", reworded(splits={"train": 8})),
        "train",
        "has no dev split",
    ),
    "another vocabulary": (
        replaced("vocabulary.json", other_vocabulary),
        "train",
        "made with another vocabulary",
    ),
    "no vocabulary": (
        replaced("vocabulary.json", Path.unlink),
        "train",
        "vocabulary.json: no",
    ),
    "no word vectors": (replaced("embeddings.npy", Path.unlink), "train", "npy: no such file"),
    "word vectors cut": (replaced("embeddings.npy", halved), "train", "cannot be read"),
    "word vectors with NaN": (replaced("embeddings.npy", with_nan), "train", "holds NaN"),
    "word vectors pickled": (replaced("embeddings.npy", pickled), "train", "allow_pickle=False"),
    "no tokens": (
        replaced("tokens/train.safetensors", Path.unlink),
        "train",
        "train.safetensors: no such file",
    ),
    "tokens cut": (
        replaced("tokens/train.safetensors", halved),
        "train",
        "train.safetensors: damaged",
    ),
    "no captions": (
        replaced("captions/dev.jsonl", Path.unlink),
        "train",
        "dev.jsonl: no such",
    ),
    "a caption line cut": (replaced("captions/dev.jsonl", halved), "train", "dev.jsonl: "),
    "no features": (replaced("features", shutil.rmtree), "train", "no features"),
    "features of two encoders": (replaced("features/*", second_encoder), "train", "choose with"),
    "features of other images": (
        replaced("features/*/index.json", fewer_images),
        "train",
        "1 images are not in it",
    ),
    "features cut": (
        replaced("features/*/pooled.npy", halved),
        "train",
        "pooled.npy: cannot be read",
    ),
    "features pickled": (
        replaced("features/*/pooled.npy", pickled),
        "train",
        "pooled.npy: cannot be read",
    ),
    "index no JSON": (replaced("features/*/index.json", halved), "train", "not JSON"),
    "no grid": (
        replaced("features/*/grid.npy", Path.unlink),
        "attention",
        "grid.npy: cannot be read",
    ),
    "of another encoder": (
        replaced("features/*/index.json", other_encoder),
        "score",
        "not with",
    ),
    "state of a run damaged": (
        lambda folder: (
            folder.with_name("run").mkdir(),
            packed(folder.with_name("run") / "resume.safetensors", "a.npy"),
        ),
        "resume",
        "resume.safetensors: damaged",
    ),
}


# ---- all of them --------------------------------------------------------------------------------

CASES = {
    **{f"picture: {name}": ("picture", *case) for name, case in PICTURES.items()},
    **{f"data set: {name}": ("dataset", *case) for name, case in DATASETS.items()},
    **{f"word vectors: {name}": ("vectors", *case) for name, case in VECTORS.items()},
    **{f"checkpoint: {name}": ("model", *case) for name, case in MODELS.items()},
    **{f"prepared: {name}": ("prepared", *case) for name, case in PREPARED.items()},
}


def test_the_table_is_long():
    assert len(CASES) >= 60


def test_batches_beyond_the_data(script, tiny_prepared, tmp_path):
    options = ["--batch-size", "100000", "--output", tmp_path, *SIZES]
    status, out, _ = script("train.py", "--data", tiny_prepared, *options)
    assert status == 0
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_one_or_two_lines(enter, tmp_path, tiny_checkpoint, tiny_prepared, name):
    kind, *case = CASES[name]
    status, place = 2, tmp_path / "input"
    if kind == "picture":
        file, make, said = case
        place = tmp_path / file
        make(place)
        status = 2 if said else 0
    elif kind == "dataset":
        make, status, said = case
        make(place)
    elif kind == "vectors":
        file, content, status, said = case
        place = tmp_path / file
        if callable(content):
            content(place)
        elif content is not None:
            place.write_bytes(content.encode() if isinstance(content, str) else content)
    elif kind == "model":
        make, said = case
        place = tmp_path / "model.safetensors"
        make(place, tiny_checkpoint)
    else:
        make, kind, said = case
        shutil.copytree(tiny_prepared, place)
        make(place)

    found, out, err = enter[kind](place)
    print(f"\n{name}\n    {err.strip() or out.strip()}")
    assert found == status
    if status == 0:
        assert err == ""
        assert said in out
        return
    assert out == ""
    lines = err.strip().splitlines()
    if kind == "resume":  # which first says what it would go on with
        lines = lines[-1:]
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("error: ")
    assert said in err
    assert str(tmp_path) in err  # the file or its folder is named
