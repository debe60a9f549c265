"""CNNs by name: images to features.

An encoder takes an RGB batch in 0..255, (batch, size, size, 3), and returns a grid of features,
(batch, rows, columns, channels); its own preprocessing is inside.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captioning.errors import InputError, reason
from captioning.files import read_tensors, shipped

BUNDLED = "efficientnet_lite2"
BUNDLED_FILE = shipped(f"data/encoders/{BUNDLED}.safetensors")
BUNDLED_IMAGE_SIZE = 260  # what it was trained at
FILE_IMAGE_SIZE = 224  # for a `.keras` file that leaves its input size open

# name -> (module with its preprocessing, class, image size) in keras.applications
APPLICATIONS = {
    "resnet50": ("resnet", "ResNet50", 224),
    "resnet101": ("resnet", "ResNet101", 224),
    "resnet152": ("resnet", "ResNet152", 224),
    "vgg16": ("vgg16", "VGG16", 224),
    "vgg19": ("vgg19", "VGG19", 224),
    "inception_v3": ("inception_v3", "InceptionV3", 299),
    "xception": ("xception", "Xception", 299),
    "densenet121": ("densenet", "DenseNet121", 224),
    "mobilenet_v3_large": ("mobilenet_v3", "MobileNetV3Large", 224),
    "efficientnet_b0": ("efficientnet", "EfficientNetB0", 224),
    "efficientnet_v2s": ("efficientnet_v2", "EfficientNetV2S", 384),
    "convnext_tiny": ("convnext", "ConvNeXtTiny", 224),
}
WEIGHT_SUFFIXES = (".h5", ".hdf5")  # of files with the weights of one of them
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen CNN, and what identifies its features.

    Attributes:
        name: one of `encoder_names()`, or the path of a `.keras` file.
        image_size: height and width of its input, in pixels.
        grid_shape: (rows, columns, channels); 1 row and column for an encoder that pools.
        fingerprint: first 16 hex digits of the SHA-256 of its weights.
        model: the Keras model.
    """

    name: str
    image_size: int
    grid_shape: tuple[int, int, int]
    fingerprint: str
    model: object = dataclasses.field(repr=False, compare=False)

    def to_json(self) -> dict:
        """What the cache and a checkpoint record."""
        return {
            "name": self.name,
            "image_size": self.image_size,
            "grid_shape": list(self.grid_shape),
            "fingerprint": self.fingerprint,
        }

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images (batch, size, size, 3), 0..255 -> float32 (batch, rows, columns, channels)."""
        grid = np.array(self._forward(images.astype(np.float32)), np.float32)
        return grid.reshape(len(images), *self.grid_shape)

    @functools.cached_property
    def _forward(self):
        """The forward pass as one graph for all batch sizes."""
        import tensorflow as tf

        batch = tf.TensorSpec((None, self.image_size, self.image_size, 3), tf.float32)
        return tf.function(
            lambda images: self.model(images, training=False), [batch], autograph=False
        )


def encoder_names() -> list[str]:
    """The encoders that are known by name, the bundled one first."""
    return [BUNDLED, *APPLICATIONS]


def encoder_label(description: dict) -> str:
    """One line about an encoder, from `Encoder.to_json`."""
    size, grid = description["image_size"], " x ".join(map(str, description["grid_shape"]))
    name, fingerprint = description["name"], description["fingerprint"]
    return f"{name} at {size} x {size} -> {grid} (weights {fingerprint})"


def require_same_encoder(source: object, recorded: dict, wanted: dict) -> None:
    """Check that features and weights belong to the same encoder; its file may have moved.

    Args:
        source: what was made with the encoder `recorded`; named in the message.
        recorded: its `Encoder.to_json`.
        wanted: that of the encoder in use.

    Raises:
        InputError: they differ; names both.
    """
    one, other = ({**both, "name": Path(both["name"]).name} for both in (recorded, wanted))
    if one != other:
        raise InputError(
            f"{source}: made with {encoder_label(recorded)},\n"
            f"not with {encoder_label(wanted)}; use that encoder, or another folder"
        )


def load_encoder(
    name: str | os.PathLike, weights: str | os.PathLike | None = None, image_size: int | None = None
) -> Encoder:
    """Load an encoder by name, or from a `.keras` file.

    Args:
        name: one of `encoder_names()`, or the path of a Keras model from (batch, height, width, 3)
            to (batch, rows, columns, channels) or (batch, channels). Keras loads it in safe mode,
            but only open files of people you trust.
        weights: for a keras.applications name, a weights file (without the classifier) to use
            instead of the download.
        image_size: height and width of the input, where the network leaves them open.

    Raises:
        InputError: an unknown name, an unusable file, or no network for the download.
    """
    name = str(name)
    if weights and name not in APPLICATIONS:
        raise InputError(f"{weights}: weights are for {', '.join(APPLICATIONS)}, not for {name}")
    if name in APPLICATIONS:
        size = image_size or APPLICATIONS[name][2]
        model = _load_application(name, size, weights)
    elif name == BUNDLED:
        size = image_size or BUNDLED_IMAGE_SIZE
        model = _load_bundled()
    elif Path(name).suffix == ".keras":
        model = _load_file(Path(name).expanduser())
        size = image_size or model.input_shape[1] or FILE_IMAGE_SIZE
    else:
        raise InputError(
            f"{name}: not an encoder; give a .keras file or one of {', '.join(encoder_names())}"
        )
    return Encoder(name, size, _grid_shape(name, model, size), _fingerprint(model), model)


def _load_bundled():
    import keras

    header, tensors = read_tensors(BUNDLED_FILE, "data/encoders/convert.py")
    model = keras.models.model_from_json(json.dumps(header["model"]))
    for weight in model.weights:
        weight.assign(tensors[weight.path])
    return model


def _load_application(name: str, size: int, weights: str | os.PathLike | None):
    import keras

    module_name, class_name, _ = APPLICATIONS[name]
    if weights and not (Path(weights).is_file() and Path(weights).suffix in WEIGHT_SUFFIXES):
        raise InputError(f"{weights}: expected an .h5 file with the weights of {name}")
    try:
        with _downloading(), warnings.catch_warnings(action="ignore"):
            network = getattr(keras.applications, class_name)(
                include_top=False,
                weights=str(weights) if weights else "imagenet",
                input_shape=(size, size, 3),
            )
    except Exception as error:  # Keras raises many types, a bare Exception without a network
        if weights:
            raise InputError(
                f"{weights}: not weights of {name} without its classifier: {reason(error)}"
            ) from None
        raise InputError(
            f"{name}: cannot get its ImageNet weights ({reason(error)});\n"
            "give them as a file (encoder_weights in the notebook, --encoder of test.py), or use "
            f"{BUNDLED}, which needs no network"
        ) from None
    preprocess = getattr(keras.applications, module_name).preprocess_input
    image = keras.Input((size, size, 3), name="image")
    return keras.Model(image, network(preprocess(image)), name=name)


@contextlib.contextmanager
def _downloading() -> Iterator[None]:
    """Let Keras download with a time limit, and print its progress to stderr."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(timeout)


def _load_file(path: Path):
    import keras

    if not path.is_file():
        raise InputError(f"{path}: no such encoder file; if it has moved, give it with --encoder")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        inputs, outputs = model.input_shape, model.output_shape
    except Exception as error:  # Keras raises many types, for many kinds of damage
        raise InputError(
            f"{path}: not a Keras model that can be loaded safely: {reason(error)}"
        ) from None
    square = len(inputs) == 4 and inputs[-1] == 3 and inputs[1] == inputs[2]
    if not square or len(outputs) not in (2, 4):
        raise InputError(
            f"{path}: maps {inputs} to {outputs}; an encoder maps (batch, size, size, 3) "
            "to (batch, rows, columns, channels) or (batch, channels)"
        )
    return model


def _grid_shape(name: str, model, size: int) -> tuple[int, int, int]:
    fixed = model.input_shape[1]
    if fixed and fixed != size:
        raise InputError(f"{name}: takes {fixed} x {fixed} pixels, not {size} x {size}")
    try:
        shape = model.compute_output_shape((1, size, size, 3))[1:]
        shape = shape if len(shape) == 3 else (1, 1, *shape)
        if not math.prod(shape):
            raise ValueError("the picture is too small")
    except (TypeError, ValueError) as error:  # None among the sizes, or too small to convolve
        raise InputError(f"{name}: cannot encode {size} x {size} pixels: {reason(error)}") from None
    return tuple(shape)


def _fingerprint(model) -> str:
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable))
    return digest.hexdigest()[:16]
