"""Word vectors read from a file: FastText's .vec and .bin, GloVe's .txt."""

import gzip
import io
import itertools
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from captioning.embeddings import WordVectors
from captioning.errors import InputError, reason


def read_vectors(path: str | Path, words: Iterable[str]) -> WordVectors:
    """Read the vectors of `words`, or InputError if the file is damaged or has none of them.

    Text (`.vec`, GloVe's `.txt`, also as `.gz` or `.zip`) is streamed: memory grows with the words
    found. FastText's `.bin` also has vectors of unknown words; two million words take 12 GB.
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
        problem = f"not a FastText model of word vectors, damaged, or too big ({reason(error)})"
        remedy = "expected a .bin of `fasttext skipgram` or `cbow`, or .vec text"
        raise InputError(f"{path}: {problem}; {remedy}") from error
    vectors = {word: vector for word, vector in vectors.items() if vector.any()}
    return WordVectors(model.vector_size, vectors, frozenset(vectors.keys() - model.key_to_index))
