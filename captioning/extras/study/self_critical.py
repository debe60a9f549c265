"""Self-critical training: raise the probability of sampled captions that score well.

Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning", sample captions, reward
each by its CIDEr-D, and raise the probability of those that beat a baseline: here the mean reward
of the image's other samples (Luo 2020, "A Better Variant of Self-Critical Sequence Training").

Shapes: I images, K captions per image, T words from START to END, then pads.
"""

from functools import partial

import keras
import numpy as np
import tensorflow as tf

from captioning.config import Config
from captioning.decoding import Captions, decode
from captioning.metrics import CiderD
from captioning.prepared import CaptionTokens
from captioning.steps import Steps
from captioning.vocabulary import PAD, START

SAMPLES = 5  # captions sampled per image
CLIP_NORM = 1.0  # of the whole gradient


def sample(model, features, samples: int, seed, max_words: int) -> Captions:
    """Draw `samples` captions per image from the model's distribution."""

    def draw(scores: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(scores, (-1, tf.shape(scores)[-1]))
        drawn = tf.random.stateless_categorical(flat, 1, seed + tf.stack([t, 0]))
        return tf.reshape(drawn, tf.shape(scores)[:2])

    return decode(model, features, samples, max_words, draw)


def self_critical(model, features, words, advantages, rewards):
    """Minus the log-probability of sampled captions (I, K, T) times their `advantages` (I, K).

    Returns the sum, the sum of `rewards` (I, K), and the word count. Without dropout.
    """
    logits, targets, captions = model.target_logits(words, features)
    log_probabilities = tf.gather(logits, targets, batch_dims=1)
    log_probabilities -= tf.reduce_logsumexp(logits, axis=-1)
    weights = tf.gather(tf.reshape(advantages, (-1,)), captions)
    loss = -tf.reduce_sum(weights * log_probabilities)
    return loss, tf.reduce_sum(rewards), tf.cast(tf.size(targets), tf.float32)


class SelfCritical:
    """Samples captions of training images and rewards each by its CIDEr-D, END included.

    train: (features, words, advantages, rewards) -> summed reward, word count
    """

    samples = SAMPLES

    def __init__(self, model, config: Config, tokens: CaptionTokens, steps: Steps):
        references = [[] for _ in range(tokens.images[-1] + 1)]
        for caption, image in enumerate(tokens.images.tolist()):
            references[image].append(tokens[caption][1:].tolist())  # without START
        self._scorer = CiderD(references, [captions for captions in references if captions])
        self._sample = tf.function(
            lambda features, seed: sample(model, features, SAMPLES, seed, config.max_words).words,
            [steps.signature[0], tf.TensorSpec((2,), tf.int32)],
            autograph=False,
        )
        figures = [tf.TensorSpec((None, None), tf.float32)] * 2
        rate = config.self_critical_rate
        self.optimizer = keras.optimizers.AdamW(rate, weight_decay=0.0, global_clipnorm=CLIP_NORM)
        loss = partial(self_critical, model)
        self.train = steps.gradient_step(self.optimizer, loss, [*steps.signature, *figures])

    def draw(self, features: np.ndarray, images: np.ndarray, seed: np.ndarray):
        """Sample captions of `images` (I,), indices in the split, by `seed`.

        Returns words int32 (I, K, T); advantages float32 (I, K); rewards (I, K), CIDEr-D x 100.
        """
        drawn = self._sample(tf.constant(features), tf.constant(seed, tf.int32)).numpy()
        lengths = np.count_nonzero(drawn != PAD, axis=-1)  # (I, SAMPLES)
        captions = [ids[ids != PAD].tolist() for ids in drawn.reshape(-1, drawn.shape[-1])]
        rewards = self._scorer.scores(np.repeat(images, SAMPLES), captions).reshape(lengths.shape)
        others = (rewards.sum(1, keepdims=True) - rewards) / (SAMPLES - 1)
        start = np.full((*lengths.shape, 1), START, np.int32)
        words = np.concatenate([start, drawn[:, :, : lengths.max()]], axis=-1)
        return words, (rewards - others).astype(np.float32), 100 * rewards
