"""A checkpoint: one `.keras` file that holds all that captioning needs.

Weights, hyper-parameters, vocabulary and the encoder's description travel together; copied to
another machine, the file works. It is an ordinary Keras archive. Before Keras opens it, the
archive is checked to hold a merge-decoder described by plain values and nothing else, so that a
file from a stranger cannot name other code to run; then Keras loads it in safe mode.
"""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

from captioning.files import InputError, replacing
from captioning.model import ATTENTIONS, RNNS, MergeDecoder, ModelConfig
from captioning.vocabulary import Vocabulary

VERSION = 1
MAX_BYTES = 2_000_000_000  # of weights; a merge-decoder has some 20 MB


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

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint to `path` (`.keras`), whole or not at all."""
        self.model.description = {
            "version": VERSION,
            "vocabulary": self.vocabulary.to_json(),
            "encoder": self.encoder,
            "facts": self.facts,
        }
        with replacing(path) as temporary:
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
        config = _read_config(path)
        try:
            description = config["description"]
            if description["version"] != VERSION:
                raise InputError(
                    f"{path}: a checkpoint of version {description['version']}; this program "
                    f"reads version {VERSION}, update it or train anew"
                )
            vocabulary = Vocabulary.from_json(description["vocabulary"])
            model_config = _checked(ModelConfig(**config["config"]), len(vocabulary))
            model = MergeDecoder(model_config, dtype=dtype or config["dtype"])
            model.build_for_captions()
            _load_weights(model, path)
            return cls(model, vocabulary, dict(description["encoder"]), dict(description["facts"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = (str(error).strip().splitlines() or ["damaged"])[0]
            raise InputError(f"{path}: not a checkpoint of train.py ({reason})") from None


def _read_config(path: Path) -> dict:
    """The archive's description of the model, checked to be plain values of a merge-decoder."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train.py writes one an epoch")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if set(sizes) != {"config.json", "metadata.json", "model.weights.h5"}:
                raise InputError(
                    f"{path}: not a checkpoint of train.py (holds {sorted(sizes)[:5]})"
                )
            if sum(sizes.values()) > MAX_BYTES:
                raise InputError(f"{path}: unpacks to {sum(sizes.values()) / 1e9:.1f} GB; refused")
            whole = json.loads(archive.read("config.json"))
        if whole["class_name"] != MergeDecoder.__name__:
            raise InputError(f"{path}: holds a {whole['class_name']}, expected a MergeDecoder")
        return whole["config"]
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except Exception as error:  # zipfile, zlib and json each raise their own kinds
        raise InputError(
            f"{path}: damaged, or not a checkpoint of train.py ({error}); copy or train it again"
        ) from None


def _checked(config: ModelConfig, words: int) -> ModelConfig:
    """`config` with its shape as a tuple, if its values can be a model at all."""
    sizes = (config.vocabulary_size, config.embedding_size, config.units, config.heads)
    shares = (
        config.word_dropout,
        config.rnn_dropout,
        config.image_dropout,
        config.merge_dropout,
    )
    shape = tuple(config.feature_shape)
    if not all(type(size) is int and 0 < size < 1_000_000 for size in (*sizes, *shape)):
        raise ValueError("a size is not a positive whole number")
    if not all(isinstance(share, int | float) and 0 <= share < 1 for share in shares):
        raise ValueError("a dropout is not between 0 and 1")
    if config.rnn not in RNNS or config.attention not in ATTENTIONS:
        raise ValueError(f"unknown rnn {config.rnn!r} or attention {config.attention!r}")
    if config.vocabulary_size != words:
        raise ValueError(f"{config.vocabulary_size} word scores, but {words} words")
    if len(shape) != (2 if config.attention == "grid" else 1):
        raise ValueError(f"feature shape {shape} does not fit attention {config.attention!r}")
    return dataclasses.replace(config, feature_shape=shape)


def _load_weights(model: MergeDecoder, path: Path) -> None:
    try:
        model.load_weights(path)
    except Exception as error:  # h5py and Keras raise many kinds
        reason = (str(error).strip().splitlines() or ["damaged"])[0]
        raise InputError(f"{path}: its weights do not fit its description ({reason})") from None
