"""Data sets beyond Flickr8k, as hand-made files of the exact format."""

import json
import shutil
import unicodedata

import pytest

from captioning import caption_json
from captioning.caption_files import Quirks
from captioning.caption_json import read_coco, read_karpathy
from captioning.dataset import ImageNames, read_dataset
from captioning.files import InputError

NAMES = ["1000092795.jpg", "10002456.jpg", "2199200615.jpg", "36979.jpg"]
HEADER = "image_name| comment_number| comment"
BROKEN_ROW = "2199200615.jpg| 4   A dog runs across the grass ."
RESULTS = [f"{name}| {n}| A dog , number {n} , runs ." for name in NAMES for n in range(2)]
TOKENS = [f"{name}#{n}\tA dog , number {n} , runs ." for name in NAMES for n in range(2)]
CAPTIONS = {name: [f"A dog , number {n} , runs ." for n in range(2)] for name in NAMES}


def make_images(folder, names=NAMES):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def karpathy(splits, filepaths=None):
    """Karpathy's JSON: image name -> split."""
    images = []
    for number, (name, split) in enumerate(splits.items()):
        place = {"filepath": filepaths[name]} if filepaths else {}
        texts = [f"K {n} of {name}" for n in range(2)]
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": number * 2 + n}
            for n, text in enumerate(texts)
        ]
        rest = {"sentids": [number * 2, number * 2 + 1], "imgid": number}
        entry = {**place, "filename": name, "split": split, "sentences": sentences}
        images.append(entry | rest)
    return {"images": images, "dataset": "made"}


SPLIT_OF = dict(zip(NAMES, ("train", "restval", "val", "test"), strict=True))
SPLITS = {"train": NAMES[:2], "dev": [NAMES[2]], "test": [NAMES[3]]}


# ---- Flickr30k ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "results"),
    [
        ("flickr30k_images", "."),
        ("flickr30k_images", "flickr30k_images"),
        ("flickr30k_images/flickr30k_images", "flickr30k_images"),
        ("flickr30k_images/flickr30k_images", "flickr30k_images/flickr30k_images"),
        ("flickr30k-images", "."),
    ],
)
def test_flickr30k_with_its_broken_row(tmp_path, images, results):
    make_images(tmp_path / images)
    write(tmp_path / results / "results.csv", "\n".join([HEADER, *RESULTS[:4], BROKEN_ROW]))
    data = read_dataset(tmp_path)
    assert data.layout == "flickr30k-csv"
    assert data.image_folder == tmp_path / images
    assert data.captions == {name: CAPTIONS[name] for name in NAMES[:2]}
    assert data.summary == {"broken rows (skipped)": 1, "images without captions": 2}
    expected = "expected image.jpg| 0| a caption; got "
    assert data.problems == [f"results.csv, line 6: {expected}{BROKEN_ROW[:40]!r}..."]
    assert data.split_origin == "seeded by image (seed 0, 80/10/10)"


def test_a_caption_of_flickr30k_may_hold_its_separator(tmp_path):
    make_images(tmp_path / "flickr30k_images", NAMES[:1])
    write(tmp_path / "results.csv", f"{HEADER}\n{NAMES[0]}| 0| a|b , c\n{NAMES[0]}| 1| \n")
    data = read_dataset(tmp_path)
    assert data.captions == {NAMES[0]: ["a|b , c"]}
    assert data.summary == {"empty captions (skipped)": 1}


def test_flickr30k_tokens_and_karpathys_splits_beside_them(tmp_path):
    make_images(tmp_path / "flickr30k_images")
    write(tmp_path / "results_20130124.token", "\n".join(TOKENS))
    content = karpathy(SPLIT_OF | {"gone.jpg": "train"})
    content["images"].insert(0, {"filename": "broken"})
    write(tmp_path / "dataset_flickr30k.json", content)
    write(tmp_path / "dataset_flickr8k.json", karpathy(dict.fromkeys(NAMES, "test")))
    data = read_dataset(tmp_path)
    assert data.layout == "flickr30k"
    assert data.captions == CAPTIONS
    assert data.splits == SPLITS
    assert data.split_origin == "Karpathy's splits, dataset_flickr30k.json"
    assert data.summary == {
        "broken rows (skipped)": 1,
        "train entries without image or captions (skipped)": 1,
    }
    (problem,) = data.problems
    assert problem.startswith("dataset_flickr30k.json, image 1: expected filename, split and")


# ---- Karpathy's files alone ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("flickr8k", "Flicker8k_Dataset"),
        ("flickr8k", "Images"),
        ("flickr30k", "flickr30k_images"),
        ("flickr30k", "flickr30k_images/flickr30k_images"),
    ],
)
def test_karpathys_file_gives_captions_and_splits(tmp_path, name, images):
    make_images(tmp_path / images)
    write(tmp_path / f"dataset_{name}.json", karpathy(SPLIT_OF))
    data = read_dataset(tmp_path)
    assert data.layout == f"karpathy-{name}"
    assert data.captions == {image: [f"K {n} of {image}" for n in range(2)] for image in NAMES}
    assert data.splits == SPLITS
    assert data.split_origin == f"Karpathy's splits, dataset_{name}.json"
    assert data.summary == {}


def test_an_image_in_two_of_karpathys_splits_is_an_error(tmp_path):
    make_images(tmp_path / "Images")
    content = karpathy(SPLIT_OF)
    content["images"].append({**content["images"][0], "split": "test"})
    write(tmp_path / "dataset_flickr8k.json", content)
    with pytest.raises(InputError, match=r"two splits, train and test of .*flickr8k\.json"):
        read_dataset(tmp_path)


def test_broken_entries_are_skipped_counted_and_located(tmp_path):
    good = karpathy(SPLIT_OF)["images"]
    sentence = {"raw": "Two\nlines .  ", "tokens": []}
    broken = [
        None,
        {"filename": 7, "split": "train", "sentences": []},
        {"filename": "x.jpg", "split": "training", "sentences": [sentence]},
        {"filename": "y\udc80.jpg", "split": "train", "sentences": [sentence]},
        {"filename": "x.jpg", "split": "train", "sentences": [sentence, {}, {"raw": "\ud83d"}]},
        {"filename": "x.jpg", "split": "train", "sentences": [{"raw": "x" * 100_000}]},
        {"filename": "x.jpg", "split": "train", "sentences": [{"raw": " \n"}]},
    ]
    path = tmp_path / "dataset_coco.json"
    write(path, {"info": {"images": "none"}, "images": [*broken, *good]})
    quirks = Quirks()
    captions, splits = read_karpathy(path, quirks)
    assert captions["x.jpg"] == ["Two lines ."]
    assert list(captions) == ["x.jpg", *NAMES]
    assert splits["train"].images == ["x.jpg"] * 3 + NAMES[:2]
    where = [problem.split(":")[0] for problem in quirks.problems]
    assert where == [f"dataset_coco.json, image {number}" for number in (1, 2, 3, 4, 5, 5, 6)]
    assert "split 'training', expected one of train, restval, val, test" in quirks.problems[2]
    assert quirks.counts["captions of several lines (joined)"] == 1
    assert quirks.counts["empty captions (skipped)"] == 1


# ---- COCO ---------------------------------------------------------------------------------------


def coco_names(year, split, ids):
    prefix = f"COCO_{split}{year}_" if year == 2014 else ""
    return [f"{prefix}{number:012}.jpg" for number in ids]


def make_coco(folder, year=2014, root="", train=(9, 25, 30), val=(42, 73)):
    """Images and annotations; each image's captions stand apart from one another in the file."""
    for split, ids in (("train", train), ("val", val)):
        names = coco_names(year, split, ids)
        make_images(folder / root / f"{split}{year}", names)
        images = [
            {"license": 5, "file_name": name, "coco_url": "", "height": 1, "width": 1, "id": number}
            for name, number in zip(names, ids, strict=True)
        ]
        annotations = [
            {"image_id": number, "id": 100 * n + number, "caption": f"C {n} of {number}"}
            for n in range(2)
            for number in reversed(ids)
        ]
        content = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
        write(folder / "annotations" / f"captions_{split}{year}.json", content)
    return folder


@pytest.mark.parametrize("root", ["", "images"])
@pytest.mark.parametrize("year", [2014, 2017])
def test_coco_with_its_own_splits(tmp_path, year, root):
    make_coco(tmp_path, year, root)
    make_images(tmp_path / root / f"test{year}", ["unused.jpg"])
    data = read_dataset(tmp_path)
    train = [f"train{year}/{name}" for name in coco_names(year, "train", (9, 25, 30))]
    dev = [f"val{year}/{name}" for name in coco_names(year, "val", (42, 73))]
    assert data.layout == f"coco-{year}"
    assert data.image_folder == tmp_path / root
    assert data.captions[train[1]] == ["C 0 of 25", "C 1 of 25"]
    assert data.splits == {"train": train, "dev": dev}
    assert data.split_origin == (
        f"COCO's own: captions_train{year}.json is train, captions_val{year}.json is dev"
    )
    assert data.summary == {}
    assert f"train 3, dev 2, no test images (COCO's own: captions_train{year}" in data.describe()


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("place", ["", "annotations"])
def test_karpathys_splits_of_coco(tmp_path, year, place):
    """His file names the images of 2014; those of 2017 are the same, by other names."""
    make_coco(tmp_path, year)
    content = coco_karpathy()
    write(tmp_path / place / "dataset_coco.json", content)
    data = read_dataset(tmp_path)
    train, val = f"train{year}/", f"val{year}/"
    assert {split: len(names) for split, names in data.splits.items()} == {
        "train": 3,
        "dev": 1,
        "test": 1,
    }
    assert data.splits["dev"] == [val + coco_names(year, "val", [42])[0]]
    assert data.splits["train"][-1] == train + coco_names(year, "train", [30])[0]
    assert data.split_origin == "Karpathy's splits, dataset_coco.json"
    assert data.captions[data.splits["dev"][0]] == ["C 0 of 42", "C 1 of 42"]
    assert data.summary == {}

    shutil.rmtree(tmp_path / "annotations")
    write(tmp_path / place / "dataset_coco.json", content)
    alone = read_dataset(tmp_path)
    assert alone.layout == "karpathy-coco"
    assert alone.splits == data.splits
    assert alone.captions[alone.splits["dev"][0]][0] == "K 0 of COCO_val2014_000000000042.jpg"


def coco_karpathy():
    train, val = coco_names(2014, "train", (9, 25, 30)), coco_names(2014, "val", (42, 73))
    places = dict.fromkeys(train, "train2014") | dict.fromkeys(val, "val2014")
    splits = zip([*train, *val], ("train", "restval", "train", "val", "test"), strict=True)
    return karpathy(dict(splits), places)


def test_half_of_coco_is_told(tmp_path):
    make_coco(tmp_path)
    (tmp_path / "annotations" / "captions_val2014.json").unlink()
    data = read_dataset(tmp_path)
    assert list(data.splits) == ["train"]
    assert data.summary == {"images without captions": 2}


def test_broken_annotations_are_skipped_counted_and_located(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": 2}, []]
    annotations = [
        {"image_id": 1, "caption": "A dog"},
        {"image_id": 7, "caption": "A cat"},
        {"image_id": "1", "caption": "A cow"},
        {"image_id": 1},
    ]
    path = tmp_path / "captions.json"
    write(path, {"annotations": annotations, "images": images})  # either list may come first
    quirks = Quirks()
    assert read_coco(path, quirks) == {"a.jpg": ["A dog"]}
    where = [problem.split(", ", 1)[1].split(":")[0] for problem in quirks.problems]
    assert where == ["annotation 3", "annotation 4", "image 2", "image 3", "image 4", *where[5:]]
    assert quirks.problems[5].endswith("annotation 2: no image has the id 7")


# ---- JSON as such -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON, or cut short"),
        ("[]", "not JSON, or cut short"),
        ('{"images": [{"filename": "a.jpg"}, {"file', "not JSON, or cut short"),
        ('{"images": [] "a": 1}', "not JSON, or cut short"),
        ('{"images": []} {}', "Extra data"),
        ('{"images": [9' + "9" * 9999 + "]}", "not JSON, or cut short"),
        ('{"images": ' + "[" * 100_000, "nested too deeply"),
        (b'{"images": ["\xff"]}', "not JSON, or cut short"),
        ("{}", "no list 'images' in it"),
        ('{"images": {"a": 1}}', "no list 'images' in it"),
        ('{"images": []}', "holds no usable caption"),
        ('\ufeff {"x": [1, {}], "images": [ {} , 1 ] }\n', "holds no usable caption"),
    ],
)
def test_what_is_no_file_of_captions_is_refused(tmp_path, content, said):
    path = tmp_path / "dataset.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as caught:
        read_karpathy(path, Quirks())
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_json, "MAX_BYTES", 1_000_000)
    path = tmp_path / "dataset.json"
    with path.open("wb") as file:
        file.truncate(1_000_001)
    with pytest.raises(InputError, match="expected at most 1 MB"):
        read_karpathy(path, Quirks())


def test_entries_are_not_held_in_memory(tmp_path):
    """The tokens of Karpathy's file, most of it, are dropped entry by entry."""
    import tracemalloc

    sentences = [{"raw": "A dog runs .", "tokens": [f"word{n}" for n in range(300)]}]
    images = [{"filename": f"{n}", "split": "train", "sentences": sentences} for n in range(400)]
    path = tmp_path / "dataset.json"
    write(path, {"images": images})
    size = path.stat().st_size
    tracemalloc.start()
    captions, _ = read_karpathy(path, Quirks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(captions) == 400
    assert peak < 3 * size


# ---- one's own photographs ----------------------------------------------------------------------

OWN = {"a.jpg": ["A dog", "A cat, asleep"], "b.PNG": ["Ein Mädchen läuft"]}


@pytest.mark.parametrize("place", ["", "images", "Images"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "jsonl, a list"])
def test_own_photographs(tmp_path, place, kind):
    make_images(tmp_path / place, OWN)
    if kind == "csv":
        rows = ["image,caption", "a.jpg,A dog", 'a.jpg,"A cat, asleep"', "b.PNG,Ein Mädchen läuft"]
    elif kind == "jsonl":
        pairs = [(name, text) for name, texts in OWN.items() for text in texts]
        rows = [json.dumps({"image": name, "caption": text}) for name, text in pairs]
    else:
        rows = [json.dumps({"image": name, "captions": texts}) for name, texts in OWN.items()]
    write(tmp_path / f"captions.{kind[:5].strip(',')}", "\n".join(rows))
    data = read_dataset(tmp_path)
    assert data.layout == f"plain-{kind.split(',')[0]}"
    assert data.image_folder == tmp_path / place
    assert data.captions == OWN
    assert data.summary == {"captions with characters beyond ASCII (kept)": 1}


def test_names_as_seen_from_the_caption_file(tmp_path):
    make_images(tmp_path / "images", ["a.jpg", "deep/b.jpg"])
    rows = ["image,caption", "images/a.jpg,A dog", "deep/b.jpg,A cat", "images/../../a.jpg,x"]
    write(tmp_path / "captions.csv", "\n".join(rows))
    data = read_dataset(tmp_path)
    assert data.captions == {"a.jpg": ["A dog"], "deep/b.jpg": ["A cat"]}
    assert data.summary == {"caption rows whose image name leads outside (refused)": 1}


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_image_names_may_be_composed_or_not(tmp_path, on_disk, in_file):
    name = "Mädchen am Café.jpg"
    make_images(tmp_path, [unicodedata.normalize(on_disk, name)])
    write(tmp_path / "captions.csv", f"{unicodedata.normalize(in_file, name)},A girl")
    assert read_dataset(tmp_path).captions == {unicodedata.normalize(on_disk, name): ["A girl"]}


def test_broken_lines_are_skipped_counted_and_located(tmp_path):
    make_images(tmp_path, ["a.jpg"])
    rows = [
        '{"image": "a.jpg", "caption": "good ."}',
        "{",
        "[]",
        "[" * 50_000,
        "9" * 5000,
        '{"image": "a.jpg"}',
        '{"image": "", "caption": "x"}',
        '{"image": "a.jpg", "captions": "x"}',
        '{"image": "a.jpg", "captions": ["also good .", 7, " "]}',
        '{"image": "a.jpg", "caption": "half \\ud83d"}',
        '{"image": "../a.jpg", "caption": "outside"}',
        "",
    ]
    write(tmp_path / "captions.jsonl", "\n".join(rows))
    data = read_dataset(tmp_path)
    assert data.captions == {"a.jpg": ["good .", "also good ."]}
    lines = [problem.split(":")[0] for problem in data.problems]
    assert lines == [f"captions.jsonl, line {n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 10)]
    assert data.summary["caption rows whose image name leads outside (refused)"] == 1
    assert data.summary["empty captions (skipped)"] == 1


# ---- names --------------------------------------------------------------------------------------


def test_a_file_name_in_two_subfolders_is_nobodys():
    names = ImageNames({"a/x.jpg", "b/x.jpg", "c/y.jpg"}, "images", by_file_name=True)
    assert names.find("x.jpg") is None
    assert names.find("a/x.jpg") == "a/x.jpg"
    assert names.find("y.jpg") == names.find("z/y.jpg") == "c/y.jpg"
    assert names.find("../c/y.jpg") is None
    assert names.find("/c/y.jpg") is None
    assert ImageNames({"c/y.jpg"}, "images").find("y.jpg") is None
