"""FastText word vectors (Bojanowski et al. 2017) and the embedding matrix that they fill."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captioning.vocabulary import PAD, Vocabulary


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words."""

    dimension: int
    vectors: dict[str, np.ndarray]  # word -> float32 (dimension,)
    from_subwords: frozenset[str] = frozenset()  # those composed from parts of the word


def training_epochs(captions: int) -> int:
    """How many epochs FastText needs: 10, more for a small data set, fewer for a large."""
    small, large = min(100, round(100_000 / captions)), max(3, round(1_500_000 / captions))
    return max(small, min(10, large))


def train_fasttext(token_lists: Sequence[Sequence[str]], dimension=200, epochs=10, seed=0):
    """Train FastText (skip-gram with subwords) on tokens: the same seed, the same WordVectors."""
    from gensim.models.fasttext import FastText  # slow to import

    options = {"sg": 1, "min_count": 1, "bucket": 100_000}  # captions have few subwords: 30,000
    options |= {"vector_size": dimension, "epochs": epochs, "seed": seed, "workers": 1}
    vectors = FastText(list(token_lists), **options).wv
    return WordVectors(dimension, {word: vectors[word] for word in vectors.index_to_key})


@dataclass(frozen=True)
class EmbeddingMatrix:
    """The initial values of a captioner's embedding layer."""

    vocabulary: Vocabulary
    matrix: np.ndarray  # float32 (len(vocabulary), dimension); row PAD is zero
    coverage: dict[str, int]  # origin of vectors -> number of words, specials left out


def embedding_matrix(vocabulary: Vocabulary, source: WordVectors, seed: int = 0) -> EmbeddingMatrix:
    """Arrange the vectors of `source` in the order of `vocabulary`.

    PAD is zero. Words without a vector, START, END and UNKNOWN are drawn from a normal distribution
    with the mean and standard deviation of the others, so that they look like any other word.
    """
    ids = {word: index for index, word in enumerate(vocabulary.words) if word in vocabulary}
    known = [word for word in ids if word in source.vectors]
    vectors = np.stack([source.vectors[word] for word in known])
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    matrix = np.random.default_rng(seed).normal(mean, deviation, (len(vocabulary), len(mean)))
    matrix[[ids[word] for word in known]] = vectors
    matrix[PAD] = 0
    composed = len(source.from_subwords.intersection(known))
    coverage = {"found": len(known) - composed, "from subwords": composed}
    coverage["by rule"] = len(ids) - len(known)
    return EmbeddingMatrix(vocabulary, matrix.astype(np.float32), coverage)
