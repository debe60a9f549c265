"""Scores of generated captions against what people wrote: BLEU, ROUGE-L, CIDEr-D, METEOR.

One protocol, used for every figure of the project: references and hypotheses go through
:func:`scoring_tokens` and nothing else. No start or end tokens, no unknown word in place of a rare
one, all references of an image. On the same words the scores equal those of pycocoevalcap, the
implementation most papers use, to rounding error.

:func:`score` takes captions as they were written and is all that most callers need. The functions
of a single metric take captions as sequences of tokens.
"""

import importlib.util
import itertools
import math
import shutil
import subprocess
import tempfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning.files import InputError

Tokens = Sequence[Hashable]
"""One caption as a sequence of words: strings, or anything hashable (word ids, for instance)."""

LONGEST_NGRAM = 4

# Added to the counts of matched and of possible n-grams, so that BLEU without any is 0 and defined.
BLEU_TINY = 1e-15
BLEU_SMALL = 1e-9

ROUGE_BETA = 1.2  # recall weighs more than precision

CIDER_SIGMA = 6.0  # words; the width of the length penalty
CIDER_SCALE = 10.0

METEOR_JAR = Path("meteor", "meteor-1.5.jar")  # inside the package pycocoevalcap
METEOR_SECONDS = 600  # 1,000 images take about ten


def scoring_tokens(caption: str) -> list[str]:
    """Split a caption into the words that are scored.

    The caption is lower-cased, every punctuation mark and symbol (Unicode categories P and S,
    which hold all of `string.punctuation`) is deleted, and the rest is split on white space. A
    mark is deleted, not replaced by a space: "T-shirt." becomes "tshirt", "man's" becomes "mans".

    The captions of Flickr8k stand apart from their marks already ("a man 's T-shirt ."), so there
    the words are "a", "man", "s", "tshirt".
    """
    kept = (char for char in caption.lower() if unicodedata.category(char)[0] not in "PS")
    return "".join(kept).split()


def score(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], with_meteor: bool = False
) -> dict[str, float]:
    """Score captions as written: BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, times 100.

    Args:
        references: for each image, the captions people wrote for it.
        hypotheses: for each image, the caption to judge. An empty caption is legal and scores 0.
        with_meteor: add METEOR (some seconds). It is left out where Java or pycocoevalcap is not
            installed.

    Returns:
        Metric name -> score. All have a maximum of 100, but CIDEr-D, whose maximum is 1000. The
        document frequencies of CIDEr-D are those of `references`.

    Raises:
        InputError: nothing to score, lists of different lengths, or an image without references.
    """
    references, hypotheses = _tokenised(references, hypotheses)
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu(references, hypotheses), start=1)}
    scores["ROUGE-L"], _ = rouge_l(references, hypotheses)
    scores["CIDEr-D"] = CiderD(references).scores(range(len(references)), hypotheses).mean()
    if with_meteor and (value := meteor(references, hypotheses)) is not None:
        scores["METEOR"] = value
    return {name: 100 * float(value) for name, value in scores.items()}


def cider_d_per_image(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """CIDEr-D, times 100, of each caption as written; the mean is the CIDEr-D of :func:`score`.

    Arguments and errors are those of :func:`score`.

    Returns:
        Float array, shape (images,).
    """
    references, hypotheses = _tokenised(references, hypotheses)
    return 100 * CiderD(references).scores(range(len(references)), hypotheses)


def diversity(
    hypotheses: Sequence[str], training_captions: Iterable[str]
) -> dict[str, int | float]:
    """Describe how varied captions are, and how many are a training caption word for word.

    Args:
        hypotheses: the captions to describe, as written.
        training_captions: every caption the model has learned from, in one flat sequence.

    Returns:
        `vocabulary`: number of different words used; `distinct`: number of different captions as a
        share (0 to 1) of all; `copied`: share of captions that equal a training caption in all
        their scored words; `length`: mean number of words.

    Raises:
        InputError: there is no caption to describe.
    """
    if not hypotheses:
        raise InputError("no captions came; their diversity needs at least one")
    captions = [tuple(scoring_tokens(caption)) for caption in hypotheses]
    training = {tuple(scoring_tokens(caption)) for caption in training_captions}
    return {
        "vocabulary": len(set().union(*captions)),
        "distinct": len(set(captions)) / len(captions),
        "copied": sum(caption in training for caption in captions) / len(captions),
        "length": sum(map(len, captions)) / len(captions),
    }


def ngram_counts(tokens: Tokens) -> Counter[tuple]:
    """Count every run of 1 to 4 consecutive tokens.

    Raises:
        InputError: the caption is a string, whose letters would be counted for words.
    """
    if isinstance(tokens, str):
        raise InputError(
            f"the caption {tokens!r} came as one string; split it with scoring_tokens() first"
        )
    shifted = [tokens[start:] for start in range(LONGEST_NGRAM)]
    runs = (zip(*shifted[:n], strict=False) for n in range(1, LONGEST_NGRAM + 1))
    return Counter(itertools.chain.from_iterable(runs))


def bleu(
    references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]
) -> tuple[float, float, float, float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), each from 0 to 1.

    Matches and lengths are summed over all captions before they are divided; a caption's reference
    length is that of its reference closest in length, the shorter of two equally close. For the
    score of a single caption pass lists of one.

    Raises:
        InputError: see :func:`score`.
    """
    _check_images(references, hypotheses)
    matched = [0] * LONGEST_NGRAM
    possible = [0] * LONGEST_NGRAM
    hypothesis_length = reference_length = 0
    for captions, hypothesis in zip(references, hypotheses, strict=True):
        most = Counter()  # n-gram -> how often it occurs in the reference that has it most often
        for caption in captions:
            for ngram, count in ngram_counts(caption).items():
                most[ngram] = max(most[ngram], count)
        for ngram, count in ngram_counts(hypothesis).items():
            possible[len(ngram) - 1] += count
            matched[len(ngram) - 1] += min(count, most[ngram])
        hypothesis_length += len(hypothesis)
        reference_length += min(
            (abs(len(caption) - len(hypothesis)), len(caption)) for caption in captions
        )[1]

    ratio = (hypothesis_length + BLEU_TINY) / (reference_length + BLEU_SMALL)
    brevity_penalty = math.exp(min(0.0, 1 - 1 / ratio))
    precisions = [
        (match + BLEU_TINY) / (total + BLEU_SMALL)
        for match, total in zip(matched, possible, strict=True)
    ]
    return tuple(
        brevity_penalty * math.prod(precisions[:n]) ** (1 / n) for n in range(1, LONGEST_NGRAM + 1)
    )


def rouge_l(
    references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]
) -> tuple[float, np.ndarray]:
    """ROUGE-L (Lin 2004): the F-measure, from 0 to 1, of the longest common subsequence.

    The best precision and the best recall over an image's references are combined, even where they
    come from two of them, as pycocoevalcap does. One difference: an empty caption scores 0 there
    and here, but here also against an empty reference.

    Returns:
        The mean, and a float array with each image's score, shape (images,).

    Raises:
        InputError: see :func:`score`.
    """
    _check_images(references, hypotheses)
    scores = np.zeros(len(hypotheses))
    for image, (captions, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        common = [_longest_common_subsequence(caption, hypothesis) for caption in captions]
        if not any(common):
            continue
        precision = max(common) / len(hypothesis)
        recall = max(
            length / max(len(caption), 1) for length, caption in zip(common, captions, strict=True)
        )
        weight = ROUGE_BETA**2
        scores[image] = (1 + weight) * precision * recall / (recall + weight * precision)
    return float(scores.mean()), scores


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest sequence of tokens that both contain in order, gaps allowed."""
    # lengths[j]: of the tokens of `first` read so far and the first j tokens of `second`.
    lengths = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = lengths[j]
            if token == other:
                lengths[j] = diagonal + 1
            elif lengths[j - 1] > above:
                lengths[j] = lengths[j - 1]
            diagonal = above
    return lengths[-1]


class _ImageReferences(NamedTuple):
    """The references of one image, ready for CIDEr-D."""

    lengths: list[int]  # words of each reference
    inverse_norms: list[list[float]]  # [n-gram length - 1][reference]; 0 for a zero vector
    # n-gram number -> the references that have it, as pairs (reference, count)
    occurrences: dict[int, tuple[tuple[int, int], ...]]


class CiderD:
    """CIDEr-D of hypotheses against fixed references (Vedantam et al. 2015, section 5).

    A caption is a vector of n-gram counts times log(documents / documents with the n-gram), one
    vector for each n from 1 to 4. The score is the cosine similarity with a reference, where a
    count above the reference's is clipped to it, times a Gaussian penalty on the difference in
    length; averaged over n and over the references, times 10. Without stemming, as pycocoevalcap's
    `Cider`, whose name lacks the D but not its clipping and penalty.

    The vectors of the references are computed once, so that the same class scores a split and
    serves as the reward of self-critical training (some 20,000 hypotheses a second on one core).
    There, append the end token to references and hypotheses alike, so that stopping early or late
    costs.

    Args:
        references: for each image, its captions as sequences of tokens.
        documents: where n-grams are counted for their rarity: for each image, its captions. One
            image is one document. `references` if left out.

    Raises:
        InputError: no image, or an image without references.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Tokens]],
        documents: Sequence[Sequence[Tokens]] | None = None,
    ):
        """Count the documents and measure the references; see the class."""
        documents = references if documents is None else documents
        _check_references(references)
        _check_references(documents)
        frequencies = Counter()
        for captions in documents:
            frequencies.update(set().union(*map(ngram_counts, captions)))
        log_documents = math.log(len(documents))
        # Every known n-gram has a number: an int is a smaller and faster key than a tuple.
        self._numbers = {ngram: number for number, ngram in enumerate(frequencies)}
        self._squared_weights = [
            (log_documents - math.log(count)) ** 2 for count in frequencies.values()
        ]
        # An n-gram of no document weighs as much as one of a single document.
        self._unseen_squared_weight = log_documents**2
        self._pairs = {}
        self._images = [self._prepare(captions) for captions in references]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def _prepare(self, captions: Sequence[Tokens]) -> _ImageReferences:
        """Count the n-grams of one image's references and measure their vectors."""
        occurrences = {}
        squared_norms = [[0.0] * len(captions) for _ in range(LONGEST_NGRAM)]
        for reference, caption in enumerate(captions):
            for ngram, count in ngram_counts(caption).items():
                number = self._numbers.get(ngram)
                if number is None:
                    number = self._numbers[ngram] = len(self._squared_weights)
                    self._squared_weights.append(self._unseen_squared_weight)
                squared_norms[len(ngram) - 1][reference] += count**2 * self._squared_weights[number]
                found = (*occurrences.get(number, ()), (reference, count))
                # Few different tuples exist; sharing them saves most of the memory.
                occurrences[number] = self._pairs.setdefault(found, found)
        return _ImageReferences(
            lengths=[len(caption) for caption in captions],
            inverse_norms=[[_inverse_root(value) for value in row] for row in squared_norms],
            occurrences=occurrences,
        )

    def score_one(self, image: int, hypothesis: Tokens) -> float:
        """CIDEr-D (0 to 10) of one hypothesis against the references of image number `image`."""
        lengths, inverse_norms, occurrences = self._images[image]
        squared_norms = [0.0] * LONGEST_NGRAM
        products = [[0.0] * len(lengths) for _ in range(LONGEST_NGRAM)]
        for ngram, count in ngram_counts(hypothesis).items():
            n = len(ngram) - 1
            number = self._numbers.get(ngram)
            if number is None:
                squared_norms[n] += count**2 * self._unseen_squared_weight
                continue
            squared_weight = self._squared_weights[number]
            squared_norms[n] += count**2 * squared_weight
            for reference, reference_count in occurrences.get(number, ()):
                clipped = min(count, reference_count)
                products[n][reference] += clipped * reference_count * squared_weight

        similarities = [0.0] * len(lengths)
        for n, squared_norm in enumerate(squared_norms):
            inverse_norm = _inverse_root(squared_norm)
            for reference, product in enumerate(products[n]):
                similarities[reference] += product * inverse_norm * inverse_norms[n][reference]
        total = sum(
            similarity * math.exp(-((len(hypothesis) - length) ** 2) / (2 * CIDER_SIGMA**2))
            for similarity, length in zip(similarities, lengths, strict=True)
        )
        return CIDER_SCALE * total / (LONGEST_NGRAM * len(lengths))

    def scores(self, images: Sequence[int], hypotheses: Sequence[Tokens]) -> np.ndarray:
        """CIDEr-D of each hypothesis against the references of the image at the same place.

        Args:
            images: for each hypothesis, the number of its image among the `references` the scorer
                was built with; `range(len(scorer))` for a whole split, repeated numbers for
                several samples of an image.
            hypotheses: captions as sequences of tokens.

        Returns:
            Float array from 0 to 10, shape (hypotheses,).

        Raises:
            InputError: the two have different lengths.
        """
        if len(images) != len(hypotheses):
            raise InputError(
                f"{len(hypotheses)} hypotheses came for {len(images)} images; "
                "give one hypothesis for each image number"
            )
        pairs = zip(images, hypotheses, strict=True)
        return np.array([self.score_one(image, hypothesis) for image, hypothesis in pairs])


def _inverse_root(squared_norm: float) -> float:
    return 1 / math.sqrt(squared_norm) if squared_norm > 0 else 0.0


def meteor(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> float | None:
    """METEOR 1.5 (Denkowski and Lavie 2014), from 0 to 1, or None where it cannot be had.

    It needs Java and the program that comes with pycocoevalcap. The program reads the captions from
    files, instead of being talked to over pipes as by pycocoevalcap's class, because so it can be
    given a time limit; the score is the same. If it fails or takes longer than `METEOR_SECONDS`,
    a warning tells why and the result is None.

    Raises:
        InputError: see :func:`score`.
    """
    _check_images(references, hypotheses)
    java = shutil.which("java")
    package = importlib.util.find_spec("pycocoevalcap")
    if java is None or package is None:
        return None
    jar = Path(next(iter(package.submodule_search_locations))) / METEOR_JAR

    # The program wants the same number of references for every image. It keeps the best match, so
    # naming one twice changes nothing.
    most = max(map(len, references))
    padded = [[*captions, *[captions[0]] * (most - len(captions))] for captions in references]
    with tempfile.TemporaryDirectory() as folder:
        hypothesis_file = Path(folder, "hypotheses")
        reference_file = Path(folder, "references")
        _write_captions(hypothesis_file, hypotheses)
        _write_captions(reference_file, itertools.chain.from_iterable(padded))
        program = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar]
        arguments = [hypothesis_file, reference_file, "-l", "en", "-norm", "-r", str(most)]
        try:
            finished = subprocess.run(
                [*program, *arguments],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=True,
                timeout=METEOR_SECONDS,
            )
            return float(finished.stdout.rpartition("Final score:")[2])
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            warnings.warn(f"METEOR is left out: {error}", stacklevel=2)
            return None


def _write_captions(path: Path, captions: Iterable[Tokens]) -> None:
    path.write_text("".join(f"{' '.join(words)}\n" for words in captions), encoding="utf-8")


def _tokenised(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Check captions as written and split them into the words that are scored."""
    _check_images(references, hypotheses)
    return (
        [[scoring_tokens(caption) for caption in captions] for captions in references],
        [scoring_tokens(caption) for caption in hypotheses],
    )


def _check_images(references: Sequence[Sequence], hypotheses: Sequence) -> None:
    """Refuse what cannot be scored: see `Raises` of :func:`score`."""
    if len(references) != len(hypotheses):
        raise InputError(
            f"{len(hypotheses)} captions came for {len(references)} images with references; "
            "give one caption for each image, in the same order"
        )
    _check_references(references)


def _check_references(references: Sequence[Sequence]) -> None:
    if len(references) == 0:
        raise InputError("no images came; scoring needs at least one, with its references")
    for image, captions in enumerate(references):
        if isinstance(captions, str):
            raise InputError(
                f"the references of image number {image} are one string, {captions!r}; "
                "give a list of captions for each image"
            )
        if len(captions) == 0:
            raise InputError(
                f"image number {image} (counted from 0) has no references; "
                "leave it out or give it at least one"
            )
