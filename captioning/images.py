"""Photographs: open, turn upright, resize; the same for the feature cache and for captions."""

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from captioning.errors import InputError, reason

Photograph = str | os.PathLike | io.IOBase | Image.Image | np.ndarray
"""A file, by name or open; a PIL image; uint8 (height, width, 3) RGB or (height, width) grey."""

SQUEEZE_SIZE = 224  # pixels; Flickr8k is often distributed at this size
MAX_PIXELS = 150_000_000  # a small file can unpack to more memory than the machine has
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20  # bytes of text or colour profile; 1 MB is too few
# the resolution is not needed, and in some files no number: Pillow would not open them
JpegImagePlugin.JpegImageFile._read_dpi_from_exif = lambda image: None
warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd EXIF data
END_OF_JPEG = b"\xff\xd9"


def load_image(source: Photograph, size: int) -> np.ndarray:
    """Open a photograph, upright, squeezed to a square: uint8 (size, size, 3), RGB.

    A larger `size` than SQUEEZE_SIZE is enlarged from that: a model must see the same in copies of
    a data set at any resolution. Of an animation the first frame is used; transparent pixels are
    blended with white. InputError if Pillow cannot read it.
    """
    small = min(size, SQUEEZE_SIZE)
    image = _open(source, 2 * small)
    for side in sorted({small, size}):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def load_thumbnail(source: Photograph, side: int) -> np.ndarray:
    """Open a photograph for display: uint8 (height, width, 3), each at most `side`."""
    image = _open(source, side)
    image.thumbnail((side, side))
    return np.asarray(image)


def list_images(places: Iterable[str | os.PathLike], recursive: bool = False) -> list[Path]:
    """The files named and the pictures, unless hidden, in the folders named, in that order."""
    suffixes, paths = set(Image.registered_extensions()), []
    for place in map(Path, places):
        found = []
        if os.path.isdir(place):  # noqa: PTH112 - unlike pathlib, takes names of any length
            found = sorted(place.rglob("*") if recursive else place.iterdir())
            found = [path for path in found if path.suffix.lower() in suffixes and path.is_file()]
            found = [path for path in found if "/." not in f"/{path.relative_to(place).as_posix()}"]
        paths += found or [place if place.name else place.absolute()]  # opening it is an error
    return paths


def _open(source: Photograph, enough: int) -> Image.Image:
    """Open a photograph, upright, in RGB, a JPEG with at least `enough` pixels per side."""
    is_path = isinstance(source, str | os.PathLike)
    path = Path(source).expanduser() if is_path else "the picture"
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8:
                wanted = "uint8, RGB (height, width, 3) or grey (height, width)"
                raise InputError(f"an array of {source.dtype} {source.shape}: expected {wanted}")
            source = Image.fromarray(source)
        if isinstance(source, Image.Image):
            return _upright(source)
        if is_path and not path.is_file():  # opening a pipe would block
            kind = "a folder without pictures" if path.is_dir() else "no such file"
            raise InputError(f"{path}: {kind}; expected a picture")
        file = io.BytesIO(path.read_bytes()) if is_path else source
        with Image.open(file) as image:
            image.draft(None, (enough, enough))
            try:
                return _upright(image)
            except OSError:
                if image.format != "JPEG":
                    raise
        file.seek(0)
        return _upright(_without_end_marker(file.read()))
    except InputError:
        raise
    except PermissionError:
        problem = "no permission to read it"
    except UnidentifiedImageError:
        problem = "not a picture in a format that Pillow reads"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        problem = f"too large; scale it down to at most {MAX_PIXELS:,} pixels"
    except Exception as error:  # Pillow's readers raise many types
        problem = f"damaged picture ({reason(error)})"
    raise InputError(f"{path}: {problem}")


def _upright(image: Image.Image) -> Image.Image:
    """Convert to RGB, and apply the camera's orientation whatever else its EXIF data holds."""
    if not image.width * image.height:
        raise ValueError("it has no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if image.mode.startswith(("I", "F")):  # grey with 16 or 32 bits, which Pillow would clip
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    image.info = {}  # Pillow would write all EXIF data again, and fail if some is odd
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _without_end_marker(data: bytes) -> Image.Image:
    """Decode a JPEG that lacks nothing but its end marker: further bytes must change no pixel."""
    with Image.open(io.BytesIO(data + END_OF_JPEG)) as image:
        image.load()
    with Image.open(io.BytesIO(data + b"\x5a\xa5" * 500 + END_OF_JPEG)) as other:
        if image.tobytes() != other.tobytes():
            raise OSError("image data is missing")
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8; of 32 bits, where white has no fixed value, the range that is there."""
    grey = np.asarray(image, np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("some of its pixels are not numbers")
    low, high = (0, 65535) if image.mode.startswith("I;16") else (grey.min(), grey.max())
    return Image.fromarray(np.rint((grey - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))
