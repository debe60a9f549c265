"""A checkpoint, ready to caption photographs and cached features."""

import argparse
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from captioning.checkpoint import Checkpoint
from captioning.config import BEAM_WIDTH, LENGTH_PENALTY, MAX_LENGTH_PENALTY
from captioning.decoding import beam_search, decode_greedily
from captioning.encoders import WEIGHT_SUFFIXES, Encoder, encoder_label, load_encoder
from captioning.errors import InputError, log
from captioning.features import FeatureCache
from captioning.files import shipped
from captioning.images import Photograph, load_image
from captioning.vocabulary import END, TOKENIZERS

PRETRAINED = shipped("data/pretrained/captioner.safetensors")
DECODED_AT_ONCE, OPENED_AT_ONCE = 100, 16  # images


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption, and how sure the model was.

    Attributes:
        text: the caption, in lower case.
        words: its words.
        probabilities: of each word given those before it, and of the end: one more than words.
    """

    text: str
    words: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def log_probability(self) -> float:
        """Natural logarithm of the probability of the whole caption, its end included."""
        return sum(math.log(max(p, 1e-300)) for p in self.probabilities)

    @property
    def confidence(self) -> float:
        """The geometric mean of the probabilities."""
        return math.exp(self.log_probability / len(self.probabilities))

    def line(self, path: Path, as_json: bool) -> str:
        """The caption of a file, as one line of text or JSON."""
        if as_json:
            line = {"image": str(path), "caption": self.text}
            line |= {"log_probability": self.log_probability, "confidence": self.confidence}
            return json.dumps(line, ensure_ascii=False)
        name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
        return f"{name}: {self.text}"


class Captioner:
    """A checkpoint, ready to caption.

    Args:
        checkpoint: the model with its vocabulary.
        encoder: `.keras` file of the CNN, or an `.h5` file with the weights of the one that the
            checkpoint names; None to load that one by its name.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: str | os.PathLike | None = None):
        """The CNN is loaded with the first photograph."""
        self.checkpoint, self.model = checkpoint, checkpoint.model
        self.vocabulary = checkpoint.vocabulary
        self.has_attention = checkpoint.model.has_attention
        self._encoder_name = encoder
        self._searches = {}

    @classmethod
    def load(
        cls, path: str | os.PathLike | None = None, encoder: str | os.PathLike | None = None
    ) -> "Captioner":
        """Load a checkpoint, the shipped captioner if `path` is None, or raise InputError."""
        return cls(Checkpoint.load(path or PRETRAINED), encoder)

    @cached_property
    def encoder(self) -> Encoder:
        """The CNN that the model was trained with; InputError if that one cannot be loaded."""
        expected = self.checkpoint.encoder
        name, weights = str(self._encoder_name or expected["name"]), None
        if Path(name).suffix in WEIGHT_SUFFIXES:
            name, weights = expected["name"], name
        encoder = load_encoder(name, weights, expected["image_size"])
        if encoder.fingerprint != expected["fingerprint"]:
            raise InputError(
                f"the model was trained on features of {encoder_label(expected)},\n"
                f"this encoder is {encoder_label(encoder.to_json())}; give the same with --encoder"
            )
        return encoder

    def caption(
        self,
        images: Photograph | Iterable[Photograph],
        beam_width: int = BEAM_WIDTH,
        length_penalty: float = LENGTH_PENALTY,
    ) -> str | list[str]:
        """Caption one photograph (-> text) or several (-> list), or raise InputError.

        Beam search keeps `beam_width` unfinished captions; 1 is greedy decoding. For the length
        penalty see `captioning.decoding.beam_search`.
        """
        found = self.describe(images, beam_width, length_penalty)
        return found.text if isinstance(found, Caption) else [caption.text for caption in found]

    def describe(
        self,
        images: Photograph | Iterable[Photograph],
        beam_width: int = BEAM_WIDTH,
        length_penalty: float = LENGTH_PENALTY,
    ) -> Caption | list[Caption]:
        """As `caption`, with the probability of each word."""
        if isinstance(images, Photograph):
            return self.describe([images], beam_width, length_penalty)[0]
        captions = []
        for batch in batched(images, OPENED_AT_ONCE):
            pixels = [load_image(image, self.encoder.image_size) for image in batch]
            captions += self.caption_features(self.encode(pixels), beam_width, length_penalty)
        return captions

    def caption_files(
        self, paths: Iterable[Path], beam_width: int, length_penalty: float
    ) -> Iterator[tuple[Path, Caption | InputError]]:
        """Yield each path with its caption, or with the error of a file that cannot be read."""
        for batch in batched(paths, OPENED_AT_ONCE):
            pixels, found = [], {}
            for path in batch:
                try:
                    pixels.append(load_image(path, self.encoder.image_size))
                except InputError as error:
                    found[path] = error
            if pixels:
                captions = self.caption_features(self.encode(pixels), beam_width, length_penalty)
                good = [path for path in batch if path not in found]
                found |= zip(good, captions, strict=True)
            yield from ((path, found[path]) for path in batch)

    def print_captions(
        self, paths: Sequence[Path], options: argparse.Namespace
    ) -> tuple[list[tuple[Path, Caption]], int]:
        """Print the caption of each file, or its error to stderr; returns captions, exit status."""
        captions = []
        for path, found in self.caption_files(paths, options.beam_width, options.length_penalty):
            if isinstance(found, InputError):
                log(f"error: {found}")
                continue
            if not found.text:
                log(f"{path}: the caption is empty; train the model for longer")
            print(found.line(path, options.json), flush=True)
            captions.append((path, found))
        failed = 1 if len(paths) > 1 else 2
        return captions, 0 if len(captions) == len(paths) else failed

    def caption_cached(
        self, cache: FeatureCache, images: Sequence[str], beam_width: int, length_penalty: float
    ) -> list[str]:
        """Caption images whose features are in `cache`, by their file names."""
        captions = []
        with tqdm(total=len(images), unit=" images", leave=False, disable=None) as progress:
            for rows in batched(cache.rows(images), DECODED_AT_ONCE):
                features = cache.read(np.array(rows), self.model.feature_shape)
                captions += self.caption_features(features, beam_width, length_penalty)
                progress.update(len(rows))
        return [caption.text for caption in captions]

    def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Run the CNN on pictures from `load_image` -> float32 (images, *feature_shape)."""
        grid = self.encoder.encode(np.array(pixels))
        if not self.has_attention:
            return grid.mean((1, 2))
        return grid.reshape(len(grid), *self.model.feature_shape)

    def caption_features(
        self, features: np.ndarray, beam_width: int, length_penalty: float = LENGTH_PENALTY
    ) -> list[Caption]:
        """Caption encoded images (images, *feature_shape), float16 or float32: one each."""
        captions = []
        for start in range(0, len(features), DECODED_AT_ONCE):
            batch = features[start : start + DECODED_AT_ONCE]
            found = self._search(beam_width, length_penalty, batch)(tf.constant(batch))
            for ids, logs in zip(*(part.numpy()[:, 0] for part in found), strict=True):
                words = self.vocabulary.words_of(ids.tolist())
                probabilities = np.exp(logs[: ids.tolist().index(END) + 1]).tolist()
                text = self.vocabulary.join(words)
                captions.append(Caption(text, tuple(words), tuple(probabilities)))
        return captions

    def _search(self, beam_width: int, length_penalty: float, batch: np.ndarray):
        """The compiled search: features -> Captions.

        A step for one image is so little work that launching its operations dominates; XLA fuses
        them. Not in bfloat16, where XLA rounds elsewhere and the caption could change.
        """
        if beam_width < 1 or not 0 <= length_penalty <= MAX_LENGTH_PENALTY:
            raise InputError(
                f"beam_width = {beam_width}, length_penalty = {length_penalty}: expected a width "
                f"from 1 up and a penalty from 0 to {MAX_LENGTH_PENALTY:g}"
            )
        is_one = len(batch) == 1
        key = (int(beam_width), float(length_penalty), batch.dtype, is_one)
        if key not in self._searches:
            max_words = self.model.config.max_words

            def search(features):
                if beam_width == 1:
                    return decode_greedily(self.model, features, max_words)
                return beam_search(self.model, features, *key[:2], max_words)

            shape = (1 if is_one else None, *self.model.feature_shape)
            self._searches[key] = tf.function(
                search,
                input_signature=[tf.TensorSpec(shape, batch.dtype)],
                autograph=False,
                jit_compile=is_one and self.model.compute_dtype == "float32",
            )
        return self._searches[key]

    def attention(self, features: np.ndarray, captions: Sequence[str]) -> list[np.ndarray]:
        """Where the model looked for each word of each caption, averaged over the heads.

        Returns one array (words, rows, columns) per image; each map sums to 1.
        """
        rows, columns, _ = self.checkpoint.encoder["grid_shape"]
        maps = []
        for feature, caption in zip(features, captions, strict=True):
            words = TOKENIZERS[self.vocabulary.tokenizer](caption)
            ids = tf.constant([self.vocabulary.encode(words)[:-1]])  # without END
            weights = self._look(tf.constant(feature[None], tf.float32), ids).numpy()
            # the prediction after all words but the last chose the last
            maps.append(weights[:-1].reshape(-1, rows, columns))
        return maps

    @cached_property
    def _look(self):
        """Compiled: features (1, P, C), words (1, T) -> attention after each word (T, P)."""

        def look(features, words):
            outputs, _ = self.model.read_words(words)
            _, weights = self.model.merge(outputs, self.model.encode_image(features))
            return tf.reduce_mean(weights[0], axis=0)

        features = tf.TensorSpec((1, *self.model.feature_shape), tf.float32)
        words = tf.TensorSpec((1, None), tf.int32)
        return tf.function(look, input_signature=[features, words], autograph=False)


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Cut `items` into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
