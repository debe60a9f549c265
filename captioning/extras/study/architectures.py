"""The three models that Tanti et al. 2018 compare the merge model with: the image enters the RNN.

All else is as in `captioning.model.MergeDecoder`, shapes too.
"""

from keras import layers, ops

from captioning.model import MergeDecoder
from captioning.vocabulary import START


class InjectDecoder(MergeDecoder):
    """What the three share: `read` takes words (B, T), a state and their images (B, ...)."""

    def read_captions(self, words, image, state=None, training=False):
        """As `MergeDecoder.read_captions`."""
        images, captions, length = ops.shape(words)
        state = state or self.initial_state(images * captions)
        image = [ops.repeat(part, captions, axis=0) for part in image]
        outputs, state = self.read(ops.reshape(words, (-1, length)), state, image, training)
        outputs = ops.reshape(outputs, (images, captions * length, self.config.units))
        activations = self.merge_norm(ops.relu(self.word_dense(outputs)))
        return self.merge_dropout(activations, training=training), state


class InitInjectDecoder(InjectDecoder):
    """The image is the RNN's initial state."""

    def encode_image(self, features, training=False):
        """Images (I, C) -> the RNN's state before START, a tuple of (I, U)."""
        return super().encode_image(features, training) * len(self.initial_state(1))

    def read(self, words, state, image, training=False):
        """START takes the state of the image, other words the given one."""
        is_start = words[:, :1] == START
        state = [ops.where(is_start, *parts) for parts in zip(image, state, strict=True)]
        return self.read_words(words, state, training)


class PreInjectDecoder(InitInjectDecoder):
    """The image is the first word."""

    def build(self, words_shape, features_shape):
        """Add the layer that makes a word vector of the image."""
        size = self.embedding.output_dim
        self.image_word = layers.Dense(size, dtype=self.dtype_policy, name="image_word")

    def encode_image(self, features, training=False):
        """Images (I, C) -> the RNN's state after the image, a tuple of (I, U)."""
        (image,) = MergeDecoder.encode_image(self, features, training)
        _, *state = self.rnn(self.image_word(image)[:, None], training=training)
        return tuple(state)


class ParInjectDecoder(InjectDecoder):
    """The image stands beside every word."""

    def read(self, words, state, image, training=False):
        """The RNN's inputs are (B, T, word vector + U)."""
        vectors = self.word_dropout(self.embedding(words), training=training)
        beside = ops.repeat(image[0][:, None], ops.shape(words)[1], axis=1)
        inputs = ops.concatenate([vectors, beside], axis=-1)
        outputs, *state = self.rnn(inputs, initial_state=state, training=training)
        return self.rnn_dropout(outputs, training=training), state


ARCHITECTURES = {
    "init-inject": InitInjectDecoder,
    "pre-inject": PreInjectDecoder,
    "par-inject": ParInjectDecoder,
}
