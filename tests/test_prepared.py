"""The prepared folder: what one run wrote is what the next step reads, whatever happens."""

import contextlib
import itertools
import json
import os
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from captioning.datasets import CaptionDataset, read_dataset
from captioning.embeddings import WordVectors, embedding_matrix
from captioning.errors import InputError
from captioning.prepared import Prepared, write_captions, write_embeddings
from captioning.vocabulary import END, START, TOKENIZERS, Vocabulary, tokenize

CAPTIONS = {
    "x.jpg": ["A dog runs .", "The dog's ball", "..."],
    "deep/y.jpg": ['A cat \N{CAT FACE} said "hi"\u2028\n', "half a pair: \ud83d"],
    "z.jpg": ["Ein Mädchen läuft"],
}
SPLITS = {"train": ["deep/y.jpg", "x.jpg"], "dev": ["z.jpg"]}


def dataset(image_folder, splits=SPLITS):
    return CaptionDataset("csv", image_folder, CAPTIONS, splits, "drawn", {"copies": 1}, [])


def vocabulary(split="train"):
    captions = [tokenize(caption) for image in SPLITS[split] for caption in CAPTIONS[image]]
    return Vocabulary.from_captions(captions, min_count=1)


def embedding(built, dimension=3):
    vectors = {word: np.full(dimension, len(word), np.float32) for word in built.words[4:]}
    return embedding_matrix(built, WordVectors(dimension, vectors))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "prepared"
    write_captions(folder, dataset(tmp_path / "images"), vocabulary(), 30, {"min_count": 1})
    write_embeddings(folder, embedding(vocabulary()), "vectors.vec")
    return folder


def test_what_was_written_is_read(folder):
    prepared = Prepared(folder)
    assert (prepared.split_origin, prepared.splits) == ("drawn", {"train": 2, "dev": 1})
    assert (prepared.vocabulary.tokenizer, prepared.max_words) == ("words", 30)
    assert prepared.description["summary"] == {"copies": 1}
    assert prepared.description["parameters"] == {"min_count": 1}
    assert prepared.vocabulary == vocabulary()
    for split, images in SPLITS.items():
        assert prepared.images(split) == images
        assert prepared.references(split) == [CAPTIONS[image] for image in images]
    np.testing.assert_array_equal(prepared.embeddings(), embedding(vocabulary()).matrix)
    assert json.loads((folder / "embeddings.json").read_text())["source"] == "vectors.vec"


def test_tokens_are_the_captions_in_split_order(folder):
    prepared, tokens = Prepared(folder), Prepared(folder).tokens("train")
    assert [array.dtype for array in vars(tokens).values()] == [np.int32, np.int64, np.int32]
    texts = [prepared.vocabulary.decode(ids) for ids in tokens]  # "..." holds no word
    assert texts == ["a cat said hi", "half a pair", "a dog runs", "the dog's ball"]
    assert tokens.images.tolist() == [0, 0, 1, 1]
    assert [(ids[0], ids[-1]) for ids in tokens] == [(START, END)] * 4
    assert prepared.vocabulary.decode(prepared.tokens("dev")[0]) == "<unk> <unk> <unk>"


def test_the_folder_moves_with_its_images(tmp_path, folder):
    assert Prepared(folder).image_folder == (tmp_path / "images").resolve()
    moved = shutil.move(folder, tmp_path / "elsewhere" / "prepared")
    assert Prepared(moved).image_folder == (tmp_path / "elsewhere" / "images").resolve()
    assert Prepared(moved).description["image_folder"] == "../images"


def test_a_tilde_is_the_home_folder_and_a_split_may_be_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    splits = SPLITS | {"test": []}
    write_captions("~/prepared", dataset(tmp_path, splits), vocabulary(), 3000, {})
    write_embeddings("~/prepared", embedding(vocabulary()), "vectors.vec")
    assert len(Prepared("~/prepared").embeddings()) == len(vocabulary())
    prepared = Prepared(tmp_path / "prepared")
    assert prepared.max_words == 1000  # as long as captions of a model can be
    assert (prepared.references("test"), len(prepared.tokens("test"))) == ([], 0)


def test_an_unknown_split_names_the_known_ones(folder):
    for part in ("images", "references", "tokens"):
        with pytest.raises(InputError, match="no split 'test'; it has train, dev"):
            getattr(Prepared(folder), part)("test")


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def is_killed(fatal, call):
    """Whether `call` gets as far as step number `fatal` (a flush, rename or removal), and dies."""
    steps = itertools.count(1)

    def step(original, *arguments, **keywords):
        if next(steps) == fatal:
            raise Killed
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(os, "getpid", lambda: 1_000_000 + fatal)  # of a process that is gone
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            original = getattr(owner, name)
            patch.setattr(owner, name, lambda *a, of=original, **k: step(of, *a, **k))
        call()
        return False
    return True


def test_killed_at_any_step_the_folder_is_old_or_new_or_unfinished(folder, tmp_path):
    """Never a mixture, though both runs have the same words: captions and vectors change."""

    def write(target):
        other = dataset(tmp_path, {"train": SPLITS["dev"]})
        write_captions(target, other, vocabulary(), 12, {})
        write_embeddings(target, embedding(vocabulary(), dimension=5), "other.vec")

    def captions(prepared):
        texts = [prepared.vocabulary.decode(ids) for ids in prepared.tokens("train")]
        return repr((prepared.splits, prepared.max_words, prepared.references("train"), texts))

    def part(target, read):
        try:
            return read(Prepared(target))
        except InputError as error:
            assert "caption_extraction.ipynb" in str(error)
            return "unfinished"

    def found(target):
        return part(target, captions), part(target, lambda prepared: prepared.embeddings().size)

    old, seen, killed, fatal = found(folder), set(), True, itertools.count(1)
    write(shutil.copytree(folder, tmp_path / "new"))
    new = found(tmp_path / "new")
    while killed:
        cut = shutil.copytree(folder, tmp_path / "cut")
        killed = is_killed(next(fatal), partial(write, cut))
        seen.add(found(cut))
        write(cut)  # the next run is not in its way
        assert found(cut) == new
        assert not list(cut.rglob("*captioning-*"))
        shutil.rmtree(cut)
    between = (("unfinished", "unfinished"), (new[0], old[1]), (new[0], "unfinished"))
    assert seen == {old, *between, new}


READERS = {
    "prepared.json": lambda prepared: prepared,
    "vocabulary.json": lambda prepared: prepared.vocabulary,
    "captions/train.jsonl": lambda prepared: prepared.references("train"),
    "tokens/train.safetensors": lambda prepared: prepared.tokens("train"),
    "embeddings.npy": Prepared.embeddings,
    "embeddings.json": Prepared.embeddings,
}


def test_pieces_of_two_runs_are_not_mixed(folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    write_captions(folder, dataset(tmp_path), vocabulary("dev"), 30, {})
    for piece in ("embeddings.npy", "vocabulary.json", "tokens/train.safetensors"):
        shutil.copy(old / piece, folder / piece)
        with pytest.raises(InputError, match=f"{piece}.*made with another vocabulary"):
            READERS[piece](Prepared(folder))
    write_embeddings(folder, embedding(vocabulary("dev")), "vectors.vec")
    assert len(Prepared(folder).embeddings()) == len(vocabulary("dev"))


@pytest.mark.parametrize("piece", READERS)
def test_missing_and_damaged_pieces_are_named_with_their_writer(folder, piece):
    whole = (folder / piece).read_bytes()
    (folder / piece).unlink()
    with pytest.raises(InputError, match=rf"(?i){piece}: .*no such file.*caption_extraction"):
        READERS[piece](Prepared(folder))
    letters = ((b"image", b"imagf"), (b"offsets", b"offsett"), (b"'descr'", b"'des(r'"))
    flipped = [whole.replace(*letter) for letter in letters if letter[0] in whole]
    cut = whole[: len(whole) // 2]
    for damage in [b"", b"\xff garbage", cut, b"null\nnull\n", b"[]", *flipped]:
        (folder / piece).write_bytes(damage)
        with pytest.raises(InputError, match=rf"{piece}.*caption_extraction\.ipynb") as error:
            READERS[piece](Prepared(folder))
        assert len(str(error.value).splitlines()) == 1


def test_a_file_in_the_way_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"prepared\.json.*a file where a folder is expected"):
        write_captions(folder / "prepared.json", dataset(tmp_path), vocabulary(), 30, {})


def test_files_of_others_stay(tmp_path):
    """A prepared folder that is also a folder of pictures: nothing in it is deleted."""
    foreign = ["captions/mine.jsonl", "tokens/mine.npz", ".env.tmpl", ".a.b.tmp/c", "x.jpg"]
    for path in map(tmp_path.joinpath, foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for splits in (SPLITS, {"train": SPLITS["train"]}):
        write_captions(tmp_path, dataset(tmp_path, splits), vocabulary(), 30, {})
        write_embeddings(tmp_path, embedding(vocabulary()), "vectors.vec")
    assert all((tmp_path / name).read_text() == "mine" for name in foreign)
    assert Prepared(tmp_path).splits == {"train": len(SPLITS["train"])}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("name", "caption", "words"),
    [
        ("words", "Một con chó chạy trên bãi cỏ.", "một con chó chạy trên bãi cỏ"),
        ("words", "一只 狗 在 跑 。", "一只 狗 在 跑"),
        ("characters", "一只狗在草地上跑。", " ".join("一只狗在草地上跑")),
        ("characters", "หมาวิ่ง", " ".join("หมาวิ่ง")),
    ],
)
def test_captions_of_other_languages(tmp_path, name, caption, words, form):
    """From the caption file to ids and back, however the accents are written."""
    caption = unicodedata.normalize(form, caption)
    (tmp_path / "a.jpg").touch()
    row = json.dumps({"image": "a.jpg", "caption": caption})
    (tmp_path / "captions.jsonl").write_text(row, encoding="utf-8")
    built = Vocabulary.from_captions([TOKENIZERS[name](caption)], 1, tokenizer=name)
    write_captions(tmp_path / "prepared", read_dataset(tmp_path), built, 30, {})
    prepared = Prepared(tmp_path / "prepared")
    assert prepared.references("train") == [[caption]]
    assert prepared.vocabulary.words_of(prepared.tokens("train")[0]) == words.split()
