"""Features that are extracted in shards are byte for byte those of a single run."""

import json
import shutil

import numpy as np
import pytest
from test_features import PatchMeans, contents, extract, kill_at
from test_features import names as _names
from test_features import pictures as _pictures

from captioning.__main__ import main
from captioning.errors import InputError
from captioning.extras.scale.shards import extract_shard, merge_shards
from captioning.features import FeatureCache, open_caches

BATCH = 2
names, pictures = _names, _pictures  # fixtures


class BatchMinded(PatchMeans):
    """Its features depend on the whole batch, as the last bits of a CNN's may."""

    def encode(self, images):
        return super().encode(images) + np.float32(images.mean() / 100)


@pytest.fixture(scope="module")
def damaged(pictures, names, tmp_path_factory):
    """The pictures, two of them unreadable."""
    folder = shutil.copytree(pictures, tmp_path_factory.mktemp("damaged") / "pictures")
    (folder / names[3]).write_text("no picture")
    (folder / names[21]).unlink()
    return folder


@pytest.fixture
def make(damaged, names):
    """A function that makes the given shards in a folder."""

    def make(folder, *shards, images=names, **options):
        options = {"encoder": BatchMinded(), "batch_size": BATCH} | options
        for shard in shards:
            extract_shard(shard, folder, damaged, images, **options)
        return folder

    return make


# ---- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch", "count"), [(24, 2, 5), (23, 2, 12), (5, 8, 1)])
def test_a_shard_is_whole_batches(tmp_path, make, names, images, batch, count):
    parts, width = [], len(str(count))
    for number in range(1, count + 1):
        make(tmp_path, f"{number}/{count}", images=names[:images], batch_size=batch)
        place = tmp_path / f"shard-{number:0{width}}-of-{count}"
        parts.append(FeatureCache.open(place).images)
    assert [image for part in parts for image in part] == names[:images]
    sizes = [len(part) for part in parts]
    assert all(size % batch == 0 for size in sizes[:-1])
    assert max(sizes) - min(sizes) < 2 * batch


@pytest.mark.parametrize("shard", ["", "0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", "٣/٤"])
def test_what_is_not_a_shard_is_rejected(tmp_path, make, shard):
    with pytest.raises(InputError, match=r"expected e\.g\. 3/16"):
        make(tmp_path, shard)


def test_more_shards_than_batches_are_rejected(tmp_path, make):
    with pytest.raises(InputError, match="24 images are 12 batches of 2; use at most 12 shards"):
        make(tmp_path, "1/13")


# ---- the same bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("keep_grid", [False, True])
def test_merged_shards_are_those_of_a_single_run(
    tmp_path, damaged, names, make, mirrored, keep_grid
):
    options = {"mirrored": mirrored, "keep_grid": keep_grid}
    single = extract(tmp_path / "single", damaged, names, BatchMinded(), BATCH, **options)
    cache = merge_shards(make(tmp_path / "shards", "3/3", "1/3", "2/3", **options))
    assert contents(cache.folder) == contents(single.folder)
    assert list(cache.failed) == [names[3], names[21]]
    assert (cache.mirrored, cache.grid is not None) == (mirrored, keep_grid)
    merge_shards(cache.folder)  # again
    encoder = PatchMeans()
    extract(cache.folder, damaged, names, encoder, BATCH, **options)  # retries the two
    assert len(encoder.batches) == 1
    assert contents(cache.folder) == contents(single.folder)


def test_an_interrupted_shard_resumes(tmp_path, make):
    class Interrupted(BatchMinded):
        def encode(self, images):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().encode(images)

    whole = merge_shards(make(tmp_path / "whole", "1/2", "2/2"))
    folder = make(tmp_path / "cache", "1/2")
    with pytest.raises(KeyboardInterrupt):
        make(folder, "2/2", encoder=Interrupted())
    with pytest.raises(InputError, match=r"shard-2-of-2: unfinished .*run image_extraction"):
        merge_shards(folder)
    encoder = BatchMinded()
    make(folder, "2/2", encoder=encoder)
    assert len(encoder.batches) == 4
    assert contents(merge_shards(folder).folder) == contents(whole.folder)


def test_a_merge_that_was_killed_can_be_repeated(tmp_path, make):
    source = make(tmp_path / "shards", "1/2", "2/2")
    whole = contents(merge_shards(shutil.copytree(source, tmp_path / "whole")).folder)
    for write in range(1, 30):
        folder = shutil.copytree(source, tmp_path / str(write))
        killed = kill_at(write, lambda folder=folder: merge_shards(folder))
        if (folder / "index.json").exists():
            assert contents(folder) == whole
        merge_shards(folder)
        assert contents(folder) == whole
        if not killed:
            break
    assert not killed
    assert write > 5


# ---- shards that do not make a whole ------------------------------------------------------------


def test_missing_shards_and_those_of_another_run_are_named(tmp_path, make):
    with pytest.raises(InputError, match="no shards; image_extraction"):
        merge_shards(tmp_path)
    folder = make(tmp_path / "cache", "1/5", "2/5", "4/5")
    with pytest.raises(InputError, match=r"shard-3-of-5, shard-5-of-5 missing; make it with image"):
        merge_shards(folder)
    make(folder, "3/5", "5/5", "1/2")
    with pytest.raises(InputError, match=r"shard-1-of-2 and shard-1-of-5; remove those of one run"):
        merge_shards(folder)
    shutil.rmtree(folder / "shard-1-of-2")
    assert len(merge_shards(folder).images) == 24


def test_shards_that_do_not_belong_together_are_rejected(tmp_path, make, names):
    folder = make(tmp_path / "cache", "1/2", "2/2")
    for said, options in (
        ("some images are in two shards", {"images": names[::-1]}),
        ("made from other lists of images, or with another batch_size", {"batch_size": 5}),
        ("shard-2-of-2: mirrored or with a grid, unlike shard-1-of-2", {"mirrored": True}),
        ("mirrored or with a grid, unlike shard-1-of-2, or the reverse", {"keep_grid": False}),
        ("(?s)made with patch means, .*not with", {"encoder": PatchMeans(fingerprint="1" * 16)}),
    ):
        shutil.rmtree(folder / "shard-2-of-2")
        make(folder, "2/2", **options)
        with pytest.raises(InputError, match=said) as caught:
            merge_shards(folder)
        assert len(str(caught.value).splitlines()) <= 2
        assert contents(folder) == {}


def test_a_plain_run_encodes_what_the_shards_lack(tmp_path, damaged, make, names):
    folder = make(tmp_path, "1/2", images=names[:16])
    cache = merge_shards(make(folder, "2/2"))
    assert cache.images == names[:8] + names[12:]
    encoder = PatchMeans()
    assert extract(folder, damaged, names, encoder, BATCH).images == names
    assert len(encoder.batches) == 3  # four images, and the two unreadable ones again


def test_a_damaged_shard_is_named(tmp_path, make):
    folder = make(tmp_path, "1/2", "2/2")
    (folder / "shard-2-of-2" / "grid.npy").write_bytes(b"")
    with pytest.raises(InputError, match="shard-2-of-2: damaged"):
        merge_shards(folder)
    assert contents(folder) == {}


# ---- the command --------------------------------------------------------------------------------


def test_the_command_merges_several_folders(tmp_path, make, capsys):
    folders = [tmp_path / "features" / name for name in ("a", "a-mirrored")]
    for folder in folders:
        make(folder, "1/2", "2/2", mirrored=folder.name != "a")
    with pytest.raises(InputError, match=r"(?s)no features.*captioning shards merge") as caught:
        open_caches(tmp_path)
    assert str(caught.value).endswith(f"python -m captioning shards merge {tmp_path}/features/*")
    capsys.readouterr()
    assert not main(["shards", "merge", *map(str, folders)])
    out, err = capsys.readouterr()
    assert out == ""
    lines = [
        f"{f}: 24 images, 2 of them unreadable; {f}/shard-* may be removed now" for f in folders
    ]
    assert err.splitlines() == lines
    assert [len(cache.images) for cache in open_caches(tmp_path)] == [24, 24]
    assert json.loads((folders[1] / "index.json").read_text())["mirrored"]
