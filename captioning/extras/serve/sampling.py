"""Captions drawn at random from the model's distribution."""

import numpy as np
import tensorflow as tf

from captioning.captioner import Captioner
from captioning.captions import Caption
from captioning.checkpoint import Checkpoint
from captioning.decoding import sample


class SamplingCaptioner(Captioner):
    """A captioner that draws its captions, see `captioning.decoding.sample`, as options say."""

    def __init__(self, checkpoint: Checkpoint, options):
        super().__init__(checkpoint, options.encoder)
        self._seed, self._images = options.seed, 0
        how = (self.model.config.max_words, options.temperature, options.top_p)
        signature = [tf.TensorSpec((1, *self.model.feature_shape)), tf.TensorSpec(2, tf.int32)]
        self._draw = tf.function(
            lambda features, seed: sample(self.model, features, options.sample, seed, *how),
            signature,
            autograph=False,
        )

    def caption_features(self, features: np.ndarray, *search) -> list[Caption]:
        """Captions in the order drawn; the n-th image is drawn with the seed and n."""
        captions = []
        for feature in features.astype(np.float32):
            drawn = self._draw(feature[None], [self._seed, self._images])
            found = (part[0].numpy() for part in drawn)
            captions.append(Caption.from_search(self.vocabulary, *found))
            self._images += 1
        return captions
