"""The feature cache: whatever happens to the images or to a run, it ends as a fresh one does."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioning import features
from captioning.encoders import Encoder
from captioning.errors import InputError
from captioning.features import (
    FeatureCache,
    cache_folder,
    extract_features,
    open_caches,
    picture_hash,
)
from captioning.files import json_bytes, write_bytes
from captioning.images import load_image

SIZE = 16  # pixels that the encoder sees
BATCH = 4


@dataclasses.dataclass(frozen=True)
class PatchMeans(Encoder):
    """Mean colour of 4 x 4 patches, plus 1: an encoder without TensorFlow; counts its batches."""

    name: str = "patch means"
    image_size: int = SIZE
    grid_shape: tuple = (4, 4, 3)
    fingerprint: str = "0" * 16
    model: object = None
    batches: list = dataclasses.field(default_factory=list, compare=False)

    def encode(self, images):
        self.batches.append(len(images))
        return images.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4), dtype=np.float32) + 1


class Interrupted(PatchMeans):
    """Ctrl-C is pressed during batch number `after`, counted from 0."""

    after = 2

    def encode(self, images):
        if len(self.batches) == self.after:
            raise KeyboardInterrupt
        return super().encode(images)


def picture(number, kind="PNG"):
    """The bytes of one of any number of small pictures."""
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 24 small pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        (folder / f"{number:02}.png").write_bytes(picture(number, ("PNG", "JPEG")[number % 2]))
    return folder


@pytest.fixture(scope="session")
def names(pictures):
    return sorted(path.name for path in pictures.iterdir())


@pytest.fixture
def changing(pictures, tmp_path):
    """A copy of the pictures, to change them."""
    return shutil.copytree(pictures, tmp_path / "changing")


def contents(folder):
    """All files of a cache but the lock and its shards."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name != ".lock")
    return {path.name: path.read_bytes() for path in files}


def extract(folder, pictures, images, encoder=None, batch_size=BATCH, **options):
    encoder = encoder or PatchMeans()
    return extract_features(folder, pictures, images, encoder, batch_size=batch_size, **options)


# ---- one run ------------------------------------------------------------------------------------


def test_rows_hold_the_features_of_their_images(tmp_path, pictures, names, capfd):
    cache = extract(tmp_path, pictures, names, batch_size=7)
    assert set(contents(tmp_path)) == {"index.json", "pooled.npy", "grid.npy"}
    assert (cache.encoder, cache.images, cache.failed) == (PatchMeans().to_json(), names, {})
    assert (cache.pooled.shape, cache.pooled.dtype) == ((24, 3), np.float32)
    assert (cache.grid.shape, cache.grid.dtype) == ((24, 4, 4, 3), np.float16)
    assert isinstance(cache.grid, np.memmap)
    for row in (0, 23):
        pixels = load_image(pictures / names[row], SIZE).astype(np.float32) + 1
        np.testing.assert_allclose(cache.pooled[row], pixels.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(cache.grid[row, 0, 3], pixels[:4, 12:].mean((0, 1)), rtol=1e-3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "4/4" in err
    assert err.endswith(f"{tmp_path}: 0 images kept, 24 encoded, 0 failed\n")


def test_rows_are_read_as_a_model_takes_them(tmp_path, pictures, names):
    cache = extract(tmp_path, pictures, names)
    rows = cache.rows([names[20], names[2], names[2]])
    assert rows.tolist() == [20, 2, 2]
    np.testing.assert_array_equal(cache.read(rows, (3,)), cache.pooled[rows])
    np.testing.assert_array_equal(cache.read(rows, (16, 3)), cache.grid[rows].reshape(3, 16, 3))
    with pytest.raises(InputError, match=r"1 images are not in it, such as other\.jpg"):
        cache.rows([names[0], "other.jpg"])


def test_mirrored_features_are_those_of_mirrored_images(tmp_path, pictures, names):
    cache = extract(tmp_path / "a", pictures, names)
    mirrored = extract(tmp_path / "b", pictures, names, mirrored=True)
    assert mirrored.mirrored
    np.testing.assert_allclose(mirrored.grid, cache.grid[:, :, ::-1], rtol=1e-3)
    assert mirrored.pictures(names) == cache.pictures(names)


def test_the_grid_is_kept_if_asked_for_or_present(tmp_path, pictures, names):
    cache = extract(tmp_path, pictures, names, keep_grid=False)
    assert cache.grid is None
    assert set(contents(tmp_path)) == {"index.json", "pooled.npy"}
    with pytest.raises(InputError, match=r"has no grid, which attention needs; .*keep_grid = True"):
        cache.read(np.array([0]), (16, 3))
    assert extract(tmp_path, pictures, names).grid is not None
    before, encoder = contents(tmp_path), PatchMeans()
    assert extract(tmp_path, pictures, names, encoder, keep_grid=False).grid is not None
    assert encoder.batches == []
    assert contents(tmp_path) == before


def test_unreadable_images_are_recorded(tmp_path, changing, names):
    whole = extract(tmp_path / "whole", changing, names)
    (changing / names[3]).write_text("no picture")
    (changing / names[17]).unlink()
    cache = extract(tmp_path / "cache", changing, names)
    assert list(cache.failed) == [names[3], names[17]]
    assert cache.failed[names[17]] == "no such file; expected a picture"
    assert cache.rows([names[3], names[4], names[17]]).tolist() == [-1, 4, -1]
    assert len(cache.pictures(names)) == 22
    assert not cache.pooled[[3, 17]].any()
    assert not cache.grid[[3, 17]].any()
    good = np.delete(np.arange(24), [3, 17])
    np.testing.assert_array_equal(cache.grid[good], whole.grid[good])


def test_symbolic_links_are_followed(tmp_path, pictures, names):
    links = tmp_path / "links"
    links.mkdir()
    for name in names:
        (links / name).symlink_to(pictures / name)
    extract(tmp_path / "a", links, names)
    extract(tmp_path / "b", pictures, names)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_recompressed_copy_has_nearly_the_same_hash():
    row, column = np.mgrid[0:9:48j, 0:12:64j]
    pixels = np.stack([127 + 127 * np.sin(column + row * c) for c in range(3)], -1)
    image, file = Image.fromarray(pixels.astype(np.uint8)), io.BytesIO()
    image.save(file, "JPEG", quality=40)
    hashes = [picture_hash(load_image(source, 224)) for source in (image, file)]
    assert hashes[0] == "193173ce8c983933"
    assert (int(hashes[0], 16) ^ int(hashes[1], 16)).bit_count() <= 6
    assert picture_hash(np.asarray(image)[:, ::-1]) != hashes[0]


def test_input_that_makes_no_cache(tmp_path, pictures, names):
    for folder in (pictures / "nowhere", tmp_path):
        with pytest.raises(
            InputError, match=r"no image can be read, such as .*a: no such file"
        ) as caught:
            extract(tmp_path / "cache", folder, ["a", *map(str, range(99))])
        assert len(str(caught.value)) <= 300
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file where a folder is expected"):
        extract(tmp_path / "file" / "cache", pictures, names)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_features_that_cannot_be_stored_are_an_error(tmp_path, pictures, names, value):
    class Broken(PatchMeans):
        def encode(self, images):
            return np.full((len(images), 4, 4, 3), value, np.float32)

    with pytest.raises(InputError, match=r"NaN or too large for float16"):
        extract(tmp_path, pictures, names, Broken())


def test_features_of_another_encoder_are_not_touched(tmp_path, pictures, names):
    extract(tmp_path, pictures, names)
    before = contents(tmp_path)
    other = PatchMeans(name="resnet50", fingerprint="1" * 16)
    with pytest.raises(InputError, match=r"(?s)patch means, 16 .*\nnot with resnet50, 16"):
        extract(tmp_path, pictures, names, other)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["index.json", "pooled.npy", "grid.npy"])
@pytest.mark.parametrize("damage", [None, b"", b"{}", b"\x93NUMPY\1\0", 9])
def test_damage_is_reported_and_repaired(tmp_path, pictures, names, name, damage):
    extract(tmp_path, pictures, names)
    whole = contents(tmp_path)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(whole[name][:-damage] if damage == 9 else damage)
    with pytest.raises(
        InputError, match=rf"{tmp_path}.*run {features.MADE_BY}|writes it"
    ) as caught:
        FeatureCache.open(tmp_path)
    assert "\n" not in str(caught.value)
    extract(tmp_path, pictures, names)
    assert contents(tmp_path) == whole


# ---- changed images -----------------------------------------------------------------------------


def summary(capsys):
    return re.search(r"(\d+) images kept, (\d+) encoded, (\d+) failed", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda folder: None, ("24", "0", "0")),
        (lambda folder: os.utime(folder / "03.png", (0, 0)), ("24", "0", "0")),
        (lambda folder: (folder / "03.png").write_bytes(picture(99)), ("23", "1", "0")),
        (lambda folder: (folder / "03.png").rename(folder / "x.png"), ("24", "0", "0")),
        (lambda folder: (folder / "x.png").write_bytes(picture(99)), ("24", "1", "0")),
        (lambda folder: (folder / "03.png").unlink(), ("23", "0", "0")),
        (lambda folder: (folder / "03.png").write_bytes(b"damaged"), ("23", "0", "1")),
        (lambda folder: shutil.copy(folder / "04.png", folder / "03.png"), ("24", "0", "0")),
    ],
    ids=["nothing", "touched", "changed", "renamed", "added", "removed", "damaged", "copied"],
)
def test_only_what_has_changed_is_encoded(tmp_path, changing, capsys, change, counts):
    def images():
        return sorted(path.name for path in changing.iterdir())

    before = extract(tmp_path / "cache", changing, images())
    original = contents(before.folder)
    shutil.copytree(changing, tmp_path / "original")
    change(changing)
    capsys.readouterr()
    extract(before.folder, changing, images())
    assert summary(capsys).groups() == counts
    extract(tmp_path / "fresh", changing, images())
    assert contents(before.folder) == contents(tmp_path / "fresh")
    extract(before.folder, tmp_path / "original", before.images)  # the change is undone
    assert contents(before.folder) == original


FOLDERS = st.dictionaries(  # the state of a folder of images: name -> number of its picture
    st.sampled_from("abcdefgh"), st.sampled_from([1, 2, 3, 4, 5, 6, None]), min_size=1
).filter(lambda folder: any(folder.values()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FOLDERS, st.booleans(), st.integers(0, 4)), min_size=2, max_size=4))
def test_after_any_changes_the_features_are_those_of_a_fresh_folder(steps):
    """A step: the images, whether the grid is asked for, and the batch that Ctrl-C interrupts."""
    with tempfile.TemporaryDirectory() as folder:
        images, cache, fresh = (Path(folder, name) for name in ("images", "cache", "fresh"))
        for state, keep_grid, stop in steps:
            shutil.rmtree(images, ignore_errors=True)
            images.mkdir()
            for name, number in state.items():
                (images / name).write_bytes(picture(number) if number else b"damaged")
            encoder = Interrupted()
            object.__setattr__(encoder, "after", stop)
            try:
                extract(cache, images, list(state), encoder, batch_size=2, keep_grid=keep_grid)
            except KeyboardInterrupt:
                continue
        found = extract(cache, images, list(state), batch_size=2, keep_grid=keep_grid)
        expected = extract(fresh, images, list(state), keep_grid=found.grid is not None)
        assert contents(cache) == contents(fresh)
        assert found.grid is not None or not keep_grid
        np.testing.assert_array_equal(found.pooled, expected.pooled)


# ---- interrupted runs ---------------------------------------------------------------------------


def test_on_ctrl_c_completed_rows_are_saved(tmp_path, pictures, names, capsys):
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "cache", pictures, names, Interrupted())
    with pytest.raises(InputError, match="unfinished or of an old version; run image_extraction"):
        FeatureCache.open(tmp_path / "cache")
    extract(tmp_path / "cache", pictures, names)
    assert summary(capsys).groups() == ("8", "16", "0")
    extract(tmp_path / "whole", pictures, names)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


class Killed(BaseException):
    """The process is dead: everything that writes raises it again."""


WRITES = [
    (Path, "write_bytes"),
    (Path, "replace"),
    (Path, "unlink"),
    (np, "save"),
    (np.memmap, "flush"),
    (PatchMeans, "encode"),
]


def kill_at(write, run):
    """Call `run`, and kill it at write number `write`; returns whether it got as far."""
    count = 0

    def counting(original):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count >= write:
                raise Killed
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SAVE_EVERY", 1)
        for owner, name in WRITES:
            patch.setattr(owner, name, counting(getattr(owner, name)))
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("second", ["first run", "changed files", "other images"])
def test_killed_between_any_two_writes_it_resumes(tmp_path, pictures, changing, names, second):
    images, before = names[:12], tmp_path / "before"
    goals = []  # the images and the cache they lead to, of the second run and, if any, of the first
    if second == "first run":
        before.mkdir()
    else:
        goals = [(pictures, images, extract(before, pictures, images))]
        for name in names[2:9]:
            (changing / name).write_bytes(picture(100 + int(name[:2])))
    images = names[16:3:-1] if second == "other images" else images
    goals = [(changing, images, extract(tmp_path / "whole", changing, images)), *goals]
    for write in range(1, 99):
        folder = shutil.copytree(before, tmp_path / str(write))
        killed = kill_at(write, lambda folder=folder: extract(folder, changing, images))
        with contextlib.suppress(InputError):  # if it opens, it is the old cache or the new one
            assert FeatureCache.open(folder).digests in [goal.digests for _, _, goal in goals]
        saved, encoder = 0, PatchMeans()
        if second == "first run" and (folder / "index.json").exists():
            index = json.loads((folder / "index.json").read_text())
            saved = sum(digest is not None for digest in index["digests"])
        goals.reverse()  # resume and then undo the change, or undo it at once
        for place, files, goal in goals:
            extract(folder, place, files, encoder)
            assert contents(folder) == contents(goal.folder)
        assert second != "first run" or len(encoder.batches) == -(-(12 - saved) // BATCH)
        if not killed:
            break
    assert not killed
    assert write > 15


ELSEWHERE = """
import mmap, os, sys
sys.modules["fcntl"] = None  # as on Windows
for module, names in ((os, ["posix_fallocate", "posix_fadvise"]), (mmap, ["MADV_WILLNEED"])):
    for name in names:
        delattr(module, name)
sys.path[:0] = {path!r}
from test_features import extract
extract({folder!r}, {pictures!r}, {names!r}).read([1, 0], (16, 3))
"""


def test_systems_without_locks_and_reservations(tmp_path, pictures, names):
    values = {"folder": str(tmp_path / "a"), "pictures": str(pictures), "names": names}
    code = ELSEWHERE.format(path=[str(Path(__file__).parent), *sys.path], **values)
    subprocess.run([sys.executable, "-c", code], check=True)
    extract(tmp_path / "b", pictures, names)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# ---- the caches of a prepared folder ------------------------------------------------------------


def test_where_the_cache_is():
    assert cache_folder("prepared", "resnet50") == Path("prepared/features/resnet50")
    assert cache_folder("prepared", "a/b.keras", mirrored=True).name == "b-mirrored"


def test_the_caches_of_a_prepared_folder(tmp_path, pictures, names):
    with pytest.raises(InputError, match=r"no features; .*\npython -m captioning shards merge "):
        open_caches(tmp_path)
    extract(cache_folder(tmp_path, "a"), pictures, names)
    extract(cache_folder(tmp_path, "a", mirrored=True), pictures, names, mirrored=True)
    assert [cache.mirrored for cache in open_caches(tmp_path)] == [False, True]
    assert len(open_caches(tmp_path, mirrored=False)) == 1
    extract(cache_folder(tmp_path, "b"), pictures, names)
    with pytest.raises(InputError, match="features of a, b; choose with --encoder"):
        open_caches(tmp_path)
    assert [cache.folder.name for cache in open_caches(tmp_path, "b")] == ["b"]
    with pytest.raises(InputError, match=r"no such file; image_extraction.ipynb writes it"):
        open_caches(tmp_path, "c")
    index = json.loads((tmp_path / "features" / "a" / "index.json").read_text())
    index["encoder"]["fingerprint"] = "1" * 16
    write_bytes(tmp_path / "features" / "a" / "index.json", json_bytes(index))
    with pytest.raises(InputError, match=r"a-mirrored: made with .*\nnot with "):
        open_caches(tmp_path, "a")
