"""Batches, loss, over-fitting, and runs that are stopped and taken up again."""

import csv
import itertools
import json
import math
import zipfile
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from captioning.batches import Split, open_caches
from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.files import InputError
from captioning.model import MergeDecoder, ModelConfig
from captioning.prepared import Prepared
from captioning.self_critical import SelfCritic, self_critical_loss
from captioning.training import caption_loss
from captioning.vocabulary import END, PAD, START

# --- the loss ----------------------------------------------------------------------------------

CAPTIONS = np.array(
    [
        [[START, 4, 5, END, PAD], [START, 6, END, PAD, PAD]],
        [[START, 7, 4, 4, END], [PAD, PAD, PAD, PAD, PAD]],
    ],
    np.int32,
)
TARGETS = [4, 5, END, 6, END, 7, 4, 4, END]


def model(attention="none", weight=None):
    """A model with 8 words; random weights, or all the same."""
    shape = (3, 6) if attention == "grid" else (6,)
    built = MergeDecoder(ModelConfig(8, shape, 5, units=4, attention=attention, heads=2))
    built.build_for_captions()
    rng = np.random.default_rng(0)
    for variable in built.trainable_variables:
        random = rng.normal(0, 0.7, variable.shape)
        variable.assign(random if weight is None else np.full(variable.shape, weight))
    return built


def features(model, images=2):
    shape = (images, *model.config.feature_shape)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def loss(model, words, features, smoothing=0.0):
    found = caption_loss(model, tf.constant(features), tf.constant(words), False, smoothing)
    return [float(value) for value in found]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary(smoothing):
    blank = model(weight=0.0)
    mean, total, count = loss(blank, CAPTIONS, features(blank), smoothing)
    assert count == 9  # the words and the ends, not the starts, not the pads
    assert mean == pytest.approx(math.log(8), abs=1e-5)
    assert total == pytest.approx(9 * math.log(8), abs=1e-4)


def test_a_model_of_word_frequencies_loses_what_is_computed_by_hand():
    frequencies = np.array([0.01, 0.01, 0.3, 0.08, 0.3, 0.1, 0.1, 0.1])
    blank = model(weight=0.0)
    blank.word_scores.bias.assign(np.log(frequencies))
    mean, total, _ = loss(blank, CAPTIONS, features(blank), 0.2)
    # three ends and three times word 4 at 0.3, words 5, 6 and 7 at 0.1
    expected = -(6 * math.log(0.3) + 3 * math.log(0.1))
    assert total == pytest.approx(expected, abs=1e-4)
    spread = -np.log(frequencies).mean()
    assert mean == pytest.approx(0.8 * expected / 9 + 0.2 * spread, abs=1e-5)


@pytest.mark.parametrize("attention", ["none", "grid"])
def test_the_loss_is_the_cross_entropy_with_a_smoothed_target(attention):
    drawn = model(attention)
    logits = np.asarray(drawn(tf.constant(CAPTIONS), tf.constant(features(drawn))), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses, likelihoods = [], []
    for caption, predictions in zip(
        CAPTIONS.reshape(4, 5), log_probabilities.reshape(4, 5, 8), strict=True
    ):
        for target, prediction in zip(caption[1:], predictions[:-1], strict=True):
            if target != PAD:
                distribution = np.full(8, 0.1 / 8)
                distribution[target] += 0.9
                losses.append(-distribution @ prediction)
                likelihoods.append(-prediction[target])
    mean, total, count = loss(drawn, CAPTIONS, features(drawn), 0.1)
    assert count == len(losses) == len(TARGETS)
    assert mean == pytest.approx(np.mean(losses), abs=1e-5)
    assert total == pytest.approx(np.sum(likelihoods), abs=1e-4)


@pytest.mark.parametrize("attention", ["none", "grid"])
def test_pads_and_rows_of_pads_change_no_loss(attention):
    drawn = model(attention)
    expected = loss(drawn, CAPTIONS, features(drawn), 0.1)
    longer = np.pad(CAPTIONS, ((0, 0), (0, 2), (0, 3)), constant_values=PAD)
    assert loss(drawn, longer, features(drawn), 0.1) == pytest.approx(expected, abs=1e-5)
    # An image of which all captions are missing.
    further = np.pad(CAPTIONS, ((0, 1), (0, 0), (0, 0)), constant_values=PAD)
    images = np.concatenate([features(drawn), np.ones((1, *drawn.config.feature_shape), "f4")])
    assert loss(drawn, further, images, 0.1) == pytest.approx(expected, abs=1e-5)


def test_the_loss_of_a_batch_is_that_of_its_captions():
    drawn = model("grid")
    _, total, count = loss(drawn, CAPTIONS, features(drawn))
    single = [
        loss(drawn, CAPTIONS[i, k][None, None], features(drawn)[i][None])
        for i, k in ((0, 0), (0, 1), (1, 0))
    ]
    assert total == pytest.approx(sum(one[1] for one in single), abs=1e-4)
    assert count == sum(one[2] for one in single)


def test_pads_send_no_gradient():
    drawn = model()
    with tf.GradientTape() as tape:
        mean, *_ = caption_loss(drawn, tf.constant(features(drawn)), tf.constant(CAPTIONS), False)
    gradient = tf.convert_to_tensor(tape.gradient(mean, drawn.embedding.embeddings))
    assert np.abs(gradient[PAD]).max() == 0
    assert np.abs(gradient[4]).max() > 0


# --- batches -----------------------------------------------------------------------------------


def prepare(make_prepared, folder, counts, lengths, **kinds):
    """A folder with `counts[i]` captions of image i; no two captions are the same."""
    rng = np.random.default_rng(0)
    numbers = itertools.count()

    def caption():
        length = int(rng.integers(*lengths))
        return " ".join([f"w{next(numbers)}", *rng.choice(["a", "dog", "runs"], length - 1)])

    train = {f"{i}.jpg": [caption() for _ in range(count)] for i, count in enumerate(counts)}
    captions = {"train": train, "dev": {"dev.jpg": ["a dog"]}}
    make_prepared(folder, captions, **kinds)
    return Prepared(folder), open_caches(folder)


@pytest.fixture(scope="module")
def uneven(make_prepared, tmp_path_factory):
    """Images with none, one, five and twelve captions, one of them unreadable."""
    folder = tmp_path_factory.mktemp("uneven")
    counts = [1, 5, 0, 12, 3, 5, 7, 5]
    return prepare(make_prepared, folder, counts, (3, 12), failed=["5.jpg"])


def split(data, grid=False):
    prepared, caches = data
    return Split(prepared, "train", caches, (4, 8) if grid else (8,))


def drawn_captions(batches):
    """The captions in batches, as tuples of ids without pads."""
    return [
        tuple(row[row != PAD].tolist())
        for _, words in batches
        for row in words.reshape(-1, words.shape[-1])
        if row.any()
    ]


@pytest.mark.parametrize("grid", [False, True])
def test_every_caption_comes_once_with_its_own_image(uneven, grid):
    prepared, caches = uneven
    drawn = split(uneven, grid)
    batches = list(drawn.batches(12, 5, 30, (0, 1)))
    assert all(words.shape[0] <= 2 and words.shape[1] == 5 for _, words in batches)
    tokens = prepared.tokens("train")
    unreadable = prepared.images("train").index("5.jpg")
    used = [i for i in range(len(tokens)) if tokens.images[i] != unreadable]
    found = drawn_captions(batches)
    assert Counter(found) == Counter(tuple(tokens[i].tolist()) for i in used)
    assert drawn.caption_count == len(found) == 33
    assert sum(len(words) for _, words in batches) == drawn.group_count(5)
    image_of = {tuple(tokens[i].tolist()): tokens.images[i] for i in used}
    stored = caches[0].grid.reshape(-1, 4, 8) if grid else caches[0].pooled
    for features, words in batches:
        for feature, rows in zip(features, words, strict=True):
            (image,) = {image_of[tuple(row[row != PAD].tolist())] for row in rows if row.any()}
            np.testing.assert_array_equal(feature, stored[image])


def test_the_order_depends_on_the_seed_alone(uneven):
    drawn = split(uneven)
    seeds = (3, 1), (3, 1), (3, 2)
    first, again, other = (list(drawn.batches(12, 5, 30, seed)) for seed in seeds)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert drawn_captions(first) != drawn_captions(other)
    assert sorted(drawn_captions(first)) == sorted(drawn_captions(other))


def test_captions_of_similar_length_come_together(make_prepared, tmp_path):
    drawn = split(prepare(make_prepared, tmp_path, [1] * 200, (3, 25)))
    batches = [words for _, words in drawn.batches(20, 1, 30, (0, 1))]
    assert len(batches) == 10
    pads = sum((words == PAD).sum() for words in batches) / sum(words.size for words in batches)
    assert pads < 0.15  # 0.4 if they came as they are
    lengths = [words.shape[-1] for words in batches]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_long_captions_are_cut_and_still_end(uneven):
    tokens = uneven[0].tokens("train")
    longest = max(len(tokens[i]) for i in range(len(tokens)))
    assert longest > 7
    found = drawn_captions(split(uneven).batches(12, 5, 5, (0, 1)))
    assert max(map(len, found)) == 7
    assert all(caption[0] == START and caption.count(END) == 1 for caption in found)
    assert all(caption[-1] == END for caption in found)


def test_about_half_of_the_images_come_mirrored(make_prepared, tmp_path):
    data = prepare(make_prepared, tmp_path, [1] * 200, (3, 9), mirrored=True)
    drawn = split(data)
    seen = []
    for seed in (1, 2):
        batches = list(drawn.batches(20, 1, 30, (0, seed)))
        rows = np.concatenate([features for features, _ in batches])
        kinds = {row.tobytes(): sign for sign in (0, 1) for row in data[1][sign].pooled[:200]}
        by_caption = dict(
            zip(drawn_captions(batches), (kinds[row.tobytes()] for row in rows), strict=True)
        )
        assert 70 < sum(by_caption.values()) < 130
        seen.append(by_caption)
    assert any(seen[0][caption] != seen[1][caption] for caption in seen[0])
    # The other caches are opened only if wanted.
    assert len(open_caches(tmp_path, mirrored=False)) == 1


def test_attention_without_a_grid_is_refused(make_prepared, tmp_path, make_trainer, tiny_captions):
    make_prepared(tmp_path / "prepared", tiny_captions, keep_grid=False)
    with pytest.raises(InputError, match="keep_grid = True"):
        make_trainer(tmp_path / "prepared", tmp_path / "run", attention="grid")


# --- training ----------------------------------------------------------------------------------

EIGHT = (
    "a dog runs",
    "two dogs run on the beach",
    "a child",
    "a man in a red hat rides a bicycle down a very steep hill",
    "the the the dog",
    "a dog runs on the beach",
    "people sit",
    "snow",
)


@pytest.mark.parametrize("attention", ["none", "grid"])
def test_eight_images_are_learnt_by_heart(make_prepared, make_trainer, tmp_path, attention):
    # Each caption twelve times, so that few epochs, with their checkpoints, have many updates.
    images = {f"{i}.jpg": [caption] * 12 for i, caption in enumerate(EIGHT)}
    make_prepared(tmp_path / "prepared", {"train": images, "dev": images})
    trainer = make_trainer(
        tmp_path / "prepared",
        tmp_path / "run",
        attention,
        units=32,
        dropout=0.0,
        epochs=3,
        batch_size=2,
        captions_per_image=1,
        learning_rate=0.02,
        warmup_epochs=0.2,
        label_smoothing=0.0,
    )
    *_, (row, sample) = trainer.epochs()
    assert sample == EIGHT[0]
    assert row["dev_loss"] < 0.2
    assert row["dev_BLEU-4"] == pytest.approx(100)
    features = trainer.dev.features(np.arange(8))
    for width in (1, 3):
        captions = trainer.captioner.caption_features(features, beam_width=width)
        assert [caption.text for caption in captions] == list(EIGHT)


def weights(trainer):
    return [variable.numpy() for variable in trainer.model.weights]


def without_minutes(history):
    return [{**row, "minutes": 0} for row in history]


def assert_same_run(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_minutes(one.history) == without_minutes(other.history)


@pytest.fixture(scope="module")
def straight(make_trainer, tiny_prepared, tmp_path_factory):
    """A run of four epochs, the last of them self-critical."""
    output = tmp_path_factory.mktemp("straight")
    trainer = make_trainer(tiny_prepared, output, epochs=3, self_critical_epochs=1)
    for _ in trainer.epochs():
        pass
    return trainer


def test_a_run_taken_up_ends_as_if_never_stopped(straight, make_trainer, tiny_prepared, tmp_path):
    settings = {"epochs": 3, "self_critical_epochs": 1}
    stopped = make_trainer(tiny_prepared, tmp_path, **settings)
    assert not stopped.resume()
    assert len(list(itertools.islice(stopped.epochs(), 2))) == 2
    assert without_minutes(stopped.history) == without_minutes(straight.history[:2])
    resumed = make_trainer(tiny_prepared, tmp_path, **settings)
    assert resumed.has_state()
    assert resumed.resume()
    assert [row["epoch"] for row, _ in resumed.epochs()] == [3, 4]
    assert_same_run(resumed, straight)
    with (tmp_path / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    # A finished run has nothing left to do.
    finished = make_trainer(tiny_prepared, tmp_path, **settings)
    assert finished.resume()
    assert list(finished.epochs()) == []
    assert_same_run(finished, straight)


def test_another_seed_is_another_run(straight, make_trainer, tiny_prepared, tmp_path):
    other = make_trainer(tiny_prepared, tmp_path, epochs=3, self_critical_epochs=1, seed=1)
    row, _ = next(other.epochs())
    assert row["dev_loss"] != straight.history[0]["dev_loss"]


def test_an_epoch_leaves_its_files(straight):
    output = straight.output
    epochs = [f"epoch-{number:03}.keras" for number in range(1, 5)]
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["best.keras", *epochs, "history.csv", "resume.npz"]
    )
    last = Checkpoint.load(output / epochs[-1])
    for saved, trained in zip(last.model.weights, straight.model.weights, strict=True):
        np.testing.assert_array_equal(saved, trained)
    assert last.facts["epoch"] == 4
    best = Checkpoint.load(output / "best.keras").facts
    scores = [row["dev_CIDEr-D"] for row in straight.history]
    losses = [row["dev_loss"] for row in straight.history]
    ranked = sorted(range(4), key=lambda epoch: (scores[epoch], -losses[epoch]))
    assert best["epoch"] == straight.best_epoch == ranked[-1] + 1
    features = straight.dev.features(np.arange(4))
    captions = Captioner.load(output / epochs[-1]).caption_features(features)
    assert captions == straight.captioner.caption_features(features)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"batch_size": 2}, "batch_size"),
        ({"units": 8}, "units"),
        ({"rnn": "lstm"}, "rnn"),
        ({"attention": "grid"}, "feature_shape|attention"),
        ({"dropout": 0.0}, "word_dropout"),
        ({"self_critical_epochs": 0}, "self_critical_epochs"),
    ],
)
def test_a_run_is_not_taken_up_with_other_settings(
    straight, make_trainer, tiny_prepared, changed, name
):
    settings = {"epochs": 3, "self_critical_epochs": 1, **changed}
    other = make_trainer(tiny_prepared, straight.output, **settings)
    before = weights(other)
    with pytest.raises(InputError, match=name) as error:
        other.resume()
    assert str(error.value).startswith(f"{straight.output / 'resume.npz'}: ")
    assert other.history == []
    for a, b in zip(before, weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_is_not_taken_up_with_other_data(straight, make_trainer, make_prepared, tmp_path):
    fewer = {"train": {"x.jpg": ["a dog"]}, "dev": {"y.jpg": ["a dog"]}}
    make_prepared(tmp_path / "prepared", fewer)
    settings = {"epochs": 3, "self_critical_epochs": 1}
    with pytest.raises(InputError, match="the same settings"):
        make_trainer(tmp_path / "prepared", straight.output, **settings).resume()


def damaged_states(path):
    """Contents of `resume.npz` that no run has written."""
    whole = path.read_bytes()
    yield b""
    yield whole[: len(whole) // 2]
    yield whole[:-40]
    middle = len(whole) // 2
    yield whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    with np.load(path) as state:
        arrays = dict(state)
    for change in (
        {"facts": np.array("{}")},
        {"facts": np.array("[]")},
        {"facts": np.array("{")},
        {"facts": np.array(json.dumps({"settings": {}, "history": 7}))},
        {"variable-0": np.zeros(3, np.float32)},
        {"variable-0": arrays["variable-0"].astype("S4")},
        {"variable-1": np.full_like(arrays["variable-1"], np.nan)},
        {"variable-0": None},
    ):
        kept = {name: array for name, array in {**arrays, **change}.items() if array is not None}
        with path.with_name("other.npz").open("wb") as file:
            np.savez(file, **kept)
        yield path.with_name("other.npz").read_bytes()


def test_a_damaged_state_is_refused(straight, make_trainer, tiny_prepared, tmp_path):
    original = tmp_path / "original.npz"
    original.write_bytes((straight.output / "resume.npz").read_bytes())
    trainer = make_trainer(tiny_prepared, tmp_path, epochs=3, self_critical_epochs=1)
    before = weights(trainer)
    for content in damaged_states(original):
        (tmp_path / "resume.npz").write_bytes(content)
        with pytest.raises(InputError) as error:
            trainer.resume()
        assert str(error.value).startswith(f"{tmp_path / 'resume.npz'}: ")
        assert len(str(error.value).splitlines()) <= 2
        for a, b in zip(before, weights(trainer), strict=True):
            np.testing.assert_array_equal(a, b)
        assert trainer.history == []
    with zipfile.ZipFile(original) as archive:
        assert archive.testzip() is None  # the damage was in the copies


def test_a_loss_that_is_no_number_ends_the_run(make_trainer, tiny_prepared, tmp_path):
    trainer = make_trainer(tiny_prepared, tmp_path, epochs=3)
    epochs = trainer.epochs()
    next(epochs)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trainer.model.word_scores.bias.assign(np.full(trainer.model.word_scores.bias.shape, np.nan))
    with pytest.raises(InputError, match="the loss is nan") as error:
        next(epochs)
    assert "--learning-rate" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert Checkpoint.load(tmp_path / "epoch-001.keras").facts["epoch"] == 1


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_a_last_update_that_spoils_the_weights_is_noticed(
    make_trainer, tiny_prepared, tmp_path, monkeypatch, value
):
    trainer = make_trainer(tiny_prepared, tmp_path, epochs=3)

    def spoilt(epoch):
        bias = trainer.model.word_scores.bias
        bias.assign(np.where(np.arange(bias.shape[0]) == PAD, value, 0))
        return 1.0

    monkeypatch.setattr(trainer, "_train_epoch", spoilt)
    with pytest.raises(InputError, match="diverged"):
        next(trainer.epochs())
    assert list(tmp_path.iterdir()) == []


# --- self-critical training --------------------------------------------------------------------


def test_advantages_compare_samples_of_the_same_image(straight):
    critic = SelfCritic(straight.model, straight.train.tokens, samples=4)
    images = straight.train.images[:3]
    features = straight.train.features(images)
    words, advantages, rewards = critic.draw(features, images, np.array([1, 2]))
    assert words.shape[:2] == advantages.shape == rewards.shape == (3, 4)
    np.testing.assert_allclose(advantages.sum(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(
        advantages, (rewards - rewards.mean(1, keepdims=True)) / 100 * 4 / 3, atol=1e-5
    )
    again, *_ = critic.draw(features, images, np.array([1, 2]))
    np.testing.assert_array_equal(again, words)
    assert (words[:, :, 0] == START).all()
    assert ((words == END).sum(-1) == 1).all()


def test_the_self_critical_loss_weighs_log_probabilities():
    drawn = model()
    advantages = np.array([[0.5, -1.0], [2.0, 7.0]], np.float32)  # the last has no word at all
    expected = 0.0
    for (i, k), advantage in np.ndenumerate(advantages):
        if CAPTIONS[i, k].any():
            _, total, _ = loss(drawn, CAPTIONS[i, k][None, None], features(drawn)[i][None])
            expected += advantage * total
    found = self_critical_loss(
        drawn, tf.constant(features(drawn)), tf.constant(CAPTIONS), tf.constant(advantages)
    )
    assert float(found) == pytest.approx(expected / len(TARGETS), abs=1e-5)
