"""Killed, interrupted, started twice: what a run leaves behind, and how the next one resumes.

Processes are killed at random writes and calls, never after so many seconds. The seed is printed
(pytest -s, or when a test fails) and may be given: KILLS=30 SEED=1 pytest -s tests/test_killed.py;
see `make torture`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from test_features import PatchMeans, contents, extract, picture
from test_scripts import EPOCH, train

from captioning.checkpoint import Checkpoint
from captioning.errors import InputError
from captioning.files import locked, read_tensors

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
TIMEOUT = 600  # seconds; a test that gets there has failed

# Runs a script until SIGKILL: in the middle of a write, or so many calls after it.
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
def moments(request):
    """When to kill, (number of the write, calls after it): the same twice, then at random."""
    print(f"\n{request.node.name}: KILLS={KILLS} SEED={SEED}")
    chance = random.Random(f"{SEED} {request.node.name}")
    calls = [chance.choice([0, chance.randint(1, 10_000)]) for _ in range(KILLS - 2)]
    return [(1, 0), (3, 0), *((chance.randint(1, 8), number) for number in calls)]


def kill(writes, calls, name, *arguments):
    """Run a script until SIGKILL; returns its stderr."""
    command = [sys.executable, "-c", KILLED, str(writes), str(calls), ROOT / name, *arguments]
    ended = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=TIMEOUT)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    return ended.stderr.decode()


def wait_for(path, process):
    """Wait until there is such a file, for as long as the process runs."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def temporary_files(folder):
    return [path.name for path in folder.glob(".*.captioning-*")]


# ---- the two notebooks ---------------------------------------------------------------------------

EXTRACT = """
import sys
from pathlib import Path
from captioning import features
from test_features import extract
features.SAVE_EVERY = 1
folder, pictures = map(Path, sys.argv[1:])
extract(folder, pictures, sorted(path.name for path in pictures.iterdir()), batch_size=1)
"""

NOTEBOOK = """
import time
from pathlib import Path
from test_features import PatchMeans, extract

class Slow(PatchMeans):
    def encode(self, images):
        if len(self.batches) == 3:
            Path("third").touch()
            time.sleep(3600)
        return super().encode(images)

images = sorted(path.name for path in Path("pictures").iterdir())
try:
    extract(Path("cache"), Path("pictures"), images, Slow(), batch_size=1)
except KeyboardInterrupt:
    Path("raised").touch()
    raise
"""


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, enough for all kills."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10 * KILLS):
        (folder / f"{number:03}.png").write_bytes(picture(number))
    return folder


def check_that_extraction_resumes(folder, pictures, done):
    """It encodes all but `done` pictures, and ends in the bytes of an undisturbed run."""
    names, encoder = sorted(path.name for path in pictures.iterdir()), PatchMeans()
    extract(folder, pictures, names, encoder, batch_size=1)
    assert len(encoder.batches) == len(names) - done
    undisturbed = extract(folder.with_name("undisturbed"), pictures, names, batch_size=1)
    assert contents(folder) == contents(undisturbed.folder)


def test_extraction_killed_again_and_again_ends_in_the_same_bytes(tmp_path, pictures, moments):
    folder, script = tmp_path / "cache", tmp_path / "extract.py"
    script.write_text(EXTRACT)
    for writes, calls in moments:
        kill(writes, calls // 10, script, folder, pictures)  # an epoch has more calls
        assert calls >= 10 or temporary_files(folder)
    done = 0  # and no index, when every run died before it
    if (folder / "index.json").exists():
        index = json.loads((folder / "index.json").read_text())
        done = sum(digest is not None for digest in index["digests"])
        assert not index["complete"]
    check_that_extraction_resumes(folder, pictures, done)


def test_ctrl_c_in_a_notebook_keeps_the_completed_rows(tmp_path, pictures):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbformat.write(notebook, tmp_path / "small.ipynb")
    options = ["--kernel", "python3", "--language", "python"]
    command = [sys.executable, "-m", "papermill", *options, "small.ipynb", "output.ipynb"]
    running = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True)
    wait_for(tmp_path / "third", running)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(TIMEOUT) == 1
    assert (tmp_path / "raised").exists()
    check_that_extraction_resumes(tmp_path / "cache", pictures, done=3)


def test_who_writes_to_a_folder_in_use_is_rejected(tmp_path, pictures, make_prepared):
    captions = {"train": {"000.png": ["A dog"]}}
    for write in (
        lambda: make_prepared(tmp_path / "prepared", captions),
        lambda: extract(tmp_path / "prepared", pictures, ["000.png"]),
    ):
        with locked(tmp_path / "prepared"), pytest.raises(InputError, match="in use by") as caught:
            write()
        assert "another run; wait for it" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path / "prepared") == {}


# ---- training and captioning ---------------------------------------------------------------------


def check_finished_files(folder):
    """Every file under its final name is complete."""
    for path in folder.glob("[!.]*"):
        if path.suffix == ".safetensors":
            assert read_tensors(path, "train.py")[1]
        elif path.suffix == ".csv":
            rows = path.read_text().splitlines()[1:]
            assert [int(row.split(",")[0]) for row in rows] == [n + 1 for n in range(len(rows))]
        else:
            with Image.open(path) as image:
                image.load()


def test_training_killed_again_and_again_ends_in_the_same_bytes(
    script, tiny_prepared, tmp_path, moments
):
    straight, killed, epochs = tmp_path / "straight", tmp_path / "killed", 4 * KILLS
    command = train(tiny_prepared, killed, epochs)
    foreign = [".env.tmpl", ".something.toml.tmpl", ".cache/.best.captioning-1.safetensors"]
    for folder in (killed, straight):
        for name in foreign:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("not ours")
    for writes, calls in moments:
        is_new = not (killed / "resume.safetensors").exists()
        err = kill(writes, calls, *command, "--resume")
        assert ("no completed epoch to resume from" in err) == is_new
        assert calls or len(temporary_files(killed)) == 1  # the earlier ones are removed
        check_finished_files(killed)
    assert script(*command, "--resume")[0] == 0
    assert script(*train(tiny_prepared, straight, epochs))[0] == 0
    assert contents(killed) == contents(straight)
    assert [(killed / name).read_text() for name in foreign] == ["not ours"] * 3
    best = Checkpoint.load(killed / "best.safetensors").facts["epoch"]
    checkpoint = killed / f"epoch-{best:03}.safetensors"
    assert checkpoint.read_bytes() == (killed / "best.safetensors").read_bytes()


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
    command = train(tiny_prepared, tmp_path / "run", epochs=5000)  # more lines than a pipe holds
    running = process(*command)
    wait_for(tmp_path / "run" / ".lock", running)
    if moment == "after it":
        assert EPOCH.fullmatch(running.stdout.readline().rstrip("\n"))
        status, out, err = script(*command)
        assert (status, out) == (2, "")
        assert f"{tmp_path / 'run'}: in use by another run" in err
    stopped = "stopped; the completed epochs are saved: run the same command with --resume"
    assert interrupt(running)[1].splitlines()[-1] == stopped
    check_finished_files(tmp_path / "run")


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
