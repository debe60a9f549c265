"""A checkpoint: one `.safetensors` file that holds all that captioning needs.

Hyper-parameters, vocabulary, the encoder's description and the facts of training are in the JSON
header, the weights behind it: copied to another machine, the file works. The format holds numbers
and text alone, so a checkpoint may come from anybody; its header is checked against its tensors
before a model of those sizes is built.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from captioning.config import Config
from captioning.errors import InputError, reason
from captioning.files import read_tensors, tensor_bytes, write_bytes
from captioning.model import MergeDecoder
from captioning.vocabulary import Vocabulary

VERSION = 2
GATES = {"gru": 3, "lstm": 4}  # matrices in the kernel of an RNN


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model, and what gives its numbers a meaning.

    Attributes:
        model: the merge model.
        vocabulary: word ids <-> words.
        encoder: `Encoder.to_json` of the features that it was trained on.
        facts: how it was trained and how it scored; JSON-ready, for people.
    """

    model: MergeDecoder
    vocabulary: Vocabulary
    encoder: dict
    facts: dict

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint to `path` (`.safetensors`), atomically."""
        header = {
            "version": VERSION,
            "config": dataclasses.asdict(self.model.config),
            "vocabulary": self.vocabulary.to_json(),
            "encoder": self.encoder,
            "facts": self.facts,
        }
        tensors = {_name(weight): weight.numpy() for weight in self.model.weights}
        write_bytes(path, tensor_bytes(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike, dtype: str | None = None) -> "Checkpoint":
        """Read a checkpoint that `save` wrote.

        Args:
            path: the `.safetensors` file.
            dtype: "float32" or "mixed_bfloat16"; as it was trained if None.

        Raises:
            InputError: the file is missing, damaged, of another version, or not a checkpoint.
        """
        path = Path(path).expanduser()
        if path.suffix == ".keras":
            raise InputError(
                f"{path}: checkpoints are .safetensors files now; train again with train.py"
            )
        header, tensors = read_tensors(path, "train.py")
        if (version := header.get("version")) != VERSION or "config" not in header:
            raise InputError(
                f"{path}: version {version}, expected a checkpoint of version {VERSION}; train again"
            )
        try:
            config = Config.from_json(header["config"])
            vocabulary = Vocabulary.from_json(header["vocabulary"])
            encoder, facts = dict(header["encoder"]), dict(header["facts"])
            shape = feature_shape(encoder, config.attention)
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            embedding_size = _check_sizes(shapes, config, len(vocabulary), shape)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a checkpoint of train.py ({reason(error)})") from None
        model = MergeDecoder(config, len(vocabulary), shape, embedding_size, dtype)
        expected = {_name(weight): tuple(weight.shape) for weight in model.weights}
        if expected != shapes:
            raise InputError(f"{path}: its tensors are not the weights of its configuration")
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise InputError(f"{path}: its weights hold NaN or infinity; use an earlier checkpoint")
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


def _check_sizes(shapes: dict, config: Config, words: int, feature_shape: tuple) -> int:
    """Check that the tensors that determine the size of the model are as the header says.

    Returns:
        the length of a word vector.
    """
    if not isinstance(config.max_words, int) or config.max_words < 1:
        raise ValueError(f"max_words is {config.max_words}")
    units, embedding_size = config.units, shapes["embedding/embeddings"][-1]
    cell = f"rnn/{config.rnn}_cell"
    for name, shape in {
        "embedding/embeddings": (words, embedding_size),
        f"{cell}/recurrent_kernel": (units, GATES[config.rnn] * units),
        "image_dense/kernel": (feature_shape[-1], units),
        "word_scores/kernel": (units, words),
    }.items():
        if shapes[name] != shape:
            raise ValueError(f"{name} has the shape {shapes[name]}, its header says {shape}")
    return embedding_size
