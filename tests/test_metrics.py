import math
import random
import shutil
import subprocess
import warnings

import numpy as np
import pytest

from captioning import metrics
from captioning.files import InputError

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
        source = rng.choice(["same words", "any words", "no word", "copy"])
        if source == "copy":
            hypotheses.append(list(references[-1][0]))
        else:
            chosen = {"same words": some, "any words": words, "no word": ["x", "y"]}[source]
            hypotheses.append(caption(chosen, shortest))
    return references, hypotheses


def as_strings(references, hypotheses):
    """Return a corpus in the form that pycocoevalcap takes."""
    return (
        {i: [" ".join(words) for words in captions] for i, captions in enumerate(references)},
        {i: [" ".join(words)] for i, words in enumerate(hypotheses)},
    )


ORDINARY = [random_corpus(seed) for seed in range(30)]
# Few images, few words, captions of hardly any length, some of them empty.
CORNERS = [
    random_corpus(
        seed, images=1 + seed % 3, words=["a", "b", "c"], shortest=0, longest=1 + seed % 6
    )
    for seed in range(150)
]


@pytest.mark.parametrize("corpora", [ORDINARY, CORNERS], ids=["ordinary", "corners"])
def test_scores_equal_pycocoevalcap(corpora):
    for references, hypotheses in corpora:
        assert_scores_equal_pycocoevalcap(references, hypotheses)


def assert_scores_equal_pycocoevalcap(references, hypotheses):
    strings = as_strings(references, hypotheses)

    expected, expected_each = Bleu().compute_score(*strings, verbose=0)
    assert metrics.bleu(references, hypotheses) == pytest.approx(expected, abs=1e-6)
    each = [metrics.bleu([r], [h]) for r, h in zip(references, hypotheses, strict=True)]
    np.testing.assert_allclose(np.transpose(each), expected_each, atol=1e-6)

    expected, expected_each = Rouge().compute_score(*strings)
    mean, each = metrics.rouge_l(references, hypotheses)
    assert mean == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(each, expected_each, atol=1e-6)

    expected, expected_each = Cider().compute_score(*strings)
    each = metrics.CiderD(references).scores(range(len(references)), hypotheses)
    assert each.mean() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(each, expected_each, atol=1e-6)


def test_cider_d_takes_rarity_from_the_documents_it_is_given():
    references, hypotheses = random_corpus(seed=1, images=40)
    _, expected = Cider().compute_score(*as_strings(references, hypotheses))
    some = [3, 17, 31]
    scorer = metrics.CiderD([references[i] for i in some], documents=references)
    scores = scorer.scores(range(len(scorer)), [hypotheses[i] for i in some])
    np.testing.assert_allclose(scores, expected[some], atol=1e-6)

    # What no document holds is as rare as what one document holds.
    unseen = metrics.CiderD([[["p", "q"]]], documents=references)
    assert unseen.scores([0, 0], [["p", "q"], ["a", "z"]]) == pytest.approx([5, 0])


def test_cider_d_as_a_reward_takes_word_ids_and_repeated_images():
    references, hypotheses = random_corpus(seed=2)
    number = {word: i for i, word in enumerate([*WORDS, "x", "y"])}
    ids = [[[number[word] for word in words] for words in captions] for captions in references]
    samples = [[number[word] for word in words] for words in hypotheses]
    images = [*range(len(samples)), 4, 4]
    samples += [samples[4], ids[4][0]]

    expected = metrics.CiderD(references).scores(range(len(hypotheses)), hypotheses)
    scorer = metrics.CiderD(ids)
    rewards = scorer.scores(images, samples)
    np.testing.assert_allclose(rewards[:-2], expected, atol=1e-12)
    assert rewards[-2] == rewards[4] == scorer.score_one(4, samples[4])
    assert rewards[-1] > 0


def test_cider_d_counts_the_end_token_when_it_is_a_word():
    references = [[["a", "dog", "runs", "END"]], [["two", "men", "sit", "END"]]]
    scorer = metrics.CiderD(references)
    whole, unfinished = scorer.scores([0, 0], [references[0][0], references[0][0][:-1]])
    assert whole == pytest.approx(10)
    assert unfinished < 8


def test_an_oracle_reaches_the_ceiling():
    written = [
        ["A dog runs in the snow .", "Two men sit there"],
        ["A man wears a red T-shirt !", "A boy"],
    ]
    spoken = ["a dog runs in the snow", "a man wears a red tshirt"]
    scores = metrics.score([captions[:1] for captions in written], spoken)
    assert scores == pytest.approx(
        {"BLEU-1": 100, "BLEU-2": 100, "BLEU-3": 100, "BLEU-4": 100}
        | {"ROUGE-L": 100, "CIDEr-D": 1000}
    )
    scores = metrics.score(written, spoken)
    assert scores["BLEU-4"] == pytest.approx(100)
    assert scores["ROUGE-L"] == pytest.approx(100)
    assert 500 <= scores["CIDEr-D"] < 1000


def test_score_takes_raw_captions_and_agrees_with_the_score_of_each_image():
    references, hypotheses = random_corpus(seed=5)
    raw_references = [[" ".join(words).upper() + " ." for words in r] for r in references]
    raw_hypotheses = [" , ".join(words) for words in hypotheses]
    scores = metrics.score(raw_references, raw_hypotheses)
    assert [scores[f"BLEU-{n}"] / 100 for n in range(1, 5)] == pytest.approx(
        metrics.bleu(references, hypotheses)
    )
    assert scores["ROUGE-L"] == pytest.approx(100 * metrics.rouge_l(references, hypotheses)[0])
    each = metrics.cider_d_per_image(raw_references, raw_hypotheses)
    assert each.shape == (25,)
    assert scores["CIDEr-D"] == pytest.approx(each.mean())
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
        ("a man's t-shirt", "a mans tshirt"),
        ("a man’s t–shirt…", "a mans tshirt"),
        ('  "Two"\tdogs,\n(wet) & happy = 2 ', "two dogs wet happy 2"),
        ("«Café» ÉTÉ", "café été"),
        (" . ", ""),
        ("", ""),
    ],
)
def test_scoring_tokens(caption, words):
    assert metrics.scoring_tokens(caption) == words.split()


def test_an_empty_caption_scores_nothing():
    references = [["a dog runs fast"], ["a man sits there"]]
    assert metrics.score(references, ["", " . "]) == pytest.approx(
        dict.fromkeys(["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"], 0), abs=1e-6
    )
    assert metrics.cider_d_per_image(references, ["", "a man sits there"]) == pytest.approx(
        [0, 1000]
    )
    assert metrics.rouge_l([[[]]], [[]])[0] == 0


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([["a dog"], ["a man"]], ["a dog"], "1 captions came for 2 images"),
        ([["a dog"], []], ["a dog", "a man"], "image number 1 .* no references"),
        (["a dog"], ["a dog"], "one string, 'a dog'"),
        ([], [], "no images came"),
    ],
)
def test_what_cannot_be_scored_is_refused(references, hypotheses, message):
    for function in (
        metrics.score,
        metrics.cider_d_per_image,
        metrics.bleu,
        metrics.rouge_l,
        metrics.meteor,
    ):
        with pytest.raises(InputError, match=message):
            function(references, hypotheses)


def test_cider_d_refuses_what_it_cannot_use():
    with pytest.raises(InputError, match="no images came"):
        metrics.CiderD([])
    with pytest.raises(InputError, match=r"image number 0 .* no references"):
        metrics.CiderD([[["a"]]], documents=[[]])
    with pytest.raises(InputError, match="'a dog' came as one string"):
        metrics.CiderD([["a dog"]])
    with pytest.raises(InputError, match="1 hypotheses came for 2 images"):
        metrics.CiderD([[["a"]], [["b"]]]).scores(range(2), [["a"]])


def test_diversity():
    spoken = ["A dog .", "a dog", "two wet dogs run", ""]
    assert metrics.diversity(spoken, ["a DOG!", "two dogs"]) == {
        "vocabulary": 6,
        "distinct": 3 / 4,
        "copied": 2 / 4,
        "length": 8 / 4,
    }
    with pytest.raises(InputError, match="no captions came"):
        metrics.diversity([], ["a dog"])


METEOR_REFERENCES = [
    ["The dog is running .", "A dog runs fast"],
    ["a boy", "a boy sits"],
    ["A man wearing red", "A guy in a red shirt"],
]
METEOR_HYPOTHESES = ["a dog runs", "", "a man in a red shirt"]


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_equals_pycocoevalcap():
    scores = metrics.score(METEOR_REFERENCES, METEOR_HYPOTHESES, with_meteor=True)
    # The value of pycocoevalcap's class Meteor, which takes as long again to start.
    assert scores["METEOR"] == pytest.approx(32.504974822915095, abs=1e-6)


def test_meteor_is_left_out_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = metrics.score(METEOR_REFERENCES, METEOR_HYPOTHESES, with_meteor=True)
    assert "METEOR" not in scores
    assert "CIDEr-D" in scores


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exec sleep 60", "timed out"), ("exit 1", "exit status 1"), ("echo hello", "hello")],
)
def test_meteor_that_hangs_or_fails_is_left_out_with_a_warning(
    tmp_path, monkeypatch, script, reason
):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(metrics, "METEOR_SECONDS", 0.5)
    with pytest.warns(UserWarning, match=f"METEOR is left out: .*{reason}"):
        scores = metrics.score(METEOR_REFERENCES, METEOR_HYPOTHESES, with_meteor=True)
    assert "METEOR" not in scores


def test_meteor_repeats_references_where_images_have_fewer(monkeypatch):
    def read_back(command, **_):
        captions = command[command.index("-l") - 1].read_text().splitlines()
        assert captions == ["a", "b c", "d", "d"]
        assert command[-2:] == ["-r", "2"]
        return subprocess.CompletedProcess(command, 0, stdout="Final score:   0.25\n")

    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(subprocess, "run", read_back)
    assert metrics.meteor([[["a"], ["b", "c"]], [["d"]]], [["a"], ["d"]]) == 0.25
