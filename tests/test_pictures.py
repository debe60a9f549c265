"""Photographs drawn with their captions."""

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from captioning.pictures import font_families, save_attention, save_captioned


def picture(height, width):
    return np.full((height, width, 3), 120, np.uint8)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (1, 80), (80, 1), (1, 1)])
def test_a_drawing_follows_the_proportions_of_its_picture(tmp_path, shape):
    save_captioned(tmp_path / "a.png", [picture(*shape)], ["a dog"])
    save_attention(tmp_path / "b.png", picture(*shape), "a dog", np.ones((2, 3, 3)))
    square = tmp_path / "square.png"
    save_captioned(square, [picture(40, 40)], ["a dog"])
    with Image.open(tmp_path / "a.png") as drawn, Image.open(square) as other:
        assert drawn.width == other.width
        assert np.sign(drawn.height - other.height) == np.sign(shape[0] - shape[1])
        assert drawn.height < 2 * drawn.width


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 3), (11, 5)])
def test_a_sheet_has_as_many_columns_as_look_well(tmp_path, count, columns):
    save_captioned(tmp_path / "a.png", [picture(30, 30)] * count, ["a dog"] * count)
    with Image.open(tmp_path / "a.png") as drawn:
        rows = -(-count // columns)
        assert drawn.width / columns == pytest.approx(drawn.height / rows, rel=0.3)


def test_letters_that_the_usual_font_lacks_come_from_one_that_is_installed(monkeypatch):
    names = ("Arial", "Noto Sans CJK JP", "DejaVu Sans", "Unifont")
    fonts = [font_manager.FontEntry(name=name) for name in names]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    assert font_families() == ["DejaVu Sans", "Noto Sans CJK JP", "Unifont"]
