"""Consensus captions: of what beam search finds, what agrees best with all the model might say.

Minimum Bayes risk decoding (Kumar and Byrne 2004, "Minimum Bayes-Risk Decoding for Statistical
Machine Translation"): the caption with the best expected score if the model's own captions were
the references. These are spread evenly over the model's distribution: no random numbers.
"""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from captioning.captions import Caption
from captioning.extras.serve.searches import sample
from captioning.metrics import CiderD, ngram_counts
from captioning.vocabulary import START, Vocabulary

BLEU_WEIGHT = 0.9  # beside CIDEr-D; chosen on the dev split of Flickr8k
MATCHED, WORDS = (8.1, 5.1, 2.7, 1.4), 9.6  # n-grams that match, and words, of a caption there


def agreement(vocabulary: Vocabulary, captions: list, others: list) -> np.ndarray:
    """The mean CIDEr-D of each of `captions`, ids up to END, plus its weighted BLEU-4 gain."""
    documents = vocabulary.counts[START]  # in which an n-gram's words count as independent
    ngrams = set().union(*map(ngram_counts, captions + others))
    shares = {g: math.prod(vocabulary.counts[word] / documents for word in g) for g in ngrams}
    frequencies = {g: min(max(1, share * documents), documents) for g, share in shares.items()}
    cider_d = CiderD([others], range(documents), frequencies).scores([0] * len(captions), captions)
    return cider_d + BLEU_WEIGHT * bleu_gain(captions, others)


def bleu_gain(captions: list, others: list) -> np.ndarray:
    """What each of `captions` adds to the logarithm of a split's BLEU-4, but for constants.

    To first order (Tromble et al. 2008, "Lattice Minimum Bayes-Risk Decoding for Statistical
    Machine Translation"), with five of `others` as references, without brevity penalty.
    """

    def numbered(caption):  # clipping: the second "a" of a caption matches the second of another
        return [(g, k) for g, count in ngram_counts(caption[:-1]).items() for k in range(count)]

    found = Counter(ngram for other in others for ngram in numbered(other))
    worth = {g: (1 - (1 - n / len(others)) ** 5) / MATCHED[len(g[0]) - 1] for g, n in found.items()}
    gains = [sum(worth.get(ngram, 0) for ngram in numbered(c)) / len(MATCHED) for c in captions]
    return np.array(gains) - np.array(list(map(len, captions))) / WORDS


def agreed(captioner, feature: np.ndarray, found: Caption, samples: int, n_best: int) -> Caption:
    """`found`, of an encoded image, and its alternatives: the `n_best` that agree best."""
    drawn = sample(captioner.begin(feature), samples, captioner.config.max_words)
    captions = [found, *found.alternatives]
    ids = [captioner.vocabulary.encode(caption.words)[1:] for caption in captions]
    scores = agreement(captioner.vocabulary, ids, [words for words, _ in drawn])
    best, *rest = [captions[place] for place in np.argsort(-scores, kind="stable")[:n_best]]
    return replace(best, alternatives=tuple(rest))
