"""The right name for what is in the picture."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from captioning.captions import LIGHT, Caption, PhotoCaptioner
from captioning.config import Config
from captioning.encoders import BUNDLED
from captioning.extras.serve import names
from captioning.extras.serve.light import LightCaptioner
from captioning.vocabulary import END, SPECIALS, Vocabulary

WORDS = ["a", "is", "the", "dog", "dogs", "cat", "on", "grass", "man"]
COUNTS = [0, 100_000, 100_000, 0, *[100] * len(WORDS)]
KERNEL, BIAS, CLASSES = names.classifier()
PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "data/names/photographs"
INVERSE = np.linalg.pinv(KERNEL.T.astype(float))


class Scripted(PhotoCaptioner):
    """Says `sentence`, whatever the picture; a word of it can give way to any other."""

    encoder_name, source, config = BUNDLED, "", Config(max_words=12)
    vocabulary = Vocabulary([*SPECIALS, *WORDS], COUNTS)

    def __init__(self, sentence, others=0.02):
        self.ids, self.others = self.vocabulary.encode(sentence.split())[1:], others

    def caption_features(self, features):
        words = tuple(self.vocabulary.words_of(self.ids))
        caption = Caption(" ".join(words), words, (0.5,) * len(self.ids))
        return [caption for _ in features]

    def begin(self, feature):
        places = iter(range(13))

        def step(words, rows):
            place = min(next(places), len(self.ids) - 1)
            scores = np.full((len(words), len(self.vocabulary)), np.log(self.others))
            scores[:, self.ids[place]] = np.log(0.5)
            if place < len(self.ids) - 1:
                scores[:, END] = np.log(1e-6)
            return scores

        return step


def picture(**probabilities):
    """Features (1, 1280) in which the classifier sees the words, as probably as that."""
    logits = np.full(1000, np.log((1 - sum(probabilities.values())) / 1000))
    for word, probability in probabilities.items():
        first = next(i for i, row in enumerate(CLASSES) if row["word"] == word.replace("_", " "))
        logits[first] = np.log(probability)
    return (INVERSE @ (logits - BIAS))[None].astype(np.float32)


def named(sentence, others=0.02, **probabilities):
    captioner = Scripted(sentence, others).with_names()
    (caption,) = captioner.caption_features(picture(**probabilities)[None])
    assert len(caption.probabilities) == len(caption.words) + 1
    assert caption.text.split() == list(caption.words)
    return caption


def test_classes_have_words_and_kinds_have_forms():
    assert len(CLASSES) == 1000 == len(BIAS)
    assert [int(row["index"]) for row in CLASSES] == list(range(1000))
    assert all(row["word"] and row["plural"] and row["kind"] for row in CLASSES)
    assert {"dog", "bird", "food", "vehicle"} <= {form.kind for form in names.forms()}
    things = names.recognise(picture(cat=0.7, koala=0.2))
    assert [(thing.word, round(thing.probability, 1)) for thing in things[:2]] == [
        ("cat", 0.7),
        ("koala", 0.2),
    ]


@pytest.mark.parametrize(
    ("sentence", "seen", "expected"),
    [
        ("a dog is on the grass", {"koala": 0.6}, "a koala is on the grass"),
        ("a dog is on the grass", {"elephant": 0.6}, "an elephant is on the grass"),
        ("a dog is on the grass", {"polar_bear": 0.6}, "a polar bear is on the grass"),
        ("dogs is on the grass", {"koala": 0.6}, "koalas is on the grass"),
        ("dogs is on the grass", {"cat": 0.6}, None),  # the vocabulary has no cats
        ("a dog is on the grass", {"cat": 0.6}, "a cat is on the grass"),
        ("a cat is on the grass", {"cat": 0.6}, None),
        ("a dog is on the grass", {"koala": 0.15}, None),  # not sure
        ("a man is on the grass", {"screwdriver": 0.9}, None),  # a kind that is never named
    ],
)
def test_what_is_sure_is_named_in_the_place_of_what_it_is_not(sentence, seen, expected):
    caption = named(sentence, **seen)
    ((word, probability),) = seen.items()
    assert caption.text == (expected or sentence)
    found, word = caption.to_json(), word.replace("_", " ")
    assert found["name"] == (word if expected else "")
    assert found["recognised"][word] == pytest.approx(probability, abs=0.01)


def test_a_person_gives_way_to_a_creature_and_an_improbable_name_is_left_out():
    assert named("a man is on the grass", koala=0.6).text == "a koala is on the grass"
    assert named("a man is on the grass", others=1e-6, koala=0.6).text == "a man is on the grass"


def test_names_are_given_with_the_bundled_cnn_and_english_words_alone():
    features = np.stack([picture(koala=0.6), picture(dog=0.9)])
    words = ["le" if word == "the" else word for word in Scripted.vocabulary.words]
    for change, count in (
        ({}, 1),
        ({"encoder_name": "resnet50"}, 0),
        ({"vocabulary": Vocabulary(words, COUNTS)}, 0),
    ):
        captioner = Scripted("a dog is on a grass")
        vars(captioner).update(change)
        texts = [caption.text for caption in captioner.with_names().caption_features(features)]
        assert texts.count("a koala is on a grass") == count == captioner.named


def test_what_the_captioner_has_never_seen_is_a_guess_or_named_alone(monkeypatch):
    monkeypatch.setattr(Scripted, "source", os.path.relpath(LIGHT))
    monkeypatch.setattr(names, "familiarity", lambda feature: 0.95)
    assert named("a man is on the grass", screwdriver=0.9).naming["guess"]
    monkeypatch.setattr(names, "familiarity", lambda feature: 0.8)
    assert named("a man is on the grass", screwdriver=0.9).text == "a screwdriver"
    assert named("a man is on the grass", cup_of_coffee=0.9).text == "a cup of coffee"
    assert named("a man is on the grass", screwdriver=0.4).naming["guess"]
    assert not named("a dog is on the grass", koala=0.6).naming["guess"]


def test_the_shipped_captioner_names_animals_that_flickr8k_does_not_show(script):
    photographs = [PHOTOGRAPHS / f"{name}.jpg" for name in ("panda", "koala", "cow")]
    status, out, _ = script("captioning/__main__.py", "caption", *photographs, "--json")
    assert status == 0
    for line, name in zip(out.splitlines(), ("panda", "koala", "cow"), strict=True):
        found = json.loads(line)
        assert found["name"] == name
        assert name in found["caption"].split()
        assert found["recognised"][name] > 0.3
    _, out, _ = script("captioning/__main__.py", "caption", photographs[0], "--no-names", "--json")
    assert "panda" not in json.loads(out)["caption"]
    assert "recognised" not in json.loads(out)


def test_training_pictures_are_familiar_and_noise_is_not():
    captioner = LightCaptioner(LIGHT)
    noise = np.random.default_rng(0).integers(0, 256, (260, 260, 3), dtype=np.uint8)
    assert names.familiarity(captioner.encode([noise])[0]) < names.STRANGE
    assert names.familiarity(7 * names.training_images()[3]) > 1
