"""Every hyper-parameter, once; `train.py`'s options are made of them, a checkpoint has them."""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable

LENGTH_PENALTY, BEAM_WIDTH = 0.7, 5  # the best on the dev split of Flickr8k
MAX_BEAM_WIDTH = 1000  # wider beams find nothing better and need memory in proportion
MAX_LENGTH_PENALTY = 10.0  # powers of lengths must stay within float32


def number(kind: type, least: float, most: float = math.inf) -> Callable:
    """An argparse type: numbers of `kind` from `least` to `most`."""

    def parse(text: str):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(value := kind(text)) and least <= value <= most:
                return value
        noun = "whole number" if kind is int else "number"
        limit = "up" if math.isinf(most) else f"to {most:,.10g}"
        raise argparse.ArgumentTypeError(f"{text}: expected a {noun} from {least:g} {limit}")

    return parse


count = number(int, 1, 2**31 - 1)
count_or_zero = number(int, 0, 2**31 - 1)
fraction = number(float, 0, 0.99)
positive = number(float, 1e-12)


def option(default, text: str, **keywords):
    """A field of `Config`: its default, its help text, and keywords of argparse."""
    return dataclasses.field(default=default, metadata={"help": text, **keywords})


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters of the model and of its training."""

    epochs: int = option(20, "passes over the training captions", type=count)
    batch_size: int = option(128, "captions per step", type=count)
    attention: str = option(
        "none", "what the model attends to beside pooled features", choices=("none", "grid")
    )
    architecture: str = option(
        "merge",
        "where the image enters: after the RNN, or in one of three ways before it (Tanti 2018)",
        choices=("merge", "init-inject", "pre-inject", "par-inject"),
    )
    merge: str = option("add", "how image and words are merged", choices=("add", "concat"))
    rnn: str = option("gru", "type of the RNN", choices=("gru", "lstm"))
    units: int = option(512, "width of the RNN and of the merged layer", type=count)
    heads: int = option(8, "attention heads; must divide --units", type=count)
    dropout: float = option(0.5, "rate at words, RNN outputs, image and merge", type=fraction)
    freeze_embeddings: bool = option(False, "do not fine-tune the word vectors")
    random_embeddings: bool = option(False, "start from random word vectors, not the prepared ones")
    max_words: int = option(0, "cut longer captions (0 = as prepared)", type=number(int, 0, 1000))
    min_words: int = option(0, "the shortest caption of beam search", type=count_or_zero)
    no_repeat_ngram: int = option(
        0, "beam search repeats no sequence of so many words (0 = it may)", type=count_or_zero
    )
    optimizer: str = option("adamw", "algorithm of the updates", choices=("adamw", "adadelta"))
    learning_rate: float = option(
        1e-3, "peak, after one epoch of warm-up; adadelta: constant, e.g. 1", type=positive
    )
    weight_decay: float = option(0.0, "of the optimizer", type=fraction)
    label_smoothing: float = option(0.1, "of the target distribution", type=fraction)
    self_critical_epochs: int = option(
        0, "then epochs that maximise CIDEr-D of samples (Rennie et al. 2017)", type=count_or_zero
    )
    self_critical_rate: float = option(1e-5, "peak learning rate of those", type=positive)
    no_mirror: bool = option(False, "ignore the features of mirrored images")
    seed: int = option(0, "random seed; the same seed repeats the run", type=count_or_zero)
    bfloat16: bool = option(False, "compute in bfloat16, on CPUs and GPUs that support it")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add one option per field to `parser`."""
        group = parser.add_argument_group("hyper-parameters")
        for field in dataclasses.fields(cls):
            keywords = {**field.metadata}
            if field.type is bool:
                keywords["action"] = "store_true"
            else:
                keywords["default"] = field.default
                keywords["help"] += " (default: %(default)s)"
            group.add_argument(f"--{field.name.replace('_', '-')}", **keywords)

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "Config":
        """The values of parsed options."""
        return cls(*(getattr(options, field.name) for field in dataclasses.fields(cls)))

    @classmethod
    def from_json(cls, values: dict) -> "Config":
        """The values of a checkpoint's header, which is untrusted; ValueError if they are not."""
        config = cls(**values)
        for field in dataclasses.fields(cls):
            value, check = getattr(config, field.name), field.metadata
            if type(value) is not field.type or value not in check.get("choices", (value,)):
                raise ValueError(f"{field.name} is {value!r}")
            try:
                check.get("type", str)(str(value))
            except argparse.ArgumentTypeError as error:
                raise ValueError(f"{field.name} {error}") from None
        if problem := config.contradiction():
            raise ValueError(problem)
        return config

    def contradiction(self) -> str | None:
        """What does not go together, if anything."""
        if self.attention == "grid" and self.units % self.heads:
            return f"--units {self.units} is not divisible by --heads {self.heads}"
        if self.architecture != "merge" and (self.attention, self.merge) != ("none", "add"):
            return f"--architecture {self.architecture} has no --attention and no --merge"
        return None


def add_search_options(parser: argparse.ArgumentParser, width: int) -> None:
    """Add the options of decoding; `width` is the default beam width."""
    widths, penalties = number(int, 1, MAX_BEAM_WIDTH), number(float, 0, MAX_LENGTH_PENALTY)
    text = "unfinished captions kept by beam search; 1 is greedy decoding (default: %(default)s)"
    parser.add_argument("--beam-width", type=widths, default=width, help=text)
    text = "of beam search; higher favours longer captions (default: %(default)s)"
    parser.add_argument("--length-penalty", type=penalties, default=LENGTH_PENALTY, help=text)
    text = "of the beam's captions, take the one that agrees best with N others (0 = the first)"
    most = number(int, 0, MAX_BEAM_WIDTH)
    parser.add_argument("--consensus", type=most, default=0, metavar="N", help=text)
