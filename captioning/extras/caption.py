"""Caption photographs: the command for people with photographs.

It prints the same lines as test.py, with the beam width that scores best.
"""

import argparse

from captioning.config import (
    BEAM_WIDTH,
    LENGTH_PENALTY,
    LENGTH_PENALTY_HELP,
    beam_width,
    length_penalty,
)
from captioning.errors import InputError, log
from captioning.images import list_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("images", nargs="+", metavar="FILE_OR_DIR", help="photographs, or folders of them")
    add("--model", metavar="CHECKPOINT", help="a checkpoint of train.py (default: the shipped one)")
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")
    add("--beam-width", type=beam_width, default=BEAM_WIDTH, help="unfinished captions kept by beam"
        " search; 1 is greedy decoding (default: %(default)s)")  # fmt: skip
    add("--length-penalty", type=length_penalty, default=LENGTH_PENALTY, help=LENGTH_PENALTY_HELP)
    add("--json", action="store_true", help="one JSON object per line instead of text")


def main(options: argparse.Namespace) -> int:
    """Print a caption for each photograph; returns the exit status."""
    paths = list_images(options.images)
    from captioning.startup import import_tensorflow

    import_tensorflow()
    from captioning.captioner import Captioner, caption_line

    captioner, bad = Captioner.load(options.model, options.encoder), 0
    for path, found in captioner.caption_files(paths, options.beam_width, options.length_penalty):
        if isinstance(found, InputError):
            log(f"error: {found}")
            bad += 1
        else:
            print(caption_line(path, found, options.json), flush=True)
    if not bad:
        return 0
    return 1 if len(paths) > 1 else 2
