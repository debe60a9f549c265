"""Captions without TensorFlow: one `.tflite` file, run by LiteRT.

`python -m captioning export` writes it: a model with these signatures, and behind it a zip archive
with one JSON entry. L is max_words + 1, P the positions of the grid.

    encode     pixels uint8 (1, size, size, 3) -> features float32 (1, *feature_shape)
    greedy     features -> words int32 (1, 1, L), log_probabilities float32 (1, 1, L)
    beam       features, length_penalty float32 () -> the same; not for a beam width of 1
    attention  features, words int32 (1, L) -> maps float32 (1, L, P); of models with attention

The entry holds a SHA-256 of the model against accidental damage. LiteRT is C++: use `.tflite`
files only of people you trust.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from captioning.captions import Caption, PhotoCaptioner
from captioning.config import LENGTH_PENALTY
from captioning.errors import InputError, reason
from captioning.files import write_bytes
from captioning.startup import quiet_stderr
from captioning.vocabulary import TOKENIZERS, Vocabulary

VERSION = 1
ENTRY = "captioner.json"
EXPORT = "python -m captioning export"


class LightCaptioner(PhotoCaptioner):
    """A `.tflite` file, ready to caption. InputError if it is missing, damaged or foreign."""

    def __init__(self, path: str | os.PathLike):
        path = Path(path).expanduser()
        self.source = str(path)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no such file"
            raise InputError(f"{path}: {kind}; {EXPORT} writes it")
        try:
            self.information = read_information(path)
            self.vocabulary = Vocabulary.from_json(self.information["vocabulary"])
            width = int(self.information["beam_width"])
            with quiet_stderr():
                model = Interpreter(str(path), num_threads=os.cpu_count())
                model.allocate_tensors()  # prints which kernels it uses
                names = model.get_signature_list()
                self._run = {name: model.get_signature_runner(name) for name in names}
            self.image_size = self._input_shape("encode", "pixels")[1]
        except Exception as error:  # zipfile, JSON and LiteRT raise many types
            problem = f"damaged, or not written by {EXPORT} ({reason(error)})"
            raise InputError(f"{path}: {problem}") from None
        self.beam_widths = tuple(sorted({1, width}))
        self.has_attention = "attention" in self._run

    def _input_shape(self, signature: str, name: str) -> tuple[int, ...]:
        return tuple(self._run[signature].get_input_details()[name]["shape"].tolist())

    def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Run the CNN on pictures from `load_image` -> float32 (images, *feature_shape)."""
        return np.concatenate([self._run["encode"](pixels=p[None])["features"] for p in pixels])

    def caption_features(
        self, features: np.ndarray, beam_width=None, length_penalty=LENGTH_PENALTY, n_best=1
    ) -> list[Caption]:
        """Caption encoded images (images, *feature_shape), float16 or float32: one each."""
        if n_best > 1:
            raise InputError(f"{self.source}: has the best caption alone; use a checkpoint")
        beam_width = beam_width or self.beam_widths[-1]
        if beam_width not in self.beam_widths:
            problem = f"has beam width {' and '.join(map(str, self.beam_widths))}, not {beam_width}"
            remedy = f"{EXPORT} CHECKPOINT OUT.tflite --beam-width {beam_width}"
            raise InputError(f"{self.source}: {problem}; export it: {remedy}")
        captions = []
        for feature in features.astype(np.float32):
            if beam_width == 1:
                found = self._run["greedy"](features=feature[None])
            else:
                penalty = np.float32(length_penalty)
                found = self._run["beam"](features=feature[None], length_penalty=penalty)
            parts = found["words"][0].tolist(), found["log_probabilities"][0]
            captions.append(Caption.from_search(self.vocabulary, *parts))
        return captions

    def attention(self, features: np.ndarray, captions: Sequence[str]) -> list[np.ndarray]:
        """Where the model looked for each word: one array (words, rows, columns) per image."""
        maps = []
        for feature, caption in zip(features.astype(np.float32), captions, strict=True):
            words = TOKENIZERS[self.vocabulary.tokenizer](caption)
            ids = np.zeros(self._input_shape("attention", "words"), np.int32)
            ids[0, : len(words) + 1] = self.vocabulary.encode(words)[:-1]  # without END
            found = self._run["attention"](features=feature[None], words=ids)["maps"]
            grid = self.information["encoder"]["grid_shape"][:2]
            maps.append(found[0, : len(words)].reshape(-1, *grid))
        return maps


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
    """Write a model and its `information`: vocabulary, encoder, beam width and facts for people."""
    information = {"version": VERSION, "sha256": hashlib.sha256(model).hexdigest(), **information}
    file = io.BytesIO()
    file.write(model)
    with zipfile.ZipFile(file, "a") as archive:  # begins behind the model
        entry = zipfile.ZipInfo(ENTRY)  # dated 1980: same input, same file
        archive.writestr(entry, json.dumps(information, ensure_ascii=False), zipfile.ZIP_DEFLATED)
    write_bytes(path, file.getvalue())
