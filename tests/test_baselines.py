import numpy as np
import pytest

from captioning import baselines
from captioning.files import InputError
from captioning.metrics import score

REFERENCES = [
    ["A dog runs in the snow .", "A dog runs through deep snow .", "Snow"],
    ["Two men sit on a bench .", "Two old men sit on a bench .", "Men on a red bench"],
    ["A girl eats ice cream .", "The girl eats ice cream", "A child with an ice cream ."],
]


def test_typical_caption_is_the_best_of_those_written_most_often(monkeypatch):
    training = [
        ["A dog runs on the grass .", "a cat"],
        ["a dog runs on the grass", "a cat"],
        ["A brown dog runs on grass .", "a cat"],
        ["A wet dog runs on the grass", "The dog"],
        ["A boy jumps over a wall .", "One boy"],
    ]
    assert baselines.typical_caption(training) == "a dog runs on the grass"
    monkeypatch.setattr(baselines, "TYPICAL_CANDIDATES", 1)
    assert baselines.typical_caption(training) == "a cat"


def test_typical_caption_is_judged_on_images_spread_over_all(monkeypatch):
    training = [["a dog runs fast"], ["two men sit down"]] * 3
    monkeypatch.setattr(baselines, "TYPICAL_IMAGES", 3)  # the images 0, 2 and 4
    assert baselines.typical_caption(training) == "a dog runs fast"
    assert baselines.typical_caption(training[1:]) == "two men sit down"


def test_nearest_training_captions_follow_the_angle_and_the_consensus():
    train_features = np.array([[1, 0, 0], [0, 9, 0], [0, 0, 0.1]])
    features = np.array([[0.1, 0.2, 0.1], [5, 0, 1], [0, 0, 3], [0, 1, 0.9]])
    captions = [["Snow", *images[:2]] for images in REFERENCES]
    result = baselines.nearest_training_captions(train_features, captions, features)
    assert [result[0], result[3]] == [result[0]] * 2
    assert result[0] in REFERENCES[1][:2]
    assert result[1] in REFERENCES[0][:2]
    assert result[2] in REFERENCES[2][:2]


def test_nearest_training_captions_choose_the_caption_most_like_the_others():
    captions = [
        ["Something else here", "A dog runs on grass", "A dog runs on grass today"],
        ["Two men sit down", "Two men sit", "A boat"],
    ]
    result = baselines.nearest_training_captions(np.eye(2), captions, np.eye(2)[:1])
    assert result == ["A dog runs on grass"]


def test_nearest_training_captions_do_not_depend_on_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    train_features, features = rng.normal(size=(30, 8)), rng.normal(size=(11, 8))
    captions = [[f"caption {i}"] for i in range(30)]
    whole = baselines.nearest_training_captions(train_features, captions, features)
    monkeypatch.setattr(baselines, "SIMILARITY_ROWS", 4)
    assert baselines.nearest_training_captions(train_features, captions, features) == whole

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = [max(range(30), key=lambda i: cosine(train_features[i], row)) for row in features]
    assert whole == [f"caption {i}" for i in expected]


def test_an_image_of_zero_features_has_a_caption():
    result = baselines.nearest_training_captions(np.eye(2), [["a"], ["b"]], np.zeros((1, 2)))
    assert result == ["a"]


@pytest.mark.parametrize(
    ("train_shape", "shape"), [((2, 3), (1, 4)), ((3, 4), (1, 4)), ((2, 7, 4), (1, 4))]
)
def test_features_that_do_not_fit_are_refused(train_shape, shape):
    with pytest.raises(InputError, match=r"one pooled vector an image"):
        baselines.nearest_training_captions(np.ones(train_shape), [["a"], ["b"]], np.ones(shape))


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shuffled_moves_every_caption(count):
    captions = [f"caption {i}" for i in range(count)]
    moved = baselines.shuffled(captions, seed=1)
    assert sorted(moved) == sorted(captions)
    assert all(a != b for a, b in zip(moved, captions, strict=True))
    assert moved == baselines.shuffled(captions, seed=1)


def test_shuffled_depends_on_the_seed_and_needs_two_captions():
    captions = [f"caption {i}" for i in range(50)]
    assert baselines.shuffled(captions, seed=1) != baselines.shuffled(captions, seed=2)
    with pytest.raises(InputError, match="1 captions came"):
        baselines.shuffled(["a dog"], seed=1)


def test_one_against_the_others_is_the_mean_over_who_is_left_out():
    rounds = [
        score(
            [[c for i, c in enumerate(captions) if i != person] for captions in REFERENCES],
            [captions[person] for captions in REFERENCES],
        )
        for person in range(3)
    ]
    expected = {name: np.mean([scores[name] for scores in rounds]) for name in rounds[0]}
    assert baselines.one_against_the_others(REFERENCES) == pytest.approx(expected)
    assert expected["CIDEr-D"] > 0


def test_people_who_agree_reach_the_ceiling():
    agreed = [[captions[0]] * 2 for captions in REFERENCES]
    scores = baselines.one_against_the_others(agreed)
    assert scores["BLEU-4"] == pytest.approx(100)
    assert scores["CIDEr-D"] == pytest.approx(1000)


@pytest.mark.parametrize(
    ("references", "message"), [([["a dog"]], "takes two"), ([], "no images came")]
)
def test_one_alone_cannot_be_compared(references, message):
    with pytest.raises(InputError, match=message):
        baselines.one_against_the_others(references)
