"""FastText word vectors (Bojanowski et al. 2017): read from a file, or trained on the captions."""

import gzip
import io
import itertools
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from captioning.errors import InputError, reason
from captioning.vocabulary import PAD, SPECIALS, Vocabulary

FOUND, SUBWORDS, RULE = "found", "from subwords", "by rule"


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words; `from_subwords` names those composed from parts of the word."""

    dimension: int
    vectors: dict[str, np.ndarray]  # word -> float32 (dimension,)
    from_subwords: frozenset[str] = frozenset()


def read_vectors(path: str | Path, words: Iterable[str]) -> WordVectors:
    """Read the vectors of `words` from a file.

    Text (`.vec`, GloVe's `.txt`, also as `.gz` or `.zip`) is streamed: memory grows with the words
    found. FastText's `.bin` also gives vectors to unknown words, but takes much memory (12 GB for
    two million words of dimension 300). InputError: missing, damaged, or none of `words` inside.
    """
    path, words = Path(path), list(words)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected word vectors (.vec, .vec.gz, .zip, .bin)")
    if path.name.lower().endswith((".bin.gz", ".bin.zip")):
        raise InputError(f"{path}: unpack it first; a compressed .bin model cannot be read")
    try:
        source = (_read_binary if path.suffix.lower() == ".bin" else _read_text)(path, words)
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); download it again") from error
    if not source.vectors:
        remedy = "give vectors of the captions' language, in lower case"
        raise InputError(f"{path}: holds none of the {len(words):,} words; {remedy}")
    if not np.isfinite(list(source.vectors.values())).all():
        raise InputError(f"{path}: holds NaN or infinity; the file is damaged, download it again")
    return source


def _read_text(path: Path, words: Sequence[str]) -> WordVectors:
    """Stream lines of a word and its numbers, with or without FastText's header line."""
    wanted, vectors = {word.encode(): word for word in words}, {}
    with _open_text(path) as stream:
        line = stream.readline().removeprefix("\ufeff".encode())
        header = re.fullmatch(rb"(\d{1,12})\s(\d{1,6})\s*", line)  # number of words, dimension
        sizes = header.groups() if header else (0, len(re.findall(rb"\s-?[\d.]\S*", line)))
        rows, dimension = map(int, sizes)
        if dimension < 2:
            raise InputError(f"{path}, line 1: expected a word and its numbers (.vec, GloVe .txt)")
        lines = itertools.chain([b"" if header else line], stream)
        for number, line in enumerate(tqdm(lines, path.name, rows and rows + 1, delay=1), start=1):
            word, _, numbers = line.replace(b"\t", b" ").partition(b" ")
            fields = numbers.split() if word in wanted and wanted[word] not in vectors else ()
            if not 0 < len(fields) <= dimension:  # more: one of GloVe's few words with spaces
                continue
            try:
                vectors[wanted[word]] = np.array(fields, np.float32).reshape(dimension)
            except ValueError:
                problem = f"expected {dimension} numbers, as in line 1; the file is damaged"
                raise InputError(f"{path}, line {number}: {problem}, download it again") from None
    if number <= rows:
        raise InputError(f"{path}: {number - 1:,} of {rows:,} words, cut short; download it again")
    return WordVectors(dimension, vectors)


def _open_text(path: Path):
    """Open a plain or compressed text; a zip archive must hold only one."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() != ".zip":
        return path.open("rb")
    archive = zipfile.ZipFile(path)
    texts = [name for name in archive.namelist() if name.lower().endswith((".vec", ".txt"))]
    if len(texts) != 1:
        raise InputError(f"{path}: unpack it; it holds {', '.join(texts) or 'no .vec or .txt'}")
    return io.BufferedReader(archive.open(texts[0]), 1 << 20)  # twice as fast


def _read_binary(path: Path, words: Sequence[str]) -> WordVectors:
    """Read FastText's own model format through gensim."""
    from gensim.models.fasttext import load_facebook_vectors  # slow to import

    try:
        # If the file ends in its list of words, gensim would read on forever.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start, position = (64, 92) if data[:4] == b"\xba\x16\x4f\x2f" else (56, 76)  # of 2016
            for _ in range(int.from_bytes(data[start : start + 4], "little")):
                position = data.find(b"\0", position) + 10  # past the word, its count, its type
                if position < 10:
                    raise EOFError("it ends in its list of words")
        model = load_facebook_vectors(str(path.resolve()))
        # A model without subwords has no vector for an unknown word, or one of zeros.
        known = [word for word in words if word in model.key_to_index or model.bucket]
        vectors = {word: np.array(model.get_vector(word), np.float32) for word in known}
    except Exception as error:  # gensim raises many kinds, for many kinds of damage
        raise InputError(
            f"{path}: not a FastText model of word vectors, damaged, or too big for the memory "
            f"({reason(error)}); expected a .bin of `fasttext skipgram` or `cbow`, or .vec text"
        ) from error
    vectors = {word: vector for word, vector in vectors.items() if vector.any()}
    return WordVectors(model.vector_size, vectors, frozenset(vectors.keys() - model.key_to_index))


def training_epochs(captions: int) -> int:
    """Return how many epochs FastText needs: 10, more for a small data set, fewer for a large."""
    return max(round(100_000 / captions), min(10, max(3, round(1_500_000 / captions))))


class _Watched(list):
    """Captions with a progress bar for each pass over them."""

    def __iter__(self):
        return iter(tqdm(super().__iter__(), "FastText", len(self), leave=False, unit=" captions"))


def train_fasttext(token_lists: Sequence[Sequence[str]], dimension=200, epochs=10, seed=0):
    """Train FastText (skip-gram with subwords) on tokens: the same seed, the same WordVectors."""
    from gensim.models.fasttext import FastText  # slow to import

    options = {"sg": 1, "min_count": 1, "bucket": 100_000}  # captions have few subwords: 30,000
    options |= {"vector_size": dimension, "epochs": epochs, "seed": seed, "workers": 1}
    vectors = FastText(_Watched(token_lists), **options).wv
    return WordVectors(dimension, {word: vectors[word] for word in vectors.index_to_key})


@dataclass(frozen=True)
class EmbeddingMatrix:
    """The initial values of a captioner's embedding layer."""

    vocabulary: Vocabulary
    matrix: np.ndarray  # float32 (len(vocabulary), dimension); row PAD is zero
    origin: list[str]  # for each row FOUND, SUBWORDS or RULE

    def coverage(self) -> dict[str, int]:
        """Count the words, specials left out, by the origin of their vectors."""
        return {kind: self.origin[len(SPECIALS) :].count(kind) for kind in (FOUND, SUBWORDS, RULE)}

    def report(self) -> str:
        """Say in one line how many words have vectors, and name some that have none."""
        total = len(self.vocabulary) - len(SPECIALS)
        parts = [f"{n:,} {kind} ({n / total:.1%})" for kind, n in self.coverage().items()]
        rows = zip(self.vocabulary.words, self.origin, strict=True)
        missing = [word for word, origin in rows if origin == RULE and word not in SPECIALS][:5]
        examples = f" such as {', '.join(missing)}" if missing else ""
        return f"{total:,} words x {self.matrix.shape[1]}: {', '.join(parts)}{examples}"


def embedding_matrix(vocabulary: Vocabulary, source: WordVectors, seed: int = 0) -> EmbeddingMatrix:
    """Arrange the vectors of `source` in the order of `vocabulary`.

    PAD is zero. Words without a vector, START, END and UNKNOWN are drawn from a normal distribution
    with the mean and standard deviation of the others, so that they look like any other word.
    """
    known, origin = [], [RULE] * len(vocabulary)
    for index, word in enumerate(vocabulary.words):
        if word in vocabulary and word in source.vectors:
            known.append(index)
            origin[index] = SUBWORDS if word in source.from_subwords else FOUND
    vectors = np.stack([source.vectors[vocabulary.words[index]] for index in known])
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    matrix = np.random.default_rng(seed).normal(mean, deviation, (len(vocabulary), len(mean)))
    matrix[known] = vectors
    matrix[PAD] = 0
    return EmbeddingMatrix(vocabulary, matrix.astype(np.float32), origin)


def nearest_neighbours(matrix: np.ndarray, words: Sequence[str], word: str, n: int = 5) -> list:
    """Return the `n` words (rows of `matrix`) most similar to `word`, as pairs (word, cosine)."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit = matrix / np.where(lengths > 0, lengths, 1)
    cosines = unit @ unit[words.index(word)]
    order = np.argsort(-cosines, kind="stable")
    others = [index for index in order if words[index] not in (word, *SPECIALS)][:n]
    return [(words[index], float(cosines[index])) for index in others]
