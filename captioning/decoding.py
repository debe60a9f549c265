"""From image features to captions: greedy decoding and beam search, in batches.

Each search is one compiled graph: the image is encoded once, each word costs one step of the RNN,
and images whose captions are finished leave the batch. A model needs three methods:
`encode_image`, `initial_state` and `step`, see `captioning.model.MergeDecoder`.

Shapes: I images, W captions per image (the beam width), V words in the vocabulary; L is
max_words + 1, room for END.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from captioning.vocabulary import END, PAD, START, UNKNOWN

IMPOSSIBLE = -1e9  # added to a log-probability


class Captions(NamedTuple):
    """Decoded captions."""

    words: tf.Tensor  # int32 (I, W, L), ids up to END, then pads
    log_probabilities: tf.Tensor  # float32 (I, W, L), of each word given those before; 0 at pads

    def append(self, t, words, log_probabilities) -> "Captions":
        """Captions with a word (I, W) and its log-probability at position t, which was empty."""
        size = self.words.shape[-1]
        return Captions(
            self.words + words[:, :, None] * tf.one_hot(t, size, dtype=tf.int32),
            self.log_probabilities + log_probabilities[:, :, None] * tf.one_hot(t, size),
        )

    def take(self, places) -> "Captions":
        """For each image the captions at `places` (I, N)."""
        return Captions(*(tf.gather(part, places, batch_dims=1) for part in self))


def _empty(images, width: int, max_words: int) -> Captions:
    shape = (images, width, max_words + 1)
    return Captions(tf.zeros(shape, tf.int32), tf.zeros(shape))


def _search(steps: int, image: tuple, found: tuple, state: tuple, is_open: Callable, extend):
    """Extend captions word by word until every image is finished, or `steps` times -> `found`.

    All tensors are (I, ...), with I unknown or 1 in a graph. `is_open` (found, state) -> bool (I,):
    the unfinished images; `extend` (t, image, found, state) -> found, state after word t.
    """
    first = tf.nest.flatten(found)[0]
    one_image = first.shape[0] == 1  # all shapes stay static, as XLA needs them

    def store(results, places, found):
        return tf.nest.map_structure(
            lambda old, new: tf.tensor_scatter_nd_update(old, places[:, None], new), results, found
        )

    def extend_and_shrink(t, results, places, image, found, state):
        found, state = extend(t, image, found, state)
        batch = (results, places, image, found, state)
        if one_image:
            return t + 1, *batch
        unfinished = tf.where(is_open(found, state))[:, 0]

        def shrink():
            kept = tf.nest.map_structure(lambda x: tf.gather(x, unfinished), batch[1:])
            return store(results, places, found), *kept

        # shrinking copies what is kept: it is worth it once a quarter is finished
        is_worth_it = 4 * tf.size(unfinished) <= 3 * tf.size(places)
        return t + 1, *tf.cond(is_worth_it, shrink, lambda: batch)

    _, results, places, _, found, _ = tf.while_loop(
        lambda t, results, places, image, found, state: tf.reduce_any(is_open(found, state)),
        extend_and_shrink,
        (0, found, tf.range(tf.shape(first)[0]), image, found, state),
        maximum_iterations=steps,
    )
    return found if one_image else store(results, places, found)


def _start(model, features: tf.Tensor, width: int) -> tuple:
    """Before the first word of `width` captions per image: I, words (I, W), state (I, W, ...)."""
    images = features.shape[0] or tf.shape(features)[0]  # a number if the graph is for so many
    state = model.initial_state(images * width)
    state = [tf.reshape(part, (images, width, *part.shape[1:])) for part in state]
    return images, tf.fill((images, width), START), state


def _step(model, words: tf.Tensor, state: list[tf.Tensor], image) -> tuple:
    """`model.step` with a state (I, W, ...) and without the special tokens other than END."""
    by_row = [tf.reshape(part, (-1, *part.shape[2:])) for part in state]
    scores, by_row = model.step(words, by_row, image)
    scores += IMPOSSIBLE * tf.reduce_sum(tf.one_hot((PAD, START, UNKNOWN), scores.shape[-1]), 0)
    shape = tf.shape(words)
    return scores, [tf.reshape(part, (shape[0], shape[1], *part.shape[1:])) for part in by_row]


def decode_greedily(model, features: tf.Tensor, max_words: int) -> Captions:
    """Take the most probable word at every step: one caption per image of features (I, ...)."""
    return decode(model, features, 1, max_words, lambda scores, t: tf.argmax(scores, axis=-1))


def decode(model, features: tf.Tensor, width: int, max_words: int, choose: Callable) -> Captions:
    """Extend `width` captions per image of features (I, ...) by the words that `choose` picks.

    `choose` takes log-probabilities (I, W, V) and the position t, and returns word ids (I, W).
    """

    def is_open(captions, state):
        return tf.reduce_any((state[0] != END) & (state[0] != PAD), axis=1)

    def extend(t, image, captions, state):
        words, state = state
        scores, state = _step(model, words, state, image)
        chosen = tf.cast(choose(scores, t), tf.int32)
        chosen = tf.where(t == max_words, END, chosen)  # the longest caption ends here
        ended = (words == END) | (words == PAD)
        words = tf.where(ended, PAD, chosen)
        scores = tf.where(ended, 0.0, tf.gather(scores, chosen, batch_dims=2))
        return captions.append(t, words, scores), (words, state)

    images, *state = _start(model, features, width)
    captions, image = _empty(images, width, max_words), model.encode_image(features)
    return _search(max_words + 1, image, captions, tuple(state), is_open, extend)


def _repeats(words: tf.Tensor, t: tf.Tensor, chosen: tf.Tensor, n: int) -> tf.Tensor:
    """Whether `chosen` (I, W, N) repeats an n-gram of captions (I, W, L) of t words; same shape."""
    places = max(0, words.shape[-1] - n + 1)
    is_same = words[:, :, n - 1 :] != PAD  # of the n-gram at every place the words before its last
    for k in range(n - 1):
        last = words[:, :, tf.maximum(t - n + 1 + k, 0), None]
        is_same &= words[:, :, k : k + places] == last
    is_last = chosen[..., None] == words[:, :, None, n - 1 :]  # (I, W, N, places)
    return tf.reduce_any(is_same[:, :, None] & is_last, axis=-1)


def beam_search(
    model, features, width, length_penalty, max_words, n_best=1, min_words=0, ngram=0
) -> Captions:
    """Search for the captions with the largest log-probability / length ** length_penalty.

    The length counts END. `width` unfinished captions are kept, and the best finished ones apart
    from them, so a short caption does not displace a longer one before both are finished. The
    search of an image ends when no unfinished caption can become better. `n_best` captions per
    image of features (I, ...), the best first; all pads where the search found fewer. No caption
    is shorter than `min_words`, and none has an n-gram of `ngram` words twice (0: it may).
    """

    def is_open(found, state):
        # log-probabilities only fall, so an unfinished caption can at best keep its sum and be
        # divided by the greatest length
        (_, best_score), (_, total, *_) = found, state
        return total[:, 0] / float(max_words + 1) ** length_penalty > best_score[:, -1]

    def extend(t, image, found, state):
        (best, best_score), (alive, total, words, state) = found, state
        scores, state = _step(model, words, state, image)  # (I, W, V)
        ending = tf.where(t < min(min_words, max_words), IMPOSSIBLE, scores[:, :, END])
        ended = alive.append(t, tf.fill(tf.shape(words), END), ending)
        ended_score = (total + ending) / tf.cast(t + 1, tf.float32) ** length_penalty
        ended_score = tf.where(total > IMPOSSIBLE / 2, ended_score, IMPOSSIBLE)
        best_score, place = tf.math.top_k(tf.concat([best_score, ended_score], 1), n_best)
        both = Captions(*(tf.concat(parts, 1) for parts in zip(best, ended, strict=True)))
        best = both.take(place)

        # the W best of all are among the W best of each, of which none repeats an n-gram
        each = min(width + max_words * bool(ngram), scores.shape[-1])
        scores += IMPOSSIBLE * tf.one_hot(END, scores.shape[-1])
        scores, words = tf.math.top_k(scores, each)  # (I, W, each)
        if ngram:
            scores = tf.where(_repeats(alive.words, t, words, ngram), IMPOSSIBLE, scores)
        candidates = tf.reshape(total[:, :, None] + scores, (-1, width * each))
        total, place = tf.math.top_k(candidates, width)  # (I, W)
        words = tf.gather(tf.reshape(words, (-1, width * each)), place, batch_dims=1)
        scores = tf.gather(tf.reshape(scores, (-1, width * each)), place, batch_dims=1)
        beam = place // each
        alive = alive.take(beam).append(t, words, scores)
        state = [tf.gather(part, beam, batch_dims=1) for part in state]
        return (best, best_score), (alive, total, words, state)

    images, words, state = _start(model, features, width)
    found = _empty(images, n_best, max_words), tf.fill((images, n_best), IMPOSSIBLE)
    # all beams start equal: only the first may be extended, or they would stay copies
    total = tf.tile([[0.0] + [IMPOSSIBLE] * (width - 1)], (images, 1))
    state = _empty(images, width, max_words), total, words, state
    return _search(max_words + 1, model.encode_image(features), found, state, is_open, extend)[0]
