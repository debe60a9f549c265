"""Constrained beam search on scripted models, and the options of `caption`."""

import itertools
import json
from types import SimpleNamespace

import pytest
import tensorflow as tf
from test_decoding import MAX_WORDS, WORDS, Scripted

from captioning.captioner import Captioner
from captioning.decoding import beam_search
from captioning.errors import InputError
from captioning.extras.serve.searches import Constraints, constrained_beam_search
from captioning.vocabulary import END, SPECIALS, Vocabulary

FREE = Constraints(frozenset(), frozenset(), frozenset(), 0, MAX_WORDS, 0)
CAPTIONS = [
    list(words) for n in range(MAX_WORDS + 1) for words in itertools.product(WORDS, repeat=n)
]


def search(model, limits, width, length_penalty=0.7, n_best=1):
    image = model.encode_image(tf.zeros((1, 1)))
    start = (model.step, image, model.initial_state(1))
    return constrained_beam_search(*start, limits, width, length_penalty, n_best)


def has_repetition(words, n):
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) < len(ngrams)


CASES = {
    "free": (FREE, lambda words: True),
    "required": (FREE._replace(required=frozenset({4, 6})), lambda words: {4, 6} <= {*words}),
    "forbidden": (FREE._replace(forbidden=frozenset({4, 5})), lambda words: not {4, 5} & {*words}),
    "last word": (
        FREE._replace(never_last=frozenset({5, 6})),
        lambda words: words[-1:] in ([], [4]),
    ),
    "length": (FREE._replace(min_words=1, max_words=2), lambda words: 1 <= len(words) <= 2),
    "no word twice": (FREE._replace(ngram=1), lambda words: not has_repetition(words, 1)),
    "no pair twice": (FREE._replace(ngram=2), lambda words: not has_repetition(words, 2)),
    "all": (
        Constraints(frozenset({4}), frozenset({5}), frozenset({4}), 2, 3, 2),
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


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_narrow_search_is_beam_search_and_still_says_what_is_required(width):
    for seed in range(5):
        model = Scripted(seed, sharpness=5.0)
        found = search(model, FREE, width, n_best=width)
        plain = beam_search(model, tf.zeros((1, 1)), width, 0.7, MAX_WORDS, width).words[0].numpy()
        assert [ids for ids, _ in found] == [row[: row.index(END) + 1] for row in plain.tolist()]
        found = search(model, FREE._replace(required=frozenset(WORDS)), width)
        assert set(found[0][0]) == {*WORDS, END}


def test_constraints_that_cannot_hold_are_reported():
    vocabulary = Vocabulary([*SPECIALS, "a", "dog", "dogs", "grass", *"bcdefghi"], [0] * 16)
    none = {"require": [], "forbid": [], "min_words": 0, "max_words": None, "no_repeat_ngram": 0}

    def parse(**options):
        return Constraints.parse(vocabulary, 20, SimpleNamespace(**none | options))

    lengths = {"min_words": 3, "max_words": 9, "no_repeat_ngram": 2}
    limits = parse(require=["Dog", "grass!"], forbid=["dogs a"], **lengths)
    assert limits == (frozenset({5, 7}), frozenset({6, 4}), frozenset({4}), 3, 9, 2)
    for problem, arguments in {
        "cat: is not a word that this model knows": {"forbid": ["cat"]},
        "doggs: is not a word that this model knows; it knows dogs, dog": {"require": ["doggs"]},
        "dog: is both required and forbidden": {"require": ["dog"], "forbid": ["dogs", "dog"]},
        "9 words are required, expected up to 8": {"require": "abcdefghi"},
        "captions of 0 to 21 words: this model writes up to 20": {"max_words": 21},
        "captions of 5 to 4 words": {"min_words": 5, "max_words": 4},
        "captions of 2 to 1 words": {"require": ["dog", "grass"], "max_words": 1},
    }.items():
        with pytest.raises(InputError, match=problem):
            parse(**arguments)
    with pytest.raises(InputError, match="no caption satisfies"):
        search(Scripted(0), FREE._replace(never_last=frozenset(WORDS), min_words=1), 5)


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
    assert "zebra: is not a word" in caption("--require", "zebra")
