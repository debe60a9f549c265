"""Self-critical training: raise the CIDEr-D of the captions that the model itself would write.

Cross-entropy teaches the next word after the words of people; a captioner is judged by whole
captions after its own words. Rennie et al. 2017, "Self-critical Sequence Training for Image
Captioning", sample captions, reward each by its CIDEr-D, and raise the probability of those that
beat a baseline. The baseline here is the mean reward of the image's other samples (Luo 2020, "A
Better Variant of Self-Critical Sequence Training").
"""

import numpy as np
import tensorflow as tf

from captioning.decoding import sample
from captioning.metrics import CiderD
from captioning.prepared import CaptionTokens
from captioning.vocabulary import PAD, START


class SelfCritic:
    """Samples captions of training images and says how much better each is than its siblings.

    Args:
        model: the merge-decoder.
        tokens: the captions of the training split; they are the references, and rarity of words
            is counted in them. Their END is part of the reward, so that stopping too early or
            too late costs.
        samples: captions drawn for each image, at least 2.
    """

    def __init__(self, model, tokens: CaptionTokens, samples: int):
        """Measure the references."""
        captioned = np.unique(tokens.images)
        self._place = {int(image): place for place, image in enumerate(captioned)}
        references = [[] for _ in captioned]
        for caption, image in enumerate(tokens.images.tolist()):
            references[self._place[image]].append(tokens[caption][1:].tolist())  # without START
        self._scorer = CiderD(references)
        self._samples = samples
        self._sample = tf.function(
            lambda features, seed: sample(model, features, samples, seed)[0],
            reduce_retracing=True,
            autograph=False,
        )

    def draw(
        self, features: np.ndarray, images: np.ndarray, seed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample captions and judge them.

        Args:
            features: (I, *feature_shape).
            images: (I,), their places in the training split.
            seed: two whole numbers; the same seed draws the same captions.

        Returns:
            words int32 (I, samples, T), START to END, then pads; advantages float32 (I, samples),
            a caption's reward less the mean of its siblings'; rewards (I, samples), CIDEr-D x 100.
        """
        drawn = self._sample(tf.constant(features), tf.constant(seed, tf.int32)).numpy()
        lengths = np.count_nonzero(drawn != PAD, axis=-1)
        captions = [
            ids[:length].tolist()
            for ids, length in zip(drawn.reshape(-1, drawn.shape[-1]), lengths.ravel(), strict=True)
        ]
        places = np.repeat([self._place[int(image)] for image in images], self._samples)
        rewards = self._scorer.scores(places, captions).reshape(lengths.shape)
        siblings = (rewards.sum(1, keepdims=True) - rewards) / (self._samples - 1)
        start = np.full((*lengths.shape, 1), START, np.int32)
        words = np.concatenate([start, drawn[:, :, : lengths.max()]], axis=-1)
        return words, (rewards - siblings).astype(np.float32), 100 * rewards


def self_critical_loss(model, features, words, advantages):
    """Policy-gradient loss: minus the advantage-weighted log-probability of sampled captions.

    Dropout is off, as it was when the captions were sampled.

    Args:
        model: the merge-decoder.
        features: (I, *feature_shape).
        words: int32 (I, K, T), START to END, then pads.
        advantages: float32 (I, K).

    Returns:
        the mean over all sampled words.
    """
    logits, targets, captions = model.real_word_logits(words, features)
    chosen = tf.gather(logits, targets, batch_dims=1)
    log_probabilities = chosen - tf.reduce_logsumexp(logits, axis=-1)
    weights = tf.gather(tf.reshape(advantages, (-1,)), captions)
    return -tf.reduce_mean(weights * log_probabilities)
