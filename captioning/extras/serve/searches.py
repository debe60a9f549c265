"""Searches in NumPy, word by word: beam search under constraints, and sampling.

They need no more of a model than `step`, which `begin` of a captioner gives for one image: words
(B,), and for each the row (B,) of the last call's captions that it extends -> log-probabilities
(B, V) of the next words. The first call extends one caption, of no words.

Constrained beam search keeps a beam per set of requirements that are met (Anderson et al. 2017,
"Guided Open Vocabulary Image Captioning with Constrained Beam Search", DOI 10.18653/v1/D17-1098):
a caption that has said an improbable word does not compete with those that have not.
"""

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from captioning.captions import Caption
from captioning.config import LENGTH_PENALTY
from captioning.errors import InputError
from captioning.vocabulary import END, PAD, START, TOKENIZERS, UNKNOWN, Vocabulary

MOST_REQUIRED = 8  # words; each doubles the number of beams
# English words that end at most five in 10,000 of Flickr8k's training captions
DANGLING = "a an the and of with at to is are for as in from near over his their its into while"
DANGLING += " through that front next wearing holding"
Found = list[tuple[list[int], list[float]]]  # captions: ids up to END, and log-probabilities


class Constraints(NamedTuple):
    """What a caption must satisfy; words are ids."""

    max_words: int
    min_words: int = 0
    ngram: int = 0  # no sequence of so many words occurs twice; 0 allows all
    required: frozenset[frozenset[int]] = frozenset()  # of each set one word
    forbidden: frozenset[int] = frozenset()
    never_last: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config, width: int) -> "Constraints":
        """Those that a model has by itself, in beam search alone."""
        if width == 1:
            return cls(config.max_words)
        least = min(config.min_words, config.max_words)  # as the compiled search
        return cls(config.max_words, least, config.no_repeat_ngram)

    @classmethod
    def parse(cls, vocabulary: Vocabulary, config, options) -> "Constraints":
        """Of `caption`'s options, for a model with this configuration, or InputError."""
        required, forbidden = (_ids(vocabulary, x) for x in (options.require, options.forbid))
        if both := required & forbidden:
            raise InputError(f"{vocabulary.words[min(both)]}: is both required and forbidden")
        if len(required) > MOST_REQUIRED:
            raise InputError(f"{len(required)} words are required, expected up to {MOST_REQUIRED}")
        own = cls.of(config, max(options.beam_width, options.n_best))
        most = options.max_words or config.max_words
        least = min(own.min_words, most) if options.min_words is None else options.min_words
        if not (fewest := max(least, len(required))) <= most <= config.max_words:
            problem = f"captions of {fewest} to {most} words: this model writes up to"
            raise InputError(f"{problem} {config.max_words}; change the constraints")
        ngram = own.ngram if options.no_repeat_ngram is None else options.no_repeat_ngram
        required = frozenset(frozenset({word}) for word in required)
        return cls(most, least, ngram, required, forbidden, known_ids(vocabulary, DANGLING.split()))

    def unmet(self, words: list[int]) -> frozenset[frozenset[int]]:
        """The requirements that `words` do not meet."""
        return frozenset(choice for choice in self.required if choice.isdisjoint(words))

    def blocked(self, words: list[int]) -> list[int]:
        """The ids that may not follow `words`, an unfinished caption."""
        ids = {PAD, START, UNKNOWN, *self.forbidden}
        if self.ngram:
            places = range(self.ngram - 1, len(words))
            tail = words[len(words) - self.ngram + 1 :]
            ids |= {words[i] for i in places if words[i - self.ngram + 1 : i] == tail}
        if len(words) < self.min_words or self.unmet(words) or {*words[-1:]} & self.never_last:
            ids.add(END)
        return list(ids)


def _ids(vocabulary: Vocabulary, words: Iterable[str]) -> frozenset[int]:
    """Ids of the tokens of `words`; InputError that names similar words if one is unknown."""
    tokens = [token for word in words for token in TOKENIZERS[vocabulary.tokenizer](word)]
    for token in tokens:
        if token not in vocabulary:
            near = difflib.get_close_matches(token, vocabulary.words)
            hint = f"; it knows {', '.join(near)}" if near else ""
            raise InputError(f"{token}: is not a word that this model knows{hint}")
    return known_ids(vocabulary, tokens)


def known_ids(vocabulary: Vocabulary, words: Iterable[str]) -> frozenset[int]:
    """Ids of those of `words` that are in the vocabulary."""
    return frozenset(vocabulary.encode(words)[1:-1]) - {UNKNOWN}


class Unfinished(NamedTuple):
    """A caption that can be extended."""

    total: float  # log-probability
    row: int  # of the caption that it extends
    words: list[int]
    logs: list[float]  # log-probability of each word


def beam_search(
    step: Callable, limits: Constraints, width: int, length_penalty: float, n_best: int = 1
) -> Found:
    """The `n_best` captions that `captioning.decoding` finds, of those within `limits`.

    Width 1 is greedy decoding unless there are constraints. InputError if there is no caption.
    """
    is_greedy = width == 1 and limits == Constraints(limits.max_words)
    alive, finished = [Unfinished(0.0, 0, [], [])], []
    for t in range(limits.max_words + 1):
        last, rows = [START] * width, [0] * width  # LiteRT is slow where the number changes
        if t > 0:
            last, rows = [c.words[-1] for c in alive], [c.row for c in alive]
        beams = defaultdict(list)  # by the requirements that are not met
        scores = step(last, rows)[: len(alive)]  # (B, V)
        for row, (caption, logs) in enumerate(zip(alive, scores, strict=True)):
            unmet = limits.unmet(caption.words)
            logs[limits.blocked(caption.words)] = -np.inf
            most = 1 if is_greedy else width + sum(map(len, unmet)) + 1  # END may be among them
            best = np.argpartition(-logs, min(most, len(logs) - 1))[:most].tolist()
            likely = best if is_greedy else {*best, END}.union(*unmet)
            for word in likely if t < limits.max_words else (END,):
                if logs[word] == -np.inf:
                    continue
                total = caption.total + float(logs[word])
                words, each = [*caption.words, word], [*caption.logs, float(logs[word])]
                if word == END:
                    finished.append((total / len(words) ** length_penalty, words, each))
                else:
                    beams[limits.unmet(words)].append(Unfinished(total, row, words, each))
        finished = sorted(finished, reverse=True)[:n_best]
        alive = [c for beam in beams.values() for c in sorted(beam, reverse=True)[:width]]
        bound = max((c.total for c in alive), default=-np.inf)
        bound /= (limits.max_words + 1) ** length_penalty
        if not alive or (len(finished) == n_best and bound <= finished[-1][0]):
            break
    if not finished:
        raise InputError("no caption satisfies the constraints; relax them")
    return [(words, each) for _, words, each in finished]


def sample(step: Callable, n: int, max_words: int, rng=None, temperature=1.0, top_p=1.0) -> Found:
    """Draw `n` captions by `rng`, a NumPy generator; without one spread them evenly.

    A `temperature` below 1 prefers probable words. Only the most probable words, which have
    `top_p` of the probability between them, are drawn (nucleus sampling, Holtzman et al. 2020).

    To spread them (arithmetic sampling, Vilnis et al. 2023, "Arithmetic Sampling: Parallel Diverse
    Decoding for Large Language Models"), all captions in the order of their ids, each as wide as
    it is probable, fill the interval from 0 to 1; those at `n` even places are taken.
    """
    found, rows, places = [([], []) for _ in range(n)], np.arange(n), (np.arange(n) + 0.5) / n
    words, extended, same = np.array([START]), np.array([0]), np.zeros(n, int)
    for t in range(max_words + 1):
        scores = step(words, extended)  # of captions that differ, (D, V); `same`: which each is
        scores[:, [PAD, START, UNKNOWN]] = -np.inf
        weights = np.exp((scores - scores.max(1, keepdims=True)) / temperature, dtype=np.float64)
        weights /= weights.sum(1, keepdims=True)
        if top_p < 1:
            ordered = -np.sort(-weights, axis=1)
            most = np.sum(np.cumsum(ordered, axis=1) < top_p, axis=1)  # and one, the fewest
            weights[weights < np.take_along_axis(ordered, most[:, None], 1)] = 0
        sums = np.cumsum(weights, axis=1)
        sums /= sums[:, -1:]
        if rng:
            places = rng.random(len(rows))
        pairs = zip(same, places, strict=True)
        drawn = np.array([np.searchsorted(sums[i], place, "right") for i, place in pairs])
        if t == max_words:
            drawn[:] = END
        for row, word, log in zip(rows.tolist(), drawn.tolist(), scores[same, drawn], strict=True):
            found[row][0].append(word)
            found[row][1].append(float(log))
        (alive,) = np.nonzero(drawn != END)
        if not alive.size:
            break
        rows, same, drawn = rows[alive], same[alive], drawn[alive]
        low, high = sums[same, drawn - 1], sums[same, drawn]
        places = (places[alive] - low) / (high - low)  # in the word's part of the interval
        (extended, words), same = np.unique([same, drawn], axis=1, return_inverse=True)
    return found


def constrained(
    captioner, limits: Constraints, features, beam_width, length_penalty=LENGTH_PENALTY, n_best=1
) -> list[Caption]:
    """As `search` of the captioner, within `limits`."""
    search = (limits, beam_width, length_penalty, n_best)
    found = (beam_search(captioner.begin(feature), *search) for feature in features)
    return [Caption.from_search(captioner.vocabulary, captions) for captions in found]


def sampled(captioner, how, rng, features, *search) -> list[Caption]:
    """As `search` of the captioner: drawn by `rng` as `caption`'s options, `how`, say."""
    options = (captioner.config.max_words, rng, how.temperature, how.top_p)
    found = (sample(captioner.begin(feature), how.sample, *options) for feature in features)
    return [Caption.from_search(captioner.vocabulary, captions) for captions in found]
