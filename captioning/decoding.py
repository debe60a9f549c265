"""From image features to captions: greedy search, sampling and beam search, batched.

Every search is one compiled graph: the CNN's features are encoded once, each word costs one step
of the RNN, and images whose captions are done leave the batch. Whatever is decoded needs three
methods: `encode_image`, `initial_state` and `step`, see `captioning.model.MergeDecoder`.
"""

from collections.abc import Callable

import tensorflow as tf

from captioning.vocabulary import END, PAD, START, UNKNOWN

MAX_WORDS = 30  # no caption of the training data that a model could learn from is longer
IMPOSSIBLE = -1e9
SHRINK_BELOW = 3 / 4  # of the images still in work: then the others leave the batch


def _never(size: tf.Tensor, *words: int) -> tf.Tensor:
    """Float32 (size,): added to log-probabilities (..., size), it makes `words` impossible."""
    return IMPOSSIBLE * tf.reduce_sum(tf.one_hot(words, size), axis=0)


def _search(
    steps: int,
    image: tuple[tf.Tensor, ...],
    captions: tuple[tf.Tensor, ...],
    state: tuple[tf.Tensor, ...],
    is_open: Callable,
    extend: Callable,
) -> tuple[tf.Tensor, ...]:
    """Extend captions a word at a time until no image is open, or `steps` times.

    All tensors are (I, ...), and images are searched independently of one another.

    Args:
        steps: the most words, END among them.
        image: what the model needs of each image.
        captions: what the search is to find, as it is at first.
        state: what else goes from word to word.
        is_open: (captions, state) -> bool (I,), whether an image needs more words; once it does
            not, further words must not change its captions.
        extend: (t, image, captions, state) -> captions, state after word t.

    Returns:
        `captions` as they are in the end.
    """

    def shapes(tensors):
        images = 1 if captions[0].shape[0] == 1 else None
        return tf.nest.map_structure(lambda x: tf.TensorShape([images, *x.shape[1:]]), tensors)

    def extend_while_open(t, image, captions, state, enough):
        """Extend all captions until no more than `enough` images are open."""

        def is_worth_it(t, captions, state):
            still_open = tf.math.count_nonzero(is_open(captions, state), dtype=tf.int32)
            return (t < steps) & (still_open > enough)

        def extend_all(t, captions, state):
            return t + 1, *extend(t, image, captions, state)

        return tf.while_loop(
            is_worth_it,
            extend_all,
            (t, captions, state),
            (tf.TensorShape([]), shapes(captions), shapes(state)),
        )

    def round_(t, places, image, captions, state, found):
        """Extend until enough images are done, note all captions, and keep the open images."""
        enough = tf.cast(SHRINK_BELOW * tf.cast(tf.size(places), tf.float32), tf.int32)
        t, captions, state = extend_while_open(t, image, captions, state, enough)
        found = tuple(
            tf.tensor_scatter_nd_update(old, places[:, None], new)
            for old, new in zip(found, captions, strict=True)
        )
        still_open = tf.where(is_open(captions, state))[:, 0]
        left = (places, image, captions, state)
        left = tf.nest.map_structure(lambda x: tf.gather(x, still_open), left)
        return t, *left, found

    if captions[0].shape[0] == 1:  # none leaves the batch, and all shapes are known to XLA
        return extend_while_open(0, image, captions, state, 0)[1]
    variables = (0, tf.range(tf.shape(captions[0])[0]), image, captions, state, captions)
    *_, found = tf.while_loop(
        lambda t, places, *_: (t < steps) & (tf.size(places) > 0),
        round_,
        variables,
        (tf.TensorShape([]), *map(shapes, variables[1:])),
    )
    return found


def _image_count(features: tf.Tensor) -> int | tf.Tensor:
    """I of features (I, ...): a number where the graph is made for so many, else a tensor."""
    return tf.shape(features)[0] if features.shape[0] is None else features.shape[0]


def _step(model, words: tf.Tensor, state: list[tf.Tensor], image) -> tuple:
    """`model.step` with a state (I, W, ...): log-probabilities (I, W, V) and the new state."""
    by_row = [tf.reshape(part, (-1, *part.shape[2:])) for part in state]
    scores, by_row = model.step(words, by_row, image)
    shape = tf.shape(words)
    return scores, [tf.reshape(part, (shape[0], shape[1], *part.shape[1:])) for part in by_row]


def _initial_state(model, images: int | tf.Tensor, width: int) -> list[tf.Tensor]:
    """The model's state before the first word of `width` captions an image: (I, W, ...)."""
    state = model.initial_state(images * width)
    return [tf.reshape(part, (images, width, *part.shape[1:])) for part in state]


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
    images, steps = _image_count(features), max_words + 1

    def is_open(captions, state):
        words, _ = state
        return tf.reduce_any((words != END) & (words != PAD), axis=1)

    def extend(t, image, captions, state):
        (captions, total), (words, state) = captions, state
        scores, state = _step(model, words, state, image)
        scores += _never(tf.shape(scores)[-1], PAD, START, UNKNOWN)  # a caption is made of words
        chosen = tf.cast(choose(scores, t), tf.int32)
        chosen = tf.where(t == max_words, END, chosen)  # the longest caption ends here
        ended = (words == END) | (words == PAD)
        total += tf.where(ended, 0.0, tf.gather(scores, chosen, batch_dims=2))
        words = tf.where(ended, PAD, chosen)
        captions += words[:, :, None] * tf.one_hot(t, steps, dtype=tf.int32)
        return (captions, total), (words, state)

    captions = tf.zeros((images, count, steps), tf.int32), tf.zeros((images, count))
    state = tf.fill((images, count), START), _initial_state(model, images, count)
    return _search(steps, model.encode_image(features), captions, state, is_open, extend)


def beam_search(
    model,
    features: tf.Tensor,
    beam_width: int,
    length_penalty: float = 1.0,
    max_words: int = MAX_WORDS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Search for the caption with the largest log-probability / length ** length_penalty.

    The length counts END. `beam_width` unfinished captions are followed, and the best finished one
    is kept apart, so that a short caption does not push a longer one out before both are done. The
    search of an image ends when none of its unfinished captions can become better.

    Args:
        model: what is decoded.
        features: (I, ...) image features.
        beam_width: captions followed at once, W.
        length_penalty: from 0 up; 0 compares plain log-probabilities, 1 means per word.
        max_words: the longest caption, without its end.

    Returns:
        int32 (I, 1, max_words + 1): ids up to END, then pads; float32 (I, 1): log-probabilities.
    """
    images, width, steps = _image_count(features), beam_width, max_words + 1

    def is_open(captions, state):
        # log-probabilities only fall, so the best an unfinished caption can reach is its sum so
        # far over the longest length
        (_, best_score), (_, alive_scores, *_) = captions, state
        return alive_scores[:, 0] / float(steps) ** length_penalty > best_score[:, 0]

    def extend(t, image, captions, state):
        (best, best_score), (alive, alive_scores, words, state) = captions, state
        scores, state = _step(model, words, state, image)  # (I, W, V)
        size = tf.shape(scores)[-1]

        ending = alive_scores + scores[:, :, END]
        ending /= tf.cast(t + 1, tf.float32) ** length_penalty
        ended = alive + END * tf.one_hot(t, steps, dtype=tf.int32)
        best_score, chosen = tf.math.top_k(tf.concat([best_score, ending], 1), 1)
        best = tf.gather(tf.concat([best, ended], 1), chosen, batch_dims=1)

        each = tf.minimum(width, size)  # the W best of all are among the W best of each
        scores += _never(size, PAD, START, UNKNOWN, END)
        scores, words = tf.math.top_k(scores, each)  # (I, W, each)
        scores += alive_scores[:, :, None]
        alive_scores, chosen = tf.math.top_k(tf.reshape(scores, (-1, width * each)), width)
        words = tf.gather(tf.reshape(words, (-1, width * each)), chosen, batch_dims=1)
        beam = chosen // each
        alive = tf.gather(alive, beam, batch_dims=1)
        alive += words[:, :, None] * tf.one_hot(t, steps, dtype=tf.int32)
        state = [tf.gather(part, beam, batch_dims=1) for part in state]
        return (best, best_score), (alive, alive_scores, words, state)

    captions = tf.zeros((images, 1, steps), tf.int32), tf.fill((images, 1), IMPOSSIBLE)
    alive = tf.zeros((images, width, steps), tf.int32)
    # all beams start equal: only the first may be extended, or they would stay copies
    alive_scores = tf.tile([[0.0] + [IMPOSSIBLE] * (width - 1)], (images, 1))
    words = tf.fill((images, width), START)
    state = alive, alive_scores, words, _initial_state(model, images, width)
    image = model.encode_image(features)
    best, best_score = _search(steps, image, captions, state, is_open, extend)
    length = tf.cast(tf.math.count_nonzero(best, axis=-1), tf.float32)
    return best, best_score * length**length_penalty
