"""Captions of folders: CSV, text files and metadata, killed, repeated and rejected."""

import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioning.__main__ import main
from captioning.captions import OPENED_AT_ONCE, Caption, PhotoCaptioner
from captioning.errors import InputError
from captioning.extras.serve import caption as command
from captioning.extras.serve.folders import TAGS

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="needs exiftool")


class Colours(PhotoCaptioner):
    """Says how red a picture is; stops like a kill after `lives` pictures."""

    image_size, has_attention, lives, word = 8, False, 10**9, "red"

    def encode(self, pixels):
        return np.array([picture[0, 0, :1] for picture in pixels], np.float32)

    def search(self, features, *search):
        texts = [f"{self.word} {value:.0f}" for (value,) in features]
        return [Caption(text, tuple(text.split()), (0.5, 0.5, 0.5)) for text in texts]

    def caption_each(self, images, **search):
        for place, found in enumerate(super().caption_each(images, **search)):
            if place == self.lives:
                raise KeyboardInterrupt
            yield found


@pytest.fixture
def captioner(monkeypatch):
    found = Colours()
    monkeypatch.setattr(command, "find_captioner", lambda options: found)
    return found


@pytest.fixture
def album(tmp_path):
    """Pictures 0.png to 69.png, of which each is as red as its name; some in inner folders."""
    folder = tmp_path / "album"
    for number in range(2 * OPENED_AT_ONCE + 6):
        inner = folder / ("" if number < 60 else "inner/deep")
        inner.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(inner / f"{number}.png")
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "1.png", folder / ".hidden")
    return folder


def rows(path):
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]


def test_folders_in_folders_are_captioned_into_a_table_and_text_files(album, captioner, capsys):
    table = album.parent / "new" / "captions.csv"
    arguments = ["caption", str(album), "--csv", str(table), "--sidecar"]
    assert main([*arguments, "--recursive"]) == 0
    out, err = capsys.readouterr()
    paths = sorted([*album.glob("*.png"), *album.glob("inner/deep/*.png")])
    assert len(out.splitlines()) == len(paths) == 70
    assert rows(table) == [[str(path), f"red {path.stem}", "0.5000"] for path in paths]
    assert all(p.with_suffix(".txt").read_text() == f"red {p.stem}\n" for p in paths)
    assert not list(album.glob(".hidden/*.txt"))
    assert err == "70 captioned, 0 had captions, 0 failed\n"
    assert main(arguments) == 0
    assert capsys.readouterr() == ("", "0 captioned, 60 had captions, 0 failed\n")


def test_a_killed_run_resumes_and_drops_a_torn_row(album, captioner):
    table = album.parent / "captions.csv"
    arguments = ["caption", str(album), "--csv", str(table), "--sidecar"]
    captioner.lives = 40
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    text = table.read_bytes()
    assert len(rows(table)) == 40
    captioner.lives = 10**9
    for cut in (1, 9, len(text) - 3, len(text) - 11, len(text)):
        table.write_bytes(text[:-cut])
        assert main(arguments) == 0
        expected = [[str(p), f"red {p.stem}", "0.5000"] for p in album.glob("*.png")]
        assert sorted(rows(table)) == sorted(expected)


def test_existing_captions_are_kept_replaced_or_appended_to(album, captioner):
    table, image = album.parent / "captions.csv", album / "7.png"
    arguments = ["caption", str(image), "--csv", str(table), "--sidecar", "--existing"]
    main([*arguments[:-1]])
    image.with_suffix(".txt").write_text("by hand")  # without a line end
    captioner.word = "blue"
    texts = {"skip": "by hand", "append": "by hand\nblue 7\n", "overwrite": "blue 7\n"}
    words = {"skip": ["red"], "append": ["red", "blue"], "overwrite": ["blue"]}
    for existing, text in texts.items():
        assert main([*arguments, existing]) == 0
        assert image.with_suffix(".txt").read_text() == text
        assert rows(table) == [[str(image), f"{word} 7", "0.5000"] for word in words[existing]]


def test_pictures_of_one_name_are_reported_and_skipped(album, captioner, capsys):
    shutil.copy(album / "3.png", album / "4.jpeg")
    (album / "5.png").write_text("no picture")
    assert main(["caption", str(album), "--sidecar"]) == 1
    assert "4.txt: would be the text file of 4.jpeg, 4.png" in (err := capsys.readouterr().err)
    assert "58 captioned, 0 had captions, 3 failed" in err
    assert not any((album / name).exists() for name in ("4.txt", "5.txt"))


def test_what_cannot_be_written_is_one_error_and_nothing_is_lost(album, captioner, capsys):
    (album / "notes.csv").write_text("name;caption\n1;mine")
    (album / "odd.csv").write_text('image,caption,confidence\n1.png,"red,0.5\n2.png,a,0.5\n')
    expected = {"notes.csv": "expected a CSV", "1.png": "expected a CSV", "inner": "is a folder"}
    expected |= {"odd.csv": "quote in the row of 1.png", "1.png/x.csv": "cannot be written"}
    for name, message in expected.items():
        before = {path: path.read_bytes() for path in album.glob("[!.]*.*")}
        with pytest.raises(InputError, match=message):
            main(["caption", str(album), "--csv", str(album / name)])
        assert {path: path.read_bytes() for path in album.glob("[!.]*.*")} == before
    with pytest.raises(InputError, match="cannot be written"):
        main(["caption", "/proc/version", "--sidecar"])
    text = album / "1.txt"
    text.write_text("mine")
    text.chmod(0o444)
    assert main(["caption", str(album), "--sidecar", "--existing", "overwrite"]) == 1
    assert text.read_text() == "mine"
    assert "1.txt: is read-only" in capsys.readouterr().err


def tags(path):
    command = ["exiftool", "-j", "-G1", "-a", "-u", "-b", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]
    changing = re.compile("Source|System|ExifTool|.*Offsets")
    return {name: value for name, value in found.items() if not changing.match(name)}


@needs_exiftool
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_metadata_is_written_and_all_else_stays(suffix, tmp_path, captioner):
    name = "two\nlines é" if suffix == "png" else "a $picture %d @home & <"
    path = tmp_path / f"{name}.{suffix}"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (exif := Image.Exif()).update({0x010E: "a description of old", 0x0112: 6})
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path, exif=exif, icc_profile=profile)
    more = ["-XMP-dc:Title=é & ü", "-XMP-dc:Subject=x", "-GPSLatitude=3", "-XMPToolkit=another"]
    subprocess.run(["exiftool", "-q", "-overwrite_original", *more, str(path)], check=True)
    path.chmod(0o640)
    before, pixels, time = tags(path), np.asarray(Image.open(path)), path.stat().st_mtime
    for existing, times in (("skip", 1), ("skip", 1), ("append", 2), ("overwrite", 1)):
        assert main(["caption", str(path), "--write-metadata", "--existing", existing]) == 0
        after = tags(path)
        texts = {after.pop(tag) for tag in TAGS}
        assert [len(text.split("\n")) for text in texts] == [times]
        assert after == before
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
        assert (path.stat().st_mode & 0o777, path.stat().st_mtime) == (0o640, time)
    assert list(tmp_path.iterdir()) == [path]


@needs_exiftool
def test_a_picture_that_cannot_hold_metadata_is_kept(album, captioner, capsys):
    Image.new("RGB", (8, 8)).save(album / "a.bmp")
    (album / "1.png").chmod(0o444)
    before = {path: path.read_bytes() for path in album.glob("[!.]*.*")}
    paths = [str(album / name) for name in ("a.bmp", "1.png", "2.png")]
    assert main(["caption", *paths, "--write-metadata"]) == 1
    assert [p.name for p, data in before.items() if p.read_bytes() != data] == ["2.png"]
    err = capsys.readouterr().err
    assert "a.bmp: its metadata cannot be written" in err and "1.png: is read-only" in err


def test_without_exiftool_the_error_says_how_to_install_it(album, captioner, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="apt install libimage-exiftool-perl"):
        main(["caption", str(album), "--write-metadata"])
