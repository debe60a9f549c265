"""Measure whether captions name what is in photographs of things that Flickr8k does not show.

    python data/names/measure.py [--no-names] [--part check]

prints each caption, + if it has one of the words of photographs.csv, and their share. Thresholds
were chosen on the part `tune`, and on the dev split; `check` is for the figures. Half a minute.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from captioning import load_captioner
from captioning.captions import LIGHT


def main() -> None:
    """Caption the photographs of a part and count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--no-names", action="store_true", help="the captioner by itself")
    parser.add_argument("--part", default="check", help="tune or check (default: %(default)s)")
    parser.add_argument("--model", default=LIGHT, help="a .tflite file or a checkpoint")
    options = parser.parse_args()
    with (HERE / "photographs.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == options.part]
    captioner = load_captioner(options.model, names=not options.no_names)
    right = 0
    for row in rows:
        caption = captioner.describe(HERE / "photographs" / row["file"])
        is_right = not set(re.findall(r"[\w-]+", caption.text)).isdisjoint(row["words"].split("|"))
        right += is_right
        print(f"{'+' if is_right else '-'} {row['file']}: {caption.text}")
    print(f"{right} of {len(rows)} named right")


if __name__ == "__main__":
    main()
