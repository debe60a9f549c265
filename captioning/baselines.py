"""Captions made without a trained model, and a person's: what a model's scores stand beside.

A figure alone says little. A model must pass one caption for all images and the copied caption of
the nearest training image; its score must fall if its captions are moved to other images, or it
does not look at them; and one person's score against the others shows what a metric counts as good.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from captioning.files import InputError
from captioning.metrics import CiderD, score, scoring_tokens

# The search for the typical caption: some seconds on Flickr8k.
TYPICAL_CANDIDATES = 200
TYPICAL_IMAGES = 1000

SIMILARITY_ROWS = 1024  # images compared with all training images at once


def typical_caption(training_captions: Sequence[Sequence[str]]) -> str:
    """Choose from the training captions the one that serves best for all images: the floor.

    The rule: of the 200 captions written most often word for word, the one with the highest mean
    CIDEr-D over 1,000 training images, spread evenly (over all, if there are fewer).

    Args:
        training_captions: for each training image, its captions as written.

    Returns:
        The caption in its scored form: lower case, no punctuation.

    Raises:
        InputError: no image, or an image without captions.
    """
    captions = [[scoring_tokens(caption) for caption in image] for image in training_captions]
    step = max(1, -(-len(captions) // TYPICAL_IMAGES))
    scorer = CiderD(captions[::step], captions)
    images = range(len(scorer))
    times_written = Counter(tuple(caption) for image in captions for caption in image)
    candidates = [caption for caption, _ in times_written.most_common(TYPICAL_CANDIDATES)]
    best = max(candidates, key=lambda words: scorer.scores(images, [words] * len(images)).mean())
    return " ".join(best)


def nearest_training_captions(
    train_features: np.ndarray, train_captions: Sequence[Sequence[str]], features: np.ndarray
) -> list[str]:
    """Caption each image with a caption of the most similar training image (cosine similarity).

    Of that image's captions the consensus is copied, a stronger opponent than the first: the one
    with the highest CIDEr-D against all of them (rarity counted over the training captions; the
    first of equals). Its agreement with itself is in every caption's score and decides nothing.

    Args:
        train_features: pooled features of the training images, shape (n, width).
        train_captions: for each training image, its captions as written.
        features: pooled features of the images to caption, shape (m, width).

    Returns:
        m captions, as written.

    Raises:
        InputError: shapes that do not fit one another, or an image without captions.
    """
    if (
        train_features.ndim != 2
        or features.ndim != 2
        or train_features.shape[1] != features.shape[1]
        or len(train_features) != len(train_captions)
    ):
        raise InputError(
            f"training features of shape {train_features.shape} with captions of "
            f"{len(train_captions)} images, and features of shape {features.shape}, came; expected "
            "(n, width) with n, and (m, width): one pooled vector an image, one encoder for both"
        )
    scorer = CiderD([[scoring_tokens(caption) for caption in image] for image in train_captions])
    consensus = {}
    nearest = _nearest_rows(train_features, features)
    for image in set(nearest):
        tokens = [scoring_tokens(caption) for caption in train_captions[image]]
        best = scorer.scores([image] * len(tokens), tokens).argmax()
        consensus[image] = train_captions[image][best]
    return [consensus[image] for image in nearest]


def _nearest_rows(candidates: np.ndarray, queries: np.ndarray) -> list[int]:
    """Find for each row of `queries` the row of `candidates` with the highest cosine similarity."""
    candidates = _unit_rows(candidates)
    nearest = []
    for start in range(0, len(queries), SIMILARITY_ROWS):
        chunk = _unit_rows(queries[start : start + SIMILARITY_ROWS])
        nearest.extend((chunk @ candidates.T).argmax(axis=1).tolist())
    return nearest


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.finfo(np.float32).tiny)


def shuffled(hypotheses: Sequence[str], seed: int) -> list[str]:
    """Move captions among images at random, so that none stays: the images-shuffled control.

    Raises:
        InputError: fewer than two captions; one alone has nowhere to go.
    """
    if len(hypotheses) < 2:
        raise InputError(f"{len(hypotheses)} captions came; to move them among images takes two")
    # Along one random circle through all images, everybody gets the predecessor's caption.
    circle = np.random.default_rng(seed).permutation(len(hypotheses))
    moved = list(hypotheses)
    for image, predecessor in zip(circle, np.roll(circle, 1), strict=True):
        moved[image] = hypotheses[predecessor]
    return moved


def one_against_the_others(references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score one person's captions against those of the others: the reference a model is held to.

    The first caption of every image is scored against the rest, then the second, and so on; the
    result is the mean. Where images have different numbers of captions, as many are left out in
    turn as every image has.

    Args:
        references: for each image, its captions as written.

    Returns:
        Metric name -> mean score, as :func:`captioning.metrics.score` without METEOR.

    Raises:
        InputError: no image, or an image with fewer than two captions.
    """
    people = min(map(len, references), default=0)
    if people < 2:
        raise InputError(
            f"an image with {people} captions came; to compare people takes two for every image"
            if references
            else "no images came; to compare people takes at least one, with two captions"
        )
    rounds = [
        score(
            [[*captions[:person], *captions[person + 1 :]] for captions in references],
            [captions[person] for captions in references],
        )
        for person in range(people)
    ]
    return {name: sum(scores[name] for scores in rounds) / people for name in rounds[0]}
