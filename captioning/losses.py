"""What training minimises: cross-entropy, and the self-critical loss.

Cross-entropy teaches the next word after the words of people; a captioner is judged by whole
captions after its own words. Rennie et al. 2017, "Self-critical Sequence Training for Image
Captioning", sample captions, reward each by its CIDEr-D, and raise the probability of those that
beat a baseline. The baseline here is the mean reward of the image's other samples (Luo 2020, "A
Better Variant of Self-Critical Sequence Training").

Both losses are sums, with the number of words beside them, so that the parts of a batch that
several devices compute can be added up.
"""

import numpy as np
import tensorflow as tf

from captioning.decoding import sample
from captioning.metrics import CiderD
from captioning.prepared import CaptionTokens
from captioning.vocabulary import PAD, START

SAMPLES = 5  # captions sampled per image


def cross_entropy(model, features, words, training: bool, label_smoothing: float = 0.0):
    """Cross-entropy of the next word over all words that are not pads.

    Args:
        model: the merge model.
        features: (I, *feature_shape).
        words: int32 (I, K, T), START to END, then pads.
        training: whether dropout is on.
        label_smoothing: e of Szegedy et al. 2016, "Rethinking the Inception Architecture".

    Returns:
        the summed loss, smoothed; the summed negative log-likelihood (nats); the word count.
    """
    logits, targets, _ = model.target_logits(words, features, training)
    normaliser = tf.reduce_logsumexp(logits, axis=-1)
    likelihood = tf.gather(logits, targets, batch_dims=1) - normaliser
    uniform = tf.reduce_mean(logits, axis=-1) - normaliser
    smoothed = (1 - label_smoothing) * likelihood + label_smoothing * uniform
    count = tf.cast(tf.size(targets), tf.float32)
    return -tf.reduce_sum(smoothed), -tf.reduce_sum(likelihood), count


def self_critical(model, features, words, advantages):
    """Policy-gradient loss: minus the log-probability of sampled captions times their advantage.

    Dropout is off, as it was when the captions were sampled.

    Args:
        model: the merge model.
        features: (I, *feature_shape).
        words: int32 (I, K, T), START to END, then pads.
        advantages: float32 (I, K).

    Returns:
        the summed loss; the word count.
    """
    logits, targets, captions = model.target_logits(words, features)
    log_probabilities = tf.gather(logits, targets, batch_dims=1)
    log_probabilities -= tf.reduce_logsumexp(logits, axis=-1)
    weights = tf.gather(tf.reshape(advantages, (-1,)), captions)
    return -tf.reduce_sum(weights * log_probabilities), tf.cast(tf.size(targets), tf.float32)


class Sampler:
    """Samples captions of training images and computes the advantage of each.

    Args:
        model: the merge model.
        tokens: the training captions: the references, and the documents in which n-grams are
            counted. END is part of them, so that stopping too early or too late costs.
        max_words: the longest caption to sample.
    """

    def __init__(self, model, tokens: CaptionTokens, max_words: int):
        """Prepare the references."""
        captioned = np.unique(tokens.images)
        self._place = {int(image): place for place, image in enumerate(captioned)}
        references = [[] for _ in captioned]
        for caption, image in enumerate(tokens.images.tolist()):
            references[self._place[image]].append(tokens[caption][1:].tolist())  # without START
        self._scorer = CiderD(references)
        self._sample = tf.function(
            lambda features, seed: sample(model, features, SAMPLES, seed, max_words).words,
            reduce_retracing=True,
            autograph=False,
        )

    def draw(self, features: np.ndarray, images: np.ndarray, seed: np.ndarray):
        """Sample captions and score them.

        Args:
            features: (I, *feature_shape).
            images: (I,), their indices in the training split.
            seed: two whole numbers; the same seed draws the same captions.

        Returns:
            words int32 (I, SAMPLES, T), START to END, then pads; advantages float32 (I, SAMPLES),
            a caption's reward minus the mean of the others; rewards (I, SAMPLES), CIDEr-D x 100.
        """
        drawn = self._sample(tf.constant(features), tf.constant(seed, tf.int32)).numpy()
        lengths = np.count_nonzero(drawn != PAD, axis=-1)
        captions = [
            ids[:length].tolist()
            for ids, length in zip(drawn.reshape(-1, drawn.shape[-1]), lengths.ravel(), strict=True)
        ]
        places = np.repeat([self._place[int(image)] for image in images], SAMPLES)
        rewards = self._scorer.scores(places, captions).reshape(lengths.shape)
        others = (rewards.sum(1, keepdims=True) - rewards) / (SAMPLES - 1)
        start = np.full((*lengths.shape, 1), START, np.int32)
        words = np.concatenate([start, drawn[:, :, : lengths.max()]], axis=-1)
        return words, (rewards - others).astype(np.float32), 100 * rewards
