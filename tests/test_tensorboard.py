"""What a run logs is read back with TensorBoard's own readers."""

import io
import shutil

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import projector_plugin
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util import tensor_util

from captioning.batches import open_caches
from captioning.captioner import Captioner
from captioning.files import InputError
from captioning.prepared import Prepared
from captioning.tensorboard import TensorBoard, _label

ROW = {"epoch": 1, "train_loss": 2.5, "reward": None, "dev_CIDEr-D": 41.5}


@pytest.fixture
def board(tiny_checkpoint, tmp_path):
    """A function that opens a log of a prepared folder."""
    captioner = Captioner.load(tiny_checkpoint)

    def make(folder):
        return TensorBoard(tmp_path / "log", Prepared(folder), open_caches(folder)[0], captioner)

    return make


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    return accumulator.Reload()


def values(log, tag):
    return [tensor_util.make_ndarray(event.tensor_proto) for event in log.Tensors(tag)]


def test_scores_and_captions_with_their_pictures_come_back(
    board, tiny_prepared, tiny_checkpoint, tmp_path
):
    folder = shutil.copytree(tiny_prepared, tmp_path / "prepared")
    for number, shade in enumerate((0, 80, 160, 240)):
        Image.new("RGB", (60, 40), (shade, 0, 0)).save(folder / f"dev{number}.jpg")
    log = board(folder)
    log.add_epoch(ROW)
    log.add_epoch({**ROW, "epoch": 2, "dev_CIDEr-D": 43.0})

    events = read(tmp_path / "log")
    tags = {"train_loss", "dev_CIDEr-D", "sample captions as text", "sample captions"}
    assert set(events.Tags()["tensors"]) == tags
    assert [event.step for event in events.Tensors("dev_CIDEr-D")] == [1, 2]
    assert [float(value) for value in values(events, "dev_CIDEr-D")] == [41.5, 43.0]

    (text, _) = values(events, "sample captions as text")
    cache = open_caches(folder)[0]
    names = [f"dev{number}.jpg" for number in range(4)]
    captions = Captioner.load(tiny_checkpoint).caption_cached(cache, names)
    rows = text.item().decode().splitlines()[2:]
    assert rows == [f"{name} | {caption}" for name, caption in zip(names, captions, strict=True)]

    (sheet, _) = values(events, "sample captions")
    width, height, png = sheet
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert picture.shape == (int(height), int(width), 3)
    for shade in (80, 160, 240):  # each picture is on it, as large as a thumbnail at least
        alike = np.abs(picture - (shade, 0, 0)).max(2) < 12
        assert alike.sum() > 5_000


def test_without_the_picture_files_a_line_says_so(board, tiny_prepared, tmp_path, capfd):
    board(tiny_prepared).add_epoch(ROW)
    err = capfd.readouterr().err
    assert err.startswith("TensorBoard gets captions without pictures: ")
    assert "dev0.jpg: no such file" in err
    assert err.count("\n") == 1
    tags = read(tmp_path / "log").Tags()["tensors"]
    assert "sample captions as text" in tags
    assert "sample captions" not in tags


def test_the_words_in_space_come_back(board, tiny_prepared, tiny_checkpoint, tmp_path):
    board(tiny_prepared).add_word_vectors()
    folder = tmp_path / "log"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (space,) = config.embeddings
    vectors = projector_plugin._read_tensor_tsv_file(str(folder / space.tensor_path))
    captioner = Captioner.load(tiny_checkpoint)
    np.testing.assert_allclose(
        vectors, np.asarray(captioner.model.embedding.embeddings), rtol=1e-4, atol=1e-6
    )
    words = (folder / space.metadata_path).read_text(encoding="utf-8").split("\n")
    assert words == [*captioner.vocabulary.words, ""]


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("dog", "dog"),
        ("\t", "'\\t'"),
        ("\n", "'\\n'"),
        (" ", "' '"),
        ("\u2028", "'\\u2028'"),
        ("a\tb", "'a\\tb'"),
        ("\ud800", "\\ud800"),
        ("狗", "狗"),
    ],
    ids=ascii,
)
def test_a_word_is_one_cell_of_the_table(word, label):
    assert _label(word) == label
    assert len(label.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_named(board, tiny_prepared, tmp_path):
    (tmp_path / "log").write_text("a file")
    with pytest.raises(InputError, match=r"log: cannot be written"):
        board(tiny_prepared)
