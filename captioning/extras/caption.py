"""Caption photographs: the command for people with photographs.

It prints the same lines as test.py, with the beam width that scores best.
"""

import argparse

from captioning.config import BEAM_WIDTH, add_search_options
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

    captioner = Captioner.load(options.model, options.encoder)
    return captioner.print_captions(paths, options)[1]
