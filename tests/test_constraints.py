"""Constrained beam search on scripted models, and the options of `caption`."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from test_decoding import MAX_WORDS, SIZE, WORDS, Constant, Scripted

from captioning import decoding
from captioning.captioner import Captioner
from captioning.config import Config
from captioning.decoding import decode_greedily
from captioning.errors import InputError
from captioning.extras.serve.searches import Constraints, beam_search, sample
from captioning.vocabulary import END, PAD, SPECIALS, START, UNKNOWN, Vocabulary

FREE = Constraints(MAX_WORDS)
CAPTIONS = [
    list(words) for n in range(MAX_WORDS + 1) for words in itertools.product(WORDS, repeat=n)
]


def begin(model):
    """`step` of the first script of a scripted model."""
    image, state = model.encode_image(tf.zeros((1, 1))), model.initial_state(1)

    def step(words, rows):
        nonlocal state
        state = [tf.gather(part, rows) for part in state]
        scores, state = model.step(tf.constant([words]), state, image)
        return scores.numpy()[0]

    return step


def search(model, limits, width, length_penalty=0.7, n_best=1):
    return beam_search(begin(model), limits, width, length_penalty, n_best)


def has_repetition(words, n):
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) < len(ngrams)


def each(*words):
    return frozenset(frozenset({word}) for word in words)


CASES = {
    "free": (FREE, lambda words: True),
    "required": (FREE._replace(required=each(4, 6)), lambda words: {4, 6} <= {*words}),
    "one of two": (
        FREE._replace(required=frozenset({frozenset({4, 6})})),
        lambda words: {4, 6} & {*words},
    ),
    "forbidden": (FREE._replace(forbidden=frozenset({4, 5})), lambda words: not {4, 5} & {*words}),
    "last word": (
        FREE._replace(never_last=frozenset({5, 6})),
        lambda words: words[-1:] in ([], [4]),
    ),
    "length": (FREE._replace(min_words=1, max_words=2), lambda words: 1 <= len(words) <= 2),
    "no word twice": (FREE._replace(ngram=1), lambda words: not has_repetition(words, 1)),
    "no pair twice": (FREE._replace(ngram=2), lambda words: not has_repetition(words, 2)),
    "all": (
        Constraints(3, 2, 2, each(4), frozenset({5}), frozenset({4})),
        lambda words: 4 in words and 5 not in words and words[-1] != 4 and len(words) > 1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wide_search_finds_the_best_of_all_captions_that_satisfy_the_constraints(case):
    limits, is_good = CASES[case]
    for seed in range(3):
        model = Scripted(seed, sharpness=3.0)
        good = [words for words in CAPTIONS if is_good(words)]
        score = lambda ids: model.log_probability(0, ids) / len(ids) ** 0.7  # noqa: B023, E731
        expected = sorted(([*words, END] for words in good), key=score, reverse=True)[:5]
        found = search(model, limits, 100, n_best=5)
        assert [ids for ids, _ in found] == expected
        for ids, logs in found:
            assert sum(logs) == pytest.approx(model.log_probability(0, ids), abs=1e-4)


def compiled(model, width, **options):
    """The captions of the compiled search."""
    features = tf.zeros((1, 1))
    if width == 1:
        found = decode_greedily(model, features, MAX_WORDS)
    else:
        found = decoding.beam_search(model, features, width, 0.7, MAX_WORDS, **options)
    return [row[: row.index(END) + 1] for row in found.words[0].numpy().tolist()]


@pytest.mark.parametrize(("min_words", "ngram"), [(2, 0), (0, 1), (0, 2), (3, 2), (0, 9)])
def test_the_compiled_search_keeps_the_constraints_of_a_model(min_words, ngram):
    for seed, width in itertools.product(range(5), (2, 5, 40)):
        model = Scripted(seed, sharpness=5.0)
        found = search(model, Constraints(MAX_WORDS, min_words, ngram), width)
        assert compiled(model, width, min_words=min_words, ngram=ngram) == [found[0][0]]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_narrow_search_is_beam_search_and_still_says_what_is_required(width):
    for seed in range(5):
        model = Scripted(seed, sharpness=5.0)
        found = search(model, FREE, width, n_best=width)
        plain = compiled(model, width, n_best=width)
        assert [ids for ids, _ in found] == plain
        found = search(model, FREE._replace(required=each(*WORDS)), width)
        assert set(found[0][0]) == {*WORDS, END}
        found = search(model, FREE._replace(never_last=frozenset(WORDS[:2])), width)
        assert {*WORDS[:2]}.isdisjoint(found[0][0][-2:-1])


def test_constraints_that_cannot_hold_are_reported():
    vocabulary = Vocabulary([*SPECIALS, "a", "dog", "dogs", "grass", *"bcdefghi"], [0] * 16)
    none = {"require": [], "forbid": [], "min_words": None, "max_words": None, "beam_width": 5}
    none |= {"no_repeat_ngram": None, "n_best": 1}
    config = Config(max_words=20, min_words=7, no_repeat_ngram=3)

    def parse(**options):
        return Constraints.parse(vocabulary, config, SimpleNamespace(**none | options))

    lengths = {"min_words": 3, "max_words": 9, "no_repeat_ngram": 2}
    limits = parse(require=["Dog", "grass!"], forbid=["dogs a"], **lengths)
    assert limits == (9, 3, 2, each(5, 7), frozenset({6, 4}), frozenset({4}))
    assert parse()[:3] == (20, 7, 3)  # the model's own
    assert parse(max_words=5)[:3] == (5, 5, 3)
    assert Constraints.of(Config(max_words=5, min_words=9), 5).min_words == 5
    assert parse(beam_width=1, require=["dog"])[:3] == (20, 0, 0)
    assert parse(beam_width=1, n_best=2)[:3] == (20, 7, 3)
    for problem, arguments in {
        "cat: is not a word that this model knows": {"forbid": ["cat"]},
        "doggs: is not a word that this model knows; it knows dogs, dog": {"require": ["doggs"]},
        "dog: is both required and forbidden": {"require": ["dog"], "forbid": ["dogs", "dog"]},
        "9 words are required, expected up to 8": {"require": "abcdefghi"},
        "captions of 7 to 21 words: this model writes up to 20": {"max_words": 21},
        "captions of 5 to 4 words": {"min_words": 5, "max_words": 4},
        "captions of 2 to 1 words": {"require": ["dog", "grass"], "max_words": 1},
    }.items():
        with pytest.raises(InputError, match=problem):
            parse(**arguments)
    with pytest.raises(InputError, match="no caption satisfies"):
        search(Scripted(0), FREE._replace(never_last=frozenset(WORDS), min_words=1), 5)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, {END: 2, 4: 3, 5: 2, 6: 1}),
        (0.5, 1.0, {END: 4, 4: 9, 5: 4, 6: 1}),  # squares of the probabilities
        (1.0, 0.65, {END: 2, 4: 3, 5: 2}),
        (1.0, 0.3, {4: 1}),
    ],
)
def test_samples_follow_the_distribution_that_temperature_and_top_p_sharpen(
    temperature, top_p, expected
):
    model = Constant([0.05, 0.05, 0.2, 0.1, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(3)
    found = sample(begin(model), 20_000, 1, rng, temperature, top_p)
    counts = np.bincount([ids[0] for ids, _ in found], minlength=SIZE)
    wanted = np.array([expected.get(word, 0) for word in range(SIZE)])
    np.testing.assert_allclose(counts / counts.sum(), wanted / wanted.sum(), atol=0.012)
    for ids, logs in found[:100]:  # probabilities are those of the model
        assert logs == pytest.approx(model.scores.numpy()[ids].tolist(), rel=1e-5)


def test_samples_of_a_scripted_model_end_in_time_without_special_tokens():
    model = Scripted(9)
    draw = lambda seed: sample(begin(model), 50, MAX_WORDS, np.random.default_rng(seed))  # noqa: E731
    assert draw(1) == draw(1) != draw(2)
    for ids, logs in draw(1):
        assert ids[-1] == END
        assert len(ids) <= MAX_WORDS + 1
        assert not {PAD, START, UNKNOWN} & {*ids}
        assert sum(logs) == pytest.approx(model.log_probability(0, ids), abs=1e-4)


def test_the_command_takes_every_kind_of_search(script, tiny_checkpoint, photographs):
    vocabulary = Captioner.load(tiny_checkpoint).vocabulary

    def caption(*options):
        arguments = ["caption", photographs[0], "--model", tiny_checkpoint, *options]
        status, out, err = script("captioning/__main__.py", *arguments)
        return (out, err)[status // 2]

    best = json.loads(caption("--n-best", 3, "--json"))
    assert len(best["alternatives"]) == 2
    lines = caption("--n-best", 3).splitlines()
    texts = [best["caption"], *(other["caption"] for other in best["alternatives"])]
    assert lines == [f"{photographs[0]}: {text}" for text in texts]
    odd = ["--require", vocabulary.words[-1], "--forbid", "red", "--max-words", 6, "--json"]
    words = json.loads(caption(*odd))["caption"].split()
    assert vocabulary.words[-1] in words
    assert "red" not in words
    assert len(words) <= 6
    draw = ["--sample", 4, "--temperature", 2, "--json"]
    assert len(json.loads(caption(*draw))["alternatives"]) == 3
    assert caption(*draw, "--seed", 1) == caption(*draw, "--seed", 1) != caption(*draw)
    assert "--sample draws freely" in caption(*draw, "--min-words", 2)
    assert "--top-p goes with --sample" in caption("--top-p", 0.5)
    assert json.loads(caption(*draw))["model"] == str(tiny_checkpoint)
    assert "zebra: is not a word" in caption("--require", "zebra")
