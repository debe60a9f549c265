"""What training minimises: cross-entropy of the next word after the words of people."""

import tensorflow as tf


def cross_entropy(model, features, words, training: bool, smoothing: float = 0.0):
    """Cross-entropy of the next word over all of `words` (I, K, T) that are not pads.

    Shapes are those of `MergeDecoder`. Returns the summed loss with smoothed targets (Szegedy et
    al. 2016, "Rethinking the Inception Architecture"), the summed negative log-likelihood in nats,
    and the word count: sums, which can be added up over several devices.
    """
    logits, targets, _ = model.target_logits(words, features, training)
    normaliser = tf.reduce_logsumexp(logits, axis=-1)
    likelihood = tf.gather(logits, targets, batch_dims=1) - normaliser
    uniform = tf.reduce_mean(logits, axis=-1) - normaliser
    smoothed = (1 - smoothing) * likelihood + smoothing * uniform
    count = tf.cast(tf.size(targets), tf.float32)
    return -tf.reduce_sum(smoothed), -tf.reduce_sum(likelihood), count
