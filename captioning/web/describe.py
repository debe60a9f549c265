"""A photograph's bytes -> what the page shows of it."""

import io
import math

import numpy as np

from captioning.captioner import Captioner
from captioning.encoders import load_image

SEARCHES = {"Greedy search": 1, "Beam search, width 5": 5}  # name -> beam width


class Describer:
    """A captioner that answers in plain values. For one thread at a time.

    Args:
        captioner: the model, with or without attention.
    """

    def __init__(self, captioner: Captioner):
        """Keep the captioner, and caption a grey square: the first caption takes seconds."""
        self._captioner = captioner
        size = captioner.encoder.image_size
        self._describe(np.full((size, size, 3), 127, np.uint8))

    def __call__(self, picture: bytes) -> dict:
        """Caption a photograph, greedily and with a beam.

        Args:
            picture: a file of any format that Pillow reads.

        Returns:
            JSON-ready: `captions`, each with `search`, `words`, the `probability` of the whole
            caption and, where the model has attention, `maps`: for each word rows of 0..255, how
            much the model looked at each part of the photograph, 255 at the map's maximum.

        Raises:
            InputError: it is no picture, damaged, or too large.
        """
        return self._describe(load_image(io.BytesIO(picture), self._captioner.encoder.image_size))

    def _describe(self, pixels: np.ndarray) -> dict:
        features = self._captioner.encode([pixels])
        captions = []
        for search, width in SEARCHES.items():
            (found,) = self._captioner.caption_features(features, width)
            caption = {
                "search": search,
                "words": found.text.split(),
                "probability": math.exp(found.log_probability),
            }
            if self._captioner.has_attention:
                (maps,) = self._captioner.attention(features, [found.text])
                caption["maps"] = _bytes(maps).tolist()
            captions.append(caption)
        return {"captions": captions}


def _bytes(maps: np.ndarray) -> np.ndarray:
    """Maps (words, rows, columns) as uint8, 255 at each map's maximum."""
    maxima = maps.max(axis=(1, 2), keepdims=True, initial=np.finfo(np.float32).tiny)
    return np.rint(255 * maps / maxima).astype(np.uint8)
