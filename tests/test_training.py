"""Losses, batches, over-fitting, and runs that are resumed."""

import itertools
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from test_features import contents

from captioning.batches import Split
from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.config import Config
from captioning.errors import InputError
from captioning.extras.study.self_critical import SAMPLES, SelfCritical, self_critical
from captioning.features import open_caches
from captioning.files import read_tensors, tensor_bytes
from captioning.losses import cross_entropy
from captioning.model import MergeDecoder
from captioning.prepared import Prepared
from captioning.runs import Run
from captioning.steps import OneDevice, Steps
from captioning.vocabulary import END, PAD, START

# --- the loss ----------------------------------------------------------------------------------

ONE, TWO = [[START, 4, 5, END, PAD], [START, 6, END, PAD, PAD]], [[START, 7, 4, 4, END], [PAD] * 5]
CAPTIONS = np.array([ONE, TWO], np.int32)  # of two images
TARGETS = [4, 5, END, 6, END, 7, 4, 4, END]


def model(attention="none", weight=None):
    """A model with 8 words; random weights, or all the same."""
    shape = (3, 6) if attention == "grid" else (6,)
    config = Config(units=4, attention=attention, heads=2)
    built = MergeDecoder(config, 8, shape, embedding_size=5)
    rng = np.random.default_rng(0)
    for variable in built.trainable_variables:
        random = rng.normal(0, 0.7, variable.shape)
        variable.assign(random if weight is None else np.full(variable.shape, weight))
    return built


def features(model, images=2):
    shape = (images, *model.feature_shape)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def loss(model, words, features, smoothing=0.0):
    """Mean loss, summed negative log-likelihood, word count."""
    found = cross_entropy(model, tf.constant(features), tf.constant(words), False, smoothing)
    total, likelihood, count = (float(value) for value in found)
    return total / count, likelihood, count


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
    images = np.concatenate([features(drawn), np.ones((1, *drawn.feature_shape), "f4")])
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
        mean, *_ = cross_entropy(drawn, tf.constant(features(drawn)), tf.constant(CAPTIONS), False)
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


def split(data, grid=False, max_words=30):
    prepared, caches = data
    return Split(prepared, "train", caches, (4, 8) if grid else (8,), max_words)


def drawn_captions(batches):
    """The captions in batches, as tuples of ids without pads."""
    return [
        tuple(row[row != PAD].tolist())
        for batch in batches
        for row in batch.words.reshape(-1, batch.words.shape[-1])
        if row.any()
    ]


@pytest.mark.parametrize("grid", [False, True])
def test_every_caption_comes_once_with_its_own_image(uneven, grid):
    prepared, caches = uneven
    drawn = split(uneven, grid)
    batches = drawn.batches(12, (0, 1))
    assert all((batch.words[:, :, 0] != PAD).sum() <= 12 for batch in batches)
    tokens = prepared.tokens("train")
    unreadable = prepared.images("train").index("5.jpg")
    used = [i for i in range(len(tokens)) if tokens.images[i] != unreadable]
    found = drawn_captions(batches)
    assert Counter(found) == Counter(tuple(tokens[i].tolist()) for i in used)
    assert drawn.caption_count == len(found) == 33
    image_of = {tuple(tokens[i].tolist()): tokens.images[i] for i in used}
    stored = caches[0].grid.reshape(-1, 4, 8) if grid else caches[0].pooled
    for batch in batches:
        features = drawn.features(batch.images, batch.mirrored)
        for feature, rows in zip(features, batch.words, strict=True):
            (image,) = {image_of[tuple(row[row != PAD].tolist())] for row in rows if row.any()}
            np.testing.assert_array_equal(feature, stored[image])


@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_a_step_has_as_many_captions_as_asked_for(make_prepared, tmp_path, per_image):
    drawn = split(prepare(make_prepared, tmp_path, [per_image] * 80, (3, 9)))
    sizes = [(batch.words[:, :, 0] != PAD).sum() for batch in drawn.batches(20, (0, 1))]
    assert sizes == [20] * (80 * per_image // 20)


def test_the_order_depends_on_the_seed_alone(uneven):
    first, again, other = (split(uneven).batches(12, seed) for seed in ((3, 1), (3, 1), (3, 2)))
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert drawn_captions(first) != drawn_captions(other)
    assert sorted(drawn_captions(first)) == sorted(drawn_captions(other))


def test_captions_of_similar_length_come_together(make_prepared, tmp_path):
    drawn = split(prepare(make_prepared, tmp_path, [1] * 200, (3, 25)))
    batches = [batch.words for batch in drawn.batches(20, (0, 1))]
    assert len(batches) == 10
    pads = sum((words == PAD).sum() for words in batches) / sum(words.size for words in batches)
    assert pads < 0.15  # 0.4 in random order
    lengths = [words.shape[-1] for words in batches]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_long_captions_are_cut_counted_and_still_end(uneven):
    tokens = uneven[0].tokens("train")
    unreadable = uneven[0].images("train").index("5.jpg")
    used = [tokens[i] for i in range(len(tokens)) if tokens.images[i] != unreadable]
    drawn = split(uneven, max_words=5)
    found = drawn_captions(drawn.batches(12, (0, 1)))
    assert max(map(len, found)) == 7
    assert drawn.cut_count == sum(len(ids) > 7 for ids in used) > 0
    assert all(caption[0] == START and caption.count(END) == 1 for caption in found)
    assert all(caption[-1] == END for caption in found)


def test_about_half_of_the_images_come_mirrored(make_prepared, tmp_path, monkeypatch):
    data = prepare(make_prepared, tmp_path, [1] * 200, (3, 9), mirrored=True)
    drawn = split(data)
    batches = drawn.batches(20, (0, 1))
    images = np.concatenate([batch.images for batch in batches])
    mirrored = np.concatenate([batch.mirrored for batch in batches])
    assert 70 < mirrored.sum() < 130
    features = np.concatenate([drawn.features(b.images, b.mirrored) for b in batches])
    for image, is_mirrored, feature in zip(images, mirrored, features, strict=True):
        np.testing.assert_array_equal(feature, data[1][int(is_mirrored)].pooled[image])
    assert len(open_caches(tmp_path, mirrored=False)) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_caches("~")) == 2


# --- training -------------------------------------------------------------------------------------

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
def test_eight_images_are_overfitted(make_prepared, train_tiny, tmp_path, attention):
    # each caption twelve times: few epochs, with their checkpoints, of many steps
    images = {f"{i}.jpg": [caption] * 12 for i, caption in enumerate(EIGHT)}
    folder = make_prepared(tmp_path / "prepared", {"train": images, "dev": images})
    options = ("--attention", attention, "--units", 32, "--dropout", 0, "--batch-size", 2)
    options += ("--epochs", 4, "--learning-rate", 0.02, "--label-smoothing", 0)
    run = train_tiny(folder, tmp_path / "run", *options)
    best = Captioner.load(run / "best.safetensors")
    assert best.checkpoint.facts["history"][-1]["dev_BLEU-4"] == pytest.approx(100)
    (cache,) = open_caches(folder)
    for width in (1, 3):
        assert best.caption_cached(cache, list(images), width, 0.7) == list(EIGHT)


SETTINGS = ("--epochs", 3, "--self-critical-epochs", 1)


@pytest.fixture(scope="module")
def straight(train_tiny, tiny_prepared, tmp_path_factory):
    """A run of four epochs, the last of them self-critical."""
    return train_tiny(tiny_prepared, tmp_path_factory.mktemp("straight"), *SETTINGS)


def test_a_resumed_run_ends_with_the_same_bytes(
    straight, train_tiny, tiny_prepared, tmp_path, monkeypatch
):
    """Whatever the clock says: stopped after the first epoch and before the self-critical one."""
    save = Run.save

    def save_and_stop(run):
        save(run)
        if len(run.history) in (1, 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        for resumes in ((), ("--resume",)):
            with pytest.raises(KeyboardInterrupt):
                train_tiny(tiny_prepared, tmp_path, *SETTINGS, *resumes)
    for _ in range(2):  # the second has nothing left to do
        train_tiny(tiny_prepared, tmp_path, *SETTINGS, "--resume")
        assert contents(tmp_path) == contents(straight)
    for path in tmp_path.glob("epoch-*"):  # removed for their space
        path.unlink()
    train_tiny(tiny_prepared, tmp_path, *SETTINGS, "--resume")
    assert contents(tmp_path).items() <= contents(straight).items()
    assert (tmp_path / "best.safetensors").exists()


def test_an_epoch_leaves_its_files(straight):
    history = Checkpoint.load(straight / "epoch-004.safetensors").facts["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    best = max(history, key=lambda row: (row["dev_CIDEr-D"], -row["dev_loss"]))["epoch"]
    copied = straight / f"epoch-{best:03}.safetensors"
    assert (straight / "best.safetensors").read_bytes() == copied.read_bytes()
    assert Checkpoint.load(copied).facts["epoch"] == best
    assert len((straight / "history.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (("--seed", 1), "seed"),
        (("--learning-rate", 0.5), "learning_rate"),
        (("--units", 8), "units"),
        (("--rnn", "lstm"), "rnn"),
        (("--attention", "grid"), "attention"),
        (("--self-critical-epochs", 0), "self_critical_epochs"),
    ],
)
def test_a_run_does_not_resume_with_other_settings(
    straight, train_tiny, tiny_prepared, tmp_path, changed, name
):
    folder = shutil.copytree(straight, tmp_path / "run")
    with pytest.raises(InputError, match=rf"resume\.safetensors: the run has {name}"):
        train_tiny(tiny_prepared, folder, *SETTINGS, *changed, "--resume")
    assert contents(folder) == contents(straight)


def test_a_damaged_state_is_one_line(straight, train_tiny, tiny_prepared, tmp_path):
    folder = shutil.copytree(straight, tmp_path / "run")
    path = folder / "resume.safetensors"
    whole = path.read_bytes()
    _, tensors = read_tensors(path, "")
    for damage in (b"", whole[: len(whole) // 2], tensor_bytes(tensors, {"settings": {}})):
        path.write_bytes(damage)
        with pytest.raises(InputError, match=r"resume\.safetensors"):
            train_tiny(tiny_prepared, folder, *SETTINGS, "--resume")


def test_a_loss_that_is_not_a_number_ends_the_run(train_tiny, tiny_prepared, tmp_path):
    with pytest.raises(InputError, match="training has diverged") as error:
        train_tiny(tiny_prepared, tmp_path, "--learning-rate", 1e30)
    assert "--learning-rate" in str(error.value)
    assert not list(tmp_path.glob("*.safetensors"))


# --- self-critical training -----------------------------------------------------------------------


def test_advantages_compare_samples_of_the_same_image(tiny_prepared, tiny_checkpoint):
    prepared, caches = Prepared(tiny_prepared), open_caches(tiny_prepared)
    train = Split(prepared, "train", caches, (8,), 30)
    drawn = Checkpoint.load(tiny_checkpoint).model
    config, steps = drawn.config, Steps(drawn, drawn.config, OneDevice())
    sampler = SelfCritical(drawn, config, train.tokens, steps)
    images = train.images[:3]
    features = train.features(images, np.zeros(3, bool))
    words, advantages, rewards = sampler.draw(features, images, np.array([1, 2]))
    assert words.shape[:2] == advantages.shape == rewards.shape == (3, SAMPLES)
    np.testing.assert_allclose(advantages.sum(axis=1), 0, atol=1e-5)
    expected = (rewards - rewards.mean(1, keepdims=True)) / 100 * SAMPLES / (SAMPLES - 1)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    again, *_ = sampler.draw(features, images, np.array([1, 2]))
    np.testing.assert_array_equal(again, words)
    assert (words[:, :, 0] == START).all()
    assert ((words == END).sum(-1) == 1).all()


def test_the_self_critical_loss_weights_log_probabilities():
    drawn = model()
    advantages = np.array([[0.5, -1.0], [2.0, 7.0]], np.float32)  # the last has no word at all
    expected = 0.0
    for (i, k), advantage in np.ndenumerate(advantages):
        if CAPTIONS[i, k].any():
            _, total, _ = loss(drawn, CAPTIONS[i, k][None, None], features(drawn)[i][None])
            expected += advantage * total
    tensors = map(tf.constant, (features(drawn), CAPTIONS, advantages, advantages))
    found, reward, count = self_critical(drawn, *tensors)
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert float(reward) == pytest.approx(8.5)
    assert float(count) == len(TARGETS)
