"""Caption images or cached features with a trained checkpoint."""

import dataclasses
import itertools
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from captioning.checkpoint import Checkpoint
from captioning.decoding import beam_search, decode_greedily
from captioning.encoders import (
    WEIGHT_SUFFIXES,
    Encoder,
    encoder_names,
    load_encoder,
    load_image,
)
from captioning.features import MADE_BY, FeatureCache, encode_images, read_rows
from captioning.files import InputError, shipped

PRETRAINED = shipped("data/pretrained/captioner.keras")
BATCH_SIZE = 100  # images decoded at once
PHOTOGRAPHS = 16  # opened and encoded at once
MAX_LENGTH_PENALTY = 10  # powers of lengths must stay within float32
LENGTH_PENALTY = 0.7  # the best on the dev split of Flickr8k, pooled and with attention


Photograph = str | os.PathLike | Image.Image | np.ndarray
"""What can be captioned: a file, a PIL image, or uint8 (height, width, 3) or (height, width)."""


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption and how sure the model was.

    Attributes:
        text: the caption, lower-case words.
        log_probability: of the whole caption with its end, natural logarithm.
    """

    text: str
    log_probability: float


class Captioner:
    """A checkpoint, ready to caption.

    Args:
        checkpoint: the model with its vocabulary.
        encoder: `.keras` file of the CNN, or an `.h5` file with the weights of the one that the
            checkpoint names; that one as it is found by its name if None.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: str | os.PathLike | None = None):
        """Keep the pieces; the CNN is loaded when the first photograph comes."""
        self.model = checkpoint.model
        self.vocabulary = checkpoint.vocabulary
        self.checkpoint = checkpoint
        self._encoder_name = encoder
        self._searches = {}

    @classmethod
    def load(
        cls, path: str | os.PathLike | None = None, encoder: str | os.PathLike | None = None
    ) -> "Captioner":
        """Load a checkpoint; `data/pretrained/captioner.keras` if `path` is None.

        Raises:
            InputError: the checkpoint cannot be used.
        """
        if path is None and not PRETRAINED.exists():
            raise InputError(
                "no trained captioner is installed (data/pretrained/captioner.keras); "
                "give a checkpoint of train.py with --model"
            )
        return cls(Checkpoint.load(path or PRETRAINED), encoder)

    @cached_property
    def encoder(self) -> Encoder:
        """The CNN that the model was trained with.

        Raises:
            InputError: it cannot be loaded, or is not the same network.
        """
        expected = self.checkpoint.encoder
        name, weights = str(self._encoder_name or expected["name"]), None
        if Path(name).suffix in WEIGHT_SUFFIXES:
            name, weights = expected["name"], name
        if name in encoder_names() and name != expected["name"]:
            raise InputError(
                f"--encoder {name}: the model was trained on features of {expected['name']}; "
                "leave it out, or give the file of that encoder"
            )
        encoder = load_encoder(name, weights, expected["image_size"])
        if encoder.fingerprint != expected["fingerprint"]:
            raise InputError(
                f"the model was trained on features of {expected['name']} "
                f"({expected['fingerprint']}), this encoder is {encoder.name} "
                f"({encoder.fingerprint}); give the same encoder"
            )
        return encoder

    def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Run the CNN on pictures from `load_image`: float32 (images, *feature_shape).

        Raises:
            InputError: a picture is of another size than the CNN takes.
        """
        shape = (self.encoder.image_size, self.encoder.image_size, 3)
        if wrong := [np.shape(picture) for picture in pixels if np.shape(picture) != shape]:
            raise InputError(f"a picture of shape {wrong[0]}: expected {shape}, see load_image")
        grid = encode_images(self.encoder, np.array(pixels).reshape(-1, *shape))
        return feature_view(grid, self.model.config.feature_shape)

    def caption_features(
        self, features: np.ndarray, beam_width: int = 1, length_penalty: float = LENGTH_PENALTY
    ) -> list[Caption]:
        """Caption encoded images.

        Args:
            features: (images, *feature_shape), any float type.
            beam_width: 1 is greedy search.
            length_penalty: see `captioning.decoding.beam_search`.

        Returns:
            One caption an image.

        Raises:
            InputError: the features, the beam or its penalty are none that the model can use.
        """
        if features.shape[1:] != (shape := tuple(self.model.config.feature_shape)):
            raise InputError(f"features of shape {features.shape}: expected (images, *{shape})")
        dtype = np.float16 if features.dtype == np.float16 else np.float32  # as a cache has them
        captions = []
        for start in range(0, len(features), BATCH_SIZE):
            batch = features[start : start + BATCH_SIZE].astype(dtype, copy=False)
            search = self._search(beam_width, length_penalty, dtype, len(batch) == 1)
            ids, scores = search(tf.constant(batch))
            captions += [
                Caption(self.vocabulary.decode(row), float(score))
                for row, score in zip(ids.numpy().tolist(), scores.numpy(), strict=True)
            ]
        return captions

    def caption_cached(
        self,
        cache: FeatureCache,
        images: Sequence[str],
        beam_width: int = 1,
        length_penalty: float = LENGTH_PENALTY,
    ) -> list[str]:
        """Caption images whose features are in `cache`, by their file names."""
        rows, shape = cache.rows(images), self.model.config.feature_shape
        captions = []
        for start in range(0, len(rows), BATCH_SIZE):  # no more features in memory than needed
            features = read_features(cache, rows[start : start + BATCH_SIZE], shape)
            found = self.caption_features(features, beam_width, length_penalty)
            captions += [caption.text for caption in found]
        return captions

    def caption(
        self,
        images: Photograph | Iterable[Photograph],
        beam_width: int = 1,
        length_penalty: float = LENGTH_PENALTY,
    ) -> str | list[str]:
        """Say what is on a photograph, or on each of several.

        Args:
            images: one photograph, or several.
            beam_width: captions followed at once; 1 is greedy search.
            length_penalty: see `captioning.decoding.beam_search`.

        Returns:
            The caption of one photograph; of several, a list.

        Raises:
            InputError: a photograph cannot be read.
        """
        found = self.describe(images, beam_width, length_penalty)
        if isinstance(found, Caption):
            return found.text
        return [caption.text for caption in found]

    def describe(
        self,
        images: Photograph | Iterable[Photograph],
        beam_width: int = 1,
        length_penalty: float = LENGTH_PENALTY,
    ) -> Caption | list[Caption]:
        """Caption as `caption` does, and tell how sure the model was."""
        if isinstance(images, Photograph):
            return self.describe([images], beam_width, length_penalty)[0]
        if not isinstance(images, Iterable) or isinstance(images, bytes | Mapping):
            raise _no_photograph(images)
        captions = []
        for batch in _batches(images, PHOTOGRAPHS):
            for image in batch:
                if not isinstance(image, Photograph):
                    raise _no_photograph(image)
            pixels = [load_image(image, self.encoder.image_size) for image in batch]
            captions += self.caption_features(self.encode(pixels), beam_width, length_penalty)
        return captions

    @property
    def has_attention(self) -> bool:
        """Whether the model looks at places of the image."""
        return self.model.config.attention == "grid"

    def attention(self, features: np.ndarray, captions: Sequence[str]) -> list[np.ndarray]:
        """Where the model looked for each word of each caption, averaged over the heads.

        Returns:
            One array an image: (words, rows, columns), each map summing to 1.

        Raises:
            InputError: the model has no attention.
        """
        if not self.has_attention:
            raise InputError("this model merges one vector an image; it has no attention to show")
        rows, columns, _ = self.checkpoint.encoder["grid_shape"]
        maps = []
        for feature, caption in zip(features, captions, strict=True):
            ids = self.vocabulary.encode(caption.split())[:-1]  # START and the words
            weights = self._look(
                tf.constant(feature[None], tf.float32), tf.constant([ids], tf.int32)
            )
            # the distribution after all words but the last chose the last
            maps.append(weights.numpy()[:-1].reshape(-1, rows, columns))
        return maps

    @cached_property
    def _look(self):
        """Compiled: features (1, P, C), words (1, T) -> attention after each word (T, P)."""
        shape = (1, *self.model.config.feature_shape)

        def look(features, words):
            outputs, _ = self.model.read_words(words)
            image = self.model.encode_image(features)
            _, weights = self.model.merge(outputs, image, return_attention=True)
            return tf.reduce_mean(weights[0], axis=0)

        signature = [tf.TensorSpec(shape, tf.float32), tf.TensorSpec((1, None), tf.int32)]
        return tf.function(look, input_signature=signature, autograph=False)

    def _search(self, beam_width: int, length_penalty: float, dtype: type, is_one: bool):
        """The compiled search: features -> ids (images, words), log-probabilities (images,).

        A step for one image is so little work that starting its operations takes most of the
        time; XLA makes one piece of code of them. Not in bfloat16, where it rounds in other
        places, and a picture alone would more often get another caption than among others.
        """
        if not isinstance(beam_width, numbers.Integral) or beam_width < 1:
            raise InputError(f"beam_width = {beam_width!r}: expected a whole number from 1 up")
        penalty = length_penalty
        if not isinstance(penalty, numbers.Real) or not 0 <= penalty <= MAX_LENGTH_PENALTY:
            raise InputError(
                f"length_penalty = {penalty!r}: expected a number from 0 to {MAX_LENGTH_PENALTY}"
            )
        beam_width, length_penalty = int(beam_width), float(penalty)  # none of NumPy's kinds
        key = (beam_width, length_penalty if beam_width > 1 else None, dtype, is_one)
        if key not in self._searches:
            shape = (1 if is_one else None, *self.model.config.feature_shape)

            def search(features):
                if beam_width == 1:
                    captions, log_probabilities = decode_greedily(self.model, features)
                else:
                    captions, log_probabilities = beam_search(
                        self.model, features, beam_width, length_penalty
                    )
                return captions[:, 0], log_probabilities[:, 0]

            self._searches[key] = tf.function(
                search,
                input_signature=[tf.TensorSpec(shape, dtype)],
                autograph=False,
                jit_compile=is_one and self.model.compute_dtype == "float32",
            )
        return self._searches[key]


def _batches(items: Iterable, size: int) -> Iterator[list]:
    """Cut `items` into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _no_photograph(thing: object) -> InputError:
    return InputError(
        f"{type(thing).__name__}: expected a photograph: the path of a file, a PIL image, or a "
        "uint8 array (height, width, 3); or a list of them"
    )


def feature_view(grid: np.ndarray, feature_shape: tuple[int, ...]) -> np.ndarray:
    """A grid (images, rows, columns, channels) as the model wants it: pooled or a list."""
    if len(feature_shape) == 1:
        return grid.mean((1, 2))
    return grid.reshape(len(grid), *feature_shape)


def read_features(
    cache: FeatureCache, rows: np.ndarray, feature_shape: tuple[int, ...]
) -> np.ndarray:
    """Rows of a cache as the model wants them: (rows, *feature_shape), as stored.

    Raises:
        InputError: the model needs the grid, and the cache has none.
    """
    array = cache.pooled if len(feature_shape) == 1 else cache.grid
    if array is None:
        raise InputError(
            f"{cache.folder}: has pooled features alone, but attention needs the grid; run "
            f"{MADE_BY} again with keep_grid = True"
        )
    return read_rows(array, rows).reshape(len(rows), *feature_shape)
