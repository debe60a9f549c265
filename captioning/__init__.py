"""Image captioning with a frozen CNN, FastText embeddings and a merge-decoder.

from captioning import Captioner
captioner = Captioner.load()
print(captioner.caption("photo.jpg"))
"""

from captioning.files import InputError

__version__ = "0.1.0"
__all__ = ["Captioner", "InputError"]


def __getattr__(name: str) -> object:
    """Import `Captioner` when it is first asked for: TensorFlow takes seconds, and greets."""
    if name == "Captioner":
        from captioning.cli import quiet_stderr

        with quiet_stderr():
            from captioning.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")
