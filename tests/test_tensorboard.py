"""What a run logs is read back with TensorBoard's own readers."""

import io
import shutil

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector import projector_plugin
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util import tensor_util

from captioning.captioner import Captioner
from captioning.errors import InputError
from captioning.extras.study.tensorboard import TensorBoard
from captioning.features import FeatureCache, cache_folder
from captioning.prepared import Prepared

ROW = {"epoch": 1, "train_loss": 2.5, "reward": None, "dev_CIDEr-D": 41.5, "learning_rate": 0.01}


@pytest.fixture
def captioner(tiny_checkpoint):
    return Captioner.load(tiny_checkpoint)


def open_log(log, prepared, captioner):
    cache = FeatureCache.open(cache_folder(prepared, captioner.checkpoint.encoder["name"]))
    return TensorBoard(log, Prepared(prepared), cache, captioner.checkpoint)


def values(events, tag):
    return [tensor_util.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]


def test_scores_settings_captions_and_pictures_come_back(tiny_prepared, captioner, tmp_path):
    folder = shutil.copytree(tiny_prepared, tmp_path / "prepared")
    for number, shade in enumerate((0, 80, 160, 240)):
        Image.new("RGB", (60, 40), (shade, 0, 0)).save(folder / f"dev{number}.jpg")
    log = open_log(tmp_path / "log", folder, captioner)
    log.add_epoch(ROW)
    log.add_epoch(ROW | {"epoch": 2, "reward": 30.0, "dev_CIDEr-D": 43.0})

    events = EventAccumulator(str(tmp_path / "log"), size_guidance={"tensors": 0}).Reload()
    assert {"train/loss", "train/learning_rate"} <= set(events.Tags()["tensors"])
    assert [float(value) for value in values(events, "dev/CIDEr-D")] == [41.5, 43.0]
    assert [event.step for event in events.Tensors("train/reward")] == [2]
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert settings["units"].number_value == captioner.model.config.units
    (text, _) = values(events, "samples")
    rows = text.item().decode().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"dev{number}.jpg" for number in range(4)]
    (sheet, _) = values(events, "samples/dev2.jpg")
    with Image.open(io.BytesIO(sheet[2])) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (np.abs(pixels - (160, 0, 0)).max(2) < 12).mean() > 0.6  # the rest is the caption


def test_without_image_files_captions_are_logged_as_text(tiny_prepared, captioner, tmp_path, capfd):
    open_log(tmp_path / "log", tiny_prepared, captioner).add_epoch(ROW)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("TensorBoard gets captions without pictures: ")
    assert "dev0.jpg" in line
    tags = EventAccumulator(str(tmp_path / "log")).Reload().Tags()["tensors"]
    assert [tag for tag in tags if tag.startswith("samples")] == ["samples"]


def test_the_word_vectors_come_back(tiny_prepared, captioner, tmp_path):
    folder = tmp_path / "log"
    open_log(folder, tiny_prepared, captioner).add_word_vectors()
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (space,) = config.embeddings
    vectors = projector_plugin._read_tensor_tsv_file(str(folder / space.tensor_path))
    wanted = np.asarray(captioner.model.embedding.embeddings)
    np.testing.assert_allclose(vectors, wanted, rtol=1e-4, atol=1e-6)
    labels = (folder / space.metadata_path).read_text(encoding="utf-8").splitlines()
    assert labels == captioner.vocabulary.words


def test_a_folder_that_cannot_be_written_is_named(tiny_prepared, captioner, tmp_path):
    (tmp_path / "log").write_text("a file")
    with pytest.raises(InputError, match=r"log/vectors\.tsv: cannot be written"):
        open_log(tmp_path / "log", tiny_prepared, captioner)
