"""The prepared folder: what the notebooks hand to train.py and test.py.

    prepared/
      prepared.json           what was prepared and how; written last, so it means "complete"
      captions/<split>.jsonl  an image a line: {"image": "x.jpg", "captions": ["as written", ...]}
      tokens/<split>.npz      the captions as word ids, see CaptionTokens
      vocabulary.json         see captioning.vocabulary
      embeddings.npy          float32 (words, dimension)
      embeddings.json         where the vectors came from; written after them
      features/<encoder>/     see captioning.features

Ids mean nothing without their vocabulary: its fingerprint stands beside everything made with it
and is compared on reading, so that pieces of two runs are never mixed.
"""

import contextlib
import io
import json
import os
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioning.dataset import CaptionDataset, leads_outside
from captioning.embeddings import EmbeddingMatrix
from captioning.files import (
    InputError,
    exclusive,
    json_bytes,
    read_json,
    refuse_bomb,
    require_file,
    write_together,
)
from captioning.vocabulary import END, START, TOKENIZERS, Vocabulary

VERSION = 1
MAX_TOKEN_BYTES = 2_000_000_000  # a million captions have 60 MB
MADE_BY = "caption_extraction.ipynb"
REMEDY = f"run {MADE_BY} again"

_KEYS = {
    "layout": str,
    "image_folder": str,
    "split_origin": str,
    "summary": dict,
    "splits": dict,
    "vocabulary": str,
    "parameters": dict,
}


@dataclass(frozen=True)
class CaptionTokens:
    """The captions of one split as word ids, end to end; captions without any word are left out.

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


def write_captions(
    folder: str | os.PathLike, dataset: CaptionDataset, vocabulary: Vocabulary, parameters: dict
) -> None:
    """Write all that the captions give: raw captions, tokens, vocabulary, `prepared.json`.

    If it is killed or the disk is full, the folder is as it was or counts as unfinished.

    Args:
        folder: the prepared folder, made if need be; captions of an earlier run are replaced.
        dataset: the captions and their splits.
        vocabulary: gives the ids; its tokeniser cuts the captions.
        parameters: the settings of the run, kept for the reader.

    Raises:
        InputError: the folder cannot be written, or another run is writing it.
    """
    if not os.fspath(folder):
        raise InputError("the prepared folder has no name; give one, such as prepared")
    with exclusive(folder):
        _write_captions(Path(folder), dataset, vocabulary, parameters)


def _write_captions(
    folder: Path, dataset: CaptionDataset, vocabulary: Vocabulary, parameters: dict
) -> None:
    stale = [*folder.glob("captions/*.jsonl"), *folder.glob("tokens/*.npz")]
    files = {}
    for split, images in dataset.splits.items():
        files[_captions_file(folder, split)] = _raw_captions(images, dataset.captions)
        tokens = _encode(images, dataset.captions, vocabulary)
        files[_tokens_file(folder, split)] = _npz(tokens, vocabulary)
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
        "parameters": parameters,
    }
    files[folder / "prepared.json"] = json_bytes(description)
    write_together(files, stale)


def write_embeddings(folder: str | os.PathLike, embedding: EmbeddingMatrix, source: str) -> None:
    """Write the embedding matrix; `source` tells where the vectors came from.

    Raises:
        InputError: the folder cannot be written, or another run is writing it.
    """
    folder = Path(folder)
    with exclusive(folder):
        array = io.BytesIO()
        np.save(array, embedding.matrix)
        description = {
            "version": VERSION,
            "source": source,
            "dimension": embedding.matrix.shape[1],
            "coverage": embedding.coverage(),
            "vocabulary": embedding.vocabulary.fingerprint,
        }
        write_together(
            {
                folder / "embeddings.npy": array.getvalue(),
                folder / "embeddings.json": json_bytes(description),
            }
        )


class Prepared:
    """A prepared folder, open for reading; pieces are loaded, and checked, when asked for.

    Attributes:
        folder: where it is.
        layout: the layout of the data set it was made from.
        image_folder: where the images were; they are not needed to train from cached features.
        split_origin: where the splits came from.
        summary: what was odd about the data set, in words -> how often.
        splits: the name of each split -> how many images it has.
        parameters: the settings of the run that prepared the captions.
    """

    def __init__(self, folder: str | os.PathLike):
        """Open `folder`.

        Raises:
            InputError: it is missing, unfinished, or no prepared folder.
        """
        self.folder = Path(folder)
        path = self.folder / "prepared.json"
        if not path.exists():
            raise InputError(
                f"{path}: no such file; it is written by {MADE_BY}; if that wrote to another "
                "folder, name it with --data"
            )
        description = read_json(path, MADE_BY)
        if not isinstance(description, dict) or description.get("version") != VERSION:
            raise InputError(f"{path}: not a description of version {VERSION}; {REMEDY}")
        for key, kind in _KEYS.items():
            if not isinstance(description.get(key), kind):
                raise InputError(f"{path}: {key!r} is missing or damaged; {REMEDY}")
        if not all(type(count) is int for count in description["splits"].values()):
            raise InputError(f"{path}: 'splits' must give a number of images each; {REMEDY}")
        self.layout: str = description["layout"]
        self.image_folder = (self.folder.resolve() / description["image_folder"]).resolve()
        self.split_origin: str = description["split_origin"]
        self.summary: dict[str, int] = description["summary"]
        self.splits: dict[str, int] = description["splits"]
        self.parameters: dict = description["parameters"]
        self._fingerprint: str = description["vocabulary"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that gives the token ids their meaning."""
        path = self.folder / "vocabulary.json"
        vocabulary = Vocabulary.load(path)
        self._check_fingerprint(path, vocabulary.fingerprint)
        return vocabulary

    def embeddings(self) -> np.ndarray:
        """The embedding matrix: float32 (len(vocabulary), dimension)."""
        path = self.folder / "embeddings.npy"
        settings_path = path.with_suffix(".json")
        settings = read_json(settings_path, MADE_BY)
        if not isinstance(settings, dict):
            raise InputError(f"{settings_path}: damaged; {REMEDY}")
        self._check_fingerprint(settings_path, settings.get("vocabulary"))
        with _damage_reported(path), path.open("rb") as file:
            matrix = np.load(file, allow_pickle=False)
        if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != len(self.vocabulary):
            raise InputError(
                f"{path}: {matrix.dtype} {matrix.shape}, expected float32 with a row for each of "
                f"the {len(self.vocabulary)} words; {REMEDY}"
            )
        if not np.isfinite(matrix).all():
            raise InputError(f"{path}: holds NaN or infinity; {REMEDY}")
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
        with (
            _damage_reported(path),
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            refuse_bomb(archive.zip, MAX_TOKEN_BYTES)
            tokens = CaptionTokens(archive["ids"], archive["offsets"], archive["images"])
            fingerprint = str(archive["vocabulary"])
        self._check_fingerprint(path, fingerprint)
        if not _consistent(tokens, words=len(self.vocabulary), images=self.splits[split]):
            raise InputError(f"{path}: damaged, its arrays do not fit together; {REMEDY}")
        return tokens

    def _records(self, split: str) -> Iterator[tuple[str, list[str]]]:
        """Yield the name and the raw captions of each image of `split`."""
        self._check_split(split)
        path = _captions_file(self.folder, split)
        number = 0
        with _damage_reported(path), path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _parse_record(line, f"{path}, line {number}")
        if number != self.splits[split]:
            raise InputError(f"{path}: {number} images, expected {self.splits[split]}; {REMEDY}")

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
    return folder / "tokens" / f"{split}.npz"


def _raw_captions(images: list[str], captions: dict[str, list[str]]) -> bytes:
    """Give an image and its captions a line."""
    records = ({"image": image, "captions": captions[image]} for image in images)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # Half a surrogate pair, which UTF-8 lacks, becomes its JSON escape.
    return text.encode(errors="backslashreplace")


def _npz(tokens: CaptionTokens, vocabulary: Vocabulary) -> bytes:
    """Give the tokens, and the fingerprint of their vocabulary, as an archive of arrays."""
    archive = io.BytesIO()
    np.savez(
        archive,
        ids=tokens.ids,
        offsets=tokens.offsets,
        images=tokens.images,
        vocabulary=np.array(vocabulary.fingerprint),
    )
    return archive.getvalue()


def _parse_record(line: str, place: str) -> tuple[str, list[str]]:
    """Read one line that `_raw_captions` gave; `place` is named in errors."""
    try:
        record = json.loads(line)
        image, captions = record["image"], record["captions"]
    except (ValueError, KeyError, TypeError, RecursionError):
        image, captions = None, None
    if not isinstance(image, str) or not isinstance(captions, list):
        raise InputError(f"{place}: not an image with its captions; {REMEDY}")
    if leads_outside(image):
        raise InputError(f"{place}: {image!r} leads out of the image folder; {REMEDY}")
    if not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{place}: a caption is not text; {REMEDY}")
    return image, captions


def _encode(
    images: list[str], captions: dict[str, list[str]], vocabulary: Vocabulary
) -> CaptionTokens:
    """Turn the captions of `images` into ids, in that order."""
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


def _consistent(tokens: CaptionTokens, words: int, images: int) -> bool:
    """Whether every offset lies in `ids`, every id in the vocabulary, every image in the split."""
    ids, offsets, owners = tokens.ids, tokens.offsets, tokens.images
    if (ids.dtype, offsets.dtype, owners.dtype) != (np.int32, np.int64, np.int32):
        return False
    if {ids.ndim, offsets.ndim, owners.ndim} != {1} or len(offsets) != len(owners) + 1:
        return False
    return bool(
        offsets[0] == 0
        and offsets[-1] == len(ids)
        and (np.diff(offsets) > len((START, END))).all()
        and ((ids >= 0) & (ids < words)).all()
        and (ids[offsets[:-1]] == START).all()
        and (ids[offsets[1:] - 1] == END).all()
        and ((owners >= 0) & (owners < images)).all()
    )


def _relative(image_folder: Path, folder: Path) -> str:
    """The image folder as seen from `folder`, so that the two may move together."""
    try:
        return Path(os.path.relpath(image_folder.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return image_folder.resolve().as_posix()


@contextlib.contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file raises on reading into an InputError."""
    try:
        require_file(path)
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it is written by {MADE_BY}") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {REMEDY}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); {REMEDY}") from error
