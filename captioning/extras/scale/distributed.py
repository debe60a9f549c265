"""Training on several devices, and on several machines, with the steps of one device.

Every replica (a device with a copy of the weights) computes its part of the images of each batch.
Gradients and word counts are added up over all replicas, so all make the same update. The chief
alone scores the dev split and writes files.

With `--distribute multi-worker` every machine runs the same command, and TF_CONFIG names them all.
TensorFlow's connections are neither encrypted nor guarded by a password: use a private network.
"""

import argparse
import contextlib
import json
import os
import signal

import numpy as np
import tensorflow as tf

from captioning.errors import InputError, log, reason
from captioning.extras.study.self_critical import SAMPLES
from captioning.features import open_caches
from captioning.files import locked
from captioning.prepared import Prepared
from captioning.startup import quiet_stderr

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
MAY_DIFFER = ("data", "output", "resume", "tensorboard")


class Devices:
    """The replicas of a run, as `captioning.steps.OneDevice`; `worker` 0 of `workers` is chief."""

    def __init__(self, strategy: tf.distribute.Strategy, worker: int, workers: int, settings: dict):
        self._strategy, self._worker, self._workers = strategy, worker, workers
        self._replicas = strategy.num_replicas_in_sync // workers  # in this process
        self._settings, self.is_chief = settings, worker == 0

    def _replica(self, context=None) -> int:
        """The number, in this process, of the replica of `context`, or of the running one."""
        context = context or tf.distribute.get_replica_context()
        everywhere = tf.get_static_value(context.replica_id_in_sync_group)
        return int(everywhere) - self._worker * self._replicas

    @contextlib.contextmanager
    def training(self, output):
        """The context of a run; InputError if a worker is lost, or has other settings."""
        with locked(output) if self.is_chief else contextlib.nullcontext(), self._strategy.scope():
            try:
                for name, theirs in self.from_chief(lambda: self._settings).items():
                    if (mine := self._settings[name]) != theirs:
                        problem = f"{name} is {mine}, the chief has {theirs}"
                        raise InputError(f"{problem}; start all workers with the same settings")
                yield
            except LOST as error:
                problem = f"worker {self._worker}: another worker is gone ({reason(error)})"
                raise InputError(f"{problem}; start all of them again with --resume") from None

    def part(self, images: int) -> slice:
        """Which images of a batch this process computes; none if there are fewer than workers."""
        return slice(*(images * n // self._workers for n in (self._worker, self._worker + 1)))

    def run(self, step, signature: list):
        """Compile a step, a function of the arrays of this process's part of a batch."""
        arrays = len(signature)

        def replica(*parts):
            mine = self._replica() * arrays
            return step(*parts[mine : mine + arrays])

        @tf.function(input_signature=signature * self._replicas, autograph=False)
        def compiled(*parts):
            return self._strategy.run(replica, parts)

        def call(*batch):
            parts = []
            for number in range(self._replicas):
                for array in batch:
                    part = np.array_split(array, self._replicas)[number]
                    no_words = np.zeros((1, *array.shape[1:]), array.dtype)  # one image's
                    parts.append(part if len(part) else no_words)
            local = self._strategy.experimental_local_results
            return tf.nest.map_structure(lambda value: local(value)[0], compiled(*parts))

        return call

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes."""

        def mine(context):
            return tf.constant(values * (self._replica(context) == 0), tf.float64)

        parts = self._strategy.experimental_distribute_values_from_function(mine)
        return self._strategy.reduce("SUM", parts, axis=None).numpy()

    def from_chief(self, compute):
        """The result of `compute`, which only the chief calls; JSON-ready."""
        text = json.dumps(compute()).encode() if self.is_chief else b""
        letters = np.zeros(int(self._sum(np.array([len(text)]))[0]))
        letters[: len(text)] = np.frombuffer(text, np.uint8)
        return json.loads(self._sum(letters).astype(np.uint8).tobytes())

    def synchronise(self, run) -> None:
        """Give every process the chief's history, weights and optimiser state."""
        run.history = self.from_chief(lambda: run.history)
        for variable in run.variables:
            value = np.asarray(variable)
            variable.assign(self._sum(value if self.is_chief else np.zeros_like(value)))


def join(options: argparse.Namespace, prepared: Prepared) -> Devices:
    """Start TensorFlow on the devices of `--distribute`; InputError if TF_CONFIG is unusable."""
    worker, workers = 0, 1
    if options.distribute == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    else:
        worker, workers = _read_tf_config()
        strategy = _wait_for_workers()
    replicas = strategy.num_replicas_in_sync
    log(f"worker {worker} of {workers}, {replicas} devices in all")
    if options.batch_size < SAMPLES * replicas:
        raise InputError(f"--batch-size {options.batch_size} is too small for {replicas} devices")
    shared = {name: value for name, value in vars(options).items() if name not in MAY_DIFFER}
    settings = {f"--{name.replace('_', '-')}": value for name, value in shared.items()}
    settings["the encoder"] = open_caches(options.data, options.encoder)[0].encoder
    settings["the vocabulary"] = prepared.vocabulary.fingerprint
    settings["the size of the splits"] = prepared.splits
    return Devices(strategy, worker, workers, settings)


def _read_tf_config() -> tuple[int, int]:
    """Which of how many workers this process is; the chief comes first."""
    try:
        config = json.loads(os.environ.get("TF_CONFIG", ""))
        cluster, task = config["cluster"], config["task"]
        tasks = [(job, n) for job in ("chief", "worker") for n in range(len(cluster.get(job, [])))]
        return tasks.index((task["type"], int(task["index"]))), len(tasks)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"cannot be used ({type(error).__name__}: {reason(error)})"
        raise InputError(f"TF_CONFIG: {problem}; expected e.g.\n{EXAMPLE}") from None


def _wait_for_workers() -> tf.distribute.MultiWorkerMirroredStrategy:
    """TensorFlow runs no Python while it waits, so Ctrl-C ends the process."""
    log(f"waiting for all workers of {os.environ['TF_CONFIG']}")
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with quiet_stderr():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise InputError(f"TF_CONFIG: TensorFlow cannot start ({reason(error)})") from None
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # TensorFlow ignores it, job managers use it
    return strategy
