"""A scored split as one web page: `python test.py --split dev --report report.html`.

The page, made of the Jinja template `report.html`, stands alone: pictures are embedded, and its
content security policy allows these and the page's own style and script, nothing else.
"""

import base64
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captioning.errors import InputError
from captioning.evaluation import Evaluation
from captioning.files import write_bytes
from captioning.images import load_thumbnail
from captioning.plots import PANELS, history_figure
from captioning.vocabulary import TOKENIZERS

PICTURE_SIZE = 448  # pixels of the longer side; smaller originals keep their size
PICTURE_QUALITY = 65  # of JPEG: about 25 KB per picture


def build_report(result: Evaluation, facts: dict[str, str], captioner, other=None) -> dict:
    """What the page shows of `result`, beside an `other` model's Evaluation.

    Of an image `cider_d` is x 100, `path` may be missing, `attention` is float (words of the
    caption, rows, columns) or None, as what is of the other model.
    """
    rows, others = {"this model": result.scores}, {}
    if other:
        rows["other model"] = other.scores
        pairs = zip(other.captions, 100 * other.statistics[:, -1], strict=True)
        others = dict(zip(other.images, pairs, strict=True))
    images, tokenize = [], TOKENIZERS[captioner.vocabulary.tokenizer]
    columns = (result.images, result.captions, result.references, 100 * result.statistics[:, -1])
    for name, caption, references, cider_d in zip(*columns, strict=True):
        image = {"name": name, "path": result.prepared.image_folder / name, "caption": caption}
        image |= {"words": tokenize(caption), "references": references, "cider_d": cider_d}
        image["attention"] = None
        image["other_caption"], image["other_cider_d"] = others.get(name, (None, None))
        if captioner.has_attention and caption:
            row = result.cache.rows([name])
            features = result.cache.read(row, captioner.model.feature_shape)
            (image["attention"],) = captioner.attention(features, [caption])
        images.append(image)
    report = {"title": f"Captions of the {result.split} split", "facts": facts, "images": images}
    report |= {"rows": rows | result.rows, "diversity": result.diversity}
    return report | {"history": captioner.checkpoint.facts.get("history", [])}


def write_report(path: str | os.PathLike, report: dict) -> None:
    """Write `report` as one self-contained HTML page, or InputError if that is impossible."""
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    images = sorted(report["images"], key=lambda image: (-image["cider_d"], image["name"]))
    cider_d, history = [image["cider_d"] for image in images], report["history"]
    ticks = MaxNLocator(12, steps=[1, 2, 5, 10])
    edges = ticks.tick_values(0, max(20, np.percentile(cider_d, 98)))[:-1]  # the last bin is open
    bins = np.digitize(cider_d, edges[1:])
    metrics = dict.fromkeys(name for scores in report["rows"].values() for name in scores)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        report=report,
        nonce=secrets.token_hex(16),  # texts of others cannot know it
        metrics=sorted(metrics, key=lambda name: name != "CIDEr-D"),
        charts={p[0]: _chart(p, history) for p in PANELS if history},
        edges=edges.tolist(),
        counts=np.bincount(bins, minlength=len(edges)).tolist(),
        cards=zip(images, bins.tolist(), map(_picture, images), strict=True),
        pack=_pack,
    )
    write_bytes(path, page.encode(errors="replace"))  # a file name may not be UTF-8


def _chart(panel: tuple[str, str, dict], history: Sequence[dict]) -> str:
    """Draw training curves as an SVG image, in Base64."""
    stream = io.BytesIO()
    figure = history_figure(history, [panel])
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return base64.b64encode(stream.getvalue()).decode()


def _picture(image: dict) -> str:
    """The image file as JPEG, in Base64; "" if it cannot be read."""
    try:
        picture = Image.fromarray(load_thumbnail(image["path"], PICTURE_SIZE))
    except InputError:
        return ""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=PICTURE_QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def _pack(maps: np.ndarray) -> str:
    """Pack attention (words, rows, columns) into one byte per position, 255 at each maximum."""
    maps = maps / maps.max(axis=(1, 2), keepdims=True)
    return base64.b64encode(np.rint(255 * maps).astype(np.uint8).tobytes()).decode()
