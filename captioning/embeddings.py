"""FastText word vectors for a vocabulary: read from a file, or trained on the captions.

Pretrained vectors hold millions of words, a captioner knows a few thousand. Text files are
therefore streamed, and only the rows of the vocabulary are parsed and kept.

P. Bojanowski, E. Grave, A. Joulin, T. Mikolov (2017), "Enriching Word Vectors with Subword
Information", TACL 5, 135-146.
"""

import codecs
import gzip
import io
import itertools
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from captioning.errors import InputError
from captioning.vocabulary import PAD, SPECIALS, Vocabulary

FOUND, SUBWORDS, RULE = "found", "subwords", "rule"

TEXT_SUFFIXES = (".vec", ".txt")
MAX_LINE = 1 << 20  # bytes; 100,000 numbers
BUFFER = 1 << 20  # bytes
PROGRESS_FROM = 50_000_000  # bytes; smaller files are read before a bar could be seen
PROGRESS_EVERY = 10_000  # lines
_HEADER = re.compile(rb"(\d{1,12}) (\d{1,6})\s*")  # rows, dimension

# FastText's .bin: magic number and version; twelve settings, the sampling threshold, the numbers
# of entries, words, labels and tokens; the number of pruned subwords; each word ended by a zero
# byte, with its count and type; the shape and the values of the vectors of words and subwords.
_BIN_MAGIC = struct.pack("<i", 793712314)
_BIN_VERSION = struct.Struct("<i")
_BIN_HEADER = struct.Struct("<12id3iq")
_BIN_COUNT = struct.Struct("<q")
_BIN_WORD = struct.Struct("<qb")
_BIN_SHAPE = struct.Struct("<2q")

# FastText hashes subwords into buckets. Its default of two million suits the web; captions
# have some 30,000 different subwords, and every bucket costs a vector of memory.
BUCKETS = 100_000


@dataclass(frozen=True)
class WordVectors:
    """Vectors of some words, from wherever they came.

    Attributes:
        dimension: numbers in a vector.
        vectors: word -> float32 (dimension,).
        from_subwords: the words among them that the source did not hold as a whole; their
            vectors are put together from the vectors of their letter groups.
    """

    dimension: int
    vectors: dict[str, np.ndarray]
    from_subwords: frozenset[str] = frozenset()


def read_vectors(path: str | os.PathLike, words: Iterable[str]) -> WordVectors:
    """Read the vectors of `words` from a file of word vectors.

    Text (`.vec`, GloVe's `.txt`; also as `.gz` or `.zip`) is streamed: memory grows with the words
    found, not with the file. FastText's binary `.bin` gives vectors also to words that it does
    not hold, from their subwords, but gensim reads it whole: some 12 GB of memory for two million
    words of dimension 300.

    Raises:
        InputError: the file is missing, damaged or of another kind, or holds none of `words`.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected word vectors (.vec, .vec.gz, .zip, .bin)")
    if name.endswith((".bin.gz", ".bin.zip")):
        raise InputError(f"{path}: unpack it first; a .bin model cannot be read while compressed")
    words = list(words)
    read = _read_binary if name.endswith(".bin") else _read_text
    try:
        source = read(path, words)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not source.vectors:
        raise InputError(
            f"{path}: holds none of the {len(words):,} words asked for; "
            "are these vectors of the captions' language, and in lower case?"
        )
    return source


def _read_text(path: Path, words: Sequence[str]) -> WordVectors:
    """Stream a text file: a word and its numbers a line, with or without FastText's header."""
    wanted = {word.encode(): word for word in words}
    # Only a line whose first part is wanted is parsed. GloVe holds a few words with spaces, so
    # the whole word is known once the numbers have been counted off from the right.
    first_parts = {word.split(b" ", 1)[0] for word in wanted}
    vectors: dict[str, np.ndarray] = {}

    lines = enumerate(_lines(path), start=1)
    number, line = next(lines, (1, b""))
    line = line.removeprefix(codecs.BOM_UTF8)
    if header := _HEADER.fullmatch(line):
        rows, dimension = map(int, header.groups())
    else:
        rows, dimension = 0, _count_numbers(line)
        lines = itertools.chain([(number, line)], lines)
    if dimension < 2:
        raise InputError(
            f"{path}, line 1: announces vectors of {dimension} numbers; expected FastText or GloVe "
            "text, on each line a word and its numbers, separated by spaces"
        )

    for number, line in lines:
        first_part = line[: line.find(b" ")]
        if first_part not in first_parts:
            continue
        word, *numbers = line.rsplit(None, dimension)
        surplus = _count_numbers(word)
        if len(numbers) < dimension or (surplus and first_part in wanted and word not in wanted):
            raise InputError(
                f"{path}, line {number}: {len(numbers) + surplus} numbers, expected {dimension} "
                "as announced by line 1; the file is damaged, get it anew"
            )
        if word in wanted and wanted[word] not in vectors:  # of a repeated word the first counts
            vectors[wanted[word]] = _parse_numbers(numbers, f"{path}, line {number}")

    if number <= rows or 0 < len(line.split()) <= dimension:
        raise InputError(
            f"{path}, line {number}: the file ends too early; it was cut short, get it anew"
        )
    return WordVectors(dimension, vectors)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain, gzip or zip file, with a progress bar if it is big."""
    size = path.stat().st_size
    try:
        with (
            path.open("rb", buffering=BUFFER) as packed,
            _unpack(packed, path) as stream,
            tqdm(
                desc=path.name,
                total=size,
                unit="B",
                unit_scale=True,
                disable=size < PROGRESS_FROM,
            ) as progress,
        ):
            # With a limit, for a file without line ends must not be read into memory whole.
            for number, line in enumerate(iter(partial(stream.readline, MAX_LINE), b""), start=1):
                if len(line) == MAX_LINE:
                    raise InputError(f"{path}, line {number}: too long for a text of word vectors")
                if number % PROGRESS_EVERY == 0:
                    progress.update(packed.tell() - progress.n)
                yield line
            progress.update(size - progress.n)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); get it anew") from error
    except (NotImplementedError, RuntimeError) as error:  # an unusual or encrypted zip
        raise InputError(f"{path}: {error}; unpack it first") from error


def _unpack(packed: BinaryIO, path: Path) -> BinaryIO:
    """Open the text inside a compressed file, or `packed` itself."""
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=packed), BUFFER)
    if path.suffix.lower() == ".zip":
        archive = zipfile.ZipFile(packed)
        texts = [name for name in archive.namelist() if name.lower().endswith(TEXT_SUFFIXES)]
        if len(texts) != 1:
            raise InputError(
                f"{path}: expected one {' or '.join(TEXT_SUFFIXES)} file inside, found "
                f"{', '.join(texts) or 'none'}; unpack it and name the one you want"
            )
        return io.BufferedReader(archive.open(texts[0]), BUFFER)
    return packed


def _count_numbers(line: bytes) -> int:
    """Count the numbers at the end of `line`, the first field (a word) left out."""
    count = 0
    for field in reversed(line.split()[1:]):
        try:
            float(field)
        except ValueError:
            break
        count += 1
    return count


def _parse_numbers(numbers: Sequence[bytes], place: str) -> np.ndarray:
    """Turn the fields of a row into float32 (dimension,); `place` is named in errors."""
    try:
        with np.errstate(over="ignore"):  # too big for float32: infinite, refused below
            vector = np.array([float(number) for number in numbers]).astype(np.float32)
    except ValueError as error:
        raise InputError(f"{place}: {error}; the file is damaged, get it anew") from None
    return _finite(vector, place)


def _finite(vector: np.ndarray, place: str) -> np.ndarray:
    """Give `vector`, or raise InputError naming `place` if it holds NaN or infinity."""
    if not np.isfinite(vector).all():
        raise InputError(f"{place}: the vector holds NaN or infinity; get the file anew")
    return vector


def _read_binary(path: Path, words: Sequence[str]) -> WordVectors:
    """Read FastText's own model format through gensim."""
    _check_binary(path)
    from gensim.models.fasttext import load_facebook_vectors  # slow to import

    try:
        with np.errstate(all="ignore"):  # what is no number is refused below
            model = load_facebook_vectors(str(path.resolve()))
    except MemoryError:
        raise InputError(f"{path}: too big for this machine's memory; use the .vec file") from None
    except OSError:
        raise
    except Exception as error:  # gensim raises many kinds, for many kinds of damage
        raise InputError(f"{path}: damaged FastText model ({error}); get it anew") from error

    vectors, from_subwords = {}, set()
    for word in words:
        if word not in model.key_to_index:  # `word in model` is true for every word
            from_subwords.add(word)
        try:
            with np.errstate(all="ignore"):
                vector = model.get_vector(word)
        except KeyError:  # a model trained without subwords
            continue
        if vector.any():  # a word too short for subwords gets zeros
            vectors[word] = np.array(_finite(vector, f"{path}, {word!r}"), dtype=np.float32)
    return WordVectors(model.vector_size, vectors, frozenset(from_subwords & vectors.keys()))


def _check_binary(path: Path) -> None:
    """Refuse what is no FastText model, or only the beginning of one.

    In a damaged list of words gensim would read on for ever.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            intact = _is_intact_model(data)
    except (ValueError, struct.error):  # empty, or ends within a number
        intact = False
    if not intact:
        raise InputError(
            f"{path}: no FastText model of word vectors, or cut short; expected a .bin as "
            "`fasttext skipgram` or `cbow` writes it (other vectors: as .vec text)"
        )


def _is_intact_model(data: mmap.mmap) -> bool:
    """Whether `data` reaches to the end of its word and subword vectors.

    Raises:
        struct.error: it ends within a number.
    """
    position = 0
    has_magic = data[: len(_BIN_MAGIC)] == _BIN_MAGIC
    if has_magic:  # the first models of 2016 lack magic number and version
        position += len(_BIN_MAGIC) + _BIN_VERSION.size
    dimension, *settings, entries, words, labels, _ = _BIN_HEADER.unpack_from(data, position)
    buckets = settings[7]
    position += _BIN_HEADER.size
    if labels or entries != words or min(dimension, words) < 1:
        return False
    if has_magic:
        (pruned,) = _BIN_COUNT.unpack_from(data, position)
        position += _BIN_COUNT.size
        if pruned > 0:  # only models squeezed by `fasttext quantize`
            return False
    for _ in range(words):
        end = data.find(b"\0", position)
        if end < 0:
            return False
        position = end + 1 + _BIN_WORD.size
    if has_magic:
        position += 1  # whether the matrix is squeezed
    rows, columns = _BIN_SHAPE.unpack_from(data, position)
    position += _BIN_SHAPE.size + rows * columns * np.dtype(np.float32).itemsize
    return (rows, columns) == (words + buckets, dimension) and position <= len(data)


def training_epochs(captions: int) -> int:
    """How many passes over so many captions FastText is trained.

    Ten are right for Flickr8k's 30,000 captions. A small data set takes more, until 100,000
    captions have been read. A large one is given fewer, so that FastText takes minutes: as many
    as read 1,500,000 captions, but three at least.
    """
    return max(round(100_000 / captions), min(10, max(3, round(1_500_000 / captions))))


def train_fasttext(
    token_lists: Sequence[Sequence[str]], dimension: int = 200, epochs: int = 10, seed: int = 0
) -> WordVectors:
    """Train FastText (skip-gram with subwords) on captions: vectors for all their words.

    The same captions and seed give the same vectors: one thread, no randomised hashing.

    Args:
        token_lists: the tokens of each training caption.
        dimension: numbers in a vector.
        epochs: passes over the captions.
        seed: for the initial vectors and the drawn negative words.

    Raises:
        InputError: there is not a single token, or a setting is out of range.
    """
    if dimension < 1 or epochs < 1 or not 0 <= seed < 2**32:
        raise InputError(
            f"FastText with dimension {dimension}, {epochs} epochs, seed {seed}: expected a "
            "dimension and epochs from 1 up, and a seed from 0 up"
        )
    if not any(token_lists):
        raise InputError("FastText needs captions to train on; there are none")
    from gensim.models.fasttext import FastText  # slow to import

    with tqdm(desc="FastText", total=(epochs + 1) * len(token_lists), unit=" captions") as progress:
        model = FastText(
            sentences=_Watched(token_lists, progress),
            vector_size=dimension,
            sg=1,
            min_count=1,
            bucket=BUCKETS,
            epochs=epochs,
            seed=seed,
            workers=1,
        )
    return WordVectors(dimension, {word: model.wv[word] for word in model.wv.index_to_key})


class _Watched:
    """Captions that move a progress bar each time they are read; gensim reads them every epoch."""

    def __init__(self, token_lists: Sequence[Sequence[str]], progress: tqdm):
        self.token_lists = token_lists
        self.progress = progress

    def __iter__(self) -> Iterator[Sequence[str]]:
        for tokens in self.token_lists:
            self.progress.update()
            yield tokens


@dataclass(frozen=True)
class EmbeddingMatrix:
    """The starting values of a captioner's embedding layer.

    Attributes:
        vocabulary: gives the rows their meaning.
        matrix: float32 (len(vocabulary), dimension); row PAD is zero.
        origin: for each row FOUND, SUBWORDS or RULE.
    """

    vocabulary: Vocabulary
    matrix: np.ndarray
    origin: list[str]

    def coverage(self) -> dict[str, int]:
        """Count the words, specials left out, by the origin of their vectors."""
        origins = self.origin[len(SPECIALS) :]
        return {kind: origins.count(kind) for kind in (FOUND, SUBWORDS, RULE)}

    def report(self) -> str:
        """Say in one line how many words have vectors, and name some that have none."""
        total = len(self.vocabulary) - len(SPECIALS)
        shares = ", ".join(
            f"{count:,} {label} ({count / total:.1%})"
            for label, count in zip(
                ("found", "from subwords", "by rule"), self.coverage().values(), strict=True
            )
        )
        missing = [
            word
            for word, origin in zip(self.vocabulary.words, self.origin, strict=True)
            if origin == RULE and word not in SPECIALS
        ]
        examples = f" such as {', '.join(missing[:5])}" if missing else ""
        return f"{total:,} words x {self.matrix.shape[1]}: {shares}{examples}"


def embedding_matrix(vocabulary: Vocabulary, source: WordVectors, seed: int = 0) -> EmbeddingMatrix:
    """Lay the vectors of `source` out in the order of `vocabulary`.

    The rule for words without a vector, and for START, END and UNKNOWN: drawn from a normal
    distribution with the mean and standard deviation, number by number, of the rows that have
    one, so that they look like any other word. PAD is zero.

    Raises:
        InputError: `source` has a vector for none of the words.
    """
    origin = [RULE] * len(vocabulary)
    for index, word in enumerate(vocabulary.words):
        if word in vocabulary and word in source.vectors:
            origin[index] = SUBWORDS if word in source.from_subwords else FOUND
    known = np.array([kind != RULE for kind in origin])
    if not known.any():
        raise InputError(
            "none of the vocabulary's words has a vector; give vectors of its language"
        )
    vectors = np.stack(
        [source.vectors[vocabulary.words[index]] for index in np.flatnonzero(known)]
    )  # (known words, dimension)
    matrix = np.random.default_rng(seed).normal(
        vectors.mean(axis=0), vectors.std(axis=0), (len(vocabulary), source.dimension)
    )
    matrix[known] = vectors
    matrix[PAD] = 0
    return EmbeddingMatrix(vocabulary, matrix.astype(np.float32), origin)


def nearest_neighbours(
    matrix: np.ndarray, words: Sequence[str], word: str, n: int = 5
) -> list[tuple[str, float]]:
    """The `n` words whose vectors point most nearly the way of `word`'s, with the cosines.

    Args:
        matrix: (len(words), dimension).
        words: the words of the rows; specials are never neighbours.
        word: one of `words`.
        n: how many neighbours.

    Raises:
        InputError: `word` is not among `words`.
    """
    if word not in words:
        raise InputError(f"{word!r} is not in the vocabulary")
    lengths = np.linalg.norm(matrix, axis=1)
    unit = matrix / np.where(lengths > 0, lengths, 1)[:, None]
    cosines = unit @ unit[words.index(word)]
    order = [index for index in np.argsort(-cosines, kind="stable") if words[index] != word]
    neighbours = [index for index in order if words[index] not in SPECIALS][:n]
    return [(words[index], float(cosines[index])) for index in neighbours]
