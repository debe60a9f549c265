"""The prepared folder: what the notebooks hand to train.py and test.py.

    prepared/
      prepared.json                what was prepared and how; written last: the commit marker
      captions/<split>.jsonl       one image per line: {"image": "x.jpg", "captions": ["...", ...]}
      tokens/<split>.safetensors   the captions as word ids, see CaptionTokens
      vocabulary.json              see captioning.vocabulary
      embeddings.npy, .json        float32 (words, dimension), and where the vectors came from
      features/<encoder>/          see captioning.features

The vocabulary's fingerprint is stored with everything made from it and compared on reading, so
files of two runs are never mixed.
"""

import io
import itertools
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from captioning import files
from captioning.errors import InputError, reason
from captioning.vocabulary import MADE_BY, TOKENIZERS, Vocabulary

VERSION = 2


@dataclass(frozen=True)
class CaptionTokens:
    """The captions of one split as word ids; captions without a word are left out."""

    ids: np.ndarray  # int32, all captions one after the other, each from START to END
    offsets: np.ndarray  # int64 (captions + 1,); caption i is ids[offsets[i] : offsets[i + 1]]
    images: np.ndarray  # int32 (captions,), the index of its image in Prepared.images(split)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, caption: int) -> np.ndarray:
        return self.ids[self.offsets[caption] : self.offsets[caption + 1]]


def write_captions(folder, dataset, vocabulary: Vocabulary, max_words: int, parameters: dict):
    """Write a `CaptionDataset`; `max_words`: the longest caption; `parameters`: of the notebook."""
    folder = Path(folder).expanduser()
    image_folder = os.path.relpath(dataset.image_folder.resolve(), folder.resolve())
    description = {
        "version": VERSION,
        "layout": dataset.layout,
        "image_folder": Path(image_folder).as_posix(),  # relative: both may move together
        "split_origin": dataset.split_origin,
        "summary": dataset.summary,
        "splits": {split: len(images) for split, images in dataset.splits.items()},
        "tokenizer": vocabulary.tokenizer,
        "vocabulary": vocabulary.fingerprint,
        "max_words": max_words,
        "parameters": parameters,
    }
    contents = {}
    for split, images in dataset.splits.items():
        records = ({"image": image, "captions": dataset.captions[image]} for image in images)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        text = text.encode(errors="backslashreplace")  # half of a surrogate pair
        tokens = vars(_encode(images, dataset.captions, vocabulary))
        tokens = files.tensor_bytes(tokens, {"vocabulary": vocabulary.fingerprint})
        contents[folder / f"captions/{split}.jsonl"] = text
        contents[folder / f"tokens/{split}.safetensors"] = tokens
    contents[folder / "vocabulary.json"] = files.json_bytes(vocabulary.to_json(), indent=None)
    contents[folder / "prepared.json"] = files.json_bytes(description)
    with files.locked(folder):
        files.replace_together(contents)


def write_embeddings(folder: str | os.PathLike, embedding, source: str) -> None:
    """Write an `EmbeddingMatrix`; `source` says where the vectors came from."""
    path, matrix = Path(folder).expanduser() / "embeddings.npy", io.BytesIO()
    np.save(matrix, embedding.matrix)
    fingerprint = embedding.vocabulary.fingerprint
    settings = {"source": source, "coverage": embedding.coverage, "vocabulary": fingerprint}
    contents = {path: matrix.getvalue(), path.with_suffix(".json"): files.json_bytes(settings)}
    with files.locked(path.parent):
        files.replace_together(contents)


class Prepared:
    """A prepared folder; InputError where a file is missing, damaged or of another run."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = folder = Path(folder).expanduser()
        path = folder / "prepared.json"
        self.description = files.read_json(path, f"{MADE_BY} (another folder: --data)")
        if self.description.get("version") != VERSION:
            raise _unusable(path, "of another version")
        try:
            self.image_folder = (folder / self.description["image_folder"]).resolve()
            self.split_origin: str = self.description["split_origin"]
            self.splits: dict[str, int] = self.description["splits"]  # name -> images
            self.max_words: int = min(self.description["max_words"], 1000)  # as Config's
        except KeyError as error:
            raise _unusable(path, f"lacks {error}") from None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that gives the ids their meaning."""
        path = self.folder / "vocabulary.json"
        vocabulary = Vocabulary.from_json(files.read_json(path, MADE_BY), path)
        self._check_vocabulary(path, vocabulary.fingerprint)
        return vocabulary

    def embeddings(self) -> np.ndarray:
        """The embedding matrix: float32 (len(vocabulary), dimension)."""
        path = self.folder / "embeddings.npy"
        settings = files.read_json(path.with_suffix(".json"), MADE_BY)
        self._check_vocabulary(path, settings.get("vocabulary"))
        try:
            return np.load(path, allow_pickle=False)
        except Exception as error:  # NumPy's reader raises many types
            raise _unusable(path, reason(error)) from None

    def images(self, split: str) -> list[str]:
        """The image names of `split`, in the order that features and tokens share."""
        return [image for image, _ in self._records(split)]

    def references(self, split: str) -> list[list[str]]:
        """The captions of each image of `split` as they were written, aligned with `images`."""
        return [captions for _, captions in self._records(split)]

    def tokens(self, split: str) -> CaptionTokens:
        """The captions of `split` as word ids."""
        path = self._path(split, f"tokens/{split}.safetensors")
        header, tensors = files.read_tensors(path, MADE_BY)
        self._check_vocabulary(path, header.get("vocabulary"))
        if tensors.keys() != CaptionTokens.__annotations__.keys():
            raise _unusable(path, f"holds {', '.join(tensors)}")
        return CaptionTokens(**tensors)

    def _records(self, split: str) -> list[tuple[str, list[str]]]:
        path = self._path(split, f"captions/{split}.jsonl")
        try:
            lines = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
            records = [(record["image"], record["captions"]) for record in lines]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise _unusable(path, reason(error)) from None
        if len(records) != self.splits[split]:
            raise _unusable(path, f"{len(records)} images, expected {self.splits[split]}")
        return records

    def _path(self, split: str, name: str) -> Path:
        if split not in self.splits:
            raise InputError(f"{self.folder}: no split {split!r}; it has {', '.join(self.splits)}")
        return self.folder / name

    def _check_vocabulary(self, path: Path, fingerprint: object) -> None:
        if fingerprint != self.description["vocabulary"]:
            raise _unusable(path, "made with another vocabulary than prepared.json")


def _unusable(path: Path, problem: str) -> InputError:
    return InputError(f"{path}: cannot be used ({problem}); run {MADE_BY} again")


def _encode(images: list[str], captions: dict, vocabulary: Vocabulary) -> CaptionTokens:
    tokenize = TOKENIZERS[vocabulary.tokenizer]
    encoded, owners = [], []
    for index, image in enumerate(tqdm(images, desc="word ids", unit=" images")):
        for caption in captions[image]:
            if tokens := tokenize(caption):
                encoded.append(vocabulary.encode(tokens))
                owners.append(index)
    ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int32)
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return CaptionTokens(ids, offsets, np.array(owners, np.int32))
