"""Captions without TensorFlow: one `.tflite` file, run by LiteRT.

`python -m captioning export` writes it: a model with these signatures, and behind it a zip archive
with one JSON entry. B captions are extended at once; V is the size of the vocabulary, P the number
of positions of the grid; maps are of models with attention.

    encode  pixels uint8 (1, size, size, 3) -> features float32 (1, *feature_shape)
    start   features -> image0, image1, ..., state0, ... (1, ...)
    step    words int32 (1, B), these -> scores (1, B, V), maps (1, B, P), state0, ... (B, ...)

The entry holds a SHA-256 of the model against accidental damage. LiteRT is C++: use `.tflite`
files only of people you trust.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from captioning.captions import Caption, PhotoCaptioner
from captioning.config import Config
from captioning.errors import InputError, reason
from captioning.extras.serve.searches import Constraints, constrained
from captioning.files import write_bytes
from captioning.startup import quiet_stderr
from captioning.vocabulary import Vocabulary

VERSION = 3
ENTRY = "captioner.json"
EXPORT = "python -m captioning export"


class LightCaptioner(PhotoCaptioner):
    """A `.tflite` file, ready to caption. InputError if it is missing, damaged or foreign."""

    def __init__(self, path: str | os.PathLike):
        path = Path(path).expanduser()
        self.source = str(path)
        try:
            self.information = read_information(path)
            self.vocabulary = Vocabulary.from_json(self.information["vocabulary"])
            self.config = Config.from_json(self.information["config"])
            self.has_attention = self.config.attention == "grid"
            encoder = self.information["encoder"]
            self.encoder_name, self.image_size = encoder["name"], encoder["image_size"]
            self.grid_shape = encoder["grid_shape"]
            with quiet_stderr():
                model = Interpreter(str(path), num_threads=os.cpu_count())
                model.allocate_tensors()  # prints which kernels it uses
                names = model.get_signature_list()
                self._run = {name: model.get_signature_runner(name) for name in names}
        except Exception as error:  # zipfile, JSON and LiteRT raise many types
            problem = f"cannot be used ({reason(error)})"
            raise InputError(f"{path}: {problem}; {EXPORT} writes such files") from None

    def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Run the CNN on pictures from `load_image` -> float32 (images, *feature_shape)."""
        return np.concatenate([self._run["encode"](pixels=p[None])["features"] for p in pixels])

    def begin(self, feature: np.ndarray, output: str = "scores") -> Callable:
        """Captions of one encoded image, step by step: see `captioning.extras.serve.searches`."""
        parts = self._run["start"](features=feature[None].astype(np.float32))

        def step(words: Sequence[int], rows: Sequence[int]) -> np.ndarray:
            for name in parts:
                if name.startswith("state"):
                    parts[name] = parts[name][rows]
            found = self._run["step"](words=np.array([words], np.int32), **parts)
            parts.update((name, found[name]) for name in parts if name in found)
            return found[output][0]

        return step

    def search(self, features, beam_width, length_penalty, n_best) -> list[Caption]:
        """As `PhotoCaptioner.search`."""
        limits = Constraints.of(self.config, beam_width)
        return constrained(self, limits, features, beam_width, length_penalty, n_best)

    def look(self, feature: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """As `PhotoCaptioner.look`."""
        step = self.begin(feature, "maps")
        return np.concatenate([step([word], [0]) for word in ids[0]])


def read_information(path: Path) -> dict:
    """The JSON of a `.tflite` file whose model has the checksum that the JSON names."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(ENTRY)
        information = json.loads(archive.read(entry))
    if information["version"] != VERSION:
        raise ValueError(f"version {information['version']}, expected {VERSION}: export it again")
    model = np.memmap(path, np.uint8, "r")[: entry.header_offset]
    if hashlib.sha256(model).hexdigest() != information["sha256"]:
        raise ValueError("its checksum differs")
    return information


def write_light(path: str | os.PathLike, model: bytes, information: dict) -> None:
    """Write a model and its `information`: vocabulary, encoder, configuration, facts."""
    information = {"version": VERSION, "sha256": hashlib.sha256(model).hexdigest(), **information}
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:  # begins behind the model
        entry = zipfile.ZipInfo(ENTRY)  # dated 1980: same input, same file
        archive.writestr(entry, json.dumps(information, ensure_ascii=False), zipfile.ZIP_DEFLATED)
    write_bytes(path, file.getvalue())
