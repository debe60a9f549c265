"""More than one caption, and captions under constraints: the options of `caption`."""

import argparse

from captioning.captions import LIGHT, load_captioner
from captioning.config import BEAM_WIDTH, MAX_BEAM_WIDTH, count, count_or_zero, number, positive
from captioning.errors import InputError

CONSTRAINTS = ("require", "forbid", "min_words", "max_words", "no_repeat_ngram")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of searches."""
    add = parser.add_argument_group("several captions").add_argument
    several = number(int, 1, MAX_BEAM_WIDTH)
    add("--n-best", type=several, default=1, metavar="N", help="the N best captions of the beam")
    add("--sample", type=several, metavar="N", help="N captions drawn at random, not searched for")
    text = "with --sample: below 1 prefers probable words (default: %(default)s)"
    add("--temperature", type=positive, default=1.0, help=text)
    text = "with --sample: draw from the words that have this much probability between them"
    add("--top-p", type=number(float, 1e-3, 1), default=1.0, help=f"{text} (default: 1, all)")
    text = "with --sample: the same seed draws the same captions (default: %(default)s)"
    add("--seed", type=count_or_zero, default=0, help=text)
    add = parser.add_argument_group("constraints").add_argument
    add("--require", nargs="+", default=[], metavar="WORD", help="words that captions contain")
    add("--forbid", nargs="+", default=[], metavar="WORD", help="words that they do not contain")
    add("--min-words", type=count_or_zero, default=0, help="the shortest caption, in words")
    add("--max-words", type=count, help="the longest caption, below the model's own limit")
    text = "repeat no sequence of N words in a caption"
    add("--no-repeat-ngram", type=count_or_zero, default=0, metavar="N", help=text)


def find_captioner(options: argparse.Namespace):
    """The captioner that searches as the options say; InputError if they contradict each other.

    Without TensorFlow if that is enough: the shipped `.tflite` file has the usual search.
    """
    is_constrained = any(getattr(options, name) for name in CONSTRAINTS)
    if options.sample and is_constrained:
        raise InputError("--sample draws freely; leave it out, or the constraints")
    is_usual = options.beam_width in (1, BEAM_WIDTH) and options.n_best == 1
    if not options.encoder and is_usual and not options.sample and not is_constrained:
        return load_captioner(options.model or LIGHT)
    captioner = load_captioner(options.model, encoder=options.encoder)
    if (is_constrained or options.sample) and captioner.beam_widths:
        raise InputError(f"{options.model}: such a search needs a checkpoint of train.py")
    if is_constrained:
        from captioning.extras.serve.constraints import ConstrainedCaptioner

        return ConstrainedCaptioner(captioner.checkpoint, options)
    if options.sample:
        from captioning.extras.serve.sampling import SamplingCaptioner

        return SamplingCaptioner(captioner.checkpoint, options)
    return captioner
