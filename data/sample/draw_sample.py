"""Draw the sample data set: small picture-book scenes with five captions each.

    python data/sample/draw_sample.py                      # writes data/sample in a minute
    python data/sample/draw_sample.py --output elsewhere

Expect 400 pictures, 4 MB, in Flickr8k's layout. The world is small: twelve kinds of things, eight
colours, six places, counts up to three, four relations. No two scenes have the same things in the
same relation, so every dev and test scene is a new combination of words from the training captions.
Everything follows from `SEED`: each run gives the same captions and the same pixels.
"""

import argparse
import random
from collections import Counter
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

from drawing import SIZE, Placement, draw_picture
from PIL import Image

SEED = 8
SPLITS = {"train": 300, "dev": 50, "test": 50}

# ---- the world -----------------------------------------------------------------------------------

BRIGHT, FUR = ("red", "yellow", "green", "blue", "pink"), ("black", "white", "brown")
LAND = ("beach", "snow", "grass", "night", "street")
ANYWHERE = (*LAND, "water")


class Kind(NamedTuple):
    """A kind of thing."""

    width: float  # for a height of 1
    height: float  # pixels, when two things share the picture
    colours: tuple[str, ...] = BRIGHT
    places: tuple[str, ...] = LAND
    doing: str = "standing"


KINDS = {
    "ball": Kind(1.0, 72, places=ANYWHERE, doing="lying"),
    "boat": Kind(1.0, 104, places=("beach", "water"), doing="lying"),
    "boy": Kind(0.56, 108),
    "car": Kind(1.7, 62, doing="parked"),
    "cat": Kind(0.78, 88, FUR, doing="sitting"),
    "dog": Kind(1.12, 82, FUR),
    "duck": Kind(1.05, 76, ("yellow", "white", "brown"), ANYWHERE),
    "girl": Kind(0.6, 108),
    "house": Kind(0.98, 106),
    "kite": Kind(0.66, 112, places=ANYWHERE, doing="flying"),
    "tree": Kind(0.84, 122, ("green", "yellow", "red"), doing="growing"),
    "umbrella": Kind(1.08, 96),
}
CLOTHES = {"boy": ("shirt", "shirts"), "girl": ("dress", "dresses")}  # they carry the colour
AFLOAT = {"duck": "swimming", "ball": "floating", "boat": "floating"}
PLACES = {  # how captions name the place; two phrases for what stands there, two for what flies
    "beach": ("a sandy beach", "on the beach", "on the sand", "over the beach", "over the sand"),
    "snow": ("a snowy field", "in the snow", "on the snow", "over the snow", "in the snowy sky"),
    "grass": ("a grassy field", "on the grass", "in a field", "over the grass", "over a field"),
    "night": ("a dark night", "at night", "under the stars", "in the night sky", "under the stars"),
    "water": ("the open sea", "on the water", "on the sea", "over the water", "over the sea"),
    "street": ("a street", "on the street", "on the road", "over the street", "over the road"),
}
INVISIBLE = {("black", "night"), ("white", "snow")}  # colours too close to the place's own
RELATIONS = {  # two phrases; sentences that state the relation from the second thing's side
    "left of": (("to the left of", "next to"), ("{b} is to the right of {a}", "{b} is beside {a}")),
    "above": (("above", "over"), ("{b} is under {a}", "{b} is below {a}")),
    "on": (("on", "on top of"), ("{b} with {a} on it", "{b} with {a} on top")),
    "behind": (("behind", "behind"), ("{b} is in front of {a}",)),
}
STANDING = [kind for kind in KINDS if kind != "kite"]
SMALL = ("ball", "boy", "cat", "dog", "duck", "girl")
ANIMALS = ("cat", "dog", "duck")
PAIRS = {  # kinds for which the relation makes a sensible picture
    "left of": [*permutations(STANDING, 2)],
    "above": [*product(["kite"], STANDING), *product(["umbrella"], SMALL)],
    "on": [*product(ANIMALS, ["boat", "car", "house"]), *product(["boy", "girl"], ["boat"])],
    "behind": [*product(["house", "tree"], [*SMALL, "car"]), *product(["car"], ANIMALS)],
}


class Thing(NamedTuple):
    """One to three of a kind, all of one colour."""

    kind: str
    colour: str
    count: int = 1


class Scene(NamedTuple):
    """What a picture shows; with two things, the first stands in `relation` to the second."""

    name: str
    split: str
    place: str
    things: tuple[Thing, ...]
    relation: str | None


def sample_scenes() -> list[Scene]:
    """Draw the scenes of all splits, spread evenly over kinds, colours and places."""
    rng = random.Random(SEED)
    splits = [split for split, size in SPLITS.items() for _ in range(size)]
    rng.shuffle(splits)
    unused = {relation: _possible_things(relation) for relation in (None, *RELATIONS)}
    uses = Counter()
    scenes = []
    for number, split in enumerate(splits, start=1):
        relation = None if rng.random() < 0.36 else rng.choice(list(RELATIONS))
        drawn = rng.sample(unused[relation], min(12, len(unused[relation])))
        things = min(drawn, key=lambda things: sum(uses[t.kind] + uses[t[:2]] for t in things))
        unused[relation].remove(things)
        places = [place for place in PLACES if _fits(things, relation, place)]
        place = min(rng.sample(places, len(places)), key=lambda place: uses[place])
        uses.update([place, *(thing.kind for thing in things), *(thing[:2] for thing in things)])
        scenes.append(Scene(f"scene_{number:03d}.jpg", split, place, things, relation))
    return scenes


def _possible_things(relation: str | None) -> list[tuple[Thing, ...]]:
    coloured = {kind: [Thing(kind, colour) for colour in KINDS[kind].colours] for kind in KINDS}
    if relation is None:
        singles = [thing for things in coloured.values() for thing in things]
        return [(thing._replace(count=count),) for thing in singles for count in (1, 2, 3)]
    pairs = [pair for a, b in PAIRS[relation] for pair in product(coloured[a], coloured[b])]
    return [(first, second) for first, second in pairs if first.colour != second.colour]


def _fits(things: tuple[Thing, ...], relation: str | None, place: str) -> bool:
    grounded = things[1:] if relation == "on" else things
    visible = not any((thing.colour, place) in INVISIBLE for thing in things)
    return visible and all(place in KINDS[thing.kind].places for thing in grounded)


# ---- the captions --------------------------------------------------------------------------------


def write_captions(scene: Scene) -> list[str]:
    """Write five different captions, all true of `scene`, in Flickr8k's style."""
    rng = random.Random(f"{SEED} captions {scene.name}")
    captions = (_captions_of_two if scene.relation else _captions_of_one)(*scene[2:], rng)
    rng.shuffle(captions)
    return [f"{caption[0].upper()}{caption[1:]} ." for caption in captions]


def _captions_of_one(place: str, things: tuple[Thing], _, rng: random.Random) -> list[str]:
    (thing,) = things
    full, plain = _phrase(thing), _phrase(thing, colour=False)
    be = "is" if thing.count == 1 else "are"
    doing = _doing(thing, place)
    where, elsewhere = rng.sample(_where(thing, place), 2)
    grouped = (f"{plain} {doing}", f"{plain} side by side", f"a group of {plain}")
    return [
        f"{full} {be} {where}",
        f"{full} {be} {doing} {elsewhere}",
        f"there {be} {full} {rng.choice((where, elsewhere))}",
        f"{grouped[thing.count - 1]} {elsewhere}",
        f"{PLACES[place][0]} with {full}",
    ]


def _captions_of_two(place: str, things, relation: str, rng: random.Random) -> list[str]:
    first, second = things
    a, b = _phrase(first), _phrase(second)
    plain = rng.choice(((a, _phrase(second, colour=False)), (_phrase(first, colour=False), b)))
    phrases, converses = RELATIONS[relation]
    phrase, other_phrase = rng.sample(phrases, 2)
    where, elsewhere = rng.sample(PLACES[place][1:3], 2)
    converse = rng.choice(converses).format(a=a, b=b)
    doing, alone = _doing(first, place), second
    if relation == "on":
        doing = "sitting" if first.kind == "cat" else "standing"
    else:
        alone = rng.choice(things)
    return [
        f"{a} is {phrase} {b}",
        converse,
        f"{a} {'over' if first.kind == 'kite' else 'and'} {b} {elsewhere}",
        f"{plain[0]} is {doing} {other_phrase} {plain[1]} {where}",
        f"there is {_phrase(alone)} {rng.choice(_where(alone, place))}",
    ]


def _phrase(thing: Thing, colour: bool = True) -> str:
    """Name a thing, e.g. "two red balls", "a girl in a pink dress", "an umbrella"."""
    several = thing.count > 1
    noun = thing.kind + "s" * several
    if colour and thing.kind in CLOTHES:
        article = "" if several else "a "
        noun += f" in {article}{thing.colour} {CLOTHES[thing.kind][several]}"
    elif colour:
        noun = f"{thing.colour} {noun}"
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{(article, 'two', 'three')[thing.count - 1]} {noun}"


def _doing(thing: Thing, place: str) -> str:
    doing = KINDS[thing.kind].doing
    return AFLOAT.get(thing.kind, doing) if place == "water" else doing


def _where(thing: Thing, place: str) -> tuple[str, ...]:
    return PLACES[place][3:] if thing.kind == "kite" else PLACES[place][1:3]


# ---- the layout ----------------------------------------------------------------------------------

GROUND = 198  # pixels from the top: where things stand
MARGIN = 8  # pixels left free at the picture's edges
ENLARGED = {1: 1.32, 2: 1.14, 3: 1.0}  # by count: heights relative to those in a pair
# What carries a rider: the rider's feet in heights from the middle of its foot, and its scale
SEATS = {"car": (-0.08, 0.97, 1.4), "house": (0.06, 0.92, 1.14), "boat": (0.24, 0.27, 1.5)}


def lay_out(scene: Scene) -> list[Placement]:
    """Place the things of `scene`, in the order in which they are drawn."""
    rng = random.Random(f"{SEED} layout {scene.name}")
    if scene.relation:
        return _lay_out_two(*scene.things, scene.relation, rng)
    return _lay_out_one(*scene.things, rng)


def _lay_out_one(thing: Thing, rng: random.Random) -> list[Placement]:
    kind = KINDS[thing.kind]
    columns = 2 if thing.count == 3 and kind.width > 1 else thing.count
    room = (SIZE - 2 * MARGIN) / columns
    height = min(kind.height * ENLARGED[thing.count], room * 0.94 / kind.width)
    mirrored = rng.random() < 0.5
    flying = thing.kind == "kite"
    placements = []
    for index in range(thing.count):
        x = MARGIN + room * (index + 0.5) + rng.uniform(-0.02, 0.02) * room
        foot = 34 + height + rng.uniform(-14, 26) if flying else GROUND + rng.uniform(-5, 7)
        if index == columns:  # the third of a wide kind stands behind the two others
            x, foot = SIZE / 2 + rng.uniform(-10, 10), foot - max(44, 0.62 * height)
        size = height * rng.uniform(0.94, 1.0)
        placements.append(_placement(thing, x, foot, size, mirrored))
    return sorted(placements, key=lambda placement: placement.foot)


def _lay_out_two(first: Thing, second: Thing, relation: str, rng) -> list[Placement]:
    height, second_height = KINDS[first.kind].height, KINDS[second.kind].height
    middle, side = SIZE / 2 + rng.uniform(-12, 12), rng.choice((-1, 1))

    def place(thing: Thing, x: float, foot: float, height: float) -> Placement:
        height *= rng.uniform(0.95, 1.03)
        rides = relation == "on" and thing is first
        return _placement(thing, x, foot, height, rng.random() < 0.5, rides)

    if relation == "left of":
        foot = GROUND + rng.uniform(-6, 4)
        x, left_foot = 58 + rng.uniform(-3, 4), foot + rng.uniform(-3, 3)
        left = place(first, x, left_foot, height * 0.96)
        x, right_foot = 166 + rng.uniform(-4, 3), foot + rng.uniform(-3, 3)
        return [left, place(second, x, right_foot, second_height * 0.96)]
    if relation == "on":
        seat_x, seat_y, scale = SEATS[second.kind]
        carrier = place(second, middle, GROUND + 8, second_height * scale)
        x = carrier.x + (-seat_x if carrier.mirrored else seat_x) * carrier.height
        return [carrier, place(first, x, carrier.foot - seat_y * carrier.height, min(height, 74))]
    if relation == "above" and first.kind == "kite":
        farther, nearer = (14, 108, 96), (-8, GROUND + 10, min(second_height, 92))
    elif relation == "above":
        farther, nearer = (0, GROUND + 2, 164), (-34, GROUND + 8, min(second_height, 84))
    else:
        apart = 34 if first.kind == "tree" else 46  # they overlap, but neither hides the other
        farther = (-0.35 * apart, GROUND - 22, height * 1.22)
        nearer = (0.65 * apart, GROUND + 14, min(second_height, 84))
    spots = ((first, *farther), (second, *nearer))
    return [place(thing, middle + side * x, foot, height) for thing, x, foot, height in spots]


def _placement(thing: Thing, x, foot, height, mirrored, rides=False) -> Placement:
    width, grounded = height * KINDS[thing.kind].width, thing.kind != "kite" and not rides
    return Placement(thing.kind, thing.colour, x, foot, width, height, mirrored, grounded)


# ---- the pictures and files ----------------------------------------------------------------------


def draw_scene(scene: Scene) -> Image.Image:
    """Draw `scene`: an RGB picture of SIZE x SIZE pixels."""
    rng = random.Random(f"{SEED} drawing {scene.name}")
    return draw_picture(scene.place, lay_out(scene), rng)


def write_data_set(folder: Path) -> None:
    """Write pictures, captions and splits to `folder` in the layout of the Flickr8k archives."""
    images, texts = folder / "Flicker8k_Dataset", folder / "Flickr8k_text"
    images.mkdir(parents=True, exist_ok=True)
    texts.mkdir(exist_ok=True)
    scenes = sample_scenes()
    rows = []
    for scene in scenes:
        draw_scene(scene).save(images / scene.name, quality=88, optimize=True)
        rows += [f"{scene.name}#{i}\t{text}\n" for i, text in enumerate(write_captions(scene))]
    (texts / "Flickr8k.token.txt").write_text("".join(rows), encoding="utf-8")
    for split in SPLITS:
        names = [f"{scene.name}\n" for scene in scenes if scene.split == split]
        (texts / f"Flickr_8k.{split}Images.txt").write_text("".join(names), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    write_data_set(parser.parse_args().output)
