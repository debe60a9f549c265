"""Several devices, several machines: real processes on this machine train as one device does."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from captioning.checkpoint import Checkpoint
from captioning.extras.scale.distributed import Devices
from captioning.files import read_tensors

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 13  # four per batch: the last batch has one, so one of two workers has nothing to do
PATIENCE = 300  # seconds, for whole processes on a busy machine
EPOCHS = 3
SETTINGS = (
    "--units",
    16,
    "--heads",
    2,
    "--epochs",
    EPOCHS,
    "--batch-size",
    20,
    "--dropout",
    0,
    "--learning-rate",
    0.01,
)
CRITICAL = ("--self-critical-epochs", 1, "--self-critical-rate", 0.001)
CODE = """
import runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
count = int(sys.argv[1])
if count > 1:
    devices = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, devices)
sys.argv = sys.argv[2:]
runpy.run_path("train.py", run_name="__main__")
"""


def has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_prepared, tiny_captions):
    """A prepared folder of 13 training images."""
    texts = list(tiny_captions["train"].values())
    train = {f"train{i}.jpg": texts[i % len(texts)] for i in range(IMAGES)}
    path = tmp_path_factory.mktemp("distributed") / "prepared"
    return make_prepared(path, {"train": train, "dev": tiny_captions["dev"]}, mirrored=True)


@pytest.fixture(scope="module")
def start(folder):
    """A function that starts train.py in a process of its own; what still runs is killed."""
    started = []

    def begin(output, *options, devices=1, tf_config="{}"):
        arguments = ["train.py", "--data", folder, "--output", output, *SETTINGS]
        running = subprocess.Popen(
            [sys.executable, "-c", CODE, *map(str, (devices, *arguments, *options))],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": tf_config},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(running)
        return running

    yield begin
    for running in started:
        running.kill()
        running.communicate()


def free_ports():
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def start_workers(start):
    """A function that starts two workers; `different` are further options of the second."""

    def begin(output, *options, different=()):
        workers = [f"127.0.0.1:{port}" for port in free_ports()]
        return [
            start(
                output,
                *("--distribute", "multi-worker", *options, *further),
                tf_config=json.dumps(
                    {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
                ),
            )
            for index, further in enumerate(((), different))
        ]

    return begin


def end(running, status=0):
    """Wait for a process to end; its stdout and stderr."""
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == status, err
    assert "Traceback" not in err
    return out, err


def curve(output):
    """The history of a run: float (epochs, figures), 0 where there is none."""
    with (output / "history.csv").open() as file:
        rows = [[float(value or 0) for value in row.values()] for row in csv.DictReader(file)]
    return np.array(rows)


def assert_same_run(one, other, tolerance=1e-4):
    """The same curves, weights and optimiser state."""
    np.testing.assert_allclose(curve(one), curve(other), atol=tolerance, rtol=tolerance)
    (_, a), (_, b) = (read_tensors(path / "resume.safetensors", "") for path in (one, other))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=tolerance)


def assert_same_before_critical(one, other):
    """The same epochs before the self-critical one, whose samples each worker draws itself."""
    np.testing.assert_allclose(curve(one)[:EPOCHS], curve(other)[:EPOCHS], atol=1e-4, rtol=1e-4)
    name = f"epoch-{EPOCHS:03}.safetensors"
    models = [Checkpoint.load(path / name).model for path in (one, other)]
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture(scope="module")
def one_device(folder, train_tiny, tmp_path_factory):
    """The output of a run that is not distributed."""
    return train_tiny(folder, tmp_path_factory.mktemp("one"), *SETTINGS, *CRITICAL)


@pytest.fixture(scope="module")
def two_workers(start_workers, tmp_path_factory):
    """The output of an undisturbed run of two workers, with what they printed."""
    output = tmp_path_factory.mktemp("two")
    return output, [end(worker) for worker in start_workers(output, *CRITICAL)]


def test_two_devices_train_as_one(start, one_device, tmp_path):
    out, err = end(start(tmp_path, *CRITICAL, "--distribute", "mirrored", devices=2))
    assert "2 devices in all" in err
    assert len(out.splitlines()) == EPOCHS + 1
    assert_same_run(one_device, tmp_path)


def test_two_workers_train_as_one_device(one_device, two_workers):
    output, ((chief_out, _), (other_out, other_err)) = two_workers
    assert_same_before_critical(one_device, output)
    assert 0 < curve(output)[EPOCHS, 2] <= 1000  # the reward, CIDEr-D x 100
    assert len(chief_out.splitlines()) == EPOCHS + 1
    assert other_out == ""
    assert "best epoch" not in other_err


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_ends_the_other_and_the_run_resumes(
    start_workers, two_workers, one_device, train_tiny, folder, tmp_path, killed
):
    """On two workers, or on one device. `--resume` may always be there, for job managers."""
    workers = start_workers(tmp_path, *CRITICAL, "--resume")
    assert "epoch   1/4" in workers[0].stdout.readline()
    workers[killed].send_signal(signal.SIGKILL)
    _, err = end(workers[1 - killed], 2)
    message = err.splitlines()[-1]
    assert message.startswith(f"error: worker {1 - killed}: another worker is gone (")
    assert message.endswith("); start all of them again with --resume")
    workers[killed].wait()
    if killed:
        (out, err), _ = map(end, start_workers(tmp_path, *CRITICAL, "--resume"))
        assert "resumed after epoch" in err
        assert f"epoch {EPOCHS + 1:>3}/" in out.splitlines()[-1]
        assert_same_run(two_workers[0], tmp_path, 1e-5)
    else:
        train_tiny(folder, tmp_path, *SETTINGS, *CRITICAL, "--resume")
        assert_same_before_critical(one_device, tmp_path)


def test_one_device_drops_out_as_without_a_strategy(folder, train_tiny, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    options = ("--batch-size", 20, "--dropout", 0.5)
    train_tiny(folder, one, *options)
    train_tiny(folder, other, *options, "--distribute", "mirrored")
    assert_same_run(one, other, 1e-5)


def test_settings_that_differ_are_named(start_workers, tmp_path):
    workers = start_workers(tmp_path, different=["--batch-size", 21])
    _, err = end(workers[1], 2)
    assert "error: --batch-size is 21, the chief has 20; start all" in err
    _, err = end(workers[0], 2)
    assert "error: worker 0: another worker is gone" in err


@pytest.mark.parametrize("images", range(5))
def test_parts_make_up_the_whole(images):
    workers = [SimpleNamespace(_worker=which, _workers=3) for which in range(3)]
    parts = [Devices.part(worker, images) for worker in workers]
    assert [n for part in parts for n in range(images)[part]] == list(range(images))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_that_is_too_small_for_the_devices_is_rejected(script, folder, tmp_path):
    options = ("--output", tmp_path, "--batch-size", 4, "--distribute", "mirrored")
    status, _, err = script("train.py", "--data", folder, *options)
    assert status == 2
    assert "--batch-size 4 is too small for 1 devices" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "TypeError"),
        ('{"cluster": {"worker": ["a:1"]}}', "KeyError: 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "not in list"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "not in list"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "not in list"),
    ],
)
def test_a_wrong_tf_config_is_reported(script, folder, tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    options = ("--output", tmp_path / "run", "--distribute", "multi-worker")
    status, out, err = script("train.py", "--data", folder, *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: TF_CONFIG: cannot be used (")
    assert message in err
    assert len(err.splitlines()) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not has_gpu(), reason="no GPU")
@pytest.mark.parametrize("precision", [[], ["--bfloat16"]])
def test_all_gpus_train(folder, train_tiny, tmp_path, precision):
    train_tiny(folder, tmp_path, "--batch-size", 40, "--distribute", "mirrored", *precision)
    assert np.isfinite(curve(tmp_path)).all()
