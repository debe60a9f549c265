"""A scored split as one HTML page: scores beside baselines, curves, and every image to look at.

The page stands alone. Pictures are embedded, nothing is loaded from elsewhere, and its content
security policy holds the browser to that: it admits the page's own style and script by their
SHA-256 and pictures embedded in the page, nothing else. Layout, style and script are in
`report_template.html`; this module fills in what was measured.
"""

import base64
import hashlib
import html
import io
import math
import numbers
import os
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captioning.encoders import load_thumbnail
from captioning.files import InputError, write_text

LONG = 60  # characters of a fact that gets a line of its own
PICTURE_SIZE = 224  # pixels of the longer side
PICTURE_QUALITY = 65  # of JPEG: about 8 KB a picture, 12 MB a page of 1,000

# Of a curve's drawing, in units of its view box.
CHART_WIDTH, CHART_HEIGHT = 340, 190
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 56, 330, 10, 164
CHART_TICKS = 4
CHART_COLOURS = 4

# What captioning.metrics.diversity() tells, in words: name -> (label, format).
DIVERSITY = {
    "vocabulary": ("different words", "{:,.0f}"),
    "distinct": ("distinct captions", "{:.0%}"),
    "copied": ("copied from training, word for word", "{:.0%}"),
    "length": ("words a caption", "{:.1f}"),
}

NO_VALUE = "–"


@dataclass(frozen=True)
class CaptionedImage:
    """One image of the split with its caption.

    Attributes:
        image: file name.
        path: the picture on disk; a placeholder stands for one that is missing or broken.
        caption: the model's caption.
        references: what people wrote.
        cider_d: CIDEr-D of the caption, times 100.
        words: the words of the caption, where there is `attention`.
        attention: where the model looked for each word, float (words, rows, columns), or None.
    """

    image: str
    path: Path
    caption: str
    references: Sequence[str]
    cider_d: float
    words: Sequence[str] = ()
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        title: heading of the page.
        facts: how the scores came about: split, encoder, decoding, protocol, model, date.
        rows: name -> metrics, times 100; the model first, then what it stands beside.
        diversity: as :func:`captioning.metrics.diversity` gives it.
        history: one entry an epoch: `epoch` and any numbers, each of which becomes a curve.
            Without entries there are no curves.
        images: the split.
    """

    title: str
    facts: dict[str, str]
    rows: Sequence[tuple[str, dict[str, float]]]
    diversity: dict[str, float]
    history: Sequence[dict[str, float]]
    images: Sequence[CaptionedImage]


class _Template(string.Template):
    """`%%name`: a mark that neither CSS nor JavaScript uses."""

    delimiter = "%%"


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Write `report` to `path` as one self-contained HTML page, whole or not at all.

    A thousand images take some ten seconds.

    Raises:
        InputError: the file cannot be written, or attention maps do not fit their words.
    """
    template = resources.files("captioning").joinpath("report_template.html").read_text("utf-8")
    images = sorted(report.images, key=lambda image: (-image.cider_d, image.image))
    has_maps = any(image.attention is not None for image in images)
    page = _Template(template).substitute(
        policy=_content_security_policy(template),
        title=_escape(report.title),
        facts=_definitions(report.facts.items()),
        scores=_score_table(report.rows),
        diversity=_diversity(report.diversity),
        curves=_curves(report.history),
        attention_hint="" if has_maps else "hidden",
        count=f"{len(images):,}",
        cards="\n".join(map(_card, images)),
    )
    write_text(path, page)


def _content_security_policy(template: str) -> str:
    """Allow embedded pictures and, by their digests, the template's own style and script."""

    def digest(element: str) -> str:
        content = template.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
        return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{digest('style')}'; script-src 'sha256-{digest('script')}'"
    )


def _escape(text: object) -> str:
    # a file name may hold bytes that are not UTF-8, which Python keeps as lone surrogates
    return html.escape(str(text).encode("utf-8", "replace").decode())


def _finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _number(value: object, form: str) -> str:
    return form.format(float(value)) if _finite(value) else NO_VALUE


def _names(rows: Iterable[dict]) -> list[str]:
    """All keys, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(
        f'<div class="{"long" if len(value) > LONG else "short"}">'
        f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>"
        for name, value in pairs
    )


def _diversity(values: dict[str, float]) -> str:
    pairs = []
    for name, value in values.items():
        label, form = DIVERSITY.get(name, (name, "{:g}"))
        pairs.append((label, _number(value, form)))
    return _definitions(pairs)


def _score_table(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Draw a row for the model and each baseline: a number and a bar for every metric.

    The roles are those a table has anyway; they are spelled out since the page lays the rows out
    anew on a narrow screen, where browsers would forget them.
    """
    metrics = _names(scores for _, scores in rows)
    maxima = {
        metric: max(
            (scores[metric] for _, scores in rows if _finite(scores.get(metric))), default=0.0
        )
        for metric in metrics
    }
    head = "".join(f'<th scope="col" role="columnheader">{_escape(name)}</th>' for name in metrics)
    lines = [f'<tr role="row"><th scope="col" role="columnheader">Captions by</th>{head}</tr>']
    for name, scores in rows:
        cells = "".join(
            f'<td role="cell">{_number(scores.get(metric), "{:.1f}")}'
            f"{_bar(scores.get(metric), maxima[metric])}</td>"
            for metric in metrics
        )
        head = f'<th scope="row" role="rowheader">{_escape(name)}</th>'
        lines.append(f'<tr role="row">{head}{cells}</tr>')
    return "\n".join(lines)


def _bar(value: float | None, maximum: float) -> str:
    length = 100 * max(float(value), 0.0) / maximum if _finite(value) and maximum > 0 else 0
    return (
        '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{length:.1f}" height="1"/></svg>'
    )


def _curves(history: Sequence[dict[str, float]]) -> str:
    """Draw the section of learning curves: the losses in one chart, all else in charts of its own.

    Scales differ (a loss of 3, a BLEU of 18, seconds), so only losses share one.
    """
    history = [
        {**row, "epoch": row["epoch"] if _finite(row.get("epoch")) else number}
        for number, row in enumerate(history, start=1)
    ]
    columns = [
        name
        for name in _names(history)
        if name != "epoch" and any(_finite(row.get(name)) for row in history)
    ]
    if not columns:
        return ""
    losses = [name for name in columns if name.endswith("loss")]
    groups = [losses] if losses else []
    groups += [[name] for name in columns if name not in losses]
    charts = "\n".join(_chart(history, names) for names in groups)
    return (
        '<section aria-labelledby="curves"><h2 id="curves">Training</h2>\n'
        '<p class="note">Over the epochs; the number beside a name is the last.</p>\n'
        f'<div class="charts">{charts}</div>\n'
        "<details><summary>The numbers of every epoch</summary>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers of every epoch">'
        f"{_history_table(history, columns)}</div></details></section>"
    )


def _history_table(history: Sequence[dict[str, float]], columns: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{_escape(_label(name))}</th>' for name in ("epoch", *columns))
    lines = [f"<table><tr>{head}</tr>"]
    for row in history:
        cells = "".join(f"<td>{_number(row.get(name), '{:.4g}')}</td>" for name in columns)
        lines.append(f'<tr><th scope="row">{_number(row["epoch"], "{:g}")}</th>{cells}</tr>')
    return "\n".join([*lines, "</table>"])


def _label(column: str) -> str:
    return column.replace("_", " ")


def _chart(history: Sequence[dict[str, float]], names: Sequence[str]) -> str:
    """Draw columns of the history over the epochs, as a figure with an SVG."""
    curves = {
        name: [(float(row["epoch"]), float(row[name])) for row in history if _finite(row.get(name))]
        for name in names
    }
    epochs = [row["epoch"] for row in history]  # all, so that the charts share this axis
    first, last = min(epochs), max(epochs)
    values = [value for curve in curves.values() for _, value in curve]
    ticks = MaxNLocator(CHART_TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(min(values), max(values))

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return CHART_LEFT + share * (CHART_RIGHT - CHART_LEFT)

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return CHART_BOTTOM - share * (CHART_BOTTOM - CHART_TOP)

    marks = []
    for tick in ticks:
        marks.append(
            f'<path class="grid" d="M{CHART_LEFT} {y(tick):.1f}H{CHART_RIGHT}"/>'
            f'<text class="y" x="{CHART_LEFT - 8}" y="{y(tick) + 4:.1f}">{tick:g}</text>'
        )
    for tick in MaxNLocator(2 * CHART_TICKS, integer=True).tick_values(first, last):
        if first <= tick <= last:
            marks.append(
                f'<text class="x" x="{x(tick):.1f}" y="{CHART_BOTTOM + 20}">{tick:g}</text>'
            )
    keys = []
    for number, (name, curve) in enumerate(curves.items()):
        label, colour = _escape(_label(name)), f"curve-{number % CHART_COLOURS}"
        line = "L".join(f"{x(epoch):.1f} {y(value):.1f}" for epoch, value in curve)
        dots = "".join(
            f'<circle cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="2.5">'
            f"<title>{label}, epoch {epoch:g}: {value:.4g}</title></circle>"
            for epoch, value in curve
        )
        marks.append(f'<g class="{colour}"><path d="M{line}"/>{dots}</g>')
        keys.append(f'<span class="key {colour}">{label} <b>{curve[-1][1]:.4g}</b></span>')
    summary = "; ".join(
        f"{_label(name)} from {curve[0][1]:.4g} to {curve[-1][1]:.4g}"
        for name, curve in curves.items()
    )
    return (
        f"<figure><figcaption>{' '.join(keys)}</figcaption>"
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" '
        f'aria-label="{_escape(summary)}, over epochs {first:g} to {last:g}">'
        f"{''.join(marks)}</svg></figure>"
    )


def _card(image: CaptionedImage) -> str:
    references = "".join(f"<li>{_escape(reference)}</li>" for reference in image.references)
    return (
        f'<li class="card" data-name="{_escape(image.image)}" data-score="{image.cider_d:.4f}">'
        f'<div class="picture">{_picture(image)}</div>{_caption(image)}'
        f'<p class="meta"><span>CIDEr-D <b>{_number(image.cider_d, "{:.1f}")}</b></span> '
        f"<span>{_escape(image.image)}</span></p>"
        f"<details><summary>People wrote</summary><ul>{references}</ul></details></li>"
    )


def _caption(image: CaptionedImage) -> str:
    """Write the caption; where there are attention maps, as a button for each word.

    One word of a caption is a tab stop, from which the arrow keys lead to the others: a page of
    1,000 captions would have 10,000 stops otherwise.
    """
    if image.attention is None or len(image.attention) == len(image.words) == 0:
        return f'<p class="caption">{_escape(image.caption) or "(empty)"}</p>'
    maps = np.asarray(image.attention, dtype=np.float32)
    if maps.ndim != 3 or len(maps) != len(image.words):
        raise InputError(
            f"{image.image}: attention of shape {maps.shape} came with {len(image.words)} words; "
            "expected (words, rows, columns)"
        )
    buttons = " ".join(
        f'<button type="button" class="word" tabindex="{-1 if number else 0}">{_escape(word)}'
        "</button>"
        for number, word in enumerate(image.words)
    )
    _, rows, columns = maps.shape
    return (
        '<p class="caption" role="toolbar" aria-label="Caption; a word shows where the model '
        f'looked for it" data-rows="{rows}" data-columns="{columns}" '
        f'data-maps="{_encode_maps(maps)}">{buttons}</p>'
    )


def _encode_maps(maps: np.ndarray) -> str:
    """Pack maps (words, rows, columns) into a byte a position, 255 at each map's maximum."""
    maps = np.nan_to_num(maps).clip(min=0)
    maxima = maps.max(axis=(1, 2), keepdims=True, initial=np.finfo(np.float32).tiny)
    return base64.b64encode(np.rint(255 * maps / maxima).astype(np.uint8).tobytes()).decode()


def _picture(image: CaptionedImage) -> str:
    try:
        data, (width, height) = _thumbnail(image.path)
    except InputError:
        name = _escape(image.image)
        return f'<p class="placeholder"><b>{name}</b><span>missing, or not a picture</span></p>'
    # what a person saw in the picture is the best text in its place
    text = _escape(image.references[0] if image.references else image.image)
    source = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    return f'<img src="{source}" width="{width}" height="{height}" alt="{text}" decoding="async">'


def _thumbnail(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Read a picture.

    Returns:
        A JPEG, and its width and height in pixels.

    Raises:
        InputError: the picture is missing or damaged.
    """
    picture = Image.fromarray(load_thumbnail(path, PICTURE_SIZE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=PICTURE_QUALITY, optimize=True)
    return stream.getvalue(), picture.size
