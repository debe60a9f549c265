"""Every hyper-parameter, once: its default, its help text, and the command-line option.

The command line of `train.py` is made from `Config`, and a checkpoint carries it.
"""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable

LENGTH_PENALTY = 0.7  # the best on the dev split of Flickr8k
BEAM_WIDTH = 5  # likewise; `test.py` decodes greedily unless asked
MAX_BEAM_WIDTH = 1000  # wider beams find nothing better and need memory in proportion
MAX_LENGTH_PENALTY = 10.0  # powers of lengths must stay within float32

LENGTH_PENALTY_HELP = (
    "Length-normalisation exponent for beam search; higher favours longer captions. Ignored by "
    f"greedy decoding (default: {LENGTH_PENALTY})"
)


def number(kind: type, least: float, most: float = math.inf, below: bool = False) -> Callable:
    """An argparse type: numbers of `kind` from `least` to `most`, or `below` it."""

    def parse(text: str):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if (
                math.isfinite(value)
                and least <= value
                and (value < most if below else value <= most)
            ):
                return value
        noun = "whole number" if kind is int else "number"
        limit = "" if math.isinf(most) else f" {'to below' if below else 'to'} {most:,}"
        raise argparse.ArgumentTypeError(
            f"{text}: expected a {noun} from {least:g}{limit or ' up'}"
        )

    return parse


count = number(int, 1, 2**31 - 1)
count_or_zero = number(int, 0, 2**31 - 1)
fraction = number(float, 0, 1, below=True)
positive = number(float, math.nextafter(0, 1))
beam_width = number(int, 1, MAX_BEAM_WIDTH)
length_penalty = number(float, 0, MAX_LENGTH_PENALTY)


def option(default, text: str, group: str, **keywords):
    """A field of `Config`: its default, help text, group of options, and keywords of argparse."""
    metadata = {"help": text, "group": group, **keywords}
    return dataclasses.field(default=default, metadata=metadata)


MODEL, TRAINING = "model", "training"


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters of the model and of its training; `train.py --help` explains each."""

    epochs: int = option(20, "passes over the training captions", TRAINING, type=count)
    batch_size: int = option(128, "captions per step", TRAINING, type=count)
    attention: str = option(
        "none",
        "merge one pooled vector per image, or also attend to the grid of features",
        MODEL,
        choices=("none", "grid"),
    )
    rnn: str = option("gru", "type of the RNN", MODEL, choices=("gru", "lstm"))
    units: int = option(512, "width of the RNN and of the merged layer", MODEL, type=count)
    heads: int = option(8, "attention heads; must divide --units", MODEL, type=count)
    dropout: float = option(
        0.5,
        "dropout rate of word vectors, RNN outputs, image features and merged activations",
        MODEL,
        type=fraction,
    )
    freeze_embeddings: bool = option(False, "do not fine-tune the word vectors", MODEL)
    random_embeddings: bool = option(
        False, "start from random word vectors instead of DATA/embeddings.npy", MODEL
    )
    max_words: int = option(
        0,
        "cut longer captions, and decode no longer ones (0 = the limit in DATA/prepared.json)",
        MODEL,
        type=count_or_zero,
    )
    learning_rate: float = option(
        1e-3, "peak; linear warm-up over one epoch, then cosine decay", TRAINING, type=positive
    )
    weight_decay: float = option(0.0, "of AdamW", TRAINING, type=fraction)
    label_smoothing: float = option(0.1, "of the target distribution", TRAINING, type=fraction)
    self_critical_epochs: int = option(
        0,
        "epochs after --epochs that maximise the CIDEr-D of sampled captions (Rennie et al. 2017)",
        TRAINING,
        type=count_or_zero,
    )
    self_critical_rate: float = option(
        1e-5, "peak learning rate of those epochs", TRAINING, type=positive
    )
    no_mirror: bool = option(False, "ignore the features of mirrored images", TRAINING)
    seed: int = option(
        0, "random seed; the same seed repeats the run", TRAINING, type=count_or_zero
    )
    bfloat16: bool = option(
        False, "compute in bfloat16, on CPUs and GPUs that support it", TRAINING
    )

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add one option per field to `parser`."""
        groups = {name: parser.add_argument_group(name) for name in (MODEL, TRAINING)}
        for field in dataclasses.fields(cls):
            keywords = dict(field.metadata)
            group, text = groups[keywords.pop("group")], keywords.pop("help")
            if field.type is bool:
                keywords["action"] = "store_true"
            else:
                keywords["default"], text = field.default, f"{text} (default: %(default)s)"
            group.add_argument(f"--{field.name.replace('_', '-')}", help=text, **keywords)

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "Config":
        """The values of parsed options."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: getattr(options, name) for name in names})

    @classmethod
    def from_json(cls, values: dict) -> "Config":
        """The values of a checkpoint's header, which may come from an untrusted file.

        Raises:
            ValueError: a value is of another type or out of range.
        """
        config = cls(**values)
        for field in dataclasses.fields(cls):
            value, check = getattr(config, field.name), field.metadata
            if field.type is not type(value) and not (field.type is float and type(value) is int):
                raise ValueError(f"{field.name} is {value!r}, expected {field.type.__name__}")
            if value not in check.get("choices", (value,)):
                raise ValueError(f"{field.name} is {value!r}")
            try:
                check.get("type", str)(str(value))
            except argparse.ArgumentTypeError as error:
                raise ValueError(f"{field.name} {error}") from None
        if config.attention == "grid" and config.units % config.heads:
            raise ValueError(f"--units {config.units} is not divisible by --heads {config.heads}")
        return config
