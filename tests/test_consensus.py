"""Captions spread over a model's distribution, and the caption that agrees with them."""

import json
from collections import Counter

import numpy as np
import pytest
from test_constraints import begin
from test_decoding import MAX_WORDS, Constant, Scripted

from captioning.captioner import Captioner
from captioning.extras.serve.consensus import BLEU_WEIGHT, MATCHED, WORDS, agreement, bleu_gain
from captioning.extras.serve.searches import sample
from captioning.metrics import CiderD, ngram_counts
from captioning.vocabulary import END, SPECIALS, START, UNKNOWN, Vocabulary

# as often as if words were independent: "a" in all 64 captions, "dog" in half, the others in 8
VOCABULARY = Vocabulary([*SPECIALS, "a", "dog", "cat", "runs"], [0, 64, 64, 0, 64, 32, 8, 8])
encode = lambda *texts: [VOCABULARY.encode(text.split())[1:] for text in texts]  # noqa: E731
OTHERS = encode("a dog runs", "a dog runs", "a dog", "a cat runs")


def test_captions_are_spread_in_proportion_to_their_probabilities():
    model = Constant([0.05, 0.05, 0.2, 0.1, 0.3, 0.2, 0.1])
    found = Counter(ids[0] for ids, _ in sample(begin(model), 800, 1))
    assert found == {END: 200, 4: 300, 5: 200, 6: 100}  # without the 20 % of other tokens

    model, n = Scripted(9), 20_000
    counts = Counter(tuple(ids) for ids, _ in sample(begin(model), n, MAX_WORDS))
    free = dict.fromkeys(counts, 0.0)
    for caption in free:  # the probability if no other token is ever written
        probability, prefix = 1.0, START
        for word in caption[:MAX_WORDS]:
            weights = np.exp(model.table[0, prefix].astype(np.float64))
            weights[[0, START, UNKNOWN]] = 0
            probability *= weights[word] / weights.sum()
            prefix = prefix * len(weights) + word
        free[caption] = probability
    assert max(abs(counts[caption] - n * free[caption]) for caption in free) < 1.001


def test_agreement_has_the_mean_cider_d_with_rarity_from_the_words():
    others, captions = OTHERS, encode("a dog runs", "a cat runs", "dog", "a")
    found = agreement(VOCABULARY, captions, others) - BLEU_WEIGHT * bleu_gain(captions, others)
    # 64 documents in which words are independent: "a dog" in 32, "cat runs" in 1, "dog runs" in 4
    shares = {4: 1, 5: 1 / 2, 6: 1 / 8, 7: 1 / 8, END: 1}
    ngrams = set().union(*map(ngram_counts, captions + others))
    frequencies = {g: max(1, 64 * np.prod([shares[word] for word in g])) for g in ngrams}
    each = [
        [CiderD([[other]], range(64), frequencies).scores([0], [c])[0] for other in others]
        for c in captions
    ]
    assert found == pytest.approx(np.mean(each, axis=1))


def test_the_gain_in_bleu_is_of_n_grams_that_one_of_five_has_as_often():
    chance = {n: 1 - (1 - n / 4) ** 5 for n in range(5)}  # of n-grams that n of the four have
    ones, twos = (chance[4] + 2 * chance[3]) / MATCHED[0], (chance[3] + chance[2]) / MATCHED[1]
    gain = (ones + twos + chance[2] / MATCHED[2]) / 4 - 4 / WORDS  # of "a dog runs"
    assert bleu_gain(encode("a dog runs"), OTHERS) == pytest.approx([gain])
    twice = bleu_gain(encode("a a"), encode("a runs a", "cat a"))  # one of two has the second "a"
    assert twice == pytest.approx((1 + 1 - 1 / 2**5) / MATCHED[0] / 4 - 3 / WORDS)
    assert agreement(VOCABULARY, encode("a dog runs runs", "runs"), encode("a", "dog")).argmax()


def test_the_caption_that_agrees_best_comes_first(script, tiny_checkpoint, photographs):
    captioner = Captioner.load(tiny_checkpoint, names=False)
    feature = captioner.encode([np.full((32, 32, 3), 90, np.uint8)])
    (beam,) = captioner.caption_features(feature, 6, 0.7, 6)
    (found,) = captioner.caption_features(feature, 6, 0.7, 3, 40)
    drawn = sample(captioner.begin(feature[0]), 40, captioner.config.max_words)
    ids = [captioner.vocabulary.encode(c.words)[1:] for c in (beam, *beam.alternatives)]
    scores = agreement(captioner.vocabulary, ids, [words for words, _ in drawn])
    expected = [(beam, *beam.alternatives)[place].text for place in np.argsort(-scores)[:3]]
    assert [c.text for c in (found, *found.alternatives)] == expected

    options = ["--model", tiny_checkpoint, "--json", "--consensus", 20]
    status, out, _ = script("test.py", "--image", photographs[0], "--beam-width", 4, *options)
    same = script("captioning/__main__.py", "caption", photographs[0], "--beam-width", 4, *options)
    assert json.loads(out)["caption"] == json.loads(same[1])["caption"]
    status, _, err = script("test.py", "--image", photographs[0], *options)
    assert (status, err.count("\n")) == (2, 1)
    assert "a consensus chooses among the beam's captions" in err
