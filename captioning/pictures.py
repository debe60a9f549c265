"""Drawn results: training curves, and photographs with their captions."""

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from captioning.files import write_bytes

COLUMNS = 5  # of attention maps, and of pictures in a large sheet
FEW = 9  # pictures; so many are laid out three in a row
TALLEST = 1.5  # times its width may a picture be high, or it is drawn smaller
WRAP = 44  # characters a line of a caption
CAPTION_SIZE, SMALL_CAPTION_SIZE = 13, 9  # points

# Fonts with letters that DejaVu Sans, which comes with Matplotlib, has not.
FALLBACKS = (
    *(f"Noto Sans CJK {region}" for region in ("SC", "JP", "KR", "TC")),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Unifont"),
    *("Noto Sans Devanagari", "Noto Sans Thai"),
)


def font_families() -> list[str]:
    """The fonts to write captions with, first come first served: DejaVu Sans, and what is here."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(family for family in FALLBACKS if family in installed)]


def plot_history(history: Sequence[dict], path: str | os.PathLike) -> None:
    """Draw loss and dev scores by epoch to `path` (a format that matplotlib writes)."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, score = figure.subplots(1, 2)
    for name, label in (("train_loss", "train, with dropout"), ("dev_loss", "dev")):
        values = [np.nan if row[name] is None else row[name] for row in history]
        loss.plot(epochs, values, marker=".", label=label)
    loss.set(title="Loss", xlabel="epoch", ylabel="nats a word")
    for name in ("CIDEr-D", "BLEU-4", "ROUGE-L"):
        score.plot(epochs, [row[f"dev_{name}"] for row in history], marker=".", label=name)
    score.set(title="Greedy captions of the dev images", xlabel="epoch", ylabel="score x 100")
    for axes in (loss, score):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def save_captioned(
    path: str | os.PathLike, pictures: Sequence[np.ndarray], captions: Sequence[str]
) -> None:
    """Draw pictures, (height, width, 3) uint8 each, with their captions under them."""
    _save(captioned_sheet(pictures, captions), path)


def captioned_sheet(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Figure:
    """The drawing of `save_captioned`."""
    columns = min(3 if len(pictures) <= FEW else COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    width = 5.0 if columns == 1 else 3.2  # inches
    texts = [textwrap.fill(caption, WRAP) for caption in captions]
    lines = 1 + max(text.count("\n") for text in texts)
    size = CAPTION_SIZE if columns == 1 else SMALL_CAPTION_SIZE
    text_height = (lines + 1) * 1.4 * size / 72  # 72 points an inch
    heights = [
        width * min(TALLEST, max(map(_steepness, pictures[start : start + columns]))) + text_height
        for start in range(0, len(pictures), columns)
    ]
    figure = Figure(figsize=(width * columns, sum(heights)), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, height_ratios=heights)).ravel()
    for axes in grid[len(pictures) :]:
        axes.axis("off")
    families = font_families()
    for axes, picture, text in zip(grid, pictures, texts, strict=False):
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[], anchor="S")
        # a label, and not free text: the layout makes room
        axes.set_xlabel(text, size=size, family=families, parse_math=False)
        axes.spines[:].set_visible(False)
    return figure


def save_attention(
    path: str | os.PathLike, picture: np.ndarray, caption: str, maps: np.ndarray
) -> None:
    """Draw where the model looked for each word.

    Args:
        path: the file to write.
        picture: uint8 (height, width, 3).
        caption: its words, separated by spaces.
        maps: float (words, rows, columns).
    """
    words, families = caption.split(), font_families()
    rows = -(-(len(words) + 1) // COLUMNS)
    height = 2.4 * min(TALLEST, _steepness(picture)) + 0.3
    figure = Figure(figsize=(2.4 * COLUMNS, height * rows + 0.6), layout="constrained")
    figure.suptitle(caption, size=CAPTION_SIZE, family=families, parse_math=False)
    grid = np.atleast_1d(figure.subplots(rows, COLUMNS)).ravel()
    for axes in grid:
        axes.axis("off")
    grid[0].imshow(picture)
    height, width = picture.shape[:2]
    for axes, word, weights in zip(grid[1:], words, maps, strict=False):
        light = Image.fromarray(weights.astype(np.float32)).resize((width, height), Image.BICUBIC)
        light = np.clip(np.asarray(light) / weights.max(), 0.15, 1)[..., None]
        axes.imshow((picture * light).astype(np.uint8))
        axes.set_title(word, size=11, family=families, parse_math=False)
    _save(figure, path)


def _steepness(picture: np.ndarray) -> float:
    """Its height over its width."""
    return picture.shape[0] / picture.shape[1]


def _save(figure: Figure, path: str | os.PathLike) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format=Path(path).suffix[1:])
    write_bytes(path, picture.getvalue())
