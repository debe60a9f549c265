"""Importing TensorFlow: without its messages, and as Keras' backend."""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator

from captioning.errors import InputError


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hide what native code writes to stderr; show it if the block raises."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            hidden.seek(0)
            stderr.write(hidden.read())
            raise
        finally:
            os.dup2(stderr.fileno(), 2)


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; InputError if Keras runs on another backend already."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # applies after a dozen lines
    gc.disable()  # a fifth of the time, to find nothing
    try:
        with quiet_stderr():
            import keras
            import tensorflow as tf  # noqa: F401
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()
        gc.enable()
    if (backend := keras.backend.backend()) != "tensorflow":
        remedy = "import captioning first, or set KERAS_BACKEND=tensorflow"
        raise InputError(f"Keras was imported with the backend {backend}; {remedy}")
