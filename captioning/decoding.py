"""From image features to captions: greedy search, sampling and beam search, batched.

Every search is one compiled graph: the CNN's features are encoded once, and each word costs one
step of the RNN. Whatever is decoded needs three methods: `encode_image`, `initial_state` and
`step`, see `captioning.model.MergeDecoder`.
"""

import tensorflow as tf

from captioning.vocabulary import END, PAD, START, UNKNOWN

MAX_WORDS = 30  # no caption of the training data that a model could learn from is longer
IMPOSSIBLE = -1e9


def _forbid_special(log_probabilities: tf.Tensor) -> tf.Tensor:
    """A caption is made of words: pads, starts and unknowns are never chosen."""
    size = tf.shape(log_probabilities)[-1]
    forbidden = tf.reduce_sum(tf.one_hot([PAD, START, UNKNOWN], size), axis=0)
    return log_probabilities + IMPOSSIBLE * forbidden


def decode_greedily(
    model, features: tf.Tensor, max_words: int = MAX_WORDS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Take the most probable word at every step.

    Args:
        model: what is decoded.
        features: (I, ...) image features.
        max_words: the longest caption, without its end.

    Returns:
        int32 (I, 1, max_words + 1): ids up to END, then pads; float32 (I, 1): log-probabilities.
    """
    return _decode(model, features, 1, max_words, lambda scores, t: tf.argmax(scores, axis=-1))


def sample(
    model, features: tf.Tensor, count: int, seed: tf.Tensor, max_words: int = MAX_WORDS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw `count` captions an image from the model's distribution.

    Returns:
        int32 (I, count, max_words + 1): ids up to END, then pads; float32 (I, count):
        log-probabilities.
    """

    def draw(scores: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(scores, (-1, tf.shape(scores)[-1]))
        drawn = tf.random.stateless_categorical(flat, 1, seed + tf.stack([t, 0]))
        return tf.reshape(drawn, tf.shape(scores)[:2])

    return _decode(model, features, count, max_words, draw)


def _decode(model, features, count, max_words, choose) -> tuple[tf.Tensor, tf.Tensor]:
    """Extend `count` captions an image a word at a time, each word picked by `choose`."""
    images, steps = tf.shape(features)[0], max_words + 1
    image = model.encode_image(features)
    state = model.initial_state(images * count)
    words = tf.fill((images, count), START)
    captions = tf.zeros((images, count, steps), tf.int32)
    total = tf.zeros((images, count))

    def unfinished(t, words, *_):
        return (t < steps) & tf.reduce_any((words != END) & (words != PAD))

    def extend(t, words, state, captions, total):
        scores, state = model.step(words, state, image)
        scores = _forbid_special(scores)
        chosen = tf.cast(choose(scores, t), tf.int32)
        chosen = tf.where(t == max_words, END, chosen)  # the longest caption ends here
        ended = (words == END) | (words == PAD)
        total += tf.where(ended, 0.0, tf.gather(scores, chosen, batch_dims=2))
        words = tf.where(ended, PAD, chosen)
        captions += words[:, :, None] * tf.one_hot(t, steps, dtype=tf.int32)
        return t + 1, words, state, captions, total

    *_, captions, total = tf.while_loop(unfinished, extend, (0, words, state, captions, total))
    return captions, total


def beam_search(
    model,
    features: tf.Tensor,
    beam_width: int,
    length_penalty: float = 1.0,
    max_words: int = MAX_WORDS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Search for the captions with the largest log-probability / length ** length_penalty.

    The length counts END. Unfinished and finished captions are kept apart, `beam_width` of each,
    so that a short caption does not push a longer one out before both are done.

    Args:
        model: what is decoded.
        features: (I, ...) image features.
        beam_width: captions followed at once, W.
        length_penalty: from 0 up; 0 compares plain log-probabilities, 1 means per word.
        max_words: the longest caption, without its end.

    Returns:
        int32 (I, W, max_words + 1): ids up to END, then pads, best first; float32 (I, W): their
        log-probabilities.
    """
    images, width, steps = tf.shape(features)[0], beam_width, max_words + 1
    image = model.encode_image(features)
    state = model.initial_state(images * width)
    words = tf.fill((images, width), START)
    alive = tf.zeros((images, width, steps), tf.int32)
    # all beams start equal: only the first may be extended, or they would stay copies
    alive_scores = tf.tile([[0.0] + [IMPOSSIBLE] * (width - 1)], (images, 1))
    done = tf.zeros((images, width, steps), tf.int32)
    done_scores = tf.fill((images, width), IMPOSSIBLE)

    def could_improve(t, words, state, alive, alive_scores, done, done_scores):
        # log-probabilities only fall, so the best an unfinished caption can reach is its sum so
        # far over the longest length
        reachable = alive_scores[:, 0] / float(steps) ** length_penalty
        return (t < steps) & tf.reduce_any(reachable > done_scores[:, -1])

    def extend(t, words, state, alive, alive_scores, done, done_scores):
        scores, state = model.step(words, state, image)
        size = tf.shape(scores)[-1]
        scores = _forbid_special(scores) + alive_scores[:, :, None]  # (I, W, V)

        ending = scores[:, :, END] / tf.cast(t + 1, tf.float32) ** length_penalty
        ended = alive + END * tf.one_hot(t, steps, dtype=tf.int32)
        done_scores, best = tf.math.top_k(tf.concat([done_scores, ending], 1), width)
        done = tf.gather(tf.concat([done, ended], 1), best, batch_dims=1)

        scores += IMPOSSIBLE * tf.one_hot(END, size)
        alive_scores, best = tf.math.top_k(tf.reshape(scores, (images, -1)), width)
        beam, words = best // size, best % size
        alive = tf.gather(alive, beam, batch_dims=1)
        alive += words[:, :, None] * tf.one_hot(t, steps, dtype=tf.int32)
        rows = tf.reshape(tf.range(images)[:, None] * width + beam, (-1,))
        state = [tf.gather(part, rows) for part in state]
        return t + 1, words, state, alive, alive_scores, done, done_scores

    variables = (0, words, state, alive, alive_scores, done, done_scores)
    *_, done, done_scores = tf.while_loop(could_improve, extend, variables)
    length = tf.cast(tf.math.count_nonzero(done, axis=-1), tf.float32)
    return done, done_scores * length**length_penalty
