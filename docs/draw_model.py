"""Draw the merge model for the README: docs/model.png.

    python docs/draw_model.py                     # two seconds
    python docs/draw_model.py --output model.svg

The dashed part is only in models with attention. The sizes are those of the bundled encoder.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from PIL import Image

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "data" / "sample" / "Flicker8k_Dataset" / "scene_027.jpg"
PREFIX = ("<start>", "a", "girl", "in", "a")
NEXT_WORDS = {"blue": 0.78, "red": 0.11, "white": 0.06, "green": 0.03}  # invented probabilities
BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#e07b39", "#4a9a5b", "#8a8f98"
INK, PALE, LEAF, SKY, SAND = "#2b2f36", "#e4e7ec", "#dcefe0", "#dbe7f5", "#fbe6d7"
DASHED = (0, (4, 2.2))
MONO = "DejaVu Sans Mono"
SMALL = {"ha": "left", "fontsize": 9}
HEADING = {"ha": "left", "weight": "bold", "fontsize": 12}

rng = np.random.default_rng(4)
figure = Figure(figsize=(12.8, 6.9), facecolor="white")
axes = figure.add_axes((0, 0, 1, 1))
axes.set_axis_off()


def label(x, y, text, **font):
    """Write `text` at (x, y), centred by default."""
    defaults = {"ha": "center", "va": "center", "color": INK, "fontsize": 10, "linespacing": 1.35}
    axes.text(x, y, text, **(defaults | font))


def box(x, y, width, height, fill, edge, text, **font):
    """Draw a rounded box with a text, centred on (x, y)."""
    style = {"boxstyle": "round,pad=0,rounding_size=1.1", "fc": fill, "ec": edge, "lw": 1.4}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    label(x, y, text, **font)


def arrow(*points, color=INK, linestyle="-"):
    """Draw a line through `points` with an arrowhead at the last."""
    style = {"color": color, "linewidth": 1.5, "linestyle": linestyle}
    axes.plot(*zip(*points[:-1], strict=True), solid_joinstyle="round", **style)
    head = {"arrowstyle": "-|>,head_width=0.22,head_length=0.42", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=head | style)


def vector(x, y, width, height, color):
    """Draw a vector of six random values as a row or column of shaded cells, centred on (x, y)."""
    left, bottom = x - width / 2, y - height / 2
    across, up = (width / 6, 0) if width > height else (0, height / 6)
    for i, alpha in enumerate(rng.uniform(0.25, 0.95, 6)):
        corner, style = (left + i * across, bottom + i * up), {"color": color, "alpha": alpha}
        axes.add_patch(Rectangle(corner, across or width, up or height, lw=0, **style))
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, ec=color, lw=1.2))


# The language side
label(3, 66.5, "The language side never sees the image", color=GREEN, **HEADING)
label(3, 60, "words so far", ha="left")
label(3, 52, "word vectors\n(FastText, fine-tuned)", ha="left")
label(3, 43, "RNN", ha="left")
columns = np.linspace(27, 75, len(PREFIX))
for x, word in zip(columns, PREFIX, strict=True):
    box(x, 60, 9.6, 4.4, "white", GREEN, word, family=MONO)
    arrow((x, 57.8), (x, 53.4))
    vector(x, 52, 9.6, 2.4, GREEN)
    arrow((x, 50.8), (x, 46))
    box(x, 43, 7.4, 6, LEAF, GREEN, "GRU")
for left, right in pairwise(columns):
    arrow((left + 3.7, 43), (right - 3.7, 43), color=GREEN)
    arrow((left, 40), (left, 37.2), color=GREY)
label(22.4, 35.4, "a prediction after every word, all in one pass", color=GREY, **SMALL)

# The image side
label(3, 30.2, "The image side runs once an image", color=BLUE, **HEADING)
axes.imshow(np.asarray(Image.open(PICTURE)), extent=(3, 22, 7, 26), interpolation="antialiased")
axes.add_patch(Rectangle((3, 7), 19, 19, fill=False, edgecolor=INK, linewidth=1))
arrow((22.6, 16.5), (26, 16.5))
cnn = [(26.4, 7.5), (26.4, 25.5), (39, 21), (39, 12)]
axes.add_patch(Polygon(cnn, facecolor=SKY, edgecolor=BLUE, linewidth=1.4, joinstyle="round"))
label(32.5, 16.5, "CNN\n(frozen)")
arrow((39.6, 16.5), (43, 16.5))
for row, column in np.ndindex(9, 9):
    alpha = 0.18 + 0.75 * np.exp(-((row - 3.6) ** 2 + (column - 4.2) ** 2) / 7)
    alpha *= rng.uniform(0.75, 1.0)
    corner = (43.6 + 1.5 * column, 21.75 - 1.5 * row)
    axes.add_patch(Rectangle(corner, 1.5, 1.5, facecolor=BLUE, alpha=alpha, ec="white", lw=0.6))
label(50.4, 6.2, "grid of features\n9 × 9 × 1,280", fontsize=9)
arrow((57.6, 12), (65, 12))
label(61.2, 13.4, "mean", fontsize=9)
vector(67, 12, 2.4, 9, BLUE)

# The merge
arrow((78.7, 43), (93, 43), (93, 29.6), color=GREEN)
label(86, 44.6, "dense", fontsize=9)
arrow((68.2, 12), (93, 12), (93, 24.4), color=BLUE)
label(80.5, 13.4, "dense", fontsize=9)
arrow((50.4, 23.7), (50.4, 27), (66.4, 27), color=BLUE, linestyle=DASHED)
label(58.5, 28.4, "keys, values", fontsize=9)
arrow((75, 40), (75, 31), color=GREEN, linestyle=DASHED)
label(75.8, 35.6, "query, gate", **SMALL)
box(75, 27, 17, 7.6, "white", BLUE, "attention: where to\nlook for this word", fontsize=9)
arrow((83.5, 27), (90.4, 27), color=BLUE, linestyle=DASHED)
axes.add_patch(Circle((93, 27), 2.6, facecolor=SAND, edgecolor=ORANGE, linewidth=1.6, zorder=3))
axes.plot((91.8, 94.2), (27, 27), (93, 93), (25.8, 28.2), color=ORANGE, linewidth=2, zorder=4)
label(91.6, 31.4, "merge", fontsize=11, weight="bold", color=ORANGE, ha="right")
arrow((95.6, 27), (99.6, 27))
box(104.5, 27, 9.4, 13, SAND, ORANGE, "ReLU\nlayer norm\ndense\nsoftmax", fontsize=9)
arrow((109.4, 27), (113, 27))
label(114, 40.6, "next word", weight="bold", fontsize=11, color=ORANGE, ha="left")
for (word, probability), y in zip(NEXT_WORDS.items(), (36.2, 31.2, 26.2, 21.2), strict=True):
    weight = "bold" if word == "blue" else "normal"
    label(114, y, word, ha="left", va="baseline", family=MONO, weight=weight)
    axes.add_patch(Rectangle((114, y - 2.1), 11, 1.1, facecolor=PALE))
    axes.add_patch(Rectangle((114, y - 2.1), 11 * probability, 1.1, facecolor=ORANGE))
label(114, 16.4, "…", ha="left", color=GREY)

axes.set(xlim=(0, 128), ylim=(1, 70), aspect="equal")  # ten units are an inch
parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("--output", type=Path, default=HERE / "model.png")
figure.savefig(parser.parse_args().output, dpi=110)
