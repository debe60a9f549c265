"""The sample data set: its layout, the truth of its captions, its pictures, its worth as a test."""

import re
from collections import Counter
from pathlib import Path

import draw_sample
import drawing
import numpy as np
import pytest
from PIL import Image

from captioning import metrics
from captioning.datasets import read_dataset

SAMPLE = Path(__file__).parents[1] / "data" / "sample"

# Listed here again, so that the captions are read without the code that wrote them.
COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3}
COLOURS = "red|yellow|green|blue|pink|black|white|brown"
KINDS = "ball|boat|boy|car|cat|dog|duck|girl|house|kite|tree|umbrella"
PLACES = {
    "beach": r"beach|sand|sandy",
    "snow": r"snow|snowy",
    "grass": r"grass|grassy|(?:in|over) a field",
    "night": r"night|stars|dark",
    "water": r"water|sea",
    "street": r"street|road",
}
MENTION = re.compile(
    rf"\b(?P<count>an?|two|three) (?:(?P<colour>{COLOURS}) )?(?P<kind>{KINDS})s?\b"
    rf"(?: in (?:a )?(?P<clothes>{COLOURS}) (?:shirts?|dress(?:es)?)\b)?"
)
DOING = r"(?:is )?(?:(?:lying|parked|sitting|standing|flying|floating|swimming|growing) )?"


def boxes_of(scene):
    """Yield each thing with its left, top, right and bottom edge in pixels of the picture."""
    for thing, x, foot, height, *_ in draw_sample.lay_out(scene):
        half = height * draw_sample.KINDS[thing.kind].width / 2
        yield thing, (x - half, foot - height, x + half, foot)


def left_of(a, b):
    return (a[0] + a[2]) / 2 + 60 < (b[0] + b[2]) / 2 and a[2] < b[0] + 12


def above(a, b):
    flies = a[3] < b[1] + 20
    covers = abs(a[3] - b[3]) < 15  # an umbrella: its pole stands beside what it covers
    return (flies or covers) and a[1] < b[1] - 20 and a[0] < (b[0] + b[2]) / 2 < a[2]


def on(a, b):
    return b[1] - 5 < a[3] < b[3] - 15 and b[0] < (a[0] + a[2]) / 2 < b[2]


def behind(a, b):
    return a[3] < b[3] - 20 and b[1] < a[3] and a[0] < b[2] and b[0] < a[2]


def beside(a, b):
    return left_of(a, b) or left_of(b, a)


RELATIONS = {  # words between two mentions -> what they say of the boxes
    "to the left of": left_of,
    "to the right of": lambda a, b: left_of(b, a),
    "next to": beside,
    "beside": beside,
    "above": above,
    "over": above,
    "under": lambda a, b: above(b, a),
    "below": lambda a, b: above(b, a),
    "behind": behind,
    "in front of": lambda a, b: behind(b, a),
    "on": on,
    "on top of": on,
    "with": lambda a, b: on(b, a),
    "and": lambda a, b: True,
}


@pytest.fixture(scope="module")
def dataset():
    return read_dataset(SAMPLE)


@pytest.fixture(scope="module")
def scenes():
    return {scene.name: scene for scene in draw_sample.sample_scenes()}


def read_picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


def test_the_layout_is_flickr8k_s_and_complete(dataset):
    assert dataset.layout == "official"
    assert dataset.image_folder == SAMPLE / "Flicker8k_Dataset"
    assert {split: len(names) for split, names in dataset.splits.items()} == draw_sample.SPLITS
    assert (dataset.summary, dataset.problems) == ({}, [])
    names = [name for split in dataset.splits.values() for name in split]
    assert sorted(names) == sorted(dataset.captions)  # the splits are disjoint
    assert len(names) == 400


def test_every_image_has_five_different_captions_in_the_style_of_flickr8k(dataset):
    for name, captions in dataset.captions.items():
        assert len(set(captions)) == len(captions) == 5, name
        for caption in captions:
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+){3,} \.", caption), (name, caption)


def test_pictures_are_small_rgb_squares(dataset):
    for name in dataset.captions:
        with Image.open(dataset.image_folder / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224)), name
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*.*")) < 4_000_000


def test_held_out_scenes_are_new_combinations_of_known_words(dataset, scenes):
    words, combinations = {}, {}
    for split, names in dataset.splits.items():
        captions = [caption for name in names for caption in dataset.captions[name]]
        words[split] = Counter(word for text in captions for word in metrics.scoring_tokens(text))
        combinations[split] = {(scenes[name].things, scenes[name].relation) for name in names}
    assert 80 <= len(words["train"]) <= 150
    for split in ("dev", "test"):
        assert min(words["train"][word] for word in words[split]) >= 5
        assert len(combinations[split]) == 50
        assert not combinations[split] & combinations["train"]


def test_captions_are_those_the_script_writes(dataset, scenes):
    written = {name: draw_sample.write_captions(scene) for name, scene in scenes.items()}
    assert dataset.captions == written
    for split, names in dataset.splits.items():
        assert names == [name for name, scene in scenes.items() if scene.split == split]


def test_captions_are_true(dataset, scenes):
    """Counts, colours, kinds and places are the scene's; relations hold between the boxes."""
    said = set()
    for name, captions in dataset.captions.items():
        scene = scenes[name]
        things = {thing.kind: thing for thing in scene.things}
        boxes = {thing.kind: box for thing, box in boxes_of(scene)}
        for caption in captions:
            text, context = caption.lower(), f"{name}: {caption}"
            named = list(MENTION.finditer(text))
            assert 1 <= len(named) <= len(things), context
            colours = [mention["colour"] or mention["clothes"] for mention in named]
            for mention, colour in zip(named, colours, strict=True):
                thing = things[mention["kind"]]
                assert COUNTS[mention["count"]] == thing.count, context
                assert colour in (None, thing.colour), context
            assert re.findall(rf"\b(?:{COLOURS})\b", text) == [*filter(None, colours)], context
            for place, pattern in PLACES.items():
                if re.search(rf"\b(?:{pattern})\b", text):
                    assert place == scene.place, context
                    said.add(place)
            if len(named) == 2:
                a, b = named
                relation = re.fullmatch(rf" {DOING}(.+) ", text[a.end() : b.start()])[1]
                assert RELATIONS[relation](boxes[a["kind"]], boxes[b["kind"]]), context
                said.add(relation)
    assert said == PLACES.keys() | RELATIONS.keys()  # every wording was tested


def test_things_lie_within_the_picture_and_groups_do_not_hide_each_other(scenes):
    for scene in scenes.values():
        boxes = [box for _, box in boxes_of(scene)]
        assert len(boxes) == sum(thing.count for thing in scene.things)
        for left, top, right, bottom in boxes:
            assert left > -6 and top > -6 and right < 230 and bottom < 224, scene
        if scene.relation is None:
            gaps = np.diff(sorted((left + right) / 2 for left, _, right, _ in boxes))
            assert (gaps > 35).all(), scene


def test_pictures_show_the_colours_that_the_captions_name(dataset, scenes):
    """In the committed pictures each thing's own colour fills a part of its box; no other does."""
    for name, scene in scenes.items():
        picture = read_picture(dataset.image_folder / name)
        for thing, edges in boxes_of(scene):
            left, top, right, bottom = (max(0, round(edge)) for edge in edges)
            box = picture[top:bottom, left:right]
            share = {
                colour: (np.abs(box - np.float32(rgb)).max(axis=-1) < 45).mean()
                for colour, rgb in drawing.PALETTE.items()
            }
            assert share[thing.colour] > 0.12, (name, thing)
            # White, brown and black are also snow's, trunks' and tyres'; blue is the sea's.
            others = {"red", "yellow", "green", "pink"} - {thing.colour for thing in scene.things}
            assert all(share[colour] < 0.12 for colour in others), (name, thing, share)


def test_redrawn_scenes_equal_the_committed_pictures(dataset, scenes):
    """Two drawings are equal to the last bit; the committed one differs only by JPEG's loss."""
    examples = {key: scene for scene in scenes.values() for key in (scene.relation, scene.place)}
    for scene in examples.values():  # of each relation and each place
        drawn = draw_sample.draw_scene(scene)
        assert drawn.tobytes() == draw_sample.draw_scene(scene).tobytes()
        committed = read_picture(dataset.image_folder / scene.name)
        assert np.abs(np.asarray(drawn, dtype=np.float32) - committed).mean() < 5


def test_the_script_writes_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(draw_sample, "SPLITS", {"train": 2, "dev": 1, "test": 1})
    draw_sample.write_data_set(tmp_path / "new")
    written = read_dataset(tmp_path / "new")
    assert {split: len(names) for split, names in written.splits.items()} == draw_sample.SPLITS
    assert [len(captions) for captions in written.captions.values()] == [5] * 4
    assert (written.summary, written.problems) == ({}, [])


@pytest.mark.parametrize("split", ["dev", "test"])
def test_captions_belong_to_their_own_images(dataset, split):
    """One caption against the other four: high; the same captions on wrong images: next to none."""
    captions = [dataset.captions[name] for name in dataset.splits[split]]
    references, hypotheses = [rest for _, *rest in captions], [first for first, *_ in captions]
    right = metrics.score(references, hypotheses)["CIDEr-D"]
    shuffled = metrics.score(references, hypotheses[1:] + hypotheses[:1])["CIDEr-D"]
    assert right > 200
    assert shuffled < right / 4
