"""Captions drawn at random from the model's distribution."""

import numpy as np
import tensorflow as tf

from captioning.captioner import Captioner
from captioning.captions import Caption
from captioning.checkpoint import Checkpoint
from captioning.config import LENGTH_PENALTY
from captioning.decoding import sample


class SamplingCaptioner(Captioner):
    """A captioner that draws `samples` captions per image, see `captioning.decoding.sample`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: str | None = None,
        samples: int = 5,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        """The n-th image is drawn with `seed` and n."""
        super().__init__(checkpoint, encoder)
        self._seed, self._images = seed, 0
        shape, limit = self.model.feature_shape, self.model.config.max_words
        self._draw = tf.function(
            lambda x, seed: sample(self.model, x, samples, seed, limit, temperature, top_p),
            [tf.TensorSpec((1, *shape)), tf.TensorSpec(2, tf.int32)],
            autograph=False,
        )

    def caption_features(
        self,
        features: np.ndarray,
        beam_width: int = 1,
        length_penalty: float = LENGTH_PENALTY,
        n_best: int = 1,
    ) -> list[Caption]:
        """As `Captioner.caption_features`; the captions are in the order drawn."""
        captions = []
        for feature in features.astype(np.float32):
            drawn = self._draw(feature[None], [self._seed, self._images])
            captions.append(
                Caption.from_search(self.vocabulary, *(part[0].numpy() for part in drawn))
            )
            self._images += 1
        return captions
