"""Killed, interrupted, started twice: what a run leaves behind, and how the next one resumes.

Processes are killed at random writes and calls, never after so many seconds. The seed is printed
(pytest -s, or when a test fails) and may be given: KILLS=30 SEED=1 pytest -s tests/test_killed.py;
see `make torture`.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from test_features import PatchMeans, contents, extract, picture
from test_scripts import EPOCH, train

from captioning.checkpoint import Checkpoint
from captioning.datasets import read_dataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.errors import InputError
from captioning.files import locked, read_tensors
from captioning.prepared import write_captions, write_embeddings
from captioning.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
TIMEOUT = 600  # seconds; a test that gets there has failed

KILLED = """
import os, runpy, signal, sys

writes, calls = int(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]
fsync = os.fsync

def write(file):
    global writes
    writes -= 1
    if writes == 0 and calls == 0:
        os.ftruncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    if writes == 0:
        sys.setprofile(call)
    fsync(file)

def call(*_):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = write
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def chance(request):
    """Random numbers, another sequence for every test."""
    print(f"\n{request.node.name}: KILLS={KILLS} SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def kill(writes, calls, name, *arguments):
    """Run a script until SIGKILL; returns its stderr.

    It comes in the middle of the write of that number, counted from 1, or so many calls later.
    """
    command = [sys.executable, "-c", KILLED, str(writes), str(calls), ROOT / name, *arguments]
    environment = os.environ | {"PYTHONPATH": PATHS, "PYTHONWARNINGS": ""}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env=environment
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def wait_until(condition, process):
    """Wait until `condition()` is true, for as long as the process runs."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def temporary_files(folder):
    return [path.name for path in folder.glob(".*.captioning-*")]


# ---- SIGKILL ------------------------------------------------------------------------------------

EXTRACT = """
import sys
from pathlib import Path
from captioning import features
from test_features import extract
features.SAVE_EVERY = 1
folder, pictures = map(Path, sys.argv[1:])
extract(folder, pictures, sorted(path.name for path in pictures.iterdir()), batch_size=1)
"""


def test_extraction_killed_again_and_again_ends_in_the_same_bytes(tmp_path, chance):
    pictures, folder, script = tmp_path / "pictures", tmp_path / "cache", tmp_path / "extract.py"
    pictures.mkdir()
    images = [f"{number:03}.png" for number in range(10 * KILLS)]
    for number, image in enumerate(images):
        (pictures / image).write_bytes(picture(number))
    script.write_text(EXTRACT)
    undisturbed = extract(tmp_path / "undisturbed", pictures, images, batch_size=1)
    for number in range(KILLS):
        # the first two runs die while they write an array and the index
        writes, calls = chance.randint(1, 5), chance.choice([0, chance.randint(1, 1000)])
        writes, calls = [(2, 0), (3, 0), (writes, calls)][min(number, 2)]
        kill(writes, calls, script, folder, pictures)
        assert calls or temporary_files(folder)
    done = 0  # and no index, when every run died before it
    if (folder / "index.json").exists():
        index = json.loads((folder / "index.json").read_text())
        done = sum(digest is not None for digest in index["digests"])
        assert not index["complete"]
    encoder = PatchMeans()
    extract(folder, pictures, images, encoder, batch_size=1)
    assert len(encoder.batches) == len(images) - done
    assert contents(folder) == contents(undisturbed.folder)
    print(f"extraction: {KILLS} kills survived")


def check_finished_files(folder, known):
    """Every file under its final name is complete; `known` holds what was looked at before."""
    for path in sorted(folder.glob("[!.]*")):
        stamp = (path.name, path.stat().st_mtime_ns)
        if stamp in known:
            continue
        if path.name == "resume.safetensors":
            assert read_tensors(path, "train.py")[1]
        elif path.suffix == ".safetensors":
            assert Checkpoint.load(path).facts["epoch"] > 0
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(len(rows))]
        else:
            with Image.open(path) as image:
                image.load()
        known.add(stamp)


def test_training_killed_again_and_again_ends_in_the_same_bytes(
    script, tiny_prepared, tmp_path, chance
):
    straight, killed, epochs = tmp_path / "straight", tmp_path / "killed", 4 * KILLS
    command, known = train(tiny_prepared, killed, epochs), set()
    foreign = [".env.tmpl", ".something.toml.tmpl", ".cache/.best.captioning-1.safetensors"]
    for name in foreign:
        (killed / name).parent.mkdir(parents=True, exist_ok=True)
        (killed / name).write_text("not ours")
    for number in range(KILLS):
        # the first two runs die in their first epoch: as they write a checkpoint and the history
        writes, calls = chance.randint(1, 8), chance.choice([0, chance.randint(1, 10_000)])
        writes, calls = [(1, 0), (3, 0), (writes, calls)][min(number, 2)]
        is_new = not (killed / "resume.safetensors").exists()
        err = kill(writes, calls, *command, "--resume")
        assert ("no completed epoch to resume from" in err) == is_new
        assert calls or len(temporary_files(killed)) == 1  # the earlier ones are removed
        check_finished_files(killed, known)
    assert script(*command, "--resume")[0] == 0
    assert [(killed / name).read_text() for name in foreign] == ["not ours"] * 3
    for name in foreign[:2]:
        (killed / name).unlink()
    assert script(*train(tiny_prepared, straight, epochs))[0] == 0
    assert contents(killed) == contents(straight)
    best = Checkpoint.load(killed / "best.safetensors").facts["epoch"]
    rows = list(csv.DictReader((killed / "history.csv").read_text().splitlines()))
    assert float(rows[best - 1]["dev_CIDEr-D"]) == max(float(r["dev_CIDEr-D"]) for r in rows)
    checkpoint = killed / f"epoch-{best:03}.safetensors"
    assert checkpoint.read_bytes() == (killed / "best.safetensors").read_bytes()
    print(f"training: {KILLS} kills survived")


# ---- two at once --------------------------------------------------------------------------------


def test_who_writes_to_a_folder_in_use_is_rejected(tmp_path):
    sample = read_dataset(ROOT / "data" / "sample")
    vocabulary = Vocabulary.from_captions([["a", "dog"]], min_count=1)
    matrix = embedding_matrix(vocabulary, WordVectors(2, {"dog": np.ones(2, np.float32)}))
    with locked(tmp_path):
        for write in (
            lambda: write_captions(tmp_path, sample, vocabulary, 30, {}),
            lambda: write_embeddings(tmp_path, matrix, "made up"),
            lambda: extract(tmp_path, sample.image_folder, sample.splits["dev"]),
        ):
            with pytest.raises(InputError, match="in use by another run; wait for it") as caught:
                write()
            assert "\n" not in str(caught.value)
        assert contents(tmp_path) == {}


# ---- Ctrl-C -------------------------------------------------------------------------------------


def interrupt(running):
    """Press Ctrl-C, which a terminal sends to the whole group; returns stdout and stderr."""
    assert running.poll() is None, running.communicate()
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    return out, err


IN_A_DESTRUCTOR = """
import os, signal
from captioning.errors import run

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

run(lambda: Interrupted() and 0, "stopped; start again")
"""


def test_ctrl_c_where_nothing_can_be_raised_ends_the_run_all_the_same():
    command = [sys.executable, "-c", IN_A_DESTRUCTOR]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=TIMEOUT)
    assert (ended.returncode, ended.stderr) == (130, b"\nstopped; start again\n")


@pytest.mark.parametrize("moment", ["before the first epoch", "after it"])
def test_ctrl_c_in_training_and_a_second_run(process, script, tiny_prepared, tmp_path, moment):
    folder = tmp_path / "run"
    running = process(*train(tiny_prepared, folder, epochs=5000))  # more than a pipe holds
    wait_until((folder / ".lock").exists, running)
    if moment == "after it":
        assert EPOCH.fullmatch(running.stdout.readline().rstrip("\n"))
        status, out, err = script(*train(tiny_prepared, folder))
        assert (status, out) == (2, "")
        assert f"{folder}: in use by another run" in err
    _, err = interrupt(running)
    stopped = "stopped; the completed epochs are saved: run the same command with --resume"
    assert err.splitlines()[-1] == stopped
    check_finished_files(folder, set())


def test_ctrl_c_in_captioning(process, tiny_checkpoint, photographs, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(2000):  # more lines than a pipe holds
        (many / f"{number}.png").symlink_to(photographs[0])
    running = process("test.py", "--model", tiny_checkpoint, "--image", many)
    first = running.stdout.readline()
    out, err = interrupt(running)
    stopped = "stopped; the lines that were printed are complete: run the same command again"
    assert err.splitlines()[-1] == stopped
    caption = first.removeprefix(str(many / "0.png"))
    assert {line.partition(".png")[2] for line in out.splitlines()} <= {caption.rstrip("\n")}


NOTEBOOK = """
import time
from pathlib import Path
from test_features import Interrupted, PatchMeans, extract

class Slow(PatchMeans):
    def encode(self, images):
        if len(self.batches) == 3:
            Path("third").touch()
            time.sleep(3600)
        return super().encode(images)

images = [f"{number}.png" for number in range(24)]
try:
    extract(Path("cache"), Path("pictures"), images, Slow(), batch_size=4)
except KeyboardInterrupt:
    Path("raised").touch()
    raise
"""


def test_ctrl_c_in_a_notebook_keeps_the_completed_rows(tmp_path):
    pictures, names = tmp_path / "pictures", [f"{number}.png" for number in range(24)]
    pictures.mkdir()
    for number, name in enumerate(names):
        (pictures / name).write_bytes(picture(number))
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    cells = [nbformat.v4.new_code_cell(NOTEBOOK)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "small.ipynb")
    command = [sys.executable, "-m", "papermill", "small.ipynb", "output.ipynb"]
    environment = os.environ | {"PYTHONPATH": PATHS}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    wait_until((tmp_path / "third").exists, running)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(TIMEOUT) == 1
    assert (tmp_path / "raised").exists()
    encoder = PatchMeans()
    extract(tmp_path / "cache", pictures, names, encoder, batch_size=4)
    assert len(encoder.batches) == 3
    extract(tmp_path / "undisturbed", pictures, names, batch_size=4)
    assert contents(tmp_path / "cache") == contents(tmp_path / "undisturbed")
