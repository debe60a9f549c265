"""The GRU does what Keras' does: outputs, state and every gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from captioning.gru import GRU

BATCH, STEPS, SIZE, UNITS = 5, 7, 6, 8


def pair(dtype="float32"):
    """The layer and a Keras layer with the same random weights, biases included."""
    ours = GRU(UNITS, return_sequences=True, return_state=True, dtype=dtype)
    theirs = keras.layers.GRU(UNITS, return_sequences=True, return_state=True, dtype=dtype)
    rng = np.random.default_rng(0)
    for layer in (ours, theirs):
        layer.build((None, None, SIZE))
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        value = rng.normal(size=mine.shape).astype(np.float32) / 2
        mine.assign(value)
        other.assign(value)
    return ours, theirs


def inputs(steps=STEPS):
    rng = np.random.default_rng(1)
    sequences = tf.constant(rng.normal(size=(BATCH, steps, SIZE)), tf.float32)
    return sequences, tf.constant(rng.normal(size=(BATCH, UNITS)), tf.float32)


@pytest.mark.parametrize("steps", [1, 2, STEPS])
@pytest.mark.parametrize("given_state", [False, True])
def test_outputs_and_state_are_those_of_keras(steps, given_state):
    ours, theirs = pair()
    sequences, state = inputs(steps)
    state = [state] if given_state else None
    for mine, other in zip(
        ours(sequences, initial_state=state), theirs(sequences, initial_state=state), strict=True
    ):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_gradients_are_those_of_keras(steps):
    found = []
    for layer in pair():
        sequences, state = inputs(steps)

        @tf.function
        def gradients(sequences, state, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch((sequences, state))
                outputs, last = layer(sequences, initial_state=[state])
                loss = tf.reduce_sum(outputs**2) + tf.reduce_sum(last**3)
            return tape.gradient(loss, [sequences, state, *layer.trainable_variables])

        found.append(gradients(sequences, state))
    for mine, other in zip(*found, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_keras():
    sequences, state = inputs()
    exact = pair()[0](sequences, initial_state=[state])[0].numpy()
    mine, other = (
        tf.cast(layer(tf.cast(sequences, "bfloat16"), initial_state=[state])[0], "float32").numpy()
        for layer in pair("mixed_bfloat16")
    )
    assert mine.shape == other.shape
    assert np.abs(mine - exact).max() <= max(1.2 * np.abs(other - exact).max(), 1e-2)
