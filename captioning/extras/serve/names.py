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
from collections import defaultdict, namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import safe_open

from captioning.captions import LIGHT, Caption, PhotoCaptioner
from captioning.config import BEAM_WIDTH
from captioning.encoders import BUNDLED, BUNDLED_FILE
from captioning.errors import InputError
from captioning.extras.serve.searches import Constraints, constrained, known_ids
from captioning.files import read_tensors, shipped
from captioning.vocabulary import START

# chosen on the dev split and half of the photographs of docs/names.md
SURE = {"creature": 0.2}  # group -> probability from which a thing is named
LIKELY = {"creature": 0.25}  # group -> least confidence of the caption, relative to that before
SURE_OF_OTHERS, LIKELY_OF_OTHERS = 0.5, 0.5  # of all other groups
STRANGE = 0.9  # `familiarity` below which the name of a thing is all that is said
OFTEN = 0.01  # of the training captions: the captioner itself knows a word that is in so many
FAMILIAR = shipped("data/pretrained/familiar.safetensors")
SHIPPED = (LIGHT, LIGHT.with_suffix(".safetensors"))  # the captioners that have it
ENGLISH = {"a", "is", "the"}
SHOWN = 0.1  # probability from which things are in the JSON

Thing = namedtuple("Thing", "word plural kind probability")  # what the classifier recognises
Form = namedtuple("Form", "word is_plural kind group")  # a word for things; groups: kinds alike


@functools.cache
def classifier() -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Kernel (C, 1000) and bias (1000,), float16, and for each class its word, plural and kind."""
    with safe_open(BUNDLED_FILE, framework="numpy") as file:
        weights = [file.get_tensor(f"classifier/{name}") for name in ("kernel", "bias")]
    return *weights, _read_table("imagenet_words.csv")


@functools.cache
def training_images() -> np.ndarray:
    """Centroids (256, C), of such length that their products with a direction are `familiarity`."""
    header, tensors = read_tensors(FAMILIAR, "data/pretrained/pack.py")
    centroids = tensors["centroids"].astype(np.float32)
    return centroids / np.linalg.norm(centroids, axis=1, keepdims=True) / header["similarity"]


@functools.cache
def forms() -> list[Form]:
    """The words of all kinds, singulars last: of `fish`, which is both, that counts."""
    pairs = [(p.split("/"), r) for r in _read_table("kinds.csv") for p in r["words"].split()]
    return [Form(p[i], i == 1, row["kind"], row["group"]) for i in (1, 0) for p, row in pairs]


def _read_table(name: str) -> list[dict]:
    with shipped(f"data/encoders/{name}").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def recognise(feature: np.ndarray) -> list[Thing]:
    """The things in a picture, by its features (P, C) or (C,); the most probable first."""
    kernel, bias, classes = classifier()
    pooled = feature.reshape(-1, len(kernel)).mean(0, np.float32)
    parts = np.array_split(kernel, 8, axis=1)  # a copy in float32 takes 5 MB
    logits = np.concatenate([pooled @ part.astype(np.float32) for part in parts]) + bias
    exponentials, sums = np.exp(logits - logits.max()), defaultdict(float)
    for row, part in zip(classes, (exponentials / exponentials.sum()).tolist(), strict=True):
        sums[row["word"], row["plural"], row["kind"]] += part
    return [Thing(*key, sums[key]) for key in sorted(sums, key=sums.get, reverse=True)]


def familiarity(feature: np.ndarray) -> float:
    """How like Flickr8k's training images a picture is, by its features (P, C) or (C,).

    The cosine similarity to the nearest centroid; 1 is what 99 % of the dev images have at least.
    """
    pooled = feature.reshape(-1, feature.shape[-1]).mean(0, np.float32)
    return float((training_images() @ pooled).max() / np.linalg.norm(pooled))


def find_and_name(captioner, find, features: np.ndarray, *search, **options) -> list[Caption]:
    """What `find`, its own `caption_features`, finds, with names if the bundled CNN encodes."""
    captions = find(features, *search, **options)
    if captioner.encoder_name != BUNDLED or not ENGLISH.issubset(captioner.vocabulary.words):
        return captions
    captions = [name(captioner, *pair) for pair in zip(features, captions, strict=True)]
    captioner.named += sum(bool(caption.naming["name"]) for caption in captions)
    return captions


def name(captioner: PhotoCaptioner, feature: np.ndarray, caption: Caption) -> Caption:
    """The caption of an encoded image, or another with the name of what is surely in it."""
    likeness = familiarity(feature) if Path(captioner.source).resolve() in SHIPPED else 1.0
    thing, *_ = things = recognise(feature)
    seen = {t.word: round(t.probability, 4) for t in things if t.probability >= SHOWN}
    caption = replace(caption, naming={"name": "", "recognised": seen, "guess": likeness < 1})
    group = next((form.group for form in forms() if form.kind == thing.kind), "")
    is_said = not {thing.word, thing.plural, *thing.word.split()}.isdisjoint(caption.words)
    ids, counts = known_ids(captioner.vocabulary, [thing.word]), captioner.vocabulary.counts
    is_often_seen = any(counts[word] > OFTEN * counts[START] for word in ids)  # of the captions
    if is_said or is_often_seen or thing.probability < SURE.get(group, SURE_OF_OTHERS):
        return caption
    found = None
    if group == "creature" or (group and likeness >= STRANGE):
        found = rephrase(captioner, feature, caption, thing, group)
    elif likeness < STRANGE:
        article = "" if thing.word == thing.plural else f"{_article(thing.word)} "
        words = tuple(f"{article}{thing.word}".split())
        found = Caption(" ".join(words), words, (thing.probability,) * (len(words) + 1))
    if not found:
        return caption
    naming = {"name": thing.word, "recognised": seen, "guess": False}
    return replace(found, alternatives=caption.alternatives, naming=naming)


def rephrase(captioner, feature, caption: Caption, thing: Thing, group: str) -> Caption | None:
    """A caption with a thing of a group that `caption` lacks, if it is not too improbable."""
    is_creature, is_known = group == "creature", thing.word in captioner.vocabulary
    said, alike = set(caption.words), _words("group", group)
    people = _words("group", "people") if is_creature else {}  # a guess; ImageNet has none
    kin = alike if is_creature else _words("kind", thing.kind)
    if not is_known and said & kin.keys() and not said & people.keys():
        return _put(thing, alike, caption)
    rivals = _words("group", group, "creature")
    is_plural = any(map(rivals.get, said))
    own = {thing.plural if is_plural else thing.word}
    if not is_known:
        own = {f.word for f in forms() if (f.kind, f.is_plural) == (thing.kind, is_plural)}
    required = known_ids(captioner.vocabulary, own)
    others = known_ids(captioner.vocabulary, rivals | people)
    limits = Constraints.of(captioner.config, BEAM_WIDTH)
    limits = limits._replace(required=frozenset({required}), forbidden=others - required)
    try:
        (found,) = constrained(captioner, limits, feature[None], BEAM_WIDTH)
    except InputError:  # no caption has the word
        return None
    if found.confidence < LIKELY.get(group, LIKELY_OF_OTHERS) * caption.confidence:
        return None
    return found if is_known else _put(thing, alike, found)


def _words(key: str, *values: str) -> dict[str, bool]:
    """The words of groups, or of kinds -> whether they are plurals."""
    return {form.word: form.is_plural for form in forms() if getattr(form, key) in values}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("uni") else "a"


def _put(thing: Thing, alike: dict[str, bool], caption: Caption) -> Caption:
    """Put a thing in the place of the words for things of its group, after the right article."""
    words, probabilities = [], []
    for word, probability in zip(caption.words, caption.probabilities, strict=False):
        new = [word]
        if word in alike:
            new = (thing.plural if alike[word] else thing.word).split()
            if words[-1:] in (["a"], ["an"]):
                words[-1] = _article(new[0])
        words += new
        probabilities += [probability] * len(new)
    return Caption(" ".join(words), tuple(words), (*probabilities, caption.probabilities[-1]))
