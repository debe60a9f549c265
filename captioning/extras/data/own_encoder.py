"""An encoder of the user's own: a `.keras` file, only of people you trust."""

from pathlib import Path

import keras

from captioning.errors import InputError, reason


def load_file(path: Path) -> keras.Model:
    """Load a CNN from the images of `Encoder` to features, or raise InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such encoder file; if it has moved, give it with --encoder")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        inputs, outputs = model.input_shape, model.output_shape
    except Exception as error:  # Keras raises many types, for many kinds of damage
        problem = f"not a Keras model that can be loaded safely: {reason(error)}"
        raise InputError(f"{path}: {problem}") from None
    square = len(inputs) == 4 and inputs[-1] == 3 and inputs[1] == inputs[2]
    if not square or len(outputs) not in (2, 4):
        wanted = "(batch, size, size, 3) to (batch, rows, columns, channels) or (batch, channels)"
        raise InputError(f"{path}: maps {inputs} to {outputs}; an encoder maps {wanted}")
    return model
