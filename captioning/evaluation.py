"""Caption a split and score it, beside baselines that show what the figures are worth.

A model must beat one constant caption and the copied caption of the nearest training image; its
score must fall if its captions are moved to other images, or it does not look at them; and one
person's score against the others shows what a metric counts as good.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from captioning import metrics
from captioning.captioner import Captioner
from captioning.encoders import require_same_encoder
from captioning.errors import InputError, log
from captioning.features import MADE_BY, FeatureCache, cache_folder
from captioning.metrics import CiderD, scoring_tokens
from captioning.prepared import Prepared

PROTOCOL = (
    "raw references, lower-cased, without punctuation, no start, end or unknown tokens; corpus "
    "BLEU, closest reference length; CIDEr-D, rarity counted in the split's references; x 100"
)
SAME_PICTURE = 4  # bits of 64 by which the hashes of two copies of a picture differ at most
TYPICAL_CANDIDATES, TYPICAL_IMAGES = 200, 1000  # of the search for the constant caption
SIMILARITY_ROWS = 1024  # images compared with all training images at once


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A captioned and scored split; all scores x 100."""

    prepared: Prepared
    cache: FeatureCache
    split: str
    images: list[str]  # file names of the images that were scored
    captions: list[str]  # the model's, one per image
    references: list[list[str]]  # raw captions of each image
    scores: dict[str, float]
    statistics: np.ndarray  # see `captioning.metrics.statistics`
    rows: dict[str, dict[str, float]]  # baseline -> scores
    floor: str  # the constant caption
    diversity: dict[str, float]  # see captioning.metrics.diversity


def evaluate(captioner: Captioner, data: str, split: str, *search: float) -> Evaluation:
    """Caption a split of the prepared folder `data`; `search` is of `caption_features`.

    Images that the model was trained on are left out and reported, unless `split` is "train".
    InputError if the split or its features are missing, or of another encoder, or if nearly all
    images were trained on.
    """
    prepared, encoder = Prepared(data), captioner.checkpoint.encoder
    cache = FeatureCache.open(cache_folder(data, encoder["name"]))
    require_same_encoder(cache.folder, cache.encoder, encoder)
    all_references = dict(zip(prepared.images(split), prepared.references(split), strict=True))
    readable = set(cache.images) - cache.failed.keys()
    images = [image for image in all_references if image in readable]
    if not images:
        problem = f"{cache.folder}: has no image of the {split} split"
        raise InputError(f"{problem}; run {MADE_BY} again for this data")
    trained = captioner.checkpoint.facts.get("training pictures", [])
    images = _unseen(images, cache.pictures(images), trained, split)
    captions = captioner.caption_cached(cache, images, *search)
    references = [all_references[image] for image in images]
    table = metrics.statistics(references, captions)
    scores = metrics.score_sums(table.sum(axis=0), len(images))
    if prepared.vocabulary.tokenizer == "words" and find_spec("captioning.extras.study.meteor"):
        from captioning.extras.study.meteor import meteor

        scores |= meteor(references, captions)
    training = prepared.references("train")
    floor = constant_caption(training)
    baselines = {"constant caption": [floor] * len(images)}
    if len(images) > 1:
        baselines["images shuffled"] = shuffled(captions, seed=0)
    if split != "train":
        rows = cache.rows(prepared.images("train"))
        known = [training[place] for place in np.flatnonzero(rows >= 0)]
        theirs, ours = cache.pooled[rows[rows >= 0]], cache.pooled[cache.rows(images)]
        baselines["nearest training image"] = nearest_training_captions(theirs, known, ours)
    rows = {name: metrics.score(references, texts) for name, texts in baselines.items()}
    if min(map(len, references)) > 1:
        rows["one person against the others"] = one_against_the_others(references)
    diversity = metrics.diversity(captions, [text for image in training for text in image])
    captioned = (prepared, cache, split, images, captions, references)
    return Evaluation(*captioned, scores, table, rows, floor, diversity)


def _unseen(images: list[str], hashes: list[str], trained: list[str], split: str) -> list[str]:
    """Those of `images` whose perceptual hash is none of those `trained` on."""
    hashes, trained = (np.array([int(h, 16) for h in x], np.uint64) for x in (hashes, trained))
    is_seen = [(np.bitwise_count(trained ^ value) <= SAME_PICTURE).any() for value in hashes]
    unseen = [image for image, seen in zip(images, is_seen, strict=True) if not seen]
    counts = f"{len(images) - len(unseen):,} of the {len(images):,} {split} images"
    if len(unseen) == len(images):
        return images
    if split == "train":
        log(f"{counts} were trained on: no measure of quality")
        return images
    if len(unseen) < len(images) / 10:
        problem = f"{counts} were in the model's training data; a score would measure memory"
        raise InputError(f"{problem}. Use a model that was trained on these splits")
    log(f"left out of the score, since they look like what the model was trained on: {counts}")
    return unseen


def constant_caption(training_captions: Sequence[Sequence[str]]) -> str:
    """Of the 200 most frequent captions the one with the highest mean CIDEr-D, as it is scored.

    The mean is over 1,000 training images, evenly spaced.
    """
    captions = [[scoring_tokens(caption) for caption in image] for image in training_captions]
    chosen = captions[:: -(-len(captions) // TYPICAL_IMAGES)]
    scorer, images = CiderD(chosen, captions), range(len(chosen))
    occurrences = Counter(tuple(caption) for image in captions for caption in image)
    candidates = [caption for caption, _ in occurrences.most_common(TYPICAL_CANDIDATES)]
    best = max(candidates, key=lambda words: scorer.scores(images, [words] * len(images)).mean())
    return " ".join(best)


def nearest_training_captions(
    train_features: np.ndarray, train_captions: Sequence[Sequence[str]], features: np.ndarray
) -> list[str]:
    """Copy for each of m images a caption of the most similar training image (cosine similarity).

    Features are pooled, (n, channels) and (m, channels). Of the training image's captions the one
    with the highest CIDEr-D against all of them is copied.
    """
    tokens = [[scoring_tokens(caption) for caption in image] for image in train_captions]
    scorer = CiderD(tokens)
    lengths = np.linalg.norm(train_features, axis=1)
    directions, copied = train_features.T / np.maximum(lengths, 1e-30), []  # (channels, n)
    for start in range(0, len(features), SIMILARITY_ROWS):
        similarities = features[start : start + SIMILARITY_ROWS] @ directions
        for image in similarities.argmax(axis=1).tolist():
            best = scorer.scores([image] * len(tokens[image]), tokens[image]).argmax()
            copied.append(train_captions[image][best])
    return copied


def shuffled(captions: Sequence[str], seed: int) -> list[str]:
    """Move captions to other images at random, so that none stays: along one random circle."""
    circle = np.random.default_rng(seed).permutation(len(captions))
    moved = np.array(captions, dtype=object)
    moved[circle] = moved[np.roll(circle, 1)]
    return moved.tolist()


def one_against_the_others(references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The mean scores of leaving one caption of each image out and scoring it against the rest."""
    rounds = []
    for person in range(min(map(len, references))):
        others = [[*captions[:person], *captions[person + 1 :]] for captions in references]
        rounds.append(metrics.score(others, [captions[person] for captions in references]))
    return {name: sum(scores[name] for scores in rounds) / len(rounds) for name in rounds[0]}
