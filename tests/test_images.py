"""Opening photographs: every format, upright, squeezed. What is no picture: test_bad_input.py."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from captioning.errors import InputError
from captioning.images import list_images, load_image, load_thumbnail


def photograph(width=48, height=36):
    """A smooth RGB picture without symmetry, (height, width, 3)."""
    row, column = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = [200 * column + 20, 180 * row + 40, 120 * row * column + 60]
    return np.stack(channels, -1).round().astype(np.uint8)


def squeezed(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize(
    ("mode", "name", "options", "tolerance"),
    [
        ("RGB", "a.png", {}, 0),
        ("RGB", "a.bmp", {}, 0),
        ("RGB", "a.ppm", {}, 0),
        ("RGB", "a.tif", {"compression": "tiff_lzw"}, 0),
        ("RGB", "a.webp", {"lossless": True}, 0),
        ("RGB", "a.jpg", {"quality": 95, "subsampling": 0}, 8),
        ("RGB", "jpeg in disguise.png", {"format": "JPEG", "quality": 95, "subsampling": 0}, 8),
        ("RGB", "a.gif", {}, 45),  # 256 colours
        ("P", "a.png", {}, 60),  # the web's 216 colours
        ("RGBA", "a.png", {}, 0),
        ("CMYK", "a.tif", {}, 0),
        ("CMYK", "a.jpg", {"quality": 95, "subsampling": 0}, 10),
        ("YCbCr", "a.tif", {}, 3),
        ("LAB", "a.tif", {}, 14),
    ],
)
def test_colour_pictures_of_every_kind(tmp_path, mode, name, options, tolerance):
    pixels = photograph()
    image = Image.fromarray(pixels)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(tmp_path / name, **options)
    loaded = load_image(tmp_path / name, 24)
    assert loaded.shape == (24, 24, 3)
    assert loaded.dtype == np.uint8
    assert difference(loaded, squeezed(pixels, 24)) <= tolerance


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("8 bits.png", lambda grey: grey),
        ("8 bits, opaque.png", lambda grey: np.stack([grey, np.full_like(grey, 255)], -1)),
        ("16 bits.png", lambda grey: grey.astype(np.uint16) * 257),
        ("16 bits.tif", lambda grey: grey.astype(np.uint16) * 257),
        ("16 bits, big end first.tif", lambda grey: grey.astype(">u2") * 257),
        ("32 bits.tif", lambda grey: grey.astype(np.int32) * 1000 - 7),
        ("float.tif", lambda grey: grey.astype(np.float32) / 255),
    ],
)
def test_grey_of_any_depth_becomes_the_same_rgb(tmp_path, name, convert):
    grey = photograph(24, 24)[..., 0]
    grey[0, :2] = 0, 255  # where white has no agreed value, the range is stretched
    Image.fromarray(convert(grey)).save(tmp_path / name)
    loaded = load_image(tmp_path / name, 24)
    assert difference(loaded, np.repeat(grey[..., None], 3, -1)) <= 1


@pytest.mark.parametrize(
    ("size", "orientation", "shape"),
    [
        ((60, 40), 1, (32, 48, 3)),
        ((60, 40), 6, (48, 32, 3)),  # a phone held upright
        ((24, 12), 1, (12, 24, 3)),
        ((4000, 3), 1, (1, 48, 3)),
    ],
)
def test_a_thumbnail_keeps_the_proportions(tmp_path, size, orientation, shape):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = Image.fromarray(photograph(*size))
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    thumbnail = load_thumbnail(tmp_path / "a.jpg", 48)
    assert (thumbnail.shape, thumbnail.dtype) == (shape, np.uint8)
    if orientation == 6:
        picture = picture.transpose(Image.Transpose.ROTATE_270)
    expected = picture.resize(shape[1::-1], Image.Resampling.BICUBIC)
    assert difference(thumbnail, np.asarray(expected)) <= 20  # JPEG; turned wrong, over 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e30])
def test_a_picture_of_one_grey_without_scale_is_black(tmp_path, value):
    Image.new("F", (9, 9), value).save(tmp_path / "a.tif")
    assert (load_image(tmp_path / "a.tif", 9) == 0).all()


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path):
    Image.fromarray(np.full((9, 9), 10 * 257, np.uint16)).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", 9) == 10).all()


def test_black_and_white(tmp_path):
    bits = photograph(24, 24)[..., 0] > 128
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert difference(load_image(tmp_path / "a.png", 24)[..., 0], bits * 255) == 0


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((20, 20, 4), np.uint8)  # transparent black
    pixels[:, 10:] = 10, 20, 30, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", 20)
    assert (image[:, :10] == 255).all()
    assert (image[:, 10:] == (10, 20, 30)).all()
    palette = Image.fromarray(pixels[..., 3] // 255, "P")
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=0)
    assert (load_image(tmp_path / "p.png", 20) == image).all()


def test_an_icc_profile_changes_nothing_in_cmyk(tmp_path):
    image = Image.fromarray(photograph()).convert("CMYK")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "with.jpg", icc_profile=profile)
    image.save(tmp_path / "without.jpg")
    with_profile = load_image(tmp_path / "with.jpg", 24)
    assert (with_profile == load_image(tmp_path / "without.jpg", 24)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path, name, orientation):
    upright = Image.fromarray(photograph())
    how = Image.Transpose  # what a camera held that way would store
    stored = {
        2: how.FLIP_LEFT_RIGHT,
        3: how.ROTATE_180,
        4: how.FLIP_TOP_BOTTOM,
        5: how.TRANSPOSE,
        6: how.ROTATE_90,
        7: how.TRANSVERSE,
        8: how.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
    expected = squeezed(photograph(), 24)
    assert difference(load_image(tmp_path / name, 24), expected) <= (8 if name == "a.jpg" else 1)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert difference(load_image(tmp_path / name, 8), np.full((8, 8, 3), (255, 0, 0))) <= 4


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (3, 140, 250)).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", 5) == (3, 140, 250)).all()


def test_a_picture_of_the_right_size_is_untouched(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", 32) == pixels).all()
    opened = Image.open(tmp_path / "a.png")
    assert (load_image(opened, 32) == pixels).all()


def test_a_large_jpeg_is_decoded_small_without_changing_it_much(tmp_path):
    noise = np.random.default_rng(2).integers(-30, 30, (1200, 1600, 3))
    pixels = (photograph(1600, 1200) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
    loaded = load_image(tmp_path / "a.jpg", 64)
    assert np.abs(loaded.astype(int) - whole).mean() < 1
    assert difference(loaded, whole) <= 6


def test_a_small_jpeg_is_decoded_whole(tmp_path):
    Image.fromarray(photograph(250, 200)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert (load_image(tmp_path / "a.jpg", 64) == whole).all()


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_no_permission(tmp_path, locked):
    path = tmp_path / "folder" / "a.png"
    path.parent.mkdir()
    Image.fromarray(photograph()).save(path)
    (path if locked == "file" else path.parent).chmod(0)
    root = os.geteuid() == 0  # may read everything, so be somebody else for a moment
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"a\.png: no permission"):
            load_image(path, 24)
    finally:
        if root:
            os.seteuid(0)
        path.parent.chmod(0o700)


def test_a_name_that_the_system_refuses(tmp_path):
    with pytest.raises(InputError, match=r"damaged picture|no such file"):
        load_image(tmp_path / ("x" * 300), 24)
    with pytest.raises(InputError, match="no such file"):
        load_image(tmp_path / "a\0b", 24)


def test_a_jpeg_without_its_end_marker_is_complete_one_without_pixels_is_not(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(photograph(200, 160)).save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    (tmp_path / "a.jpg").write_bytes(data.removesuffix(b"\xff\xd9"))
    expected = load_image(io.BytesIO(data), 64)
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg", 64), expected)
    for cut in (40, 200, len(data) // 2):
        (tmp_path / "a.jpg").write_bytes(data[:-cut])
        with pytest.raises(InputError, match=r"a\.jpg: damaged picture"):
            load_image(tmp_path / "a.jpg", 64)


@pytest.mark.parametrize(
    "wrong", [(0x11A, 2, 4, b"72\0\0"), (0x11A, 5, 0, bytes(4)), (0x128, 4, 1, b"\2\0\0\0")]
)
def test_one_odd_exif_tag_does_not_hide_the_orientation(tmp_path, wrong):
    """A resolution that is text or nothing, a unit that is long."""
    entries = struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0") + struct.pack("<HHI4s", *wrong)
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + entries + bytes(4)
    lying = Image.fromarray(photograph(40, 24))
    lying.save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = np.rot90(photograph(40, 24), 3)
    assert difference(load_image(tmp_path / "a.jpg", 24), squeezed(upright, 24)) < 12


def test_a_png_with_much_text_is_read(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    Image.fromarray(photograph()).save(tmp_path / "a.png", pnginfo=text)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", 24), squeezed(photograph(), 24))


def test_folders_are_listed_without_what_is_no_picture(tmp_path, monkeypatch):
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    listed = list_images([tmp_path / "x.jpg", tmp_path, tmp_path / "c.png"])
    assert [path.name for path in listed] == ["x.jpg", "a.png", "b.JPG", "c.png"]
    monkeypatch.chdir(tmp_path / "c.png")
    assert list_images(["."]) == [tmp_path / "c.png"]
