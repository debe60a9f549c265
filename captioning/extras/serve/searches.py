"""Captions under constraints, such as words that must occur, and captions drawn at random.

Constrained beam search keeps a beam per set of requirements that are met (Anderson et al. 2017,
"Guided Open Vocabulary Image Captioning with Constrained Beam Search", DOI 10.18653/v1/D17-1098):
a caption that has said an improbable word does not compete with those that have not.
"""

import difflib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from captioning.captioner import Captioner
from captioning.captions import Caption
from captioning.checkpoint import Checkpoint
from captioning.errors import InputError
from captioning.extras.study.self_critical import sample
from captioning.vocabulary import END, PAD, START, TOKENIZERS, UNKNOWN, Vocabulary

MOST_REQUIRED = 8  # words; each doubles the number of beams
# English words that end at most one in 10,000 of Flickr8k's training captions
UNFINISHED = "a an the and of with at to is are for as his their its into while through that"


class Constraints(NamedTuple):
    """What a caption must satisfy; words are ids."""

    required: frozenset[int]
    forbidden: frozenset[int]
    never_last: frozenset[int]
    min_words: int
    max_words: int
    ngram: int  # no sequence of so many words occurs twice; 0 allows all

    @classmethod
    def parse(cls, vocabulary: Vocabulary, longest: int, options) -> "Constraints":
        """Of `caption`'s options, for a model that writes up to `longest` words, or InputError."""
        required, forbidden = (_ids(vocabulary, x) for x in (options.require, options.forbid))
        if both := required & forbidden:
            raise InputError(f"{vocabulary.words[min(both)]}: is both required and forbidden")
        if len(required) > MOST_REQUIRED:
            raise InputError(f"{len(required)} words are required, expected up to {MOST_REQUIRED}")
        most = options.max_words or longest
        least = max(options.min_words, len(required))
        if not least <= most <= longest:
            problem = f"captions of {least} to {most} words: this model writes up to {longest}"
            raise InputError(f"{problem}; change --min-words, --max-words or --require")
        unfinished = _ids(vocabulary, filter(vocabulary.__contains__, UNFINISHED.split()))
        ngram = options.no_repeat_ngram
        return cls(required, forbidden, unfinished, options.min_words, most, ngram)

    def blocked(self, words: list[int]) -> list[int]:
        """The ids that may not follow `words`, an unfinished caption."""
        ids = {PAD, START, UNKNOWN, *self.forbidden}
        if self.ngram:
            places = range(self.ngram - 1, len(words))
            tail = words[len(words) - self.ngram + 1 :]
            ids |= {words[i] for i in places if words[i - self.ngram + 1 : i] == tail}
        may_end = len(words) >= self.min_words and self.required.issubset(words)
        if not may_end or (words[-1:] and words[-1] in self.never_last):
            ids.add(END)
        return list(ids)


def _ids(vocabulary: Vocabulary, words: Sequence[str]) -> frozenset[int]:
    """Ids of the tokens of `words`; InputError that names similar words if one is unknown."""
    tokens = [token for word in words for token in TOKENIZERS[vocabulary.tokenizer](word)]
    for token in tokens:
        if token not in vocabulary:
            near = difflib.get_close_matches(token, vocabulary.words)
            hint = f"; it knows {', '.join(near)}" if near else ""
            raise InputError(f"{token}: is not a word that this model knows{hint}")
    return frozenset(vocabulary.encode(tokens)[1:-1])


class Unfinished(NamedTuple):
    """A caption that can be extended."""

    total: float  # log-probability
    row: int  # of the caption that it extends
    words: list[int]
    logs: list[float]  # log-probability of each word


def constrained_beam_search(
    step, image, state, limits: Constraints, width: int, length_penalty: float, n_best: int
) -> list[tuple[list[int], list[float]]]:
    """Up to `n_best` captions of one image: ids up to END and log-probabilities; or InputError."""
    alive, finished = [Unfinished(0.0, 0, [], [])], []
    for t in range(limits.max_words + 1):
        last = [[START if t == 0 else caption.words[-1] for caption in alive]]
        scores, state = step(tf.constant(last), state, image)  # (1, B, V)
        beams = defaultdict(list)  # by the required words that are said
        for row, (caption, logs) in enumerate(zip(alive, scores.numpy()[0], strict=True)):
            open_ = limits.required.difference(caption.words)
            logs[limits.blocked(caption.words)] = -np.inf
            best = np.argsort(-logs)[: width + len(open_) + 1].tolist()  # END may be among them
            for word in {*best, *open_, END}:
                if logs[word] == -np.inf:
                    continue
                total = caption.total + float(logs[word])
                words, each = [*caption.words, word], [*caption.logs, float(logs[word])]
                if word == END:
                    finished.append((total / len(words) ** length_penalty, words, each))
                else:
                    beams[open_ - {word}].append(Unfinished(total, row, words, each))
        finished = sorted(finished, reverse=True)[:n_best]
        alive = [c for beam in beams.values() for c in sorted(beam, reverse=True)[:width]]
        bound = max((c.total for c in alive), default=-np.inf)
        bound /= (limits.max_words + 1) ** length_penalty
        if not alive or (len(finished) == n_best and bound <= finished[-1][0]):
            break
        state = [tf.gather(part, [caption.row for caption in alive]) for part in state]
    if not finished:
        raise InputError("no caption satisfies the constraints; relax them")
    return [(words, each) for _, words, each in finished]


class ConstrainedCaptioner(Captioner):
    """A captioner whose captions satisfy the constraints of `caption`'s options."""

    def __init__(self, checkpoint: Checkpoint, options):
        super().__init__(checkpoint, options.encoder)
        self.limits = Constraints.parse(self.vocabulary, self.model.config.max_words, options)
        self._step = tf.function(self.model.step, autograph=False, reduce_retracing=True)

    def caption_features(self, features, beam_width, length_penalty, n_best=1) -> list[Caption]:
        """As `Captioner.caption_features`; InputError if no caption satisfies the constraints."""
        search = (self.limits, max(beam_width, n_best), length_penalty, n_best)
        captions = []
        for feature in features:
            start = self.model.encode_image(tf.constant(feature[None])), self.model.initial_state(1)
            found = constrained_beam_search(self._step, *start, *search)
            captions.append(Caption.from_search(self.vocabulary, *zip(*found, strict=True)))
        return captions


class SamplingCaptioner(Captioner):
    """A captioner that draws its captions, see `sample`, as options say."""

    def __init__(self, checkpoint: Checkpoint, options):
        super().__init__(checkpoint, options.encoder)
        self._seed, self._images = options.seed, 0
        how = (self.model.config.max_words, options.temperature, options.top_p)
        signature = [tf.TensorSpec((1, *self.model.feature_shape)), tf.TensorSpec(2, tf.int32)]

        def draw(features, seed):
            return sample(self.model, features, options.sample, seed, *how)

        self._draw = tf.function(draw, signature, autograph=False)

    def caption_features(self, features: np.ndarray, **search) -> list[Caption]:
        """Captions in the order drawn; the n-th image is drawn with the seed and n."""
        captions = []
        for feature in features.astype(np.float32):
            drawn = self._draw(feature[None], [self._seed, self._images])
            found = (part[0].numpy() for part in drawn)
            captions.append(Caption.from_search(self.vocabulary, *found))
            self._images += 1
        return captions
