"""The captions and cached features of a split, in batches of similar lengths."""

from typing import NamedTuple

import numpy as np

from captioning.errors import InputError
from captioning.features import FeatureCache
from captioning.prepared import Prepared
from captioning.vocabulary import END, PAD

CAPTIONS_PER_IMAGE = 5  # share one encoded image in a batch; an image with more comes again
LENGTH_JITTER = 2.0  # words; batches hold captions of similar, not of sorted, lengths


class Batch(NamedTuple):
    """Some captions.

    Attributes:
        images: int (I,), indices in the split.
        mirrored: bool (I,), whether to use the features of the mirrored image.
        words: int32 (I, K, T), START to END, then pads; a missing caption is a row of pads.
    """

    images: np.ndarray
    mirrored: np.ndarray
    words: np.ndarray


class Split:
    """The captions and features of one split.

    Args:
        prepared: the prepared folder.
        name: "train" or "dev".
        caches: the feature cache, and that of the mirrored images if there is one.
        feature_shape: (C,) or (P, C), what the model takes.
        max_words: longer captions are cut.

    Raises:
        InputError: the split has no image with captions and features.
    """

    def __init__(
        self,
        prepared: Prepared,
        name: str,
        caches: list[FeatureCache],
        feature_shape: tuple[int, ...],
        max_words: int,
    ):
        """Look up the rows of the images; features stay on disk."""
        self.tokens = prepared.tokens(name)
        self.rows = caches[0].rows(prepared.images(name))
        self._mirrored_rows = caches[1].rows(prepared.images(name)) if len(caches) > 1 else None
        self._caches, self._feature_shape = caches, feature_shape
        self._lengths = np.minimum(np.diff(self.tokens.offsets), max_words + 2)
        by_image = np.argsort(self.tokens.images, kind="stable")
        starts = np.flatnonzero(np.diff(self.tokens.images[by_image])) + 1
        self._captions_of = [
            captions
            for captions in np.split(by_image, starts)
            if len(captions) and self.rows[self.tokens.images[captions[0]]] >= 0
        ]
        if not self._captions_of:
            raise InputError(f"{prepared.folder}: the {name} split has no captioned image to use")
        self.images = np.array([self.tokens.images[c[0]] for c in self._captions_of])
        self.caption_count = sum(map(len, self._captions_of))
        self.cut_count = int((np.diff(self.tokens.offsets) > max_words + 2).sum())

    def features(self, images: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Read features: image indices (I,), bool (I,) -> (I, *feature_shape), as stored."""
        batch = self._caches[0].read(self.rows[images], self._feature_shape)
        if mirrored.any():
            rows = self._mirrored_rows[images[mirrored]]
            batch[mirrored] = self._caches[1].read(rows, self._feature_shape)
        return batch

    def draw_mirrored(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Toss a coin for each image: bool (I,), whether to use its mirrored features."""
        if self._mirrored_rows is None:
            return np.zeros(len(images), bool)
        return (rng.random(len(images)) < 0.5) & (self._mirrored_rows[images] >= 0)

    def batches(self, batch_size: int, seed: tuple[int, ...]) -> list[Batch]:
        """All captions once, in batches of similar lengths, in an order given by `seed`.

        Args:
            batch_size: captions per batch; the captions of an image stay together.
            seed: of everything random.
        """
        rng = np.random.default_rng(seed)
        groups = [
            group
            for captions in self._captions_of
            for group in np.split(
                rng.permutation(captions),
                range(CAPTIONS_PER_IMAGE, len(captions), CAPTIONS_PER_IMAGE),
            )
        ]
        longest = np.array([self._lengths[group].max() for group in groups])
        order = np.argsort(longest + rng.uniform(-LENGTH_JITTER, LENGTH_JITTER, len(groups)))
        batches, size = [[]], 0
        for number in order:
            if batches[-1] and size + len(groups[number]) > batch_size:
                batches.append([])
                size = 0
            batches[-1].append(groups[number])
            size += len(groups[number])
        rng.shuffle(batches)
        return [self._batch(groups, rng) for groups in batches]

    def _batch(self, groups: list[np.ndarray], rng: np.random.Generator) -> Batch:
        width, length = max(map(len, groups)), max(self._lengths[group].max() for group in groups)
        words = np.full((len(groups), width, length), PAD, np.int32)
        for i, group in enumerate(groups):
            for k, caption in enumerate(group):
                ids = self.tokens[caption][: self._lengths[caption]]
                words[i, k, : len(ids)] = ids
                words[i, k, len(ids) - 1] = END
        images = self.tokens.images[[group[0] for group in groups]]
        return Batch(images, self.draw_mirrored(images, rng), words)
