"""Image captioning: `captioning.Captioner.load().caption("photo.jpg")`."""

import os

from captioning.errors import InputError

os.environ["KERAS_BACKEND"] = "tensorflow"  # before Keras is imported
__version__ = "0.2.0"
__all__ = ["Captioner", "InputError"]


def __getattr__(name: str) -> object:
    """Import `Captioner` on first use: TensorFlow takes seconds."""
    if name == "Captioner":
        from captioning.startup import import_tensorflow

        import_tensorflow()
        from captioning.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")
