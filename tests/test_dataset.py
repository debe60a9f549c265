import csv
import io
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.caption_files import Quirks, read_caption_csv, read_lines, read_token_file
from captioning.dataset import (
    find_layout,
    list_images,
    main,
    read_dataset,
    split_by_image,
)
from captioning.files import InputError

NAMES = [f"{number:02d}.jpg" for number in range(10)]
TOKEN_ROWS = [f"{name}#{n}\tA dog number {n} runs ." for name in NAMES for n in range(5)]


def make_images(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"an image")


def write_lines(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def write_splits(folder, **splits):
    for split, names in splits.items():
        write_lines(folder / f"Flickr_8k.{split}Images.txt", names)


@pytest.fixture
def official(tmp_path):
    """Ten images with five captions each in the official layout, without split files."""
    make_images(tmp_path / "Flicker8k_Dataset")
    write_lines(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt", TOKEN_ROWS)
    return tmp_path


def add_rows(folder, *rows, end="\n"):
    with (folder / "Flickr8k_text" / "Flickr8k.token.txt").open("ab") as file:
        for row in rows:
            file.write((row if isinstance(row, bytes) else row.encode()) + end.encode())


# ---- layouts ------------------------------------------------------------------------------------

TOKEN_LAYOUTS = [
    ("official", "Flicker8k_Dataset", "Flickr8k_text"),
    ("official", "Flickr8k_Dataset", "Flickr8k_text"),
    ("official", "Flicker8k_Dataset", "."),
    ("official", "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_text"),
    ("official", "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_text/Flickr8k_text"),
    ("kaggle-nested", "Flickr_Data/Images", "Flickr_Data/Flickr_TextData"),
    (
        "kaggle-nested",
        "Flickr_Data/Flickr_Data/Images",
        "Flickr_Data/Flickr_Data/Flickr_TextData",
    ),
    ("kaggle-nested", "Flickr_Data/Flickr_Data/Images", "Flickr_Data/Flickr_TextData"),
    ("kaggle-nested", "Images", "Flickr_TextData"),
]


@pytest.mark.parametrize(("layout", "images", "texts"), TOKEN_LAYOUTS)
def test_layouts_with_a_token_file(tmp_path, layout, images, texts):
    make_images(tmp_path / images)
    (tmp_path / "__MACOSX" / "Flicker8k_Dataset").mkdir(parents=True)
    write_lines(tmp_path / texts / "Flickr8k.token.txt", TOKEN_ROWS)
    write_splits(tmp_path / texts, train=NAMES[:6], dev=NAMES[6:8], test=NAMES[8:])
    dataset = read_dataset(tmp_path)
    assert dataset.layout == layout
    assert dataset.image_folder == tmp_path / images
    assert list(dataset.captions) == NAMES
    assert dataset.captions["03.jpg"] == [f"A dog number {n} runs ." for n in range(5)]
    assert dataset.splits == {"train": NAMES[:6], "dev": NAMES[6:8], "test": NAMES[8:]}
    assert dataset.split_origin == "official split files"
    assert dataset.summary == {}
    assert dataset.problems == []


def test_layout_with_a_csv_file(tmp_path):
    make_images(tmp_path / "Images", ["a.jpg", "b.jpg", "c.jpg"])
    write_lines(
        tmp_path / "captions.txt",
        [
            "image,caption",
            "a.jpg,A plain dog .",
            'a.jpg,"A dog , running ."',
            'b.jpg,"A sign says ""stop"" ."',
            'c.jpg,A dog "called" Rex .',
        ],
    )
    dataset = read_dataset(str(tmp_path))
    assert dataset.layout == "kaggle-csv"
    assert dataset.captions == {
        "a.jpg": ["A plain dog .", "A dog , running ."],
        "b.jpg": ['A sign says "stop" .'],
        "c.jpg": ['A dog "called" Rex .'],
    }
    assert dataset.split_origin == "seeded by image (seed 0, 80/10/10)"
    assert {split: len(names) for split, names in dataset.splits.items()} == {
        "train": 1,
        "dev": 1,
        "test": 1,
    }
    assert dataset.summary == {}


def test_split_files_beside_a_csv_file_are_used(tmp_path):
    make_images(tmp_path / "Images", ["a.jpg", "b.jpg"])
    write_lines(tmp_path / "captions.txt", ["image,caption", "a.jpg,A dog", "b.jpg,A cat"])
    write_splits(tmp_path, train=["b.jpg"], test=["a.jpg"])
    dataset = read_dataset(tmp_path)
    assert dataset.splits == {"train": ["b.jpg"], "test": ["a.jpg"]}


@pytest.mark.parametrize(
    ("prepare", "finding"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "an empty folder"),
        (lambda folder: folder.write_text("x"), "not a folder"),
        (lambda folder: make_images(folder / "Flicker8k_Dataset"), "not a data set"),
        (lambda folder: write_lines(folder / "captions.txt", ["a.jpg,b"]), "not a data set"),
    ],
)
def test_a_folder_without_data_set_tells_what_was_looked_for(tmp_path, prepare, finding):
    folder = tmp_path / "flickr8k"
    prepare(folder)
    assert find_layout(folder) is None
    with pytest.raises(InputError) as caught:
        read_dataset(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: {finding}")
    for layout in ("official", "kaggle-nested", "kaggle-csv"):
        assert layout in message
    assert message.endswith(f"python -m captioning.dataset download --to {folder}")
    assert message.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(official):
    tokens = official / "Flickr8k_text" / "Flickr8k.token.txt"
    tokens.chmod(0)
    with pytest.raises(InputError, match=r"Flickr8k\.token\.txt: cannot be read \(Permission"):
        read_dataset(official)


def test_a_disk_that_fails_is_an_input_error(official, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InputError, match=r"token\.txt: cannot be read \(Input/output error\)"):
        read_dataset(official)


# ---- images -------------------------------------------------------------------------------------


def test_captions_and_images_without_each_other_are_counted(official):
    add_rows(official, "2258277193_586949ec62.jpg.1#0\tA dog", "gone.jpg#0\tA cat")
    make_images(official / "Flicker8k_Dataset", ["lonely.jpg", "Thumbs.db", ".DS_Store"])
    dataset = read_dataset(official)
    assert list(dataset.captions) == NAMES
    assert dataset.summary == {
        "caption rows whose image is missing (skipped)": 2,
        "images without captions": 1,
        "files in the image folder that are not images": 2,
    }


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd.jpg", "a/../../b.jpg", "/etc/passwd.jpg", "..\\b.jpg", "C:\\b.jpg"],
)
def test_image_names_that_lead_outside_are_refused(official, name):
    add_rows(official, f"{name}#0\tA dog")
    write_splits(official / "Flickr8k_text", train=[*NAMES, name])
    make_images(official / "etc", ["passwd.jpg"])
    dataset = read_dataset(official)
    assert name not in dataset.captions
    assert dataset.splits == {"train": NAMES}
    assert dataset.summary["caption rows whose image name leads outside (refused)"] == 1
    assert dataset.summary["train entries without image or captions (skipped)"] == 1


def test_links_out_of_the_image_folder_are_refused(official):
    images = official / "Flicker8k_Dataset"
    make_images(official / "elsewhere", ["secret.jpg"])
    (images / "out.jpg").symlink_to(official / "elsewhere" / "secret.jpg")
    (images / "in.jpg").symlink_to("03.jpg")
    (images / "broken.jpg").symlink_to("nowhere.jpg")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "folder").symlink_to(official / "elsewhere")
    add_rows(official, *(f"{name}.jpg#0\tA dog" for name in ("out", "in", "broken", "loop")))
    add_rows(official, "folder/secret.jpg#0\tA dog")
    dataset = read_dataset(official)
    assert list(dataset.captions) == [*NAMES, "in.jpg"]
    assert dataset.summary["links to no file in the image folder (refused)"] == 3
    assert dataset.summary["caption rows whose image is missing (skipped)"] == 4


def test_an_image_folder_that_is_a_link_is_followed(official, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk") / "images"
    (official / "Flicker8k_Dataset").rename(disk)
    (official / "Flicker8k_Dataset").symlink_to(disk)
    assert list(read_dataset(official).captions) == NAMES


def test_images_in_subfolders_are_named_by_their_relative_path(tmp_path):
    make_images(tmp_path / "val", ["a.jpg"])
    make_images(tmp_path, ["b.PNG"])
    assert list_images(tmp_path, Quirks()) == {"val/a.jpg", "b.PNG"}


def test_an_image_folder_without_images_is_an_error(official):
    for name in NAMES:
        (official / "Flicker8k_Dataset" / name).unlink()
    with pytest.raises(InputError, match="Flicker8k_Dataset: holds no images"):
        read_dataset(official)


def test_captions_of_other_images_are_an_error(official):
    for name in NAMES:
        (official / "Flicker8k_Dataset" / name).rename(official / "Flicker8k_Dataset" / f"x{name}")
    with pytest.raises(InputError, match=r"none of its captions belongs to an image .*\(10 images"):
        read_dataset(official)


def test_many_images_are_listed_at_once_not_asked_for_one_by_one(tmp_path, monkeypatch):
    names = [f"{number}.jpg" for number in range(5_000)]
    make_images(tmp_path / "Images", names)
    write_lines(tmp_path / "captions.txt", ["image,caption", *(f"{name},A dog" for name in names)])
    asked = []
    for question in ("scandir", "stat"):
        answer = getattr(os, question)

        def recording(path, *arguments, question=question, answer=answer, **options):
            asked.append(question)
            return answer(path, *arguments, **options)

        monkeypatch.setattr(os, question, recording)
    assert len(read_dataset(tmp_path).captions) == 5_000
    assert asked.count("scandir") == 1
    assert 0 < asked.count("stat") < 100


# ---- caption files ------------------------------------------------------------------------------


def test_odd_spelling_is_kept_and_counted(official):
    add_rows(
        official,
        "00.jpg#5\t  A DOG RUNS .  ",
        "00.jpg#6\tA dog in a café .",
        "00.jpg#7\tA dog\tand a tab",
        "00.jpg#8\tA dog number 0 runs .",
    )
    dataset = read_dataset(official)
    assert dataset.captions["00.jpg"][5:] == [
        "A DOG RUNS .",
        "A dog in a café .",
        "A dog\tand a tab",
        "A dog number 0 runs .",
    ]
    assert dataset.summary == {
        "captions in capitals (kept)": 1,
        "captions with characters beyond ASCII (kept)": 1,
        "captions given twice for their image (kept)": 1,
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_byte_order_mark_and_blank_lines(tmp_path, end):
    make_images(tmp_path / "Flicker8k_Dataset")
    tokens = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    write_lines(tokens, ["\ufeff" + TOKEN_ROWS[0], "", "  \t ", *TOKEN_ROWS[1:]], end)
    write_lines(tmp_path / "Flickr_8k.devImages.txt", ["\ufeff00.jpg", "", "01.jpg"], end)
    dataset = read_dataset(tmp_path)
    assert dataset.captions["00.jpg"][0] == "A dog number 0 runs ."
    assert dataset.splits == {"dev": ["00.jpg", "01.jpg"]}
    assert dataset.summary.pop("lines that end in CRLF", 0) == (55 if end == "\r\n" else 0)
    assert dataset.summary == {
        "text files with a byte-order mark": 2,
        "blank lines": 3,
        "images in no split": 8,
    }


def test_broken_rows_are_skipped_counted_and_located(official):
    add_rows(
        official,
        "01.jpg#5 no tab",
        "01.jpg\tno number",
        "01.jpg#five\tno number",
        "#5\tno name",
        b"01.jpg#5\tnot \xff UTF-8",
        "01.jpg#0\tanother caption of the same number",
        "01.jpg#0\tA dog number 0 runs .",
        "01.jpg#6\t ",
        "01.jpg#7\t" + "x" * 10_000_000,
        "01.jpg#8\tgood .",
    )
    begin = time.perf_counter()
    dataset = read_dataset(official)
    assert time.perf_counter() - begin < 5
    assert dataset.captions["01.jpg"][5:] == ["good ."]
    assert dataset.summary == {
        "broken rows (skipped)": 7,
        "duplicate rows (skipped)": 1,
        "empty captions (skipped)": 1,
    }
    assert [problem.split(":")[0] for problem in dataset.problems] == [
        f"Flickr8k.token.txt, line {line}" for line in (51, 52, 53, 54, 55, 56, 59)
    ]
    assert all(len(problem) < 200 for problem in dataset.problems)


def test_broken_csv_rows_are_skipped_counted_and_located(tmp_path):
    make_images(tmp_path / "Images", ["a.jpg"])
    write_lines(
        tmp_path / "captions.txt",
        [
            "",
            " Image , Caption ",
            'a.jpg,"a quote left open',
            "a.jpg,A comma , unquoted",
            "a.jpg",
            ",no image",
            'a.jpg,"A quote" closed early',
            "a.jpg,",
            "a.jpg," + "x" * 10_000_000,
            "a.jpg," + '"' * 10_000,
            " a.jpg , good . ",
        ],
    )
    dataset = read_dataset(tmp_path)
    assert dataset.captions["a.jpg"][-1] == "good ."
    lines = [problem.split(",")[1] for problem in dataset.problems]
    assert [line.split(":")[0] for line in lines] == [f" line {n}" for n in (3, 4, 5, 6, 7, 9)]
    assert dataset.summary["broken rows (skipped)"] == 6
    assert dataset.summary["empty captions (skipped)"] == 1


def test_a_csv_file_without_header_loses_no_row(tmp_path):
    write_lines(tmp_path / "captions.txt", ["a.jpg,A dog", "image,caption"])
    captions = read_caption_csv(tmp_path / "captions.txt", Quirks())
    assert captions == {"a.jpg": ["A dog"], "image": ["caption"]}


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfd\x00", b"%PDF-1.4", b"a.jpg#0\t\n"])
@pytest.mark.parametrize("reader", [read_token_file, read_caption_csv])
def test_a_file_without_usable_row_is_an_error(tmp_path, reader, content):
    if reader is read_caption_csv:
        content = content.replace(b"#0\t", b",")
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"captions\.txt: holds no usable caption"):
        reader(path, Quirks())


# An end of line ends a row in either layout, whatever the quotes.
one_line = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
captions_of_images = st.dictionaries(
    one_line.map(str.strip).filter(lambda name: name and not name.startswith("\ufeff")),
    st.lists(one_line.map(str.strip).filter(bool), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


def read_bytes_with(reader, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.txt"
        path.write_bytes(content)
        quirks = Quirks()
        return reader(path, quirks), quirks


@given(
    captions_of_images.map(
        lambda captions: {name.replace("\t", "_"): texts for name, texts in captions.items()}
    )
)
def test_any_caption_survives_the_token_file(captions):
    rows = [f"{name}#{n}\t{text}\n" for name in captions for n, text in enumerate(captions[name])]
    read, quirks = read_bytes_with(read_token_file, "".join(rows).encode())
    assert read == captions
    assert not quirks.problems


@given(captions_of_images)
def test_any_caption_survives_the_csv_file(captions):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "caption"])
    writer.writerows((name, caption) for name in captions for caption in captions[name])
    read, quirks = read_bytes_with(read_caption_csv, text.getvalue().encode())
    assert read == captions
    assert not quirks.problems


# Bytes that meet the readers' own marks far more often than chance would.
file_content = st.one_of(
    st.binary(),
    st.lists(
        st.sampled_from([b"a.jpg", b"#0", b"\t", b",", b'"', b"\n", b"\r", b"\xff", b"\0", b" "])
    ).map(b"".join),
)


@pytest.mark.parametrize("reader", [read_token_file, read_caption_csv])
@given(content=file_content)
def test_any_bytes_are_read_or_refused(reader, content):
    try:
        captions, _ = read_bytes_with(reader, content)
    except InputError:
        return
    assert captions
    assert all(name and texts and all(texts) for name, texts in captions.items())


@given(content=file_content)
def test_every_line_is_yielded_or_counted(content):
    lines, quirks = read_bytes_with(lambda path, quirks: list(read_lines(path, quirks)), content)
    counted = quirks.counts["blank lines"] + quirks.counts["broken rows (skipped)"]
    assert len(lines) + counted == len(content.removeprefix(b"\xef\xbb\xbf").splitlines())


# ---- splits -------------------------------------------------------------------------------------


def test_the_official_files_that_exist_are_used_and_none_is_invented(official):
    texts = official / "Flickr8k_text"
    write_splits(texts, train=[*NAMES[:6], "00.jpg", "gone.jpg"], dev=NAMES[6:8])
    dataset = read_dataset(official)
    assert dataset.splits == {"train": NAMES[:6], "dev": NAMES[6:8]}
    assert dataset.split_origin == "official split files"
    assert dataset.summary == {
        "split entries given twice": 1,
        "train entries without image or captions (skipped)": 1,
        "images in no split": 2,
    }
    assert "train 6, dev 2, no test images (official split files)" in dataset.describe()


def test_a_split_whose_images_are_all_missing_is_absent(official):
    write_splits(official, train=NAMES, test=["gone.jpg", "lost.jpg"])
    dataset = read_dataset(official)
    assert dataset.splits == {"train": NAMES}
    assert dataset.summary["test entries without image or captions (skipped)"] == 2


def test_split_files_without_usable_entry_are_an_error(official):
    write_splits(official, train=["gone.jpg"], dev=[])
    with pytest.raises(InputError, match=r"devImages.txt, .*trainImages.txt: no entry names"):
        read_dataset(official)


@pytest.mark.parametrize("shared", ["03.jpg", "absent.jpg"])
def test_an_image_in_two_splits_is_an_error(official, shared):
    texts = official / "Flickr8k_text"
    write_splits(texts, train=[shared, *NAMES[:2]], dev=NAMES[4:6], test=["09.jpg", shared])
    with pytest.raises(InputError) as caught:
        read_dataset(official)
    assert str(caught.value).startswith(
        f"{shared} is in two splits, {texts / 'Flickr_8k.trainImages.txt'}"
        f" and {texts / 'Flickr_8k.testImages.txt'}"
    )


@given(st.sets(st.text(min_size=1), min_size=1, max_size=40), st.integers())
def test_a_seeded_split_gives_every_image_one_place(images, seed):
    images = {image.encode(errors="replace").decode() for image in images}
    splits = split_by_image(images, seed)
    placed = [image for names in splits.values() for image in names]
    assert sorted(placed) == sorted(images)
    assert splits["train"]
    assert len(splits) == (3 if len(images) >= 3 else 1)
    assert splits == split_by_image(sorted(images, reverse=True), seed)


def test_a_seeded_split_has_its_proportions_and_hangs_on_the_seed():
    images = [f"{number}.jpg" for number in range(8091)]
    splits = split_by_image(images, 0)
    sizes = {split: len(names) for split, names in splits.items()}
    assert sizes == {"train": 6473, "dev": 809, "test": 809}
    other = split_by_image(images, 1)
    shared = set(splits["test"]) & set(other["test"])
    assert 40 < len(shared) < 130  # 81 expected by chance


def test_the_seed_is_told(official):
    dataset = read_dataset(official, seed=7)
    assert dataset.split_origin == "seeded by image (seed 7, 80/10/10)"
    assert dataset.splits == split_by_image(NAMES, 7)
    # The draw is part of the contract: scores are reported on it.
    assert split_by_image(NAMES, 0)["dev"] == ["04.jpg"]


# ---- the printed summary ------------------------------------------------------------------------


def test_the_summary_shows_the_first_problems_and_counts_the_rest(official):
    add_rows(official, *(f"broken {number}" for number in range(7)))
    lines = read_dataset(official).describe().splitlines()
    assert lines == [
        f"layout: official, images in {official / 'Flicker8k_Dataset'}",
        "captions: 50 of 10 images (5.00 an image)",
        "splits: train 8, dev 1, test 1 images (seeded by image (seed 0, 80/10/10))",
        "  7 broken rows (skipped)",
        *(
            f"  Flickr8k.token.txt, line {51 + number}: expected image.jpg#0, a tab, a caption;"
            f" got 'broken {number}'"
            for number in range(5)
        ),
        "  and 2 more broken rows",
    ]


def test_the_command_leaves_a_data_set_as_it_is(official, capsys):
    before = sorted(official.rglob("*"))
    assert main(["download", "--to", str(official)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{official}: a data set is already there, nothing to do\n"
    assert sorted(official.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["upload"], ["download", "--no-such-option"]])
def test_a_wrong_command_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "; see python -m captioning.dataset" in err
    assert err.count("\n") == 1
