"""The prepared folder: what the notebooks hand to train.py and test.py.

    prepared/
      prepared.json                what was prepared and how; written last: it means "complete"
      captions/<split>.jsonl       one image per line: {"image": "x.jpg", "captions": ["...", ...]}
      tokens/<split>.safetensors   the captions as word ids, see CaptionTokens
      vocabulary.json              see captioning.vocabulary
      embeddings.npy               float32 (words, dimension)
      embeddings.json              where the vectors came from; written after them
      features/<encoder>/          see captioning.features

Ids mean nothing without their vocabulary: its fingerprint is stored with everything made from it
and compared on reading, so files of two runs are never mixed.
"""

import io
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from captioning.errors import InputError, reason
from captioning.files import (
    json_bytes,
    locked,
    read_json,
    read_tensors,
    replace_together,
    tensor_bytes,
)
from captioning.vocabulary import TOKENIZERS, Vocabulary

VERSION = 2
MADE_BY = "caption_extraction.ipynb"
REMEDY = f"run {MADE_BY} again"


@dataclass(frozen=True)
class CaptionTokens:
    """The captions of one split as word ids, concatenated; captions without a word are left out.

    Attributes:
        ids: int32; each caption runs from START to END.
        offsets: int64 (captions + 1,); caption i is ids[offsets[i] : offsets[i + 1]].
        images: int32 (captions,); the index of its image in Prepared.images(split).
    """

    ids: np.ndarray
    offsets: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        """The number of captions."""
        return len(self.images)

    def __getitem__(self, caption: int) -> np.ndarray:
        """The ids of one caption: int32 (words + 2,)."""
        return self.ids[self.offsets[caption] : self.offsets[caption + 1]]


def write_captions(folder, dataset, vocabulary: Vocabulary, max_words: int, parameters: dict):
    """Write all that the captions give: raw captions, tokens, vocabulary, `prepared.json`.

    If the process is killed or the disk is full, the folder is unchanged or counts as unfinished.

    Args:
        folder: the prepared folder; captions of an earlier run are replaced.
        dataset: a `captioning.datasets.CaptionDataset`.
        vocabulary: gives the ids; its tokeniser splits the captions.
        max_words: the longest caption to train on and to decode.
        parameters: the settings of the run, for the reader.

    Raises:
        InputError: the folder cannot be written, or another run is writing it.
    """
    if not os.fspath(folder):
        raise InputError("the prepared folder has no name; give one, such as prepared")
    folder = Path(folder).expanduser()
    with locked(folder):
        files, old = {}, []
        if (folder / "prepared.json").exists():
            old = list(read_json(folder / "prepared.json", MADE_BY).get("splits", ()))
        for split, images in dataset.splits.items():
            files[_captions_file(folder, split)] = _raw_captions(images, dataset.captions)
            tokens = _encode(images, dataset.captions, vocabulary)
            header = {"vocabulary": vocabulary.fingerprint}
            files[_tokens_file(folder, split)] = tensor_bytes(vars(tokens), header)
        files[folder / "vocabulary.json"] = json_bytes(vocabulary.to_json(), indent=None)
        description = {
            "version": VERSION,
            "layout": dataset.layout,
            "image_folder": _relative(dataset.image_folder, folder),
            "split_origin": dataset.split_origin,
            "summary": dataset.summary,
            "splits": {split: len(images) for split, images in dataset.splits.items()},
            "tokenizer": vocabulary.tokenizer,
            "vocabulary": vocabulary.fingerprint,
            "max_words": max_words,
            "parameters": parameters,
        }
        files[folder / "prepared.json"] = json_bytes(description)
        stale = [name(folder, split) for split in old for name in (_captions_file, _tokens_file)]
        replace_together(files, stale)


def write_embeddings(folder: str | os.PathLike, embedding, source: str) -> None:
    """Write a `captioning.embeddings.EmbeddingMatrix`; `source` says where the vectors came from.

    Raises:
        InputError: the folder cannot be written, or another run is writing it.
    """
    folder = Path(folder).expanduser()
    matrix = io.BytesIO()
    np.save(matrix, embedding.matrix)
    description = {
        "version": VERSION,
        "source": source,
        "dimension": embedding.matrix.shape[1],
        "coverage": embedding.coverage(),
        "vocabulary": embedding.vocabulary.fingerprint,
    }
    files = {"embeddings.npy": matrix.getvalue(), "embeddings.json": json_bytes(description)}
    with locked(folder):
        replace_together({folder / name: data for name, data in files.items()})


class Prepared:
    """A prepared folder, open for reading; each part is loaded and checked on first use.

    Attributes:
        folder: where it is.
        layout: the layout of the data set it was made from.
        image_folder: where the images were; training from cached features does not need them.
        split_origin: where the splits came from.
        summary: what was odd about the data set, in words -> how often.
        splits: the name of each split -> its number of images.
        max_words: the longest caption to train on and to decode.
        tokenizer: a key of `captioning.vocabulary.TOKENIZERS`.
        parameters: the settings of the run that prepared the captions.
    """

    def __init__(self, folder: str | os.PathLike):
        """Open `folder`.

        Raises:
            InputError: it is missing, unfinished, or not a prepared folder.
        """
        self.folder = Path(folder).expanduser()
        path = self.folder / "prepared.json"
        description = read_json(path, f"{MADE_BY} (another folder: --data)")
        if description.get("version") != VERSION:
            raise InputError(f"{path}: not a description of version {VERSION}; {REMEDY}")
        try:
            self.layout: str = description["layout"]
            self.image_folder = (self.folder.resolve() / description["image_folder"]).resolve()
            self.split_origin: str = description["split_origin"]
            self.summary: dict[str, int] = dict(description["summary"])
            self.splits: dict[str, int] = dict(description["splits"])
            self.max_words = int(description["max_words"])
            self.tokenizer: str = description["tokenizer"]
            self.parameters: dict = dict(description["parameters"])
            self._fingerprint: str = description["vocabulary"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({reason(error)}); {REMEDY}") from None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that gives the ids their meaning."""
        path = self.folder / "vocabulary.json"
        vocabulary = Vocabulary.load(path)
        self._check_fingerprint(path, vocabulary.fingerprint)
        return vocabulary

    def embeddings(self) -> np.ndarray:
        """The embedding matrix: float32 (len(vocabulary), dimension)."""
        path = self.folder / "embeddings.npy"
        settings = path.with_suffix(".json")
        self._check_fingerprint(settings, read_json(settings, MADE_BY).get("vocabulary"))
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({reason(error)}); {REMEDY}") from None
        if matrix.ndim != 2 or len(matrix) != len(self.vocabulary) or not np.isfinite(matrix).all():
            raise InputError(
                f"{path}: shape {matrix.shape}, expected one finite vector for each of the "
                f"{len(self.vocabulary)} words; {REMEDY}"
            )
        return matrix

    def images(self, split: str) -> list[str]:
        """The image names of `split`, in the order that features and tokens share."""
        return [image for image, _ in self._records(split)]

    def references(self, split: str) -> list[list[str]]:
        """The captions of each image of `split` as they were written, aligned with `images`."""
        return [captions for _, captions in self._records(split)]

    def tokens(self, split: str) -> CaptionTokens:
        """The captions of `split` as word ids."""
        self._check_split(split)
        path = _tokens_file(self.folder, split)
        header, tensors = read_tensors(path, MADE_BY)
        self._check_fingerprint(path, header.get("vocabulary"))
        return CaptionTokens(**tensors)

    def _records(self, split: str) -> Iterator[tuple[str, list[str]]]:
        """Yield the name and the raw captions of each image of `split`."""
        self._check_split(split)
        path = _captions_file(self.folder, split)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            records = [json.loads(line) for line in lines]
            yield from [(record["image"], record["captions"]) for record in records]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({reason(error)}); {REMEDY}") from None
        if len(lines) != self.splits[split]:
            raise InputError(
                f"{path}: {len(lines)} images, expected {self.splits[split]}; {REMEDY}"
            )

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise InputError(f"{self.folder}: no split {split!r}; it has {', '.join(self.splits)}")

    def _check_fingerprint(self, path: Path, fingerprint: object) -> None:
        if fingerprint != self._fingerprint:
            raise InputError(
                f"{path}: made with another vocabulary than {self.folder / 'prepared.json'}; "
                f"{REMEDY}"
            )


def _captions_file(folder: Path, split: str) -> Path:
    return folder / "captions" / f"{split}.jsonl"


def _tokens_file(folder: Path, split: str) -> Path:
    return folder / "tokens" / f"{split}.safetensors"


def _raw_captions(images: list[str], captions: dict[str, list[str]]) -> bytes:
    """One image with its captions per line."""
    records = ({"image": image, "captions": captions[image]} for image in images)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return text.encode(errors="backslashreplace")  # half a surrogate pair becomes a JSON escape


def _encode(images: list[str], captions: dict, vocabulary: Vocabulary) -> CaptionTokens:
    """The captions of `images` as ids, in that order."""
    tokenize = TOKENIZERS[vocabulary.tokenizer]
    ids, offsets, owners = array("i"), array("q", [0]), array("i")  # compact while they grow
    for index, image in enumerate(tqdm(images, desc="word ids", unit=" images")):
        for caption in captions[image]:
            if tokens := tokenize(caption):
                ids.extend(vocabulary.encode(tokens))
                offsets.append(len(ids))
                owners.append(index)
    return CaptionTokens(
        np.array(ids, dtype=np.int32),
        np.array(offsets, dtype=np.int64),
        np.array(owners, dtype=np.int32),
    )


def _relative(image_folder: Path, folder: Path) -> str:
    """The image folder relative to `folder`, so that both may move together."""
    return Path(os.path.relpath(image_folder.resolve(), folder.resolve())).as_posix()
