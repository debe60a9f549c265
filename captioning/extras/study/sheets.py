"""Pictures with captions below them, and where the model looked: `test.py --save`."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from captioning.plots import use_style


@plt.rc_context()
def captioned_sheet(pictures: list[np.ndarray], captions: list[str]) -> plt.Figure:
    """Draw pictures, uint8 (height, width, 3) each, in rows from edge to edge, captions below."""
    use_style()
    count, gap, size = len(pictures), 0.1, 13 if len(pictures) == 1 else 9
    rows = -(-count // 5)
    sheet_width = 5.0 if count == 1 else 3.2 * -(-count // rows)  # inches
    shapes = np.array([picture.shape[1] / picture.shape[0] for picture in pictures])
    row_of = ((np.cumsum(shapes) - shapes / 2) / shapes.sum() * rows).astype(int)
    figure = plt.Figure(layout="none")
    axes = figure.add_axes((0, 0, 1, 1))  # measured in inches, from the upper left corner
    top = gap
    for row in np.unique(row_of):
        members = np.flatnonzero(row_of == row)
        height = (sheet_width - gap * (len(members) + 1)) / shapes[members].sum()
        left, bottom, lines = gap, top + height, 1
        for i in members:
            right = left + height * shapes[i]
            width = max(1, int((right - left) * 72 / size / 0.52))
            text = "\n".join(textwrap.fill(line, width) for line in captions[i].split("\n"))
            axes.imshow(pictures[i], extent=(left, right, bottom, top), aspect="auto")
            axes.text((left + right) / 2, bottom + gap / 2, text, size=size, ha="center", va="top")
            left, lines = right + gap, max(lines, text.count("\n") + 1)
        top = bottom + lines * 1.2 * size / 72 + 2 * gap
    axes.set(xlim=(0, sheet_width), ylim=(top, 0))
    axes.set_axis_off()
    figure.set_size_inches(sheet_width, top)
    figure.set_dpi(min(figure.dpi, 65_000 / top))  # Matplotlib draws at most 2 ** 16 pixels
    return figure


def attention_sheet(picture: np.ndarray, words: tuple[str, ...], maps: np.ndarray) -> plt.Figure:
    """Draw where the model looked for each word: there in colour, elsewhere in pale grey.

    `picture` is uint8 (height, width, 3), `maps` float (words, rows, columns).
    """
    grey = 0.5 * picture.mean(axis=-1, keepdims=True) + 80
    panels = [picture]
    for weights in maps:
        light = Image.fromarray(weights.astype(np.float32) / weights.max())
        light = np.asarray(light.resize(picture.shape[1::-1], Image.Resampling.BICUBIC))[..., None]
        panels.append((grey + np.clip(light, 0, 1) * (picture - grey)).astype(np.uint8))
    rows = -(-len(panels) // 5)  # as in captioned_sheet
    blanks = -len(panels) % rows
    panels += [np.full_like(picture, 255)] * blanks
    return captioned_sheet(panels, ["", *words, *[""] * blanks])
