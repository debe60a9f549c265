"""Scores of generated captions against references: BLEU, ROUGE-L, CIDEr-D.

`score` takes captions as written and splits them with `scoring_tokens`; the functions of single
metrics take tokens. On the same tokens they equal pycocoevalcap, which most papers use, to 1e-6.
"""

import itertools
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from captioning.errors import InputError
from captioning.vocabulary import normalize

Tokens = Sequence[Hashable]  # one caption: words, or word ids
LONGEST_NGRAM = 4
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9  # added to matched and possible n-grams, as pycocoevalcap does


def scoring_tokens(caption: str) -> list[str]:
    """The words that are scored: lower case, without punctuation and symbols (Unicode P and S).

    "A man's T-shirt." gives a, mans, tshirt.
    """
    text = normalize(caption.lower())
    return "".join(char for char in text if unicodedata.category(char)[0] not in "PS").split()


def score(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> dict[str, float]:
    """Score captions as written, one per image; returns metric name -> score.

    BLEU-1 to BLEU-4 and ROUGE-L go up to 100, CIDEr-D (rarity counted in `references`) to 1000.
    InputError: no captions, lists of different lengths, or an image without references.
    """
    scores = score_sums(statistics(references, hypotheses).sum(axis=0), len(hypotheses))
    return {name: float(score) for name, score in scores.items()}


def statistics(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """Return what the scores add up over the images, (images, 12); arguments as for `score`.

    Columns: those of `bleu_counts`, ROUGE-L from 0 to 1, CIDEr-D from 0 to 10.
    """
    references, hypotheses = tokenized(references, hypotheses)
    cider_d = CiderD(references).scores(range(len(references)), hypotheses)
    columns = (rouge_l(references, hypotheses), cider_d)
    return np.column_stack([bleu_counts(references, hypotheses), *columns])


def score_sums(sums: np.ndarray, images: int) -> dict[str, np.ndarray]:
    """Sums of `statistics` over so many images, (12,) or (samples, 12) -> metric name -> score."""
    scores = [*bleu(sums[..., :-2]).T, *sums[..., -2:].T / images]
    return {name: 100 * score for name, score in zip(METRICS, scores, strict=True)}


def tokenized(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> tuple[list, list]:
    """Split references and hypotheses into `scoring_tokens`; InputError if they do not match."""
    if not len(references) == len(hypotheses) > 0 or not all(references):
        lacking = f"{sum(not captions for captions in references)} have no references"
        counts = f"{len(hypotheses)} captions for {len(references)} images, of which {lacking}"
        raise InputError(f"{counts}; expected one caption for each image, and references for each")
    split = [[scoring_tokens(caption) for caption in captions] for captions in references]
    return split, [scoring_tokens(caption) for caption in hypotheses]


def diversity(hypotheses: Sequence[str], training_captions: Iterable[str]) -> dict[str, float]:
    """Describe how varied captions are.

    `vocabulary`: different words; `distinct`: different captions as a fraction of all; `copied`:
    fraction that are a training caption word for word; `length`: mean words.
    """
    captions = [tuple(scoring_tokens(caption)) for caption in hypotheses]
    training = {tuple(scoring_tokens(caption)) for caption in training_captions}
    return {
        "vocabulary": len(set().union(*captions)),
        "distinct": len(set(captions)) / len(captions),
        "copied": sum(caption in training for caption in captions) / len(captions),
        "length": sum(map(len, captions)) / len(captions),
    }


def ngram_counts(tokens: Tokens) -> Counter[tuple]:
    """Count the n-grams of 1 to 4 tokens."""
    shifted = [tokens[start:] for start in range(LONGEST_NGRAM)]
    ngrams = (zip(*shifted[:n], strict=False) for n in range(1, LONGEST_NGRAM + 1))
    return Counter(itertools.chain.from_iterable(ngrams))


def bleu_counts(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> np.ndarray:
    """Return what BLEU adds up over the images: (images, 10).

    Columns: matched 1- to 4-grams, possible ones, words, words of the closest reference.
    """
    from nltk.translate.bleu_score import closest_ref_length, modified_precision  # slow to import

    counts = np.zeros((len(hypotheses), 2 * LONGEST_NGRAM + 2))
    for row, captions, hypothesis in zip(counts, references, hypotheses, strict=True):
        for n in range(1, LONGEST_NGRAM + 1):
            row[n - 1] = modified_precision(captions, hypothesis, n).numerator
            row[LONGEST_NGRAM + n - 1] = max(0, len(hypothesis) - n + 1)
        row[-2:] = len(hypothesis), closest_ref_length(captions, len(hypothesis))
    return counts


def bleu(counts: np.ndarray) -> np.ndarray:
    """Return BLEU-1 to BLEU-4 (Papineni et al. 2002), 0 to 1: sums (..., 10) -> (..., 4)."""
    matched, possible = counts[..., :LONGEST_NGRAM], counts[..., LONGEST_NGRAM:-2]
    logs = np.log((matched + BLEU_TINY) / (possible + BLEU_SMALL))
    means = np.cumsum(logs, axis=-1) / np.arange(1, LONGEST_NGRAM + 1)
    ratio = (counts[..., -1:] + BLEU_SMALL) / (counts[..., -2:-1] + BLEU_TINY)  # of the lengths
    return np.exp(means + np.minimum(0, 1 - ratio))


def rouge_l(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> np.ndarray:
    """Return each image's ROUGE-L (Lin 2004), from 0 to 1, shape (images,).

    The F-measure of the longest common subsequence. As in pycocoevalcap, the best precision and
    the best recall are combined, even if they come from two references.
    """
    scores = np.zeros(len(hypotheses))
    for image, (captions, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        common = [_longest_common_subsequence(caption, hypothesis) for caption in captions]
        if any(common):
            precision = max(common) / len(hypothesis)
            recall = max(n / max(len(c), 1) for n, c in zip(common, captions, strict=True))
            weight = 1.2**2  # of the recall
            scores[image] = (1 + weight) * precision * recall / (recall + weight * precision)
    return scores


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Return the length of the longest token sequence that both contain in order, gaps allowed."""
    lengths = [0] * (len(second) + 1)  # [j]: for the tokens of `first` so far, and second[:j]
    for token in first:
        before, lengths = lengths, [0]
        for j, other in enumerate(second):
            lengths.append(before[j] + 1 if token == other else max(before[j + 1], lengths[j]))
    return lengths[-1]


class CiderD:
    """CIDEr-D of hypotheses against fixed references (Vedantam et al. 2015, section 5).

    A caption is four vectors, one for each n: its n-gram counts times log(documents / documents
    with the n-gram). The score is the cosine similarity with a reference, counts clipped to the
    reference's, times a Gaussian penalty on the difference in length; averaged over n and the
    references, times 10. Without stemming, as pycocoevalcap's `Cider`. `frequencies` are of
    n-grams in documents that are not at hand.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]], documents=None, frequencies=None):
        documents = references if documents is None else documents
        ngrams = (set().union(*map(ngram_counts, captions)) for captions in documents)
        frequencies = frequencies or Counter(itertools.chain.from_iterable(ngrams))
        self._unseen = math.log(len(documents)) ** 2  # as rare as an n-gram of one document
        # n-gram -> the n-gram, so that each is in memory once, and its squared weight
        self._known = {
            ngram: (ngram, math.log(len(documents) / frequency) ** 2)
            for ngram, frequency in frequencies.items()
        }
        self._shared = {}  # equal tuples of pairs are in memory once too
        self._images = [self._measure(captions) for captions in references]

    def _measure(self, captions: Sequence[Tokens]) -> tuple[list, list, dict]:
        """Return the references' lengths, squared norms [reference][n - 1] and n-grams."""
        squared_norms = [[0.0] * LONGEST_NGRAM for _ in captions]
        occurrences = defaultdict(list)  # n-gram -> pairs (reference, count)
        for reference, caption in enumerate(captions):
            for ngram, count in ngram_counts(caption).items():
                ngram, weight = self._known.get(ngram) or (ngram, self._unseen)
                squared_norms[reference][len(ngram) - 1] += count**2 * weight
                occurrences[ngram].append((reference, count))
        shared = {g: self._shared.setdefault(s := tuple(p), s) for g, p in occurrences.items()}
        return list(map(len, captions)), squared_norms, shared

    def scores(self, images: Iterable[int], hypotheses: Iterable[Tokens]) -> np.ndarray:
        """Return the CIDEr-D (0 to 10) of hypotheses, each of an image given by its index."""
        return np.array(list(map(self._score, images, hypotheses)))

    def _score(self, image: int, hypothesis: Tokens) -> float:
        lengths, squared_norms, occurrences = self._images[image]
        own_norms = [0.0] * LONGEST_NGRAM
        products = [[0.0] * LONGEST_NGRAM for _ in lengths]
        for ngram, count in ngram_counts(hypothesis).items():
            n = len(ngram) - 1
            ngram, weight = self._known.get(ngram) or (ngram, self._unseen)
            own_norms[n] += count**2 * weight
            for reference, most in occurrences.get(ngram, ()):
                products[reference][n] += (count if count < most else most) * most * weight
        total = 0.0
        for length, row, norms in zip(lengths, products, squared_norms, strict=True):
            penalty = math.exp(-((len(hypothesis) - length) ** 2) / (2 * 6.0**2))  # 6 words wide
            pairs = zip(row, norms, own_norms, strict=True)
            total += penalty * sum(dot / math.sqrt(one * other) for dot, one, other in pairs if dot)
        return 10 * total / (LONGEST_NGRAM * len(lengths))
