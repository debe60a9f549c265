"""Searches on scripted models, whose every caption's probability is known beforehand."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from captioning.decoding import beam_search, decode_greedily
from captioning.extras.study.self_critical import sample
from captioning.vocabulary import END, PAD, START, UNKNOWN

WORDS = (4, 5, 6)
SIZE = 4 + len(WORDS)
MAX_WORDS = 3
SPECIALS = [PAD, START, UNKNOWN]


class Scripted:
    """Looks the next word's log-probabilities up, by image and prefix.

    A prefix is the number that its ids are the digits of, base SIZE; `features` (I, 1) say which
    script each image follows.
    """

    def __init__(self, seed, scripts=2, longest=MAX_WORDS, sharpness=2.0):
        rng = np.random.default_rng(seed)
        prefixes = SIZE ** (longest + 1)
        logits = rng.normal(0, sharpness, (scripts, prefixes, SIZE)).astype(np.float32)
        self.table = np.array(tf.nn.log_softmax(logits))

    def encode_image(self, features):
        return (tf.cast(features[:, 0], tf.int32),)

    def initial_state(self, count):
        return [tf.zeros((count, 1), tf.int32)]

    def step(self, words, state, image):
        prefix = state[0] * SIZE + tf.reshape(words, (-1, 1))
        script = tf.repeat(image[0], tf.shape(words)[1])
        scores = tf.gather_nd(self.table, tf.stack([script, prefix[:, 0]], axis=1))
        return tf.reshape(scores, (*tf.unstack(tf.shape(words)), SIZE)), [prefix]

    def log_probability(self, script, caption):
        """Of a whole caption, ids from the first word to END."""
        total, prefix = 0.0, START
        for word in caption:
            total += self.table[script, prefix, word]
            prefix = prefix * SIZE + word
        return total

    def greedy(self, script, max_words):
        """The most probable word again and again, in plain Python."""
        caption, prefix = [], START
        while len(caption) < max_words:
            scores = self.table[script, prefix].copy()
            scores[SPECIALS] = -np.inf
            word = int(scores.argmax())
            caption.append(word)
            if word == END:
                return caption
            prefix = prefix * SIZE + word
        return [*caption, END]

    def ranked(self, script, max_words, length_penalty):
        """All captions, the best first."""
        captions = [
            [*words, END]
            for length in range(max_words + 1)
            for words in itertools.product(WORDS, repeat=length)
        ]
        return sorted(
            captions, key=lambda c: -self.log_probability(script, c) / len(c) ** length_penalty
        )


FEATURES = tf.constant([[0.0], [1.0], [0.0]])
EVERY_CAPTION = sum(len(WORDS) ** length for length in range(MAX_WORDS + 1))


def totals(captions):
    """Log-probabilities (I, W) of whole captions."""
    return captions.log_probabilities.numpy().sum(-1)


def trimmed(row):
    """Ids up to END, after checking that pads alone follow."""
    row = np.asarray(row).tolist()
    end = row.index(END)
    assert set(row[end + 1 :]) <= {PAD}
    return row[: end + 1]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_search_takes_the_best_word_at_every_step(seed):
    model = Scripted(seed)
    found = decode_greedily(model, FEATURES, MAX_WORDS)
    assert found.words.shape == (3, 1, MAX_WORDS + 1)
    firsts = zip((0, 1, 0), found.words.numpy()[:, 0], totals(found)[:, 0], strict=True)
    for script, caption, score in firsts:
        expected = model.greedy(script, MAX_WORDS)
        assert trimmed(caption) == expected
        assert score == pytest.approx(model.log_probability(script, expected), abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_optimum(seed, length_penalty):
    model = Scripted(seed)
    found = beam_search(model, FEATURES, EVERY_CAPTION, length_penalty, MAX_WORDS)
    for script, rows, total in zip((0, 1, 0), found.words.numpy(), totals(found), strict=True):
        best = trimmed(rows[0])
        assert best == model.ranked(script, MAX_WORDS, length_penalty)[0]
        assert total[0] == pytest.approx(model.log_probability(script, best), abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
def test_the_n_best_of_a_wide_beam_are_the_n_best_of_all(length_penalty):
    model = Scripted(4)
    found = beam_search(model, FEATURES, EVERY_CAPTION, length_penalty, MAX_WORDS, n_best=7)
    assert found.words.shape == (3, 7, MAX_WORDS + 1)
    for script, rows, total in zip((0, 1, 0), found.words.numpy(), totals(found), strict=True):
        captions = [trimmed(row) for row in rows]
        assert captions == model.ranked(script, MAX_WORDS, length_penalty)[:7]
        expected = [model.log_probability(script, caption) for caption in captions]
        assert total == pytest.approx(expected, abs=1e-4)


def test_alternatives_that_do_not_exist_are_pads():
    captions = 1 + len(WORDS)  # of one word at most
    found = beam_search(Scripted(2), FEATURES, 20, 0.7, 1, n_best=10)
    assert len({tuple(row) for row in found.words[0, :captions].numpy()}) == captions
    assert (found.words.numpy()[:, :captions] == END).any(-1).all()
    assert not found.words.numpy()[:, captions:].any()


class Chain:
    """One word over and over; what is left open is when it ends."""

    def __init__(self, ending):
        """Keep the probabilities (scripts, words said so far) that the caption ends."""
        others = np.full((*ending.shape, SIZE), 1e-12)
        others[:, :, END] = ending
        others[:, :, WORDS[0]] = 1 - ending
        self.table = np.log(others).astype(np.float32)
        self.rows = []

    def encode_image(self, features):
        return (tf.cast(features[:, 0], tf.int32),)

    def initial_state(self, count):
        return [tf.zeros((count, 1), tf.int32)]

    def step(self, words, state, image):
        tf.py_function(lambda rows: self.rows.append(int(rows)), [tf.size(words)], [])
        script = tf.repeat(image[0], tf.shape(words)[1])
        scores = tf.gather_nd(self.table, tf.stack([script, state[0][:, 0]], axis=1))
        return tf.reshape(scores, (*tf.unstack(tf.shape(words)), SIZE)), [state[0] + 1]

    def best_length(self, script, longest, length_penalty):
        """How many words the best caption has, found by trying every length."""
        ends, goes_on = self.table[script, :, END], self.table[script, :, WORDS[0]]
        ranked = [
            (goes_on[:length].sum() + ends[length]) / (length + 1) ** length_penalty
            for length in range(longest + 1)
        ]
        return int(np.argmax(ranked))


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
def test_a_beam_stops_when_nothing_better_can_come_and_no_sooner(length_penalty):
    scripts, longest = 60, 8
    rng = np.random.default_rng(0)
    # Words that are hard to go on with at first and easy later, and the other way round.
    slope = rng.uniform(-1, 1, (scripts, 1)) * (np.arange(longest + 1) - longest / 2)
    model = Chain(1 / (1 + np.exp(slope + rng.normal(0, 1, slope.shape))))
    search = tf.function(
        lambda features: beam_search(model, features, 2, length_penalty, longest),
        input_signature=[tf.TensorSpec((None, 1))],
    )
    lengths = set()
    for script in range(scripts):
        captions = search(tf.constant([[float(script)]])).words
        length = model.best_length(script, longest, length_penalty)
        assert trimmed(captions[0, 0]) == [WORDS[0]] * length + [END]
        lengths.add(length)
    assert len(lengths) > 3
    assert len(model.rows) < scripts * (longest + 1)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_a_beam_returns_what_it_says(width):
    model = Scripted(5)
    found = beam_search(model, FEATURES, width, 1.0, MAX_WORDS)
    assert found.words.shape == (3, 1, MAX_WORDS + 1)
    for image, script in enumerate((0, 1, 0)):
        caption = trimmed(found.words[image, 0])
        each = found.log_probabilities[image, 0].numpy()
        for length in range(1, len(caption) + 1):  # of every word, not of the whole alone
            expected = model.log_probability(script, caption[:length])
            assert each[:length].sum() == pytest.approx(expected, abs=1e-4)
        assert not each[len(caption) :].any()
    np.testing.assert_array_equal(found.words[0], found.words[2])  # the same image


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_is_never_less_probable_than_the_greedy_caption(seed):
    model = Scripted(seed)
    greedy = totals(decode_greedily(model, FEATURES, MAX_WORDS))
    # Of one, which follows the greedy words until they end; of all there are.
    for width in (1, EVERY_CAPTION):
        beam = totals(beam_search(model, FEATURES, width, 0.0, MAX_WORDS))
        assert np.all(beam >= greedy - 1e-5)


@pytest.mark.parametrize("batch", [2, 7, 40])
def test_images_leave_the_batch_when_they_are_done_and_nothing_else_changes(batch):
    """Captions of many lengths: those of a batch are those of its images one by one."""
    scripts, longest = 40, 8
    rng = np.random.default_rng(batch)
    model = Chain(rng.uniform(0.02, 0.7, (scripts, longest + 1)))
    features = tf.constant(rng.permutation(scripts)[:batch, None], tf.float32)
    searches = (
        lambda features: decode_greedily(model, features, longest),
        lambda features: beam_search(model, features, 2, 1.0, longest),
    )
    for search in searches:
        compiled = tf.function(search, input_signature=[tf.TensorSpec((None, 1))])
        model.rows.clear()
        found = compiled(features)
        together = sum(model.rows)
        model.rows.clear()
        alone = [compiled(features[i : i + 1]) for i in range(batch)]
        np.testing.assert_array_equal(found.words, np.concatenate([one.words for one in alone]))
        np.testing.assert_allclose(totals(found), np.concatenate(list(map(totals, alone))), 1e-6)
        lengths = [len(trimmed(row)) for row in found.words.numpy()[:, 0]]
        assert len(set(lengths)) > 1
        # at most a quarter of the rows of a step are of images that were done before
        assert together <= sum(model.rows) / 0.75 + longest


class Constant:
    """The same distribution after every prefix of every image."""

    def __init__(self, probabilities):
        self.scores = tf.math.log(tf.constant(probabilities, tf.float32))

    def encode_image(self, features):
        return ()

    def initial_state(self, count):
        return [tf.zeros((count, 1))]

    def step(self, words, state, image):
        return tf.broadcast_to(self.scores, (*tf.unstack(tf.shape(words)), SIZE)), state


TEMPTING = [0.3, 0.3, 0.01, 0.3, 0.06, 0.02, 0.01]  # pads, starts and unknowns above all words


@pytest.mark.parametrize("max_words", [1, 4])
def test_special_tokens_are_never_said_and_captions_end_in_time(max_words):
    model = Constant(TEMPTING)
    found = [
        decode_greedily(model, FEATURES, max_words)[0],
        beam_search(model, FEATURES, 3, 1.0, max_words)[0],
        sample(model, FEATURES, 50, tf.constant([0, 0]), max_words)[0],
    ]
    for captions in found:
        assert captions.shape[-1] == max_words + 1
        for row in captions.numpy().reshape(-1, max_words + 1):
            said = trimmed(row)
            assert not set(said) & set(SPECIALS)
            assert len(said) <= max_words + 1
    assert trimmed(found[0][0, 0]) == [4] * max_words + [END]


def test_samples_follow_the_distribution():
    probabilities = np.array([0.05, 0.05, 0.2, 0.1, 0.3, 0.2, 0.1])
    model = Constant(probabilities)
    found = sample(model, tf.zeros((4, 1)), 5000, tf.constant([7, 1]), max_words=1)
    first = found.words.numpy()[:, :, 0].ravel()
    expected = probabilities.copy()
    expected[SPECIALS] = 0
    expected /= expected.sum()
    np.testing.assert_allclose(np.bincount(first, minlength=SIZE) / len(first), expected, atol=0.01)
    # One word tells nothing of the next.
    pairs = sample(model, tf.zeros((4, 1)), 5000, tf.constant([7, 1]), max_words=2)[0].numpy()
    both = (pairs[:, :, :2] == WORDS[0]).all(-1).mean()
    assert both == pytest.approx(expected[WORDS[0]] ** 2, abs=0.01)
    said = np.log(probabilities)[first] + np.where(first == END, 0, np.log(probabilities[END]))
    np.testing.assert_allclose(totals(found).ravel(), said, atol=1e-5)


def test_the_same_seed_draws_the_same_samples():
    model = Scripted(8)

    def draw(*seed):
        return sample(model, FEATURES, 20, tf.constant(seed), MAX_WORDS)[0].numpy()

    np.testing.assert_array_equal(draw(1, 2), draw(1, 2))
    assert (draw(1, 2) != draw(1, 3)).any()
    assert (draw(1, 2)[0] != draw(1, 2)[2]).any()  # the same image twice draws for itself


def test_samples_of_a_scripted_model_carry_their_log_probability():
    model = Scripted(9)
    found = sample(model, FEATURES, 20, tf.constant([0, 0]), MAX_WORDS)
    for script, rows, scores in zip((0, 1, 0), found.words, totals(found), strict=True):
        for row, score in zip(rows, scores, strict=True):
            assert score == pytest.approx(model.log_probability(script, trimmed(row)), abs=1e-4)
