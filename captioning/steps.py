"""The compiled steps of training, and where they run."""

import contextlib

import keras
import tensorflow as tf

from captioning.config import Config
from captioning.decoding import decode_greedily
from captioning.losses import cross_entropy, self_critical
from captioning.model import MergeDecoder

CLIP_NORM, SELF_CRITICAL_CLIP_NORM = 5.0, 1.0  # of the whole gradient


class OneDevice:
    """Where steps run: here. `captioning.extras.distributed` has the same for several devices.

    Attributes:
        is_chief: whether this process writes files.
    """

    is_chief = True

    def scope(self):
        """The context in which the model is built."""
        return contextlib.nullcontext()

    def part(self, images: int) -> slice:
        """Which images of a batch this process computes."""
        return slice(0, images)

    def run(self, step, signature: list):
        """Compile a step, a function of the arrays of a batch."""
        return tf.function(step, signature, autograph=False)

    def sum(self, tensors: list) -> list:
        """Within a step: the sums of tensors over all devices."""
        return tensors

    def from_chief(self, compute):
        """The result of `compute`, which only the chief calls."""
        return compute()

    def synchronise(self, run) -> None:
        """Give every process the chief's weights, optimiser state and history."""


class Steps:
    """Optimisers and compiled steps; features (I, *feature_shape), words (I, K, T).

    Attributes:
        train: (features, words) -> summed negative log-likelihood, word count.
        critic: (features, words, advantages, rewards) -> summed reward, word count.
        dev: as `train`, without an update.
        decode: features -> int32 (I, T), greedily decoded.
        optimizer, critic_optimizer: of `train` and `critic`.
    """

    def __init__(self, model: MergeDecoder, config: Config, devices):
        """Compile the steps for `devices`."""
        self._model, self._config, self._devices = model, config, devices
        with devices.scope():
            self.optimizer = keras.optimizers.AdamW(
                config.learning_rate, config.weight_decay, global_clipnorm=CLIP_NORM
            )
            self.critic_optimizer = keras.optimizers.AdamW(
                config.self_critical_rate, 0.0, global_clipnorm=SELF_CRITICAL_CLIP_NORM
            )
            self.optimizer.build(model.trainable_variables)
            self.critic_optimizer.build(model.trainable_variables)
        dtype = tf.float16 if model.has_attention else tf.float32  # of the feature cache
        features = tf.TensorSpec((None, *model.feature_shape), dtype)
        words = tf.TensorSpec((None, None, None), tf.int32)
        samples = tf.TensorSpec((None, None), tf.float32)

        def loss(features, words):
            return cross_entropy(model, features, words, True, config.label_smoothing)

        def critic_loss(features, words, advantages, rewards):
            total, count = self_critical(model, features, words, advantages)
            return total, tf.reduce_sum(rewards), count

        self.train = devices.run(self._gradient_step(self.optimizer, loss), [features, words])
        self.critic = devices.run(
            self._gradient_step(self.critic_optimizer, critic_loss),
            [features, words, samples, samples],
        )
        self.dev = tf.function(
            lambda features, words: cross_entropy(model, features, words, False)[1:],
            [features, words],
            autograph=False,
        )
        self.decode = tf.function(
            lambda features: decode_greedily(model, features, config.max_words).words[:, 0],
            [features],
            autograph=False,
        )

    @property
    def variables(self) -> list:
        """All that an epoch starts from: weights and optimiser state."""
        critic = self.critic_optimizer.variables if self._config.self_critical_epochs else []
        return [*self._model.weights, *self.optimizer.variables, *critic]

    def _gradient_step(self, optimizer, loss):
        """A step that lowers `loss`, which returns (summed loss, a figure to report, words).

        The gradients of the summed loss are added up over all devices and divided by the number
        of words: the gradient of the mean loss of the whole batch.
        """
        weights = self._model.trainable_variables
        fused = isinstance(self._devices, OneDevice)  # by XLA: moments are read and written once

        @tf.function(autograph=False, jit_compile=fused)
        def update(count, *gradients):
            gradients = [gradient / count for gradient in gradients]
            optimizer.apply_gradients(zip(gradients, weights, strict=True))

        def step(*batch):
            with tf.GradientTape() as tape:
                total, figure, count = loss(*batch)
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, weights)]
            *gradients, figure, count = self._devices.sum([*gradients, figure, count])
            update(count, *gradients)
            return figure, count

        return step

    def seed_dropout(self, epoch: int) -> None:
        """Make dropout depend on seed and epoch alone, so that a resumed run is the same run."""
        layers = [x for x in self._model._flatten_layers() if hasattr(x, "seed_generator")]
        for number, layer in enumerate(layers):
            layer.seed_generator.state.assign([self._config.seed, epoch * len(layers) + number])
