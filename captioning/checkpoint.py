"""A checkpoint: one `.safetensors` file that holds all that captioning needs.

Hyper-parameters, vocabulary, the encoder's description and the facts of training are in the JSON
header, the weights behind it: copied to another machine, the file works. The format holds numbers
and text alone, so a checkpoint may come from anybody; its header is checked against its tensors
before a model of those sizes is built.
"""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from captioning.config import Config
from captioning.errors import InputError, reason
from captioning.files import read_tensors, tensor_bytes, write_bytes
from captioning.model import MergeDecoder, build_decoder
from captioning.vocabulary import Vocabulary

VERSION = 2
MOST_POSITIONS = 10_000  # in a grid of features
MOST_PIXELS = 4096  # width and height of what the encoder sees
GATES = {"gru": 3, "lstm": 4}  # matrices in the kernel of an RNN
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
        if path.suffix == ".keras":
            raise InputError(f"{path}: checkpoints are .safetensors files now; train again")
        header, tensors = read_tensors(path, "train.py")
        try:
            if header["version"] != VERSION:
                raise ValueError(f"version {header['version']}, expected {VERSION}: train again")
            config = Config.from_json(header["config"])
            vocabulary = Vocabulary.from_json(header["vocabulary"])
            encoder, facts = dict(header["encoder"]), dict(header["facts"])
            _check_descriptions(encoder, facts)
            shape = feature_shape(encoder, config.attention)
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            _check_sizes(config, len(vocabulary), encoder["grid_shape"], shapes)
            size = shapes["embedding/embeddings"][-1]
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


def feature_shape(encoder: dict, attention: str) -> tuple[int, ...]:
    """What the model takes of each image: (C,) pooled, (P, C) for attention over the grid."""
    rows, columns, channels = encoder["grid_shape"]
    return (rows * columns, channels) if attention == "grid" else (channels,)


def _name(weight) -> str:
    """The name of a weight's tensor: its path without that of the model."""
    return weight.path.partition("/")[2]


def _check_descriptions(encoder: dict, facts: dict) -> None:
    """Check what captioning and scoring read of the encoder's description and of the facts."""
    name, size, fingerprint = encoder["name"], encoder["image_size"], encoder["fingerprint"]
    is_text = isinstance(name, str) and isinstance(fingerprint, str) and name.isprintable()
    if not is_text or type(size) is not int or not 0 < size <= MOST_PIXELS:
        raise ValueError(f"its encoder is {encoder}")
    if not all(re.fullmatch("[0-9a-f]{16}", hash_) for hash_ in facts.get("training pictures", [])):
        raise ValueError("its training pictures are not hashes")


def _check_sizes(config: Config, words: int, grid: list[int], shapes: dict) -> None:
    """Check what determines the size of the model: no more memory is taken than the file has."""
    numbers = (*grid, config.max_words)
    if not all(type(n) is int and n > 0 for n in numbers) or grid[0] * grid[1] > MOST_POSITIONS:
        raise ValueError(f"a grid of {grid}, {config.max_words} words")
    cell, units, size = f"rnn/{config.rnn}_cell", config.units, shapes["embedding/embeddings"][-1]
    inputs = size + units if config.architecture == "par-inject" else size
    merged = units if config.merge == "add" else 2 * units
    expected = {
        "embedding/embeddings": (words, size),
        f"{cell}/kernel": (inputs, GATES[config.rnn] * units),
        f"{cell}/recurrent_kernel": (units, GATES[config.rnn] * units),
        "image_dense/kernel": (grid[2], units),
        "word_scores/kernel": (merged, words),
    }
    if not expected.items() <= shapes.items():
        raise ValueError(MISFIT)
