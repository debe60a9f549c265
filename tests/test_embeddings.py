import gzip
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.models.fasttext import load_facebook_vectors
from gensim.test.utils import datapath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from captioning.embeddings import WordVectors, embedding_matrix, train_fasttext, training_epochs
from captioning.errors import InputError
from captioning.extras.data.vectors import read_vectors
from captioning.vocabulary import END, PAD, SPECIALS, START, UNKNOWN, Vocabulary

TEXT = "3 2\na 1 2\ndog -0.5 .25\ncat 1e-3 4 \n"


def write(path, text):
    path.write_bytes(text.encode())
    return path


def vocabulary(*words):
    return Vocabulary([*SPECIALS, *words], [0] * (len(SPECIALS) + len(words)))


@pytest.mark.parametrize("name", ["toy-model", "lee_fasttext", "crime-and-punishment"])
def test_a_fasttext_file_gives_the_vectors_gensim_reads(name):
    reference = KeyedVectors.load_word2vec_format(datapath(f"{name}.vec"))
    words = reference.index_to_key[::2]
    source = read_vectors(datapath(f"{name}.vec"), [*words, "not-in-the-file"])
    assert source.dimension == reference.vector_size
    assert list(source.vectors) == words
    np.testing.assert_array_equal(list(source.vectors.values()), reference[words])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), header=st.booleans(), separator=st.sampled_from(" \t"))
def test_any_vectors_written_as_text_are_read_back(tmp_path, data, header, separator):
    word = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
    words = data.draw(st.lists(word, min_size=1, unique=True))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    matrix = data.draw(arrays(np.float32, (len(words), 3), elements=numbers))
    wanted = data.draw(st.lists(st.sampled_from(words), min_size=1, unique=True))
    lines = [f"{len(words)}{separator}3"] if header else []
    for word, row in zip(words, matrix, strict=True):
        lines.append(separator.join([word, *map(str, row.tolist())]))
    vectors = read_vectors(write(tmp_path / "any.vec", "\n".join(lines)), wanted).vectors
    assert vectors.keys() == set(wanted)
    np.testing.assert_array_equal(list(vectors.values()), matrix[[*map(words.index, vectors)]])


def test_headers_line_ends_marks_and_blank_lines_do_not_matter(tmp_path):
    expected = {"a": [1, 2], "dog": [-0.5, 0.25], "cat": [np.float32(1e-3), 4]}
    headless = TEXT.split("\n", 1)[1]
    for text in [TEXT, headless, TEXT.replace("\n", "\r\n"), "\ufeff" + headless, TEXT + "\n"]:
        source = read_vectors(write(tmp_path / "x.vec", text), [*expected, "3"])
        assert {word: vector.tolist() for word, vector in source.vectors.items()} == expected


def test_compressed_files_are_read(tmp_path):
    (tmp_path / "x.vec.gz").write_bytes(gzip.compress(TEXT.encode()))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.vec", TEXT)
        archive.writestr("x.bin", "the model itself")
    for name in ["x.vec.gz", "x.zip"]:
        assert read_vectors(tmp_path / name, ["dog"]).vectors["dog"].tolist() == [-0.5, 0.25]


def test_the_first_of_equal_words_counts_and_words_with_spaces_are_skipped(tmp_path):
    path = write(tmp_path / "x.txt", "at me 1 2\nat 1 2\nat 3 4\nnew york 5 6\nnew 7 8\n")
    vectors = read_vectors(path, ["at", "new"]).vectors
    assert [vector.tolist() for vector in vectors.values()] == [[1, 2], [7, 8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a word and its numbers"),
        ("<html> <body> Not found", "line 1: expected a word and its numbers"),
        ("2 3\na 1 2\ndog 1 2\n", "line 3: expected 3 numbers, as in line 1"),
        ("a 1 2\ndog 1 two\n", "line 2: expected 2 numbers"),
        ("a 1 2\ndog 1 nan\n", "NaN or infinity"),
        ("3 2\na 1 2\ndog 1 2\n", "2 of 3 words, cut short"),
        ("3 2\n", "0 of 3 words, cut short"),
        ("a 1 2\ncat 3 4\n", "holds none of the 1 words; give vectors of the captions' language"),
        ("x" * (1 << 20), "line 1: expected a word"),
    ],
)
def test_damaged_text_is_rejected(tmp_path, text, message):
    path = write(tmp_path / "x.vec", text)
    with pytest.raises(InputError, match=rf"x\.vec.*{message}"):
        read_vectors(path, ["dog"])


def test_damaged_archives_are_rejected(tmp_path):
    rng = np.random.default_rng(0)
    text = "\n".join(f"w{row} {' '.join(map(str, rng.random(9)))}" for row in range(100))
    packed = gzip.compress(text.encode())
    (tmp_path / "short.vec.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "text.vec.gz").write_text(text)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.vec", text)
    whole = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.zip").write_bytes(whole[:500] + b"\0\0\0\0" + whole[504:])
    for name in ["short.vec.gz", "text.vec.gz", "short.zip", "flipped.zip"]:
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_vectors(tmp_path / name, ["w1"])


def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"x\.vec: no such file"):
        read_vectors(tmp_path / "x.vec", ["dog"])
    with pytest.raises(InputError, match=r"x\.bin\.gz: unpack it first"):
        read_vectors(write(tmp_path / "x.bin.gz", ""), ["dog"])
    with zipfile.ZipFile(tmp_path / "glove.zip", "w") as archive:
        archive.writestr("glove.50d.txt", TEXT)
        archive.writestr("glove.100d.txt", TEXT)
    with pytest.raises(InputError, match=r"unpack it; it holds glove\.50d\.txt, glove\.100d\.txt"):
        read_vectors(tmp_path / "glove.zip", ["dog"])


def test_a_big_file_is_streamed(tmp_path):
    numbers = " ".join(["-0.1234"] * 300)
    with (tmp_path / "big.vec").open("w") as file:
        file.write("10000 300\n")
        file.writelines(f"word{number} {numbers}\n" for number in range(10_000))
    words = [f"word{number}" for number in range(0, 10_000, 10)]
    tracemalloc.start()
    assert len(read_vectors(tmp_path / "big.vec", words).vectors) == 1000
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak < 5 < 20 < (tmp_path / "big.vec").stat().st_size / 1e6


@pytest.mark.parametrize(
    ("name", "unknown"),
    [("toy-model", "landlady"), ("lee_fasttext", "landlady"), ("crime-and-punishment", "слепота")],
)
def test_a_binary_model_gives_unknown_words_vectors_from_subwords(name, unknown):
    reference = load_facebook_vectors(datapath(f"{name}.bin"))
    words = reference.index_to_key[:20]
    source = read_vectors(datapath(f"{name}.bin"), [*words, unknown])
    assert source.from_subwords == {unknown}
    assert source.dimension == reference.vector_size
    np.testing.assert_array_equal(list(source.vectors.values()), reference[[*words, unknown]])


def test_a_binary_model_cut_short_is_rejected(tmp_path):
    whole, words = Path(datapath("lee_fasttext_new.bin")).read_bytes(), "ends in its list of words"
    reasons = {0: "empty file", 100: words, 2_000: words, 20_000: "expected", 120_000: "expected"}
    for size, reason in reasons.items():
        (tmp_path / "x.bin").write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"x\.bin: not a FastText model .*\(.*{reason}"):
            read_vectors(tmp_path / "x.bin", ["the"])


def test_other_and_damaged_binary_files_are_rejected(tmp_path):
    whole = Path(datapath("toy-model.bin")).read_bytes()
    (tmp_path / "x.bin").write_bytes(whole[:100] + b"\xff" * len(whole))
    for path, reason in {
        tmp_path / "x.bin": "ends in its list of words",
        datapath("pang_lee_polarity_fasttext.bin"): "Supervised",
        datapath("euclidean_vectors.bin"): "ends in its list of words",
        datapath("high_precision.kv.bin"): "",
    }.items():
        with pytest.raises(InputError, match=rf"not a FastText model .*\(.*{reason}"):
            read_vectors(path, ["the"])


TRAIN_AND_PRINT = """
import json
from captioning.embeddings import train_fasttext
vectors = train_fasttext([["a", "dog"], ["two", "dogs"]] * 20, 8, 3, seed=1).vectors
print(json.dumps({word: vector.tolist() for word, vector in vectors.items()}))
"""


def test_training_depends_on_the_seed_alone():
    command = [sys.executable, "-c", TRAIN_AND_PRINT]
    printed = subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": "1"})
    captions = [["a", "dog"], ["two", "dogs"]] * 20
    first, other = (train_fasttext(captions, 8, 3, seed).vectors for seed in (1, 2))
    assert json.loads(printed) == {word: vector.tolist() for word, vector in first.items()}
    assert not np.array_equal(first["dog"], other["dog"])


def test_training_brings_words_of_like_use_together(capsys):
    rng = np.random.default_rng(0)
    things = {"kitchen": ["pot", "spoon", "plate", "stove"], "forest": ["tree", "moss", "deer"]}
    places = rng.choice(list(things), 2000).tolist()
    captions = [[place, *rng.permutation(things[place]).tolist()] for place in places]
    vectors = train_fasttext(captions, dimension=16, epochs=5).vectors
    found = KeyedVectors(16)
    found.add_vectors(list(vectors), np.stack(list(vectors.values())))
    neighbours = dict(found.most_similar("kitchen", topn=4))
    assert set(neighbours) == set(things["kitchen"])
    assert capsys.readouterr().out == ""


def test_the_matrix_follows_the_vocabulary_and_fills_gaps_by_the_rule():
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(500)]
    vectors = {word: rng.normal(3, 0.1, 4).astype(np.float32) for word in words[:400]}
    source = WordVectors(4, {**vectors, "<end>": np.zeros(4)}, frozenset(words[300:400]))
    embedding = embedding_matrix(vocabulary(*words), source)
    assert (embedding.matrix.dtype, embedding.matrix.shape) == (np.float32, (504, 4))
    np.testing.assert_array_equal(embedding.matrix[4:404], list(vectors.values()))
    assert not embedding.matrix[PAD].any()
    by_rule = embedding.matrix[[START, END, UNKNOWN, *range(404, 504)]]
    assert by_rule.mean() == pytest.approx(3, abs=0.05)
    assert by_rule.std() == pytest.approx(0.1, rel=0.2)
    assert len(np.unique(by_rule, axis=0)) == 103
    assert embedding.coverage == {"found": 300, "from subwords": 100, "by rule": 100}
    again = embedding_matrix(vocabulary(*words), source)
    np.testing.assert_array_equal(embedding.matrix, again.matrix)


def test_small_data_sets_take_more_epochs_and_large_ones_fewer():
    captions = [1_500, 10_000, 30_000, 145_000, 567_000, 10_000_000]
    assert [*map(training_epochs, captions)] == [67, 10, 10, 10, 3, 3]
