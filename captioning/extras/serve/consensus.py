"""Consensus captions: of what beam search finds, what agrees best with all the model might say.

Minimum Bayes risk decoding (Kumar and Byrne 2004, "Minimum Bayes-Risk Decoding for Statistical
Machine Translation"): the caption with the highest expected CIDEr-D if the model's own captions
were the references. These are spread evenly over the model's distribution: no random numbers.
"""

import math
from dataclasses import replace

import numpy as np

from captioning.captions import Caption
from captioning.extras.serve.searches import sample
from captioning.metrics import CiderD, ngram_counts
from captioning.vocabulary import START, Vocabulary


def agreement(vocabulary: Vocabulary, captions: list, others: list) -> np.ndarray:
    """The mean CIDEr-D of each of `captions` with `others` as its references; ids up to END.

    An n-gram counts as rare as if its words were independent, by their numbers in the training
    captions: the n-grams of these are not at hand.
    """
    documents = vocabulary.counts[START]
    ngrams = set().union(*map(ngram_counts, captions + others))
    shares = {g: math.prod(vocabulary.counts[word] / documents for word in g) for g in ngrams}
    frequencies = {g: min(max(1, share * documents), documents) for g, share in shares.items()}
    return CiderD([others], range(documents), frequencies).scores([0] * len(captions), captions)


def agreed(captioner, feature: np.ndarray, found: Caption, samples: int, n_best: int) -> Caption:
    """`found`, of an encoded image, and its alternatives: the `n_best` that agree best."""
    drawn = sample(captioner.begin(feature), samples, captioner.config.max_words)
    captions = [found, *found.alternatives]
    ids = [captioner.vocabulary.encode(caption.words)[1:] for caption in captions]
    scores = agreement(captioner.vocabulary, ids, [words for words, _ in drawn])
    best, *rest = [captions[place] for place in np.argsort(-scores, kind="stable")[:n_best]]
    return replace(best, alternatives=tuple(rest))
