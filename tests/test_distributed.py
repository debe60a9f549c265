"""Several devices, several machines: real processes on this machine train as one device does."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from captioning.batches import open_caches
from captioning.checkpoint import Checkpoint
from captioning.distributed import Team, _part, fingerprint
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
        rows = [
            [float(v or 0) for k, v in row.items() if k != "minutes"]
            for row in csv.DictReader(file)
        ]
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


def assert_same_fit(one, other):
    """The same epochs before the self-critical one, whose samples each worker draws itself."""
    np.testing.assert_allclose(curve(one)[:EPOCHS], curve(other)[:EPOCHS], atol=1e-4, rtol=1e-4)
    fitted = [Checkpoint.load(path / f"epoch-{EPOCHS:03}.keras").model for path in (one, other)]
    for a, b in zip(*(model.weights for model in fitted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_two_workers_train_as_one_device(one_device, two_workers):
    output, ((chief_out, _), (other_out, other_err)) = two_workers
    assert_same_fit(one_device, output)
    assert 0 < curve(output)[EPOCHS, 2] <= 1000  # the reward, CIDEr-D x 100
    assert len(chief_out.splitlines()) == EPOCHS + 1
    assert other_out == ""
    assert "best epoch" not in other_err
    assert (output / "curves.png").exists()


def test_a_killed_worker_ends_the_others_and_the_run_goes_on(
    folder, start_team, two_workers, one_device, script, tmp_path
):
    """On as many workers, and on one device."""
    team, alone = tmp_path / "team", tmp_path / "alone"
    chief, other = start_team(folder, team, "--resume")  # as a job manager would, always
    assert "epoch   1/4" in chief.stdout.readline()
    other.send_signal(signal.SIGKILL)
    out, err = chief.communicate(timeout=PATIENCE)
    assert chief.returncode == LOST_STATUS
    assert re.search(r"^error: worker 1 \(127\.0\.0\.1:\d+\) is gone, .* with --resume$", err, re.M)
    assert "Traceback" not in err
    finished = 1 + len(out.splitlines())
    assert len(curve(team)) in (finished, finished + 1)  # saved, or saved and told
    shutil.copytree(team, alone)
    (out, err), _ = map(end, start_team(folder, team, "--resume"))
    assert "resumed after epoch" in err
    assert f"epoch {EPOCHS + 1:>3}/" in out.splitlines()[-1]
    assert_same_end(two_workers[0], team, 1e-5)
    status, _, err = script(*command(folder, alone, "--resume"))
    assert status == 0
    assert "resumed after epoch" in err
    assert_same_fit(one_device, alone)


def test_with_one_device_mirrored_says_so_and_goes_on(script, folder, tmp_path, one_device):
    status, _, err = script(*command(folder, tmp_path, "--distribute", "mirrored"))
    assert status == 0
    assert "there is one device alone" in err
    assert_same_end(one_device, tmp_path, 1e-6)


def test_a_team_of_one_drops_out_as_a_single_device(folder, make_trainer, tmp_path):
    import tensorflow as tf

    settings = {"dropout": 0.5, "epochs": 2, "batch_size": 20}
    alone = make_trainer(folder, tmp_path / "alone", **settings)
    team = Team(tf.distribute.MirroredStrategy(["CPU:0"]))
    # make_trainer's arguments for Trainer, as train.py gives them
    both = (
        team.trainer(
            Prepared(folder),
            open_caches(folder),
            alone.model.config,
            alone.config,
            tmp_path / "team",
            embeddings=Prepared(folder).embeddings(),
        ),
        alone,
    )
    for trainer in both:
        assert len(list(trainer.epochs())) == 2
    assert_same_end(tmp_path / "team", tmp_path / "alone", 1e-5)


@pytest.mark.parametrize("images", range(5))
def test_parts_make_up_the_whole(images):
    parts = [_part(images, which, 3) for which in range(3)]
    assert [n for part in parts for n in range(images)[part]] == list(range(images))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_worker_reads_its_part_alone(folder, make_trainer, tmp_path, monkeypatch):
    split = make_trainer(folder, tmp_path).train
    whole = list(split.batches(20, 5, 30, (0, 1)))
    read = []
    original = type(split).features
    monkeypatch.setattr(
        type(split), "features", lambda self, *a: read.append(len(a[0])) or original(self, *a)
    )
    halves = [
        list(split.batches(20, 5, 30, (0, 1), lambda n, w=which: _part(n, w, 2)))
        for which in range(2)
    ]
    assert sum(read) == IMAGES
    for parts, (features, words) in zip(zip(*halves, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), features)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), words)


@pytest.mark.skipif(not has_gpu(), reason="no GPU")
@pytest.mark.parametrize("precision", [[], ["--bfloat16"]])
def test_all_gpus_train(script, folder, tmp_path, precision):
    status, _, _ = script(*command(folder, tmp_path, "--distribute", "mirrored", *precision))
    assert status == 0
    assert np.isfinite(curve(tmp_path)).all()


# --- before TensorFlow starts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("{", "not understood"),
        ("[]", "not understood"),
        ('{"cluster": {"worker": ["a:1"]}}', "not understood"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "host:port"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "count from"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "'chief'"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "'ps'"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "same"),
    ],
)
def test_a_wrong_tf_config_is_told(script, folder, tmp_path, monkeypatch, text, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    status, out, err = script(*command(folder, tmp_path / "run", "--distribute", "multi-worker"))
    assert (status, out) == (2, "")
    assert err.startswith("error: TF_CONFIG")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert not (tmp_path / "run").exists()


def test_the_chief_comes_first(monkeypatch):
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    for kind, index, place in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        task = {"type": kind, "index": str(index)}
        more = {"environment": "cloud", "job": {}}  # as managed services add
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task, **more}))
        assert read_cluster() == (["a:1", "b:1", "c:1"], place)


def meet(addresses, notes, patience):
    """What becomes of workers with `notes`, each in a thread: a Rendezvous or an InputError."""
    results = {}

    def take_part(index, note):
        try:
            results[index] = Rendezvous(addresses, index, note, patience)
        except InputError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=take_part, args=item) for item in notes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def addresses():
    return [f"127.0.0.1:{port}" for port in free_ports(3)]


def test_workers_that_agree_meet_and_part(addresses):
    note = {"--epochs": 3}
    results = meet(addresses, dict.fromkeys(range(3), note), 60)
    assert all(isinstance(result, Rendezvous) for result in results.values()), results
    for result in results.values():
        result.leave()


def test_workers_that_differ_are_told_in_what(addresses):
    notes = {0: {"--epochs": 3, "data": "a"}, 1: {"--epochs": 4, "data": "a"}}
    results = meet(addresses[:2], notes, 60)
    for result in results.values():
        assert f"worker 1 ({addresses[1]}) has --epochs = 4, worker 0" in result
        assert "has 3; start all with the same command" in result


def test_a_missing_worker_is_named_by_all(addresses):
    results = meet(addresses, {0: {}, 1: {}}, 1)
    for result in results.values():
        assert f"worker 2 ({addresses[2]}) did not come within 1 seconds" in result


def test_a_missing_chief_is_named(addresses):
    assert f"worker 0 ({addresses[0]}) was not reached" in meet(addresses, {1: {}}, 0.5)[1]


def test_a_port_in_use_is_told(addresses):
    with socket.create_server(("", int(addresses[0].split(":")[1]))):
        assert "cannot be used" in meet(addresses, {0: {}}, 1)[0]


def test_strangers_at_the_port_do_no_harm(addresses):
    def disturb():
        host, port = addresses[0].split(":")
        for content in (b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"worker": 7, "note": {}}\n'):
            while True:
                try:
                    with socket.create_connection((host, int(port)), timeout=1) as connection:
                        connection.sendall(content)
                    break
                except OSError:
                    time.sleep(0.05)

    stranger = threading.Thread(target=disturb)
    late = threading.Timer(1, lambda: late.results.update(meet(addresses[:2], {1: {}}, 60)))
    late.results = {}
    stranger.start()
    late.start()
    results = meet(addresses[:2], {0: {}}, 60)
    stranger.join()
    late.join()
    results |= late.results
    assert all(isinstance(result, Rendezvous) for result in results.values()), results
    for result in results.values():
        result.leave()


@pytest.mark.parametrize("killed", [0, 1])
def test_whoever_is_killed_the_others_end(addresses, killed):
    """Not only worker 1, and without TensorFlow, which might notice too."""
    code = (
        "import sys, time; from captioning.rendezvous import Rendezvous; "
        "Rendezvous(sys.argv[2:], int(sys.argv[1]), {}, 60); print('met', flush=True); "
        "time.sleep(100)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index), *addresses],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["met\n"] * 3
        workers[killed].kill()
        for index, worker in enumerate(workers):
            _, err = worker.communicate(timeout=30)
            if index != killed:
                assert worker.returncode == LOST_STATUS
                assert "is gone, and no worker can go on without the others" in err
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_fingerprints_tell_prepared_folders_apart(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(Prepared(copy)) == fingerprint(Prepared(folder))
    vectors = np.load(copy / "embeddings.npy")
    np.save(copy / "embeddings.npy", -vectors)
    assert fingerprint(Prepared(copy)) != fingerprint(Prepared(folder))
