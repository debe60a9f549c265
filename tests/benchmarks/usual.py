"""The usual way: what many tutorials of this model do, written plainly, as the baseline.

- Training expands a caption of n words into n + 1 padded examples (prefix -> next word), each with
  its own run of the RNN and its own copy of the image's features.
- Captioning runs the CNN and the whole prefix again for every word.
- Features are extracted with `model.predict`, one image at a time.

Layers and weights are those of `captioning.model.MergeDecoder`, so both ways compute the same;
`tests/test_benchmarks.py` checks that. Shapes: B examples, L words of a padded prefix (START
included), P grid positions, C channels, U units, V words in the vocabulary.
"""

import keras
import numpy as np
from keras import layers, ops

from captioning.config import Config
from captioning.images import load_image
from captioning.model import MergeDecoder
from captioning.vocabulary import END, PAD, START, UNKNOWN


def prefix_model(source: MergeDecoder, longest: int, optimizer="sgd") -> keras.Model:
    """A Keras model with the layers, weights and loss of `source`, whose RNN is a GRU.

    Word ids (B, L), padded in front, and features (B, C) or (B, P, C) -> logits of the next word
    (B, V).
    """
    config = source.config
    words = keras.Input((longest,), dtype="int32", name="words")
    features = keras.Input(source.feature_shape, name="features")
    size, width = source.embedding.embeddings.shape
    vectors = layers.Embedding(size, width, mask_zero=True, name="embedding")(words)
    vectors = layers.Dropout(config.dropout)(vectors)
    output = layers.GRU(config.units, name="rnn")(vectors)  # (B, U): after the last word alone
    output = layers.Dropout(config.dropout)(output)

    image = layers.LayerNormalization(name="image_norm")(features)
    whole_channels = (None, 1, None) if source.has_attention else None
    image = layers.Dropout(config.dropout, whole_channels)(image)
    pooled = ops.mean(image, axis=1) if source.has_attention else image
    merged = layers.Dense(config.units, name="word_dense")(output)
    merged += layers.Dense(config.units, name="image_dense")(pooled)
    if source.has_attention:
        merged += _attend(config, output, image)
    merged = layers.LayerNormalization(name="merge_norm")(ops.relu(merged))
    merged = layers.Dropout(config.dropout)(merged)
    logits = layers.Dense(source.vocabulary_size, name="word_scores")(merged)
    model = keras.Model((words, features), logits)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(getattr(source, layer.name).get_weights())
    smoothing = config.label_smoothing
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(optimizer, loss)
    return model


def _attend(config: Config, output, grid):
    """RNN output (B, U) and normalised grid (B, P, C) -> what the words see of the grid (B, U)."""
    positions, size = grid.shape[1], config.units // config.heads

    def heads(x, length):
        x = ops.reshape(x, (-1, length, config.heads, size))
        return ops.transpose(x, (0, 2, 1, 3))  # (B, heads, length, U / heads)

    grid = layers.Dense(config.units, activation="relu", name="grid_dense")(grid)
    keys = heads(layers.Dense(config.units, name="key")(grid), positions)
    values = heads(layers.Dense(config.units, name="value")(grid), positions)
    query = heads(layers.Dense(config.units, name="query")(output), 1)
    scores = ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2))) / size**0.5
    context = ops.matmul(ops.softmax(scores), values)  # (B, heads, 1, U / heads)
    context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (-1, config.units))
    gate = layers.Dense(config.units, activation="sigmoid", name="gate")(output)
    return layers.Dense(config.units, name="context_dense")(gate * context)


def pad_prefixes(prefixes: list, longest: int) -> np.ndarray:
    """Prefixes of word ids -> int32 (prefixes, L), padded in front."""
    return keras.utils.pad_sequences(prefixes, maxlen=longest, value=PAD)


def expand(captions: list[np.ndarray], longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make an example of every prefix of every caption; a caption is word ids, START to END.

    Returns the prefixes int32 (B, L), the word after each (B,), the caption of each (B,).
    """
    prefixes = [caption[:end] for caption in captions for end in range(1, len(caption))]
    targets = np.concatenate([caption[1:] for caption in captions])
    owners = np.repeat(np.arange(len(captions)), [len(caption) - 1 for caption in captions])
    return pad_prefixes(prefixes, longest), targets, owners


def train_on_prefixes(model: keras.Model, words, features, targets) -> float:
    """One step on prefixes (B, L), features (B, ...) and the words that follow (B,); the loss."""
    one_hot = keras.utils.to_categorical(targets, model.output_shape[-1])
    return float(model.train_on_batch((words, features), one_hot))


def caption_with_a_cnn_pass_per_word(
    cnn: keras.Model, decoder: keras.Model, pixels: np.ndarray, max_words: int
) -> list[int]:
    """Greedy caption of one picture, uint8 (size, size, 3): word ids, END last.

    The CNN must return what the decoder takes: (B, C) or (B, P, C).
    """
    longest = decoder.input_shape[0][1]
    ids = [START]
    while len(ids) <= max_words:
        features = cnn.predict(pixels[None].astype(np.float32), verbose=0)
        scores = decoder.predict((pad_prefixes([ids], longest), features), verbose=0)[0]
        scores[[PAD, START, UNKNOWN]] = -np.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == END:
            return ids[1:]
    return [*ids[1:], END]


def cnn_for(encoder, feature_shape: tuple[int, ...]) -> keras.Model:
    """The network of a `captioning.encoders.Encoder`, its grid as `feature_shape`: (C,), (P, C)."""
    image = keras.Input((encoder.image_size, encoder.image_size, 3))
    grid = encoder.model(image)
    if len(feature_shape) == 1:
        return keras.Model(image, layers.GlobalAveragePooling2D()(grid))
    return keras.Model(image, layers.Reshape(feature_shape)(grid))


def extract_one_by_one(cnn: keras.Model, paths: list, size: int) -> np.ndarray:
    """`predict` on one photograph after another: float32 (images, ...).

    Photographs are opened as the project opens them, which is faster than `keras.utils.load_img`.
    """
    pictures = (load_image(path, size)[None].astype(np.float32) for path in paths)
    return np.concatenate([cnn.predict(picture, verbose=0) for picture in pictures])
