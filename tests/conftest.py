"""Tiny data, a tiny encoder and tiny trained models that several test files share."""

import gc
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# tiny models are compiled for longer than they run: half of the time of a tiny training
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

import hypothesis  # noqa: F401 - before gc.freeze(), which scripts call
import numpy as np
import pytest
from PIL import Image

from captioning.datasets import CaptionDataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.features import cache_folder
from captioning.files import json_bytes, write_bytes
from captioning.prepared import write_captions, write_embeddings
from captioning.vocabulary import Vocabulary, tokenize

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

ROOT = Path(__file__).resolve().parent.parent
DIMENSION = 6  # of the word vectors
ENCODER = {
    "name": "synthetic",
    "image_size": 32,
    "grid_shape": [2, 2, 8],
    "fingerprint": "0123456789abcdef",
}

COLOURS = ("red", "blue", "green", "black")
THINGS = ("dog", "ball", "house", "car")
PLACES = ("on grass", "by the sea", "in deep white snow", "at night")


# NumPy 2 warns of how Keras copies TensorFlow's variables
KERAS_COPIES = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", KERAS_COPIES)


def picture_hash(number):
    """A perceptual hash for a picture that does not exist, unlike those of other numbers."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def write_cache(prepared, images, encoder, mirrored=False, failed=(), keep_grid=True):
    """Write a feature cache of random features; the mirrored ones are the same with other sign."""
    rows, columns, channels = encoder["grid_shape"]
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(len(images), rows, columns, channels)).astype(np.float16)
    grid = -grid if mirrored else grid
    for row, image in enumerate(images):
        if image in failed:
            grid[row] = 0
    folder = cache_folder(prepared, encoder["name"], mirrored)
    folder.mkdir(parents=True)
    np.save(folder / "pooled.npy", grid.astype(np.float32).mean((1, 2)))
    if keep_grid:
        np.save(folder / "grid.npy", grid)
    index = {
        "version": 3,
        "complete": True,
        "encoder": encoder,
        "mirrored": mirrored,
        "arrays": ["pooled", "grid"] if keep_grid else ["pooled"],
        "images": images,
        "digests": [None if image in failed else f"{row:016x}" for row, image in enumerate(images)],
        "hashes": [picture_hash(row) for row in range(len(images))],
        "failed": dict.fromkeys(failed, "damaged picture"),
    }
    write_bytes(folder / "index.json", json_bytes(index))
    return folder


@pytest.fixture(scope="session")
def make_prepared():
    """A function that writes a prepared folder: captions, word vectors and synthetic features."""

    def make(
        folder, captions, encoder=ENCODER, mirrored=False, failed=(), keep_grid=True, min_count=1
    ):
        """Write `captions`, split -> image -> captions, to `folder`."""
        everything = {image: texts for split in captions.values() for image, texts in split.items()}
        dataset = CaptionDataset(
            layout="csv",
            image_folder=folder,
            captions=everything,
            splits={split: list(images) for split, images in captions.items()},
            split_origin="drawn",
            summary={},
            problems=[],
        )
        training = [tokenize(text) for texts in captions["train"].values() for text in texts]
        vocabulary = Vocabulary.from_captions(training, min_count=min_count)
        write_captions(folder, dataset, vocabulary, 30, {})
        rng = np.random.default_rng(0)
        vectors = {word: rng.normal(size=DIMENSION).astype("f4") for word in vocabulary.words[4:]}
        matrix = embedding_matrix(vocabulary, WordVectors(DIMENSION, vectors))
        write_embeddings(folder, matrix, "made up")
        for mirror in (False, True) if mirrored else (False,):
            write_cache(folder, list(everything), encoder, mirror, failed, keep_grid)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_captions():
    """Eight training images with three captions each, four dev images: split -> image -> captions.

    What the picture shows is drawn, so there is nothing to learn; it is for mechanics.
    """
    rng = np.random.default_rng(1)

    def describe():
        colour, thing, place = (words[rng.integers(4)] for words in (COLOURS, THINGS, PLACES))
        return f"A {colour} {thing} {place} ."

    sizes = {"train": 8, "dev": 4}
    return {
        split: {f"{split}{i}.jpg": [describe() for _ in range(3)] for i in range(size)}
        for split, size in sizes.items()
    }


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A `.keras` encoder of one convolution, 32 x 32 pixels to a 2 x 2 grid of 8 channels."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((32, 32, 3)),
        keras.layers.Rescaling(1 / 127.5, -1),
        keras.layers.Conv2D(8, 16, strides=16),
    ]
    path = tmp_path_factory.mktemp("encoder") / "tiny.keras"
    keras.Sequential(layers).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory, make_prepared, tiny_captions, tiny_encoder):
    """A prepared folder whose features claim to be of `tiny_encoder`."""
    from captioning.encoders import load_encoder

    folder = tmp_path_factory.mktemp("tiny") / "prepared"
    return make_prepared(folder, tiny_captions, load_encoder(tiny_encoder).to_json())


@pytest.fixture(scope="session")
def train_tiny():
    """A function that runs train.py in this process, with a tiny model and without curves."""

    def call(data, output, *options):
        import train
        from captioning import runs

        tiny = ("--units", 16, "--heads", 2, "--epochs", 2, "--batch-size", 12, "--dropout", 0.2)
        arguments = ["--data", data, "--output", output, *tiny, *options]
        with mock.patch.object(runs, "save_figure"):  # a fifth of the time
            train.main(train.parse_arguments(list(map(str, arguments))))
        return output

    return call


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_prepared, train_tiny):
    """The output folder of two epochs of training, enough to say something of each image."""
    options = ("--batch-size", 3, "--dropout", 0, "--learning-rate", 0.02, "--epochs", 10)
    return train_tiny(tiny_prepared, tmp_path_factory.mktemp("run"), *options)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_run):
    """The best checkpoint of `tiny_run`."""
    return tiny_run / "best.safetensors"


@pytest.fixture(scope="session")
def tiny_grid_checkpoint(tmp_path_factory, tiny_prepared, train_tiny):
    """A checkpoint with attention."""
    output = tmp_path_factory.mktemp("grid")
    train_tiny(tiny_prepared, output, "--attention", "grid", "--epochs", 1)
    return output / "best.safetensors"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Three pictures in a folder, in alphabetical order."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(2)
    paths = [folder / name for name in ("a.png", "b.jpg", "c.png")]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
        small.resize((80, 60)).save(path)
    return paths


@pytest.fixture
def without_meteor(monkeypatch):
    """Leave METEOR out, as where there is no Java: it takes seconds to start."""
    monkeypatch.setattr("captioning.extras.study.meteor.meteor", lambda *_: {})


@pytest.fixture(autouse=True)
def collected():
    """Undo gc.freeze(): Hypothesis asks the collector for all generators."""
    yield
    gc.unfreeze()


@pytest.fixture
def script(monkeypatch, capfd, tmp_path):
    """A function that runs a script in this process, in an empty folder.

    It returns status, stdout and stderr; TensorFlow is not imported anew.
    """
    folder = tmp_path / "working folder"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return exit_.value.code, out, err

    return call


@pytest.fixture
def process(tmp_path):
    """A function that starts a script in a process of its own; what still runs is killed."""
    started = []

    def start(name, *arguments):
        # background jobs of a shell ignore SIGINT, and so do their children
        code = (
            "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"sys.argv = sys.argv[1:]; runpy.run_path({str(ROOT / name)!r}, run_name='__main__')"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        command = [sys.executable, "-c", code, name, *map(str, arguments)]
        running = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, as a terminal's Ctrl-C meets it
        )
        started.append(running)
        return running

    yield start
    for running in started:
        running.kill()
        running.communicate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium with a camera that shows a test picture; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: needs the programs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox no-first-run disable-gpu disable-quic disable-sync"
    switches += " disable-background-networking disable-component-update"
    switches += " use-fake-device-for-media-stream use-fake-ui-for-media-stream"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser
