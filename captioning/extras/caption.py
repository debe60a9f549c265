"""Caption photographs: the command for people with photographs.

It prints the same lines as test.py, with the beam width that scores best, and needs no TensorFlow
unless an option does.
"""

import argparse

from captioning.captions import LIGHT, load_captioner
from captioning.config import BEAM_WIDTH, add_search_options
from captioning.images import list_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("images", nargs="+", metavar="FILE_OR_DIR", help="photographs, or folders of them")
    add("--model", metavar="FILE", help="a checkpoint of train.py, or a .tflite file that"
        " was exported from one (default: the shipped ones)")  # fmt: skip
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")
    add_search_options(parser, BEAM_WIDTH)
    add("--json", action="store_true", help="one JSON object per line instead of text")


def main(options: argparse.Namespace) -> int:
    """Print a caption for each photograph; returns the exit status."""
    paths = list_images(options.images)
    needs_keras = options.encoder or options.beam_width not in (1, BEAM_WIDTH)
    captioner = load_captioner(options.model or (None if needs_keras else LIGHT), options.encoder)
    return captioner.print_captions(paths, options)[1]
