"""Caption photographs: the command for people with photographs.

It prints the lines of test.py, with the beam width that scores best, and writes the captions of
whole folders where they are wanted. Without TensorFlow, unless --model is a checkpoint.
"""

import argparse
import functools

import numpy as np

from captioning import config, load_captioner
from captioning.captions import LIGHT
from captioning.errors import InputError, log
from captioning.extras.serve.folders import Outputs, separate
from captioning.extras.serve.searches import Constraints, constrained, sampled
from captioning.images import list_images

CONSTRAINTS = ("require", "forbid", "min_words", "max_words", "no_repeat_ngram")
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("images", nargs="+", metavar="FILE_OR_DIR", help="photographs, or folders of them")
    add("--model", metavar="FILE", help="a checkpoint or .tflite file (default: the shipped ones)")
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was")
    config.add_search_options(parser, config.BEAM_WIDTH)
    add("--names", action=argparse.BooleanOptionalAction, default=True, help="name what an"
        " ImageNet classifier is sure of, unless captions are drawn or constrained")  # fmt: skip
    add("--json", action="store_true", help="one JSON object per line instead of text")
    add("--recursive", action="store_true", help="folders with all folders in them")
    add("--csv", metavar="OUT.csv", help="append image, caption and confidence to this file")
    add("--sidecar", action="store_true", help="write photo.txt beside photo.jpg")
    add("--write-metadata", action="store_true", help="write the caption into the photograph's"
        " own description and alt text (XMP); needs exiftool")  # fmt: skip
    add("--existing", choices=["skip", "overwrite", "append"], default="skip", help="what"
        " to do where a caption is already (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("several captions").add_argument
    several = config.number(int, 1, 100)
    add("--n-best", type=several, default=1, metavar="N", help="the N best captions of the beam")
    add("--sample", type=several, metavar="N", help="N captions drawn at random, not searched for")
    text = "with --sample: below 1 prefers probable words (default: %(default)s)"
    add("--temperature", type=config.positive, default=1.0, help=text)
    text = "with --sample: draw from the most probable words, which sum to this (default: 1, all)"
    add("--top-p", type=config.number(float, 1e-3, 1), default=1.0, help=text)
    add("--seed", type=config.count_or_zero, default=0, help="of --sample (default: %(default)s)")
    add = parser.add_argument_group("constraints").add_argument
    add("--require", nargs="+", default=[], metavar="WORD", help="words that captions contain")
    add("--forbid", nargs="+", default=[], metavar="WORD", help="words that they do not contain")
    add("--min-words", type=config.count_or_zero, help="the shortest caption, in words")
    add("--max-words", type=config.count, help="the longest caption, below the model's own limit")
    text = "repeat no sequence of N words in a caption (default of both: the model's own)"
    add("--no-repeat-ngram", type=config.count_or_zero, metavar="N", help=text)


def main(options: argparse.Namespace) -> int:
    """Print a caption for each photograph, and write it; returns the exit status."""
    images = list_images(options.images, options.recursive)
    clear = separate(images) if options.sidecar else images
    outputs = Outputs(clear, options)
    captioner = find_captioner(options)
    names = ("beam_width", "length_penalty", "n_best", "consensus")
    search = {name: getattr(options, name) for name in names}
    pairs = captioner.print_captions(outputs.todo(clear), options.json, **search)
    captioned = sum(outputs.write(image, caption) for image, caption in pairs)
    outputs.close()
    failed = len(images) - outputs.skipped - captioned
    if outputs.places:
        log(f"{captioned:,} captioned, {outputs.skipped:,} had captions, {failed:,} failed")
    return 0 if not failed else 1 if len(images) > 1 else 2


def find_captioner(options: argparse.Namespace):
    """The captioner that searches as the options say; with TensorFlow for checkpoints alone."""
    is_constrained = any(getattr(options, name) not in (None, []) for name in CONSTRAINTS)
    changed = [name for name, default in SAMPLING.items() if getattr(options, name) != default]
    if changed and not options.sample:
        raise InputError(f"--{changed[0].replace('_', '-')} goes with --sample")
    if options.sample and (is_constrained or options.n_best > 1 or options.consensus):
        raise InputError("--sample draws freely; leave out --n-best, --consensus, constraints")
    light = None if options.encoder else LIGHT
    names = options.names and not options.sample and not is_constrained
    captioner = load_captioner(options.model or light, encoder=options.encoder, names=names)
    if options.sample:
        rng = np.random.default_rng(options.seed)
        captioner.search = functools.partial(sampled, captioner, options, rng)
    elif is_constrained:
        limits = Constraints.parse(captioner.vocabulary, captioner.config, options)
        captioner.search = functools.partial(constrained, captioner, limits)
    return captioner
