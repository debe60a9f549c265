"""Synthetic data of realistic sizes: captions, cached features, photographs, word vectors.

The words of a caption are drawn position by position: each position has its own words, some
frequent and most rare, and the image determines how long its captions are. A model learns both in
seconds. It is then about as unsure of each next word as a captioner of photographs (2.8 nats), so
searches do realistic work.
"""

import itertools
import string
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import train
from captioning.batches import CAPTIONS_PER_IMAGE, Batch, Split
from captioning.checkpoint import Checkpoint, feature_shape
from captioning.config import Config
from captioning.datasets import CaptionDataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.features import VERSION, cache_folder, open_caches
from captioning.files import json_bytes, write_bytes
from captioning.prepared import Prepared, write_captions, write_embeddings
from captioning.steps import OneDevice, Steps
from captioning.vocabulary import SPECIALS, Vocabulary

WORDS = 2540  # specials included; Flickr8k's words that occur five times
MEAN_LENGTH, LENGTH_DEVIATION = 10.8, 3.75  # words per caption; Flickr8k's training captions
SHORTEST, LONGEST = 2, 30
EMBEDDING_SIZE = 300
ENCODER = {  # with the grid of the bundled one
    "name": "synthetic",
    "image_size": 260,
    "grid_shape": [9, 9, 1280],
    "fingerprint": "0" * 16,
}
DEV_IMAGES = 100


def draw_lengths(images: int, rng: np.random.Generator) -> np.ndarray:
    """Words of each caption, int (images, CAPTIONS_PER_IMAGE), gamma-distributed as Flickr8k's.

    Captions of one image have similar lengths, so the image predicts the length.
    """
    scale = LENGTH_DEVIATION**2 / MEAN_LENGTH
    typical = rng.gamma(MEAN_LENGTH / scale, scale, images)
    drawn = rng.normal(typical[:, None], 1.0, (images, CAPTIONS_PER_IMAGE))
    return drawn.round().astype(int).clip(SHORTEST, LONGEST)


def draw_captions(lengths: np.ndarray, words: list[str], rng: np.random.Generator) -> list:
    """Lengths (images, captions) -> the captions of each image."""
    by_place = np.array(words[: len(words) // LONGEST * LONGEST]).reshape(LONGEST, -1)
    frequency = 1 / np.arange(1, by_place.shape[1] + 1) ** 1.3  # Zipf's law, 2.8 nats per word
    count, ends = lengths.sum(), np.cumsum(lengths)
    ranks = rng.choice(len(frequency), count, p=frequency / frequency.sum())
    places = np.arange(count) - np.repeat(ends - lengths.ravel(), lengths.ravel())
    captions = iter(np.split(by_place[places, ranks], ends[:-1]))
    return [[" ".join(next(captions)) for _ in image] for image in lengths]


def write_prepared(folder: Path, images: int, encoder: dict = ENCODER, sparse=False) -> Path:
    """Write a prepared folder with `images` training images and DEV_IMAGES dev images.

    `encoder` is what the features claim to be of. Sparse features are zeros, in files that take no
    disk space.
    """
    rng = np.random.default_rng(0)
    names = [f"{number:06}.jpg" for number in range(images + DEV_IMAGES)]
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    words = ["".join(word) for word in itertools.islice(letters, WORDS - len(SPECIALS))]
    lengths = draw_lengths(len(names), rng)
    captions = dict(zip(names, draw_captions(lengths, words, rng), strict=True))
    splits = {"train": names[:images], "dev": names[images:]}
    vocabulary = Vocabulary([*SPECIALS, *words], [1] * WORDS)
    dataset = CaptionDataset("csv", folder, captions, splits, "drawn", {}, [])
    write_captions(folder, dataset, vocabulary, LONGEST, {})
    drawn = rng.normal(0, 0.3, (len(words), EMBEDDING_SIZE)).astype(np.float32)
    vectors = WordVectors(EMBEDDING_SIZE, dict(zip(words, drawn, strict=True)))
    write_embeddings(folder, embedding_matrix(vocabulary, vectors), "drawn")
    _write_features(folder, names, encoder, None if sparse else lengths, rng)
    return folder


def _write_features(prepared: Path, names: list[str], encoder: dict, lengths, rng) -> None:
    """Noise, shifted in one direction by the length of an image's captions; zeros without them."""
    folder = cache_folder(prepared, encoder["name"])
    folder.mkdir(parents=True)
    grid_shape, new = tuple(encoder["grid_shape"]), np.lib.format.open_memmap
    pooled = new(folder / "pooled.npy", "w+", np.float32, (len(names), grid_shape[-1]))
    grid = new(folder / "grid.npy", "w+", np.float16, (len(names), *grid_shape))
    if lengths is not None:
        direction = rng.standard_normal(grid_shape[-1], np.float32)
        signal = (lengths.mean(1) - MEAN_LENGTH) / LENGTH_DEVIATION
        for row in range(len(names)):
            drawn = rng.standard_normal(grid_shape, np.float32) + signal[row] * direction
            drawn = np.maximum(drawn, 0)  # as after a ReLU
            grid[row], pooled[row] = drawn, drawn.mean((0, 1))
    numbers = [f"{row:016x}" for row in range(len(names))]
    index = {"version": VERSION, "complete": True, "encoder": encoder, "mirrored": False}
    index |= {"arrays": ["pooled", "grid"], "images": names, "failed": {}}
    index |= {"digests": numbers, "hashes": numbers}
    write_bytes(folder / "index.json", json_bytes(index))


class Training:
    """The default model on a folder of `write_prepared`, ready to train for some steps."""

    def __init__(self, folder: Path, attention: str, **settings):
        self.config = Config(attention=attention, max_words=LONGEST, **settings)
        prepared, caches = Prepared(folder), open_caches(folder)
        shape = feature_shape(caches[0].encoder, attention)
        self.split = Split(prepared, "train", caches, shape, LONGEST)
        self.model = train.build_model(self.config, prepared, shape)
        self.steps = Steps(self.model, self.config, OneDevice())
        self.checkpoint = Checkpoint(self.model, prepared.vocabulary, caches[0].encoder, {})

        # the mean number of words to predict, END included
        self.words_per_caption = len(self.split.tokens.ids) / len(self.split.tokens) - 1
        self._batches = self._draw_batches()

    def train(self, steps: int) -> float:
        """Train for some steps, features read from disk; captions of the mean length per second."""
        batches = list(itertools.islice(self._batches, steps))
        words, started = 0.0, time.perf_counter()
        for batch in batches:
            features = self.split.features(batch.images, batch.mirrored)
            words += float(self.steps.train(features, batch.words)[1])
        return words / self.words_per_caption / (time.perf_counter() - started)

    def _draw_batches(self) -> Iterator[Batch]:
        for epoch in itertools.count(1):
            yield from self.split.batches(self.config.batch_size, (self.config.seed, epoch))


def write_photographs(folder: Path, sources: list[Path], count: int) -> list[Path]:
    """Copies of the photographs `sources` of Flickr8k's size: JPEG, 500 x 375, quality 90."""
    folder.mkdir(parents=True)
    pictures = [Image.open(source).convert("RGB").resize((500, 375)) for source in sources]
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for path, picture in zip(paths, itertools.cycle(pictures), strict=False):
        picture.save(path, quality=90)
    return paths


def write_vectors(path: Path, rows: int, dimension: int) -> list[str]:
    """Write a `.vec` file of `rows` words; returns the words, in order.

    The numbers repeat after 1,000 rows: drawing and printing all of them would take minutes.
    """
    drawn = np.random.default_rng(0).normal(0, 0.3, (1000, dimension))
    numbers = [" ".join(f"{value:.4f}" for value in vector) for vector in drawn]
    words = [f"word{row}" for row in range(rows)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{rows} {dimension}\n")
        file.writelines(f"{word} {numbers[row % 1000]}\n" for row, word in enumerate(words))
    return words
