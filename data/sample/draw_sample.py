"""Draw the sample data set: small picture-book scenes with five captions each, laid out as Flickr8k.

    python data/sample/draw_sample.py                      # writes data/sample in half a minute
    python data/sample/draw_sample.py --output elsewhere

Expect 400 pictures, 4 MB. The world is small: twelve kinds of things, eight colours, six places,
counts up to three, four relations. No two scenes have the same things in the same relation, so
every dev and test scene is a new combination of words that the training captions use. Everything
follows from `SEED`: each run gives the same captions and the same pixels before JPEG coding.
"""

import argparse
import colorsys
import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SEED = 8
SIZE = 224  # pixels, width and height of a picture
SPLITS = {"train": 300, "dev": 50, "test": 50}
ONE_KIND_SHARE = 0.36  # of the scenes show one kind of thing; the others show two kinds

# ---- the world -----------------------------------------------------------------------------------

BRIGHT, FUR = ("red", "yellow", "green", "blue", "pink"), ("black", "white", "brown")
LAND = ("beach", "snow", "grass", "night", "street")
ANYWHERE = (*LAND, "water")


@dataclass(frozen=True)
class Kind:
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
PLACES = {  # name: what a caption calls it; two ways to say that something stands or flies there
    "beach": (
        "a sandy beach",
        ("on the beach", "on the sand"),
        ("over the beach", "over the sand"),
    ),
    "snow": (
        "a snowy field",
        ("in the snow", "on the snow"),
        ("over the snow", "in the snowy sky"),
    ),
    "grass": ("a grassy field", ("on the grass", "in a field"), ("over the grass", "over a field")),
    "night": (
        "a dark night",
        ("at night", "under the stars"),
        ("in the night sky", "under the stars"),
    ),
    "water": ("the open sea", ("on the water", "on the sea"), ("over the water", "over the sea")),
    "street": ("a street", ("on the street", "on the road"), ("over the street", "over the road")),
}
INVISIBLE = {("black", "night"), ("white", "snow")}  # colours too close to the place's own
RELATIONS = {  # name: two ways to say it; sentences that say it from the second thing's side
    "left of": (("to the left of", "next to"), ("{b} is to the right of {a}", "{b} is beside {a}")),
    "above": (("above", "over"), ("{b} is under {a}", "{b} is below {a}")),
    "on": (("on", "on top of"), ("{b} with {a} on it", "{b} with {a} on top")),
    "behind": (("behind", "behind"), ("{b} is in front of {a}",)),
}
STANDING = [kind for kind in KINDS if kind != "kite"]
SMALL = ("ball", "boy", "cat", "dog", "duck", "girl")
ANIMALS = ("cat", "dog", "duck")
PAIRS = {  # pairs of kinds for which the relation makes a sensible picture
    "left of": list(itertools.permutations(STANDING, 2)),
    "above": [("kite", kind) for kind in STANDING] + [("umbrella", kind) for kind in SMALL],
    "on": [
        *itertools.product(ANIMALS, ("boat", "car", "house")),
        ("boy", "boat"),
        ("girl", "boat"),
    ],
    "behind": [
        *itertools.product(("house", "tree"), (*SMALL, "car")),
        *itertools.product(("car",), ANIMALS),
    ],
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
        relation = None if rng.random() < ONE_KIND_SHARE else rng.choice(list(RELATIONS))
        candidates = rng.sample(unused[relation], min(12, len(unused[relation])))
        things = min(
            candidates, key=lambda c: sum(uses[t.kind] + uses[t.kind, t.colour] for t in c)
        )
        unused[relation].remove(things)
        places = [place for place in PLACES if _fits(things, relation, place)]
        place = min(rng.sample(places, len(places)), key=lambda place: uses[place])
        uses.update([place, *(t.kind for t in things), *((t.kind, t.colour) for t in things)])
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


def _fits(things: tuple[Thing, ...], relation: str | None, place: str) -> bool:
    grounded = things[1:] if relation == "on" else things
    return all(place in KINDS[thing.kind].places for thing in grounded) and not any(
        (thing.colour, place) in INVISIBLE for thing in things
    )


# ---- the captions --------------------------------------------------------------------------------


def write_captions(scene: Scene) -> list[str]:
    """Write five different captions, all true of `scene`, in Flickr8k's style."""
    rng = random.Random(f"{SEED} captions {scene.name}")
    captions = (_pair_captions if scene.relation else _one_kind_captions)(scene, rng)
    rng.shuffle(captions)
    return [f"{caption[0].upper()}{caption[1:]} ." for caption in captions]


def _one_kind_captions(scene: Scene, rng: random.Random) -> list[str]:
    (thing,) = scene.things
    full, plain = _phrase(thing), _phrase(thing, colour=False)
    be = "is" if thing.count == 1 else "are"
    doing = _doing(thing, scene.place)
    where, elsewhere = rng.sample(_where(thing, scene.place), 2)
    return [
        f"{full} {be} {where}",
        f"{full} {be} {doing} {elsewhere}",
        f"there {be} {full} {rng.choice((where, elsewhere))}",
        (f"{plain} {doing}", f"{plain} side by side", f"a group of {plain}")[thing.count - 1]
        + f" {elsewhere}",
        f"{PLACES[scene.place][0]} with {full}",
    ]


def _pair_captions(scene: Scene, rng: random.Random) -> list[str]:
    first, second = scene.things
    a, b = _phrase(first), _phrase(second)
    plain_a, plain_b = rng.choice(
        ((a, _phrase(second, colour=False)), (_phrase(first, colour=False), b))
    )
    wordings, converses = RELATIONS[scene.relation]
    relation, other_relation = rng.sample(wordings, 2)
    where, elsewhere = rng.sample(PLACES[scene.place][1], 2)
    converse = rng.choice(converses).format(a=a, b=b)
    on = scene.relation == "on"
    alone = second if on else rng.choice(scene.things)
    doing = _doing(first, scene.place)
    if on:
        doing = "sitting" if first.kind == "cat" else "standing"
    return [
        f"{a} is {relation} {b}",
        converse,
        f"{a} {'over' if first.kind == 'kite' else 'and'} {b} {elsewhere}",
        f"{plain_a} is {doing} {other_relation} {plain_b} {where}",
        f"there is {_phrase(alone)} {rng.choice(_where(alone, scene.place))}",
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


def _where(thing: Thing, place: str) -> tuple[str, str]:
    return PLACES[place][2 if thing.kind == "kite" else 1]


# ---- the layout ----------------------------------------------------------------------------------

GROUND = 198  # pixels from the top: where things stand
MARGIN = 8  # pixels left free at the picture's edges
ENLARGED = {1: 1.32, 2: 1.14, 3: 1.0}  # by count: heights relative to those in a pair
SEATS = {  # what carries a rider: the rider's feet in its heights from the middle of its foot; scale
    "car": (-0.08, 0.97, 1.4),
    "house": (0.06, 0.92, 1.14),
    "boat": (0.24, 0.27, 1.5),
}


@dataclass(frozen=True)
class Placement:
    """One thing in the picture: middle and foot in pixels from the top left, height in pixels."""

    kind: str
    colour: str
    x: float
    foot: float
    height: float
    mirrored: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels."""
        half = self.height * KINDS[self.kind].width / 2
        return self.x - half, self.foot - self.height, self.x + half, self.foot


def lay_out(scene: Scene) -> list[Placement]:
    """Place the things of `scene`, in the order in which they are drawn."""
    rng = random.Random(f"{SEED} layout {scene.name}")
    return _lay_out_pair(scene, rng) if scene.relation else _lay_out_one_kind(*scene.things, rng)


def _lay_out_one_kind(thing: Thing, rng: random.Random) -> list[Placement]:
    kind = KINDS[thing.kind]
    columns = 2 if thing.count == 3 and kind.width > 1 else thing.count
    room = (SIZE - 2 * MARGIN) / columns
    height = min(kind.height * ENLARGED[thing.count], room * 0.94 / kind.width)
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
    height, second_height = KINDS[first.kind].height, KINDS[second.kind].height
    middle, side = SIZE / 2 + rng.uniform(-12, 12), rng.choice((-1, 1))

    def place(thing: Thing, x: float, foot: float, height: float) -> Placement:
        height *= rng.uniform(0.95, 1.03)
        return Placement(thing.kind, thing.colour, x, foot, height, rng.random() < 0.5)

    if scene.relation == "left of":
        foot = GROUND + rng.uniform(-6, 4)
        x = 58 + rng.uniform(-3, 4)
        left = place(first, x, foot + rng.uniform(-3, 3), height * 0.96)
        x = 166 + rng.uniform(-4, 3)
        return [left, place(second, x, foot + rng.uniform(-3, 3), second_height * 0.96)]
    if scene.relation == "on":
        seat_x, seat_y, scale = SEATS[second.kind]
        carrier = place(second, middle, GROUND + 8, second_height * scale)
        x = carrier.x + (-seat_x if carrier.mirrored else seat_x) * carrier.height
        return [carrier, place(first, x, carrier.foot - seat_y * carrier.height, min(height, 74))]
    if scene.relation == "above" and first.kind == "kite":
        kite = place(first, middle + side * 14, 108, 96)
        return [kite, place(second, middle - side * 8, GROUND + 10, min(second_height, 92))]
    if scene.relation == "above":  # an umbrella
        umbrella = place(first, middle, GROUND + 2, 164)
        return [umbrella, place(second, middle - side * 34, GROUND + 8, min(second_height, 84))]
    apart = 34 if first.kind == "tree" else 46  # they overlap, but neither hides the other
    behind = place(first, middle - side * apart * 0.35, GROUND - 22, height * 1.22)
    x = middle + side * apart * 0.65
    return [behind, place(second, x, GROUND + 14, min(second_height, 84))]


# ---- the pen -------------------------------------------------------------------------------------

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

SCALE = 4  # pictures are drawn this much larger and then reduced, for smooth edges
PALETTE = {
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
SHADOWS = {"snow": (96, 116, 170), "night": (6, 10, 30), "water": (10, 50, 90)}


def toned(colour: Colour, factor: float) -> Colour:
    """Make `colour` lighter (factor above 1, towards white) or darker (below 1)."""
    if factor > 1:
        return tuple(round(value + (255 - value) * (factor - 1)) for value in colour)
    hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in colour))
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, light * factor, saturation))


def blended(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    """Make an image whose colour changes from `top` to `bottom`."""
    gradient = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), gradient)


def path(points: str) -> np.ndarray:
    """Read points written as in SVG, "0,0 50,100": an array of shape (points, 2)."""
    return np.array([point.split(",") for point in points.split()], dtype=float)


def arc(x, y, width, height, start=0, stop=360, steps=48) -> np.ndarray:
    """Points on the ellipse of these half-axes about (x, y), anticlockwise; angles in degrees."""
    angles = np.radians(start + (stop - start) * np.arange(steps + 1) / steps)
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def smooth(points: np.ndarray, steps: int = 10) -> np.ndarray:
    """Points on the closed Catmull-Rom spline through `points`."""
    p0, p1, p2, p3 = (np.roll(points, 1 - k, axis=0)[:, None] for k in range(4))
    t = np.arange(steps)[:, None] / steps
    curve = (-t + 2 * t**2 - t**3) * p0 + (2 - 5 * t**2 + 3 * t**3) * p1
    curve = curve + (t + 4 * t**2 - 3 * t**3) * p2 + (-(t**2) + t**3) * p3
    return curve.reshape(-1, 2) / 2


class Pen:
    """Draws on an image in the coordinates of one thing, 100 high.

    x runs from the middle of its foot to the right (to the left if mirrored) and y upwards. Points
    are an array of shape (points, 2) or a text for `path`.
    """

    def __init__(
        self,
        image: Image.Image,
        rng: random.Random,
        x: float,
        foot: float,
        height: float,
        mirrored: bool = False,
    ):
        """Start at (x, foot) of `image`, in pixels of the finished picture."""
        self.image, self.rng = image, rng
        self.brush = ImageDraw.Draw(image)
        self.origin = np.array([x, foot]) * SCALE
        self.unit = height * SCALE / 100
        self.axes = np.array([-self.unit if mirrored else self.unit, -self.unit])

    def _pixels(self, points: np.ndarray | str) -> np.ndarray:
        return self.origin + self.axes * (path(points) if isinstance(points, str) else points)

    def polygon(self, points, colour: Colour, shading=0.16, outline=0.9, opacity=1.0) -> None:
        """Fill a polygon, lighter above and darker below by `shading`, with a darker outline.

        `outline` is in pixels of the finished picture; an `opacity` of 1 hides what is behind.
        """
        corners = self._pixels(points)
        pad = math.ceil(outline * SCALE) + 1
        start = np.floor(corners.min(axis=0)).astype(int) - pad
        size = tuple(np.ceil(corners.max(axis=0)).astype(int) + pad - start)
        mask = Image.new("L", size)
        inside = (corners - start).ravel().tolist()
        ImageDraw.Draw(mask).polygon(inside, fill=round(255 * opacity))
        fill = blended(size, toned(colour, 1 + shading), toned(colour, 1 - shading))
        self.image.paste(fill, tuple(start), mask)
        if outline:
            closed = np.concatenate([corners, corners[:2]]).ravel().tolist()
            width = round(outline * SCALE)
            self.brush.line(closed, fill=toned(colour, 0.62), width=width, joint="curve")

    def curve(self, points, colour: Colour, **style: float) -> None:
        """Fill the smooth closed curve through `points`."""
        self.polygon(smooth(path(points)), colour, **style)

    def ellipse(self, x, y, width, height, colour: Colour, **style: float) -> None:
        """Fill the ellipse of these half-axes about (x, y)."""
        self.polygon(arc(x, y, width, height), colour, **style)

    def box(self, left, bottom, right, top, colour: Colour, **style: float) -> None:
        """Fill a rectangle."""
        corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
        self.polygon(corners, colour, **style)

    def line(self, points, width: float, colour: Colour) -> None:
        """Draw a line with round ends."""
        corners = self._pixels(points)
        width = max(1, round(width * self.unit))
        self.brush.line(corners.ravel().tolist(), fill=colour, width=width, joint="curve")
        for end in corners[[0, -1]]:
            self.brush.ellipse([*(end - width / 2), *(end + width / 2)], fill=colour)

    def limb(self, points, width: float, colour: Colour) -> None:
        """Draw a line with round ends and a darker outline: a leg, an arm, a tail."""
        self.line(points, width + 1.6 * SCALE / self.unit, toned(colour, 0.62))
        self.line(points, width, colour)


# ---- the places ----------------------------------------------------------------------------------


class PlacePainter(Pen):
    """Paints a place over the whole picture; x and y run from 0 to 100."""

    def _sky(self, above: Colour, below: Colour) -> None:
        self.image.paste(blended(self.image.size, above, below))

    def _sun(self) -> None:
        uniform = self.rng.uniform
        x, y = self.rng.choice((uniform(10, 17), uniform(83, 90))), uniform(84, 90)
        for radius in (13, 11.8, 10.6, 9.4, 8.2):
            self.ellipse(x, y, radius, radius, (255, 242, 180), shading=0, outline=0, opacity=0.14)
        self.ellipse(x, y, 6.6, 6.6, (255, 214, 84), shading=0.1, outline=0)

    def _cloud(self) -> None:
        uniform = self.rng.uniform
        x, y, size = uniform(15, 85), uniform(72, 92), uniform(0.7, 1.1)
        style = {"shading": 0.03, "outline": 0, "opacity": 0.85}
        for dx, dy, radius in ((-7.5, 0, 4), (-2, 2.2, 5.5), (5, 0.6, 4.5)):
            width, height = radius * size * 1.25, radius * size * 0.8
            self.ellipse(x + dx * size, y + dy * size, width, height, WHITE, **style)

    def _hill(self, height: float, bump: float, phase: float, colour: Colour) -> None:
        x = np.linspace(0, 100, 41)
        top = np.stack([x, height + bump * np.sin(0.042 * x + phase)], axis=1)
        self.polygon([(0, -2), *top, (100, -2)], colour, shading=0.12, outline=0)

    def beach(self) -> None:
        """Sun, sea and sand with pebbles."""
        uniform = self.rng.uniform
        self._sky((112, 196, 240), (236, 246, 236))
        self._sun()
        self._cloud()
        self.box(0, 0, 100, 42, (52, 156, 200), shading=0.14, outline=0)
        for _ in range(9):
            x, y = uniform(0, 90), uniform(33, 41)
            self.line([(x, y), (x + uniform(4, 10), y)], 0.6, (150, 214, 232))
        shore = uniform(0, 6)
        self._hill(31.2, 1.2, shore, (240, 250, 248))
        self._hill(29.5, 1.2, shore, (244, 214, 152))
        for _ in range(26):
            self.ellipse(uniform(0, 100), uniform(2, 25), 0.5, 0.35, (214, 176, 112), outline=0)

    def snow(self) -> None:
        """White hills under a pale sky, with falling flakes."""
        uniform = self.rng.uniform
        self._sky((148, 178, 216), (226, 232, 244))
        phase = uniform(0, 6)
        self._hill(42, 3.5, phase, (206, 220, 240))
        self._hill(34, 3, phase + 2, (226, 236, 248))
        self._hill(25, 2, phase + 4, (246, 249, 254))
        for _ in range(46):
            radius = uniform(0.5, 1.1)
            self.ellipse(uniform(0, 100), uniform(25, 100), radius, radius, WHITE, outline=0)

    def grass(self) -> None:
        """Green hills with flowers under a blue sky."""
        uniform = self.rng.uniform
        self._sky((116, 190, 246), (226, 244, 250))
        self._sun()
        self._cloud()
        self._cloud()
        phase = uniform(0, 6)
        self._hill(40, 3.5, phase, (166, 214, 120))
        self._hill(31, 2.5, phase + 2.4, (134, 198, 92))
        for _ in range(34):
            tuft = path("-0.8,2 0,0 0.7,2.4") + (uniform(0, 100), uniform(1, 27))
            self.line(tuft, 0.5, (96, 164, 66))
        for _ in range(9):
            x, y = uniform(3, 97), uniform(2, 25)
            for petal_x, petal_y in arc(x, y, 0.85, 0.85, 0, 288, 4):
                self.ellipse(petal_x, petal_y, 0.7, 0.7, WHITE, shading=0, outline=0)
            self.ellipse(x, y, 0.6, 0.6, LAMP, outline=0)

    def night(self) -> None:
        """Moon and stars over dark hills."""
        rng = self.rng
        self._sky((16, 20, 62), (72, 76, 152))
        for _ in range(46):
            radius = rng.choice((0.3, 0.4, 0.6))
            x, y = rng.uniform(0, 100), rng.uniform(42, 100)
            self.ellipse(x, y, radius, radius, (255, 250, 220), outline=0)
        x, y = rng.choice((14, 86)), rng.uniform(84, 88)
        for radius in (15, 13.5, 12, 10.5, 9):
            self.ellipse(x, y, radius, radius, (170, 176, 226), shading=0, outline=0, opacity=0.08)
        crescent = [*arc(x, y, 7.5, 7.5, 60, 300), *arc(x + 3.5, y, 6.6, 6.6, 280, 80)]
        self.polygon(crescent, (255, 240, 180), shading=0.05, outline=0)
        phase = rng.uniform(0, 6)
        self._hill(38, 3.5, phase, toned((28, 34, 92), 1.14))
        self._hill(29, 2.5, phase + 2.4, (44, 84, 104))

    def water(self) -> None:
        """The open sea with waves."""
        uniform = self.rng.uniform
        self._sky((126, 200, 244), (238, 246, 250))
        self._sun()
        self._cloud()
        self._cloud()
        self.box(0, -2, 100, 46, (48, 140, 204), shading=0.2, outline=0)
        step = np.arange(11)
        for row in range(8):
            x = uniform(-10, 10)
            while x < 100:
                length = uniform(7, 13)
                wave = [x + length * step / 10, 43 - 5.5 * row + 0.8 * np.sin(step * 0.63)]
                self.line(np.stack(wave, axis=1), 0.7, (120, 196, 232))
                x += length + uniform(8, 22)

    def street(self) -> None:
        """A road in front of a pale skyline."""
        rng = self.rng
        self._sky((160, 204, 236), (250, 236, 216))
        self._cloud()
        x = -2
        while x < 100:
            width, height = rng.uniform(11, 18), rng.uniform(52, 72)
            wall = rng.choice(((196, 204, 220), (206, 206, 218), (188, 200, 214)))
            self.box(x, 30, x + width, height, wall, shading=0.05, outline=0)
            for row in range(int((height - 40) / 5.5)):
                for column in (0.25, 0.6):
                    left, bottom = x + width * column - 1.2, height - 5 - 5.5 * row
                    window = (left, bottom, left + 3, bottom + 2.6)
                    self.box(*window, (222, 230, 238), shading=0.03, outline=0)
            x += width + 0.8
        self.box(0, 26, 100, 36, (214, 208, 200), shading=0.06, outline=0)
        self.box(0, 25, 100, 26.6, (170, 164, 160), outline=0)
        self.box(0, -2, 100, 25, (112, 112, 122), shading=0.1, outline=0)
        shift = rng.uniform(0, 20)
        for left in range(-22, 132, 22):
            dash = path("0,3 11,3 12,5 1,5") + (left + shift, 0)
            self.polygon(dash, (246, 240, 220), shading=0.02, outline=0)


# ---- the things ----------------------------------------------------------------------------------


class ThingPainter(Pen):
    """Draws things, each in a colour of its own."""

    def ball(self, colour: Colour) -> None:
        """A ball with a white band."""
        self.ellipse(0, 50, 50, 50, colour, shading=0.24, outline=1.2)
        t = np.arange(1, 16) / 16
        sag = 14 * np.sin(np.pi * t)
        lower = np.stack([48.9 * (2 * t - 1), 46.6 - sag], axis=1)
        upper = np.stack([43.3 * (1 - 2 * t), 73 - sag], axis=1)
        left, right = arc(0, 50, 49, 49, 152, 184, 8), arc(0, 50, 49, 49, -4, 28, 8)
        self.polygon([*left, *lower, *right, *upper], CREAM, shading=0.1, outline=0.6)
        self.ellipse(-20, 80, 10, 6, WHITE, outline=0, opacity=0.75)

    def boat(self, colour: Colour) -> None:
        """A sailing boat: hull, pennant and one sail carry the colour."""
        self.box(-2, 20, 2, 97, WOOD, outline=0.6)
        self.polygon("-5,92 -5,34 -42,34", colour, shading=0.1)
        self.polygon("5,84 5,34 36,34", WHITE, shading=0.06)
        self.polygon("2,100 2,90 18,95", colour)
        hull = "-50,28 50,28 43,12 34,0 -32,0 -42,10"
        self.polygon(hull, colour, shading=0.2, outline=1.2)
        self.polygon("-50,28 50,28 47.5,22 -47.5,22", CREAM, outline=0.5)

    def car(self, colour: Colour) -> None:
        """A small round car seen from the side."""
        self.polygon("-56,50 -42,90 -32,98 16,98 28,90 46,50", colour, shading=0.1, outline=1.2)
        self.polygon("-46,56 -35,87 -10,87 -10,56", GLASS, outline=0.6)
        self.polygon("-3,56 -3,87 16,87 34,56", GLASS, outline=0.6)
        body = "-83,20 -84,42 -74,56 -30,58 40,57 70,52 83,40 84,22 40,16 -40,16"
        self.curve(body, colour, outline=1.2)
        self.ellipse(76, 40, 6, 7, LAMP, outline=0.6)
        self.box(-4, 46, 8, 49, toned(colour, 0.6), outline=0)
        for x in (-46, 47):
            self.ellipse(x, 19, 20, 20, INK)
            self.ellipse(x, 19, 10, 10, STEEL, outline=0.5)

    def cat(self, colour: Colour) -> None:
        """A sitting cat that looks at us."""
        tail = smooth(path("16,5 34,8 40,24 32,40 34,42"))[10:36]
        self.limb([(12, 6), *tail], 7.5, colour)
        self.curve("0,58 15,48 24,22 22,3 0,0 -22,3 -24,22 -15,48", colour, outline=1.0)
        light = toned(colour, 1.35)
        self.curve("0,50 9,38 7,20 0,14 -7,20 -9,38", light, shading=0.04, outline=0)
        for x in (-10, 10):
            self.ellipse(x, 4.5, 8.5, 5, colour, shading=0.08)
        for side in (-1, 1):
            self.polygon(path("27,74 24,100 7,88") * (side, 1), colour, outline=1.0)
            self.polygon(path("23,80 21,93 13,87") * (side, 1), ROSE, outline=0)
        self.ellipse(0, 70, 28, 22, colour, shading=0.1, outline=1.0)
        for x in (-11, 11):
            self.ellipse(x, 73, 5.5, 6, (170, 214, 90), outline=0.5)
            self.ellipse(x, 73, 2.2, 5.5, INK, outline=0)
        self.ellipse(0, 64, 6, 4, toned(colour, 1.45), outline=0)
        self.polygon("-3,66.5 3,66.5 0,63.5", ROSE, outline=0.4)
        for whisker in ("-10,64 -33,61", "-10,64 -33,66", "10,64 33,61", "10,64 33,66"):
            self.line(whisker, 0.9, (150, 144, 150))

    def dog(self, colour: Colour) -> None:
        """A standing dog seen from the side, its tail up."""
        for x in (-26, 20):
            self.limb([(x, 30), (x, 5)], 9, toned(colour, 0.8))
        self.limb("-36,48 -46,56 -50,68 -47,76", 7, colour)
        body = "-40,50 -20,56 10,55 28,62 33,40 20,24 -10,27 -36,26"
        self.curve(body, colour, outline=1.0)
        for x in (-34, 12):
            self.limb([(x, 32), (x, 5)], 10, colour)
            self.ellipse(x + 3, 4, 8.5, 4.5, colour, shading=0.06)
        head = "12,72 16,90 30,95 40,86 55,79 57,68 42,63 28,58"
        self.curve(head, colour, shading=0.1, outline=1.0)
        self.curve("42,78 54,78 56.5,68 42,64.5", toned(colour, 1.35), shading=0.04, outline=0)
        self.ellipse(55.5, 77, 3.5, 3, INK, outline=0)
        self.ellipse(36, 82, 3.6, 4, WHITE, shading=0, outline=0.5)
        self.ellipse(36.8, 82, 2.2, 2.7, INK, outline=0)
        self.curve("13,92 22,92 26,76 20,60 10,62 8,78", toned(colour, 0.72), outline=1.0)
        self.line("44,68 50,66.5 55,69", 1.4, toned(colour, 0.45))

    def duck(self, colour: Colour) -> None:
        """A duck seen from the side."""
        for x in (-8, 8):
            self.line([(x, 12), (x, 2), (x + 10, 1.5)], 4, BEAK)
        body = "-52,50 -30,42 0,44 18,52 36,42 36,22 12,8 -20,10 -42,26"
        self.curve(body, colour, outline=1.0)
        self.polygon("36,84 52,79 54,74 36,70", BEAK, shading=0.12, outline=0.8)
        neck = "8,46 14,62 4,80 12,96 28,99 41,86 37,70 34,58 36,42"
        self.curve(neck, colour, outline=0)
        self.line(smooth(path(neck))[10:75], 1.3, toned(colour, 0.62))
        wing = "-34,42 -10,40 14,36 8,20 -12,18 -30,28"
        self.curve(wing, toned(colour, 0.88), shading=0.1)
        self.ellipse(27, 85, 3.6, 4.2, WHITE, shading=0, outline=0.5)
        self.ellipse(27.7, 85, 2.2, 2.8, INK, outline=0)

    def _head(self, skin: Colour) -> None:
        self.ellipse(0, 80, 15.5, 15.5, skin, shading=0.08)
        for side in (-1, 1):
            self.ellipse(side * 5.6, 79.5, 1.6, 2.1, INK, outline=0)
            self.ellipse(side * 9.5, 75, 2.6, 1.8, ROSE, outline=0, opacity=0.7)
        self.line(arc(0, 75.5, 4.2, 3.4, 200, 340, 12), 1.3, (170, 70, 70))

    def boy(self, colour: Colour) -> None:
        """A boy; his shirt carries the colour."""
        skin, hair = self.rng.choice(SKINS), self.rng.choice(HAIRS)
        for side in (-1, 1):
            x = side * 7.5
            self.box(x - 5.8, 6, x + 5.8, 34, (92, 90, 110))
            self.ellipse(x + side * 2, 3.5, 8, 3.7, (120, 70, 50))
        for side in (-1, 1):
            self.limb([(side * 13, 58), (side * 24, 38)], 6, skin)
            self.limb([(side * 13, 58), (side * 19, 48)], 9.5, colour)
        self.polygon("-11,65 11,65 17,60 15,30 -15,30 -17,60", colour, outline=1.0)
        self._head(skin)
        fringe = [*arc(0, 82, 16.8, 17, -4, 184), *path("-8,88 2,87 10,90")]
        self.polygon(fringe, hair, shading=0.1)

    def girl(self, colour: Colour) -> None:
        """A girl with plaits; her dress carries the colour."""
        skin, hair = self.rng.choice(SKINS), self.rng.choice(HAIRS)
        for side in (-1, 1):
            plait = smooth(path("13,84 24,82 26,68 21,58 17,70") * (side, 1))
            self.polygon(plait, hair, shading=0.1)
        for side in (-1, 1):
            x = side * 6.5
            self.limb([(x, 26), (x, 6)], 5.5, skin)
            self.ellipse(x + side * 2, 3.3, 6.5, 3.4, (120, 60, 70))
        for side in (-1, 1):
            self.limb([(side * 10, 58), (side * 24, 42)], 5.5, skin)
        dress = "-9,65 9,65 14,58 11,46 27,20 14,17 0,16 -14,17 -27,20 -11,46 -14,58"
        self.polygon(dress, colour, outline=1.0)
        self._head(skin)
        fringe = [*arc(0, 82, 16.8, 17, -8, 188), *path("-10,86 0,92 10,86")]
        self.polygon(fringe, hair, shading=0.1)
        for side in (-1, 1):
            self.ellipse(side * 19, 83, 3, 3, colour, outline=0.6)

    def house(self, colour: Colour) -> None:
        """A house; its walls carry the colour."""
        self.box(-30, 66, -19, 100, (168, 112, 92))
        self.box(-41, 0, 41, 58, colour, shading=0.12, outline=1.2)
        self.polygon("-49,54 -22,93 22,93 49,54", SLATE, shading=0.16, outline=1.2)
        for y in (64, 74, 84):
            reach = 47 - (y - 54) * 0.69
            self.line([(-reach, y), (reach, y)], 0.8, toned(SLATE, 0.8))
        self.polygon([(-9, 0), *arc(0, 26, 9, 8, 180, 0), (9, 0)], WOOD)
        self.ellipse(5.5, 16, 1.4, 1.4, LAMP, outline=0)
        for x in (-26, 26):
            self.box(x - 9.5, 20, x + 9.5, 42, CREAM)
            self.box(x - 7.5, 22, x + 7.5, 40, LAMP, outline=0)
            self.line([(x, 22), (x, 40)], 1.4, CREAM)
            self.line([(x - 7.5, 31), (x + 7.5, 31)], 1.4, CREAM)

    def kite(self, colour: Colour) -> None:
        """A diamond kite with bows on its tail."""
        t = np.arange(21)
        tail = np.stack([8 * np.sin(0.42 * t), 30 - 1.5 * t], axis=1)
        self.line(tail, 1.3, INK)
        for knot in tail[[7, 13, 19]]:
            for side in (-1, 1):
                bow = knot + path("0,0 7.5,3.5 7.5,-3.5") * (side, 1)
                self.polygon(bow, colour, outline=0.6)
        light, dark = toned(colour, 1.22), toned(colour, 0.62)
        self.polygon("0,100 32,68 0,68", colour, shading=0.08, outline=0)
        self.polygon("32,68 0,28 0,68", light, shading=0.08, outline=0)
        self.polygon("0,28 -32,68 0,68", colour, shading=0.08, outline=0)
        self.polygon("-32,68 0,100 0,68", light, shading=0.08, outline=0)
        for line in ("0,100 0,28", "-32,68 32,68", "0,100 32,68 0,28 -32,68 0,100"):
            self.line(line, 1.4, dark)

    def tree(self, colour: Colour) -> None:
        """A tree; its round crown carries the colour."""
        self.polygon("-9,0 -5,12 -4.5,50 4.5,50 5,12 9,0", WOOD, outline=1.0)
        crown = path("-24,48 24,48 0,42 -22,68 22,68 0,79")
        for x, y in crown:
            self.ellipse(x, y, 18.5, 16.5, colour, shading=0.1, outline=1.0)
        for x, y in crown:
            self.ellipse(x, y, 17.8, 15.8, colour, shading=0.12, outline=0)
        self.ellipse(0, 60, 22, 20, colour, shading=0.06, outline=0)
        for x, y, size in ((-20, 74, 7), (2, 86, 7), (18, 56, 6)):
            self.ellipse(x, y, size, size * 0.6, toned(colour, 1.3), outline=0, opacity=0.8)

    def umbrella(self, colour: Colour) -> None:
        """An open umbrella on its pole."""
        self.box(-1.5, 0, 1.5, 95, WOOD, outline=0.6)
        self.ellipse(0, 97.5, 2.2, 2.2, WOOD, outline=0)
        panels = itertools.cycle((colour, toned(colour, 1.4)))
        for left, right in itertools.pairwise((-54, -33, -12, 12, 33, 54)):
            dome = [*arc(0, 56, left, 40, 0, 90, 12), *arc(0, 56, right, 40, 90, 0, 12)]
            hem = arc((left + right) / 2, 56, (right - left) / 2, 4.5, 0, 180, 12)
            self.polygon([*dome, *hem], next(panels), shading=0.12, outline=0.8)


# ---- the pictures and files ----------------------------------------------------------------------


def draw_scene(scene: Scene) -> Image.Image:
    """Draw `scene`: an RGB picture of SIZE x SIZE pixels."""
    rng = random.Random(f"{SEED} drawing {scene.name}")
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    getattr(PlacePainter(image, rng, 0, SIZE, SIZE), scene.place)()
    for index, thing in enumerate(lay_out(scene)):
        grounded = thing.kind != "kite" and not (scene.relation == "on" and index == 1)
        if grounded:
            _cast_shadow(image, thing, scene.place)
        painter = ThingPainter(image, rng, thing.x, thing.foot, thing.height, thing.mirrored)
        getattr(painter, thing.kind)(PALETTE[thing.colour])
        if grounded and scene.place == "water":
            _lap_water(image, thing)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _cast_shadow(image: Image.Image, thing: Placement, place: str) -> None:
    spread = thing.height * KINDS[thing.kind].width * (0.2 if thing.kind == "umbrella" else 0.5)
    points = arc(thing.x, thing.foot, spread, 5) * SCALE
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=110)
    mask = mask.filter(ImageFilter.GaussianBlur(1.5 * SCALE))
    image.paste(SHADOWS.get(place, (50, 46, 40)), mask=mask)


def _lap_water(image: Image.Image, thing: Placement) -> None:
    """Draw small waves over the foot of a thing afloat."""
    left, _, right, foot = thing.box
    pen = Pen(image, None, left - 5, foot + 1, right - left + 10)
    t = np.arange(41)
    wave = np.stack([2.5 * t, 2.2 * np.sin(0.9 * t)], axis=1)
    pen.polygon([*wave, (95, -5), (5, -5)], (62, 150, 206), outline=0)
    pen.line(wave, 1.4, (214, 240, 250))


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
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    write_data_set(parser.parse_args().output)
