"""Draw the sample data set: small picture-book scenes, five captions each, in Flickr8k's layout.

    python tools/draw_sample.py                      # writes data/sample, about half a minute
    python tools/draw_sample.py --output elsewhere

The world is small on purpose: twelve kinds of things, eight colours, six places, counts up to
three, four relations. No two scenes share their things and relation, so every dev and test scene
is a new combination of words that the training captions use. Everything follows from `SEED`:
the captions are the same on every run, and so are the pixels before JPEG coding. Expect 400
pictures in 4 MB.
"""

import argparse
import colorsys
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SEED = 8
SIZE = 224  # pixels, width and height of a picture
SPLITS = {"train": 300, "dev": 50, "test": 50}
SOLO_SHARE = 0.36  # of the scenes show one kind of thing; the others show two in a relation
CAPTIONS_PER_IMAGE = 5
JPEG_QUALITY = 88

# ---------------------------------------------------------------------------- the world


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its words, where it may be, its size."""

    plural: str
    colours: tuple[str, ...]
    places: frozenset[str]
    doing: str  # after "is" or "are"
    width: float  # for a height of 1
    height: float  # pixels, when two things share the picture
    clothes: tuple[str, str] | None = None  # what carries the colour: singular, plural


BRIGHT = ("red", "yellow", "green", "blue", "pink")
FUR = ("black", "white", "brown")
LAND = frozenset({"beach", "snow", "grass", "night", "street"})
WATER = frozenset({"water"})

KINDS = {
    "ball": Kind("balls", BRIGHT, LAND | WATER, "lying", 1.0, 72),
    "boat": Kind("boats", BRIGHT, WATER | {"beach"}, "lying", 1.0, 104),
    "boy": Kind("boys", BRIGHT, LAND, "standing", 0.56, 108, ("shirt", "shirts")),
    "car": Kind("cars", BRIGHT, LAND, "parked", 1.7, 62),
    "cat": Kind("cats", FUR, LAND, "sitting", 0.78, 88),
    "dog": Kind("dogs", FUR, LAND, "standing", 1.12, 82),
    "duck": Kind("ducks", ("yellow", "white", "brown"), LAND | WATER, "standing", 1.05, 76),
    "girl": Kind("girls", BRIGHT, LAND, "standing", 0.6, 108, ("dress", "dresses")),
    "house": Kind("houses", BRIGHT, LAND, "standing", 0.98, 106),
    "kite": Kind("kites", BRIGHT, LAND | WATER, "flying", 0.66, 112),
    "tree": Kind("trees", ("green", "yellow", "red"), LAND, "growing", 0.84, 122),
    "umbrella": Kind("umbrellas", BRIGHT, LAND, "standing", 1.08, 96),
}
PLACES = ("beach", "snow", "grass", "night", "water", "street")
FAINT = {("black", "night"), ("white", "snow")}  # a colour that a place swallows
DOING_ON_WATER = {"duck": "swimming", "ball": "floating", "boat": "floating"}

LEFT_OF, ABOVE, ON, BEHIND = RELATIONS = ("left of", "above", "on", "behind")
STANDING = [kind for kind in KINDS if kind != "kite"]
SMALL = ("ball", "boy", "cat", "dog", "duck", "girl")
ANIMALS = ("cat", "dog", "duck")
PAIRS = {  # (first, second) where "the first is RELATION the second" makes a sensible picture
    LEFT_OF: [(a, b) for a in STANDING for b in STANDING if a != b],
    ABOVE: [("kite", b) for b in STANDING] + [("umbrella", b) for b in SMALL],
    ON: [(a, b) for a in ANIMALS for b in ("boat", "car", "house")]
    + [("boy", "boat"), ("girl", "boat")],
    BEHIND: [(a, b) for a in ("house", "tree") for b in (*SMALL, "car")]
    + [("car", b) for b in ANIMALS],
}


@dataclass(frozen=True)
class Thing:
    """One to three of a kind, all of one colour."""

    kind: str
    colour: str
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """What a picture shows; with two things, the first stands in `relation` to the second."""

    name: str
    split: str
    place: str
    things: tuple[Thing, ...]
    relation: str | None = None


def sample_scenes() -> list[Scene]:
    """Draw the scenes of all splits: no things-and-relation twice, whatever the place."""
    rng = random.Random(SEED)
    splits = [split for split, number in SPLITS.items() for _ in range(number)]
    rng.shuffle(splits)
    untold = {relation: _possible_things(relation) for relation in (None, *RELATIONS)}
    uses = Counter()
    scenes = []
    for number, split in enumerate(splits, start=1):
        relation = None if rng.random() < SOLO_SHARE else rng.choice(RELATIONS)
        things = min(  # of a few, those told the least so far
            rng.sample(untold[relation], min(12, len(untold[relation]))),
            key=lambda things: sum(uses[thing.kind] + uses[_nature(thing)] for thing in things),
        )
        untold[relation].remove(things)
        places = [place for place in PLACES if _fits(things, relation, place)]
        place = min(_shuffled(rng, places), key=lambda place: uses[place])
        uses.update([place, *(thing.kind for thing in things), *map(_nature, things)])
        scenes.append(Scene(f"scene_{number:03d}.jpg", split, place, things, relation))
    return scenes


def _possible_things(relation: str | None) -> list[tuple[Thing, ...]]:
    if relation is None:
        return [
            (Thing(kind, colour, count),)
            for kind in KINDS
            for colour in KINDS[kind].colours
            for count in (1, 2, 3)
        ]
    return [
        (Thing(first, colour), Thing(second, other))
        for first, second in PAIRS[relation]
        for colour in KINDS[first].colours
        for other in KINDS[second].colours
        if other != colour
    ]


def _nature(thing: Thing) -> tuple[str, str]:
    return thing.kind, thing.colour


def _fits(things: Sequence[Thing], relation: str | None, place: str) -> bool:
    grounded = things[1:] if relation == ON else things  # who rides needs no ground to stand on
    return all(place in KINDS[thing.kind].places for thing in grounded) and not any(
        (thing.colour, place) in FAINT for thing in things
    )


# ---------------------------------------------------------------------------- the captions

NUMBERS = {1: "a", 2: "two", 3: "three"}
WHERE = {
    "beach": ("on the beach", "on the sand"),
    "snow": ("in the snow", "on the snow"),
    "grass": ("on the grass", "in a field"),
    "night": ("at night", "under the stars"),
    "water": ("on the water", "on the sea"),
    "street": ("on the street", "on the road"),
}
WHERE_FLYING = {
    "beach": ("over the beach", "over the sand"),
    "snow": ("over the snow", "in the snowy sky"),
    "grass": ("over the grass", "over a field"),
    "night": ("in the night sky", "under the stars"),
    "water": ("over the water", "over the sea"),
    "street": ("over the street", "over the road"),
}
SCENERY = {
    "beach": "a sandy beach",
    "snow": "a snowy field",
    "grass": "a grassy field",
    "night": "a dark night",
    "water": "the open sea",
    "street": "a street",
}
RELATION_WORDS = {  # two wordings each: two captions of an image use one each
    LEFT_OF: ("to the left of", "next to"),
    ABOVE: ("above", "over"),
    ON: ("on", "on top of"),
    BEHIND: ("behind", "behind"),
}
CONVERSE_WORDS = {
    LEFT_OF: ("to the right of", "beside"),
    ABOVE: ("under", "below"),
    BEHIND: ("in front of",),
}


def write_captions(scene: Scene) -> list[str]:
    """Write five different captions, all true of `scene`, in Flickr8k's style."""
    rng = random.Random(f"{SEED} captions {scene.name}")
    compose = _caption_pair if len(scene.things) == 2 else _caption_solo
    captions = compose(scene, rng)
    rng.shuffle(captions)
    return [f"{caption[0].upper()}{caption[1:]} ." for caption in captions]


def _caption_solo(scene: Scene, rng: random.Random) -> list[str]:
    (thing,) = scene.things
    full, plain = _phrase(thing), _phrase(thing, colour=False)
    be = "is" if thing.count == 1 else "are"
    doing = _doing(thing, scene.place)
    where, elsewhere = _shuffled(rng, _where(thing, scene.place))
    if thing.count == 1:
        arrangement = f"{plain} {doing} {elsewhere}"
    elif thing.count == 2:
        arrangement = f"{plain} side by side {elsewhere}"
    else:
        arrangement = f"a group of {plain} {elsewhere}"
    return [
        f"{full} {be} {where}",
        f"{full} {be} {doing} {elsewhere}",
        f"there {be} {full} {rng.choice((where, elsewhere))}",
        arrangement,
        f"{SCENERY[scene.place]} with {full}",
    ]


def _caption_pair(scene: Scene, rng: random.Random) -> list[str]:
    first, second = scene.things
    a, b = _phrase(first), _phrase(second)
    plain_a, plain_b = rng.choice(
        ((a, _phrase(second, colour=False)), (_phrase(first, colour=False), b))
    )
    relation, other_relation = _shuffled(rng, RELATION_WORDS[scene.relation])
    where, elsewhere = _shuffled(rng, WHERE[scene.place])
    if scene.relation == ON:
        converse = f"{b} with {a} on {rng.choice(('it', 'top'))}"
    else:
        converse = f"{b} is {rng.choice(CONVERSE_WORDS[scene.relation])} {a}"
    together = f"{a} and {b} {elsewhere}" if first.kind != "kite" else f"{a} over {b} {elsewhere}"
    # A rider is at the place only by what carries it: it is not told alone.
    alone = second if scene.relation == ON else rng.choice(scene.things)
    return [
        f"{a} is {relation} {b}",
        converse,
        together,
        f"{plain_a} is {_doing(first, scene.place, scene.relation)} {other_relation} {plain_b} "
        f"{where}",
        f"there is {_phrase(alone)} {rng.choice(_where(alone, scene.place))}",
    ]


def _phrase(thing: Thing, colour: bool = True) -> str:
    """Name a thing, e.g. "two red balls", "a girl in a pink dress", "an umbrella"."""
    kind = KINDS[thing.kind]
    noun = thing.kind if thing.count == 1 else kind.plural
    if colour and kind.clothes:
        worn = f"a {thing.colour} {kind.clothes[0]}"
        if thing.count > 1:
            worn = f"{thing.colour} {kind.clothes[1]}"
        noun = f"{noun} in {worn}"
    elif colour:
        noun = f"{thing.colour} {noun}"
    number = NUMBERS[thing.count]
    return f"an {noun}" if number == "a" and noun[0] in "aeiou" else f"{number} {noun}"


def _doing(thing: Thing, place: str, relation: str | None = None) -> str:
    if relation == ON:
        return "sitting" if thing.kind == "cat" else "standing"
    if place == "water":
        return DOING_ON_WATER.get(thing.kind, KINDS[thing.kind].doing)
    return KINDS[thing.kind].doing


def _where(thing: Thing, place: str) -> tuple[str, str]:
    return WHERE_FLYING[place] if thing.kind == "kite" else WHERE[place]


def _shuffled(rng: random.Random, words: Sequence[str]) -> list[str]:
    return rng.sample(words, len(words))


# ---------------------------------------------------------------------------- the layout

GROUND = 198  # pixels from the top: where things stand
SOLO_HEIGHTS = {1: 1.32, 2: 1.14, 3: 1.0}  # how much larger than in a pair, by count
WIDE = 1.0  # a kind wider than this for its height finds no room for three in a row
MARGIN = 8  # pixels kept free at the picture's edges


@dataclass(frozen=True)
class Placement:
    """One thing in the picture: centre and foot line in pixels, height in pixels."""

    kind: str
    colour: str
    x: float
    foot: float
    height: float
    mirrored: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels."""
        half = self.height * KINDS[self.kind].width / 2
        return self.x - half, self.foot - self.height, self.x + half, self.foot


def lay_out(scene: Scene) -> list[Placement]:
    """Place the things of `scene`: a pair in their order there, a group from the farthest on."""
    rng = random.Random(f"{SEED} layout {scene.name}")
    if len(scene.things) == 2:
        return _lay_out_pair(scene, rng)
    (thing,) = scene.things
    kind = KINDS[thing.kind]
    columns = 2 if thing.count == 3 and kind.width > WIDE else thing.count
    room = (SIZE - 2 * MARGIN) / columns
    height = min(kind.height * SOLO_HEIGHTS[thing.count], room * 0.94 / kind.width)
    mirrored = rng.random() < 0.5
    placements = []
    for index in range(thing.count):
        x = MARGIN + room * (index + 0.5) + rng.uniform(-0.02, 0.02) * room
        if thing.kind == "kite":
            foot = 34 + height + rng.uniform(-14, 26)
        else:
            foot = GROUND + rng.uniform(-5, 7)
        if index == columns:  # the third of a wide kind stands behind the two others
            x, foot = SIZE / 2 + rng.uniform(-10, 10), foot - max(44, 0.62 * height)
        size = height * rng.uniform(0.94, 1.0)
        placements.append(Placement(thing.kind, thing.colour, x, foot, size, mirrored))
    return sorted(placements, key=lambda placement: placement.foot)


def _lay_out_pair(scene: Scene, rng: random.Random) -> list[Placement]:
    first, second = scene.things
    middle = SIZE / 2 + rng.uniform(-12, 12)
    side = rng.choice((-1, 1))

    def place(thing: Thing, x: float, foot: float, height: float) -> Placement:
        height *= rng.uniform(0.95, 1.03)
        return Placement(thing.kind, thing.colour, x, foot, height, rng.random() < 0.5)

    height, second_height = KINDS[first.kind].height, KINDS[second.kind].height
    if scene.relation == LEFT_OF:
        foot = GROUND + rng.uniform(-6, 4)
        return [
            place(first, 58 + rng.uniform(-3, 4), foot + rng.uniform(-3, 3), height * 0.96),
            place(
                second, 166 + rng.uniform(-4, 3), foot + rng.uniform(-3, 3), second_height * 0.96
            ),
        ]
    if scene.relation == ABOVE and first.kind == "kite":
        below = min(second_height, 92)
        return [
            place(first, middle + side * 14, 108, 96),
            place(second, middle - side * 8, GROUND + 10, below),
        ]
    if scene.relation == ABOVE:
        return [
            place(first, middle, GROUND + 2, 164),
            place(second, middle - side * 34, GROUND + 8, min(second_height, 84)),
        ]
    if scene.relation == ON:
        support = place(second, middle, GROUND + 8, second_height * SEAT_SCALE[second.kind])
        rider = place(first, 0, 0, min(height, 74))
        seat_x, seat_y = SEATS[second.kind]
        x = support.x + (-seat_x if support.mirrored else seat_x) * support.height
        foot = support.foot - seat_y * support.height
        return [
            Placement(rider.kind, rider.colour, x, foot, rider.height, rider.mirrored),
            support,
        ]
    apart = 34 if first.kind == "tree" else 46  # enough to overlap, not to hide
    return [
        place(first, middle - side * apart * 0.35, GROUND - 22, height * 1.22),
        place(second, middle + side * apart * 0.65, GROUND + 14, min(second_height, 84)),
    ]


# Where a rider's feet are on what carries it, in heights from the middle of its foot line.
SEATS = {"car": (-0.08, 0.97), "house": (0.06, 0.92), "boat": (0.24, 0.27)}
SEAT_SCALE = {"car": 1.4, "house": 1.14, "boat": 1.5}

# ---------------------------------------------------------------------------- the drawing

Colour = tuple[int, int, int]
Point = tuple[float, float]

SCALE = 4  # pictures are drawn this much larger and reduced: smooth edges
PALETTE: dict[str, Colour] = {
    "red": (222, 48, 44),
    "yellow": (252, 208, 44),
    "green": (58, 160, 74),
    "blue": (44, 102, 222),
    "pink": (246, 120, 182),
    "black": (52, 50, 60),
    "white": (248, 246, 242),
    "brown": (146, 92, 52),
}
WHITE, CREAM, INK = (255, 255, 255), (255, 244, 220), (50, 42, 54)
WOOD, SLATE, GLASS, LAMP = (126, 84, 54), (92, 84, 108), (190, 226, 246), (255, 226, 130)
BEAK, ROSE, STEEL = (246, 150, 40), (240, 140, 140), (176, 180, 190)
SKINS = ((255, 220, 190), (236, 186, 146), (176, 120, 84), (128, 84, 60))
HAIRS = ((92, 58, 36), (60, 42, 36), (176, 112, 52), (46, 40, 44))


def toned(colour: Colour, factor: float) -> Colour:
    """Make `colour` lighter (factor above 1, towards white) or darker (below 1)."""
    if factor <= 1:
        hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in colour))
        shaded = colorsys.hls_to_rgb(hue, light * factor, saturation)
        return tuple(round(255 * value) for value in shaded)
    return tuple(round(value + (255 - value) * (factor - 1)) for value in colour)


class Pen:
    """Draws on a picture in the coordinates of one thing.

    x runs from the middle of its foot line to the right (to the left if mirrored) and y upwards;
    1 is its height.
    """

    def __init__(self, image: Image.Image, x: float, foot: float, height: float, mirrored=False):
        """Start at (x, foot) of `image`, pixels of the finished picture."""
        self.image = image
        self.x, self.foot, self.height = x * SCALE, foot * SCALE, height * SCALE
        self.direction = -1 if mirrored else 1

    def _pixels(self, points: Iterable[Point]) -> list[Point]:
        return [
            (self.x + self.direction * self.height * x, self.foot - self.height * y)
            for x, y in points
        ]

    def polygon(
        self,
        points: Iterable[Point],
        colour: Colour,
        shading: float = 0.16,
        outline: float = 0.9,
        opacity: float = 1.0,
    ) -> None:
        """Fill a polygon: lighter above, darker below, a darker line of `outline` pixels round it.

        `shading` is how far light and shade leave `colour`; `opacity` 1 hides what is behind.
        """
        corners = self._pixels(points)
        xs, ys = zip(*corners, strict=True)
        pad = math.ceil(outline * SCALE) + 1
        left, top = math.floor(min(xs)) - pad, math.floor(min(ys)) - pad
        size = (math.ceil(max(xs)) + pad - left, math.ceil(max(ys)) + pad - top)
        local = [(x - left, y - top) for x, y in corners]

        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(local, fill=round(255 * opacity))
        shade = Image.linear_gradient("L").resize(size)
        light, dark = toned(colour, 1 + shading), toned(colour, 1 - shading)
        fill = Image.composite(Image.new("RGB", size, dark), Image.new("RGB", size, light), shade)
        self.image.paste(fill, (left, top), mask)
        if outline:
            ImageDraw.Draw(self.image).line(
                [*corners, *corners[:2]],
                fill=toned(colour, 0.62),
                width=round(outline * SCALE),
                joint="curve",
            )

    def curve(self, points: Sequence[Point], colour: Colour, **style: float) -> None:
        """Fill the smooth closed curve through `points`."""
        self.polygon(smooth(points), colour, **style)

    def ellipse(
        self, x: float, y: float, width: float, height: float, colour: Colour, **style: float
    ) -> None:
        """Fill the ellipse of these half-axes about (x, y)."""
        self.polygon(arc(x, y, width, height, 0, 360), colour, **style)

    def box(
        self, left: float, bottom: float, right: float, top: float, colour: Colour, **style: float
    ) -> None:
        """Fill a rectangle."""
        corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
        self.polygon(corners, colour, **style)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round ends, `width` in heights."""
        corners = self._pixels(points)
        brush = ImageDraw.Draw(self.image)
        pixels = max(1, round(width * self.height))
        brush.line(corners, fill=colour, width=pixels, joint="curve")
        for x, y in (corners[0], corners[-1]):
            r = pixels / 2
            brush.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def limb(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round ends and a darker rim: a leg, an arm, a tail."""
        rim = 1.6 * SCALE / self.height
        self.line(points, width + rim, toned(colour, 0.62))
        self.line(points, width, colour)


def arc(
    x: float, y: float, width: float, height: float, start: float, stop: float, steps: int = 48
) -> list[Point]:
    """Points on an ellipse about (x, y) from `start` to `stop` degrees, counter-clockwise."""
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


def smooth(points: Sequence[Point], steps: int = 10) -> list[Point]:
    """Points on the closed Catmull-Rom spline through `points`."""
    result = []
    for i in range(len(points)):
        p0, p1, p2, p3 = (points[(i + k - 1) % len(points)] for k in range(4))
        for step in range(steps):
            t = step / steps
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (-(t**2) + t**3) / 2,
            )
            result.append(
                tuple(
                    sum(w * p[axis] for w, p in zip(weights, (p0, p1, p2, p3), strict=True))
                    for axis in (0, 1)
                )
            )
    return result


def draw_scene(scene: Scene) -> Image.Image:
    """Draw `scene`: an RGB picture of SIZE x SIZE pixels."""
    rng = random.Random(f"{SEED} drawing {scene.name}")
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    PLACE_PAINTERS[scene.place](Pen(image, 0, SIZE, SIZE), rng)
    placements = lay_out(scene)
    if scene.relation == ON:
        placements.reverse()  # what carries comes first, then who rides
    for placement in placements:
        rides = scene.relation == ON and placement is placements[-1]
        grounded = placement.kind != "kite" and not rides
        if grounded:
            _cast_shadow(image, placement, scene.place)
        pen = Pen(image, placement.x, placement.foot, placement.height, placement.mirrored)
        KIND_PAINTERS[placement.kind](pen, PALETTE[placement.colour], rng)
        if grounded and scene.place == "water":
            _lap_water(image, placement)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _cast_shadow(image: Image.Image, placement: Placement, place: str) -> None:
    spread = KINDS[placement.kind].width * (0.2 if placement.kind == "umbrella" else 0.5)
    mask = Image.new("L", image.size)
    pen = Pen(mask, placement.x, placement.foot, placement.height)
    points = arc(pen.x, pen.foot, spread * pen.height, 5 * SCALE, 0, 360)
    ImageDraw.Draw(mask).polygon(points, fill=110)
    mask = mask.filter(ImageFilter.GaussianBlur(1.5 * SCALE))
    tint = {"snow": (96, 116, 170), "night": (6, 10, 30), "water": (10, 50, 90)}
    image.paste(tint.get(place, (50, 46, 40)), (0, 0, *image.size), mask)


def _lap_water(image: Image.Image, placement: Placement) -> None:
    """Draw little waves over the foot of what floats."""
    left, _, right, foot = placement.box
    pen = Pen(image, left - 5, foot + 1, right - left + 10)
    wave = [(i / 40, 0.022 * math.sin(i * 0.9)) for i in range(41)]
    pen.polygon([*wave, (0.95, -0.05), (0.05, -0.05)], (62, 150, 206), outline=0)
    pen.line(wave, 0.014, (214, 240, 250))


# Places are drawn with x and y from 0 to 1 over the whole picture.


def paint_sky(pen: Pen, above: Colour, below: Colour) -> None:
    """Fill the picture with a soft change from `above` to `below`."""
    size = pen.image.size
    shade = Image.linear_gradient("L").resize(size)
    blend = Image.composite(Image.new("RGB", size, below), Image.new("RGB", size, above), shade)
    pen.image.paste(blend)


def paint_sun(pen: Pen, rng: random.Random) -> None:
    """Draw a glowing sun in one of the upper corners."""
    x, y = rng.choice((rng.uniform(0.1, 0.17), rng.uniform(0.83, 0.9))), rng.uniform(0.84, 0.9)
    for radius in (0.13, 0.118, 0.106, 0.094, 0.082):
        pen.ellipse(x, y, radius, radius, (255, 242, 180), shading=0, outline=0, opacity=0.14)
    pen.ellipse(x, y, 0.066, 0.066, (255, 214, 84), shading=0.1, outline=0)


def paint_cloud(pen: Pen, rng: random.Random, colour: Colour = WHITE) -> None:
    """Draw one puffy cloud."""
    x, y, size = rng.uniform(0.15, 0.85), rng.uniform(0.72, 0.92), rng.uniform(0.7, 1.1)
    for dx, dy, radius in ((-0.075, 0, 0.04), (-0.02, 0.022, 0.055), (0.05, 0.006, 0.045)):
        pen.ellipse(
            x + dx * size,
            y + dy * size,
            radius * size * 1.25,
            radius * size * 0.8,
            colour,
            shading=0.03,
            outline=0,
            opacity=0.85,
        )


def paint_hill(pen: Pen, height: float, bump: float, phase: float, colour: Colour) -> None:
    """Fill the ground up to a rolling line about `height`."""
    line = [(i / 40, height + bump * math.sin(4.2 * i / 40 + phase)) for i in range(41)]
    pen.polygon([(0, -0.02), *line, (1, -0.02)], colour, shading=0.12, outline=0)


def paint_beach(pen: Pen, rng: random.Random) -> None:
    """Sun, sea and sand, a few shells."""
    paint_sky(pen, (112, 196, 240), (236, 246, 236))
    paint_sun(pen, rng)
    paint_cloud(pen, rng)
    pen.box(0, 0, 1, 0.42, (52, 156, 200), shading=0.14, outline=0)
    for _ in range(9):
        x, y = rng.uniform(0, 0.9), rng.uniform(0.33, 0.41)
        pen.line([(x, y), (x + rng.uniform(0.04, 0.1), y)], 0.006, (150, 214, 232))
    shore = rng.uniform(0, 6)
    paint_hill(pen, 0.312, 0.012, shore, (240, 250, 248))
    paint_hill(pen, 0.295, 0.012, shore, (244, 214, 152))
    for _ in range(26):
        x, y = rng.uniform(0, 1), rng.uniform(0.02, 0.25)
        pen.ellipse(x, y, 0.005, 0.0035, (214, 176, 112), outline=0)


def paint_snow(pen: Pen, rng: random.Random) -> None:
    """White hills under a pale sky, flakes falling."""
    paint_sky(pen, (148, 178, 216), (226, 232, 244))
    phase = rng.uniform(0, 6)
    paint_hill(pen, 0.42, 0.035, phase, (206, 220, 240))
    paint_hill(pen, 0.34, 0.03, phase + 2, (226, 236, 248))
    paint_hill(pen, 0.25, 0.02, phase + 4, (246, 249, 254))
    for _ in range(46):
        radius = rng.uniform(0.005, 0.011)
        pen.ellipse(rng.random(), rng.uniform(0.25, 1), radius, radius, WHITE, outline=0)


def paint_grass(pen: Pen, rng: random.Random) -> None:
    """Green hills with flowers under a blue sky."""
    paint_sky(pen, (116, 190, 246), (226, 244, 250))
    paint_sun(pen, rng)
    paint_cloud(pen, rng)
    paint_cloud(pen, rng)
    phase = rng.uniform(0, 6)
    paint_hill(pen, 0.4, 0.035, phase, (166, 214, 120))
    paint_hill(pen, 0.31, 0.025, phase + 2.4, (134, 198, 92))
    for _ in range(34):
        x, y = rng.uniform(0, 1), rng.uniform(0.01, 0.27)
        pen.line([(x - 0.008, y + 0.02), (x, y), (x + 0.007, y + 0.024)], 0.005, (96, 164, 66))
    for _ in range(9):
        x, y = rng.uniform(0.03, 0.97), rng.uniform(0.02, 0.25)
        for angle in range(0, 360, 72):
            dx, dy = 0.0085 * math.cos(math.radians(angle)), 0.0085 * math.sin(math.radians(angle))
            pen.ellipse(x + dx, y + dy, 0.007, 0.007, WHITE, shading=0, outline=0)
        pen.ellipse(x, y, 0.006, 0.006, LAMP, outline=0)


def paint_night(pen: Pen, rng: random.Random) -> None:
    """Moon and stars over dark hills."""
    night = (28, 34, 92)
    paint_sky(pen, (16, 20, 62), (72, 76, 152))
    for _ in range(46):
        radius = rng.choice((0.003, 0.004, 0.006))
        pen.ellipse(rng.random(), rng.uniform(0.42, 1), radius, radius, (255, 250, 220), outline=0)
    x, y = rng.choice((0.14, 0.86)), rng.uniform(0.84, 0.88)
    for radius in (0.15, 0.135, 0.12, 0.105, 0.09):
        pen.ellipse(x, y, radius, radius, (170, 176, 226), shading=0, outline=0, opacity=0.08)
    crescent = [*arc(x, y, 0.075, 0.075, 60, 300), *arc(x + 0.035, y, 0.066, 0.066, 280, 80)]
    pen.polygon(crescent, (255, 240, 180), shading=0.05, outline=0)
    phase = rng.uniform(0, 6)
    paint_hill(pen, 0.38, 0.035, phase, toned(night, 1.14))
    paint_hill(pen, 0.29, 0.025, phase + 2.4, (44, 84, 104))


def paint_water(pen: Pen, rng: random.Random) -> None:
    """The open sea with waves."""
    paint_sky(pen, (126, 200, 244), (238, 246, 250))
    paint_sun(pen, rng)
    paint_cloud(pen, rng)
    paint_cloud(pen, rng)
    pen.box(0, -0.02, 1, 0.46, (48, 140, 204), shading=0.2, outline=0)
    for row in range(8):
        y = 0.43 - 0.055 * row
        x = rng.uniform(-0.1, 0.1)
        while x < 1:
            length = rng.uniform(0.07, 0.13)
            wave = [(x + length * i / 10, y + 0.008 * math.sin(i * 0.63)) for i in range(11)]
            pen.line(wave, 0.007, (120, 196, 232))
            x += length + rng.uniform(0.08, 0.22)


def paint_street(pen: Pen, rng: random.Random) -> None:
    """A road in front of a pale skyline."""
    paint_sky(pen, (160, 204, 236), (250, 236, 216))
    paint_cloud(pen, rng)
    x = -0.02
    while x < 1:
        width, height = rng.uniform(0.11, 0.18), rng.uniform(0.52, 0.72)
        wall = rng.choice(((196, 204, 220), (206, 206, 218), (188, 200, 214)))
        pen.box(x, 0.3, x + width, height, wall, shading=0.05, outline=0)
        for row in range(int((height - 0.4) / 0.055)):
            for column in (0.25, 0.6):
                left, bottom = x + width * column - 0.012, height - 0.05 - 0.055 * row
                window = (left, bottom, left + 0.03, bottom + 0.026)
                pen.box(*window, (222, 230, 238), shading=0.03, outline=0)
        x += width + 0.008
    pen.box(0, 0.26, 1, 0.36, (214, 208, 200), shading=0.06, outline=0)
    pen.box(0, 0.25, 1, 0.266, (170, 164, 160), outline=0)
    pen.box(0, -0.02, 1, 0.25, (112, 112, 122), shading=0.1, outline=0)
    shift = rng.uniform(0, 0.2)
    for dash in range(-1, 6):
        left = dash * 0.22 + shift
        corners = [(left, 0.03), (left + 0.11, 0.03), (left + 0.12, 0.05), (left + 0.01, 0.05)]
        pen.polygon(corners, (246, 240, 220), shading=0.02, outline=0)


PLACE_PAINTERS: dict[str, Callable[[Pen, random.Random], None]] = {
    "beach": paint_beach,
    "snow": paint_snow,
    "grass": paint_grass,
    "night": paint_night,
    "water": paint_water,
    "street": paint_street,
}

# Things are drawn in their own coordinates: see Pen.


def draw_ball(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A ball with a white band."""
    pen.ellipse(0, 0.5, 0.5, 0.5, colour, shading=0.24, outline=1.2)
    band = [*arc(0, 0.5, 0.49, 0.49, 152, 184, 8), *_sag(-0.489, 0.466, 0.489, 0.466)]
    band += [*arc(0, 0.5, 0.49, 0.49, -4, 28, 8), *_sag(0.433, 0.73, -0.433, 0.73)]
    pen.polygon(band, CREAM, shading=0.1, outline=0.6)
    pen.ellipse(-0.2, 0.8, 0.1, 0.06, WHITE, outline=0, opacity=0.75)


def _sag(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """Points on a line that hangs between two others, ends left out."""
    return [
        (x0 + (x1 - x0) * i / 16, y0 + (y1 - y0) * i / 16 - 0.14 * math.sin(math.pi * i / 16))
        for i in range(1, 16)
    ]


def draw_boat(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A sailing boat: hull and pennant carry the colour, the sails are white."""
    pen.box(-0.02, 0.2, 0.02, 0.97, WOOD, outline=0.6)
    pen.polygon([(-0.05, 0.92), (-0.05, 0.34), (-0.42, 0.34)], colour, shading=0.1)
    pen.polygon([(0.05, 0.84), (0.05, 0.34), (0.36, 0.34)], WHITE, shading=0.06)
    pen.polygon([(0.02, 1.0), (0.02, 0.9), (0.18, 0.95)], colour)
    hull = [(-0.5, 0.28), (0.5, 0.28), (0.43, 0.12), (0.34, 0), (-0.32, 0), (-0.42, 0.1)]
    pen.polygon(hull, colour, shading=0.2, outline=1.2)
    pen.polygon([(-0.5, 0.28), (0.5, 0.28), (0.475, 0.22), (-0.475, 0.22)], CREAM, outline=0.5)


def draw_car(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A small round car seen from the side."""
    cabin = [(-0.56, 0.5), (-0.42, 0.9), (-0.32, 0.98), (0.16, 0.98), (0.28, 0.9), (0.46, 0.5)]
    pen.polygon(cabin, colour, shading=0.1, outline=1.2)
    pen.polygon([(-0.46, 0.56), (-0.35, 0.87), (-0.1, 0.87), (-0.1, 0.56)], GLASS, outline=0.6)
    pen.polygon([(-0.03, 0.56), (-0.03, 0.87), (0.16, 0.87), (0.34, 0.56)], GLASS, outline=0.6)
    body = [(-0.83, 0.2), (-0.84, 0.42), (-0.74, 0.56), (-0.3, 0.58), (0.4, 0.57), (0.7, 0.52)]
    pen.curve([*body, (0.83, 0.4), (0.84, 0.22), (0.4, 0.16), (-0.4, 0.16)], colour, outline=1.2)
    pen.ellipse(0.76, 0.4, 0.06, 0.07, LAMP, outline=0.6)
    pen.box(-0.04, 0.46, 0.08, 0.49, toned(colour, 0.6), outline=0)
    for x in (-0.46, 0.47):
        pen.ellipse(x, 0.19, 0.2, 0.2, INK)
        pen.ellipse(x, 0.19, 0.1, 0.1, STEEL, outline=0.5)


def draw_cat(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A sitting cat that looks at us."""
    tail = smooth([(0.16, 0.05), (0.34, 0.08), (0.4, 0.24), (0.32, 0.4), (0.34, 0.42)])[10:36]
    pen.limb([(0.12, 0.06), *tail], 0.075, colour)
    body = [(0, 0.58), (0.15, 0.48), (0.24, 0.22), (0.22, 0.03), (0, 0), (-0.22, 0.03)]
    pen.curve([*body, (-0.24, 0.22), (-0.15, 0.48)], colour, outline=1.0)
    pen.curve(
        [(0, 0.5), (0.09, 0.38), (0.07, 0.2), (0, 0.14), (-0.07, 0.2), (-0.09, 0.38)],
        toned(colour, 1.35),
        shading=0.04,
        outline=0,
    )
    for x in (-0.1, 0.1):
        pen.ellipse(x, 0.045, 0.085, 0.05, colour, shading=0.08)
    for side in (-1, 1):
        ear = [(side * 0.27, 0.74), (side * 0.24, 1.0), (side * 0.07, 0.88)]
        pen.polygon(ear, colour, outline=1.0)
        inner = [(side * 0.23, 0.8), (side * 0.21, 0.93), (side * 0.13, 0.87)]
        pen.polygon(inner, ROSE, outline=0)
    pen.ellipse(0, 0.7, 0.28, 0.22, colour, shading=0.1, outline=1.0)
    for side in (-1, 1):
        pen.ellipse(side * 0.11, 0.73, 0.055, 0.06, (170, 214, 90), outline=0.5)
        pen.ellipse(side * 0.11, 0.73, 0.022, 0.055, INK, outline=0)
    pen.ellipse(0, 0.64, 0.06, 0.04, toned(colour, 1.45), outline=0)
    pen.polygon([(-0.03, 0.665), (0.03, 0.665), (0, 0.635)], ROSE, outline=0.4)
    for side in (-1, 1):
        for y in (0.61, 0.66):
            pen.line([(side * 0.1, 0.64), (side * 0.33, y)], 0.009, (150, 144, 150))


def draw_dog(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A standing dog seen from the side, its tail up."""
    far = toned(colour, 0.8)
    for x in (-0.26, 0.2):
        pen.limb([(x, 0.3), (x, 0.05)], 0.09, far)
    tail = [(-0.36, 0.48), (-0.46, 0.56), (-0.5, 0.68), (-0.47, 0.76)]
    pen.limb(tail, 0.07, colour)
    body = [(-0.4, 0.5), (-0.2, 0.56), (0.1, 0.55), (0.28, 0.62), (0.33, 0.4), (0.2, 0.24)]
    pen.curve([*body, (-0.1, 0.27), (-0.36, 0.26)], colour, outline=1.0)
    for x in (-0.34, 0.12):
        pen.limb([(x, 0.32), (x, 0.05)], 0.1, colour)
        pen.ellipse(x + 0.03, 0.04, 0.085, 0.045, colour, shading=0.06)
    head = [(0.12, 0.72), (0.16, 0.9), (0.3, 0.95), (0.4, 0.86), (0.55, 0.79), (0.57, 0.68)]
    pen.curve([*head, (0.42, 0.63), (0.28, 0.58)], colour, shading=0.1, outline=1.0)
    muzzle = [(0.42, 0.78), (0.54, 0.78), (0.565, 0.68), (0.42, 0.645)]
    pen.curve(muzzle, toned(colour, 1.35), shading=0.04, outline=0)
    pen.ellipse(0.555, 0.77, 0.035, 0.03, INK, outline=0)
    pen.ellipse(0.36, 0.82, 0.036, 0.04, WHITE, shading=0, outline=0.5)
    pen.ellipse(0.368, 0.82, 0.022, 0.027, INK, outline=0)
    ear = [(0.13, 0.92), (0.22, 0.92), (0.26, 0.76), (0.2, 0.6), (0.1, 0.62), (0.08, 0.78)]
    pen.curve(ear, toned(colour, 0.72), outline=1.0)
    pen.line([(0.44, 0.68), (0.5, 0.665), (0.55, 0.69)], 0.014, toned(colour, 0.45))


def draw_duck(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A duck seen from the side."""
    for x in (-0.08, 0.08):
        pen.line([(x, 0.12), (x, 0.02), (x + 0.1, 0.015)], 0.04, BEAK)
    body = [(-0.52, 0.5), (-0.3, 0.42), (0, 0.44), (0.18, 0.52), (0.36, 0.42), (0.36, 0.22)]
    pen.curve([*body, (0.12, 0.08), (-0.2, 0.1), (-0.42, 0.26)], colour, outline=1.0)
    pen.polygon(
        [(0.36, 0.84), (0.52, 0.79), (0.54, 0.74), (0.36, 0.7)], BEAK, shading=0.12, outline=0.8
    )
    neck = [(0.08, 0.46), (0.14, 0.62), (0.04, 0.8), (0.12, 0.96), (0.28, 0.99), (0.41, 0.86)]
    pen.curve([*neck, (0.37, 0.7), (0.34, 0.58), (0.36, 0.42)], colour, outline=0)
    rim = toned(colour, 0.62)
    outline = smooth([*neck, (0.37, 0.7), (0.34, 0.58), (0.36, 0.42)])
    pen.line(outline[10:75], 0.013, rim)
    wing = [(-0.34, 0.42), (-0.1, 0.4), (0.14, 0.36), (0.08, 0.2), (-0.12, 0.18), (-0.3, 0.28)]
    pen.curve(wing, toned(colour, 0.88), shading=0.1)
    pen.ellipse(0.27, 0.85, 0.036, 0.042, WHITE, shading=0, outline=0.5)
    pen.ellipse(0.277, 0.85, 0.022, 0.028, INK, outline=0)


def draw_head(pen: Pen, skin: Colour) -> None:
    """Draw a child's smiling face."""
    pen.ellipse(0, 0.8, 0.155, 0.155, skin, shading=0.08)
    for side in (-1, 1):
        pen.ellipse(side * 0.056, 0.795, 0.016, 0.021, INK, outline=0)
        pen.ellipse(side * 0.095, 0.75, 0.026, 0.018, ROSE, outline=0, opacity=0.7)
    pen.line(arc(0, 0.755, 0.042, 0.034, 200, 340, 12), 0.013, (170, 70, 70))


def draw_boy(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A boy; his shirt carries the colour."""
    skin, hair, trousers = rng.choice(SKINS), rng.choice(HAIRS), (92, 90, 110)
    for x in (-0.075, 0.075):
        pen.box(x - 0.058, 0.06, x + 0.058, 0.34, trousers)
        pen.ellipse(x + (0.02 if x > 0 else -0.02), 0.035, 0.08, 0.037, (120, 70, 50))
    for side in (-1, 1):
        pen.limb([(side * 0.13, 0.58), (side * 0.24, 0.38)], 0.06, skin)
        pen.limb([(side * 0.13, 0.58), (side * 0.19, 0.48)], 0.095, colour)
    shirt = [(-0.11, 0.65), (0.11, 0.65), (0.17, 0.6), (0.15, 0.3), (-0.15, 0.3), (-0.17, 0.6)]
    pen.polygon(shirt, colour, outline=1.0)
    draw_head(pen, skin)
    fringe = [*arc(0, 0.82, 0.168, 0.17, -4, 184), (-0.08, 0.88), (0.02, 0.87), (0.1, 0.9)]
    pen.polygon(fringe, hair, shading=0.1)


def draw_girl(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A girl with plaits; her dress carries the colour."""
    skin, hair = rng.choice(SKINS), rng.choice(HAIRS)
    for side in (-1, 1):
        plait = [(0.13, 0.84), (0.24, 0.82), (0.26, 0.68), (0.21, 0.58), (0.17, 0.7)]
        pen.curve([(side * x, y) for x, y in plait], hair, shading=0.1)
    for x in (-0.065, 0.065):
        pen.limb([(x, 0.26), (x, 0.06)], 0.055, skin)
        pen.ellipse(x + (0.02 if x > 0 else -0.02), 0.033, 0.065, 0.034, (120, 60, 70))
    for side in (-1, 1):
        pen.limb([(side * 0.1, 0.58), (side * 0.24, 0.42)], 0.055, skin)
    dress = [(-0.09, 0.65), (0.09, 0.65), (0.14, 0.58), (0.11, 0.46), (0.27, 0.2)]
    hem = [(0.14, 0.17), (0, 0.16), (-0.14, 0.17)]
    mirror = [(-x, y) for x, y in reversed(dress[2:])]
    pen.polygon([*dress, *hem, *mirror], colour, outline=1.0)
    draw_head(pen, skin)
    fringe = [*arc(0, 0.82, 0.168, 0.17, -8, 188), (-0.1, 0.86), (0, 0.92), (0.1, 0.86)]
    pen.polygon(fringe, hair, shading=0.1)
    for side in (-1, 1):
        pen.ellipse(side * 0.19, 0.83, 0.03, 0.03, colour, outline=0.6)


def draw_house(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A house; its walls carry the colour, its roof is slate."""
    pen.box(-0.3, 0.66, -0.19, 1.0, (168, 112, 92))
    pen.box(-0.41, 0, 0.41, 0.58, colour, shading=0.12, outline=1.2)
    roof = [(-0.49, 0.54), (-0.22, 0.93), (0.22, 0.93), (0.49, 0.54)]
    pen.polygon(roof, SLATE, shading=0.16, outline=1.2)
    for y in (0.64, 0.74, 0.84):
        reach = 0.49 - (y - 0.54) * 0.69
        pen.line([(-reach + 0.02, y), (reach - 0.02, y)], 0.008, toned(SLATE, 0.8))
    pen.polygon([(-0.09, 0), *arc(0, 0.26, 0.09, 0.08, 180, 0), (0.09, 0)], WOOD, outline=0.9)
    pen.ellipse(0.055, 0.16, 0.014, 0.014, LAMP, outline=0)
    for x in (-0.26, 0.26):
        pen.box(x - 0.095, 0.2, x + 0.095, 0.42, CREAM, outline=0.9)
        pen.box(x - 0.075, 0.22, x + 0.075, 0.4, LAMP, outline=0)
        pen.line([(x, 0.22), (x, 0.4)], 0.014, CREAM)
        pen.line([(x - 0.075, 0.31), (x + 0.075, 0.31)], 0.014, CREAM)


def draw_kite(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A diamond kite with bows on its tail."""
    tail = [(0.08 * math.sin(i * 0.42), 0.3 - 0.3 * i / 20) for i in range(21)]
    pen.line(tail, 0.013, INK)
    for i in (7, 13, 19):
        x, y = tail[i]
        for side in (-1, 1):
            bow = [(x, y), (x + side * 0.075, y + 0.035), (x + side * 0.075, y - 0.035)]
            pen.polygon(bow, colour, outline=0.6)
    top, right, bottom, left = (0, 1.0), (0.32, 0.68), (0, 0.28), (-0.32, 0.68)
    middle = (0, 0.68)
    light = toned(colour, 1.22)
    for corners, shade in (
        ((top, right), colour),
        ((right, bottom), light),
        ((bottom, left), colour),
        ((left, top), light),
    ):
        pen.polygon([*corners, middle], shade, shading=0.08, outline=0)
    pen.line([top, bottom], 0.014, toned(colour, 0.62))
    pen.line([left, right], 0.014, toned(colour, 0.62))
    pen.line([top, right, bottom, left, top], 0.014, toned(colour, 0.62))


def draw_tree(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A tree with a round crown, which carries the colour."""
    trunk = [(-0.09, 0), (-0.05, 0.12), (-0.045, 0.5), (0.045, 0.5), (0.05, 0.12), (0.09, 0)]
    pen.polygon(trunk, WOOD, outline=1.0)
    crown = [(-0.24, 0.48), (0.24, 0.48), (0, 0.42), (-0.22, 0.68), (0.22, 0.68), (0, 0.79)]
    for x, y in crown:
        pen.ellipse(x, y, 0.185, 0.165, colour, shading=0.1, outline=1.0)
    for x, y in crown:
        pen.ellipse(x, y, 0.178, 0.158, colour, shading=0.12, outline=0)
    pen.ellipse(0, 0.6, 0.22, 0.2, colour, shading=0.06, outline=0)
    for x, y, size in ((-0.2, 0.74, 0.07), (0.02, 0.86, 0.07), (0.18, 0.56, 0.06)):
        pen.ellipse(x, y, size, size * 0.6, toned(colour, 1.3), outline=0, opacity=0.8)


def draw_umbrella(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """An open umbrella on its pole."""
    pen.box(-0.015, 0, 0.015, 0.95, WOOD, outline=0.6)
    pen.ellipse(0, 0.975, 0.022, 0.022, WOOD, outline=0)
    edges = (-0.54, -0.33, -0.12, 0.12, 0.33, 0.54)
    light = toned(colour, 1.4)
    for i, (left, right) in enumerate(itertools.pairwise(edges)):
        dome = [_dome_point(left, edges[-1], t / 12) for t in range(13)]
        dome += [_dome_point(right, edges[-1], 1 - t / 12) for t in range(13)]
        hem = arc((left + right) / 2, 0.56, (right - left) / 2, 0.045, 0, 180, 12)
        pen.polygon([*dome, *hem], colour if i % 2 == 0 else light, shading=0.12, outline=0.8)


def _dome_point(edge: float, radius: float, t: float) -> Point:
    """A point on the rib of a dome from (edge, 0.56) at t = 0 to the tip at t = 1."""
    angle = math.pi / 2 * t
    return edge * math.cos(angle), 0.56 + 0.4 * math.sin(angle) * radius / 0.54


KIND_PAINTERS: dict[str, Callable[[Pen, Colour, random.Random], None]] = {
    "ball": draw_ball,
    "boat": draw_boat,
    "boy": draw_boy,
    "car": draw_car,
    "cat": draw_cat,
    "dog": draw_dog,
    "duck": draw_duck,
    "girl": draw_girl,
    "house": draw_house,
    "kite": draw_kite,
    "tree": draw_tree,
    "umbrella": draw_umbrella,
}

# ---------------------------------------------------------------------------- the files


def write_data_set(folder: Path) -> None:
    """Write pictures, captions and splits to `folder` in the layout of the Flickr8k archives."""
    images, texts = folder / "Flicker8k_Dataset", folder / "Flickr8k_text"
    images.mkdir(parents=True, exist_ok=True)
    texts.mkdir(exist_ok=True)
    scenes = sample_scenes()
    rows = []
    for scene in scenes:
        draw_scene(scene).save(images / scene.name, quality=JPEG_QUALITY, optimize=True)
        rows += [f"{scene.name}#{i}\t{text}\n" for i, text in enumerate(write_captions(scene))]
    (texts / "Flickr8k.token.txt").write_text("".join(rows), encoding="utf-8")
    for split in SPLITS:
        names = [f"{scene.name}\n" for scene in scenes if scene.split == split]
        (texts / f"Flickr_8k.{split}Images.txt").write_text("".join(names), encoding="utf-8")


def main() -> None:
    """Write the data set to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Draw the sample data set.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "data" / "sample",
        help="folder to write to (default: data/sample in this repository)",
    )
    write_data_set(parser.parse_args().output)


if __name__ == "__main__":
    main()
