"""Figures: what is drawn where, and that it can be read."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from PIL import Image

from captioning import plots
from captioning.extras.study import sheets

HISTORY = [
    {"epoch": 1, "train_loss": 5.0, "reward": None, "dev_loss": 4.0, "dev_CIDEr-D": 20.0},
    {"epoch": 2, "train_loss": 4.0, "reward": None, "dev_loss": 3.0, "dev_CIDEr-D": 40.0},
    {"epoch": 3, "train_loss": None, "reward": 35.0, "dev_loss": 3.1, "dev_CIDEr-D": 39.0},
]
HISTORY = [row | {"dev_BLEU-4": 10.0, "dev_ROUGE-L": 30.0} for row in HISTORY]


def picture(height, width):
    return np.full((height, width, 3), 120, np.uint8)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_curves_mark_the_best_epoch_and_the_self_critical_ones(epochs, tmp_path):
    _, cider_d, _ = plots.history_figure(HISTORY[:epochs], plots.PANELS).axes
    labels = [text.get_text() for text in cider_d.get_legend().get_texts()]
    assert labels[-1] == f"best epoch: {min(epochs, 2)}"
    assert ("self-critical" in labels) == ("reward, sampled (train)" in labels) == (epochs == 3)
    if epochs == 3:
        assert cider_d.patches[0].get_bbox().intervalx.tolist() == [2.5, 3.5]
    plots.save_figure(plots.history_figure(HISTORY[:epochs]), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.info["dpi"] == pytest.approx((144, 144), abs=0.1)


@pytest.mark.parametrize("count", [1, 3, 5, 6, 12, 1000])
def test_a_sheet_has_no_holes_and_keeps_proportions(count):
    rng = np.random.default_rng(count)
    pictures = [picture(*rng.integers(30, 90, 2)) for _ in range(count)]
    figure = sheets.captioned_sheet(pictures, ["a dog runs on the beach"] * count)
    width = figure.get_size_inches()[0]
    rows = {}
    for image, shown in zip(figure.axes[0].images, pictures, strict=True):
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(shown.shape[1] / shown.shape[0])
        rows.setdefault((top, bottom), []).append((left, right))
    for places in rows.values():
        lefts, rights = map(np.array, zip(*places, strict=True))
        assert [*lefts, width] - np.array([0, *rights]) == pytest.approx(0.1)  # all gaps
    assert max(figure.get_size_inches()) * figure.dpi < 2**16  # as Matplotlib demands


def test_attention_keeps_the_picture_recognisable(tmp_path):
    shown = np.zeros((40, 40, 3), np.uint8)
    shown[:, 20:] = (250, 0, 0)
    maps = np.full((2, 2, 2), 1e-6)
    maps[0, 0, 1] = maps[1, 1, 0] = 1
    plots.save_figure(sheets.attention_sheet(shown, ("red", "dark"), maps), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    line = pixels[40]  # through the upper half of the pictures
    width = len(line) // 3
    assert tuple(line[width + width * 4 // 5]) == pytest.approx((250, 0, 0), abs=6)
    unlit = line[[width + width // 5, 2 * width + width // 5, 2 * width + width * 4 // 5]]
    assert unlit.min() > 70
    assert abs(int(unlit[2, 0]) - int(unlit[1, 0])) > 30  # and what it shows can be told apart


@pytest.mark.parametrize("colour", [plots.BLUE, plots.ORANGE, plots.GREEN, plots.INK])
def test_text_has_contrast(colour):
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ (0.2126, 0.7152, 0.0722) + 0.05) > 4.5


def test_letters_that_the_usual_font_lacks_come_from_an_installed_one(monkeypatch):
    names = ("Arial", "Noto Sans CJK JP", "DejaVu Sans", "Unifont")
    fonts = [font_manager.FontEntry(name=name) for name in names]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["font.family"] == ["DejaVu Sans", "Noto Sans CJK JP", "Unifont"]
