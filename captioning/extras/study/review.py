"""A blind review: people say which of two models' captions is better.

With two checkpoints `python -m captioning review` writes both captions of each image in random
order, and whose they are into sheet-key.csv. People write A, B or = into the column `better`;
without checkpoints the command then counts.
"""

import argparse
import csv
import io
import math
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np

from captioning.config import count
from captioning.errors import InputError, log
from captioning.extras.study.compare import add_split_options, evaluate_models, in_words
from captioning.files import csv_bytes, replace_together, require_writable

COLUMNS = ["image", "A", "B", "better"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning review`."""
    add = parser.add_argument
    add("models", nargs="*", metavar="CHECKPOINT", help="two models; leave them out to count the"
        " answers of a filled sheet")  # fmt: skip
    add("--sheet", required=True, metavar="SHEET.csv", help="the sheet to write, or to count")
    add("--n", type=count, default=100, help="images in it (default: %(default)s)")
    add_split_options(parser)


def main(options: argparse.Namespace) -> None:
    """Write the sheet, or count its answers."""
    sheet = Path(options.sheet)
    key = sheet.with_name(f"{sheet.stem}-key.csv")
    if not options.models:
        print(count_answers(sheet, key))
        return
    if len(options.models) != 2:
        raise InputError("expected two checkpoints, or none to count the answers of a sheet")
    if existing := [path for path in (sheet, key) if path.exists()]:
        raise InputError(f"{existing[0]}: exists; choose another name for the sheet")
    require_writable(sheet)
    _, results = evaluate_models(options)
    texts = [dict(zip(result.images, result.captions, strict=True)) for result in results]
    both = [image for image in texts[0] if image in texts[1]]
    different = [image for image in both if texts[0][image] != texts[1][image]]
    if not different:
        raise InputError(f"both models say the same of all {len(both):,} images")
    rng = np.random.default_rng()
    rows, names = [COLUMNS], [COLUMNS[:3]]
    for image in rng.permutation(different)[: options.n].tolist():
        path, order = str(results[0].prepared.image_folder / image), rng.permutation(2)
        rows.append([path, *(texts[i][image] for i in order), ""])
        names.append([path, *(options.models[i] for i in order)])
    # with a byte order mark, by which Excel knows UTF-8
    replace_together({key: BOM_UTF8 + csv_bytes(names), sheet: BOM_UTF8 + csv_bytes(rows)})
    log(f"{len(both) - len(different):,} of {len(both):,} images have the same caption twice")
    log(f"wrote {sheet}, {len(rows) - 1:,} images, and {key}; do not look into that one")


def _read(path: Path, columns: list[str]) -> dict[str, dict]:
    """The rows by their image; InputError if the file lacks one of the columns."""
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape") if path.is_file() else ""
    delimiter = ";" if ";" in text.partition("\n")[0] else ","  # of some countries' Excel
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    if not rows or not set(columns) <= rows[0].keys():
        raise InputError(f"{path}: expected a CSV file with the columns {', '.join(columns)}")
    return {row["image"]: row for row in rows}


def count_answers(sheet: Path, key: Path) -> str:
    """Wins, ties and a sign test; InputError if a row is missing or has no answer."""
    rows, names = _read(sheet, COLUMNS), _read(key, COLUMNS[:3])
    answers = {image: (row["better"] or "").strip().upper() for image, row in rows.items()}
    if missing := [image for image in names if answers.get(image) not in ("A", "B", "=")]:
        problem = f"{len(missing)} of {len(names)} rows are missing or not answered"
        raise InputError(f"{sheet}: {problem} with A, B or =, such as {missing[0]}")
    models = list(dict.fromkeys(name for row in names.values() for name in (row["A"], row["B"])))
    chosen = [names[image][answers[image]] for image in names if answers[image] != "="]
    wins = {model: chosen.count(model) for model in models}
    lines = [f"{wins[model]:6,} wins  {model}" for model in models]
    lines.append(f"{len(names) - len(chosen):6,} ties")
    most = max(wins.values())
    tail = sum(math.comb(len(chosen), k) for k in range(most, len(chosen) + 1)) / 2 ** len(chosen)
    lines.append(f"sign test without the ties: {in_words(min(1.0, 2 * tail))}")
    return "\n".join(lines)
