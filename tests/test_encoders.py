"""Encoders: by name, by file, with given weights; another one is noticed."""

import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from captioning.encoders import BUNDLED, BUNDLED_FILE, load_encoder, require_same_encoder
from captioning.errors import InputError
from captioning.files import read_tensors

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


def test_an_encoder_from_a_file(tiny):
    encoder = load_encoder(tiny)
    assert encoder.name == str(tiny)
    assert encoder.image_size == 224
    assert encoder.grid_shape == (28, 28, 4)
    small = load_encoder(tiny, image_size=40)
    assert small.grid_shape == (5, 5, 4)
    assert small.fingerprint == encoder.fingerprint
    json.dumps(small.to_json())

    images = np.random.default_rng(5).integers(0, 256, (3, 40, 40, 3), np.uint8)
    grid = small.encode(images)
    kernel, bias = (np.asarray(weight) for weight in small.model.get_layer("convolution").weights)
    patches = images.reshape(3, 5, 8, 5, 8, 3) / 255  # image, row, y, column, x, channel
    expected = np.maximum(np.einsum("nrycxd,yxdk->nrck", patches, kernel) + bias, 0)
    np.testing.assert_allclose(grid, expected, atol=1e-5)
    singles = [small.encode(image[None])[0] for image in images]
    np.testing.assert_allclose(grid, singles, atol=1e-6)


def test_an_encoder_that_pools(tmp_path):
    import keras

    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3)(image))
    model = keras.Model(image, x)
    model.compile(loss="mse")  # how it was trained does not matter
    model.save(tmp_path / "pools.keras")
    encoder = load_encoder(tmp_path / "pools.keras")
    assert encoder.image_size == 16
    assert encoder.grid_shape == (1, 1, 5)
    assert encoder.encode(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 1, 1, 5)
    with pytest.raises(InputError, match="takes 16 x 16 pixels, not 32 x 32"):
        load_encoder(tmp_path / "pools.keras", image_size=32)


def test_the_size_of_the_picture_must_fit_the_network(tiny):
    with pytest.raises(InputError, match="4 x 4 pixels"):
        load_encoder(tiny, image_size=4)


def test_names_and_files_that_do_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"resnet5: not an encoder.*resnet50"):
        load_encoder("resnet5")
    with pytest.raises(InputError, match="no such encoder file"):
        load_encoder(tmp_path / "a.keras")
    with pytest.raises(InputError, match=r"a\.h5: cannot load the weights of resnet50"):
        load_encoder("resnet50", weights=tmp_path / "a.h5")
    with pytest.raises(InputError, match=f"not for {BUNDLED}"):
        load_encoder(BUNDLED, weights=tmp_path / "a.h5")


def test_damaged_files(tmp_path, tiny):
    whole = tiny.read_bytes()
    path = tmp_path / "a.keras"
    for data in (b"", b"text", whole[:1000], whole[:-30]):
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
        with open(planted, "w") as file:  # noqa: PTH123 - as its author could
            file.write("harm done")
        return x

    image = keras.Input((16, 16, 3))
    keras.Model(image, keras.layers.Lambda(harmful)(image)).save(tmp_path / "a.keras")
    assert Path(planted).exists()  # it does harm when it runs
    Path(planted).unlink()
    with pytest.raises(InputError, match=r"a\.keras: not a Keras model that can be loaded safely"):
        load_encoder(tmp_path / "a.keras")
    assert not Path(planted).exists()


def test_another_encoder_is_an_error_that_names_both(tiny):
    encoder = load_encoder(tiny, image_size=40)
    recorded = encoder.to_json()
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
        assert str(next(iter(change.values()))) in first
        assert f"{tiny}, 40 pixels, features [5, 5, 4], weights {encoder.fingerprint}" in second


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
    pooled = encoder.encode(images).mean((1, 2))
    np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-3)

    assert capfd.readouterr().out == ""


def test_weights_that_do_not_fit(tmp_path, capfd):
    import keras

    network = keras.applications.VGG16(include_top=False, weights=None)
    network.save_weights(tmp_path / "vgg16.weights.h5")
    with pytest.raises(InputError, match=r"vgg16\.weights\.h5: cannot load the weights of vgg19"):
        load_encoder("vgg19", weights=tmp_path / "vgg16.weights.h5", image_size=64)
    half = tmp_path / "half.weights.h5"
    half.write_bytes((tmp_path / "vgg16.weights.h5").read_bytes()[:1_000_000])
    with pytest.raises(InputError, match=r"half\.weights\.h5: cannot load the weights of vgg16"):
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
        assert str(caught.value).startswith("vgg16: cannot load the weights")
        assert BUNDLED in str(caught.value)
        assert download.requests == attempt
    assert capfd.readouterr().out == ""


def test_without_a_network_the_error_is_short_and_soon(tmp_path, download, capfd):
    download.server_close()  # nobody listens any more
    with pytest.raises(InputError, match=r"(?s)vgg16: cannot load the weights.*refused"):
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
    grid = encoder.encode(batch)
    pooled = grid.mean((1, 2))
    # from the PyTorch network that was converted
    assert np.linalg.norm(grid[0]) == pytest.approx(173.05801, rel=1e-3)
    assert np.linalg.norm(pooled[0]) == pytest.approx(13.580128, rel=1e-3)
    strongest = [966, 1100, 302, 1145, 833, 314]
    expected = [4.8522, 3.8178, 3.5587, 3.5527, 3.0637, 2.5780]
    np.testing.assert_allclose(pooled[0, strongest], expected, rtol=1e-3)
    assert np.argsort(-pooled[0])[:6].tolist() == strongest

    np.testing.assert_allclose(grid[2], grid[0], atol=1e-4)
    np.testing.assert_allclose(encoder.encode(image[None])[0], grid[0], atol=1e-4)
    # the mirrored picture: another grid, nearly the same features
    similarity = pooled[0] @ pooled[1] / np.prod(np.linalg.norm(pooled[:2], axis=1))
    assert 0.95 < similarity < 0.999
    mirrored_back = np.linalg.norm(grid[1, :, ::-1] - grid[0])
    assert mirrored_back < np.linalg.norm(grid[1] - grid[0])


def test_the_bundled_file_has_the_classifier_too():
    _, tensors = read_tensors(BUNDLED_FILE, "")
    assert tensors["classifier/kernel"].shape == (1280, 1000)
    assert tensors["classifier/bias"].shape == (1000,)
