"""A checkpoint: one `.keras` file that holds all that captioning needs.

Weights, hyper-parameters, vocabulary and the encoder's description travel together; copied to
another machine, the file works. It is an ordinary Keras archive. Before Keras opens it, the
archive is checked to hold a merge-decoder described by plain values and nothing else, so that a
file from a stranger cannot name other code to run; then Keras loads it in safe mode.
"""

import dataclasses
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from captioning.files import MAX_JSON_BYTES, InputError, one_line, reason, replacing
from captioning.hdf5 import WEIGHTS, load_archived
from captioning.model import ATTENTIONS, RNNS, MergeDecoder, ModelConfig
from captioning.vocabulary import Vocabulary

VERSION = 1
MEMBERS = {"config.json", "metadata.json", WEIGHTS}
MAX_BYTES = 2_000_000_000  # of weights; a merge-decoder has some 20 MB
MAX_DEFLATION = 8  # weights are nearly noise: deflated in the file, they are half as large
MAX_SIZE = 1_000_000  # of anything that a configuration counts
MAX_FEATURES = 10_000_000  # numbers an image
MAX_IMAGE_SIZE = 10_000  # pixels; also of an encoder's grid
DTYPES = ("float32", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model and what gives its numbers their meaning.

    Attributes:
        model: the merge-decoder.
        vocabulary: word ids <-> words.
        encoder: `Encoder.describe` of the features that it was trained on.
        facts: how it was trained and how it scored; JSON-ready, for people.
    """

    model: MergeDecoder
    vocabulary: Vocabulary
    encoder: dict
    facts: dict

    def describe(self) -> None:
        """Give the model all that is to be saved beside its weights."""
        self.model.description = {
            "version": VERSION,
            "vocabulary": self.vocabulary.to_json(),
            "encoder": self.encoder,
            "facts": self.facts,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint to `path` (`.keras`), whole or not at all."""
        self.describe()
        size = 4 * self.model.count_params()  # bytes, but for some kilobytes
        with replacing(path, size) as temporary:
            self.model.save(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike, dtype: str | None = None) -> "Checkpoint":
        """Read a checkpoint that `save` wrote.

        Args:
            path: the `.keras` file.
            dtype: "float32" or "mixed_bfloat16"; as it was trained if None.

        Raises:
            InputError: the file is missing, damaged, of a newer version, or no checkpoint.
        """
        path = Path(path)
        config, weight_bytes = _read_archive(path)
        try:
            description = config["description"]
            if description["version"] != VERSION:
                raise InputError(
                    f"{path}: a checkpoint of version {description['version']}; this program "
                    f"reads version {VERSION}, update it or train anew"
                )
            vocabulary = Vocabulary.from_json(description["vocabulary"])
            model_config = _checked(ModelConfig(**config["config"]), len(vocabulary), weight_bytes)
            encoder = _checked_encoder(description["encoder"], model_config.feature_shape)
            facts = dict(description["facts"])
            if config["dtype"] not in DTYPES:  # Keras would take the name of a class
                raise ValueError(f"precision {config['dtype']!r}")
        except (KeyError, TypeError, ValueError) as error:
            if str(error).startswith(str(path)):
                raise
            raise InputError(f"{path}: not a checkpoint of train.py ({reason(error)})") from None
        model = MergeDecoder(model_config, dtype=dtype or config["dtype"])
        model.build_for_captions()
        _load_weights(model, path, weight_bytes)
        return cls(model, vocabulary, encoder, facts)


def _read_archive(path: Path) -> tuple[dict, int]:
    """The description of a merge-decoder in an archive, and how many bytes its weights take."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; name a checkpoint in it, such as {path}/best.keras")
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train.py writes one an epoch")
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            if names != sorted(MEMBERS):
                raise InputError(
                    f"{path}: not a checkpoint of train.py (holds {one_line(str(names))})"
                )
            size = {member.filename: member.file_size for member in archive.infolist()}
            total = sum(size.values())
            if total > MAX_BYTES or size["config.json"] > MAX_JSON_BYTES:
                raise InputError(f"{path}: unpacks to {total / 1e9:.1f} GB; refused")
            if damaged := archive.testzip():  # told before a model is built
                raise InputError(f"{path}: its {damaged} is damaged; copy or train it again")
            whole = json.loads(archive.read("config.json"))
        name = whole["class_name"]
        if name != MergeDecoder.__name__:
            raise InputError(
                f"{path}: not a checkpoint of train.py (holds a {one_line(str(name))}, "
                "expected a MergeDecoder)"
            )
        return whole["config"], size[WEIGHTS]
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except Exception as error:  # zipfile, zlib and json each raise their own kinds
        raise InputError(
            f"{path}: damaged, or not a checkpoint of train.py ({reason(error)}); "
            "copy or train it again"
        ) from None


def _checked(config: ModelConfig, words: int, weight_bytes: int) -> ModelConfig:
    """`config` with its shape as a tuple, if its values are those of the archive's weights."""
    sizes = (config.vocabulary_size, config.embedding_size, config.units, config.heads)
    shares = (
        config.word_dropout,
        config.rnn_dropout,
        config.image_dropout,
        config.merge_dropout,
    )
    shape = tuple(config.feature_shape)
    if not all(type(size) is int and 0 < size <= MAX_SIZE for size in (*sizes, *shape)):
        raise ValueError(f"a size is not a whole number from 1 to {MAX_SIZE:,}")
    if not all(isinstance(share, int | float) and 0 <= share < 1 for share in shares):
        raise ValueError("a dropout is not a number from 0 to below 1")
    if not isinstance(config.train_embeddings, bool):
        raise ValueError("train_embeddings is not true or false")
    if config.rnn not in RNNS or config.attention not in ATTENTIONS:
        raise ValueError(f"unknown rnn {config.rnn!r} or attention {config.attention!r}")
    if config.vocabulary_size != words:
        raise ValueError(f"{config.vocabulary_size} word scores, but {words} words")
    if len(shape) != (2 if config.attention == "grid" else 1) or math.prod(shape) > MAX_FEATURES:
        raise ValueError(f"feature shape {shape} does not fit attention {config.attention!r}")
    if config.attention == "grid" and config.units % config.heads:
        raise ValueError(f"{config.units} units cannot be shared by {config.heads} heads")
    # the largest matrices, so that no memory is taken for weights that are not there
    inputs = config.embedding_size + config.units + shape[-1] + words
    least = 4 * (config.embedding_size * words + config.units * inputs)
    if least > MAX_DEFLATION * weight_bytes:
        raise ValueError(f"its {weight_bytes:,} bytes of weights are too few for its sizes")
    return dataclasses.replace(config, feature_shape=shape)


def _checked_encoder(encoder: dict, feature_shape: tuple[int, ...]) -> dict:
    """What `Encoder.describe` gave, if it can give features of that shape."""
    rows, columns, channels = grid_shape = encoder["grid_shape"]
    sizes = (encoder["image_size"], *grid_shape)
    names = (encoder["name"], encoder["fingerprint"])
    if not all(type(size) is int and 0 < size <= MAX_IMAGE_SIZE for size in sizes):
        raise ValueError(f"a size of its encoder is not a whole number from 1 to {MAX_IMAGE_SIZE}")
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("the name of its encoder is not text")
    if feature_shape not in ((channels,), (rows * columns, channels)):
        raise ValueError(f"feature shape {feature_shape} does not fit grid shape {grid_shape}")
    return dict(encoder)


def _load_weights(model: MergeDecoder, path: Path, weight_bytes: int) -> None:
    try:
        load_archived(model, path, MAX_DEFLATION * weight_bytes)
    except InputError:
        raise
    except Exception as error:  # Keras raises many kinds
        raise InputError(
            f"{path}: its weights do not fit its description ({reason(error)})"
        ) from None
    if not all(np.isfinite(variable).all() for variable in model.weights):
        raise InputError(f"{path}: its weights hold NaN or infinity; take an earlier checkpoint")
