"""Opening pictures, loading encoders, and refusing what is broken or dangerous."""

import functools
import http.server
import json
import os
import resource
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from captioning import encoders
from captioning.encoders import (
    BUNDLED,
    encode_images,
    load_encoder,
    load_image,
    load_thumbnail,
    require_same_encoder,
)
from captioning.files import InputError


def photograph(width=48, height=36):
    """A smooth RGB picture without symmetry, (height, width, 3)."""
    row, column = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = [200 * column + 20, 180 * row + 40, 120 * row * column + 60]
    return np.stack(channels, -1).round().astype(np.uint8)


def squeezed(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


# ---------------------------------------------------------------------------- pictures


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
        ((24, 12), 1, (24, 48, 3)),
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


def png_of_zeros(width, height):
    """A sound PNG of one bit a pixel: width x height in some hundred kilobytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer, row = zlib.compressobj(1), bytes(width // 8 + 1)
    data = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [13_000, 40_000])  # Pillow itself would warn, and refuse
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_of_zeros(side, side))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), limits[1]))
    try:
        with pytest.raises(InputError, match=r"a\.png: too large .*scale it down"):
            load_image(tmp_path / "a.png", 224)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def bad_pictures():
    def jpeg(path):
        Image.fromarray(photograph(200, 200)).save(path, "JPEG")
        return path.read_bytes()

    def float_tiff(path, value):
        pixels = np.ones((30, 30), np.float32)
        pixels[3, 4] = value
        Image.fromarray(pixels).save(path, "TIFF")

    return {
        "truncated": lambda path: path.write_bytes(jpeg(path)[:2000]),
        "cut in the header": lambda path: path.write_bytes(jpeg(path)[:15]),
        "truncated png": lambda path: path.write_bytes(png_of_zeros(800, 800)[:60]),
        "empty": lambda path: path.touch(),
        "text": lambda path: path.write_text("no picture at all\n"),
        "folder": lambda path: path.mkdir(),
        "pipe": os.mkfifo,
        "dangling link": lambda path: path.symlink_to("nowhere"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "missing": lambda path: None,
        "NaN": functools.partial(float_tiff, value=np.nan),
        "infinite": functools.partial(float_tiff, value=np.inf),
    }


@pytest.mark.parametrize("kind", bad_pictures())
def test_what_is_no_picture_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "picture.jpg"
    bad_pictures()[kind](path)
    with pytest.raises(InputError) as caught:
        load_image(path, 24)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


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


# ---------------------------------------------------------------------------- encoders


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A `.keras` file: 8 x 8 patches -> 4 channels, any input size."""
    import keras

    keras.utils.set_random_seed(3)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 8, strides=8, activation="relu", name="convolution")(x)
    path = tmp_path_factory.mktemp("encoder") / "tiny.keras"
    keras.Model(image, x).save(path)
    return path


def repacked(source, target, change_config=None, extra=None, compression=zipfile.ZIP_STORED):
    """Copy the `.keras` file `source`, its configuration changed, members added or replaced."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    if change_config:
        change_config(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in {**members, **(extra or {})}.items():
            archive.writestr(name, data)
    return target


def convolution_of(config):
    layers = config["config"]["layers"]
    return next(layer for layer in layers if layer["config"]["name"] == "convolution")


def test_an_encoder_from_a_file(tiny):
    encoder = load_encoder(tiny)
    assert encoder.name == str(tiny)
    assert encoder.image_size == 224
    assert encoder.grid_shape == (28, 28, 4)
    small = load_encoder(tiny, image_size=40)
    assert small.grid_shape == (5, 5, 4)
    assert small.fingerprint == encoder.fingerprint
    json.dumps(small.describe())

    images = np.random.default_rng(5).integers(0, 256, (3, 40, 40, 3), np.uint8)
    grid = encode_images(small, images)
    kernel, bias = (np.asarray(weight) for weight in small.model.get_layer("convolution").weights)
    patches = images.reshape(3, 5, 8, 5, 8, 3) / 255  # image, row, y, column, x, channel
    expected = np.maximum(np.einsum("nrycxd,yxdk->nrck", patches, kernel) + bias, 0)
    np.testing.assert_allclose(grid, expected, atol=1e-5)
    singles = [encode_images(small, image[None])[0] for image in images]
    np.testing.assert_allclose(grid, singles, atol=1e-6)


def test_an_encoder_that_pools(tmp_path):
    import keras

    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3)(image))
    model = keras.Model(image, x)
    model.compile(loss=difference)  # how it was trained does not matter
    model.save(tmp_path / "pools.keras")
    encoder = load_encoder(tmp_path / "pools.keras")
    assert encoder.image_size == 16
    assert encoder.grid_shape == (1, 1, 5)
    assert encode_images(encoder, np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 1, 1, 5)
    with pytest.raises(InputError, match="takes 16 x 16 pixels, not 32 x 32"):
        load_encoder(tmp_path / "pools.keras", image_size=32)


def test_the_size_of_the_picture_must_fit_the_network(tiny):
    with pytest.raises(InputError, match="4 x 4 pixels"):
        load_encoder(tiny, image_size=4)
    with pytest.raises(InputError, match="features"):
        load_encoder(tiny, image_size=1_000_000)


def test_names_and_files_that_do_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"resnet5: not an encoder.*resnet50"):
        load_encoder("resnet5")
    with pytest.raises(InputError, match="no such encoder file"):
        load_encoder(tmp_path / "a.keras")
    with pytest.raises(InputError, match="not a file"):
        (tmp_path / "b.keras").mkdir()
        load_encoder(tmp_path / "b.keras")
    with pytest.raises(InputError, match="no such weights file for resnet50"):
        load_encoder("resnet50", weights=tmp_path / "a.h5")
    with pytest.raises(InputError, match=f"not with {BUNDLED}"):
        load_encoder(BUNDLED, weights=tmp_path / "a.h5")


def test_damaged_files(tmp_path, tiny):
    whole = tiny.read_bytes()
    path = tmp_path / "a.keras"
    for data in (b"", b"text", whole[:1000], whole[:-30], whole[:3000] + bytes(999) + whole[3999:]):
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_encoder(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_what_is_no_encoder(tmp_path):
    import keras

    for shape in ((10,), (32, 32, 1), (32, 16, 3)):
        image = keras.Input(shape)
        keras.Model(image, keras.layers.Dense(2)(image)).save(tmp_path / "a.keras")
        with pytest.raises(InputError, match="an encoder maps"):
            load_encoder(tmp_path / "a.keras")


def test_a_lambda_layer_is_refused_and_never_run(tmp_path):
    import keras

    planted = str(tmp_path / "planted")

    def harmful(x, planted=planted):
        with open(planted, "w") as file:  # noqa: PTH123 - as a stranger would write it
            file.write("harm done")
        return x

    image = keras.Input((16, 16, 3))
    keras.Model(image, keras.layers.Lambda(harmful)(image)).save(tmp_path / "a.keras")
    assert Path(planted).exists()  # it does harm when it runs
    Path(planted).unlink()
    with pytest.raises(InputError, match=r"a\.keras: not a Keras model that can be loaded safely"):
        load_encoder(tmp_path / "a.keras")
    assert not Path(planted).exists()


@pytest.mark.parametrize(
    "module", ["os", "subprocess", "builtins", "keras.src.utils.python_utils", "keras.utils"]
)
def test_functions_named_in_a_file_are_not_called(tmp_path, tiny, module):
    planted = tmp_path / "planted"
    names = {"os": "mkdir", "subprocess": "run", "builtins": "exec"}
    name = names.get(module, "get_file")

    def plant(config):
        convolution_of(config)["config"]["activation"] = {
            "class_name": "function",
            "config": name,
            "module": module,
            "registered_name": name,
        }
        convolution_of(config)["config"]["kernel_initializer"] = {
            "class_name": name,
            "config": {"path": str(planted), "fname": str(planted), "origin": tmp_path.as_uri()},
            "module": module,
            "registered_name": name,
        }

    with pytest.raises(InputError, match="loaded safely"):
        load_encoder(repacked(tiny, tmp_path / "a.keras", plant))
    assert not planted.exists()


@pytest.mark.parametrize("member", ["../planted", "/planted", "assets/../../planted", "x.py"])
def test_other_members_in_the_archive_are_refused(tmp_path, tiny, member):
    path = repacked(tiny, tmp_path / "folder.keras", extra={member: b"harm"})
    with pytest.raises(InputError, match=r"expected an archive of config\.json"):
        load_encoder(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_archives_that_unpack_to_too_much_are_refused(tmp_path, tiny, monkeypatch):
    bomb = {"config.json": b" " * (encoders.MAX_CONFIG_BYTES + 1)}
    path = repacked(tiny, tmp_path / "a.keras", extra=bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(InputError, match=r"config\.json unpacks to 17 MB"):
        load_encoder(path)
    monkeypatch.setattr(encoders, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(InputError, match=r"model\.weights\.h5 unpacks to"):
        load_encoder(tiny)


@pytest.mark.parametrize(("filters", "kernel"), [(10**9, 8), (60_000, 500)])
def test_absurd_layers_are_refused_before_memory_is_taken(tmp_path, tiny, filters, kernel):
    def enlarge(config):
        convolution_of(config)["config"].update(filters=filters, kernel_size=[kernel, kernel])

    path = repacked(tiny, tmp_path / "a.keras", enlarge)
    with pytest.raises(InputError, match="GB of weights"):
        load_encoder(path)

    def also_unsafe(config):
        enlarge(config)
        config["config"]["layers"].append({"class_name": "Nonsense", "config": {}})

    with pytest.raises(InputError, match="loaded safely"):
        load_encoder(repacked(tiny, path, also_unsafe))
    assert load_encoder(tiny, image_size=16).grid_shape == (2, 2, 4)  # nothing lingers


def test_another_encoder_is_an_error_that_names_both(tiny):
    encoder = load_encoder(tiny, image_size=40)
    recorded = encoder.describe()
    moved = {**recorded, "name": f"elsewhere/{tiny.name}"}
    require_same_encoder("features", moved, recorded)
    for change in (
        {"name": "resnet50"},
        {"image_size": 48},
        {"grid_shape": [6, 6, 4]},
        {"fingerprint": "0123456789abcdef"},
    ):
        with pytest.raises(InputError) as caught:
            require_same_encoder("features", {**recorded, **change}, recorded)
        first, second = str(caught.value).splitlines()
        assert first.startswith("features: made with ")
        assert str(next(iter(change.values()))).strip("[]").replace(",", " x") in first
        assert f"{tiny} at 40 x 40 -> 5 x 5 x 4 (weights {encoder.fingerprint})" in second


# ---------------------------------------------------------------------------- keras.applications


def test_resnet50_with_local_weights(tmp_path, capfd):
    import keras

    keras.utils.set_random_seed(4)
    network = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    network.save_weights(tmp_path / "resnet50.weights.h5")
    encoder = load_encoder("resnet50", weights=tmp_path / "resnet50.weights.h5", image_size=64)
    assert encoder.name == "resnet50"
    assert encoder.grid_shape == (2, 2, 2048)
    images = np.random.default_rng(6).integers(0, 256, (2, 64, 64, 3), np.uint8)
    prepared = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    expected = network(prepared, training=False)
    pooled = encode_images(encoder, images).mean((1, 2))
    np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-3)

    assert capfd.readouterr().out == ""


def test_weights_that_do_not_fit(tmp_path, capfd):
    import keras

    network = keras.applications.VGG16(include_top=False, weights=None)
    network.save_weights(tmp_path / "vgg16.weights.h5")
    with pytest.raises(InputError, match=r"vgg16\.weights\.h5: not weights of vgg19"):
        load_encoder("vgg19", weights=tmp_path / "vgg16.weights.h5", image_size=64)
    half = tmp_path / "half.weights.h5"
    half.write_bytes((tmp_path / "vgg16.weights.h5").read_bytes()[:1_000_000])
    with pytest.raises(InputError, match=r"half\.weights\.h5: not weights of vgg16"):
        load_encoder("vgg16", weights=half, image_size=64)
    assert capfd.readouterr().out == ""


class BreaksOff(http.server.BaseHTTPRequestHandler):
    """Promises 1,000 bytes and sends `server.sends` of them."""

    def do_GET(self):
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(self.server.sends))

    def log_message(self, *arguments):
        pass


@pytest.fixture
def download(tmp_path, monkeypatch):
    """A server on this machine in the place of the one that has VGG16's weights."""
    import keras

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    server.requests = 0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    address = f"http://127.0.0.1:{server.server_port}/weights.h5"
    monkeypatch.setattr(keras.src.applications.vgg16, "WEIGHTS_PATH_NO_TOP", address)
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("sends", [10, 1000])
def test_a_partial_or_wrong_download_is_never_used(tmp_path, download, capfd, sends):
    download.sends = sends
    kept = tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    kept.parent.mkdir()
    kept.write_bytes(bytes(500))  # of a download that was killed
    for attempt in (1, 2):
        with pytest.raises(InputError) as caught:
            load_encoder("vgg16", image_size=32)
        assert len(str(caught.value).splitlines()) <= 2
        assert str(caught.value).startswith("vgg16: cannot get its ImageNet weights")
        assert BUNDLED in str(caught.value)
        assert download.requests == attempt
    assert capfd.readouterr().out == ""


def test_without_a_network_the_error_is_short_and_soon(tmp_path, download, capfd):
    download.server_close()  # nobody listens any more
    with pytest.raises(InputError, match=r"(?s)vgg16: cannot get its ImageNet weights.*refused"):
        load_encoder("vgg16", image_size=32)
    assert capfd.readouterr().out == ""


# ---------------------------------------------------------------------------- the bundled one


def test_the_bundled_encoder_gives_the_features_of_the_original():
    encoder = load_encoder(BUNDLED)
    assert encoder.image_size == 260
    assert encoder.grid_shape == (9, 9, 1280)
    row, column = np.indices((260, 260))
    image = np.stack([row % 256, column % 256, row * column // 64 % 256], -1).astype(np.uint8)
    batch = np.stack([image, image[:, ::-1], image])
    grid = encode_images(encoder, batch)
    pooled = grid.mean((1, 2))
    # from the PyTorch network that was converted
    assert np.linalg.norm(grid[0]) == pytest.approx(173.05801, rel=1e-3)
    assert np.linalg.norm(pooled[0]) == pytest.approx(13.580128, rel=1e-3)
    strongest = [966, 1100, 302, 1145, 833, 314]
    expected = [4.8522, 3.8178, 3.5587, 3.5527, 3.0637, 2.5780]
    np.testing.assert_allclose(pooled[0, strongest], expected, rtol=1e-3)
    assert np.argsort(-pooled[0])[:6].tolist() == strongest

    np.testing.assert_allclose(grid[2], grid[0], atol=1e-4)
    np.testing.assert_allclose(encode_images(encoder, image[None])[0], grid[0], atol=1e-4)
    # the mirrored picture: another grid, nearly the same features
    similarity = pooled[0] @ pooled[1] / np.prod(np.linalg.norm(pooled[:2], axis=1))
    assert 0.95 < similarity < 0.999
    mirrored_back = np.linalg.norm(grid[1, :, ::-1] - grid[0])
    assert mirrored_back < np.linalg.norm(grid[1] - grid[0])
