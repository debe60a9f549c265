"""Draw the sample data set: small picture-book scenes with five captions each.

    python data/sample/draw_sample.py    # 400 pictures, 4 MB, in Flickr8k's layout; one minute

No two scenes have the same things in the same relation, so every dev and test scene is a new
combination of words from the training captions. All follows from `SEED`: each run writes the same.
"""

import random
from collections import Counter, namedtuple
from itertools import permutations, product
from pathlib import Path

from drawing import PALETTE, SCALE, SHADOWS, SIZE, Pen, arc
from PIL import Image, ImageDraw, ImageFilter

SEED = 8
SPLITS = {"train": 300, "dev": 50, "test": 50}
BRIGHT, FUR = ("red", "yellow", "green", "blue", "pink"), ("black", "white", "brown")
LAND = ("beach", "snow", "grass", "night", "street")
ANYWHERE = (*LAND, "water")

# `width` is for a height of 1, `height` in pixels, when two things share the picture.
Kind = namedtuple("Kind", "width height colours places doing", defaults=(BRIGHT, LAND, "standing"))
Thing = namedtuple("Thing", "kind colour count", defaults=(1,))  # one to three, all of one colour
# With two things, the first stands in `relation` to the second; with one, `relation` is None.
Scene = namedtuple("Scene", "name split place things relation")
# Pixels from the picture's upper left corner: `x` of the middle, `foot` of the lower edge.
Placement = namedtuple("Placement", "thing x foot height mirrored rides", defaults=(False,))

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
CLOTHES = {"boy": ("a {} shirt", "{} shirts"), "girl": ("a {} dress", "{} dresses")}
AFLOAT = {"ball": "floating", "boat": "floating", "duck": "swimming"}  # instead, on the water
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
GROUND = 198  # pixels from the top: where things stand
MARGIN = 8  # pixels left free at the picture's edges
ENLARGED = {1: 1.32, 2: 1.14, 3: 1.0}  # by count: heights relative to those in a pair
# What carries a rider: the rider's feet in heights from the middle of its foot, and its scale
SEATS = {"car": (-0.08, 0.97, 1.4), "house": (0.06, 0.92, 1.14), "boat": (0.24, 0.27, 1.5)}


def sample_scenes() -> list[Scene]:
    """Draw the scenes of all splits, spread evenly over kinds, colours and places."""
    rng = random.Random(SEED)
    splits = [split for split, size in SPLITS.items() for _ in range(size)]
    rng.shuffle(splits)
    coloured = {kind: [Thing(kind, colour) for colour in KINDS[kind].colours] for kind in KINDS}
    singles = [thing for things in coloured.values() for thing in things]
    unused = {None: [(thing._replace(count=count),) for thing in singles for count in (1, 2, 3)]}
    for relation, kinds in PAIRS.items():
        pairs = [pair for a, b in kinds for pair in product(coloured[a], coloured[b])]
        unused[relation] = [(a, b) for a, b in pairs if a.colour != b.colour]
    scenes, uses = [], Counter()
    for number, split in enumerate(splits, start=1):
        relation = None if rng.random() < 0.36 else rng.choice(list(RELATIONS))
        drawn = rng.sample(unused[relation], min(12, len(unused[relation])))
        things = min(drawn, key=lambda things: sum(uses[t.kind] + uses[t[:2]] for t in things))
        unused[relation].remove(things)
        grounded = things[1:] if relation == "on" else things
        places = [place for place in PLACES if all(place in KINDS[t.kind].places for t in grounded)]
        places = [p for p in places if not INVISIBLE & {(thing.colour, p) for thing in things}]
        place = min(rng.sample(places, len(places)), key=lambda place: uses[place])
        uses.update([place, *(thing.kind for thing in things), *(thing[:2] for thing in things)])
        scenes.append(Scene(f"scene_{number:03d}.jpg", split, place, things, relation))
    return scenes


def write_captions(scene: Scene) -> list[str]:
    """Write five different captions, all true of `scene`, in Flickr8k's style."""
    rng = random.Random(f"{SEED} captions {scene.name}")
    captions = _captions_of_two(scene, rng) if scene.relation else _captions_of_one(scene, rng)
    rng.shuffle(captions)
    return [f"{caption[0].upper()}{caption[1:]} ." for caption in captions]


def _captions_of_one(scene: Scene, rng: random.Random) -> list[str]:
    (thing,) = scene.things
    full, plain = _phrase(thing), _phrase(thing, colour=False)
    be = "is" if thing.count == 1 else "are"
    doing = _doing(thing, scene.place)
    where, elsewhere = rng.sample(_where(thing, scene.place), 2)
    grouped = (f"{plain} {doing}", f"{plain} side by side", f"a group of {plain}")
    return [
        f"{full} {be} {where}",
        f"{full} {be} {doing} {elsewhere}",
        f"there {be} {full} {rng.choice((where, elsewhere))}",
        f"{grouped[thing.count - 1]} {elsewhere}",
        f"{PLACES[scene.place][0]} with {full}",
    ]


def _captions_of_two(scene: Scene, rng: random.Random) -> list[str]:
    first, second = scene.things
    a, b = _phrase(first), _phrase(second)
    plain = rng.choice(((a, _phrase(second, colour=False)), (_phrase(first, colour=False), b)))
    phrases, converses = RELATIONS[scene.relation]
    phrase, other_phrase = rng.sample(phrases, 2)
    where, elsewhere = rng.sample(PLACES[scene.place][1:3], 2)
    converse = rng.choice(converses).format(a=a, b=b)
    rides = scene.relation == "on"
    doing = KINDS[first.kind].doing if rides else _doing(first, scene.place)
    alone = second if rides else rng.choice(scene.things)
    return [
        f"{a} is {phrase} {b}",
        converse,
        f"{a} {'over' if first.kind == 'kite' else 'and'} {b} {elsewhere}",
        f"{plain[0]} is {doing} {other_phrase} {plain[1]} {where}",
        f"there is {_phrase(alone)} {rng.choice(_where(alone, scene.place))}",
    ]


def _phrase(thing: Thing, colour: bool = True) -> str:
    """Name a thing, e.g. "two red balls", "a girl in a pink dress", "an umbrella"."""
    noun = thing.kind + "s" * (thing.count > 1)
    if colour and thing.kind in CLOTHES:
        noun += " in " + CLOTHES[thing.kind][thing.count > 1].format(thing.colour)
    elif colour:
        noun = f"{thing.colour} {noun}"
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{(article, 'two', 'three')[thing.count - 1]} {noun}"


def _doing(thing: Thing, place: str) -> str:
    return (AFLOAT if place == "water" else {}).get(thing.kind, KINDS[thing.kind].doing)


def _where(thing: Thing, place: str) -> tuple[str, ...]:
    return PLACES[place][3:] if thing.kind == "kite" else PLACES[place][1:3]


def lay_out(scene: Scene) -> list[Placement]:
    """Place the things of `scene`, in the order in which they are drawn."""
    rng = random.Random(f"{SEED} layout {scene.name}")
    return _lay_out_two(scene, rng) if scene.relation else _lay_out_one(*scene.things, rng)


def _lay_out_one(thing: Thing, rng: random.Random) -> list[Placement]:
    kind = KINDS[thing.kind]
    columns = 2 if thing.count == 3 and kind.width > 1 else thing.count
    room = (SIZE - 2 * MARGIN) / columns
    height = min(kind.height * ENLARGED[thing.count], room * 0.94 / kind.width)
    level, low, high = (34 + height, -14, 26) if thing.kind == "kite" else (GROUND, -5, 7)
    mirrored = rng.random() < 0.5
    placements = []
    for index in range(thing.count):
        x = MARGIN + room * (index + 0.5 + rng.uniform(-0.02, 0.02))
        foot = level + rng.uniform(low, high)
        if index == columns:  # the third of a wide kind stands behind the two others
            x, foot = SIZE / 2 + rng.uniform(-10, 10), foot - max(44, 0.62 * height)
        placements.append(Placement(thing, x, foot, height * rng.uniform(0.94, 1.0), mirrored))
    return sorted(placements, key=lambda placement: placement.foot)


def _lay_out_two(scene: Scene, rng: random.Random) -> list[Placement]:
    first, second = scene.things
    height, other_height = (KINDS[thing.kind].height for thing in scene.things)
    middle, side = SIZE / 2 + rng.uniform(-12, 12), rng.choice((-1, 1))

    def place(thing: Thing, x: float, foot: float, height: float, rides=False) -> Placement:
        height *= rng.uniform(0.95, 1.03)
        return Placement(thing, x, foot, height, rng.random() < 0.5, rides)

    if scene.relation == "left of":
        foot = GROUND + rng.uniform(-6, 4)
        left = place(first, rng.uniform(55, 62), foot + rng.uniform(-3, 3), 0.96 * height)
        right = place(second, rng.uniform(162, 169), foot + rng.uniform(-3, 3), 0.96 * other_height)
        return [left, right]
    if scene.relation == "on":
        seat_x, seat_y, scale = SEATS[second.kind]
        carrier = place(second, middle, GROUND + 8, other_height * scale)
        x = carrier.x + (-seat_x if carrier.mirrored else seat_x) * carrier.height
        foot = carrier.foot - seat_y * carrier.height
        return [carrier, place(first, x, foot, min(height, 74), rides=True)]
    if first.kind == "kite":
        farther, nearer = (14, 108, 96), (-8, GROUND + 10, min(other_height, 92))
    elif first.kind == "umbrella":
        farther, nearer = (0, GROUND + 2, 164), (-34, GROUND + 8, min(other_height, 84))
    else:  # behind: they overlap, but neither hides the other
        apart = 34 if first.kind == "tree" else 46
        farther = (-0.35 * apart, GROUND - 22, height * 1.22)
        nearer = (0.65 * apart, GROUND + 14, min(other_height, 84))
    spots = ((first, *farther), (second, *nearer))
    return [place(thing, middle + side * x, foot, height) for thing, x, foot, height in spots]


def draw_scene(scene: Scene) -> Image.Image:
    """Draw `scene`: an RGB picture of SIZE x SIZE pixels."""
    rng = random.Random(f"{SEED} drawing {scene.name}")
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    getattr(Pen(image, rng, 0, SIZE, SIZE, outline=0), scene.place)()
    for thing, x, foot, height, mirrored, rides in lay_out(scene):
        width, grounded = height * KINDS[thing.kind].width, thing.kind != "kite" and not rides
        if grounded:  # it casts a shadow
            shadow = arc(x, foot, width * (0.2 if thing.kind == "umbrella" else 0.5), 5) * SCALE
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).polygon(shadow.ravel().tolist(), fill=110)
            mask = mask.filter(ImageFilter.GaussianBlur(1.5 * SCALE))
            image.paste(SHADOWS.get(scene.place, (50, 46, 40)), mask=mask)
        getattr(Pen(image, rng, x, foot, height, mirrored), thing.kind)(PALETTE[thing.colour])
        if grounded and scene.place == "water":  # a wave covers its foot
            Pen(image, rng, x - width / 2 - 5, foot + 1, width + 10, outline=0).ripples()
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def write_data_set(folder: Path) -> None:
    """Write pictures, captions and splits to `folder` in the layout of the Flickr8k archives."""
    images, texts = folder / "Flicker8k_Dataset", folder / "Flickr8k_text"
    images.mkdir(parents=True, exist_ok=True)
    texts.mkdir(exist_ok=True)
    scenes = sample_scenes()
    for scene in scenes:
        draw_scene(scene).save(images / scene.name, quality=88, optimize=True)
    rows = [f"{s.name}#{i}\t{text}\n" for s in scenes for i, text in enumerate(write_captions(s))]
    (texts / "Flickr8k.token.txt").write_text("".join(rows), encoding="utf-8")
    for split in SPLITS:
        names = [f"{scene.name}\n" for scene in scenes if scene.split == split]
        (texts / f"Flickr_8k.{split}Images.txt").write_text("".join(names), encoding="utf-8")


if __name__ == "__main__":
    write_data_set(Path(__file__).parent)
