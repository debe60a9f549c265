"""Fit the merge-decoder: loss, optimiser, one epoch after another, and going on again.

Everything random is drawn from (seed, epoch): the batches, the mirroring, the dropout. An epoch
therefore depends only on the weights and the optimiser's state before it, and a run that was
killed and resumed ends with the same weights as one that never stopped.
"""

import csv
import dataclasses
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from captioning import metrics
from captioning.batches import Split
from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.features import FeatureCache
from captioning.files import InputError, refuse_bomb, replacing, write_bytes, write_text
from captioning.model import MergeDecoder, ModelConfig
from captioning.prepared import Prepared
from captioning.self_critical import SelfCritic, self_critical_loss

STATE_FILE = "resume.npz"
HISTORY_FILE = "history.csv"
BEST_FILE = "best.keras"
SELF_CRITICAL_WARMUP = 100  # updates
SELF_CRITICAL_CLIP_NORM = 1.0  # sampled gradients are noisy; none may throw the model far
MAX_FACTS_BYTES = 100_000_000  # of settings and history in the state
DIVERGED = 500.0  # nats a word; to know nothing costs log(words), less than 14


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: passes over the training captions.
        batch_size: captions an update; the five captions of an image stay together.
        learning_rate: the peak, reached after `warmup_epochs`; a cosine takes it to zero.
        warmup_epochs: epochs over which the learning rate rises from zero.
        weight_decay: AdamW's (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization").
        label_smoothing: share of the target's probability that is spread over all words.
        clip_norm: largest norm of the whole gradient.
        captions_per_image: how many captions share one encoded image in a batch.
        max_words: longer captions are cut in training.
        self_critical_epochs: passes over the training images after `epochs`, that raise the
            CIDEr-D of sampled captions; see `captioning.self_critical`.
        self_critical_rate: the peak learning rate of those.
        samples: captions sampled for each image in those.
        seed: of everything random.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.1
    clip_norm: float = 5.0
    captions_per_image: int = 5
    max_words: int = 30
    self_critical_epochs: int = 0
    self_critical_rate: float = 1e-5
    samples: int = 5
    seed: int = 0


def caption_loss(model, features, words, training: bool, label_smoothing: float = 0.0):
    """Cross-entropy of the next word over all real words; pads count nowhere.

    Args:
        model: the merge-decoder.
        features: (I, *feature_shape).
        words: int32 (I, K, T), START to END, then pads.
        training: whether dropout is on.
        label_smoothing: e of Szegedy et al. 2016, "Rethinking the Inception Architecture".

    Returns:
        the mean loss, smoothed; the summed negative log-likelihood (nats); the number of words.
    """
    logits, targets, _ = model.real_word_logits(words, features, training)
    normaliser = tf.reduce_logsumexp(logits, axis=-1)
    likelihood = tf.gather(logits, targets, batch_dims=1) - normaliser
    uniform = tf.reduce_mean(logits, axis=-1) - normaliser
    smoothed = (1 - label_smoothing) * likelihood + label_smoothing * uniform
    count = tf.cast(tf.size(targets), tf.float32)
    return -tf.reduce_mean(smoothed), -tf.reduce_sum(likelihood), count


class Trainer:
    """A run of training: the model, its optimiser and its output folder.

    Args:
        prepared: the prepared folder.
        caches: the feature cache, and the mirrored one if it is to be used.
        model_config: the hyper-parameters of the model.
        config: how to train.
        output: folder of the checkpoints.
        dtype: "float32" or "mixed_bfloat16".
        embeddings: word vectors to start from, float32 (V, embedding_size); random if None.
    """

    def __init__(
        self,
        prepared: Prepared,
        caches: list[FeatureCache],
        model_config: ModelConfig,
        config: TrainingConfig,
        output: str | os.PathLike,
        dtype: str = "float32",
        embeddings: np.ndarray | None = None,
    ):
        """Build the model and its optimiser."""
        self.config = config
        self.output = Path(output)
        self.train = Split(prepared, "train", caches, model_config.feature_shape)
        self.dev = Split(prepared, "dev", caches[:1], model_config.feature_shape)
        self._dev_cache = caches[0]
        names, references = prepared.images("dev"), prepared.references("dev")
        readable = np.flatnonzero(self.dev.rows >= 0)
        self._dev_images = [names[image] for image in readable]
        self._dev_references = [references[image] for image in readable]
        keras.utils.set_random_seed(config.seed)
        self.model = MergeDecoder(model_config, embeddings, dtype)
        self.model.build_for_captions()
        facts = {"training": dataclasses.asdict(config)}
        self.checkpoint = Checkpoint(self.model, prepared.vocabulary, caches[0].encoder, facts)
        self.captioner = Captioner(self.checkpoint)
        steps = math.ceil(self.train.group_count(config.captions_per_image) / self._images_a_step)
        self.optimizer = _optimizer(
            config.epochs * steps,
            round(config.warmup_epochs * steps),
            config.learning_rate,
            config.weight_decay,
            config.clip_norm,
        )
        self._apply = _compiled(self.optimizer, self.model)
        self._critic = None
        if config.self_critical_epochs:
            self._critic = SelfCritic(self.model, self.train.tokens, config.samples)
            steps = math.ceil(len(self.train.images) / self._images_a_step)
            self._critic_optimizer = _optimizer(
                config.self_critical_epochs * steps,
                SELF_CRITICAL_WARMUP,
                config.self_critical_rate,
                0.0,
                SELF_CRITICAL_CLIP_NORM,
            )
            self._apply_critic = _compiled(self._critic_optimizer, self.model)
        self.history: list[dict] = []
        self._dropout_seeds = [
            layer.seed_generator.state
            for layer in self.model._flatten_layers()
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0
        ]
        feature_type = tf.as_dtype(self.train.features(np.array([0])).dtype)
        signature = [
            tf.TensorSpec((None, *model_config.feature_shape), feature_type),
            tf.TensorSpec((None, None, None), tf.int32),
        ]
        self._train_step = tf.function(self._update, signature, autograph=False)
        self._critic_step = tf.function(
            self._update_critically,
            [*signature, tf.TensorSpec((None, None), tf.float32)],
            autograph=False,
        )
        self._dev_step = tf.function(
            lambda features, words: caption_loss(self.model, features, words, False)[1:],
            signature,
            autograph=False,
        )

    def resume(self) -> bool:
        """Take up the run whose state lies in the output folder; whether there was one.

        Raises:
            InputError: the state is damaged, or of a run with other settings.
        """
        path = self.output / STATE_FILE
        if not path.exists():
            return False
        variables = self._state_variables()
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("not an .npz archive")
            with path.open("rb") as file, np.load(file, allow_pickle=False) as state:
                needed = sum(variable.numpy().nbytes for variable in variables)
                refuse_bomb(state.zip, needed + MAX_FACTS_BYTES)
                facts = json.loads(str(state["facts"]))
                settings, history = dict(facts["settings"]), list(facts["history"])
                self._check_settings(path, settings)
                values = [state[f"variable-{number}"] for number in range(len(variables))]
            for variable, value in zip(variables, values, strict=True):
                if value.shape != tuple(variable.shape) or not np.isfinite(value).all():
                    raise ValueError("its numbers are not those of the model")
        except InputError:
            raise
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: damaged ({error}); start anew in another folder") from None
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self.history = history
        best, same = self.output / BEST_FILE, self.output / _checkpoint_name(self.best_epoch)
        if not best.exists() and same.exists():
            write_bytes(best, same.read_bytes())
        return True

    def _check_settings(self, path: Path, settings: dict) -> None:
        for name, ours in self._settings().items():
            if name != "epochs" and settings.get(name) != ours:
                raise InputError(
                    f"{path}: the run has {name} = {settings.get(name)}, asked for is "
                    f"{ours}; resume with the same settings, or start anew in another folder"
                )

    def has_state(self) -> bool:
        """Whether the output folder holds anything of a run that a new one would mix with."""
        names = (STATE_FILE, HISTORY_FILE, BEST_FILE)
        return any((self.output / name).exists() for name in names) or any(
            self.output.glob("epoch-*.keras")
        )

    def is_first_epoch_unfinished(self) -> bool:
        """Whether a run was killed here before its first epoch was saved as a whole.

        Nothing is lost then if it begins anew.
        """
        history = self.output / HISTORY_FILE
        rows = len(history.read_text(encoding="utf-8").splitlines()) - 1 if history.exists() else 0
        checkpoints = [path.name for path in self.output.glob("epoch-*.keras")]
        if not checkpoints and (self.output / BEST_FILE).exists():
            return False
        return (
            rows <= 1
            and checkpoints in ([], [_checkpoint_name(1)])
            and not (self.output / STATE_FILE).exists()
        )

    def epochs(self) -> Iterator[tuple[dict, str]]:
        """Train the epochs that are still to do.

        Yields:
            after each epoch, when all its files are written: its row of the history, and the
            caption of the first dev image.

        Raises:
            InputError: training has diverged, or a file cannot be written. What was written
                before stays.
        """
        for epoch in range(len(self.history) + 1, self.last_epoch + 1):
            started = time.monotonic()
            if epoch <= self.config.epochs:
                progress = {"train_loss": self._train_epoch(epoch), "reward": None}
            else:
                progress = {"train_loss": None, "reward": self._self_critical_epoch(epoch)}
            minutes = (time.monotonic() - started) / 60
            dev_loss = self._dev_loss()
            self._check_convergence(epoch, dev_loss)
            scores, sample = self._dev_scores()
            self.history.append(
                {
                    "epoch": epoch,
                    **progress,
                    "dev_loss": dev_loss,
                    "dev_perplexity": math.exp(dev_loss),
                    **{f"dev_{name}": score for name, score in scores.items()},
                    "minutes": minutes,
                }
            )
            self._save(epoch, scores)
            yield self.history[-1], sample

    @property
    def _images_a_step(self) -> int:
        return max(1, self.config.batch_size // self.config.captions_per_image)

    @property
    def last_epoch(self) -> int:
        """The number of epochs, self-critical ones included."""
        return self.config.epochs + self.config.self_critical_epochs

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest CIDEr-D on dev; 0 before the first.

        Of equals it is the one with the lowest loss: on a dev split of one image, CIDEr-D is 0.
        """
        if not self.history:
            return 0
        return max(self.history, key=lambda row: (row["dev_CIDEr-D"], -row["dev_loss"]))["epoch"]

    def _plan(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The training batches of an epoch."""
        config = self.config
        return self.train.batches(
            config.batch_size,
            config.captions_per_image,
            config.max_words,
            (config.seed, epoch),
            self._my_part,
        )

    def _my_part(self, images: int) -> slice:
        """Which of a batch of so many images this process trains on: all of them."""
        return slice(images)

    def _update(self, features, words):
        """One step of the optimiser; the summed negative log-likelihood and the word count."""
        with tf.GradientTape() as tape:
            loss, likelihood, count = caption_loss(
                self.model, features, words, True, self.config.label_smoothing
            )
        self._apply(*_dense_gradients(tape, loss, self.model))
        return likelihood, count

    def _seed_dropout(self, epoch: int) -> None:
        for number, seed in enumerate(self._dropout_seeds):
            seed.assign([self.config.seed, epoch * len(self._dropout_seeds) + number])

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the training captions; the mean loss in nats a word, dropout on."""
        self._seed_dropout(epoch)
        total = count = 0.0
        for features, words in self._plan(epoch):
            step_total, step_count = self._train_step(features, words)
            total, count = total + step_total, count + step_count
        loss = float(total / count)
        self._check_convergence(epoch, loss)
        return loss

    def _update_critically(self, features, words, advantages):
        """One step of the optimiser towards the better of the sampled captions."""
        with tf.GradientTape() as tape:
            loss = self_critical_loss(self.model, features, words, advantages)
        self._apply_critic(*_dense_gradients(tape, loss, self.model))
        return loss

    def _self_critical_epoch(self, epoch: int) -> float:
        """One pass over the training images; the mean reward of samples, CIDEr-D x 100."""
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(self.train.images)
        rewards = []
        for start in range(0, len(order), self._images_a_step):
            images = order[start : start + self._images_a_step]
            features = self.train.features(images, self.train.draw_mirrored(images, rng))
            seed = rng.integers(2**31, size=2)
            words, advantages, reward = self._critic.draw(features, images, seed)
            loss = self._critic_step(features, words, advantages)
            rewards.append(reward.mean())
        self._check_convergence(epoch, float(loss))
        return float(np.mean(rewards))

    def _check_convergence(self, epoch: int, loss: float) -> None:
        if not abs(loss) < DIVERGED:  # nor is NaN
            raise InputError(
                f"epoch {epoch}: the loss is {loss:g}, training has diverged; the checkpoints of "
                "the epochs before are kept.\nStart anew with a smaller --learning-rate"
            )

    def _dev_loss(self) -> float:
        """Mean negative log-likelihood of the dev captions, nats a word."""
        total = count = 0.0
        config = self.config
        for features, words in self.dev.batches(
            config.batch_size, config.captions_per_image, config.max_words, (0,)
        ):
            step_total, step_count = self._dev_step(features, words)
            total, count = total + float(step_total), count + float(step_count)
        return total / count

    def _dev_scores(self) -> tuple[dict[str, float], str]:
        """All scores of greedy captions of the dev images, and one caption to look at."""
        captions = self.captioner.caption_cached(self._dev_cache, self._dev_images)
        return metrics.score(self._dev_references, captions), captions[0]

    def _save(self, epoch: int, scores: dict[str, float]) -> None:
        """Write the checkpoint, its mark if it is the best, the history; the state comes last."""
        facts = {
            **self.checkpoint.facts,
            "epoch": epoch,
            "dev scores, greedy": scores,
            "history": self.history,
        }
        checkpoint = dataclasses.replace(self.checkpoint, facts=facts)
        checkpoint.save(self.output / _checkpoint_name(epoch))
        if self.best_epoch == epoch:
            checkpoint.save(self.output / BEST_FILE)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.history[0]))
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.output / HISTORY_FILE, text.getvalue())
        facts = {"settings": self._settings(), "history": self.history}
        values = {f"variable-{n}": v.numpy() for n, v in enumerate(self._state_variables())}
        size = sum(value.nbytes for value in values.values())
        with replacing(self.output / STATE_FILE, size) as temporary:
            np.savez(temporary, facts=np.array(json.dumps(facts)), **values)

    def _settings(self) -> dict:
        """All that must be equal for a run to be the same run."""
        return {
            **dataclasses.asdict(self.config),
            **json.loads(json.dumps(dataclasses.asdict(self.model.config))),
            "dtype": self.model.dtype_policy.name,
            "encoder": self.checkpoint.encoder,
            "vocabulary": self.checkpoint.vocabulary.fingerprint,
            "captions": self.train.caption_count,
            "mirrored images": self.train.mirrored_rows is not None,
        }

    def _state_variables(self) -> list:
        """What an epoch starts from: all weights and the optimisers' moments."""
        critical = self._critic_optimizer.variables if self._critic else []
        return [*self.model.weights, *self.optimizer.variables, *critical]


def _checkpoint_name(epoch: int) -> str:
    return f"epoch-{epoch:03}.keras"


def _optimizer(
    steps: int, warmup: int, learning_rate: float, weight_decay: float, clip_norm: float
) -> keras.optimizers.Optimizer:
    """AdamW whose learning rate rises over `warmup` steps and falls to zero along a cosine."""
    warmup = min(warmup, steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else learning_rate,
        decay_steps=steps - warmup,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return keras.optimizers.AdamW(schedule, weight_decay=weight_decay, global_clipnorm=clip_norm)


def _dense_gradients(tape: tf.GradientTape, loss: tf.Tensor, model: MergeDecoder) -> list:
    """The gradient of every trainable weight as a plain tensor."""
    gradients = tape.gradient(loss, model.trainable_variables)
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def _compiled(optimizer: keras.optimizers.Optimizer, model: MergeDecoder):
    """One step of the optimiser, fused by XLA: the moments are read and written once."""
    optimizer.build(model.trainable_variables)

    def apply(*gradients):
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return tf.function(apply, autograph=False, jit_compile=True)
