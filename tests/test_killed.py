"""Killed, interrupted, doubled: what a run leaves behind, and how the next one goes on.

Processes of their own are killed at random moments. The seed is printed (pytest -s, or when a
test fails) and may be given: KILLS=30 SEED=1 pytest -s tests/test_killed.py; see `make torture`.
"""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_features import PatchMeans, contents, fingerprint, wait_until
from test_scripts import EPOCH, train

from captioning import features
from captioning.checkpoint import Checkpoint
from captioning.dataset import read_dataset
from captioning.download import download_flickr8k, work_folder
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.encoders import load_image
from captioning.features import extract_features
from captioning.files import InputError, exclusive
from captioning.prepared import write_captions, write_embeddings
from captioning.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))


@pytest.fixture
def moments(request):
    """Random moments, another sequence for every test."""
    print(f"\n{request.node.name}: KILLS={KILLS} SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


# ---- extraction ---------------------------------------------------------------------------------

ROWS = 400
EXTRACT = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from captioning import features
from test_features import Watched
features.SAVE_SECONDS = 0.05
images = [f"{{number}}.png" for number in range({rows})]
encoder = Watched(seconds=0.002, log={log!r})
features.extract_features({folder!r}, {pictures!r}, images, encoder, batch_size=4)
"""


def test_extraction_killed_again_and_again_ends_in_the_same_bytes(tmp_path, moments):
    pictures, folder, log = tmp_path / "pictures", tmp_path / "cache", tmp_path / "log"
    pictures.mkdir()
    images = [f"{number}.png" for number in range(ROWS)]
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 16, 16, 3), np.uint8)
    for image, values in zip(images, pixels, strict=True):
        Image.fromarray(values).save(pictures / image)
    row_of = {fingerprint(load_image(pictures / name, 16)): n for n, name in enumerate(images)}
    undisturbed = extract_features(tmp_path / "whole", pictures, images, PatchMeans(), batch_size=4)
    code = EXTRACT.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        rows=ROWS,
        log=str(log),
        folder=str(folder),
        pictures=str(pictures),
    )
    kills = repeated = 0
    while kills < KILLS:
        saved = 0
        if (folder / "progress.json").exists():
            saved = json.loads((folder / "progress.json").read_text())["done"]
        log.write_text("")
        running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        lock = folder / ".lock"
        wait_until(lambda: lock.exists() and lock.read_text() == str(running.pid), running)  # noqa: B023
        if moments.random() < 0.5:
            time.sleep(moments.uniform(0, 2 / KILLS))
        else:  # while something is being written, if that is to be met at all
            end = time.monotonic() + 0.5
            while time.monotonic() < end and not any(folder.glob(".progress.*")):
                pass
        running.kill()
        running.communicate()
        kills += running.returncode == -signal.SIGKILL
        rows = [row_of[line] for line in log.read_text().splitlines() if line in row_of]
        assert not rows or min(rows) >= saved, "a row that was saved was computed again"
        assert len(rows) == len(set(rows))
        repeated += len(rows)
        if (folder / "index.json").exists():  # finished: begin anew, there are kills left
            assert contents(folder) == contents(undisturbed.folder)
            (folder / "index.json").unlink()
    extract_features(folder, pictures, images, PatchMeans(), batch_size=4)
    assert contents(folder) == contents(undisturbed.folder)
    print(f"extraction: {kills} kills survived, {repeated} rows encoded by killed runs")


def test_extraction_saves_at_least_every_ten_seconds(tmp_path, monkeypatch):
    """By a clock of its own, on which a batch takes a second."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    images = [f"{number}.png" for number in range(300)]
    for image in images[1:]:
        (tmp_path / image).symlink_to("0.png")
    now, saves = [0.0], []

    class Slow(PatchMeans):
        def forward(self, images):
            now[0] += 1
            return super().forward(images)

    original = features.write_json

    def write(path, *arguments, **keywords):
        saves.append(now[0])
        original(path, *arguments, **keywords)

    monkeypatch.setattr(features.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(features, "write_json", write)
    extract_features(tmp_path / "cache", tmp_path, images, Slow())
    assert len(saves) > 3
    assert max(np.diff([0, *saves])) <= 10


# ---- training -----------------------------------------------------------------------------------

WRITTEN = ("epoch-", "best", "history", "resume", "curves")  # in the order of an epoch's end


def check_finished_files(folder, known):
    """Every file under its final name loads; `known` holds what was looked at before."""
    for path in sorted(folder.glob("[!.]*")):
        stamp = (path.name, path.stat().st_mtime_ns)
        if stamp in known:
            continue
        if path.suffix == ".keras":
            assert Checkpoint.load(path).facts["epoch"] > 0
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as state:
                assert all(len(state[name].tobytes()) for name in state.files)
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(len(rows))]
        else:
            with Image.open(path) as picture:
                picture.load()
        known.add(stamp)


def finished_epochs(folder):
    if not (folder / "resume.npz").exists():
        return 0
    with np.load(folder / "resume.npz", allow_pickle=False) as state:
        return len(json.loads(str(state["facts"]))["history"])


def test_training_killed_again_and_again_ends_in_the_same_weights(
    process, script, tiny_prepared, tmp_path, moments
):
    straight, killed, epochs = tmp_path / "straight", tmp_path / "killed", 10 * KILLS
    kills = torn = 0
    known = set()
    while kills < KILLS:
        done = finished_epochs(killed)
        running = process(*train(tiny_prepared, killed, epochs), "--resume")
        lock = killed / ".lock"
        wait_until(lambda: lock.exists() and lock.read_text() == str(running.pid), running)  # noqa: B023
        if kills % 2 == 0:  # while a file is being written
            prefix = f".{moments.choice(WRITTEN) if kills else 'epoch-'}"
            wait_until(lambda: any(n.startswith(prefix) for n in os.listdir(killed)), running)  # noqa: B023, PTH208
        elif kills % 4 == 1:  # in the middle of the epochs
            assert EPOCH.fullmatch(running.stdout.readline().rstrip("\n"))[1] == str(done + 1)
            time.sleep(moments.uniform(0, 0.5))
        else:  # before them
            time.sleep(moments.uniform(0, 4))
        running.kill()
        out, err = running.communicate()
        assert running.returncode == -signal.SIGKILL, err
        assert "Traceback" not in err
        if done and kills % 4 != 1 and out:
            assert EPOCH.fullmatch(out.splitlines()[0])[1] == str(done + 1)
        kills += 1
        torn += any(killed.glob(".*.tmp*"))
        check_finished_files(killed, known)
    assert script(*train(tiny_prepared, killed, epochs), "--resume")[0] == 0
    assert script(*train(tiny_prepared, straight, epochs))[0] == 0
    assert not list(killed.glob(".*.tmp*"))
    names = [sorted(path.name for path in folder.glob("[!.]*")) for folder in (straight, killed)]
    assert names[0] == names[1]
    for name in (f"epoch-{epochs:03}.keras", "best.keras"):
        one, other = (Checkpoint.load(folder / name).model.weights for folder in (straight, killed))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    rows = [
        [line.split(",")[:-1] for line in (folder / "history.csv").read_text().splitlines()]
        for folder in (straight, killed)
    ]
    assert rows[0] == rows[1]
    print(f"training: {kills} kills survived, {torn} of them while a file was being written")


@pytest.mark.parametrize("left", [["epoch-001.keras"], ["epoch-001.keras", "best.keras"]])
def test_a_run_killed_while_it_saved_its_first_epoch_goes_on(
    script, tiny_run, tiny_prepared, tmp_path, left
):
    for name in left:
        (tmp_path / name).write_bytes((tiny_run / "best.keras").read_bytes())
    status, out, err = script(*train(tiny_prepared, tmp_path, 1), "--resume")
    assert status == 0
    assert "no epoch was finished yet" in err
    assert len(out.splitlines()) == 1


# ---- two at once --------------------------------------------------------------------------------


def test_the_second_of_two_runs_names_the_first(script, tiny_prepared, tmp_path):
    sample = read_dataset(ROOT / "data" / "sample")
    vocabulary = Vocabulary.from_captions([["a", "dog"]], min_count=1)
    matrix = embedding_matrix(vocabulary, WordVectors(2, {"dog": np.ones(2, np.float32)}))
    names = sample.splits["dev"]
    held = work_folder(tmp_path / "data")
    with exclusive(tmp_path / "run"), exclusive(held):
        for write in (
            lambda folder: write_captions(folder, sample, vocabulary, {}),
            lambda folder: write_embeddings(folder, matrix, "made up"),
            lambda folder: extract_features(folder, sample.image_folder, names, PatchMeans()),
            lambda folder: download_flickr8k(tmp_path / "data", "http://127.0.0.1:9/"),
        ):
            with pytest.raises(InputError, match=rf"in use .*\(process {os.getpid()}\); wait"):
                write(tmp_path / "run")
            for path in tmp_path.rglob("*"):  # nothing was written
                assert path.name == ".lock" or path.is_dir()
        status, out, err = script(*train(tiny_prepared, tmp_path / "run"))
        assert (status, out) == (2, "")
        assert f"process {os.getpid()}" in err


SAVE = """
import sys
import numpy as np
from captioning.pictures import save_captioned
for shade in range(10):
    save_captioned(sys.argv[1], [np.full((20, 20, 3), shade, np.uint8)], ["a caption"])
"""


def test_two_runs_that_write_one_picture_leave_it_whole(tmp_path):
    out = tmp_path / "captioned.png"
    both = [
        subprocess.Popen([sys.executable, "-c", SAVE, out], cwd=ROOT, env={**os.environ})
        for _ in range(2)
    ]
    looked = 0
    while any(running.poll() is None for running in both):
        if out.exists():
            with Image.open(out) as picture:
                picture.load()
            looked += 1
        time.sleep(0.005)
    assert [running.returncode for running in both] == [0, 0]
    assert looked
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


# ---- Ctrl-C -------------------------------------------------------------------------------------


def interrupt(running):
    """Send Ctrl-C as a terminal does, to the whole group; the seconds it took, and stderr."""
    assert running.poll() is None, running.communicate()
    sent = time.monotonic()
    os.killpg(running.pid, signal.SIGINT)
    running.wait(timeout=60)
    seconds = time.monotonic() - sent
    _, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err
    print(f"stopped after {seconds:.2f} s:", *err.strip().splitlines()[-2:], sep="\n    ")
    assert seconds < 2
    return err


IN_A_DESTRUCTOR = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from captioning.cli import run

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

def main():
    Interrupted()
    time.sleep(60)

run(main, "stopped; go on with")
"""


def test_ctrl_c_where_nothing_can_be_raised_ends_the_run_all_the_same():
    code = IN_A_DESTRUCTOR.format(root=str(ROOT))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20)
    assert ended.returncode == 130
    assert ended.stderr.startswith(b"\nstopped; go on with")
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("round_", range(max(1, KILLS // 4)))
class TestCtrlC:
    """In the middle of something that takes long, at a random moment of it."""

    def test_in_training(self, process, script, tiny_prepared, tmp_path, moments, round_):
        running = process(*train(tiny_prepared, tmp_path / "run", epochs=5000))
        wait_until((tmp_path / "run" / ".lock").exists, running)
        time.sleep(moments.uniform(0, 12))  # from building the model to some tenth epoch
        err = interrupt(running)
        assert "the finished epochs are saved" in err
        assert err.rstrip().endswith("--epochs 5000 " + " ".join(train("", "")[7:]) + " --resume")
        check_finished_files(tmp_path / "run", set())

    def test_in_extraction(self, process, tmp_path, moments, round_):
        settings = ["--set", "dataset=data/sample", "--set", f"prepared={tmp_path / 'prepared'}"]
        running = process("tools/run_notebook.py", ROOT / "image_extraction.ipynb", *settings)
        cache = tmp_path / "prepared" / "features" / "efficientnet_lite2"
        wait_until((cache / "grid.npy.part").exists, running)
        time.sleep(moments.uniform(0, 3))
        err = interrupt(running)
        assert "what was saved is kept (features: every five seconds), go on with\npython " in err

    def test_in_decoding(self, process, tiny_checkpoint, photographs, tmp_path, moments, round_):
        many = tmp_path / "many"
        many.mkdir()
        for number in range(2000):
            (many / f"{number}.png").symlink_to(photographs[0])
        beam = ["--beam-width", "100"]  # so that one step of TensorFlow takes a while
        running = process("test.py", "--model", tiny_checkpoint, *beam, "--image", many)
        assert running.stdout.readline()
        time.sleep(moments.uniform(0, 2))
        err = interrupt(running)
        assert "what was printed is whole" in err
        assert re.search(r"start again with\npython \S*test\.py --model", err)
