"""Figures of the notebooks and of training: curves, pictures, maps of vectors."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager

from captioning.files import replacing

BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#b8551a", "#2f7d43", "#8a8f98"
INK, PALE = "#2b2f36", "#e4e7ec"
FALLBACKS = (  # fonts for scripts that Matplotlib's own, DejaVu Sans, does not cover
    *(f"Noto Sans CJK {region}" for region in ("SC", "JP", "KR", "TC")),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("WenQuanYi Zen Hei", "Unifont", "Noto Sans Devanagari", "Noto Sans Thai"),
)
PANELS = (  # of training curves: title, unit, and the label of each column of the history
    ("Loss", "nats per word", {"train_loss": "train, with dropout", "dev_loss": "dev"}),
    ("CIDEr-D", "score × 100", {"dev_CIDEr-D": "dev, greedy", "reward": "reward, sampled (train)"}),
    ("BLEU-4, ROUGE-L", "score × 100", {"dev_BLEU-4": "BLEU-4", "dev_ROUGE-L": "ROUGE-L"}),
)


def use_style() -> None:
    """Draw all figures that follow in the project's style."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    plt.rc("font", family=["DejaVu Sans", *(font for font in FALLBACKS if font in installed)])
    plt.rc(("figure", "axes"), titlesize=11, titleweight="bold")
    plt.rc("figure", dpi=144)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("text", color=INK, parse_math=False)  # a dollar sign does not start a formula
    plt.rc("axes", prop_cycle=plt.cycler(color=[BLUE, ORANGE, GREEN, GREY]), edgecolor=GREY)
    plt.rc("axes", titlelocation="left", labelcolor=INK, axisbelow=True, grid=True)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("grid", color=PALE)


def save_figure(figure: plt.Figure, path: str | Path) -> None:
    """Write a figure to the image file `path`."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi="figure", format=Path(path).suffix[1:])


def best_epoch(history: list[dict]) -> int:
    """The epoch with the highest CIDEr-D on dev, of equals that with the lowest loss."""
    return max(history, key=lambda row: (row["dev_CIDEr-D"], -row["dev_loss"]))["epoch"]


@plt.rc_context()
def history_figure(history: list[dict], panels=PANELS) -> plt.Figure:
    """Draw training curves, with the best and the self-critical epochs, from a row per epoch."""
    use_style()
    epochs = [row["epoch"] for row in history]
    critical = [row["epoch"] for row in history if row.get("reward") is not None]
    best = best_epoch(history)
    figure = plt.Figure(figsize=(4.3 * len(panels), 3.6))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, unit, labels) in zip(grid, panels, strict=True):
        for name, label in labels.items():
            values = np.array([row.get(name) for row in history], np.float64)  # None becomes NaN
            if not np.isnan(values).all():
                axes.plot(epochs, values, marker=".", label=label)
        if critical:
            axes.axvspan(critical[0] - 0.5, critical[-1] + 0.5, color=PALE, label="self-critical")
        axes.axvline(best, color=INK, linewidth=1, linestyle=":", label=f"best epoch: {best}")
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)
    return figure


def show_picture(axes: plt.Axes, picture: np.ndarray, title: str = "") -> None:
    """Show a picture, uint8 (height, width, 3), without ticks and frame."""
    axes.imshow(picture)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, fontweight="normal", loc="center")
