"""Untrusted files: code planted in them does not run, and they take no absurd memory.

Checkpoints: test_checkpoint.py. Encoders: test_encoders.py. Archives: test_download.py. Image
names: test_datasets.py. The report: test_report.py.
"""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.errors import InputError
from captioning.extras.study.sheets import attention_sheet, captioned_sheet
from captioning.features import FeatureCache
from captioning.plots import save_figure
from captioning.prepared import Prepared


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def array_with_code(trace):
    stream = io.BytesIO()
    np.save(stream, np.array([Planted(trace)], object), allow_pickle=True)
    return stream.getvalue()


def features(folder):
    return FeatureCache.open(folder / "features" / "synthetic")


READERS = {
    "embeddings.npy": lambda folder: Prepared(folder).embeddings(),
    "tokens/train.safetensors": lambda folder: Prepared(folder).tokens("train"),
    "vocabulary.json": lambda folder: Prepared(folder).vocabulary,
    "features/synthetic/pooled.npy": features,
    "features/synthetic/grid.npy": features,
    "features/synthetic/index.json": features,
}


def test_the_planted_code_does_leave_a_trace(tmp_path):
    np.load(io.BytesIO(array_with_code(tmp_path / "trace")), allow_pickle=True)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [array_with_code, lambda trace: pickle.dumps(Planted(trace))])
@pytest.mark.parametrize("name", READERS)
def test_pickled_code_is_rejected_and_does_not_run(
    make_prepared, tiny_captions, tmp_path, name, content
):
    folder = make_prepared(tmp_path / "prepared", tiny_captions)
    READERS[name](folder)
    (folder / name).write_bytes(content(tmp_path / "trace"))
    with pytest.raises(InputError, match="prepared"):
        READERS[name](folder)
    assert not (tmp_path / "trace").exists()


def test_dollar_signs_in_captions_are_not_formulas(tmp_path):
    picture = np.zeros((20, 20, 3), np.uint8)
    caption = r"it costs $\frac $ and _x^ {"
    save_figure(captioned_sheet([picture], [caption]), tmp_path / "a.png")
    attention = attention_sheet(picture, r"$\frac $", np.ones((2, 3, 3)))
    save_figure(attention, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as drawn:
            drawn.load()
