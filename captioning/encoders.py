"""Image -> features: ResNet50 and friends, the bundled EfficientNet-Lite2, or a `.keras` file.

An encoder takes an RGB batch in 0..255, shape (batch, size, size, 3), and gives a grid of
features, (batch, rows, columns, channels); its own preprocessing is inside. Photographs are
opened, turned upright and squeezed to size x size here and nowhere else, so that the features in
the cache and those of a single photograph agree.
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
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioning.files import InputError, one_line, reason, shipped
from captioning.hdf5 import WEIGHTS, load_archived, rewritten

BUNDLED = "efficientnet_lite2"
BUNDLED_FILE = shipped(f"data/encoders/{BUNDLED}.keras")
BUNDLED_IMAGE_SIZE = 260  # what it was trained at
FILE_IMAGE_SIZE = 224  # for a `.keras` file that leaves its input size open

# name -> (module with its preprocessing, class, image size) in keras.applications. Only networks
# whose download Keras checks against a published sum: half a file is never taken for a whole.
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
DOWNLOAD_TIMEOUT_SECONDS = 20.0  # without a byte

# A `.keras` file from a stranger is measured before it is loaded. The largest network of
# keras.applications has 1.4 GB of weights and 1 MB of configuration.
ARCHIVE_MEMBERS = {"config.json", "metadata.json", WEIGHTS}
MAX_WEIGHT_BYTES = 2 << 30
MAX_CONFIG_BYTES = 16 << 20
MAX_FEATURES = 1 << 24  # of one image

SQUEEZE_SIZE = 224  # pixels; Flickr8k is often passed around in this size
MAX_PIXELS = 150_000_000
"""Larger pictures are refused: a small file can unpack to more memory than the machine has."""

# A picture is read or refused. What Pillow remarks about odd EXIF data helps nobody, and to
# silence it for the time of one call is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


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

    @functools.cached_property
    def forward(self):
        """The model's forward pass as one graph, whatever the batch size."""
        import tensorflow as tf

        batch = tf.TensorSpec((None, self.image_size, self.image_size, 3), tf.float32)
        return tf.function(
            lambda images: self.model(images, training=False), [batch], autograph=False
        )


def encoder_names() -> list[str]:
    """The encoders that are known by name, the bundled one first."""
    return [BUNDLED, *APPLICATIONS]


def encode_images(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    """Run the CNN on uint8 or float RGB images in 0..255, (batch, size, size, 3).

    Returns:
        float32 (batch, rows, columns, channels).
    """
    grid = np.array(encoder.forward(images.astype(np.float32)), np.float32)
    return grid.reshape(len(images), *encoder.grid_shape)


def encoder_label(description: dict) -> str:
    """An encoder in words, from what `Encoder.describe` gave."""
    size, grid = description["image_size"], " x ".join(map(str, description["grid_shape"]))
    name, fingerprint = description["name"], description["fingerprint"]
    return f"{name} at {size} x {size} -> {grid} (weights {fingerprint})"


def require_same_encoder(source: object, recorded: dict, wanted: dict) -> None:
    """Make sure that features or weights go with the encoder at hand.

    A `.keras` file may have moved to another folder since.

    Args:
        source: what was made with the encoder `recorded`; named in the message.
        recorded: its `Encoder.describe`.
        wanted: that of the encoder at hand.

    Raises:
        InputError: the two differ; names both.
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
    if weights and name not in APPLICATIONS:
        raise InputError(f"{weights}: weights go with {', '.join(APPLICATIONS)}, not with {name}")
    if name in APPLICATIONS:
        size = image_size or APPLICATIONS[name][2]
        model = _load_application(name, size, weights)
    elif name == BUNDLED:
        size = image_size or BUNDLED_IMAGE_SIZE
        model = _load_file(BUNDLED_FILE)
    elif Path(name).suffix == ".keras":
        model = _load_file(Path(name))
        size = image_size or model.input_shape[1] or FILE_IMAGE_SIZE
    else:
        raise InputError(
            f"{name}: not an encoder; give a .keras file or one of {', '.join(encoder_names())}"
        )
    return Encoder(name, size, _grid_shape(name, model, size), _fingerprint(model), model)


def _load_application(name: str, size: int, weights: str | os.PathLike | None):
    import keras

    module_name, class_name, _ = APPLICATIONS[name]
    try:
        with (
            _weights_of(name, weights) if weights else _downloading() as given,
            warnings.catch_warnings(action="ignore"),  # two lines for each layer that does not fit
        ):
            network = getattr(keras.applications, class_name)(
                include_top=False, weights=given, input_shape=(size, size, 3)
            )
    except InputError:
        raise
    except Exception as error:  # Keras raises a bare Exception when it cannot reach the server
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
def _weights_of(name: str, file: str | os.PathLike) -> Iterator[str]:
    """Within the block, a copy of a weights file from anywhere, fit for Keras."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file}: no such weights file for {name}")
    if path.suffix not in WEIGHT_SUFFIXES or path.stat().st_size > MAX_WEIGHT_BYTES:
        most = MAX_WEIGHT_BYTES / 1e9
        raise InputError(
            f"{file}: expected weights of {name}, an .h5 file of at most {most:.1f} GB"
        )
    with rewritten(path.read_bytes(), MAX_WEIGHT_BYTES, path.name) as copy:
        yield str(copy)


@contextlib.contextmanager
def _downloading() -> Iterator[str]:
    """Let Keras download without waiting for ever, and without a word on stdout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield "imagenet"
    finally:
        socket.setdefaulttimeout(before)


def _load_file(path: Path):
    try:
        model = _build(_read_config(path))
        load_archived(model, path, MAX_WEIGHT_BYTES)
        inputs, outputs = model.input_shape, model.output_shape
        fits = len(inputs) == 4 and inputs[-1] == 3 and inputs[1] == inputs[2]
        fits = fits and len(outputs) in (2, 4)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such encoder file; if a model's has moved, say where with --encoder"
        ) from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except Exception as error:  # Keras raises many kinds, for many kinds of damage
        raise InputError(
            f"{path}: not a Keras model that can be loaded safely: {reason(error)}"
        ) from None
    if not fits:
        raise InputError(
            f"{path}: maps {inputs} to {outputs}; an encoder maps (batch, size, size, 3) "
            "to (batch, rows, columns, channels) or (batch, channels)"
        )
    return model


def _build(config: dict):
    """The model with its initial weights, if it is not absurdly large.

    Variables made in a stateless scope have shapes and no values yet, so the size of the network
    is known before its memory is taken.
    """
    import keras

    try:
        with keras.StatelessScope(initialize_variables=False):
            uncompiled = {**config, "compile_config": None}
            model = keras.saving.deserialize_keras_object(uncompiled, safe_mode=True)
            weight_bytes = 4 * sum(math.prod(variable.shape) for variable in model.variables)
            if weight_bytes > MAX_WEIGHT_BYTES:
                raise ValueError(f"it declares {weight_bytes / 1e9:,.1f} GB of weights")
    except Exception:
        keras.utils.clear_session()  # forget the variables that still wait for values
        raise
    with keras.StatelessScope():
        pass  # at its end, the waiting variables get their values
    return model


def _read_config(path: Path) -> dict:
    """The model's configuration, once the archive is known to hold a model and no more."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file; expected a Keras model")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(names) != len(set(names)) or set(names) != ARCHIVE_MEMBERS:
            raise InputError(
                f"{path}: expected an archive of {', '.join(sorted(ARCHIVE_MEMBERS))}; "
                f"it holds {one_line(', '.join(sorted(names)))}"
            )
        for member in members:
            most = MAX_WEIGHT_BYTES if member.filename == WEIGHTS else MAX_CONFIG_BYTES
            if member.file_size > most:
                raise InputError(
                    f"{path}: its {member.filename} unpacks to {member.file_size / 1e6:,.0f} MB"
                )
        return json.loads(archive.read("config.json"))


def _grid_shape(name: str, model, size: int) -> tuple[int, int, int]:
    fixed = model.input_shape[1]
    if fixed and fixed != size:
        raise InputError(f"{name}: takes {fixed} x {fixed} pixels, not {size} x {size}")
    try:
        shape = model.compute_output_shape((1, size, size, 3))[1:]
        shape = shape if len(shape) == 3 else (1, 1, *shape)
        fits = min(shape) > 0 and math.prod(shape) <= MAX_FEATURES
    except (TypeError, ValueError) as error:  # None among the sizes, or too small to convolve
        raise InputError(f"{name}: cannot encode {size} x {size} pixels: {reason(error)}") from None
    if not fits:
        raise InputError(f"{name}: would turn {size} x {size} pixels into {shape} features")
    return tuple(shape)


def _fingerprint(model) -> str:
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable))
    return digest.hexdigest()[:16]


def load_image(
    source: str | os.PathLike | BinaryIO | Image.Image | np.ndarray, size: int
) -> np.ndarray:
    """Open a photograph, turn it upright and squeeze it to size x size.

    A photograph is a file, by its name or open for reading; or an opened one: a PIL image or a
    uint8 array, (height, width, 3) in RGB or (height, width) in grey.

    Where `size` is larger than SQUEEZE_SIZE, the photograph is squeezed to that first and then
    enlarged: copies of a data set come in many resolutions, and a model trained on one of them
    must see the same in another, and in a photograph straight from the camera.

    Any format that Pillow reads: the first frame of an animation, 16-bit, grey, palette and CMYK
    pictures included; transparency is laid over white.

    Returns:
        uint8 array (size, size, 3), RGB.

    Raises:
        InputError: the file is missing, damaged, no picture, or larger than MAX_PIXELS; or the
            array is of another type or shape.
    """
    small = min(size, SQUEEZE_SIZE)
    steps = [(side, side) for side in sorted({small, size})]
    return _load(source, 2 * small, lambda _: steps)


def load_thumbnail(
    source: str | os.PathLike | BinaryIO | Image.Image | np.ndarray, side: int
) -> np.ndarray:
    """Open a photograph as `load_image` does, for people: with its own proportions.

    Returns:
        uint8 array (height, width, 3), RGB; the larger of height and width is `side`.

    Raises:
        InputError: as `load_image`.
    """

    def fit(size: tuple[int, int]) -> list[tuple[int, int]]:
        return [tuple(max(1, round(side * length / max(size))) for length in size)]

    return _load(source, side, fit)


def _load(
    source, enough: int, steps: Callable[[tuple[int, int]], list[tuple[int, int]]]
) -> np.ndarray:
    """Open a photograph, upright, and resize it from one size to the next.

    Args:
        source: see `load_image`.
        enough: pixels a side that are enough to begin with.
        steps: from the size (width, height) of the upright photograph to the sizes to go through.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        with _damage_told("the picture"):
            _check_size(source)
            upright = ImageOps.exif_transpose(source)
            return _resized(upright, steps(upright.size))
    is_path = isinstance(source, (str, os.PathLike))
    path = Path(source) if is_path else "the picture"
    with _damage_told(path):
        if is_path and not path.is_file():  # opening a pipe would wait for ever
            kind = "no file" if path.exists() else "no such file"
            if path.is_dir():
                kind = "a folder"
            raise InputError(f"{path}: {kind}; expected a picture")
        with Image.open(source) as image:
            _check_size(image)
            # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time
            image.draft(None, (enough, enough))
            ImageOps.exif_transpose(image, in_place=True)
            return _resized(image, steps(image.size))


def _from_array(array: np.ndarray) -> Image.Image:
    colour = array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (colour or array.ndim == 2) or 0 in array.shape:
        raise InputError(
            f"an array of {array.dtype} {array.shape}: expected a picture, uint8 (height, width, "
            "3) in RGB, leave out an alpha channel, or (height, width) in grey, values 0 to 255"
        )
    return Image.fromarray(array)


def _check_size(image: Image.Image) -> None:
    if not image.width * image.height:
        raise ValueError("it has no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")


@contextlib.contextmanager
def _damage_told(path: Path | str) -> Iterator[None]:
    """Turn whatever Pillow raises over a picture into an InputError that names `path`."""
    try:
        yield
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture in a format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: too large ({reason(error)}); at most {MAX_PIXELS:,} pixels are read, "
            "scale it down"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: too large for the memory there is; scale it down") from None
    except Exception as error:  # Pillow's readers raise many kinds, for many kinds of damage
        raise InputError(f"{path}: damaged picture ({reason(error)})") from None


def _resized(image: Image.Image, steps: list[tuple[int, int]]) -> np.ndarray:
    """Go through some sizes (width, height): uint8 (height, width, 3), RGB."""
    deep_grey = image.mode.startswith(("I", "F"))  # 16 or 32 bits a pixel
    if deep_grey:
        sixteen_bit, image = image.mode.startswith("I;16"), image.convert("F")
    else:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    for size in steps:
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
    if deep_grey:
        image = _to_eight_bits(np.asarray(image, np.float64), sixteen_bit)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _to_eight_bits(grey: np.ndarray, sixteen_bit: bool) -> Image.Image:
    """Scale 0..65535 to 0..255; where white has no agreed value, stretch what is there."""
    if not np.isfinite(grey).all():
        raise ValueError("not all of its pixels are numbers")
    low, high = (0, 65535) if sixteen_bit else (grey.min(), grey.max())
    scaled = (grey - low) * (255 / ((high - low) or 1))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
