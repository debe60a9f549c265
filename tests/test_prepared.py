"""The prepared folder: what one run wrote is what the next step reads, whatever happens."""

import itertools
import json
import os
import shutil
import unicodedata
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
    return CaptionDataset("csv", image_folder, CAPTIONS, splits, "drawn", {"in capitals": 1}, [])


def vocabulary(*splits):
    images = [image for split in splits or ["train"] for image in SPLITS[split]]
    captions = [tokenize(caption) for image in images for caption in CAPTIONS[image]]
    return Vocabulary.from_captions(captions, min_count=1)


def embedding(built, dimension=3):
    words = built.words[4:]
    vectors = {word: np.full(dimension, len(word), np.float32) for word in words}
    return embedding_matrix(built, WordVectors(dimension, vectors))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "prepared"
    write_captions(folder, dataset(tmp_path / "images"), vocabulary(), 30, {"min_count": 1})
    write_embeddings(folder, embedding(vocabulary()), "vectors.vec")
    return folder


def test_what_was_written_is_read(folder):
    prepared = Prepared(folder)
    assert prepared.split_origin == "drawn"
    assert prepared.splits == {"train": 2, "dev": 1}
    assert prepared.max_words == 30
    assert prepared.tokenizer == "words"
    said = {"layout": "csv", "summary": {"in capitals": 1}, "parameters": {"min_count": 1}}
    assert said.items() <= prepared.description.items()
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


def test_a_split_may_be_empty(tmp_path):
    write_captions(tmp_path, dataset(tmp_path, SPLITS | {"test": []}), vocabulary(), 30, {})
    prepared = Prepared(tmp_path)
    assert prepared.images("test") == prepared.references("test") == []
    assert len(prepared.tokens("test")) == 0


def test_the_folder_moves_with_its_images(tmp_path, folder):
    assert Prepared(folder).image_folder == (tmp_path / "images").resolve()
    moved = shutil.move(folder, tmp_path / "elsewhere" / "prepared")
    assert Prepared(moved).image_folder == (tmp_path / "elsewhere" / "images").resolve()
    assert Prepared(moved).description["image_folder"] == "../images"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_captions("~/prepared", dataset(tmp_path), vocabulary(), 30, {})
    write_embeddings("~/prepared", embedding(vocabulary()), "vectors.vec")
    assert len(Prepared("~/prepared").embeddings()) == len(vocabulary())
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_an_unknown_split_names_the_known_ones(folder):
    for read in [Prepared(folder).images, Prepared(folder).references, Prepared(folder).tokens]:
        with pytest.raises(InputError, match="no split 'test'; it has train, dev"):
            read("test")


def test_a_second_run_leaves_nothing_of_the_first(folder, tmp_path):
    other = vocabulary("train", "dev")
    write_captions(folder, dataset(tmp_path, {"dev": SPLITS["dev"]}), other, 30, {})
    prepared = Prepared(folder)
    assert prepared.vocabulary == other
    assert prepared.splits == {"dev": 1}
    assert [file.name for file in (folder / "captions").iterdir()] == ["dev.jsonl"]
    assert [file.name for file in (folder / "tokens").iterdir()] == ["dev.safetensors"]
    with pytest.raises(InputError, match=r"embeddings\.npy.*made with another vocabulary"):
        prepared.embeddings()
    write_embeddings(folder, embedding(other), "vectors.vec")
    assert len(prepared.embeddings()) == len(other)


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def killed_at(fatal, call):
    """Whether `call` ends before its step number `fatal`: a flush, a rename or a removal."""
    steps = itertools.count(1)

    def stopping(original):
        def step(*arguments, **keywords):
            if next(steps) == fatal:
                raise Killed
            return original(*arguments, **keywords)

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1_000_000 + fatal)  # of a process that is gone
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        try:
            call()
        except Killed:
            return True
    return False


def test_killed_at_any_step_the_folder_is_old_or_new_or_unfinished(folder, tmp_path):
    """Never a mixture, though both runs have the same words: captions and vectors change."""

    def write(target):
        other = dataset(tmp_path, {"train": SPLITS["dev"]})
        write_captions(target, other, vocabulary(), 12, {})
        write_embeddings(target, embedding(vocabulary(), dimension=5), "other.vec")

    def captions(prepared):
        tokens = prepared.tokens("train")
        texts = [prepared.vocabulary.decode(ids) for ids in tokens]
        return repr((prepared.splits, prepared.max_words, prepared.references("train"), texts))

    def part(target, read):
        try:
            return read(Prepared(target))
        except InputError as error:
            assert "caption_extraction.ipynb" in str(error)
            return "unfinished"

    def found(target):
        return part(target, captions), part(target, lambda prepared: prepared.embeddings().shape)

    old, seen, fatal = found(folder), set(), itertools.count(1)
    write(shutil.copytree(folder, tmp_path / "new"))
    new = found(tmp_path / "new")
    killed, cut = True, tmp_path / "cut"
    while killed:
        shutil.rmtree(cut, ignore_errors=True)
        shutil.copytree(folder, cut)
        killed = killed_at(next(fatal), lambda: write(cut))
        seen.add(found(cut))
        write(cut)  # the next run is not in its way
        assert found(cut) == new
        assert not [path for path in cut.rglob("*") if "captioning-" in path.name]
    between = (("unfinished", "unfinished"), (new[0], old[1]), (new[0], "unfinished"))
    assert seen == {old, *between, new}


def test_pieces_of_two_runs_are_not_mixed(folder, tmp_path):
    write_captions(tmp_path / "other", dataset(tmp_path), vocabulary("dev"), 30, {})
    for piece in ("vocabulary.json", "tokens/train.safetensors"):
        shutil.copy(tmp_path / "other" / piece, folder / piece)
        with pytest.raises(InputError, match=f"{piece}.*made with another vocabulary"):
            READERS[piece](Prepared(folder))


READERS = {
    "prepared.json": lambda prepared: prepared,
    "vocabulary.json": lambda prepared: prepared.vocabulary,
    "captions/train.jsonl": lambda prepared: prepared.references("train"),
    "tokens/train.safetensors": lambda prepared: prepared.tokens("train"),
    "embeddings.npy": lambda prepared: prepared.embeddings(),
    "embeddings.json": lambda prepared: prepared.embeddings(),
}


@pytest.mark.parametrize("piece", READERS)
def test_missing_and_damaged_pieces_are_named_with_their_writer(folder, piece):
    whole = (folder / piece).read_bytes()
    (folder / piece).unlink()
    with pytest.raises(InputError, match=rf"(?i){piece}: .*no such file.*caption_extraction"):
        READERS[piece](Prepared(folder))
    for damage in [b"", b"\xff garbage", whole[: len(whole) // 2], b"null\nnull\n", b"[]"]:
        (folder / piece).write_bytes(damage)
        with pytest.raises(InputError, match=rf"{piece}.*caption_extraction\.ipynb") as error:
            READERS[piece](Prepared(folder))
        assert len(str(error.value).splitlines()) == 1


def test_files_of_others_stay(tmp_path):
    """A prepared folder that is also a folder of pictures: nothing in it is deleted."""
    foreign = ["captions/mine.jsonl", "tokens/mine.npz", ".env.tmpl", ".a.b.tmp/c", "x.jpg"]
    for name in foreign:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for splits in (SPLITS, {"train": SPLITS["train"]}):
        write_captions(tmp_path, dataset(tmp_path, splits), vocabulary(), 30, {})
        write_embeddings(tmp_path, embedding(vocabulary()), "vectors.vec")
    assert all((tmp_path / name).read_text() == "mine" for name in foreign)
    assert not (tmp_path / "captions/dev.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file.*a file where a folder is expected"):
        write_captions(tmp_path / "file", dataset(Path("images")), vocabulary(), 30, {})


LANGUAGES = {
    # what it is: (tokenizer, caption, its words)
    "French": ("words", "L'été, un garçon dévale.", "l'été un garçon dévale"),
    "Vietnamese": ("words", "Một con chó chạy trên bãi cỏ.", "một con chó chạy trên bãi cỏ"),
    "Chinese": ("characters", "一只狗在草地上跑。", " ".join("一只狗在草地上跑")),
    "Thai": ("characters", "หมาวิ่ง", " ".join("หมาวิ่ง")),
    "Chinese, cut by another program": ("words", "一只 狗 在 跑 。", "一只 狗 在 跑"),
}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_of_other_languages(tmp_path, language, form):
    """From the caption file to ids and back, however the accents are written."""
    name, caption, words = LANGUAGES[language]
    caption = unicodedata.normalize(form, caption)
    (tmp_path / "a.jpg").touch()
    row = json.dumps({"image": "a.jpg", "caption": caption})
    (tmp_path / "captions.jsonl").write_text(row, encoding="utf-8")
    tokens = [TOKENIZERS[name](caption)]
    built = Vocabulary.from_captions(tokens, min_count=1, tokenizer=name)
    write_captions(tmp_path / "prepared", read_dataset(tmp_path), built, 30, {})
    prepared = Prepared(tmp_path / "prepared")
    assert prepared.references("train") == [[caption]]
    ids = prepared.tokens("train")[0]
    assert prepared.vocabulary.words_of(ids) == words.split()
    assert prepared.vocabulary.decode(ids) == prepared.vocabulary.join(words.split())
