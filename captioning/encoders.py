"""Image -> features: ResNet50 and friends, the bundled EfficientNet-Lite2, or a `.keras` file.

An encoder takes a float32 RGB batch in 0..255, shape (batch, size, size, 3), and gives a grid of
features, (batch, rows, columns, channels); its own preprocessing is inside. Photographs are
opened, turned upright and squeezed to size x size here and nowhere else, so that the features in
the cache and those of a single photograph agree.
"""

import dataclasses
import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioning.files import InputError

BUNDLED = "efficientnet_lite2"
BUNDLED_FILE = Path(__file__).resolve().parent.parent / "data" / "encoders" / f"{BUNDLED}.keras"

# The bundled network was trained at 260 x 260; others take what keras.applications documents.
DEFAULT_IMAGE_SIZE = 224
BUNDLED_IMAGE_SIZE = 260

MAX_PIXELS = 200_000_000
"""Larger pictures are refused: a small file can unpack to more memory than the machine has."""

# name -> (module of keras.applications, class, image size)
APPLICATIONS = {
    "resnet50": ("resnet", "ResNet50", 224),
    "resnet101": ("resnet", "ResNet101", 224),
    "resnet152": ("resnet", "ResNet152", 224),
    "vgg16": ("vgg16", "VGG16", 224),
    "vgg19": ("vgg19", "VGG19", 224),
    "inception_v3": ("inception_v3", "InceptionV3", 299),
    "xception": ("xception", "Xception", 299),
    "densenet121": ("densenet", "DenseNet121", 224),
    "mobilenet_v2": ("mobilenet_v2", "MobileNetV2", 224),
    "efficientnet_b0": ("efficientnet", "EfficientNetB0", 224),
    "efficientnet_v2s": ("efficientnet_v2", "EfficientNetV2S", 384),
    "convnext_tiny": ("convnext", "ConvNeXtTiny", 224),
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen CNN and what must be known to use its features again.

    Attributes:
        name: one of `encoder_names()`, or the path of a `.keras` file.
        image_size: height and width of its input, in pixels.
        grid_shape: (rows, columns, channels); rows and columns are 1 for an encoder that pools.
        fingerprint: first 16 hex digits of the SHA-256 of its weights.
        model: the Keras model itself.
    """

    name: str
    image_size: int
    grid_shape: tuple[int, int, int]
    fingerprint: str
    model: object = dataclasses.field(repr=False, compare=False)

    def describe(self) -> dict:
        """What the cache and a checkpoint record, JSON-ready."""
        return {
            "name": self.name,
            "image_size": self.image_size,
            "grid_shape": list(self.grid_shape),
            "fingerprint": self.fingerprint,
        }


def encoder_names() -> list[str]:
    """The encoders that are known by name, the bundled one first."""
    return [BUNDLED, *APPLICATIONS]


def load_encoder(
    name: str | os.PathLike, weights: str | os.PathLike | None = None, image_size: int | None = None
) -> Encoder:
    """Load an encoder by name, or from a `.keras` file.

    Args:
        name: one of `encoder_names()`, or the path of a Keras model from (batch, height, width, 3)
            to (batch, rows, columns, channels) or (batch, channels). A file is loaded in Keras'
            safe mode: a Lambda layer, or anything else that carries code, is refused.
        weights: for a keras.applications name, a local weights file (without the classifier)
            instead of the ImageNet download.
        image_size: height and width to feed, where the network leaves them open; its own
            default if None.

    Raises:
        InputError: an unknown name, an unusable file, or no network for the download.
    """
    name = str(name)
    if name in APPLICATIONS:
        model, default_size = _load_application(name, weights)
    elif weights:
        raise InputError(f"{weights}: weights go with {', '.join(APPLICATIONS)}, not with {name}")
    elif name == BUNDLED:
        model, default_size = _load_file(BUNDLED_FILE), BUNDLED_IMAGE_SIZE
    elif Path(name).suffix == ".keras":
        model, default_size = _load_file(Path(name)), DEFAULT_IMAGE_SIZE
    else:
        raise InputError(
            f"{name}: not an encoder; give a .keras file or one of {', '.join(encoder_names())}"
        )
    size = image_size or model.input_shape[1] or default_size
    grid_shape = model.compute_output_shape((1, size, size, 3))[1:]
    if len(grid_shape) == 1:
        grid_shape = (1, 1, *grid_shape)
    return Encoder(name, size, tuple(grid_shape), _fingerprint(model), model)


def _load_application(name: str, weights: str | os.PathLike | None):
    import keras

    module_name, class_name, size = APPLICATIONS[name]
    module = getattr(keras.applications, module_name)
    if weights and not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights file for {name}")
    try:
        network = getattr(module, class_name)(
            include_top=False,
            weights=str(weights) if weights else "imagenet",
            input_shape=(size, size, 3),
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if weights:
            raise InputError(
                f"{weights}: not weights of {name} without its top: {reason}"
            ) from None
        raise InputError(
            f"{name}: its ImageNet weights cannot be downloaded ({reason});\n"
            f"give a local weights file, or use {BUNDLED}, which needs no network"
        ) from None
    image = keras.Input((size, size, 3), name="image")
    return keras.Model(image, network(module.preprocess_input(image)), name=name), size


def _load_file(path: Path):
    import keras

    if not path.is_file():
        raise InputError(f"{path}: no such encoder file")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        ok = model.input_shape[-1] == 3 and len(model.input_shape) == 4
        ok = ok and len(model.output_shape) in (2, 4)
    except Exception as error:  # Keras raises many kinds, for many kinds of damage
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a Keras model that can be loaded safely: {reason}") from None
    if not ok:
        raise InputError(
            f"{path}: maps {model.input_shape} to {model.output_shape}; an encoder maps "
            "(batch, height, width, 3) to (batch, rows, columns, channels) or (batch, channels)"
        )
    return model


def _fingerprint(model) -> str:
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable))
    return digest.hexdigest()[:16]


def load_image(source: str | os.PathLike | Image.Image, size: int) -> np.ndarray:
    """Open a photograph, turn it upright and squeeze it to size x size.

    Any format that Pillow reads: the first frame of an animation, 16-bit, grey, palette and CMYK
    pictures included; transparency is laid over white.

    Returns:
        uint8 array (size, size, 3), RGB.

    Raises:
        InputError: the file is missing, damaged, no picture, or larger than MAX_PIXELS.
    """
    if isinstance(source, Image.Image):
        return _squeeze(source, size)
    path = Path(source)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {kind}; expected a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is checked before decoding
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"{path}: {image.width} x {image.height} pixels; at most "
                        f"{MAX_PIXELS:,} are read, scale it down"
                    )
                # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time
                image.draft("RGB", (2 * size, 2 * size))
                return _squeeze(image, size)
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture in a format that Pillow reads") from None
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: damaged picture ({error})") from None


def _squeeze(image: Image.Image, size: int) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # deep grey: stretch what is there to 0..255, as Pillow's own conversion would clip it
        grey = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(grey.min()), float(grey.max())
        grey = (grey - low) * (255 / (high - low) if high > low else 0)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
