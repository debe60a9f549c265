import numpy as np
import pytest

from captioning import evaluation
from captioning.metrics import score

REFERENCES = [
    ["A dog runs in the snow .", "A dog runs through deep snow .", "Snow"],
    ["Two men sit on a bench .", "Two old men sit on a bench .", "Men on a red bench"],
    ["A girl eats ice cream .", "The girl eats ice cream", "A child with an ice cream ."],
]


def test_constant_caption_is_the_best_of_the_most_frequent(monkeypatch):
    training = [
        ["A dog runs on the grass .", "a cat"],
        ["a dog runs on the grass", "a cat"],
        ["A brown dog runs on grass .", "a cat"],
        ["A wet dog runs on the grass", "The dog"],
        ["A boy jumps over a wall .", "One boy"],
    ]
    assert evaluation.constant_caption(training) == "a dog runs on the grass"
    monkeypatch.setattr(evaluation, "TYPICAL_CANDIDATES", 1)
    assert evaluation.constant_caption(training) == "a cat"


def test_constant_caption_is_scored_on_evenly_spaced_images(monkeypatch):
    training = [["a dog runs fast"], ["two men sit down"]] * 3
    monkeypatch.setattr(evaluation, "TYPICAL_IMAGES", 3)  # the images 0, 2 and 4
    assert evaluation.constant_caption(training) == "a dog runs fast"
    assert evaluation.constant_caption(training[1:]) == "two men sit down"


def test_nearest_training_captions_follow_the_angle_and_the_consensus():
    train_features = np.array([[1, 0, 0], [0, 9, 0], [0, 0, 0.1]])
    features = np.array([[0.1, 0.2, 0.1], [5, 0, 1], [0, 0, 3], [0, 1, 0.9], [0, 0, 0]])
    captions = [["Snow", *images[:2]] for images in REFERENCES]
    result = evaluation.nearest_training_captions(train_features, captions, features)
    assert [caption.split()[0] for caption in result[:4]] == ["Two", "A", "A", "Two"]
    assert result[0] == result[3]
    assert result[1] == result[4] != result[2]


def test_nearest_training_captions_do_not_depend_on_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    train_features, features = rng.normal(size=(30, 8)), rng.normal(size=(11, 8))
    captions = [[f"caption {i}"] for i in range(30)]
    monkeypatch.setattr(evaluation, "SIMILARITY_ROWS", 4)
    units = train_features / np.linalg.norm(train_features, axis=1, keepdims=True)
    expected = [f"caption {image}" for image in (features @ units.T).argmax(axis=1)]
    assert evaluation.nearest_training_captions(train_features, captions, features) == expected


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shuffled_moves_every_caption(count):
    captions = [f"caption {i}" for i in range(count)]
    moved = evaluation.shuffled(captions, seed=1)
    assert sorted(moved) == sorted(captions)
    assert all(a != b for a, b in zip(moved, captions, strict=True))
    assert moved == evaluation.shuffled(captions, seed=1)
    assert count < 50 or moved != evaluation.shuffled(captions, seed=2)


def test_one_against_the_others_is_the_mean_over_who_is_left_out():
    rounds = [
        score(
            [[c for i, c in enumerate(captions) if i != person] for captions in REFERENCES],
            [captions[person] for captions in REFERENCES],
        )
        for person in range(3)
    ]
    expected = {name: np.mean([scores[name] for scores in rounds]) for name in rounds[0]}
    assert evaluation.one_against_the_others(REFERENCES) == pytest.approx(expected)
    agreed = evaluation.one_against_the_others([[captions[0]] * 2 for captions in REFERENCES])
    assert agreed["BLEU-4"] == pytest.approx(100)
    assert agreed["CIDEr-D"] == pytest.approx(1000)
