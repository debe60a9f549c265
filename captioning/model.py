"""The merge model: an RNN reads the words, the image joins after it.

Image and words never mix inside the RNN (Tanti, Gatt & Camilleri 2018, "Where to put the image in
an image caption generator", Natural Language Engineering 24). The RNN's output after word t
therefore depends on words 1..t alone, and ONE pass over a caption gives the prediction after every
prefix of it.

Shapes: I images, K captions per image, T words per caption, P grid positions, C feature channels,
U units, V words in the vocabulary.
"""

import keras
from keras import layers, ops

from captioning.config import Config
from captioning.gru import GRU
from captioning.vocabulary import PAD


class MergeDecoder(keras.Model):
    """Word ids and image features -> a distribution over the next word after every prefix.

    `vocabulary_size` is V, special tokens included; `feature_shape` (C,) for pooled features, or
    (P, C) for a grid; `dtype` "float32", or None to take that of `config`.
    """

    def __init__(self, config: Config, vocabulary_size, feature_shape, embedding_size, dtype=None):
        dtype = dtype or ("mixed_bfloat16" if config.bfloat16 else "float32")
        super().__init__(name="merge_decoder", dtype=dtype)
        self.config, self.feature_shape = config, tuple(feature_shape)
        self.vocabulary_size = vocabulary_size
        self.has_attention = config.attention == "grid"

        def dense(name, activation=None, width=config.units):
            return layers.Dense(width, activation=activation, dtype=dtype, name=name)

        def dropout(name, noise_shape=None):
            return layers.Dropout(config.dropout, noise_shape, dtype=dtype, name=name)

        # the language side
        sizes = (vocabulary_size, embedding_size)
        self.embedding = layers.Embedding(*sizes, dtype=dtype, name="embedding")
        self.embedding.trainable = not config.freeze_embeddings
        self.word_dropout = dropout("word_dropout")
        rnn = {"gru": GRU, "lstm": layers.LSTM}[config.rnn]
        both = {"return_sequences": True, "return_state": True}
        self.rnn = rnn(config.units, **both, dtype=dtype, name="rnn")
        self.rnn_dropout = dropout("rnn_dropout")

        # the image side
        self.image_norm = layers.LayerNormalization(dtype=dtype, name="image_norm")
        # a channel is dropped at every position: neighbours would reveal it
        positions = (None, 1, None) if self.has_attention else None
        self.image_dropout = dropout("image_dropout", positions)
        self.image_dense = dense("image_dense")
        if self.has_attention:
            self.grid_dense = dense("grid_dense", "relu")
            self.key, self.value = dense("key"), dense("value")

        # the merge
        self.word_dense = dense("word_dense")
        if self.has_attention:
            self.query = dense("query")
            self.gate = dense("gate", "sigmoid")
            self.context_dense = dense("context_dense")
        self.merge_norm = layers.LayerNormalization(dtype=dtype, name="merge_norm")
        self.merge_dropout = dropout("merge_dropout")
        self.word_scores = dense("word_scores", width=vocabulary_size)
        self(ops.ones((1, 1, 2), "int32"), ops.zeros((1, *feature_shape)))  # creates the weights

    def encode_image(self, features, training=False):
        """Prepare images (I, C) or (I, P, C) for `merge`: a tuple of tensors (I, ...)."""
        features = self.image_norm(ops.cast(features, self.compute_dtype))
        features = self.image_dropout(features, training=training)
        if not self.has_attention:
            return (self.image_dense(features),)  # (I, U)
        image = self.image_dense(ops.mean(features, axis=1))  # (I, U)
        grid = self.grid_dense(features)  # (I, P, U)
        keys = ops.swapaxes(self._split_heads(self.key(grid)), 2, 3)  # (I, heads, U / heads, P)
        return image, keys, self._split_heads(self.value(grid))

    def read_words(self, words, state=None, training=False):
        """Run the RNN over word ids (B, T) -> outputs (B, T, U), state (list of (B, U))."""
        vectors = self.word_dropout(self.embedding(words), training=training)
        outputs, *state = self.rnn(vectors, initial_state=state, training=training)
        return self.rnn_dropout(outputs, training=training), state

    def merge(self, outputs, image, training=False):
        """Merge RNN outputs (I, N, U) with encoded images; N counts all prefixes of an image.

        Returns activations (I, N, U), or (I, N, 2U) if they are concatenated, and attention
        weights (I, heads, N, P), or None.
        """
        attention, merged = None, self.word_dense(outputs)  # (I, N, U)
        vector = image[0][:, None]
        if self.config.merge == "add":
            merged = merged + vector
        if self.has_attention:
            _, keys, values = image
            queries = self._split_heads(self.query(outputs))  # (I, heads, N, U / heads)
            scores = ops.cast(ops.matmul(queries, keys), "float32")
            scores = scores / (self.config.units / self.config.heads) ** 0.5
            attention = ops.softmax(scores)  # (I, heads, N, P)
            context = ops.matmul(ops.cast(attention, values.dtype), values)
            context = ops.reshape(ops.swapaxes(context, 1, 2), ops.shape(outputs))  # (I, N, U)
            merged = merged + self.context_dense(self.gate(outputs) * context)
        if self.config.merge == "concat":
            merged = ops.concatenate([merged, ops.broadcast_to(vector, ops.shape(merged))], -1)
        merged = self.merge_norm(ops.relu(merged))
        return self.merge_dropout(merged, training=training), attention

    def score_words(self, merged):
        """Activations (..., U) -> float32 logits (..., V)."""
        return ops.cast(self.word_scores(merged), "float32")

    def read_captions(self, words, image, state=None, training=False):
        """Captions (I, K, T) -> activations of `merge` after their N = K * T prefixes, state."""
        images, captions, length = ops.shape(words)
        outputs, state = self.read_words(ops.reshape(words, (-1, length)), state, training)
        outputs = ops.reshape(outputs, (images, captions * length, self.config.units))
        return self.merge(outputs, image, training)[0], state

    def target_logits(self, words, features, training=False):
        """Logits for every target word; pads are left out of the largest multiplication.

        Captions (I, K, T), START to END, then pads -> float32 logits (N, V) for the N targets
        that are not pads; the targets (N,); the caption of each (N,), from 0 to I * K - 1.
        """
        image = self.encode_image(features, training)
        merged, _ = self.read_captions(words[:, :, :-1], image, training=training)
        merged = ops.reshape(merged, (-1, merged.shape[-1]))
        targets = ops.reshape(words[:, :, 1:], (-1,))
        (real,) = ops.nonzero(targets != PAD)
        captions = real // (ops.shape(words)[-1] - 1)
        logits = self.score_words(ops.take(merged, real, axis=0))
        return logits, ops.take(targets, real), captions

    def call(self, words, features, training=False):
        """Float32 logits (I, K, T, V) of the next word after every prefix."""
        image = self.encode_image(features, training)
        merged, _ = self.read_captions(words, image, training=training)
        return ops.reshape(self.score_words(merged), (*ops.shape(words), self.vocabulary_size))

    def step(self, words, state, image):
        """One decoding step: last words (I, B) -> log-probabilities of the next (I, B, V), state.

        The state is a list of (I * B, U), at first `initial_state`; `image` is of `encode_image`.
        """
        merged, state = self.read_captions(words[:, :, None], image, state)
        return ops.log_softmax(self.score_words(merged)), state

    def initial_state(self, count):
        """The RNN's state before the first word: zeros, list of (count, U)."""
        return self.rnn.get_initial_state(count)

    def _split_heads(self, x):
        """(I, N, U) -> (I, heads, N, U / heads)."""
        images, length, units = ops.shape(x)
        x = ops.reshape(x, (images, length, self.config.heads, units // self.config.heads))
        return ops.swapaxes(x, 1, 2)
