"""The compiled steps of training, and where they run."""

from functools import partial

import keras
import tensorflow as tf

from captioning.config import Config
from captioning.decoding import decode_greedily
from captioning.files import locked
from captioning.losses import cross_entropy
from captioning.model import MergeDecoder

CLIP_NORM = 5.0  # of the whole gradient


class OneDevice:
    """Where steps run: here. Several devices: `captioning.extras.scale.distributed`."""

    is_chief = True  # whether this process writes files

    def training(self, output):
        """The context of a run: no other run writes to the folder `output`."""
        return locked(output)

    def part(self, images: int) -> slice:
        """Which images of a batch this process computes."""
        return slice(0, images)

    def run(self, step, signature: list):
        """Compile a step, a function of the arrays of a batch."""
        return tf.function(step, signature, autograph=False)

    def from_chief(self, compute):
        """The result of `compute`, which only the chief calls; JSON-ready."""
        return compute()

    def synchronise(self, run) -> None:
        """Give every process the chief's history, weights and optimiser state."""


class Steps:
    """Optimisers and compiled steps; features (I, *feature_shape), words (I, K, T).

    train: (features, words) -> summed negative log-likelihood, word count
    dev: as `cross_entropy`, without dropout
    decode: as `decode_greedily`
    """

    def __init__(self, model: MergeDecoder, config: Config, devices):
        self._model, self._config, self._devices = model, config, devices
        dtype = tf.float16 if model.has_attention else tf.float32  # of the feature cache
        features = tf.TensorSpec((None, *model.feature_shape), dtype)
        self.signature = [features, tf.TensorSpec((None, None, None), tf.int32)]
        loss = partial(cross_entropy, model, training=True, smoothing=config.label_smoothing)
        dev_loss = partial(cross_entropy, model, training=False)
        decode = partial(decode_greedily, model, max_words=config.max_words)

        kinds = {"adamw": keras.optimizers.AdamW, "adadelta": keras.optimizers.Adadelta}
        options = {"weight_decay": config.weight_decay, "global_clipnorm": CLIP_NORM}
        self.optimizer = kinds[config.optimizer](config.learning_rate, **options)
        self.variables = list(model.weights)  # and the optimisers': all an epoch starts from
        self.train = self.gradient_step(self.optimizer, loss, self.signature)
        self._epoch = tf.Variable(0, trainable=False)
        self._seed = devices.run(self._seed_step, [])
        self.dev = OneDevice().run(dev_loss, self.signature)
        self.decode = OneDevice().run(decode, [features])

    def gradient_step(self, optimizer, loss, signature: list):
        """A step that lowers `loss`, which returns (summed loss, a figure to report, words).

        The gradients of the summed loss are added up over all devices and divided by the number
        of words: the gradient of the mean loss of the whole batch.
        """
        weights = self._model.trainable_variables
        optimizer.build(weights)
        optimizer._all_reduce_sum_gradients = list  # summed already, before they are clipped
        self.variables += optimizer.variables

        def update(count, *gradients):
            gradients = [gradient / count for gradient in gradients]
            optimizer.apply_gradients(zip(gradients, weights, strict=True))

        def step(*batch):
            with tf.GradientTape() as tape:
                total, figure, count = loss(*batch)
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, weights)]
            context = tf.distribute.get_replica_context()
            *gradients, figure, count = context.all_reduce("SUM", [*gradients, figure, count])
            if tf.distribute.has_strategy():
                update(count, *gradients)
            else:  # XLA reads and writes the moments once
                tf.function(update, autograph=False, jit_compile=True)(count, *gradients)
            return figure, count

        return self._devices.run(step, signature)

    def seed_dropout(self, epoch: int) -> None:
        """Make dropout depend on seed, epoch and device: a resumed run is the same run."""
        self._epoch.assign(epoch)
        self._seed()

    def _seed_step(self) -> None:
        """Within a step: seed the dropout layers for the epoch."""
        layers = [x for x in self._model.layers if isinstance(x, keras.layers.Dropout) and x.rate]
        device = tf.distribute.get_replica_context().replica_id_in_sync_group
        for number, layer in enumerate(layers):
            seed = self._config.seed + 1_000_003 * device
            layer.seed_generator.state.assign([seed, self._epoch * len(layers) + number])
