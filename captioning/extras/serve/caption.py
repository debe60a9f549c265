"""Caption photographs: the command for people with photographs.

It prints the same lines as test.py, with the beam width that scores best, needs no TensorFlow
unless an option does, and writes the captions of whole folders where they are wanted.
"""

import argparse

from captioning.config import BEAM_WIDTH, add_search_options
from captioning.errors import log
from captioning.extras.serve.folders import Outputs, separate
from captioning.extras.serve.searches import add_options, find_captioner
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
    add("--recursive", action="store_true", help="folders with all folders in them")
    add("--csv", metavar="OUT.csv", help="append image, caption and confidence to this file")
    add("--sidecar", action="store_true", help="write photo.txt beside photo.jpg")
    add("--write-metadata", action="store_true", help="write the caption into the photograph's"
        " own description and alt text (XMP); needs exiftool")  # fmt: skip
    add("--existing", choices=["skip", "overwrite", "append"], default="skip", help="what"
        " to do where a caption is already (default: %(default)s)")  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Print a caption for each photograph, and write it; returns the exit status."""
    images = list_images(options.images, options.recursive)
    clear = separate(images) if options.sidecar else images
    outputs = Outputs(clear, options)
    captioner = find_captioner(options)
    captioned = 0
    for image, caption in captioner.print_captions(outputs.todo(clear), options):
        captioned += outputs.write(image, caption)
    outputs.close()
    failed = len(images) - outputs.skipped - captioned
    if outputs.places:
        log(f"{captioned:,} captioned, {outputs.skipped:,} had captions, {failed:,} failed")
    return 0 if not failed else 1 if len(images) > 1 else 2
