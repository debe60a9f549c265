"""Training on several devices, and on several machines, with the updates of one.

Every replica (a device with a copy of the weights) takes its part of the images of each batch. The
gradients of the summed loss and the number of words are added up over all replicas; their quotient
is the gradient of the whole batch, is clipped as such, and makes the same update everywhere. The
chief alone scores the dev split and writes files.

Shapes: I images of a batch, I' of them in a part, K captions an image, T words a caption.
"""

import argparse
import hashlib
import importlib.metadata
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captioning.cli import import_tensorflow, quiet_stderr
from captioning.files import InputError, reason
from captioning.prepared import Prepared
from captioning.rendezvous import Rendezvous, read_cluster
from captioning.vocabulary import PAD

PLACES = ("output", "data", "tensorboard", "worker_timeout")  # may differ between workers
LAST_WORD_SECONDS = 10  # for the connection to tell that a worker is gone, when a sum has failed
SEED_STRIDE = 1_000_003  # between the dropout seeds of replicas


class Team:
    """The replicas of a run, those of other processes included.

    Args:
        strategy: of tf.distribute.
        index: which of the worker processes this is; 0 is the chief.
        workers: how many there are.
        rendezvous: the connections to the others, if there are others.
    """

    def __init__(self, strategy, index: int = 0, workers: int = 1, rendezvous=None):
        """Keep the pieces."""
        self.strategy = strategy
        self.index, self.workers = index, workers
        self.replicas = strategy.num_replicas_in_sync // workers  # in this process
        self.is_chief = index == 0
        self._rendezvous = rendezvous
        self._summing = None

    def trainer(self, *arguments, **keywords):
        """A `captioning.training.Trainer` of this team; takes the same arguments."""
        with self.strategy.scope():
            return _trainer_class()(self, *arguments, **keywords)

    def replica(self) -> int:
        """Within a replica: which of this process's it is."""
        import tensorflow as tf

        everywhere = tf.distribute.get_replica_context().replica_id_in_sync_group
        return int(tf.get_static_value(everywhere)) - self.index * self.replicas

    def part(self, images: int) -> slice:
        """Which of `images` images are this process's."""
        return _part(images, self.index, self.workers)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, float64."""
        if self.workers == 1:
            return np.asarray(values, np.float64)
        import tensorflow as tf

        if self._summing is None:

            def add(values):
                # a product, because an argument has no device, by which sums find their way
                mine = values * (1.0 if self.replica() == 0 else 0.0)
                context = tf.distribute.get_replica_context()
                return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

            self._summing = tf.function(
                lambda values: self.strategy.run(add, (values,)),
                [tf.TensorSpec((None,), tf.float64)],
                autograph=False,
            )
        flat = np.asarray(values, np.float64).ravel()
        total = self.strategy.experimental_local_results(self._summing(flat))[0]
        return total.numpy().reshape(np.shape(values))

    def from_chief(self, value: object) -> object:
        """What the chief gave as `value`, which is plain JSON; the others' is not looked at."""
        if self.workers == 1:
            return value
        text = np.frombuffer(json.dumps(value).encode() if self.is_chief else b"", np.uint8)
        letters = np.zeros(int(self.sum(np.array([len(text)]))[0]))
        letters[: len(text)] = text
        return json.loads(self.sum(letters).astype(np.uint8).tobytes())

    def leave(self, well: bool = True) -> None:
        """Stop watching the others; they end too, unless all is `well`."""
        if self._rendezvous:
            self._rendezvous.leave(well)


def join(options: argparse.Namespace, prepared: Prepared) -> tuple[Team | None, argparse.Namespace]:
    """Start TensorFlow on the devices that `--distribute` asks for.

    Args:
        options: the command line.
        prepared: the prepared folder.

    Returns:
        the team, None if there is one device alone; the options, for workers that are not the
        chief with an output folder of their own that goes when they end.

    Raises:
        InputError: the workers do not find each other, or differ.
    """
    if options.distribute == "mirrored":
        return _mirrored(), options
    addresses, index = read_cluster()
    note = _note(options, prepared)
    rendezvous = Rendezvous(addresses, index, note, options.worker_timeout)
    with quiet_stderr():
        import tensorflow as tf

        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            raise InputError(
                f"worker {index}: TensorFlow cannot start at {addresses[index]} "
                f"({reason(error)[:200]}); check TF_CONFIG, and that nothing else uses the port"
            ) from None
    # TensorFlow listens to SIGTERM and goes on; job managers mean it, and files are whole anyway
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _say(f"worker {index} of {len(addresses)}, {strategy.num_replicas_in_sync} replicas in all")
    team = Team(strategy, index, len(addresses), rendezvous)
    if team.is_chief:
        return team, options
    folder = tempfile.TemporaryDirectory(prefix="captioning-worker-")
    team.folder = folder  # lives as long as the team
    changed = {"output": folder.name, "tensorboard": None}
    return team, argparse.Namespace(**{**vars(options), **changed})


def _mirrored() -> Team | None:
    """All GPUs of this machine, or its logical CPUs where they were divided."""
    import_tensorflow()
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        _say(
            f"--distribute mirrored: there is one device alone ({devices[0].name}), going on there"
        )
        return None
    return Team(tf.distribute.MirroredStrategy([device.name for device in devices]))


def _note(options: argparse.Namespace, prepared: Prepared) -> dict:
    """What must be equal for all workers: settings, versions, and the prepared folder."""
    settings = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items()}
    for name in PLACES:
        settings.pop(f"--{name.replace('_', '-')}", None)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    return {**settings, **versions, "the prepared folder's fingerprint": fingerprint(prepared)}


def fingerprint(prepared: Prepared) -> str:
    """A fingerprint of a prepared folder: what is in its files, for features what they are of."""
    folder, digest = Path(prepared.folder), hashlib.sha256()
    names = ("prepared.json", "vocabulary.json", "embeddings.npy")
    paths = [folder / name for name in names]
    paths += sorted(folder.glob("tokens/*.npz")) + sorted(folder.glob("captions/*.jsonl"))
    paths += sorted(folder.glob("features/*/index.json"))
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    for path in sorted(folder.glob("features/*/*.npy")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _part(count: int, which: int, of: int) -> slice:
    """Part `which` of `count` things shared by `of`; sizes differ by one at most."""
    return slice(count * which // of, count * (which + 1) // of)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _trainer_class():
    """The trainer; a function, because workers meet before TensorFlow is imported."""
    import tensorflow as tf

    from captioning.self_critical import self_critical_loss
    from captioning.training import Trainer, _dense_gradients, caption_loss

    class DistributedTrainer(Trainer):
        """A Trainer whose updates are made by a team."""

        def __init__(self, team: Team, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self._team = team
            features = tf.TensorSpec(
                (None, *self.model.config.feature_shape),
                tf.as_dtype(self.train.features(np.array([0])).dtype),
            )
            words = tf.TensorSpec((None, None, None), tf.int32)
            advantages = tf.TensorSpec((None, None), tf.float32)
            self._train_step = self._together(self._update, [features, words])
            self._critic_step = self._together(
                self._update_critically, [features, words, advantages]
            )
            # Gradients come summed: Keras would sum them again, and clip each replica's before.
            self.optimizer._all_reduce_sum_gradients = list
            if self._critic:
                self._critic_optimizer._all_reduce_sum_gradients = list

        # --- one update ---------------------------------------------------------------------------

        def _together(self, update, signature):
            """`update` on all replicas: a function of this process's part of a batch."""
            team, arrays = self._team, len(signature)

            def run(*parts):
                def replica():
                    mine = team.replica() * arrays
                    return update(*parts[mine : mine + arrays])

                return team.strategy.run(replica)

            compiled = tf.function(run, [*signature] * team.replicas, autograph=False)

            def step(*batch):
                parts = []
                for which in range(team.replicas):
                    part = _part(len(batch[0]), which, team.replicas)
                    parts += _never_empty(*(array[part] for array in batch))
                result = compiled(*parts)
                return tf.nest.map_structure(
                    lambda value: team.strategy.experimental_local_results(value)[0], result
                )

            return step

        def _apply_reduced(self, optimizer, tape, loss, count, *further):
            """Update by the gradient of `loss`, summed over all replicas, divided by the words.

            Returns:
                the number of words and `further`, summed likewise.
            """
            gradients = _dense_gradients(tape, loss, self.model)
            gradients, count, *further = tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, [gradients, count, *further]
            )
            gradients = [gradient / count for gradient in gradients]
            optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
            return count, *further

        def _update(self, features, words):
            """As Trainer's, within a replica, on its part: the sums are those of all replicas."""
            with tf.GradientTape() as tape:
                loss, likelihood, count = caption_loss(
                    self.model, features, words, True, self.config.label_smoothing
                )
                loss = _summed(loss, count)
            count, likelihood = self._apply_reduced(self.optimizer, tape, loss, count, likelihood)
            return likelihood, count

        def _update_critically(self, features, words, advantages):
            """As Trainer's, within a replica, on its part: the loss is that of the batch."""
            count = tf.cast(tf.math.count_nonzero(words[:, :, 1:] != PAD), tf.float32)
            with tf.GradientTape() as tape:
                loss = self_critical_loss(self.model, features, words, advantages)
                loss = _summed(loss, count)
            count, loss = self._apply_reduced(self._critic_optimizer, tape, loss, count, loss * 1.0)
            return loss / count

        # --- one epoch ----------------------------------------------------------------------------

        def _my_part(self, images):
            return self._team.part(images)

        def _seed_dropout(self, epoch):
            """Each replica draws its own; the first draws as one device would."""
            super()._seed_dropout(epoch)

            def spread():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                for seed in self._dropout_seeds:
                    offset = tf.cast(tf.stack([SEED_STRIDE * replica, 0]), seed.value.dtype)
                    seed.assign(seed.value + offset)

            tf.function(lambda: self._team.strategy.run(spread), autograph=False)()

        def _self_critical_epoch(self, epoch):
            """As Trainer's; every process samples and judges captions of its own images."""
            rng = np.random.default_rng((self.config.seed, epoch))
            order = rng.permutation(self.train.images)
            rewards = []  # this process's part of the batches: their sum, their number
            for start in range(0, len(order), self._images_a_step):
                images = order[start : start + self._images_a_step]
                mirrored = self.train.draw_mirrored(images, rng)
                seed = (rng.integers(2**31, size=2) + np.array([self._team.index, 0])) % 2**31
                mine = self._my_part(len(images))
                nothing = mine.start == mine.stop  # in the last batch: sample, and leave it out
                mine = slice(0, 1) if nothing else mine
                features = self.train.features(
                    images[mine], None if mirrored is None else mirrored[mine]
                )
                words, advantages, reward = self._critic.draw(features, images[mine], seed)
                words = np.full_like(words, PAD) if nothing else words
                loss = self._critic_step(features, words, advantages)
                rewards.append((0, 0) if nothing else (reward.sum(), reward.size))
            self._check_convergence(epoch, float(loss))
            totals, counts = self._team.sum(np.array(rewards)).T
            return float(np.mean(totals / counts))

        def epochs(self) -> Iterator[tuple[dict, str]]:
            """Train as Trainer does; yields for the chief alone, who reports."""
            try:
                for row, sample in super().epochs():
                    if self._team.is_chief:
                        yield row, sample
            except InputError:  # told by all whom it concerns; the others end by their watch
                self._team.leave(well=False)
                raise
            except tf.errors.OpError as error:
                if self._team.workers == 1:
                    raise
                time.sleep(LAST_WORD_SECONDS)  # a lost worker ends this process meanwhile
                raise InputError(
                    f"worker {self._team.index}: training broke off: {reason(error)[:200]}"
                ) from error
            self._team.leave()

        # --- what the chief does for all ----------------------------------------------------------

        def resume(self):
            found = super().resume() if self._team.is_chief else False
            found, self.history = self._team.from_chief([found, self.history])
            if found and self._team.workers > 1:
                for variable in self._state_variables():
                    value = variable.numpy() if self._team.is_chief else np.zeros(variable.shape)
                    variable.assign(tf.cast(self._team.sum(value), variable.dtype))
            return found

        def _dev_loss(self):
            return self._team.from_chief(super()._dev_loss() if self._team.is_chief else None)

        def _dev_scores(self):
            return self._team.from_chief(super()._dev_scores() if self._team.is_chief else None)

        def _save(self, epoch, scores):
            if self._team.is_chief:
                super()._save(epoch, scores)
            self._team.from_chief(None)  # all wait until the epoch is safe

    return DistributedTrainer


def _summed(loss, count):
    """A mean over `count` words as their sum; that of no word at all is 0."""
    import tensorflow as tf

    return tf.math.multiply_no_nan(loss, count)


def _never_empty(features, words, *advantages) -> list[np.ndarray]:
    """A part of a batch; where it has no image, one without any word, which adds nothing."""
    if len(features):
        return [features, words, *advantages]
    return [
        np.zeros((1, *features.shape[1:]), features.dtype),
        np.full((1, *words.shape[1:]), PAD, words.dtype),
        *(np.zeros((1, *array.shape[1:]), array.dtype) for array in advantages),
    ]
