"""The merge-decoder: an RNN reads the words, the image joins after it.

Image and words never mix inside the RNN (Tanti, Gatt & Camilleri 2018, "Where to put the image in
an image caption generator", Natural Language Engineering 24). The RNN's output after word t
therefore depends on words 1..t alone, and ONE pass over a caption gives the prediction after every
prefix of it.

Shapes: I images, K captions an image, T words a caption, P grid positions, C feature channels,
U units, V words in the vocabulary.
"""

import dataclasses

import keras
from keras import layers, ops

from captioning.recurrent import GRU
from captioning.vocabulary import PAD

ATTENTIONS = ("none", "grid")
RNNS = ("gru", "lstm")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The hyper-parameters that, with the weights, make a model.

    Attributes:
        vocabulary_size: V, special tokens included.
        feature_shape: (C,) for pooled features, (P, C) for a grid.
        embedding_size: length of a word vector.
        rnn: "gru" or "lstm".
        units: U, the width of the RNN and of the merged layer.
        attention: "none" merges the pooled vector; "grid" also attends to the grid's positions.
        heads: attention heads.
        word_dropout, rnn_dropout, image_dropout, merge_dropout: share of word vectors, RNN
            outputs, image channels and merged activations that are dropped in training.
        train_embeddings: whether the word vectors are fine-tuned.
    """

    vocabulary_size: int
    feature_shape: tuple[int, ...]
    embedding_size: int = 300
    rnn: str = "gru"
    units: int = 512
    attention: str = "none"
    heads: int = 8
    word_dropout: float = 0.3
    rnn_dropout: float = 0.3
    image_dropout: float = 0.3
    merge_dropout: float = 0.3
    train_embeddings: bool = True


@keras.saving.register_keras_serializable(package="captioning")
class MergeDecoder(keras.Model):
    """Word ids and image features -> a distribution over the next word after every prefix."""

    def __init__(self, config: ModelConfig, embeddings=None, dtype: str = "float32"):
        """Build the layers.

        Args:
            config: the hyper-parameters.
            embeddings: float array (V, embedding_size) to start from; random if None.
            dtype: "float32", or "mixed_bfloat16" to multiply in bfloat16.
        """
        super().__init__(name="merge_decoder", dtype=dtype)
        self.config = config
        self.description = {}  # what a checkpoint adds to the hyper-parameters, JSON-ready
        start = keras.initializers.Constant(embeddings) if embeddings is not None else "uniform"
        self.embedding = layers.Embedding(
            config.vocabulary_size,
            config.embedding_size,
            embeddings_initializer=start,
            trainable=config.train_embeddings,
            dtype=dtype,
        )
        self.word_dropout = layers.Dropout(config.word_dropout, dtype=dtype)
        if config.rnn == "gru":
            self.rnn = GRU(config.units, dtype=dtype)
        else:
            self.rnn = layers.LSTM(
                config.units, return_sequences=True, return_state=True, dtype=dtype
            )
        self.rnn_dropout = layers.Dropout(config.rnn_dropout, dtype=dtype)
        self.image_norm = layers.LayerNormalization(dtype=dtype)
        # a channel is dropped at every position, or the positions would tell each other
        whole_channels = (None, 1, None) if config.attention == "grid" else None
        self.image_dropout = layers.Dropout(
            config.image_dropout, noise_shape=whole_channels, dtype=dtype
        )
        self.image_dense = layers.Dense(config.units, dtype=dtype)
        self.word_dense = layers.Dense(config.units, dtype=dtype)
        if config.attention == "grid":
            self.grid_dense = layers.Dense(config.units, activation="relu", dtype=dtype)
            self.key = layers.Dense(config.units, dtype=dtype)
            self.value = layers.Dense(config.units, dtype=dtype)
            self.query = layers.Dense(config.units, dtype=dtype)
            self.gate = layers.Dense(config.units, activation="sigmoid", dtype=dtype)
            self.context_dense = layers.Dense(config.units, dtype=dtype)
        self.merge_norm = layers.LayerNormalization(dtype=dtype)
        self.merge_dropout = layers.Dropout(config.merge_dropout, dtype=dtype)
        self.word_scores = layers.Dense(config.vocabulary_size, dtype=dtype)

    def get_config(self):
        """What `captioning.checkpoint` writes beside the weights: plain JSON values."""
        return {
            "config": dataclasses.asdict(self.config),
            "dtype": self.dtype_policy.name,
            "description": self.description,
        }

    def build_for_captions(self):
        """Make the weights, by running one empty caption through the layers."""
        self(ops.zeros((1, 1, 1), "int32"), ops.zeros((1, *self.config.feature_shape)))

    # --- the image side, once per image -------------------------------------------------------

    def encode_image(self, features, training=False):
        """What the merge needs of each image; features (I, C) or (I, P, C) -> tuple of tensors."""
        features = ops.cast(features, self.compute_dtype)
        if self.config.attention == "none":
            pooled = self.image_dropout(self.image_norm(features), training=training)
            return (self.image_dense(pooled),)  # (I, U)
        grid = self.image_dropout(self.image_norm(features), training=training)
        image = self.image_dense(ops.mean(grid, axis=1))  # (I, U)
        grid = self.grid_dense(grid)  # (I, P, U)
        keys = ops.swapaxes(self._split_heads(self.key(grid)), 2, 3)  # (I, heads, U / heads, P)
        return image, keys, self._split_heads(self.value(grid))

    # --- the language side: never sees the image ----------------------------------------------

    def read_words(self, words, state=None, training=False):
        """Run the RNN over word ids (B, T) -> outputs (B, T, U), state (list of (B, U))."""
        vectors = self.word_dropout(self.embedding(words), training=training)
        outputs, *state = self.rnn(vectors, initial_state=state, training=training)
        return self.rnn_dropout(outputs, training=training), state

    # --- where they meet -----------------------------------------------------------------------

    def merge(self, outputs, image, training=False, return_attention=False):
        """Join RNN outputs (I, N, U) with encoded images; N counts all prefixes of an image.

        Returns:
            activations (I, N, U); with `return_attention` also the weights (I, heads, N, P).
        """
        attention = None
        merged = self.word_dense(outputs) + image[0][:, None]  # (I, N, U)
        if self.config.attention == "grid":
            _, keys, values = image
            queries = self._split_heads(self.query(outputs))  # (I, heads, N, U / heads)
            scores = ops.matmul(queries, keys)
            scores = ops.cast(scores, "float32") / (self.config.units / self.config.heads) ** 0.5
            attention = ops.softmax(scores)  # (I, heads, N, P)
            context = ops.matmul(ops.cast(attention, values.dtype), values)
            context = ops.reshape(ops.swapaxes(context, 1, 2), ops.shape(outputs))
            merged = merged + self.context_dense(self.gate(outputs) * context)
        merged = self.merge_norm(ops.relu(merged))
        merged = self.merge_dropout(merged, training=training)
        return (merged, attention) if return_attention else merged

    def score_words(self, merged):
        """Activations (..., U) -> float32 logits (..., V)."""
        return ops.cast(self.word_scores(merged), "float32")

    # --- one pass over whole captions, one step of decoding ------------------------------------

    def after_every_prefix(self, words, features, training=False):
        """Merged activations after every prefix of K captions for each of I images.

        Args:
            words: int (I, K, T), each caption from START, padded at the end.
            features: (I, C) or (I, P, C).
            training: whether dropout is on.

        Returns:
            (I, K * T, U); those after a pad mean nothing.
        """
        images, captions, length = ops.shape(words)
        outputs, _ = self.read_words(ops.reshape(words, (-1, length)), training=training)
        outputs = ops.reshape(outputs, (images, captions * length, self.config.units))
        return self.merge(outputs, self.encode_image(features, training), training)

    def real_word_logits(self, words, features, training=False):
        """Logits at the real words alone; pads cost nothing in the largest multiplication.

        Args:
            words: int (I, K, T), START to END, then pads.
            features: (I, C) or (I, P, C).
            training: whether dropout is on.

        Returns:
            float32 logits (N, V) of the N words that are not pads; those words (N,); the caption
            each belongs to (N,), counted from 0 to I * K - 1.
        """
        merged = self.after_every_prefix(words[:, :, :-1], features, training)
        merged = ops.reshape(merged, (-1, self.config.units))
        targets = ops.reshape(words[:, :, 1:], (-1,))
        (real,) = ops.nonzero(targets != PAD)
        captions = real // (ops.shape(words)[-1] - 1)
        logits = self.score_words(ops.take(merged, real, axis=0))
        return logits, ops.take(targets, real), captions

    def call(self, words, features, training=False):
        """Float32 logits (I, K, T, V) of the next word; see `after_every_prefix`."""
        logits = self.score_words(self.after_every_prefix(words, features, training))
        return ops.reshape(logits, (*ops.shape(words), self.config.vocabulary_size))

    def step(self, words, state, image, return_attention=False):
        """One word further for each of B hypotheses an image.

        Args:
            words: int (I, B), the last word of each hypothesis.
            state: list of (I * B, U), from the step before; `initial_state` at first.
            image: from `encode_image`.
            return_attention: also return the attention weights (I, heads, B, P).

        Returns:
            float32 log-probabilities of the next word (I, B, V); the new state.
        """
        outputs, state = self.read_words(ops.reshape(words, (-1, 1)), state)
        outputs = ops.reshape(outputs, (*ops.shape(words), self.config.units))
        merged, attention = self.merge(outputs, image, return_attention=True)
        log_probabilities = ops.log_softmax(self.score_words(merged))
        if return_attention:
            return log_probabilities, state, attention
        return log_probabilities, state

    def initial_state(self, count):
        """The RNN's state before the first word: zeros, list of (count, U)."""
        parts = 2 if self.config.rnn == "lstm" else 1
        return [ops.zeros((count, self.config.units), self.compute_dtype) for _ in range(parts)]

    def _split_heads(self, x):
        """(I, N, U) -> (I, heads, N, U / heads)."""
        images, length, units = ops.shape(x)
        x = ops.reshape(x, (images, length, self.config.heads, units // self.config.heads))
        return ops.swapaxes(x, 1, 2)
