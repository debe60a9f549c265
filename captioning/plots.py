"""Figures: one look for all of them, pictures in a grid, and maps of vectors.

The functions draw; choosing what to draw, titles and units are the caller's.
"""

from collections.abc import Callable, Iterable, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.transforms import Bbox

from captioning.pictures import font_families

BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#e07b39", "#4a9a5b", "#8a8f98"
INK, PALE = "#2b2f36", "#e4e7ec"

STYLE = {
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a caption's dollar signs are no formulas
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, GREY]),
    "axes.grid": True,
    "grid.color": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def use_style() -> None:
    """Give all figures that follow the project's look."""
    plt.rcParams.update({**STYLE, "font.family": font_families()})


def show_picture(axes: Axes, picture: np.ndarray, title: str = "") -> None:
    """Show a picture, uint8 (height, width, 3), without ticks and frame."""
    axes.imshow(picture)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, fontweight="normal", loc="center")


def principal_components(vectors: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Project vectors on the directions in which they differ most.

    Args:
        vectors: (n, dimension).
        count: how many directions.

    Returns:
        Coordinates (n, count), and the share of the variance along each direction (count,).
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    missing = max(0, count - len(lengths))  # fewer vectors than directions
    left, lengths = np.pad(left, ((0, 0), (0, missing))), np.pad(lengths, (0, missing))
    points = left[:, :count] * lengths[:count]
    # A direction and its opposite serve alike, and libraries differ in which one they give.
    signs = np.sign(points[np.abs(points).argmax(axis=0), range(count)])
    variance = lengths**2
    shares = variance[:count] / max(variance.sum(), np.finfo(float).tiny)
    return points * signs, shares


def map_axes(axes: Axes, points: np.ndarray, shares: np.ndarray) -> None:
    """Prepare `axes` for a map of `points` (n, 2) whose axes explain `shares` (2,)."""
    axes.scatter(*points.T, s=9, color=PALE)
    axes.margins(0.06)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.set_xticks([])
    axes.set_yticks([])


def word_map(axes: Axes, points: np.ndarray, words: Sequence[str], colours: Sequence[str]) -> None:
    """Write `words` at `points` (n, 2); where two would overlap, the first is written."""
    texts = [
        axes.text(x, y, word, color=colour, fontsize=9, ha="center", va="center")
        for (x, y), word, colour in zip(points, words, colours, strict=True)
    ]
    axes.figure.draw_without_rendering()  # text has no size before
    visible = set(_without_overlap(text.get_window_extent() for text in texts))
    for index, text in enumerate(texts):
        text.set_visible(index in visible)


def picture_map(
    axes: Axes, points: np.ndarray, load: Callable[[int], np.ndarray], size: int = 40
) -> None:
    """Place small pictures at `points` (n, 2); where two would overlap, the first is shown.

    Args:
        axes: where to draw.
        points: the places.
        load: gives picture i as uint8 (height, width, 3).
        size: height and width of a picture on the map, in points (1/72 inch).
    """
    axes.figure.draw_without_rendering()  # settles the layout, and so the scale
    pixels = size * axes.figure.dpi / 72
    centres = axes.transData.transform(points)
    boxes = (Bbox.from_bounds(x, y, pixels, pixels) for x, y in centres - pixels / 2)
    for index in _without_overlap(boxes):
        picture = load(index)
        image = OffsetImage(picture, zoom=size / max(picture.shape[:2]))
        axes.add_artist(AnnotationBbox(image, points[index], frameon=False, pad=0))


def _without_overlap(boxes: Iterable[Bbox]) -> list[int]:
    """Choose, first come first served, the indices of boxes that do not overlap."""
    chosen: list[int] = []
    taken: list[Bbox] = []
    for index, box in enumerate(boxes):
        if not any(box.overlaps(other) for other in taken):
            chosen.append(index)
            taken.append(box)
    return chosen
