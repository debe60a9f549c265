"""Caption photographs: the command for people with photographs.

It prints the same lines as test.py, with the beam width that scores best, and needs no TensorFlow
unless an option does.
"""

import argparse

from captioning.config import BEAM_WIDTH, add_search_options
from captioning.extras.searches import add_options, find_captioner
from captioning.images import list_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("images", nargs="+", metavar="FILE_OR_DIR", help="photographs, or folders of them")
    add("--model", metavar="FILE", help="a checkpoint of train.py, or a .tflite file that"
        " was exported from one (default: the shipped ones)")  # fmt: skip
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")
    add_search_options(parser, BEAM_WIDTH)
    add_options(parser)
    add("--json", action="store_true", help="one JSON object per line instead of text")


def main(options: argparse.Namespace) -> int:
    """Print a caption for each photograph; returns the exit status."""
    paths = list_images(options.images)
    captioner = find_captioner(options)
    return captioner.print_captions(paths, options)[1]
