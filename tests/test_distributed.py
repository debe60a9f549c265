"""Several devices, several machines: real processes on this machine train as one device does."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from captioning.distributed import _part, fingerprint
from captioning.files import InputError
from captioning.prepared import Prepared
from captioning.rendezvous import LOST_STATUS, Rendezvous, read_cluster

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 13  # four a batch: the last batch has one, and one of two workers nothing to do
PATIENCE = 300  # seconds, for whole processes on a busy machine
EPOCHS = 3
CODE = """
import runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
count = int(sys.argv[1])
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
sys.argv = sys.argv[2:]
sys.path.insert(0, {root!r})
runpy.run_path({script!r}, run_name="__main__")
""".format(root=str(ROOT), script=str(ROOT / "train.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_prepared, tiny_captions):
    """A prepared folder of 13 training images."""
    texts = list(tiny_captions["train"].values())
    train = {f"train{i}.jpg": texts[i % len(texts)] for i in range(IMAGES)}
    path = tmp_path_factory.mktemp("distributed") / "prepared"
    return make_prepared(path, {"train": train, "dev": tiny_captions["dev"]}, mirrored=True)


def command(folder, output, *further):
    return [
        *("train.py", "--data", folder, "--output", output, "--epochs", EPOCHS),
        *("--self-critical-epochs", 1, "--self-critical-rate", 0.001),
        *("--batch-size", 20, "--units", 16, "--dropout", 0, "--learning-rate", 0.01),
        *further,
    ]


@pytest.fixture(scope="module")
def start():
    """A function that starts train.py in a process of its own; what still runs is killed."""
    started = []

    def begin(arguments, devices=1, **environment):
        running = subprocess.Popen(
            [sys.executable, "-c", CODE, str(devices), *map(str, arguments)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(running)
        return running

    yield begin
    for running in started:
        running.kill()
        running.communicate()


def free_ports(count):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def config(ports, index):
    workers = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": workers}, "task": task})


@pytest.fixture(scope="module")
def start_team(start):
    """A function that starts two workers."""

    def begin(folder, output, *further):
        ports = free_ports(2)
        return [
            start(
                command(folder, output, "--distribute", "multi-worker", *further),
                TF_CONFIG=config(ports, index),
            )
            for index in range(2)
        ]

    return begin


def end(running):
    """Wait for a process to end well; its stdout and stderr."""
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    assert "Traceback" not in err
    return out, err


def curve(output):
    """The history of a run: float (epochs, figures), where there is none 0; without minutes."""
    with (output / "history.csv").open() as file:
        rows = [[float(v or 0) for k, v in row.items() if k != "minutes"] for row in csv.DictReader(file)]
    return np.array(rows)


def state(output):
    with np.load(output / "resume.npz") as saved:
        return [saved[name] for name in saved.files if name != "facts"]


def assert_same_end(one, other, tolerance):
    np.testing.assert_allclose(curve(one), curve(other), atol=tolerance, rtol=tolerance)
    for a, b in zip(state(one), state(other), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.fixture(scope="module")
def one_device(folder, start, tmp_path_factory):
    """The output of a run on one device, which is not distributed at all."""
    output = tmp_path_factory.mktemp("one")
    end(start(command(folder, output)))
    return output


@pytest.fixture(scope="module")
def two_workers(folder, start_team, tmp_path_factory):
    """The output of an undisturbed run of two workers, with what they printed."""
    output = tmp_path_factory.mktemp("two")
    return output, [end(worker) for worker in start_team(folder, output)]


def test_two_devices_train_as_one(folder, start, one_device, tmp_path):
    out, _ = end(start(command(folder, tmp_path, "--distribute", "mirrored"), devices=2))
    assert len(out.splitlines()) == EPOCHS + 1
    assert_same_end(one_device, tmp_path, 1e-4)


def test_two_workers_train_as_one_device(one_device, two_workers):
    output, ((chief_out, _), (other_out, _)) = two_workers
    assert_same_end(one_device, output, 1e-4)
    assert len(chief_out.splitlines()) == EPOCHS + 1
    assert other_out == ""
    assert (output / "curves.png").exists()
