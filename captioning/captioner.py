"""A checkpoint, ready to caption photographs and cached features."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from captioning.captions import Caption, PhotoCaptioner, batched
from captioning.checkpoint import Checkpoint
from captioning.decoding import beam_search, decode_greedily
from captioning.encoders import WEIGHT_SUFFIXES, Encoder, load_encoder, require_same_encoder
from captioning.features import BATCH_SIZE, FeatureCache
from captioning.files import shipped

PRETRAINED = shipped("data/pretrained/captioner.safetensors")
DECODED_AT_ONCE = 100  # images


class Captioner(PhotoCaptioner):
    """A checkpoint, ready to caption.

    `encoder` is a `.keras` file of the CNN, or an `.h5` file with the weights of the one that the
    checkpoint names; None to load that one by its name.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: str | os.PathLike | None = None):
        self.checkpoint, self.model = checkpoint, checkpoint.model
        self.vocabulary, self.config = checkpoint.vocabulary, checkpoint.model.config
        self.has_attention = checkpoint.model.has_attention
        self.encoder_name = checkpoint.encoder["name"]
        self.image_size = checkpoint.encoder["image_size"]
        self.grid_shape = checkpoint.encoder["grid_shape"]
        self._encoder_file = encoder
        self._search = functools.cache(self._compile_search)
        self._step = tf.function(self.model.step, autograph=False, reduce_retracing=True)

    @classmethod
    def load(cls, path=None, encoder=None, names: bool = True) -> "Captioner":
        """Load a checkpoint, the shipped captioner if `path` is None, or raise InputError.

        With `names` captions are given the right names, see `captioning.extras.serve.names`.
        """
        captioner = cls(Checkpoint.load(path or PRETRAINED), encoder)
        captioner.source = str(path or PRETRAINED)
        return captioner.with_names() if names else captioner

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The CNN that the model was trained with; InputError if that one cannot be loaded."""
        expected = self.checkpoint.encoder
        name, weights = str(self._encoder_file or expected["name"]), None
        if Path(name).suffix in WEIGHT_SUFFIXES:
            name, weights = expected["name"], name
        encoder = load_encoder(name, weights, expected["image_size"])
        require_same_encoder(self.source or "the model", expected, encoder.to_json())
        return encoder

    def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """As `PhotoCaptioner.encode`."""
        parts = [self.encoder.encode(np.array(part)) for part in batched(pixels, BATCH_SIZE)]
        grid = np.concatenate(parts)
        if len(self.model.feature_shape) == 1:
            return grid.mean((1, 2))
        return grid.reshape(len(grid), *self.model.feature_shape)

    def caption_cached(self, cache: FeatureCache, images: Sequence[str], *search) -> list[str]:
        """Caption images whose features are in `cache`, by their file names."""
        rows = tqdm(cache.rows(images), unit=" images", leave=False, disable=None)
        batches = (np.array(batch) for batch in batched(rows, DECODED_AT_ONCE))
        features = (cache.read(batch, self.model.feature_shape) for batch in batches)
        found = (self.caption_features(part, *search) for part in features)
        return [caption.text for captions in found for caption in captions]

    def search(self, features, beam_width, length_penalty, n_best) -> list[Caption]:
        """As `PhotoCaptioner.search`."""
        options = (int(beam_width), float(length_penalty), int(n_best))
        batch = tf.constant(features)
        found = self._search(*options, batch.dtype, is_one=len(batch) == 1)(batch)
        images = zip(*(part.numpy() for part in found), strict=True)  # (N, L) of each
        return [Caption.from_search(self.vocabulary, zip(*image, strict=True)) for image in images]

    def begin(self, feature: np.ndarray) -> Callable:
        """Captions of one encoded image, step by step: see `captioning.extras.serve.searches`."""
        image, state = self.model.encode_image(feature[None]), self.model.initial_state(1)

        def step(words: Sequence[int], rows: Sequence[int]) -> np.ndarray:
            nonlocal state
            state = [tf.gather(part, rows) for part in state]
            scores, state = self._step(tf.constant([words]), state, image)
            return scores.numpy()[0]

        return step

    def _compile_search(self, width, length_penalty, n_best, dtype, is_one):
        """The compiled search: features -> Captions.

        A step for one image is so little work that launching its operations dominates; XLA fuses
        them. Not in bfloat16, where XLA rounds elsewhere and the caption could change.
        """
        model, config = self.model, self.config
        signature = [tf.TensorSpec((1 if is_one else None, *model.feature_shape), dtype)]
        is_fused = is_one and model.compute_dtype == "float32"

        def search(features):
            if width == 1:
                return decode_greedily(model, features, config.max_words)
            limits = (config.max_words, n_best, config.min_words, config.no_repeat_ngram)
            return beam_search(model, features, width, length_penalty, *limits)

        return tf.function(search, signature, autograph=False, jit_compile=is_fused)

    def look(self, feature: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """As `PhotoCaptioner.look`: the mean over the heads."""
        outputs, _ = self.model.read_words(ids)
        _, weights = self.model.merge(outputs, self.model.encode_image(feature[None]))
        return np.mean(weights[0], axis=0)
