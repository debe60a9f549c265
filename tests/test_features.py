"""The feature cache: whatever happens to a run, the next one goes on and ends in the same bytes."""

import dataclasses
import hashlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning import features
from captioning.encoders import Encoder, load_encoder, load_image
from captioning.features import FeatureCache, cache_folder, extract_features, read_rows
from captioning.files import InputError, exclusive

SIZE = 16


@dataclasses.dataclass(frozen=True)
class PatchMeans(Encoder):
    """Mean colour of 4 x 4 patches: an encoder without TensorFlow, which counts its images."""

    name: str = "patch means"
    image_size: int = SIZE
    grid_shape: tuple = (4, 4, 3)
    fingerprint: str = "0" * 16
    model: object = None
    seconds: float = 0.0  # that an image takes
    seen: list = dataclasses.field(default_factory=list, compare=False)

    def forward(self, images):
        self.seen.append(len(images))
        time.sleep(self.seconds * len(images))
        return images.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4))


class Watched(PatchMeans):
    """Writes down the fingerprint of every picture that it encodes."""

    def __init__(self, log, **settings):
        super().__init__(**settings)
        object.__setattr__(self, "log", log)

    def forward(self, images):
        with open(self.log, "a") as file:  # noqa: PTH123
            file.writelines(f"{fingerprint(image)}\n" for image in images)
        return super().forward(images)


def fingerprint(image):
    return hashlib.sha256(np.asarray(image, np.uint8).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 40 small pictures of several kinds."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(1)
    for number in range(40):
        pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.{('png', 'jpg')[number % 2]}")
    return folder


@pytest.fixture(scope="module")
def names(pictures):
    return sorted(path.name for path in pictures.iterdir())


def contents(folder):
    """Every file of a cache but the lock, which names a process."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# ---------------------------------------------------------------------------- a quiet run


def test_rows_hold_the_features_of_their_images(tmp_path, pictures, names, capfd):
    cache = extract_features(tmp_path, pictures, names, PatchMeans(), batch_size=7)
    assert set(contents(tmp_path)) == {"index.json", "pooled.npy", "grid.npy"}
    assert cache.encoder == PatchMeans().describe()
    assert cache.images == names
    assert cache.failed == {}
    assert cache.grid.shape == (40, 4, 4, 3)
    assert cache.grid.dtype == np.float16
    assert cache.pooled.dtype == np.float32
    assert isinstance(cache.grid, np.memmap)
    assert cache.rows([names[30], names[2]]).tolist() == [30, 2]
    for name in (names[0], names[39]):
        pixels = load_image(pictures / name, SIZE).astype(np.float32)
        row = cache.rows([name])[0]
        np.testing.assert_allclose(cache.pooled[row], pixels.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(cache.grid[row, 0, 3], pixels[:4, 12:].mean((0, 1)), rtol=1e-3)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "40/40" in captured.err
    assert "image/s" in captured.err


def test_mirrored_features_are_those_of_mirrored_images(tmp_path, pictures, names):
    cache = extract_features(tmp_path / "a", pictures, names, PatchMeans())
    mirrored = extract_features(tmp_path / "b", pictures, names, PatchMeans(), mirrored=True)
    assert mirrored.mirrored
    np.testing.assert_allclose(mirrored.grid, cache.grid[:, :, ::-1], rtol=1e-3)


def test_a_finished_cache_is_returned_as_it_is(tmp_path, pictures, names):
    extract_features(tmp_path, pictures, names, PatchMeans())
    before = contents(tmp_path)
    for options in ({}, {"batch_size": 3}, {"keep_grid": False}):
        encoder = PatchMeans()
        extract_features(tmp_path, pictures, names, encoder, **options)
        assert encoder.seen == []
    assert contents(tmp_path) == before


def test_the_grid_is_kept_where_it_is_asked_for(tmp_path, pictures, names):
    cache = extract_features(tmp_path, pictures, names, PatchMeans(), keep_grid=False)
    assert cache.grid is None
    assert set(contents(tmp_path)) == {"index.json", "pooled.npy"}
    interrupted_after(3, tmp_path, pictures, names)
    extract_features(tmp_path, pictures, names, PatchMeans(), keep_grid=False)
    assert set(contents(tmp_path)) == {"index.json", "pooled.npy"}
    again = extract_features(tmp_path, pictures, names, PatchMeans())
    assert again.grid is not None
    assert (again.pooled == cache.pooled).all()


def test_a_cache_of_other_images_is_made_anew(tmp_path, pictures, names):
    extract_features(tmp_path / "a", pictures, names, PatchMeans())
    extract_features(tmp_path / "a", pictures, names[5:], PatchMeans())
    extract_features(tmp_path / "b", pictures, names[5:], PatchMeans())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_where_the_cache_lies():
    assert cache_folder("prepared", "resnet50") == Path("prepared/features/resnet50")
    assert cache_folder("prepared", "a/b.keras", mirrored=True).name == "b-mirrored"


# ---------------------------------------------------------------------------- bad input


def test_unreadable_images_are_listed_and_the_rest_goes_on(tmp_path, pictures, names):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((pictures / name).read_bytes())
    (folder / names[3]).write_text("no picture")
    (folder / names[17]).unlink()
    cache = extract_features(tmp_path / "cache", folder, names, PatchMeans(), batch_size=4)
    assert list(cache.failed) == [names[3], names[17]]
    assert cache.failed[names[17]] == "no such file; expected a picture"
    assert cache.rows([names[3], names[4], names[17]]).tolist() == [-1, 4, -1]
    assert not cache.pooled[[3, 17]].any()
    assert not cache.grid[[3, 17]].any()
    whole = extract_features(tmp_path / "whole", pictures, names, PatchMeans(), batch_size=4)
    rest = [row for row in range(40) if row not in (3, 17)]
    assert (cache.grid[rest] == whole.grid[rest]).all()
    with pytest.raises(InputError, match=r"1 images are not in it, other\.jpg"):
        cache.rows([names[0], "other.jpg"])


def test_input_that_makes_no_cache(tmp_path, pictures, names):
    cache, encoder = tmp_path / "cache", PatchMeans()
    with pytest.raises(InputError, match="no such folder of images"):
        extract_features(cache, pictures / "nowhere", names, encoder)
    with pytest.raises(InputError, match="no images to encode"):
        extract_features(cache, pictures, [], encoder)
    with pytest.raises(InputError, match="listed twice"):
        extract_features(cache, pictures, [*names, names[0]], encoder)
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of the 2 images can be read; a: no such file"):
            extract_features(cache, pictures, ["a", "b"], encoder)
    with pytest.raises(InputError, match=r"no such file; it is written by image_extraction"):
        FeatureCache.open(cache)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_features_that_cannot_be_stored_are_an_error(tmp_path, pictures, names, value):
    class Broken(PatchMeans):
        def forward(self, images):
            return np.full((len(images), 4, 4, 3), value)

    with pytest.raises(InputError, match=r"no numbers or beyond float"):
        extract_features(tmp_path, pictures, names, Broken())


@pytest.mark.parametrize("finished", [True, False])
def test_features_of_another_encoder_are_not_touched(tmp_path, pictures, names, finished):
    interrupted_after(0 if finished else 3, tmp_path, pictures, names)
    before = contents(tmp_path)
    other = PatchMeans(name="resnet50", fingerprint="1" * 16)
    with pytest.raises(InputError, match=r"(?s)patch means at 16 .*resnet50 at 16") as caught:
        extract_features(tmp_path, pictures, names, other)
    assert len(str(caught.value).splitlines()) == 2
    assert contents(tmp_path) == before


def test_the_second_of_two_runs_refuses(tmp_path, pictures, names):
    with exclusive(tmp_path), pytest.raises(InputError, match="in use by another run"):
        extract_features(tmp_path, pictures, names, PatchMeans())


def test_damage_is_told_and_mended_by_another_run(tmp_path, pictures, names):
    extract_features(tmp_path, pictures, names, PatchMeans())
    whole = contents(tmp_path)
    index = json.loads(whole["index.json"])
    damages = {
        "index.json": [b"", b"{}", b"[]", b"not json", whole["index.json"][:-9]],
        "grid.npy": [b"", b"text", whole["grid.npy"][:200], whole["pooled.npy"]],
        "pooled.npy": [None],
    }
    for key in ("version", "encoder", "images", "failed", "has_grid", "mirrored"):
        damages["index.json"].append(json.dumps({**index, key: None}).encode())
    for name, contents_of_it in damages.items():
        for data in contents_of_it:
            (tmp_path / name).unlink()
            if data is not None:
                (tmp_path / name).write_bytes(data)
            with pytest.raises(InputError, match=name):
                FeatureCache.open(tmp_path)
            extract_features(tmp_path, pictures, names, PatchMeans())
            assert contents(tmp_path) == whole


# ---------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("megabytes", [0.002, 0.03])  # too little for the first array; the second
def test_a_full_disk_names_file_and_space(tmp_path, pictures, megabytes):
    many = [f"{number}.png" for number in range(500)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), limits[1]))
    try:
        with pytest.raises(InputError, match=r"npy\.part: cannot be written") as caught:
            extract_features(tmp_path, pictures, many, PatchMeans())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "MB are needed" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(tmp_path) == {}


def test_a_disk_that_fills_up_in_mid_run_loses_nothing(
    tmp_path, pictures, names, monkeypatch, capsys
):
    # capsys keeps the progress bar in memory, out of reach of the limit on files
    undisturbed = extract_features(tmp_path / "whole", pictures, names, PatchMeans(), batch_size=4)
    monkeypatch.setattr(features, "SAVE_SECONDS", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "cache"

    class FillsTheDisk(PatchMeans):
        def forward(self, images):
            if len(self.seen) == 3:  # two batches are saved
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            return super().forward(images)

    try:
        with pytest.raises(InputError, match=r"progress\.json: cannot be written \(File too large"):
            extract_features(folder, pictures, names, FillsTheDisk(), batch_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    encoder = PatchMeans()
    extract_features(folder, pictures, names, encoder, batch_size=4)
    assert sum(encoder.seen) <= 40 - 12
    assert contents(folder) == contents(undisturbed.folder)


# ---------------------------------------------------------------------------- killed runs


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def interrupted_after(calls, folder, pictures, names, target=(features, "_store"), **options):
    """Run until call number `calls` of a function, then break off; 0 runs to the end."""
    owner, function = target
    original, count = getattr(owner, function), 0

    def counting(*arguments, **keywords):
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SAVE_SECONDS", 0)
        patch.setattr(owner, function, counting)
        try:
            extract_features(folder, pictures, names, PatchMeans(), batch_size=8, **options)
        except Killed:
            return True
    return False


@pytest.mark.parametrize(
    "target",
    [
        (features, "_store"),
        (features, "write_json"),
        (features, "encode_images"),
        (Path, "replace"),
        (Path, "unlink"),
        (os, "fsync"),
        (np.memmap, "flush"),
        (np.lib.format, "open_memmap"),
    ],
    ids=lambda target: target[1],
)
def test_broken_off_at_every_step_it_goes_on(tmp_path, pictures, names, target):
    undisturbed = extract_features(tmp_path / "whole", pictures, names, PatchMeans(), batch_size=8)
    calls = 1
    while interrupted_after(calls, tmp_path / f"cut{calls}", pictures, names, target):
        folder = tmp_path / f"cut{calls}"
        if (folder / "index.json").exists():
            FeatureCache.open(folder)
        else:
            with pytest.raises(InputError):
                FeatureCache.open(folder)
        progress = folder / "progress.json"
        saved = json.loads(progress.read_text())["done"] if progress.exists() else 0
        encoder = PatchMeans()
        extract_features(folder, pictures, names, encoder, batch_size=8)
        assert sum(encoder.seen) <= 40 - saved
        assert contents(folder) == contents(undisturbed.folder)
        calls += 1
    assert calls > 1


def test_broken_off_while_another_list_was_encoded(tmp_path, pictures, names):
    """Progress on one list vouches for nothing once another list has been begun."""
    undisturbed = extract_features(tmp_path / "whole", pictures, names, PatchMeans(), batch_size=8)
    folder = tmp_path / "cache"
    interrupted_after(4, folder, pictures, names)
    interrupted_after(1, folder, pictures, names[::-1])
    extract_features(folder, pictures, names, PatchMeans(), batch_size=8)
    assert contents(folder) == contents(undisturbed.folder)


def test_features_of_another_data_set_are_kept(tmp_path, pictures, names):
    folder = tmp_path / "cache"
    extract_features(folder, pictures, names[:6], PatchMeans(), batch_size=8)
    before = contents(folder)
    with pytest.raises(InputError, match="another data set"):
        extract_features(folder, pictures, names[6:12], PatchMeans(), batch_size=8)
    assert contents(folder) == before
    grown = extract_features(folder, pictures, names[:12], PatchMeans(), batch_size=8)
    assert grown.images == names[:12]


RUN = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from captioning import features
from captioning.encoders import load_encoder
from test_features import PatchMeans
features.SAVE_SECONDS = 0.01
encoder = {encoder}
images = {images!r}
features.extract_features({folder!r}, {pictures!r}, images, encoder, batch_size=4)
"""


def start(folder, pictures, names, encoder):
    tests = Path(__file__).parent
    values = {"folder": str(folder), "pictures": str(pictures), "images": names}
    code = RUN.format(root=str(tests.parent), tests=str(tests), encoder=encoder, **values)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_until(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    import keras

    keras.utils.set_random_seed(3)
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(5, 3, strides=2, activation="relu")(image)
    x = keras.layers.Conv2D(6, 3, padding="same")(x)
    path = tmp_path_factory.mktemp("encoder") / "tiny.keras"
    keras.Model(image, x).save(path)
    return path


def test_a_killed_run_with_a_real_encoder(tmp_path, pictures, names, tiny):
    images = [f"{number}.png" for number in range(600)]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / image).symlink_to(pictures / names[number % 40])
    cache = tmp_path / "cache"
    process = start(cache, folder, images, f"load_encoder({str(tiny)!r}, image_size=64)")
    wait_until((cache / "progress.json").exists, process)
    process.kill()
    process.communicate()
    done = json.loads((cache / "progress.json").read_text())["done"]
    assert 0 < done < 600
    with pytest.raises(InputError, match="unfinished"):
        FeatureCache.open(cache)
    encoder = load_encoder(tiny, image_size=64)
    extract_features(cache, folder, images, encoder, batch_size=4)
    undisturbed = extract_features(tmp_path / "whole", folder, images, encoder, batch_size=4)
    assert contents(cache) == contents(undisturbed.folder)


def test_ctrl_c_stops_soon_and_keeps_what_is_done(tmp_path, pictures, names):
    folder = tmp_path / "cache"
    process = start(folder, pictures, names, "PatchMeans(seconds=0.05)")  # 2 s for all
    wait_until((folder / "progress.json").exists, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, stderr = process.communicate(timeout=10)
    assert time.monotonic() - sent < 2
    assert "KeyboardInterrupt" in stderr  # goes on to the caller, who can say how to go on
    done = json.loads((folder / "progress.json").read_text())["done"]
    assert 0 < done < 40
    encoder = PatchMeans()
    extract_features(folder, pictures, names, encoder, batch_size=4)
    assert sum(encoder.seen) == 40 - done
    undisturbed = extract_features(tmp_path / "whole", pictures, names, PatchMeans(), batch_size=4)
    assert contents(folder) == contents(undisturbed.folder)


@pytest.mark.parametrize("shape", [(1000, 7), (300, 9, 9, 40)])
def test_rows_are_read_as_they_are_stored(tmp_path, shape):
    stored = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    np.save(tmp_path / "array.npy", stored)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    rows = np.array([5, 0, len(stored) - 1, 5, -1])
    for array in (mapped, stored):
        read = read_rows(array, rows)
        np.testing.assert_array_equal(read, stored[rows])
        assert not isinstance(read.base, mmap.mmap)  # a copy
    assert read_rows(mapped, rows[:0]).shape == (0, *shape[1:])
