"""Caption photographs: the command for people with photographs.

It prints the same lines as test.py, with the beam width that scores best.
"""

import argparse

from captioning.config import BEAM_WIDTH, add_search_options
from captioning.errors import InputError, log
from captioning.images import list_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("images", nargs="+", metavar="FILE_OR_DIR", help="photographs, or folders of them")
    add("--model", metavar="CHECKPOINT", help="a checkpoint of train.py (default: the shipped one)")
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")
    add_search_options(parser, BEAM_WIDTH)
    add("--json", action="store_true", help="one JSON object per line instead of text")


def main(options: argparse.Namespace) -> int:
    """Print a caption for each photograph; returns the exit status."""
    paths = list_images(options.images)
    from captioning.startup import import_tensorflow

    import_tensorflow()
    from captioning.captioner import Captioner

    captioner, bad = Captioner.load(options.model, options.encoder), 0
    for path, found in captioner.caption_files(paths, options.beam_width, options.length_penalty):
        if isinstance(found, InputError):
            log(f"error: {found}")
            bad += 1
        else:
            print(found.line(path, options.json), flush=True)
    if not bad:
        return 0
    return 1 if len(paths) > 1 else 2
