"""The four places where the image can enter, and the two ways to merge it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import ENCODER

from captioning.checkpoint import Checkpoint, build_decoder
from captioning.config import Config
from captioning.decoding import beam_search, decode_greedily
from captioning.errors import InputError
from captioning.files import read_tensors, tensor_bytes
from captioning.losses import cross_entropy
from captioning.vocabulary import END, PAD, SPECIALS, START, Vocabulary

VOCABULARY = Vocabulary([*SPECIALS, *"abcde"], [0] * 9)
CAPTION = [START, 4, 5, 4, 6, END, PAD]
CAPTIONS = tf.constant(
    [[CAPTION, [START, 6, END] + [PAD] * 4], [[START, 7, 7, END] + [PAD] * 3, CAPTION]]
)
KINDS = [
    {"architecture": architecture, "rnn": rnn}
    for architecture in ("merge", "init-inject", "pre-inject", "par-inject")
    for rnn in ("gru", "lstm")
] + [{"merge": "concat"}, {"merge": "concat", "attention": "grid"}]


def build(kind):
    """A small model, and features of three images."""
    config = Config(units=6, heads=2, dropout=0.0, max_words=5, **kind)
    shape = (4, 8) if config.attention == "grid" else (8,)
    features = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    return build_decoder(config, len(VOCABULARY), shape, embedding_size=5), features


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_are_the_one_pass_and_depend_on_image_and_words_before(kind):
    model, features = build(kind)
    whole = model(CAPTIONS, features[:2]).numpy()
    image, state = model.encode_image(features[:2]), model.initial_state(4)
    for t in range(6):
        scores, state = model.step(CAPTIONS[:, :, t], state, image)
        expected = tf.nn.log_softmax(whole[:, :, t])
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    later = CAPTIONS.numpy()
    later[:, :, 3:] = 8
    np.testing.assert_allclose(model(later, features[:2])[:, :, :3], whole[:, :, :3], atol=1e-6)
    assert np.abs(model(CAPTIONS, features[1:])[:, 0, 0] - whole[:, 0, 0]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_weight_learns_and_a_checkpoint_remembers_the_kind(kind, tmp_path):
    model, features = build(kind)
    with tf.GradientTape() as tape:
        loss = cross_entropy(model, features[:2], CAPTIONS, training=True)[0]
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(g is not None and np.abs(tf.convert_to_tensor(g)).max() > 0 for g in gradients[1:])
    Checkpoint(model, VOCABULARY, ENCODER, {}).save(tmp_path / "model.safetensors")
    again = Checkpoint.load(tmp_path / "model.safetensors").model
    assert (type(again), again.config) == (type(model), model.config)
    for search in (decode_greedily, lambda *given: beam_search(*given[:2], 3, 0.7, given[2])):
        found, expected = search(again, features, 5), search(model, features, 5)
        np.testing.assert_array_equal(found.words, expected.words)


def test_a_checkpoint_from_before_these_choices_is_a_merge_model(tmp_path):
    model, features = build({})
    path = tmp_path / "model.safetensors"
    Checkpoint(model, VOCABULARY, ENCODER, {}).save(path)
    header, tensors = read_tensors(path, "train.py")
    for name in ("architecture", "merge", "optimizer"):
        del header["config"][name]
    path.write_bytes(tensor_bytes({name: np.array(t) for name, t in tensors.items()}, header))
    again = Checkpoint.load(path).model
    assert again.config == model.config
    np.testing.assert_array_equal(again(CAPTIONS, features[:2]), model(CAPTIONS, features[:2]))


def test_what_does_not_go_together_is_reported(tmp_path):
    inject = Config(architecture="init-inject")
    assert inject.contradiction() is None
    for changed in ({"attention": "grid"}, {"merge": "concat"}):
        problem = dataclasses.replace(inject, **changed).contradiction()
        assert problem == "--architecture init-inject has no --attention and no --merge"
    model, _ = build({})
    object.__setattr__(model.config, "architecture", "par-inject")  # the weights of another
    Checkpoint(model, VOCABULARY, ENCODER, {}).save(tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match="its tensors are not the weights"):
        Checkpoint.load(tmp_path / "wrong.safetensors")


def test_adadelta_trains_at_a_constant_rate(tiny_prepared, tmp_path, train_tiny):
    options = ("--optimizer", "adadelta", "--learning-rate", 1, "--architecture", "pre-inject")
    output = train_tiny(tiny_prepared, tmp_path / "run", *options, "--dropout", 0, "--epochs", 4)
    losses = [
        row["train_loss"] for row in Checkpoint.load(output / "best.safetensors").facts["history"]
    ]
    assert losses == sorted(losses, reverse=True)
    _, tensors = read_tensors(output / "resume.safetensors", "train.py")
    assert 1.0 in [float(t) for t in tensors.values() if t.shape == () and t.dtype == np.float32]
