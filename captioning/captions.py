"""Photographs to captions, whatever computes them: what every captioner shares."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from captioning.config import BEAM_WIDTH, LENGTH_PENALTY, MAX_LENGTH_PENALTY
from captioning.errors import InputError, log
from captioning.files import shipped
from captioning.images import Photograph, load_image
from captioning.vocabulary import END, TOKENIZERS, Vocabulary

LIGHT = shipped("data/pretrained/captioner.tflite")
OPENED_AT_ONCE = 32  # photographs


@dataclass(frozen=True)
class Caption:
    """A caption, and how sure the model was."""

    text: str  # in lower case
    words: tuple[str, ...]
    probabilities: tuple[float, ...]  # of each word given those before it, and of the end
    alternatives: tuple["Caption", ...] = ()  # further captions of the same image, by rank
    naming: dict | None = None  # of `captioning.extras.serve.names`, JSON-ready

    @classmethod
    def from_search(cls, vocabulary: Vocabulary, found: Iterable[tuple]) -> "Caption":
        """The first of one image's captions, each a pair: ids up to END, log-probabilities."""
        captions = []
        for ids, logs in found:
            if END in (ids := [int(word) for word in ids]):
                words = vocabulary.words_of(ids)
                probabilities = np.exp(logs[: ids.index(END) + 1]).tolist()
                captions.append(cls(vocabulary.decode(ids), tuple(words), tuple(probabilities)))
        return replace(captions[0], alternatives=tuple(captions[1:]))

    @property
    def log_probability(self) -> float:
        """Natural logarithm of the probability of the whole caption, its end included."""
        return sum(math.log(max(p, 1e-300)) for p in self.probabilities)

    @property
    def confidence(self) -> float:
        """The geometric mean of the probabilities."""
        return math.exp(self.log_probability / len(self.probabilities))

    def to_json(self) -> dict:
        """The caption, its probabilities and its alternatives, as a JSON object."""
        found = {"caption": self.text, "log_probability": self.log_probability}
        found |= {"confidence": self.confidence, **(self.naming or {})}
        if self.alternatives:
            found["alternatives"] = [caption.to_json() for caption in self.alternatives]
        return found

    def line(self, path: Path, as_json: bool, model: str) -> str:
        """The caption of a file, as one line of JSON, or of text for each alternative."""
        if as_json:
            line = {"image": str(path), **self.to_json(), "model": model}
            return json.dumps(line, ensure_ascii=False)
        name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
        return "\n".join(f"{name}: {caption.text}" for caption in (self, *self.alternatives))


class PhotoCaptioner:
    """Captions photographs with an encoder and a search, which its subclasses have."""

    source: str = ""  # the file that it was loaded from
    vocabulary: Vocabulary
    config: object  # hyper-parameters of the model, see `captioning.config.Config`
    encoder_name: str
    image_size: int  # height and width that the encoder takes, pixels
    grid_shape: Sequence[int]  # rows, columns, channels of its features
    has_attention: bool  # whether it can say where it looked

    def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Run the CNN on pictures from `load_image` -> float32 (images, *feature_shape)."""

    def caption_features(
        self, features, beam_width=BEAM_WIDTH, length_penalty=LENGTH_PENALTY, n_best=1, consensus=0
    ) -> list[Caption]:
        """Caption encoded images, float16 or float32 (images, *feature_shape): one each.

        It has `n_best` - 1 alternatives. Beam search keeps `beam_width` unfinished captions, at
        least `n_best`; 1 is greedy decoding. For the length penalty see `beam_search`. With
        `consensus` those of the beam are chosen that agree best with so many other captions.
        """
        if min(beam_width, n_best) < 1 or not 0 <= length_penalty <= MAX_LENGTH_PENALTY:
            given = f"{beam_width = }, {n_best = }, {length_penalty = }"
            raise InputError(f"{given}: expected 1 or more, penalty 0 to {MAX_LENGTH_PENALTY:g}")
        width = max(beam_width, n_best)
        if not consensus:
            return self.search(features, width, length_penalty, n_best)
        if beam_width == 1:
            raise InputError("a consensus chooses among the beam's captions: use --beam-width 5")
        from captioning.extras.serve.consensus import agreed

        beam = self.search(features, width, length_penalty, width)
        return [agreed(self, *pair, consensus, n_best) for pair in zip(features, beam, strict=True)]

    def search(self, features, beam_width: int, length_penalty: float, n_best: int):
        """As `caption_features`, of the search alone; `n_best` is at most `beam_width`."""

    def look(self, feature: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Where the model looks before each word: ids (1, T) from START on -> weights (T, P)."""

    def attention(self, features: np.ndarray, captions: Sequence[str]) -> list[np.ndarray]:
        """Where the model looked for each word: per image (words, rows, columns), maps sum to 1."""
        maps = []
        for feature, caption in zip(features.astype(np.float32), captions, strict=True):
            words = TOKENIZERS[self.vocabulary.tokenizer](caption)
            ids = np.array([self.vocabulary.encode(words)[:-1]], np.int32)  # without END
            # the prediction after all words but the last chose the last
            maps.append(self.look(feature, ids)[: len(words)].reshape(-1, *self.grid_shape[:2]))
        return maps

    def with_names(self):
        """Let `caption_features` give the right names, `named` of them; returns the captioner."""
        from captioning.extras.serve.names import find_and_name

        self.named, self.caption_features = 0, partial(find_and_name, self, self.caption_features)
        return self

    def caption(
        self, images: Photograph | Iterable[Photograph], n_best: int | None = None, **search
    ) -> str | list[str] | list[list[str]]:
        """Caption one photograph (-> text) or several (-> list), or raise InputError.

        `search` are options of `caption_features`. With `n_best` each text is a list of up to so
        many, the best first.
        """
        if isinstance(images, Photograph):
            return self.caption([images], n_best, **search)[0]
        found = self.describe(images, n_best=1 if n_best is None else n_best, **search)
        if n_best is None:
            return [caption.text for caption in found]
        return [[c.text for c in (caption, *caption.alternatives)] for caption in found]

    def describe(self, images: Photograph | Iterable[Photograph], **search):
        """As `caption`, but Caption objects, with alternatives if `n_best` > 1."""
        if isinstance(images, Photograph):
            return self.describe([images], **search)[0]
        captions = []
        for _, found in self.caption_each(images, **search):
            if isinstance(found, InputError):
                raise found
            captions.append(found)
        return captions

    def caption_each(self, images: Iterable[Photograph], **search) -> Iterator[tuple]:
        """Yield pairs of a photograph and its Caption, or the InputError if it cannot be read."""
        with ThreadPoolExecutor() as pool:
            for batch in batched(images, OPENED_AT_ONCE):
                reads = [pool.submit(load_image, image, self.image_size) for image in batch]
                pixels = [r.result() for r in reads if not isinstance(r.exception(), InputError)]
                rest = iter(self.caption_features(self.encode(pixels), **search) if pixels else [])
                for image, read in zip(batch, reads, strict=True):
                    yield image, read.exception() or next(rest)

    def print_captions(
        self, paths: Iterable[Path], as_json: bool, **search
    ) -> Iterator[tuple[Path, Caption]]:
        """As `caption_each`: print each caption, or the error to stderr; yield what has one."""
        for path, found in self.caption_each(paths, **search):
            if isinstance(found, InputError):
                log(f"error: {found}")
                continue
            if not found.text:
                log(f"{path}: the caption is empty; train the model for longer")
            print(found.line(path, as_json, self.source), flush=True)
            yield path, found


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Cut `items` into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
