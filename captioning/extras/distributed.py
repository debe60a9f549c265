"""Training on several devices, and on several machines, with the steps of one device.

Every replica (a device with a copy of the weights) computes its part of the images of each batch.
The gradients of the summed loss and the number of words are added up over all replicas; their
quotient is the gradient of the whole batch, and makes the same update everywhere. The chief alone
scores the dev split and writes files.

With `--distribute multi-worker` every machine runs the same command, and TF_CONFIG names them all,
see EXAMPLE. TensorFlow's connections are neither encrypted nor guarded by a password: use a
private network.
"""

import argparse
import contextlib
import json
import os
import signal

import numpy as np
import tensorflow as tf

from captioning.errors import InputError, log, reason
from captioning.features import open_caches
from captioning.files import locked
from captioning.losses import SAMPLES
from captioning.prepared import Prepared
from captioning.startup import quiet_stderr

EXAMPLE = (
    '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
MAY_DIFFER = ("data", "output", "resume", "tensorboard", "worker_timeout")  # between workers


class Devices:
    """The replicas of a run, those of other processes included; see `captioning.steps.OneDevice`.

    `worker` of `workers` is this process; 0 is the chief.
    """

    def __init__(self, strategy: tf.distribute.Strategy, worker: int = 0, workers: int = 1):
        """Compile the sum over processes."""
        self._strategy, self._worker, self._workers = strategy, worker, workers
        self._replicas = strategy.num_replicas_in_sync // workers  # in this process
        self.is_chief = worker == 0

        def add(values):
            mine = values if self._replica() == 0 else tf.zeros_like(values)
            return tf.distribute.get_replica_context().all_reduce("SUM", mine * 1.0)

        self._add = tf.function(
            lambda values: strategy.run(add, (values,)),
            [tf.TensorSpec((None,), tf.float64)],
            autograph=False,
        )

    def _replica(self) -> int:
        """Within a replica: which of this process's it is."""
        everywhere = tf.distribute.get_replica_context().replica_id_in_sync_group
        return int(tf.get_static_value(everywhere)) - self._worker * self._replicas

    @contextlib.contextmanager
    def training(self, output):
        """The context of a run; it ends with an InputError if a worker is lost."""
        with locked(output) if self.is_chief else contextlib.nullcontext(), self._strategy.scope():
            try:
                yield
            except tf.errors.UnavailableError as error:
                raise InputError(
                    f"worker {self._worker}: another worker is gone ({reason(error)}); start all "
                    "of them again with --resume"
                ) from None

    def part(self, images: int) -> slice:
        """Which images of a batch this process computes; none if there are fewer than workers."""
        return _part(images, self._worker, self._workers)

    def run(self, step, signature: list):
        """Compile a step, a function of the arrays of this process's part of a batch."""
        arrays = len(signature)

        def replica(*parts):
            mine = self._replica() * arrays
            return step(*parts[mine : mine + arrays])

        compiled = tf.function(
            lambda *parts: self._strategy.run(replica, parts),
            signature * self._replicas,
            autograph=False,
        )

        def call(*batch):
            parts = []
            for number in range(self._replicas):
                parts += [
                    _filled(array[_part(len(array), number, self._replicas)]) for array in batch
                ]
            results = compiled(*parts)
            return tf.nest.map_structure(self._first, results)

        return call

    def _first(self, value):
        return self._strategy.experimental_local_results(value)[0]

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes."""
        return (
            self._first(self._add(values.astype(np.float64).ravel())).numpy().reshape(values.shape)
        )

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
    """Start TensorFlow on the devices that `--distribute` asks for, and wait for other workers.

    InputError if TF_CONFIG cannot be used, or settings or data differ between workers.
    """
    if options.distribute == "mirrored":
        names = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        devices = Devices(tf.distribute.MirroredStrategy([device.name for device in names]))
    else:
        devices = _multi_worker(options.worker_timeout)
    replicas = devices._strategy.num_replicas_in_sync
    log(f"{replicas} devices")
    if options.batch_size < SAMPLES * replicas:
        raise InputError(f"--batch-size {options.batch_size} is too small for {replicas} devices")
    ours = {f"--{k.replace('_', '-')}": v for k, v in vars(options).items() if k not in MAY_DIFFER}
    ours["the encoder"] = open_caches(options.data, options.encoder)[0].encoder
    ours["the prepared captions"] = [prepared.vocabulary.fingerprint, prepared.splits]
    for name, theirs in devices.from_chief(lambda: ours).items():
        if json.dumps(theirs) != json.dumps(ours[name]):
            raise InputError(f"{name} is {ours[name]}, the chief has {theirs}; make them equal")
    return devices


def _multi_worker(timeout: float) -> Devices:
    try:
        config = json.loads(os.environ.get("TF_CONFIG", ""))
        jobs = {job: len(config["cluster"].get(job, [])) for job in ("chief", "worker")}
        job, worker = config["task"]["type"], int(config["task"]["index"])
        if not 0 <= worker < jobs[job]:
            raise ValueError(f"there is no {job} {worker}")
        log(f"{job} {worker} of {config['cluster']}; waiting {timeout:g} seconds for the others")
        strategy = _wait_for_workers(timeout)
    except (ValueError, LookupError, TypeError, AttributeError, tf.errors.OpError) as error:
        raise InputError(
            f"TF_CONFIG cannot be used ({type(error).__name__}: {reason(error)}); expected such as"
            f"\n{EXAMPLE}"
        ) from None
    worker += jobs["chief"] if job == "worker" else 0
    return Devices(strategy, worker, sum(jobs.values()))


def _wait_for_workers(timeout: float) -> tf.distribute.MultiWorkerMirroredStrategy:
    """TensorFlow waits for ever and runs no Python meanwhile, so that signals end the process."""
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    with quiet_stderr():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # TensorFlow ignores it, job managers use it
    return strategy


def _part(count: int, which: int, of: int) -> slice:
    """Part `which` of `count` things shared by `of`; sizes differ by one at most."""
    return slice(count * which // of, count * (which + 1) // of)


def _filled(part: np.ndarray) -> np.ndarray:
    """A part of a batch; if it has no image, one whose captions are pads, which add nothing."""
    return part if len(part) else np.zeros((1, *part.shape[1:]), part.dtype)
