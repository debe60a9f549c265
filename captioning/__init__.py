"""Image captioning: `captioning.Captioner.load().caption("photo.jpg")`."""

import os
from pathlib import Path

from captioning.errors import InputError

os.environ["KERAS_BACKEND"] = "tensorflow"  # before Keras is imported
__version__ = "0.2.0"
__all__ = ["Captioner", "InputError", "load_captioner"]
LIGHT_SUFFIX = ".tflite"


def load_captioner(path=None, *others, encoder=None, names=True):
    """Load a `.tflite` file without TensorFlow, or a checkpoint (None: the shipped one) with it.

    Several checkpoints are an ensemble, see `captioning.extras.study.ensemble`. `encoder` is for
    checkpoints, and `names` as in `captioning.captioner.Captioner`. InputError if a file cannot be
    used.
    """
    if path and Path(path).suffix == LIGHT_SUFFIX and not others:
        if encoder:
            raise InputError(f"{path}: has its own encoder; leave out --encoder")
        from captioning.extras.serve.light import LightCaptioner

        captioner = LightCaptioner(path)
    else:
        from captioning import Captioner  # and with it TensorFlow

        if others:
            from captioning.extras.study.ensemble import load_ensemble

            captioner = load_ensemble([path, *others], encoder)
        else:
            captioner = Captioner.load(path, encoder, False)  # without names, at first
    return captioner.with_names() if names else captioner


def __getattr__(name: str) -> object:
    """Import `Captioner` on first use: TensorFlow takes seconds."""
    if name == "Captioner":
        from captioning.startup import import_tensorflow

        import_tensorflow()
        from captioning.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")
