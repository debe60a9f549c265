"""The usual way: what many tutorials of this model do, written plainly, to measure against.

- Training expands a caption of n words into n + 1 padded examples (prefix -> next word), each with
  its own run of the RNN and its own copy of the image's features.
- Captioning runs the CNN and the whole prefix again for every word.
- Features are extracted with `model.predict`, an image at a time.

Layers and weights are those of `captioning.model.MergeDecoder`, so that the two ways compute the
same; `tests/test_benchmarks.py` holds them to that.
"""

import keras
import numpy as np
from keras import layers, ops

from captioning.encoders import load_image
from captioning.model import MergeDecoder, ModelConfig
from captioning.vocabulary import END, PAD, START, UNKNOWN


def prefix_model(config: ModelConfig, longest: int) -> keras.Model:
    """The merge model as a Keras model of one prefix an example.

    Args:
        config: the hyper-parameters; the RNN must be a GRU.
        longest: L, words of a padded prefix, START included.

    Returns:
        a model from word ids (B, L), padded in front, and features (B, C) or (B, P, C) to the
        logits of the next word (B, V).
    """
    words = keras.Input((longest,), dtype="int32", name="words")
    features = keras.Input(config.feature_shape, name="features")
    vectors = layers.Embedding(
        config.vocabulary_size,
        config.embedding_size,
        mask_zero=True,
        trainable=config.train_embeddings,
        name="embedding",
    )(words)
    vectors = layers.Dropout(config.word_dropout)(vectors)
    output = layers.GRU(config.units, name="rnn")(vectors)  # (B, U): after the last word alone
    output = layers.Dropout(config.rnn_dropout)(output)

    image = layers.LayerNormalization(name="image_norm")(features)
    whole_channels = (None, 1, None) if config.attention == "grid" else None
    image = layers.Dropout(config.image_dropout, noise_shape=whole_channels)(image)
    word = layers.Dense(config.units, name="word_dense")(output)
    if config.attention == "grid":
        pooled = layers.Dense(config.units, name="image_dense")(ops.mean(image, axis=1))
        merged = word + pooled + _attend(config, output, image)
    else:
        merged = word + layers.Dense(config.units, name="image_dense")(image)
    merged = layers.LayerNormalization(name="merge_norm")(ops.relu(merged))
    merged = layers.Dropout(config.merge_dropout)(merged)
    logits = layers.Dense(config.vocabulary_size, name="word_scores")(merged)
    return keras.Model((words, features), logits)


def _attend(config: ModelConfig, output, grid):
    """What an RNN output (B, U) sees of a normalised grid (B, P, C): (B, U)."""
    positions, size = config.feature_shape[0], config.units // config.heads

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


def copy_weights(source: MergeDecoder, target: keras.Model) -> None:
    """Give `target`, of `prefix_model`, the weights of `source`; layers are known by name."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(getattr(source, layer.name).get_weights())


def pad_prefixes(prefixes: list[np.ndarray], longest: int) -> np.ndarray:
    """Prefixes of word ids -> int32 (prefixes, longest), padded in front."""
    return keras.utils.pad_sequences(prefixes, maxlen=longest, value=PAD)


def expand(captions: list[np.ndarray], longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make an example of every prefix of every caption.

    Args:
        captions: word ids of each, START to END.
        longest: see `prefix_model`.

    Returns:
        padded prefixes int32 (N, longest); the word after each (N,); which caption it is of (N,).
    """
    prefixes = [caption[:end] for caption in captions for end in range(1, len(caption))]
    targets = np.concatenate([caption[1:] for caption in captions])
    owners = np.repeat(np.arange(len(captions)), [len(caption) - 1 for caption in captions])
    return pad_prefixes(prefixes, longest), targets, owners


def compile_model(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, label_smoothing: float
) -> None:
    """Make a prefix model ready for `train_on_batch`, with the loss of the project's training."""
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    model.compile(optimizer, loss)


def train_on_prefixes(
    model: keras.Model, words: np.ndarray, features: np.ndarray, targets: np.ndarray
) -> float:
    """One update on prefixes (N, L), features (N, ...) and the words that follow (N,); the loss."""
    one_hot = keras.utils.to_categorical(targets, model.output_shape[-1])
    return float(model.train_on_batch((words, features), one_hot))


def caption_with_a_cnn_pass_a_word(
    cnn: keras.Model, decoder: keras.Model, pixels: np.ndarray, max_words: int
) -> list[int]:
    """Greedy caption of one picture, uint8 (size, size, 3): word ids, END last.

    The CNN must give what the decoder takes: a pooled vector, or a list of grid positions.
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


def cnn_for(encoder_model: keras.Model, size: int, feature_shape: tuple[int, ...]) -> keras.Model:
    """An encoder's network with its grid brought to `feature_shape`, (C,) or (P, C)."""
    image = keras.Input((size, size, 3))
    grid = encoder_model(image)
    if len(feature_shape) == 1:
        return keras.Model(image, layers.GlobalAveragePooling2D()(grid))
    return keras.Model(image, layers.Reshape(feature_shape)(grid))


def extract_one_by_one(cnn: keras.Model, paths: list, size: int) -> np.ndarray:
    """`predict` on one photograph after the other: float32 (images, ...).

    Photographs are opened as the project does it, which is faster than `keras.utils.load_img`.
    """
    found = [
        cnn.predict(load_image(path, size)[None].astype(np.float32), verbose=0) for path in paths
    ]
    return np.concatenate(found)
