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
from captioning.vocabulary import END, START, UNKNOWN, Vocabulary, find_tokenizer, tokenize

CAPTIONS = {
    "x.jpg": ["A dog runs .", "The dog's ball", "..."],
    "deep/y.jpg": ['A cat \N{CAT FACE} said "hi"\u2028\n', "half a pair: \ud83d"],
    "z.jpg": ["Ein Mädchen läuft"],
}
SPLITS = {"train": ["deep/y.jpg", "x.jpg"], "dev": ["z.jpg"]}


def dataset(image_folder, splits=SPLITS):
    return CaptionDataset(
        layout="csv",
        image_folder=image_folder,
        captions=CAPTIONS,
        splits=splits,
        split_origin="drawn",
        summary={"captions in capitals": 1},
        problems=[],
    )


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
    said = {"layout": "csv", "summary": {"captions in capitals": 1}, "parameters": {"min_count": 1}}
    assert said.items() <= prepared.description.items()
    assert prepared.vocabulary == vocabulary()
    for split, images in SPLITS.items():
        assert prepared.images(split) == images
        assert prepared.references(split) == [CAPTIONS[image] for image in images]
    np.testing.assert_array_equal(prepared.embeddings(), embedding(vocabulary()).matrix)
    settings = json.loads((folder / "embeddings.json").read_text())
    assert settings["source"] == "vectors.vec"
    assert settings["coverage"]["found"] == len(vocabulary()) - 4


def test_tokens_are_the_captions_in_split_order(folder):
    prepared = Prepared(folder)
    tokens = prepared.tokens("train")
    assert (tokens.ids.dtype, tokens.offsets.dtype, tokens.images.dtype) == (
        np.int32,
        np.int64,
        np.int32,
    )
    texts = [prepared.vocabulary.decode(tokens[index]) for index in range(len(tokens))]
    # "..." holds no word and is left out.
    assert texts == ["a cat said hi", "half a pair", "a dog runs", "the dog's ball"]
    assert tokens.images.tolist() == [0, 0, 1, 1]
    assert all(tokens[index][0] == START and tokens[index][-1] == END for index in range(4))
    dev = prepared.tokens("dev")
    assert prepared.vocabulary.decode(dev[0]) == "<unk> <unk> <unk>"


def test_a_split_may_be_empty(tmp_path):
    splits = {"train": SPLITS["train"], "test": []}
    write_captions(tmp_path, dataset(tmp_path, splits), vocabulary(), 30, {})
    prepared = Prepared(tmp_path)
    assert prepared.images("test") == prepared.references("test") == []
    assert len(prepared.tokens("test")) == 0


def test_the_folder_moves_with_its_images(tmp_path, folder):
    assert Prepared(folder).image_folder == (tmp_path / "images").resolve()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(folder, moved / "prepared")
    assert Prepared(moved / "prepared").image_folder == (moved / "images").resolve()
    description = json.loads((moved / "prepared/prepared.json").read_text())
    assert description["image_folder"] == "../images"


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


@pytest.mark.parametrize(
    ("owner", "function"), [(os, "fsync"), (Path, "replace"), (Path, "unlink")]
)
def test_killed_at_any_step_the_folder_is_old_or_new_or_unfinished(
    folder, tmp_path, owner, function
):
    """Never a mixture: the second run keeps the words and changes the captions."""
    original, other = getattr(owner, function), dataset(tmp_path, {"train": SPLITS["dev"]})
    old, seen = [["train", "dev"], Prepared(folder).references("train")], set()
    new = [["train"], [other.captions[image] for image in SPLITS["dev"]]]
    for fatal in range(1, 50):
        cut, count = tmp_path / f"cut{fatal}", 0
        shutil.copytree(folder, cut)

        def counting(*arguments, fatal=fatal, **keywords):
            nonlocal count
            count += 1
            if count == fatal:
                raise Killed
            return original(*arguments, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, function, counting)
            try:
                write_captions(cut, other, vocabulary("train"), 30, {})
                finished = True
            except Killed:
                finished = False
        try:
            prepared = Prepared(cut)
        except InputError as error:
            assert "caption_extraction.ipynb" in str(error)
            seen.add("unfinished")
        else:
            found = [list(prepared.splits), prepared.references("train")]
            assert found in (old, new)
            assert len(prepared.tokens("train")) > 0
            seen.add("old" if found == old else "new")
        write_captions(cut, other, vocabulary("train"), 30, {})  # the next run is not in its way
        assert Prepared(cut).references("train") == new[1]
        assert not [path for path in cut.rglob("*") if "captioning-" in path.name]
        if finished:
            break
    assert finished
    assert "new" in seen
    assert seen & {"old", "unfinished"}


def test_pieces_of_two_runs_are_not_mixed(folder, tmp_path):
    other = tmp_path / "other"
    write_captions(other, dataset(tmp_path), vocabulary("dev"), 30, {})
    for piece, read in [
        ("vocabulary.json", lambda: Prepared(folder).vocabulary),
        ("tokens/train.safetensors", lambda: Prepared(folder).tokens("train")),
    ]:
        shutil.copy(folder / piece, tmp_path / "kept")
        shutil.copy(other / piece, folder / piece)
        with pytest.raises(InputError, match=f"{piece}.*made with another vocabulary"):
            read()
        shutil.copy(tmp_path / "kept", folder / piece)
        read()


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
    for damage in [b"", b"\xff garbage", whole[: len(whole) // 2]]:
        (folder / piece).write_bytes(damage)
        with pytest.raises(InputError, match=rf"{piece}.*caption_extraction\.ipynb"):
            READERS[piece](Prepared(folder))


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


# ---- languages ----------------------------------------------------------------------------------

LANGUAGES = {
    # what it is: (tokeniser, captions, the words of the first)
    "French, composed": (
        "words",
        ["L'été, un garçon dévale la forêt.", "Une fille à l'école"],
        ["l'été", "un", "garçon", "dévale", "la", "forêt"],
    ),
    "Vietnamese": (
        "words",
        ["Một con chó chạy trên bãi cỏ.", "Hai người đàn ông"],
        ["một", "con", "chó", "chạy", "trên", "bãi", "cỏ"],
    ),
    "Chinese": ("characters", ["一只狗在草地上跑。", "两个人"], list("一只狗在草地上跑")),
    "Thai": ("characters", ["หมาวิ่ง", "แมว"], list("หมาวิ่ง")),
    "Chinese, cut by another program": (
        "words",
        ["一只 狗 在 跑 。", "人"],
        ["一只", "狗", "在", "跑"],
    ),
}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_of_other_languages(tmp_path, language, form):
    """From the caption file to ids and back, however the accents are written."""
    name, captions, words = LANGUAGES[language]
    written = [unicodedata.normalize(form, caption) for caption in captions]
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jpg").touch()
    rows = [json.dumps({"image": "a.jpg", "caption": caption}) for caption in written]
    (data / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    read = read_dataset(data)
    tokens = [find_tokenizer(name)(caption) for caption in read.captions["a.jpg"]]
    built = Vocabulary.from_captions(tokens, min_count=1, tokenizer=name)
    write_captions(tmp_path / "prepared", read, built, 30, {})
    prepared = Prepared(tmp_path / "prepared")
    assert prepared.references("train") == [written]
    ids = prepared.tokens("train")[0]
    assert UNKNOWN not in ids
    assert [prepared.vocabulary.words[index] for index in ids[1:-1]] == words
    assert prepared.vocabulary.decode(ids) == ("" if name == "characters" else " ").join(words)
