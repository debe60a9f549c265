"""One pass over a caption, a step at a time, or prefix by prefix: the same model."""

import inspect
import itertools

import numpy as np
import pytest
import tensorflow as tf

from captioning.config import Config
from captioning.model import MergeDecoder
from captioning.vocabulary import PAD, START

IMAGES, CAPTIONS, LENGTH, WORDS = 2, 3, 5, 11
KINDS = list(itertools.product(("gru", "lstm"), ("none", "grid")))


def build(rnn="gru", attention="none", **settings):
    """A small model whose weights, biases and scales too, are far from their initial values."""
    shape = (4, 6) if attention == "grid" else (6,)
    config = Config(rnn=rnn, attention=attention, units=8, heads=2, dropout=0.3, **settings)
    model = MergeDecoder(config, WORDS, shape, embedding_size=5)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request):
    return build(*request.param)


@pytest.fixture(scope="module")
def features(model):
    shape = (IMAGES, *model.feature_shape)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def words():
    words = np.random.default_rng(2).integers(4, WORDS, (IMAGES, CAPTIONS, LENGTH))
    words[:, :, 0] = START
    return words.astype(np.int32)


def predict(model, words, features):
    return np.asarray(model(tf.constant(words), tf.constant(features)))


def test_one_pass_equals_a_row_for_every_prefix(model, words, features):
    rows, ends, images = [], [], []
    for image, caption in np.ndindex(IMAGES, CAPTIONS):
        for end in range(1, LENGTH + 1):
            rows.append(np.pad(words[image, caption, :end], (0, LENGTH - end)))
            ends.append(end - 1)
            images.append(image)
    outputs, _ = model.read_words(tf.constant(np.array(rows)))
    last = tf.gather(outputs, ends, batch_dims=1)[:, None]  # (rows, 1, U): after the last word
    merged, _ = model.merge(last, model.encode_image(tf.constant(features[images])))
    expanded = np.asarray(model.score_words(merged)).reshape(IMAGES, CAPTIONS, LENGTH, WORDS)
    one_pass = predict(model, words, features)
    assert one_pass.std() > 0.1
    np.testing.assert_allclose(one_pass, expanded, atol=1e-5)


def test_a_step_at_a_time_equals_one_pass(model, words, features):
    image = model.encode_image(tf.constant(features))
    state = model.initial_state(IMAGES * CAPTIONS)
    steps = []
    for position in range(LENGTH):
        scores, state = model.step(tf.constant(words[:, :, position]), state, image)
        steps.append(scores)
    whole = tf.nn.log_softmax(predict(model, words, features))
    np.testing.assert_allclose(np.stack(steps, axis=2), whole, atol=1e-5)


def test_a_batch_equals_its_singles(model, words, features):
    batch = predict(model, words, features)
    for image, caption in np.ndindex(IMAGES, CAPTIONS):
        single = predict(model, words[image, caption][None, None], features[image][None])
        np.testing.assert_allclose(single[0, 0], batch[image, caption], atol=1e-5)


def test_pads_after_a_caption_and_rows_of_pads_change_nothing(model, words, features):
    padded = np.pad(words, ((0, 0), (0, 2), (0, 3)), constant_values=PAD)
    predictions = predict(model, padded, features)[:, :CAPTIONS, :LENGTH]
    np.testing.assert_allclose(predictions, predict(model, words, features), atol=1e-5)


def test_a_later_word_changes_no_earlier_prediction(model, words, features):
    changed = words.copy()
    changed[:, :, 3] = (changed[:, :, 3] - 4 + 1) % (WORDS - 4) + 4
    before, after = predict(model, words, features), predict(model, changed, features)
    np.testing.assert_allclose(before[:, :, :3], after[:, :, :3], atol=1e-6)
    assert np.abs(before[:, :, 3:] - after[:, :, 3:]).max(axis=-1).min() > 1e-3


def test_the_image_never_enters_the_rnn(model, words, features, monkeypatch):
    assert list(inspect.signature(model.read_words).parameters) == ["words", "state", "training"]
    read, merge = [], model.merge
    monkeypatch.setattr(
        model, "merge", lambda outputs, *rest: read.append(outputs) or merge(outputs, *rest)
    )
    features = tf.constant(features)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        predictions = model(tf.constant(words), features)
    assert tape.gradient(read[0], features) is None
    assert np.abs(tape.gradient(predictions, features)).max() > 1e-3


def test_attention_is_a_distribution_over_the_grid(words):
    model = build(attention="grid")
    grid = np.random.default_rng(3).normal(size=(IMAGES, 4, 6)).astype(np.float32)
    outputs, _ = model.read_words(tf.constant(words[:, 0]))
    merged, weights = model.merge(outputs, model.encode_image(tf.constant(grid)))
    assert weights.shape == (IMAGES, 2, LENGTH, 4)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, atol=1e-6)
    # the order of the grid's positions means nothing: the same picture, the same words
    shuffled = model.encode_image(tf.constant(grid[:, ::-1].copy()))
    again, moved = model.merge(outputs, shuffled)
    np.testing.assert_allclose(again, merged, atol=1e-5)
    np.testing.assert_allclose(moved.numpy()[..., ::-1], weights, atol=1e-6)


def test_dropout_acts_in_training_alone(model, words, features):
    inputs = tf.constant(words), tf.constant(features)
    still = np.asarray(model(*inputs, training=False))
    np.testing.assert_array_equal(still, model(*inputs, training=False))
    assert np.abs(model(*inputs, training=True) - still).max() > 1e-3


@pytest.mark.parametrize("attention", ["none", "grid"])
def test_bfloat16_gives_float32_scores_near_the_exact_ones(attention, words):
    exact = build(attention=attention)
    rough = build(attention=attention, bfloat16=True)
    features = np.random.default_rng(1).normal(size=(IMAGES, *exact.feature_shape))
    features = features.astype(np.float32)
    scores = rough(tf.constant(words), tf.constant(features))
    assert scores.dtype == tf.float32
    np.testing.assert_allclose(scores, predict(exact, words, features), atol=0.3)
    state = rough.initial_state(IMAGES)
    step, _ = rough.step(tf.constant(words[:, :1, 0]), state, rough.encode_image(features))
    np.testing.assert_allclose(np.exp(step).sum(axis=-1), 1, atol=1e-5)


def test_frozen_word_vectors_are_not_trained():
    assert build(freeze_embeddings=True).embedding.trainable_variables == []
