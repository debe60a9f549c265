"""CNNs by name: images to features."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import socket
import sys
import warnings
from pathlib import Path

import numpy as np

from captioning.errors import InputError, reason
from captioning.files import read_tensors, shipped

BUNDLED = "efficientnet_lite2"
BUNDLED_FILE = shipped(f"data/encoders/{BUNDLED}.safetensors")
APPLICATIONS = {  # name -> module with its preprocessing, class, image size in keras.applications
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
ENCODERS = (BUNDLED, *APPLICATIONS)  # known by name
WEIGHT_SUFFIXES = (".h5", ".hdf5")  # of files with the weights of one of them


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen CNN that includes its preprocessing, and what identifies its features."""

    name: str  # one of ENCODERS, or the path of a `.keras` file
    image_size: int  # height and width of its input, pixels
    grid_shape: tuple[int, int, int]  # rows, columns (1 and 1 if it pools), channels
    fingerprint: str  # first 16 hex digits of the SHA-256 of its weights
    model: object = dataclasses.field(repr=False, compare=False)

    def to_json(self) -> dict:
        """What the cache and a checkpoint record."""
        facts = {"name": self.name, "image_size": self.image_size}
        return {**facts, "grid_shape": list(self.grid_shape), "fingerprint": self.fingerprint}

    def encode(self, images: np.ndarray) -> np.ndarray:
        """RGB (batch, size, size, 3), 0..255 -> float32 (batch, rows, columns, channels)."""
        grid = np.array(self._forward(images.astype(np.float32)), np.float32)
        return grid.reshape(len(images), *self.grid_shape)

    @functools.cached_property
    def _forward(self):
        import tensorflow as tf

        batch = tf.TensorSpec((None, self.image_size, self.image_size, 3), tf.float32)
        return tf.function(functools.partial(self.model, training=False), [batch], autograph=False)


def require_same_encoder(source: object, recorded: dict, wanted: dict) -> None:
    """Raise InputError if `source`, made with the encoder `recorded`, needs `wanted`."""
    files = [{**encoder, "name": Path(encoder["name"]).suffix} for encoder in (recorded, wanted)]
    is_renamed = files[0] == files[1] and files[0]["name"] == ".keras"
    if recorded != wanted and not is_renamed:
        label = "{name}, {image_size} pixels, features {grid_shape}, weights {fingerprint}"
        both = f"{label.format(**recorded)},\nnot with {label.format(**wanted)}"
        raise InputError(f"{source}: made with {both}; give the same encoder, or another folder")


def load_encoder(name: str, weights: str | None = None, image_size: int | None = None) -> Encoder:
    """Load an encoder by name, or from a `.keras` file (only of people you trust); or InputError.

    `weights` is an `.h5` file instead of a download; `image_size` is for networks of any size.
    """
    import keras

    name = str(name)
    if weights and name not in APPLICATIONS:
        raise InputError(f"{weights}: weights are for {', '.join(APPLICATIONS)}, not for {name}")
    if name in APPLICATIONS:
        size = image_size or APPLICATIONS[name][2]
        model = _load_application(name, size, weights)
    elif name == BUNDLED:
        header, tensors = read_tensors(BUNDLED_FILE, "data/encoders/convert.py")
        model = keras.models.model_from_json(json.dumps(header["model"]))
        for weight in model.weights:
            weight.assign(tensors[weight.path])
        size = image_size or 260  # what it was trained at
    elif Path(name).suffix == ".keras":
        from captioning.extras.data.own_encoder import load_file

        model = load_file(Path(name).expanduser())
        size = image_size or model.input_shape[1] or 224
    else:
        expected = f"a .keras file or one of {', '.join(ENCODERS)}"
        raise InputError(f"{name}: not an encoder; expected {expected}")
    if (fixed := model.input_shape[1]) not in (None, size):
        raise InputError(f"{name}: takes {fixed} x {fixed} pixels, not {size} x {size}")
    try:
        shape = model.compute_output_shape((1, size, size, 3))[1:]
        if not math.prod(shape):
            raise ValueError("the picture is too small")
    except (TypeError, ValueError) as error:  # None among the sizes, or too small to convolve
        raise InputError(f"{name}: cannot encode {size} x {size} pixels: {reason(error)}") from None
    grid_shape = tuple(shape) if len(shape) == 3 else (1, 1, *shape)
    weights = b"".join(np.ascontiguousarray(variable) for variable in model.weights)
    return Encoder(name, size, grid_shape, hashlib.sha256(weights).hexdigest()[:16], model)


def _load_application(name: str, size: int, weights: str | None):
    import keras

    module_name, class_name, _ = APPLICATIONS[name]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds without a byte
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
            network = getattr(keras.applications, class_name)(
                include_top=False, weights=str(weights or "imagenet"), input_shape=(size, size, 3)
            )
    except Exception as error:  # Keras raises many types, a bare Exception without a network
        remedy = "give its .h5 file without classifier (encoder_weights, --encoder), or use "
        problem = f"cannot load the weights of {name} ({reason(error)});\n{remedy}{BUNDLED}"
        raise InputError(f"{weights or name}: {problem}") from None
    finally:
        socket.setdefaulttimeout(timeout)
    image = keras.Input((size, size, 3), name="image")
    preprocess = getattr(keras.applications, module_name).preprocess_input
    return keras.Model(image, network(preprocess(image)), name=name)
