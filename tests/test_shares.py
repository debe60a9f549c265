"""Features that are extracted in shares end in the bytes of a single run, or in a line of why."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from test_features import PatchMeans, contents
from test_features import names as _names
from test_features import pictures as _pictures

from captioning import features, shares
from captioning.features import FeatureCache, extract_features
from captioning.files import InputError
from captioning.shares import extract_share, merge_shares, parse_shard, share_rows

BATCH = 4
names, pictures = _names, _pictures  # fixtures


class BatchMinded(PatchMeans):
    """Its features hang on the whole batch, as the last bits of a CNN's may."""

    def forward(self, images):
        return super().forward(images) + images.mean() / 100


def arrays_and_index(folder):
    return {name: data for name, data in contents_of_files(folder).items() if name != "share.json"}


def contents_of_files(folder):
    files = (path for path in folder.iterdir() if path.is_file() and path.name != ".lock")
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def damaged(pictures, names, tmp_path_factory):
    """The pictures, two of them unreadable."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in names:
        shutil.copy(pictures / name, folder)
    (folder / names[3]).write_text("no picture")
    (folder / names[31]).unlink()
    return folder


@pytest.fixture
def extract(damaged, names):
    """A function that makes the given shares in a folder."""

    def make(folder, *shards, images=names, **options):
        options = {"encoder": BatchMinded(), "batch_size": BATCH} | options
        for shard in shards:
            extract_share(shard, folder, damaged, images, **options)
        return folder

    return make


def all_of(count):
    return [f"{number}/{count}" for number in range(1, count + 1)]


# ---- what is cut where --------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch", "count"), [(40, 4, 3), (41, 4, 11), (5, 8, 1)])
def test_shares_are_whole_batches_of_all_images(images, batch, count):
    rows = [share_rows(images, batch, number, count) for number in range(1, count + 1)]
    assert [row for part in rows for row in range(images)[part]] == list(range(images))
    sizes = [part.stop - part.start for part in rows]
    assert all(part.start % batch == 0 for part in rows)
    assert max(sizes) - min(sizes) < 2 * batch
    assert min(sizes) > 0


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", " 1/3", "٣/٤"])
def test_what_is_no_share_is_told(shard):
    with pytest.raises(InputError, match="expected such as 3/16"):
        parse_shard(shard)


def test_more_shares_than_batches_are_refused(extract, tmp_path):
    with pytest.raises(InputError, match="40 images are 10 batches of 4; cut them into 10"):
        extract(tmp_path, "1/11")


# ---- the same bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("keep_grid", [False, True])
def test_merged_shares_are_byte_for_byte_a_single_run(
    extract,
    tmp_path,
    damaged,
    names,
    mirrored,
    keep_grid,
    monkeypatch,
):
    monkeypatch.setattr(shares, "BLOCK", 100)  # several blocks a file
    options = {"mirrored": mirrored, "keep_grid": keep_grid}
    single = tmp_path / "single"
    extract_features(single, damaged, names, BatchMinded(), batch_size=BATCH, **options)
    folder = extract(tmp_path / "shares", "3/3", "1/3", "2/3", **options)
    cache = merge_shares(folder)
    assert arrays_and_index(folder) == contents(single)
    assert list(cache.failed) == [names[3], names[31]]
    assert cache.mirrored is mirrored

    before = contents_of_files(folder)
    assert merge_shares(folder).images == names  # a second time changes nothing
    encoder = BatchMinded()
    extract(folder, "", encoder=encoder, **options)  # nor does the notebook without shares
    assert encoder.seen == []
    assert contents_of_files(folder) == before


def test_a_share_that_was_broken_off_goes_on(extract, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SAVE_SECONDS", 0)

    class BreaksOff(BatchMinded):
        def forward(self, images):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().forward(images)

    whole = merge_shares(extract(tmp_path / "whole", "1/2", "2/2"))
    folder = extract(tmp_path / "broken off", "1/2")
    with pytest.raises(KeyboardInterrupt):
        extract(folder, "2/2", encoder=BreaksOff())
    with pytest.raises(InputError, match=r"share-2-of-2: unfinished; run image_extraction"):
        merge_shares(folder)
    encoder = BatchMinded()
    extract(folder, "2/2", encoder=encoder)
    assert sum(encoder.seen) == 20 - 2 * BATCH
    merge_shares(folder)
    assert contents_of_files(folder) == contents_of_files(whole.folder)


@pytest.mark.parametrize(
    "target",
    [(Path, "replace"), (Path, "unlink"), (shares, "_append"), (features, "write_json")],
    ids=lambda target: target[1],
)
def test_a_merge_broken_off_at_every_step_is_begun_again(extract, tmp_path, monkeypatch, target):
    class Killed(BaseException):
        pass

    source = extract(tmp_path / "shares", *all_of(2))
    whole = contents_of_files(merge_shares(shutil.copytree(source, tmp_path / "whole")).folder)
    owner, name = target
    original = getattr(owner, name)
    for calls in range(1, 30):
        folder = shutil.copytree(source, tmp_path / f"cut{calls}")
        left = [calls]

        def counting(*arguments, left=left, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, counting)
            try:
                merge_shares(folder)
                broken_off = False
            except Killed:
                broken_off = True
        if (folder / "index.json").exists():
            FeatureCache.open(folder)
        merge_shares(folder)
        assert contents_of_files(folder) == whole
        if not broken_off:
            break
    assert not broken_off
    assert calls > 1


# ---- shares that do not make a whole ------------------------------------------------------------


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_missing_and_doubled_shares_are_named(extract, tmp_path):
    folder = extract(tmp_path / "cache", "1/5", "2/5", "4/5")
    with pytest.raises(InputError, match=r"share 3, 5 of 5 is missing; .*shard=3/5"):
        merge_shares(folder)
    extract(folder, "3/5", "5/5")
    shutil.copytree(folder / "share-2-of-5", folder / "share-2-of-5 (copy)")
    with pytest.raises(InputError, match=r"share 2 of 5 is there twice, as .* share-2-of-5 \(copy"):
        merge_shares(folder)
    shutil.rmtree(folder / "share-2-of-5 (copy)")
    extract(folder, "1/2")
    with pytest.raises(InputError, match="holds shares of 2 and of 5"):
        merge_shares(folder)
    shutil.rmtree(folder / "share-1-of-2")
    assert len(merge_shares(folder).images) == 40


def test_shares_that_do_not_belong_together_are_refused(extract, tmp_path, names):
    folder = extract(tmp_path / "cache", *all_of(2))

    def refused(said, shard="2/2", **options):
        bad = shutil.copytree(folder, tmp_path / f"bad{len(list(tmp_path.iterdir()))}")
        shutil.rmtree(bad / f"share-{shard.replace('/', '-of-')}")
        extract(bad, shard, **options)
        with pytest.raises(InputError, match=said) as caught:
            merge_shares(bad)
        assert len(str(caught.value).splitlines()) <= 2
        assert not (bad / "index.json").exists()
        assert not list(bad.glob("*.npy*"))

    refused("share-2-of-2: cut from another list of images", images=[*names[:-1]])
    refused("share-2-of-2: cut from another list of images", images=names[::-1])
    refused("share-2-of-2: cut from another list of images, or with another b", batch_size=7)
    refused("share-2-of-2: mirrored, with grid, but share-1-of-2: not mirrored", mirrored=True)
    refused("not mirrored, without grid, but", keep_grid=False)
    refused("(?s)made with patch means .*not with", encoder=PatchMeans(fingerprint="1" * 16))
    edited(folder / "share-1-of-2" / "index.json", images=names[1:20] + names[:1])
    with pytest.raises(InputError, match="end to end are not the list of images"):
        merge_shares(folder)


def test_shares_that_are_damaged_are_refused(extract, tmp_path):
    source = extract(tmp_path / "cache", *all_of(2))
    damages = {
        "share.json": ("{}", "share.json: damaged"),
        "index.json": ("[]", "no feature index"),
        "grid.npy": ("", "grid.npy: damaged"),
    }
    for name, (text, said) in damages.items():
        folder = shutil.copytree(source, tmp_path / name)
        (folder / "share-2-of-2" / name).write_text(text)
        with pytest.raises(InputError, match=said):
            merge_shares(folder)
        assert not (folder / "index.json").exists()


def test_folders_that_hold_something_else(extract, tmp_path, names):
    with pytest.raises(InputError, match="no shares in it"):
        merge_shares(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    folder = extract(tmp_path / "cache", "", images=names[:8])
    before = contents_of_files(folder)
    extract(folder, *all_of(2))
    with pytest.raises(InputError, match="holds finished features of other images"):
        merge_shares(folder)
    assert contents_of_files(folder) == before


def test_shares_are_not_forgotten(extract, tmp_path):
    folder = extract(tmp_path / "cache", "1/2")
    with pytest.raises(InputError, match=r"merge them with\npython -m captioning\.shares merge "):
        extract(folder, "")


# ---- the command --------------------------------------------------------------------------------


def test_the_command_merges_several_folders(extract, tmp_path, monkeypatch, capsys):
    folders = [extract(tmp_path / "a", *all_of(2)), extract(tmp_path / "b", "2/2")]
    monkeypatch.setattr(sys, "argv", ["shares", "merge", *map(str, folders)])
    monkeypatch.delitem(sys.modules, "captioning.shares")  # or runpy warns of the second copy
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("captioning.shares", run_name="__main__")
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert out == ""
    first, error = err.splitlines()[-2:]
    assert first == (
        f"{folders[0]}: 40 images, 2 of them unreadable; {folders[0]}/share-* may be removed now"
    )
    assert error.startswith(f"error: {folders[1]}: share 1 of 2 is missing")
