"""The captions and cached features of a split, in batches of similar lengths."""

from typing import NamedTuple

import numpy as np

from captioning.errors import InputError
from captioning.prepared import Prepared
from captioning.vocabulary import END

CAPTIONS_PER_IMAGE = 5  # share one encoded image in a batch; an image with more comes again
LENGTH_JITTER = 2.0  # words; batches hold captions of similar, not of sorted, lengths


class Batch(NamedTuple):
    """Some captions of I images."""

    images: np.ndarray  # int (I,), indices in the split
    mirrored: np.ndarray  # bool (I,), whether to use the features of the mirrored image
    words: np.ndarray  # int32 (I, K, T), START to END, then pads; may have rows of pads


class Split:
    """The captions and features of one split; longer captions than `max_words` are cut.

    `caches` are the feature cache and, if there is one, that of the mirrored images; the model
    takes features of `shape`. InputError if no image has captions and features.
    """

    def __init__(self, prepared: Prepared, name: str, caches: list, shape: tuple, max_words: int):
        self.tokens, self._caches, self._shape = prepared.tokens(name), caches, shape
        self._rows = [cache.rows(prepared.images(name)) for cache in caches]
        lengths = np.diff(self.tokens.offsets)
        self._lengths = np.minimum(lengths, max_words + 2)
        usable = np.flatnonzero(self._rows[0][self.tokens.images] >= 0)
        if not len(usable):
            raise InputError(f"{prepared.folder}: the {name} split has no captioned image to use")
        self.images, starts = np.unique(self.tokens.images[usable], return_index=True)
        self._captions_of = np.split(usable, starts[1:])
        self.caption_count = len(usable)
        self.cut_count = np.count_nonzero(lengths[usable] > max_words + 2)

    def features(self, images: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Read features: image indices (I,), bool (I,) -> (I, *feature_shape), as stored."""
        batch = self._caches[0].read(self._rows[0][images], self._shape)
        if mirrored.any():
            rows = self._rows[1][images[mirrored]]
            batch[mirrored] = self._caches[1].read(rows, self._shape)
        return batch

    def draw_mirrored(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Toss a coin for each image: bool (I,), whether to use its mirrored features."""
        if len(self._caches) == 1:
            return np.zeros(len(images), bool)
        return (rng.random(len(images)) < 0.5) & (self._rows[1][images] >= 0)

    def batches(self, batch_size: int, seed: tuple[int, ...]) -> list[Batch]:
        """All captions once, at most `batch_size` per batch, in an order given by `seed`."""
        rng = np.random.default_rng(seed)
        most = min(CAPTIONS_PER_IMAGE, batch_size)
        groups = [
            group
            for captions in self._captions_of
            for group in np.split(rng.permutation(captions), range(most, len(captions), most))
        ]
        longest = np.array([self._lengths[group].max() for group in groups])
        order = np.argsort(longest + rng.uniform(-LENGTH_JITTER, LENGTH_JITTER, len(groups)))
        batches = [[]]
        for number in order:
            if sum(map(len, batches[-1])) + len(groups[number]) > batch_size:
                batches.append([])
            batches[-1].append(groups[number])
        rng.shuffle(batches)
        return [self._batch(groups, rng) for groups in batches]

    def _batch(self, groups: list[np.ndarray], rng: np.random.Generator) -> Batch:
        length = max(self._lengths[group].max() for group in groups)
        words = np.zeros((len(groups), max(map(len, groups)), length), np.int32)  # PAD is 0
        for i, group in enumerate(groups):
            for k, caption in enumerate(group):
                ids = self.tokens[caption][: self._lengths[caption]]
                words[i, k, : len(ids)] = ids
                words[i, k, len(ids) - 1] = END
        images = self.tokens.images[[group[0] for group in groups]]
        return Batch(images, self.draw_mirrored(images, rng), words)
