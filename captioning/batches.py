"""The captions and cached features of a split, drawn in batches of similar lengths."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from captioning.captioner import read_features
from captioning.features import MADE_BY, FeatureCache, cache_folder
from captioning.files import InputError
from captioning.prepared import CaptionTokens, Prepared
from captioning.vocabulary import END, PAD

MIRRORED = cache_folder("", "", mirrored=True).name
LENGTH_JITTER = 2.0  # words; batches hold captions of similar, not of sorted, lengths


def open_caches(
    data: str | os.PathLike, encoder: str | None = None, mirrored: bool = True
) -> list[FeatureCache]:
    """The feature cache of a prepared folder, then the mirrored one if wanted and there.

    Args:
        data: the prepared folder.
        encoder: whose features; may be left out where only one encoder's are there.
        mirrored: whether to look for the mirrored images' features.

    Raises:
        InputError: no such cache, or several to choose from.
    """
    if encoder is None:
        folders = sorted(Path(data, "features").glob("*/index.json"))
        names = [path.parent.name for path in folders]
        names = [name for name in names if not name.endswith(MIRRORED)]
        if len(names) != 1:
            place = Path(data, "features")
            if names:
                problem = f"features of {', '.join(names)}; choose with --encoder"
            elif shares := sorted(place.glob("*/share-*/share.json")):
                whole = shares[0].parent.parent
                problem = f"shares alone; merge them: python -m captioning.shares merge {whole}"
            else:
                problem = f"no features; run {MADE_BY} first"
            raise InputError(f"{place}: {problem}")
        encoder = names[0]
    caches = [FeatureCache.open(cache_folder(data, encoder))]
    mirror = cache_folder(data, encoder, mirrored=True)
    if mirrored and (mirror / "index.json").exists():
        caches.append(FeatureCache.open(mirror))
        if caches[1].encoder != caches[0].encoder:
            raise InputError(
                f"{mirror}: made by another encoder ({caches[1].encoder}) than {caches[0].folder} "
                f"({caches[0].encoder}); run {MADE_BY} again"
            )
    return caches


def feature_shape(cache: FeatureCache, attention: str) -> tuple[int, ...]:
    """What the model takes of each image: (C,) pooled, or (P, C) for attention over a grid.

    Raises:
        InputError: attention is asked for, but the cache has no grid.
    """
    rows, columns, channels = cache.encoder["grid_shape"]
    if attention == "none":
        return (channels,)
    if cache.grid is None:
        raise InputError(
            f"{cache.folder}: has pooled features alone; for attention run {MADE_BY} again with "
            "keep_grid = True"
        )
    return (rows * columns, channels)


class Split:
    """The captions and features of one split, ready to be drawn in batches.

    Args:
        prepared: the prepared folder.
        name: "train" or "dev".
        caches: the feature cache, and the one of the mirrored images if there is one.
        feature_shape: (C,) or (P, C), what the model takes.
    """

    def __init__(
        self,
        prepared: Prepared,
        name: str,
        caches: list[FeatureCache],
        feature_shape: tuple[int, ...],
    ):
        """Look up the rows; features stay on disk."""
        self.tokens: CaptionTokens = prepared.tokens(name)
        self.rows = caches[0].rows(prepared.images(name))
        self.mirrored_rows = caches[1].rows(prepared.images(name)) if len(caches) > 1 else None
        self.feature_shape = feature_shape
        self._caches = caches
        by_image = np.argsort(self.tokens.images, kind="stable")
        starts = np.flatnonzero(np.diff(self.tokens.images[by_image])) + 1
        self._captions_of = [
            captions
            for captions in np.split(by_image, starts)
            if len(captions) and self.rows[self.tokens.images[captions[0]]] >= 0
        ]
        self.images = np.array([self.tokens.images[c[0]] for c in self._captions_of])
        if not self._captions_of:
            raise InputError(f"{prepared.folder}: the {name} split has no captioned image to use")

    def group_count(self, captions_per_image: int) -> int:
        """How many groups of up to `captions_per_image` captions of one image there are."""
        return sum(-(-len(captions) // captions_per_image) for captions in self._captions_of)

    @property
    def caption_count(self) -> int:
        """Captions that are used, those of unreadable images left out."""
        return sum(map(len, self._captions_of))

    def features(self, images: np.ndarray, mirrored: np.ndarray | None = None) -> np.ndarray:
        """Read features: image indices (I,) -> (I, *feature_shape), as stored.

        `mirrored`, bool (I,), takes those from the cache of the mirrored images.
        """
        batch = read_features(self._caches[0], self.rows[images], self.feature_shape)
        if mirrored is not None and mirrored.any():
            rows = self.mirrored_rows[images[mirrored]]
            batch[mirrored] = read_features(self._caches[1], rows, self.feature_shape)
        return batch

    def batches(
        self,
        batch_size: int,
        captions_per_image: int,
        max_words: int,
        seed: tuple[int, ...],
        part: Callable[[int], slice] = slice,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield every caption once, in batches of similar lengths, in an order given by `seed`.

        Args:
            batch_size: captions a batch.
            captions_per_image: K; an image with more comes several times.
            max_words: longer captions are cut.
            seed: of everything random.
            part: of a batch of so many images, which to yield; features of others are not read.

        Yields:
            features (I, *feature_shape) as stored, and words int32 (I, captions_per_image, T),
            START to END, padded with PAD; missing captions are rows of pads.
        """
        rng = np.random.default_rng(seed)
        lengths = np.minimum(np.diff(self.tokens.offsets), max_words + 2)
        groups = []
        for captions in self._captions_of:
            captions = rng.permutation(captions)
            groups += [
                captions[start : start + captions_per_image]
                for start in range(0, len(captions), captions_per_image)
            ]
        longest = np.array([lengths[group].max() for group in groups])
        order = np.argsort(longest + rng.uniform(-LENGTH_JITTER, LENGTH_JITTER, len(groups)))
        images_per_batch = max(1, batch_size // captions_per_image)
        batches = [
            order[start : start + images_per_batch]
            for start in range(0, len(order), images_per_batch)
        ]
        rng.shuffle(batches)
        for batch in batches:
            words = np.full((len(batch), captions_per_image, longest[batch].max()), PAD, np.int32)
            for i, group in enumerate(batch):
                for k, caption in enumerate(groups[group]):
                    ids = self.tokens[caption][: lengths[caption]]
                    words[i, k, : len(ids)] = ids
                    words[i, k, len(ids) - 1] = END
            images = self.tokens.images[[groups[group][0] for group in batch]]
            mirrored = self.draw_mirrored(images, rng)
            mine = part(len(images))
            if mirrored is not None:
                mirrored = mirrored[mine]
            yield self.features(images[mine], mirrored), words[mine]

    def draw_mirrored(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """Toss a coin for each image: bool (I,), whether to take the mirrored features."""
        if self.mirrored_rows is None:
            return None
        return (rng.random(len(images)) < 0.5) & (self.mirrored_rows[images] >= 0)
