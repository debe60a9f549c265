"""The right name for what is in the picture, by the ImageNet classifier of the bundled CNN.

A captioner knows the things of its training captions: with Flickr8k's, every animal is "a dog".
The classifier knows a thousand things. Where it is sure of one that the caption lacks, the caption
is searched for again with this word required, and without the words for other things that it would
contradict. A word that the vocabulary lacks takes the place of one of its kind.

`data/encoders/imagenet_words.csv` has a plain word for each class, `kinds.csv` the words of each
kind that captions use, as singular/plural. Classes of other kinds are never named.
"""

import csv
import functools
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from captioning.captions import LIGHT, Caption, PhotoCaptioner
from captioning.config import BEAM_WIDTH
from captioning.encoders import BUNDLED, BUNDLED_FILE
from captioning.errors import InputError
from captioning.extras.serve.searches import Constraints, constrained
from captioning.files import read_tensors, shipped
from captioning.vocabulary import START

# chosen on the dev split and half of the photographs of docs/names.md
SURE = {"creature": 0.3}  # group -> probability from which a thing is named
LIKELY = {"creature": 0.25}  # group -> least confidence of the caption, relative to that before
SURE_OF_OTHERS, LIKELY_OF_OTHERS = 0.5, 0.5  # of all other groups
STRANGE = 0.9  # `familiarity` below which the name of a thing is all that is said
OFTEN = 0.01  # of the training captions: the captioner itself knows a word that is in so many
FAMILIAR = shipped("data/pretrained/familiar.safetensors")
SHIPPED = (LIGHT, LIGHT.with_suffix(".safetensors"))  # the captioners that have it
ENGLISH = {"a", "is", "the"}
SHOWN = 0.1  # probability from which things are in the JSON


class Thing(NamedTuple):
    """What the classifier recognises."""

    word: str
    plural: str
    kind: str
    probability: float


class Kind(NamedTuple):
    """Things that a caption calls by the same words."""

    group: str  # of kinds that are alike
    words: dict[str, str]  # singular -> plural


@functools.cache
def classifier() -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Kernel (C, 1000), bias (1000,), and for each class its word, plural and kind."""
    with safe_open(BUNDLED_FILE, framework="numpy") as file:
        weights = [file.get_tensor(f"classifier/{name}") for name in ("kernel", "bias")]
    kernel, bias = (array.astype(np.float32) for array in weights)
    return kernel, bias, _read_table("imagenet_words.csv")


@functools.cache
def training_images() -> tuple[dict, np.ndarray]:
    """Header and centroids (256, C) of what data/pretrained/pack.py writes."""
    header, tensors = read_tensors(FAMILIAR, "data/pretrained/pack.py")
    centroids = tensors["centroids"].astype(np.float32)
    return header, centroids / np.linalg.norm(centroids, axis=1, keepdims=True)


@functools.cache
def kinds() -> dict[str, Kind]:
    """The kinds by name."""
    rows = _read_table("kinds.csv")
    pairs = {row["kind"]: [pair.split("/") for pair in row["words"].split()] for row in rows}
    return {row["kind"]: Kind(row["group"], dict(pairs[row["kind"]])) for row in rows}


def _read_table(name: str) -> list[dict]:
    with shipped(f"data/encoders/{name}").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def recognise(feature: np.ndarray) -> list[Thing]:
    """The things in a picture, by its features (P, C) or (C,); the most probable first."""
    kernel, bias, classes = classifier()
    logits = feature.reshape(-1, len(kernel)).mean(0, np.float32) @ kernel + bias
    exponentials, sums = np.exp(logits - logits.max()), defaultdict(float)
    for row, part in zip(classes, (exponentials / exponentials.sum()).tolist(), strict=True):
        sums[row["word"], row["plural"], row["kind"]] += part
    return [Thing(*key, sums[key]) for key in sorted(sums, key=sums.get, reverse=True)]


def familiarity(feature: np.ndarray) -> float:
    """How like Flickr8k's training images a picture is, by its features (P, C) or (C,).

    The cosine similarity to the nearest centroid; 1 is what 99 % of the dev images have at least.
    """
    header, centroids = training_images()
    pooled = feature.reshape(-1, centroids.shape[1]).mean(0, np.float32)
    return float((centroids @ pooled).max() / np.linalg.norm(pooled) / header["similarity"])


class Namer:
    """`caption_features` of a captioner, with the right names if the bundled CNN is its encoder."""

    def __init__(self, captioner: PhotoCaptioner):
        self._captioner, self._find, self.named = captioner, captioner.caption_features, 0
        vocabulary, encoder = captioner.vocabulary.words, captioner.encoder_name
        self._is_usable = encoder == BUNDLED and ENGLISH.issubset(vocabulary)
        self._is_shipped = captioner.source in map(str, SHIPPED)

    def __call__(self, features: np.ndarray, *search, **options) -> list[Caption]:
        """As `PhotoCaptioner.caption_features`; `named` counts the names that were given."""
        captions = self._find(features, *search, **options)
        for i, feature in enumerate(features if self._is_usable else ()):
            likeness = familiarity(feature) if self._is_shipped else 1.0
            captions[i] = name(self._captioner, feature, captions[i], likeness)
        self.named += sum(bool(caption.name) for caption in captions)
        return captions


def name(captioner: PhotoCaptioner, feature: np.ndarray, caption: Caption, likeness) -> Caption:
    """The caption of an encoded image, or another with the name of what is surely in it."""
    things = recognise(feature)
    seen = {t.word: round(t.probability, 4) for t in things if t.probability >= SHOWN}
    caption, thing = replace(caption, recognised=seen, is_guess=likeness < 1), things[0]
    group = kinds()[thing.kind].group if thing.kind in kinds() else ""
    is_said = not {thing.word, thing.plural, *thing.word.split()}.isdisjoint(caption.words)
    vocabulary = captioner.vocabulary
    count = dict(zip(vocabulary.words, vocabulary.counts, strict=True)).get(thing.word, 0)
    is_often_seen = count > OFTEN * vocabulary.counts[START]  # times, of so many captions
    if is_said or is_often_seen or thing.probability < SURE.get(group, SURE_OF_OTHERS):
        return caption
    found = None
    if group == "creature" or (group and likeness >= STRANGE):
        found = rephrase(captioner, feature, caption, thing)
    elif likeness < STRANGE:
        article = "" if thing.word == thing.plural else f"{_article(thing.word)} "
        words = tuple(f"{article}{thing.word}".split())
        found = Caption(" ".join(words), words, (thing.probability,) * (len(words) + 1))
    if not found:
        return caption
    others = caption.alternatives
    return replace(found, alternatives=others, name=thing.word, recognised=seen, is_guess=False)


def rephrase(captioner, feature: np.ndarray, caption: Caption, thing: Thing) -> Caption | None:
    """A caption with a thing that `caption` lacks, if it is not too improbable."""
    kind, vocabulary, said = kinds()[thing.kind], captioner.vocabulary, set(caption.words)
    is_creature, is_known = kind.group == "creature", thing.word in vocabulary
    people = _forms("people") if is_creature else {}  # the captioner's guess; ImageNet has none
    rivals = _forms(kind.group, "creature")
    kin = rivals if is_creature else kind.words
    if not is_known and said & _both(kin) and not said & _both(people):
        return _put(thing, caption)
    own = {thing.word: thing.plural} if is_known else kind.words
    is_plural = not said.isdisjoint(set(rivals.values()) - rivals.keys())
    required, others = (
        frozenset(vocabulary.encode(filter(vocabulary.__contains__, words))[1:-1])
        for words in (own.values() if is_plural else own, _both(rivals) | _both(people))
    )
    limits = Constraints.of(captioner.config, BEAM_WIDTH)
    limits = limits._replace(required=frozenset({required}), forbidden=others - required)
    try:
        (found,) = constrained(captioner, limits, feature[None], BEAM_WIDTH)
    except InputError:  # no caption has the word
        return None
    if found.confidence < LIKELY.get(kind.group, LIKELY_OF_OTHERS) * caption.confidence:
        return None
    return found if is_known else _put(thing, found)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("uni") else "a"


def _forms(*groups: str) -> dict[str, str]:
    """Singulars and plurals of the words of groups."""
    found = {}
    for kind in kinds().values():
        found |= kind.words if kind.group in groups else {}
    return found


def _both(forms: dict[str, str]) -> set[str]:
    return {*forms, *forms.values()}


def _put(thing: Thing, caption: Caption) -> Caption:
    """Put a thing in the place of the words for things of its group, after the right article."""
    forms, words, probabilities = _forms(kinds()[thing.kind].group), [], []
    replaced = dict.fromkeys(forms.values(), thing.plural) | dict.fromkeys(forms, thing.word)
    for word, probability in zip(caption.words, caption.probabilities, strict=False):
        new = replaced.get(word, word).split()
        if word in replaced and words[-1:] in (["a"], ["an"]):
            words[-1] = _article(new[0])
        words += new
        probabilities += [probability] * len(new)
    return Caption(" ".join(words), tuple(words), (*probabilities, caption.probabilities[-1]))
