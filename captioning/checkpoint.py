"""A checkpoint: one `.safetensors` file with all that captioning needs, on any machine.

The format holds numbers and text alone, so the file may be untrusted: its header is checked
against its tensors before a model of those sizes is built.
"""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from captioning.config import Config
from captioning.errors import InputError, reason
from captioning.files import read_tensors, tensor_bytes, write_bytes
from captioning.model import MergeDecoder
from captioning.vocabulary import Vocabulary

VERSION = 2
MISFIT = "its tensors are not the weights of its configuration"


@dataclass(frozen=True)
class Checkpoint:
    """A model, and what gives its numbers a meaning."""

    model: MergeDecoder
    vocabulary: Vocabulary
    encoder: dict  # `Encoder.to_json` of the features that it was trained on
    facts: dict  # how it was trained and how it scored; JSON-ready, for people

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint to `path` (`.safetensors`), atomically."""
        header = {
            "version": VERSION,
            "config": asdict(self.model.config),
            "vocabulary": self.vocabulary.to_json(),
            "encoder": self.encoder,
            "facts": self.facts,
        }
        tensors = {_name(weight): weight.numpy() for weight in self.model.weights}
        write_bytes(path, tensor_bytes(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike, dtype: str | None = None) -> "Checkpoint":
        """Read a checkpoint; `dtype` is "float32", or as it was trained.

        InputError if the file is missing, damaged, of another version, or not a checkpoint.
        """
        path = Path(path).expanduser()
        header, tensors = read_tensors(path, "train.py")
        try:
            if header["version"] != VERSION:
                raise ValueError(f"version {header['version']}, expected {VERSION}: train again")
            config = Config.from_json(header["config"])
            vocabulary = Vocabulary.from_json(header["vocabulary"])
            encoder, facts = dict(header["encoder"]), dict(header["facts"])
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            size = shapes["embedding/embeddings"][-1]
            _check(config, encoder, facts, len(vocabulary), size, shapes)
            shape = feature_shape(encoder, config.attention)
            model = build_decoder(config, len(vocabulary), shape, size, dtype)
            if shapes != {_name(weight): weight.shape for weight in model.weights}:
                raise ValueError(MISFIT)
            if not all(t.dtype == np.float32 and np.isfinite(t).all() for t in tensors.values()):
                raise ValueError("its weights are not float32, or hold NaN or infinity")
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a checkpoint of train.py ({reason(error)})") from None
        for weight in model.weights:
            weight.assign(tensors[_name(weight)])
        return cls(model, vocabulary, encoder, facts)


def build_decoder(config: Config, *sizes, **options) -> MergeDecoder:
    """The model of `config.architecture`; further arguments as those of `MergeDecoder`."""
    if config.architecture == "merge":
        return MergeDecoder(config, *sizes, **options)
    from captioning.extras.study.architectures import ARCHITECTURES

    return ARCHITECTURES[config.architecture](config, *sizes, **options)


def feature_shape(encoder: dict, attention: str) -> tuple[int, ...]:
    """What the model takes of each image: (C,) pooled, (P, C) for attention over the grid."""
    rows, columns, channels = encoder["grid_shape"]
    return (rows * columns, channels) if attention == "grid" else (channels,)


def _name(weight) -> str:
    """The name of a weight's tensor: its path without that of the model."""
    return weight.path.partition("/")[2]


def _check(config: Config, encoder: dict, facts: dict, words: int, size: int, shapes: dict) -> None:
    """Check what is read of the header, and that the model takes no more memory than the file."""
    rows, columns, channels = encoder["grid_shape"]
    numbers = (rows, columns, channels, encoder["image_size"], config.max_words)
    are_sizes = all(type(number) is int and number > 0 for number in numbers)
    are_texts = all(str.isprintable(encoder[key]) for key in ("name", "fingerprint"))
    if not are_sizes or not are_texts or rows * columns > 10_000 or encoder["image_size"] > 4096:
        raise ValueError(f"its encoder is {encoder}, its longest caption {config.max_words} words")
    if not all(re.fullmatch("[0-9a-f]{16}", hash_) for hash_ in facts.get("training pictures", [])):
        raise ValueError("its training pictures are not hashes")
    cell, units, gates = f"rnn/{config.rnn}_cell", config.units, {"gru": 3, "lstm": 4}[config.rnn]
    expected = {
        "embedding/embeddings": (words, size),
        f"{cell}/kernel": (size + units * (config.architecture == "par-inject"), gates * units),
        f"{cell}/recurrent_kernel": (units, gates * units),
        "image_dense/kernel": (channels, units),
        "word_scores/kernel": (units if config.merge == "add" else 2 * units, words),
    }
    if not expected.items() <= shapes.items():
        raise ValueError(MISFIT)
