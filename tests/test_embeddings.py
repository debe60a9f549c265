import gzip
import json
import os
import subprocess
import sys
import time
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

from captioning.embeddings import (
    FOUND,
    RULE,
    SUBWORDS,
    WordVectors,
    embedding_matrix,
    nearest_neighbours,
    read_vectors,
    train_fasttext,
    training_epochs,
)
from captioning.files import InputError
from captioning.vocabulary import END, PAD, SPECIALS, START, UNKNOWN, Vocabulary

TEXT = "3 2\na 1 2\ndog -0.5 .25\ncat 1e-3 4 \n"


def write(path, text):
    path.write_bytes(text.encode())
    return path


def vocabulary(*words):
    return Vocabulary([*SPECIALS, *words], [0] * (len(SPECIALS) + len(words)))


# --- reading text -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy-model", "lee_fasttext", "crime-and-punishment"])
def test_a_fasttext_file_gives_the_vectors_gensim_reads(name):
    reference = KeyedVectors.load_word2vec_format(datapath(f"{name}.vec"))
    words = reference.index_to_key[::2]
    source = read_vectors(datapath(f"{name}.vec"), [*words, "not-in-the-file"])
    assert source.dimension == reference.vector_size
    assert list(source.vectors) == words
    for word in words:
        np.testing.assert_array_equal(source.vectors[word], reference[word])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), header=st.booleans(), dimension=st.integers(2, 5))
def test_any_vectors_written_as_text_are_read_back(tmp_path, data, header, dimension):
    word = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "Nd"]), min_size=1)
    words = data.draw(st.lists(word, min_size=1, unique=True))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    matrix = data.draw(arrays(np.float32, (len(words), dimension), elements=numbers))
    wanted = data.draw(st.lists(st.sampled_from(words), min_size=1, unique=True))
    lines = [f"{len(words)} {dimension}"] if header else []
    for word, row in zip(words, matrix, strict=True):
        lines.append(" ".join([word, *map(str, row.tolist())]))
    source = read_vectors(write(tmp_path / "any.vec", "\n".join(lines)), wanted)
    assert source.vectors.keys() == set(wanted)
    for word in wanted:
        np.testing.assert_array_equal(source.vectors[word], matrix[words.index(word)])


def test_headers_line_ends_marks_and_blank_lines_do_not_matter(tmp_path):
    expected = {"a": [1, 2], "dog": [-0.5, 0.25], "cat": [np.float32(1e-3), 4]}
    headless = TEXT.split("\n", 1)[1]
    for text in [TEXT, headless, TEXT.replace("\n", "\r\n"), "\ufeff" + headless, TEXT + "\n"]:
        source = read_vectors(write(tmp_path / "x.vec", text), expected)
        assert {word: vector.tolist() for word, vector in source.vectors.items()} == expected


def test_compressed_files_are_read(tmp_path):
    with gzip.open(tmp_path / "x.vec.gz", "wt") as file:
        file.write(TEXT)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.vec", TEXT)
        archive.writestr("x.bin", "the model itself")
    for name in ["x.vec.gz", "x.zip"]:
        assert read_vectors(tmp_path / name, ["dog"]).vectors["dog"].tolist() == [-0.5, 0.25]


def test_of_a_repeated_word_the_first_row_counts(tmp_path):
    path = write(tmp_path / "x.vec", "dog 1 2\ndog 3 4\n")
    assert read_vectors(path, ["dog"]).vectors["dog"].tolist() == [1, 2]


def test_words_with_spaces_are_told_from_their_first_part(tmp_path):
    path = write(tmp_path / "glove.txt", "at name@x.org 1 2\nnew york 3 4\nat 5 6\nnew 7 8\n")
    vectors = read_vectors(path, ["at", "new york", "new"]).vectors
    assert {word: vector.tolist() for word, vector in vectors.items()} == {
        "new york": [3, 4],
        "at": [5, 6],
        "new": [7, 8],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: announces vectors of 0 numbers"),
        ("dog\n", "line 1: announces vectors of 0 numbers"),
        ("2 1\ndog 1\ncat 2\n", "line 1: announces vectors of 1 numbers"),
        ("<html> <body> no vectors", "line 1: announces vectors of 0 numbers"),
        ("2 3\na 1 2\ndog 1 2\n", "line 3: 2 numbers, expected 3 as announced by line 1"),
        ("a 1 2\ndog 1 2 3\n", "line 2: 3 numbers, expected 2 as announced by line 1"),
        ("a 1 2\ndog 1 two\n", "line 2: could not convert"),
        ("a 1 2\ndog 1 nan\n", "line 2: the vector holds NaN or infinity"),
        ("a 1 2\ndog 1 1e39\n", "line 2: the vector holds NaN or infinity"),
        ("3 2\na 1 2\ndog 1 2\n", "line 3: the file ends too early"),
        ("2 2\ndog 1 2\na 1", "line 3: the file ends too early"),
        ("a 1 2\ncat 3 4\n", "holds none of the 1 words asked for"),
        ("x" * (1 << 20), "line 1: too long"),
    ],
)
def test_damaged_text_is_refused_with_its_line(tmp_path, text, message):
    path = write(tmp_path / "x.vec", text)
    with pytest.raises(InputError, match=rf"x\.vec.*{message}"):
        read_vectors(path, ["dog"])


def test_damaged_archives_are_refused(tmp_path):
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
        with pytest.raises(InputError, match=f"{name}: damaged or cut short"):
            read_vectors(tmp_path / name, ["w1"])


def test_an_archive_of_several_texts_asks_for_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "glove.zip", "w") as archive:
        archive.writestr("glove.50d.txt", TEXT)
        archive.writestr("glove.100d.txt", TEXT)
    with pytest.raises(InputError, match=r"found glove\.50d\.txt, glove\.100d\.txt; unpack it"):
        read_vectors(tmp_path / "glove.zip", ["dog"])


def test_missing_and_packed_binary_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"x\.vec: no such file"):
        read_vectors(tmp_path / "x.vec", ["dog"])
    with pytest.raises(InputError, match=r"x\.bin\.gz: unpack it first"):
        read_vectors(write(tmp_path / "x.bin.gz", ""), ["dog"])


READ_AND_MEASURE = """
import resource, sys
from captioning.embeddings import read_vectors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = read_vectors(sys.argv[1], [f"word{number}" for number in range(0, 30_000, 10)])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(len(source.vectors), grown // 1024)
assert "gensim" not in sys.modules
"""


def test_a_big_file_is_streamed(tmp_path):
    numbers = " ".join(["-0.1234"] * 300)
    with (tmp_path / "big.vec").open("w") as file:
        file.write("30000 300\n")
        file.writelines(f"word{number} {numbers}\n" for number in range(30_000))
    assert (tmp_path / "big.vec").stat().st_size > 70_000_000
    command = [sys.executable, "-c", READ_AND_MEASURE, str(tmp_path / "big.vec")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, megabytes = map(int, output.split())
    assert found == 3000
    assert megabytes < 30


def test_a_vocabulary_is_read_several_times_faster_than_the_whole_file(tmp_path):
    rng = np.random.default_rng(0)
    rows = [" ".join(map("{:.4f}".format, row)) for row in rng.normal(size=(500, 300))]
    with (tmp_path / "x.vec").open("w") as file:
        file.write("5000 300\n")
        file.writelines(f"word{number} {rows[number % 500]}\n" for number in range(5000))
    start = time.process_time()
    source = read_vectors(tmp_path / "x.vec", [f"word{number}" for number in range(0, 5000, 10)])
    ours = time.process_time() - start
    start = time.process_time()
    reference = KeyedVectors.load_word2vec_format(tmp_path / "x.vec")
    theirs = time.process_time() - start
    np.testing.assert_array_equal(source.vectors["word40"], reference["word40"])
    assert theirs > 5 * ours


# --- reading FastText's binary format -----------------------------------------------------------


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
    for word in [*words, unknown]:
        np.testing.assert_array_equal(source.vectors[word], reference[word])


@pytest.mark.parametrize("share", [0, 0.0001, 0.0005, 0.01, 0.1, 0.5, 0.6])
def test_a_binary_model_cut_short_is_refused(tmp_path, share):
    whole = Path(datapath("lee_fasttext_new.bin")).read_bytes()
    (tmp_path / "x.bin").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        InputError, match=r"x\.bin: no FastText model of word vectors, or cut short"
    ):
        read_vectors(tmp_path / "x.bin", ["the"])


def test_other_binary_files_are_refused(tmp_path):
    classifier, word2vec = "pang_lee_polarity_fasttext.bin", "euclidean_vectors.bin"
    for name in [classifier, word2vec, "poincare_vectors.bin", "high_precision.kv.bin"]:
        with pytest.raises(InputError, match=f"{name}: no FastText model"):
            read_vectors(datapath(name), ["the"])


def test_a_binary_model_with_a_damaged_word_list_is_refused(tmp_path):
    whole = Path(datapath("toy-model.bin")).read_bytes()
    (tmp_path / "x.bin").write_bytes(whole[:100] + b"\xff" * len(whole))
    with pytest.raises(InputError, match=r"x\.bin: no FastText model"):
        read_vectors(tmp_path / "x.bin", ["the"])


# --- training -----------------------------------------------------------------------------------

TRAIN_AND_PRINT = """
import json, sys
from captioning.embeddings import train_fasttext
captions = [["a", "dog", "runs"], ["a", "cat", "sleeps"], ["two", "dogs", "run"]] * 20
source = train_fasttext(captions, dimension=8, epochs=3, seed=int(sys.argv[1]))
print(json.dumps({word: vector.tolist() for word, vector in source.vectors.items()}))
"""


def test_training_depends_on_the_seed_alone():
    runs = [("0", "1"), ("1", "1"), ("1", "2")]  # hash seed, our seed
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN_AND_PRINT, seed],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for hash_seed, seed in runs
    ]
    first, again, other = (json.loads(process.communicate()[0]) for process in processes)
    assert set(first) == {"a", "dog", "runs", "cat", "sleeps", "two", "dogs", "run"}
    assert first == again
    assert first != other


def test_training_brings_words_of_like_use_together(capsys):
    rng = np.random.default_rng(0)
    things = {"kitchen": ["pot", "spoon", "plate", "stove"], "forest": ["tree", "moss", "deer"]}
    captions = [
        [place, *rng.permutation(things[place]).tolist()]
        for place in rng.choice(list(things), 2000).tolist()
    ]
    source = train_fasttext(captions, dimension=16, epochs=5)
    words = list(source.vectors)
    matrix = np.stack([source.vectors[word] for word in words])
    neighbours = dict(nearest_neighbours(matrix, words, "kitchen", n=4))
    assert set(neighbours) == set(things["kitchen"])
    assert capsys.readouterr().out == ""


def test_training_needs_words():
    with pytest.raises(InputError, match="there are none"):
        train_fasttext([[], []])


# --- the matrix ---------------------------------------------------------------------------------


def test_the_matrix_follows_the_vocabulary_and_fills_gaps_by_the_rule():
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(500)]
    vectors = {word: rng.normal(3, 0.1, 4).astype(np.float32) for word in words[:400]}
    source = WordVectors(4, {**vectors, "<end>": np.zeros(4)}, frozenset(words[300:400]))
    embedding = embedding_matrix(vocabulary(*words), source)
    assert embedding.matrix.dtype == np.float32
    assert embedding.matrix.shape == (504, 4)
    for index, word in enumerate(words[:400], start=len(SPECIALS)):
        np.testing.assert_array_equal(embedding.matrix[index], vectors[word])
    assert not embedding.matrix[PAD].any()
    by_rule = embedding.matrix[[START, END, UNKNOWN, *range(404, 504)]]
    assert by_rule.mean() == pytest.approx(3, abs=0.05)
    assert by_rule.std() == pytest.approx(0.1, rel=0.2)
    assert len(np.unique(by_rule, axis=0)) == 103
    assert embedding.origin == [RULE] * 4 + [FOUND] * 300 + [SUBWORDS] * 100 + [RULE] * 100
    assert embedding.coverage() == {FOUND: 300, SUBWORDS: 100, RULE: 100}
    assert embedding.report() == (
        "500 words x 4: 300 found (60.0%), 100 from subwords (20.0%), 100 by rule (20.0%) "
        "such as word400, word401, word402, word403, word404"
    )
    np.testing.assert_array_equal(
        embedding.matrix, embedding_matrix(vocabulary(*words), source).matrix
    )


def test_a_matrix_needs_a_vector():
    with pytest.raises(InputError, match="none of the vocabulary's words has a vector"):
        embedding_matrix(vocabulary("dog"), WordVectors(2, {"cat": np.ones(2)}))


def test_nearest_neighbours_are_sorted_by_cosine():
    words = [*SPECIALS, "up", "higher", "right", "down"]
    matrix = np.array([[0, 0], [0, 9], [0, 9], [0, 9], [0, 1], [1, 5], [7, 0], [0, -1]])
    neighbours = nearest_neighbours(matrix, words, "up", n=2)
    assert neighbours == [("higher", pytest.approx(5 / 26**0.5)), ("right", 0)]
    with pytest.raises(InputError, match="'left' is not in the vocabulary"):
        nearest_neighbours(matrix, words, "left")


@pytest.mark.parametrize(
    ("captions", "epochs"),
    [(1_500, 67), (10_000, 10), (30_000, 10), (145_000, 10), (567_000, 3), (10_000_000, 3)],
)
def test_small_data_sets_take_more_passes_and_large_ones_fewer(captions, epochs):
    assert training_epochs(captions) == epochs
