"""Data of realistic sizes, drawn: captions, cached features, photographs, word vectors.

A caption's words are drawn place by place: each place has words of its own, some frequent and
most rare, and the image tells how long its captions are. A model learns both in seconds, and is
then about as unsure of each next word as a captioner of photographs (2.8 nats), so that searches
do realistic work.
"""

import itertools
import string
from pathlib import Path

import numpy as np
from PIL import Image

from captioning.batches import feature_shape, open_caches
from captioning.checkpoint import Checkpoint
from captioning.dataset import CaptionDataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.features import cache_folder
from captioning.files import write_json
from captioning.model import ModelConfig
from captioning.prepared import Prepared, write_captions, write_embeddings
from captioning.training import Trainer, TrainingConfig
from captioning.vocabulary import SPECIALS, Vocabulary

WORDS = 2540  # specials included; Flickr8k's words that occur five times
CAPTIONS_AN_IMAGE = 5
MEAN_LENGTH, LENGTH_DEVIATION = 10.8, 3.75  # words a caption; Flickr8k's training captions
SHORTEST, LONGEST = 2, 30  # longer ones are cut in training
EMBEDDING_SIZE = 300
GRID = (9, 9, 1280)  # the bundled encoder's
DEV_IMAGES = 100
TEACHING_SETTINGS = {"learning_rate": 3e-3, "label_smoothing": 0.0}


def draw_lengths(images: int, rng: np.random.Generator) -> np.ndarray:
    """Words of each caption, int (images, CAPTIONS_AN_IMAGE): a gamma distribution with Flickr8k's
    moments. Captions of one image are of similar lengths, so that the image tells the length.
    """
    scale = LENGTH_DEVIATION**2 / MEAN_LENGTH
    typical = rng.gamma(MEAN_LENGTH / scale, scale, images)
    drawn = rng.normal(typical[:, None], 1.0, (images, CAPTIONS_AN_IMAGE))
    return drawn.round().astype(int).clip(SHORTEST, LONGEST)


def vocabulary() -> Vocabulary:
    """As many words as Flickr8k has, of four letters."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    words = ["".join(word) for word in itertools.islice(letters, WORDS - len(SPECIALS))]
    return Vocabulary((*SPECIALS, *words), [1] * WORDS)


def draw_captions(lengths: np.ndarray, rng: np.random.Generator) -> list[list[str]]:
    """Captions of so many words: lengths (images, captions) -> the captions of each image."""
    words = np.array(vocabulary().words[len(SPECIALS) :])
    by_place = words[: len(words) // LONGEST * LONGEST].reshape(LONGEST, -1)  # place, rank
    frequency = 1 / np.arange(1, by_place.shape[1] + 1) ** 1.3  # Zipf's law, 2.8 nats a word
    count, ends = lengths.sum(), np.cumsum(lengths)
    ranks = rng.choice(len(frequency), count, p=frequency / frequency.sum())
    places = np.arange(count) - np.repeat(ends - lengths.ravel(), lengths.ravel())
    captions = iter(np.split(by_place[places, ranks], ends[:-1]))
    return [[" ".join(next(captions)) for _ in image] for image in lengths]


def write_prepared(
    folder: Path, images: int, encoder: dict | None = None, sparse: bool = False, seed: int = 0
) -> Path:
    """Write a prepared folder: captions, word vectors, features of `images` training images.

    Args:
        folder: made anew.
        images: in the training split; the dev split has DEV_IMAGES more.
        encoder: what the features claim to be of; one of the bundled encoder's grid if None.
        sparse: leave the features zero, in files that take no room on the disk.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    names = [f"{number:06}.jpg" for number in range(images + DEV_IMAGES)]
    lengths = draw_lengths(len(names), rng)
    captions = dict(zip(names, draw_captions(lengths, rng), strict=True))
    splits = {"train": names[:images], "dev": names[images:]}
    words = vocabulary()
    dataset = CaptionDataset("csv", folder, captions, splits, "drawn", {}, [])
    write_captions(folder, dataset, words, {})
    write_embeddings(folder, embedding_matrix(words, _draw_vectors(words, rng)), "drawn")
    lengths = None if sparse else lengths
    _write_features(folder, names, encoder or describe_encoder(), lengths, rng)
    return folder


def describe_encoder() -> dict:
    """A description of an encoder that is not there, with the bundled one's grid."""
    return {"name": "drawn", "image_size": 260, "grid_shape": list(GRID), "fingerprint": "0" * 16}


def _draw_vectors(words: Vocabulary, rng: np.random.Generator) -> WordVectors:
    drawn = rng.normal(0, 0.3, (WORDS, EMBEDDING_SIZE)).astype(np.float32)
    vectors = zip(words.words[len(SPECIALS) :], drawn, strict=False)
    return WordVectors(EMBEDDING_SIZE, dict(vectors))


def _write_features(
    prepared: Path,
    names: list[str],
    encoder: dict,
    lengths: np.ndarray | None,
    rng: np.random.Generator,
) -> None:
    """Noise, moved in one direction by the length of an image's captions; zeros without lengths."""
    folder = cache_folder(prepared, encoder["name"])
    folder.mkdir(parents=True)
    grid_shape = tuple(encoder["grid_shape"])
    create = np.lib.format.open_memmap
    pooled = create(folder / "pooled.npy", "w+", np.float32, (len(names), grid_shape[-1]))
    grid = create(folder / "grid.npy", "w+", np.float16, (len(names), *grid_shape))
    if lengths is not None:
        direction = rng.standard_normal(grid_shape[-1], np.float32)
        signal = (lengths.mean(1) - MEAN_LENGTH) / LENGTH_DEVIATION
        for row in range(len(names)):
            drawn = rng.standard_normal(grid_shape, np.float32) + signal[row] * direction
            drawn = np.maximum(drawn, 0)  # as after a ReLU
            grid[row], pooled[row] = drawn, drawn.mean((0, 1))
    index = {"version": 1, "encoder": encoder, "mirrored": False, "has_grid": True}
    write_json(folder / "index.json", {**index, "images": names, "failed": {}})


def make_trainer(
    folder: Path, output: Path, attention: str, dtype: str = "float32", **settings
) -> Trainer:
    """A Trainer with the default model on a folder of `write_prepared`."""
    prepared, caches = Prepared(folder), open_caches(folder)
    embeddings = prepared.embeddings()
    shape = feature_shape(caches[0], attention)
    config = ModelConfig(len(prepared.vocabulary), shape, EMBEDDING_SIZE, attention=attention)
    training = TrainingConfig(**settings)
    return Trainer(prepared, caches, config, training, output, dtype, embeddings)


def teach(trainer: Trainer, updates: int) -> Checkpoint:
    """Train for some updates and no longer, so that captions come to an end; the checkpoint."""
    batches = itertools.chain.from_iterable(trainer._plan(epoch) for epoch in itertools.count())
    for features, words in itertools.islice(batches, updates):
        trainer._train_step(features, words)
    return trainer.checkpoint


def write_photographs(folder: Path, sources: list[Path], count: int) -> list[Path]:
    """JPEGs of Flickr8k's size, 500 x 375, quality 90: pieces of the photographs `sources`."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pictures = [Image.open(source).convert("RGB") for source in sources]
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        picture = pictures[number % len(pictures)]
        left, top = (int(rng.integers(side // 4)) for side in picture.size)
        width, height = (side * 3 // 4 for side in picture.size)
        piece = picture.crop((left, top, left + width, top + height))
        piece.resize((500, 375)).save(path, quality=90)
    return paths


def write_vectors(path: Path, rows: int, dimension: int) -> list[str]:
    """A `.vec` file of `rows` words; the words, in order.

    The numbers repeat after a thousand rows; drawing and printing all of them would take minutes.
    """
    rng = np.random.default_rng(0)
    numbers = [
        " ".join(f"{value:.4f}" for value in rng.normal(0, 0.3, dimension)) for _ in range(1000)
    ]
    words = [f"word{row}" for row in range(rows)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{rows} {dimension}\n")
        for row, word in enumerate(words):
            file.write(f"{word} {numbers[row % len(numbers)]}\n")
    return words
