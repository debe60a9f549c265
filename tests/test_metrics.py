import math
import random
import shutil
import subprocess
import unicodedata
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning import metrics
from captioning.errors import InputError
from captioning.extras.study import meteor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

WORDS = ["a", "the", "dog", "man", "red", "shirt", "runs", "in", "on", "snow"]


def random_corpus(seed, images=25, words=WORDS, shortest=1, longest=14):
    """Return token lists (references, hypotheses) with repeated words and every kind of overlap."""
    rng = random.Random(seed)

    def caption(words, least=1):
        return rng.choices(words, k=rng.randint(least, longest))

    references, hypotheses = [], []
    for _ in range(images):
        some = rng.sample(words, rng.randint(1, len(words)))
        references.append([caption(some) for _ in range(rng.randint(1, 6))])
        source = rng.choice([some, words, ["x", "y"], None])
        hypotheses.append(caption(source, shortest) if source else list(references[-1][0]))
    return references, hypotheses


def by_pycocoevalcap(metric, references, hypotheses, **options):
    references = [[" ".join(words) for words in captions] for captions in references]
    hypotheses = [[" ".join(words)] for words in hypotheses]
    return metric.compute_score(*map(dict, map(enumerate, (references, hypotheses))), **options)


def test_scores_equal_pycocoevalcap():
    # Few images, few words, captions of hardly any length, some of them empty.
    corners = [random_corpus(s, 1 + s % 3, ["a", "b", "c"], 0, s % 6 + 1) for s in range(150)]
    for corpus in [*map(random_corpus, range(30)), *corners]:
        references, hypotheses = corpus
        expected, expected_each = by_pycocoevalcap(Bleu(), *corpus, verbose=0)
        counts = metrics.bleu_counts(references, hypotheses)
        assert metrics.bleu(counts.sum(axis=0)) == pytest.approx(expected, abs=1e-6)
        np.testing.assert_allclose(metrics.bleu(counts).T, expected_each, atol=1e-6)
        _, expected = by_pycocoevalcap(Rouge(), *corpus)
        np.testing.assert_allclose(metrics.rouge_l(references, hypotheses), expected, atol=1e-6)
        _, expected = by_pycocoevalcap(Cider(), *corpus)
        each = metrics.CiderD(references).scores(range(len(references)), hypotheses)
        np.testing.assert_allclose(each, expected, atol=1e-6)


def bleu_by_hand(references, hypotheses):
    """Corpus BLEU without NLTK."""
    matched, possible, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for captions, hypothesis in zip(references, hypotheses, strict=True):
        most = Counter()
        for caption in captions:
            most |= metrics.ngram_counts(caption)
        for ngram, count in metrics.ngram_counts(hypothesis).items():
            possible[len(ngram) - 1] += count
            matched[len(ngram) - 1] += min(count, most[ngram])
        length += len(hypothesis)
        reference_length += min((abs(len(c) - len(hypothesis)), len(c)) for c in captions)[1]
    penalty = math.exp(min(0, 1 - (reference_length + 1e-9) / (length + 1e-15)))
    precisions = [(m + 1e-15) / (p + 1e-9) for m, p in zip(matched, possible, strict=True)]
    return [penalty * math.prod(precisions[:n]) ** (1 / n) for n in range(1, 5)]


@pytest.mark.parametrize("words", [None, ["x", "y", "x", "y", "x"], ["a"], []])
def test_bleu_of_a_split_equals_bleu_by_hand(words):
    references, hypotheses = random_corpus(seed=0, images=1000)
    hypotheses = hypotheses if words is None else [words] * 1000
    found = metrics.bleu(metrics.bleu_counts(references, hypotheses).sum(axis=0))
    assert found == pytest.approx(bleu_by_hand(references, hypotheses), rel=0, abs=1e-12)


def test_cider_d_takes_rarity_from_the_documents_it_is_given():
    references, hypotheses = random_corpus(seed=1, images=40)
    _, expected = by_pycocoevalcap(Cider(), references, hypotheses)
    some = [3, 17, 31]
    scorer = metrics.CiderD([references[i] for i in some], documents=references)
    scores = scorer.scores(range(3), [hypotheses[i] for i in some])
    np.testing.assert_allclose(scores, expected[some], atol=1e-6)

    # What no document holds is as rare as what one document holds.
    unseen = metrics.CiderD([[["p", "q"]]], documents=references)
    assert unseen.scores([0, 0], [["p", "q"], ["a", "z"]]) == pytest.approx([5, 0])


def test_cider_d_as_a_reward_takes_word_ids_and_repeated_images():
    references, hypotheses = random_corpus(seed=2)
    ids = [[list(map(hash, words)) for words in captions] for captions in references]
    samples = [list(map(hash, words)) for words in hypotheses]
    expected = metrics.CiderD(references).scores(range(len(hypotheses)), hypotheses)
    images = [*range(len(samples)), 4, 4]
    rewards = metrics.CiderD(ids).scores(images, [*samples, samples[4], ids[4][0]])
    np.testing.assert_allclose(rewards[:-2], expected, atol=1e-12)
    assert rewards[-2] == rewards[4]
    assert rewards[-1] > 0


def test_an_oracle_reaches_the_ceiling():
    written = [["A dog runs in the snow .", "Two men"], ["A man wears a red T-shirt !", "A boy"]]
    spoken = ["a dog runs in the snow", "a man wears a red tshirt"]
    scores = metrics.score([captions[:1] for captions in written], spoken)
    ceiling = dict.fromkeys(["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"], 100)
    assert scores == pytest.approx({**ceiling, "CIDEr-D": 1000})
    assert metrics.score(written, spoken)["BLEU-4"] == pytest.approx(100)


def test_score_takes_raw_captions_and_agrees_with_the_single_metrics():
    references, hypotheses = random_corpus(seed=5)
    raw = [[" ".join(words).upper() + " ." for words in r] for r in references]
    spoken = [" , ".join(words) for words in hypotheses]
    scores = metrics.score(raw, spoken)
    tokens, said = metrics.tokenized(raw, spoken)
    cider_d = metrics.CiderD(tokens).scores(range(len(tokens)), said).mean()
    bleu = metrics.bleu(metrics.bleu_counts(references, hypotheses).sum(axis=0))
    expected = np.array([*bleu, metrics.rouge_l(references, hypotheses).mean(), cider_d])
    assert list(scores.values()) == pytest.approx(100 * expected)
    assert all(type(value) is float for value in scores.values())


def test_golden_values():
    references = [["a cat sat"], ["the dog ran home"]]
    scores = metrics.score(references, ["a cat slept", "the dog"])
    penalty = math.exp(1 - 7 / 5)  # five words for seven
    assert scores["BLEU-1"] == pytest.approx(100 * penalty * 4 / 5)
    assert scores["BLEU-2"] == pytest.approx(100 * penalty * math.sqrt(4 / 5 * 2 / 3))
    f_measure = 2.44 * 1 * 0.5 / (0.5 + 1.44 * 1)
    assert scores["ROUGE-L"] == pytest.approx(100 * (2 / 3 + f_measure) / 2)
    # Every n-gram is in one of two documents: all weigh the same, cosines are those of counts.
    first = 10 * (2 / 3 + 1 / 2) / 4
    second = 10 * (2 / math.sqrt(8) + 1 / math.sqrt(3)) / 4 * math.exp(-4 / 72)
    assert scores["CIDEr-D"] == pytest.approx(100 * (first + second) / 2)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man 's T-shirt .", "a man s tshirt"),
        ("a man’s t–shirt…", "a mans tshirt"),
        ('  "Two"\tdogs,\n(wet) & happy = 2 ', "two dogs wet happy 2"),
        ("«Café» ÉTÉ", "café été"),
        (" . ", ""),
    ],
)
def test_scoring_tokens(caption, words):
    assert metrics.scoring_tokens(caption) == words.split()


@settings(deadline=None)
@given(st.text(), st.text(), st.text("\u00ad\u061c\u200b\u200c\u200d\ufeff"), st.data())
def test_composition_and_format_characters_change_no_score(start, end, invisible, data):
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    other = unicodedata.normalize(form, start) + invisible + unicodedata.normalize(form, end)
    references = [["ein Mädchen läuft", start + end], ["zwei Bären"]]
    changed = [["ein Ma\u0308dchen läuft", other], ["\ufeffzwei Bären"]]
    expected = metrics.score(references, [start + end, "Bären"])
    assert metrics.score(changed, [start + end, "Bären"]) == expected
    assert metrics.score(references, [other, "Ba\u0308ren"]) == expected


def test_an_empty_caption_scores_nothing():
    references = [["a dog runs fast"], ["a man sits there"]]
    scores = metrics.score(references, ["", " . "])
    assert scores == pytest.approx(dict.fromkeys(scores, 0), abs=1e-6)
    references, hypotheses = metrics.tokenized(references, ["", references[1][0]])
    assert metrics.CiderD(references).scores([0, 1], hypotheses) == pytest.approx([0, 10])
    assert metrics.rouge_l([[[]]], [[]]) == [0]


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([["a dog"], ["a man"]], ["a dog"], "1 captions for 2 images"),
        ([["a dog"], []], ["a dog", "a man"], "2 images, of which 1 have no references"),
        ([], [], "0 captions for 0 images"),
    ],
)
def test_what_cannot_be_scored_is_rejected(references, hypotheses, message):
    with pytest.raises(InputError, match=message):
        metrics.score(references, hypotheses)


def test_diversity():
    spoken = ["A dog .", "a dog", "two wet dogs run", ""]
    assert metrics.diversity(spoken, ["a DOG!", "two dogs"]) == {
        "vocabulary": 6,
        "distinct": 3 / 4,
        "copied": 2 / 4,
        "length": 8 / 4,
    }


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_equals_pycocoevalcap():
    references = [["The dog is running .", "A dog runs fast"], ["a boy", "a boy sits"]]
    references.append(["A man wearing red", "A guy in a red shirt"])
    spoken = ["a dog runs", "", "a man in a red shirt"]
    # The value of pycocoevalcap's class Meteor, which takes as long again to start.
    expected = {"METEOR": pytest.approx(32.504974822915095, abs=1e-6)}
    assert meteor.meteor(references, spoken) == expected


@pytest.mark.parametrize(
    ("caption", "english"),
    [
        ("A man and a dog in the snow with a red ball", True),
        ("Un chien court dans la neige, un homme a un ballon", False),
        ("Een man is in het water en een hond is op het strand", False),
        ("两只狗在跑", False),
    ],
)
def test_meteor_is_for_english(monkeypatch, caption, english):
    finished = subprocess.CompletedProcess([], 0, stdout="Final score:   0.25\n")
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: finished)
    assert bool(meteor.meteor([[caption]], [caption])) == english


def test_meteor_is_left_out_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert meteor.meteor([["a"]], ["a"]) == {}


@pytest.mark.parametrize(
    ("script", "why"),
    [("exec sleep 60", "timed out"), ("exit 1", "exit status 1"), ("echo hello", "hello")],
)
def test_meteor_that_hangs_or_fails_is_left_out_with_a_warning(tmp_path, monkeypatch, script, why):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(meteor, "TIMEOUT_SECONDS", 0.5)
    with pytest.warns(UserWarning, match=f"METEOR is left out: .*{why}"):
        assert meteor.meteor([["a"]], ["a"]) == {}


def test_meteor_repeats_references_where_images_have_fewer(monkeypatch):
    def read_back(command, **_):
        captions = command[command.index("-l") - 1].read_text().splitlines()
        assert captions == ["a", "b c", "d", "d"]
        assert command[-2:] == ["-r", "2"]
        return subprocess.CompletedProcess(command, 0, stdout="Final score:   0.25\n")

    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(subprocess, "run", read_back)
    assert meteor.meteor([["a", "b c"], ["d"]], ["a", "d"]) == {"METEOR": 25}
