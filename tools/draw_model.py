"""Draw the merge model for the README.

    python tools/draw_model.py                     # writes images/model.png
    python tools/draw_model.py --output model.svg

What is drawn is `captioning.model.MergeDecoder` with attention; without, the dashed part is
absent. The sizes are those of the bundled encoder. Takes two seconds.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from captioning.files import replacing  # noqa: E402
from captioning.plots import BLUE, GREEN, GREY, INK, ORANGE, PALE  # noqa: E402

PICTURE = ROOT / "data" / "sample" / "Flicker8k_Dataset" / "scene_027.jpg"
PREFIX = ("<start>", "a", "girl", "in", "a")
NEXT_WORDS = ("blue", "red", "white", "green")
NEXT_SHARES = (0.78, 0.11, 0.06, 0.03)  # drawn, not measured

WIDTH, HEIGHT = 128.0, 69.0  # of the drawing; ten units are an inch
LEAF = "#dcefe0"
SKY = "#dbe7f5"
SAND = "#fbe6d7"

Point = tuple[float, float]


def box(axes: Axes, centre: Point, size: Point, colour: str, edge: str, text: str, **font) -> None:
    """A rounded box with a text in it."""
    (x, y), (width, height) = centre, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=1.1",
            facecolor=colour,
            edgecolor=edge,
            linewidth=1.4,
        )
    )
    label(axes, centre, text, **font)


def label(axes: Axes, at: Point, text: str, **font) -> None:
    """A text, centred unless said otherwise."""
    settings = {"ha": "center", "va": "center", "color": INK, "fontsize": 10, "linespacing": 1.35}
    axes.text(*at, text, **(settings | font))


def arrow(axes: Axes, *points: Point, colour: str = INK, dashed: bool = False) -> None:
    """A line through `points` that ends in an arrow head."""
    style = {"color": colour, "linewidth": 1.5, "linestyle": (0, (4, 2.2)) if dashed else "-"}
    if len(points) > 2:
        axes.plot(*zip(*points[:-1], strict=True), solid_joinstyle="round", **style)
    axes.annotate(
        "",
        points[-1],
        points[-2],
        arrowprops={"arrowstyle": "-|>,head_width=0.22,head_length=0.42", "shrinkA": 0}
        | {"shrinkB": 0, **style},
    )


def vector(axes: Axes, centre: Point, size: Point, colour: str, rng: np.random.Generator) -> None:
    """A vector: a bar of cells in shades of a colour, along its longer side."""
    (x, y), (width, height) = centre, size
    cells = 6
    along = np.array([0, 1]) if height > width else np.array([1, 0])
    step = np.where(along, np.array(size) / cells, np.array(size))
    corner = np.array([x - width / 2, y - height / 2])
    for cell, shade in enumerate(rng.uniform(0.25, 0.95, cells)):
        place = corner + along * step * cell
        axes.add_patch(Rectangle(place, *step, facecolor=colour, alpha=shade, linewidth=0))
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.2))


def draw_words(axes: Axes, rng: np.random.Generator) -> None:
    """The language side: words, their vectors, the GRU that reads them."""
    label(axes, (3, 66.5), "The language side never sees the image", ha="left", weight="bold",
          color=GREEN, fontsize=12)  # fmt: skip
    columns = np.linspace(27, 75, len(PREFIX))
    label(axes, (3, 60), "words so far", ha="left")
    label(axes, (3, 52), "word vectors\n(FastText, fine-tuned)", ha="left")
    label(axes, (3, 43), "RNN", ha="left")
    for x, word in zip(columns, PREFIX, strict=True):
        box(axes, (x, 60), (9.6, 4.4), "white", GREEN, word, family="DejaVu Sans Mono")
        arrow(axes, (x, 57.8), (x, 53.4))
        vector(axes, (x, 52), (9.6, 2.4), GREEN, rng)
        arrow(axes, (x, 50.8), (x, 46))
        box(axes, (x, 43), (7.4, 6), LEAF, GREEN, "GRU")
    for left, right in itertools.pairwise(columns):
        arrow(axes, (left + 3.7, 43), (right - 3.7, 43), colour=GREEN)
    for x in columns[:-1]:
        arrow(axes, (x, 40), (x, 37.2), colour=GREY)
    label(axes, (columns[0] - 4.6, 35.4), "a prediction after every word, all in one pass",
          ha="left", color=GREY, fontsize=9)  # fmt: skip


def draw_image(axes: Axes, rng: np.random.Generator) -> None:
    """The image side: the picture, the frozen CNN, its grid and the mean over it."""
    label(axes, (3, 30.2), "The image side runs once an image", ha="left", weight="bold",
          color=BLUE, fontsize=12)  # fmt: skip
    axes.imshow(np.asarray(Image.open(PICTURE)), extent=(3, 22, 7, 26), interpolation="antialiased")
    axes.add_patch(Rectangle((3, 7), 19, 19, fill=False, edgecolor=INK, linewidth=1))
    arrow(axes, (22.6, 16.5), (26, 16.5))
    cnn = [(26.4, 7.5), (26.4, 25.5), (39, 21), (39, 12)]
    axes.add_patch(Polygon(cnn, facecolor=SKY, edgecolor=BLUE, linewidth=1.4, joinstyle="round"))
    label(axes, (32.5, 16.5), "CNN\n(frozen)")
    arrow(axes, (39.6, 16.5), (43, 16.5))

    cells, side = 9, 1.5
    for row in range(cells):
        for column in range(cells):
            shade = 0.18 + 0.75 * np.exp(-((row - 3.6) ** 2 + (column - 4.2) ** 2) / 7)
            shade *= rng.uniform(0.75, 1.0)
            place = (43.6 + column * side, 9.75 + (cells - 1 - row) * side)
            axes.add_patch(
                Rectangle(place, side, side, facecolor=BLUE, alpha=shade, ec="white", lw=0.6)
            )
    label(axes, (50.4, 6.2), "grid of features\n9 × 9 × 1,280", fontsize=9)
    arrow(axes, (57.6, 12), (65, 12))
    label(axes, (61.2, 13.4), "mean", fontsize=9)
    vector(axes, (67, 12), (2.4, 9), BLUE, rng)


def draw_merge(axes: Axes, rng: np.random.Generator) -> None:
    """Where the two sides meet, and what comes out."""
    x, y = 93, 27
    arrow(axes, (78.7, 43), (x, 43), (x, y + 2.6), colour=GREEN)
    label(axes, (86, 44.6), "dense", fontsize=9)
    arrow(axes, (68.2, 12), (x, 12), (x, y - 2.6), colour=BLUE)
    label(axes, (80.5, 13.4), "dense", fontsize=9)

    arrow(axes, (50.4, 23.7), (50.4, 27), (66.4, 27), colour=BLUE, dashed=True)
    label(axes, (58.5, 28.4), "keys, values", fontsize=9)
    arrow(axes, (75, 40), (75, 31), colour=GREEN, dashed=True)
    label(axes, (75.8, 35.6), "query, gate", fontsize=9, ha="left")
    looking = "attention: where to\nlook for this word"
    box(axes, (75, 27), (17, 7.6), "white", BLUE, looking, fontsize=9)
    arrow(axes, (83.5, 27), (x - 2.6, 27), colour=BLUE, dashed=True)

    axes.add_patch(Circle((x, y), 2.6, facecolor=SAND, edgecolor=ORANGE, linewidth=1.6, zorder=3))
    axes.plot((x - 1.2, x + 1.2), (y, y), color=ORANGE, linewidth=2, zorder=4)
    axes.plot((x, x), (y - 1.2, y + 1.2), color=ORANGE, linewidth=2, zorder=4)
    label(axes, (x - 1.4, y + 4.4), "merge", fontsize=11, weight="bold", color=ORANGE, ha="right")
    arrow(axes, (x + 2.6, y), (99.6, y))
    box(axes, (104.5, y), (9.4, 13), SAND, ORANGE, "ReLU\nlayer norm\ndense\nsoftmax", fontsize=9)
    arrow(axes, (109.4, y), (113, y))

    label(axes, (114, 40.6), "next word", weight="bold", fontsize=11, color=ORANGE, ha="left")
    for row, (word, share) in enumerate(zip(NEXT_WORDS, NEXT_SHARES, strict=True)):
        height = 36.2 - 5.0 * row
        label(axes, (114, height), word, ha="left", va="baseline", family="DejaVu Sans Mono",
              weight="bold" if row == 0 else "normal")  # fmt: skip
        axes.add_patch(Rectangle((114, height - 2.1), 11, 1.1, facecolor=PALE))
        axes.add_patch(Rectangle((114, height - 2.1), 11 * share, 1.1, facecolor=ORANGE))
    label(axes, (114, 16.4), "…", ha="left", color=GREY)


def draw_model() -> Figure:
    """Draw the whole model."""
    rng = np.random.default_rng(4)
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_words(axes, rng)
    draw_image(axes, rng)
    draw_merge(axes, rng)
    axes.set(xlim=(0, WIDTH), ylim=(1, HEIGHT + 1), aspect="equal")
    axes.set_axis_off()
    return figure


def main() -> None:
    """Write the drawing to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "images" / "model.png",
        help="file to write (default: images/model.png in this repository)",
    )
    with replacing(parser.parse_args().output) as temporary:
        draw_model().savefig(temporary, dpi=110)


if __name__ == "__main__":
    main()
