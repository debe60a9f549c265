"""Draw one picture of the sample data set: a place and the things in it. See draw_sample.py."""

import colorsys
import math
import random
from itertools import cycle, pairwise, product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

SIZE = 224  # pixels, width and height of a picture
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


class Placement(NamedTuple):
    """A thing in a picture; pixels of the finished picture, from its upper left corner."""

    kind: str
    colour: str
    x: float  # of the middle
    foot: float  # y of the lower edge
    width: float
    height: float
    mirrored: bool
    grounded: bool  # stands or floats at the place, neither flies nor rides

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels."""
        left, right = self.x - self.width / 2, self.x + self.width / 2
        return left, self.foot - self.height, right, self.foot


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


def box(left, bottom, right, top) -> np.ndarray:
    """Return the corners of a rectangle."""
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


def curve(points: str) -> np.ndarray:
    """Points on the closed Catmull-Rom spline through `points`, ten for each of them."""
    p0, p1, p2, p3 = (np.roll(path(points), 1 - k, axis=0)[:, None] for k in range(4))
    t = np.arange(10)[:, None] / 10
    spline = (-t + 2 * t**2 - t**3) * p0 + (2 - 5 * t**2 + 3 * t**3) * p1
    spline = spline + (t + 4 * t**2 - 3 * t**3) * p2 + (-(t**2) + t**3) * p3
    return spline.reshape(-1, 2) / 2


class _Pen:
    """Draws on an image in the coordinates of one thing, 100 high.

    x runs from the middle of its foot to the right (to the left if mirrored) and y upwards. Points
    are an array of shape (points, 2) or a text for `path`.
    """

    def __init__(self, image, rng, x, foot, height, mirrored=False, outline=0.9):
        """Start at (x, foot) of `image`; lengths in pixels of the finished picture."""
        self.image, self.brush, self.outline = image, ImageDraw.Draw(image), outline
        self.rng, self.uniform = rng, rng.uniform
        self.origin, self.unit = np.array([x, foot]) * SCALE, height * SCALE / 100
        self.axes = self.unit * np.array([-1 if mirrored else 1, -1])

    def pixels(self, points):
        """Convert points to pixels of the image."""
        points = path(points) if isinstance(points, str) else np.array(points)
        return self.origin + self.axes * points

    def fill(self, points, colour, shading=0.16, outline=None, opacity=1.0):
        """Fill a polygon, lighter above and darker below by `shading`, with a darker outline."""
        outline = SCALE * (self.outline if outline is None else outline)
        pad = math.ceil(outline) + 1
        corners = self.pixels(points)
        start = np.floor(corners.min(axis=0)).astype(int) - pad
        size = tuple(np.ceil(corners.max(axis=0)).astype(int) + pad - start)
        mask = Image.new("L", size)
        inside = (corners - start).ravel().tolist()
        ImageDraw.Draw(mask).polygon(inside, fill=round(255 * opacity))
        fill = blended(size, toned(colour, 1 + shading), toned(colour, 1 - shading))
        self.image.paste(fill, tuple(start), mask)
        if outline:
            closed, dark = [*corners, *corners[:2]], toned(colour, 0.62)
            self.brush.line(np.ravel(closed).tolist(), dark, round(outline), joint="curve")

    def line(self, points, width, colour):
        """Draw a line with round ends."""
        corners = self.pixels(points)
        pixels = max(1, round(width * self.unit))
        self.brush.line(corners.ravel().tolist(), colour, pixels, joint="curve")
        for end in corners[[0, -1]]:
            self.brush.circle(end, pixels / 2, colour)

    def limb(self, points, width, colour):
        """Draw a line with round ends and a darker outline: a leg, an arm, a tail."""
        self.line(points, width + 1.6 * SCALE / self.unit, toned(colour, 0.62))
        self.line(points, width, colour)

    # The places: over the whole picture.

    def sky(self, above, below, sun=False, clouds=0):
        self.image.paste(blended(self.image.size, above, below))
        if sun:
            x = self.rng.choice((self.uniform(10, 17), self.uniform(83, 90)))
            y = self.uniform(84, 90)
            for radius in (13, 11.8, 10.6, 9.4, 8.2):
                self.fill(arc(x, y, radius, radius), (255, 242, 180), shading=0, opacity=0.14)
            self.fill(arc(x, y, 6.6, 6.6), (255, 214, 84), shading=0.1)
        for _ in range(clouds):
            x, y, size = self.uniform(15, 85), self.uniform(72, 92), self.uniform(0.7, 1.1)
            for dx, dy, radius in ((-7.5, 0, 4), (-2, 2.2, 5.5), (5, 0.6, 4.5)):
                puff = arc(dx, dy, radius * 1.25, radius * 0.8) * size + (x, y)
                self.fill(puff, WHITE, shading=0.03, opacity=0.85)

    def hill(self, height, bump, phase, colour):
        x = np.linspace(0, 100, 41)
        top = np.stack([x, height + bump * np.sin(0.042 * x + phase)], axis=1)
        self.fill([(0, -2), *top, (100, -2)], colour, shading=0.12)

    def beach(self):
        self.sky((112, 196, 240), (236, 246, 236), sun=True, clouds=1)
        self.fill(box(0, 0, 100, 42), (52, 156, 200), shading=0.14)
        for _ in range(9):
            x, y = self.uniform(0, 90), self.uniform(33, 41)
            self.line([(x, y), (x + self.uniform(4, 10), y)], 0.6, (150, 214, 232))
        shore = self.uniform(0, 6)
        self.hill(31.2, 1.2, shore, (240, 250, 248))
        self.hill(29.5, 1.2, shore, (244, 214, 152))
        for _ in range(26):
            self.fill(arc(self.uniform(0, 100), self.uniform(2, 25), 0.5, 0.35), (214, 176, 112))

    def snow(self):
        self.sky((148, 178, 216), (226, 232, 244))
        phase = self.uniform(0, 6)
        self.hill(42, 3.5, phase, (206, 220, 240))
        self.hill(34, 3, phase + 2, (226, 236, 248))
        self.hill(25, 2, phase + 4, (246, 249, 254))
        for _ in range(46):
            radius = self.uniform(0.5, 1.1)
            self.fill(arc(self.uniform(0, 100), self.uniform(25, 100), radius, radius), WHITE)

    def grass(self):
        self.sky((116, 190, 246), (226, 244, 250), sun=True, clouds=2)
        phase = self.uniform(0, 6)
        self.hill(40, 3.5, phase, (166, 214, 120))
        self.hill(31, 2.5, phase + 2.4, (134, 198, 92))
        for _ in range(34):
            root = np.array([self.uniform(0, 100), self.uniform(1, 27)])
            self.line(root + path("-0.8,2 0,0 0.7,2.4"), 0.5, (96, 164, 66))
        for _ in range(9):
            x, y = self.uniform(3, 97), self.uniform(2, 25)
            for petal in arc(x, y, 0.85, 0.85, 0, 288, 4):
                self.fill(arc(*petal, 0.7, 0.7), WHITE, shading=0)
            self.fill(arc(x, y, 0.6, 0.6), LAMP)

    def night(self):
        self.sky((16, 20, 62), (72, 76, 152))
        for _ in range(46):
            radius = self.rng.choice((0.3, 0.4, 0.6))
            x, y = self.uniform(0, 100), self.uniform(42, 100)
            self.fill(arc(x, y, radius, radius), (255, 250, 220))
        x, y = self.rng.choice((14, 86)), self.uniform(84, 88)
        for radius in (15, 13.5, 12, 10.5, 9):
            self.fill(arc(x, y, radius, radius), (170, 176, 226), shading=0, opacity=0.08)
        crescent = [*arc(x, y, 7.5, 7.5, 60, 300), *arc(x + 3.5, y, 6.6, 6.6, 280, 80)]
        self.fill(crescent, (255, 240, 180), shading=0.05)
        phase = self.uniform(0, 6)
        self.hill(38, 3.5, phase, (60, 65, 115))
        self.hill(29, 2.5, phase + 2.4, (44, 84, 104))

    def water(self):
        self.sky((126, 200, 244), (238, 246, 250), sun=True, clouds=2)
        self.fill(box(0, -2, 100, 46), (48, 140, 204), shading=0.2)
        wave = np.stack([np.arange(11) / 10, 0.8 * np.sin(np.arange(11) * 0.63)], axis=1)
        for row in range(8):
            x = self.uniform(-10, 10)
            while x < 100:
                length = self.uniform(7, 13)
                self.line((x, 43 - 5.5 * row) + wave * (length, 1), 0.7, (120, 196, 232))
                x += length + self.uniform(8, 22)

    def street(self):
        self.sky((160, 204, 236), (250, 236, 216), clouds=1)
        x = -2
        while x < 100:
            width, height = self.uniform(11, 18), self.uniform(52, 72)
            wall = self.rng.choice(((196, 204, 220), (206, 206, 218), (188, 200, 214)))
            self.fill(box(x, 30, x + width, height), wall, shading=0.05)
            for row, column in product(range(int((height - 40) / 5.5)), (0.25, 0.6)):
                left, bottom = x + width * column - 1.2, height - 5 - 5.5 * row
                self.fill(box(left, bottom, left + 3, bottom + 2.6), (222, 230, 238), shading=0.03)
            x += width + 0.8
        self.fill(box(0, 26, 100, 36), (214, 208, 200), shading=0.06)
        self.fill(box(0, 25, 100, 26.6), (170, 164, 160))
        self.fill(box(0, -2, 100, 25), (112, 112, 122), shading=0.1)
        shift = self.uniform(0, 20)
        for left in range(-22, 132, 22):
            dash = path("0,3 11,3 12,5 1,5") + np.array([left + shift, 0])
            self.fill(dash, (246, 240, 220), shading=0.02)

    # The things.

    def ball(self, colour):
        self.fill(arc(0, 50, 50, 50), colour, shading=0.24, outline=1.2)
        t = np.arange(1, 16) / 16
        sag = 14 * np.sin(np.pi * t)
        lower = np.stack([48.9 * (2 * t - 1), 46.6 - sag], axis=1)
        upper = np.stack([43.3 * (1 - 2 * t), 73 - sag], axis=1)
        left, right = arc(0, 50, 49, 49, 152, 184, 8), arc(0, 50, 49, 49, -4, 28, 8)
        self.fill([*left, *lower, *right, *upper], CREAM, shading=0.1, outline=0.6)
        self.fill(arc(-20, 80, 10, 6), WHITE, outline=0, opacity=0.75)

    def boat(self, colour):
        self.fill(box(-2, 20, 2, 97), WOOD, outline=0.6)
        self.fill("-5,92 -5,34 -42,34", colour, shading=0.1)
        self.fill("5,84 5,34 36,34", WHITE, shading=0.06)
        self.fill("2,100 2,90 18,95", colour)
        self.fill("-50,28 50,28 43,12 34,0 -32,0 -42,10", colour, shading=0.2, outline=1.2)
        self.fill("-50,28 50,28 47.5,22 -47.5,22", CREAM, outline=0.5)

    def car(self, colour):
        self.fill("-56,50 -42,90 -32,98 16,98 28,90 46,50", colour, shading=0.1, outline=1.2)
        self.fill("-46,56 -35,87 -10,87 -10,56", GLASS, outline=0.6)
        self.fill("-3,56 -3,87 16,87 34,56", GLASS, outline=0.6)
        body = "-83,20 -84,42 -74,56 -30,58 40,57 70,52 83,40 84,22 40,16 -40,16"
        self.fill(curve(body), colour, outline=1.2)
        self.fill(arc(76, 40, 6, 7), LAMP, outline=0.6)
        self.fill(box(-4, 46, 8, 49), toned(colour, 0.6), outline=0)
        for x in (-46, 47):
            self.fill(arc(x, 19, 20, 20), INK)
            self.fill(arc(x, 19, 10, 10), STEEL, outline=0.5)

    def cat(self, colour):
        tail = curve("16,5 34,8 40,24 32,40 34,42")[10:36]
        self.limb([(12, 6), *tail], 7.5, colour)
        self.fill(curve("0,58 15,48 24,22 22,3 0,0 -22,3 -24,22 -15,48"), colour)
        chest = curve("0,50 9,38 7,20 0,14 -7,20 -9,38")
        self.fill(chest, toned(colour, 1.35), shading=0.04, outline=0)
        for side in (-1, 1):
            self.fill(arc(10 * side, 4.5, 8.5, 5), colour, shading=0.08)
            self.fill(path("27,74 24,100 7,88") * (side, 1), colour)
            self.fill(path("23,80 21,93 13,87") * (side, 1), ROSE, outline=0)
        self.fill(arc(0, 70, 28, 22), colour, shading=0.1)
        self.fill(arc(0, 64, 6, 4), toned(colour, 1.45), outline=0)
        self.fill("-3,66.5 3,66.5 0,63.5", ROSE, outline=0.4)
        for side in (-1, 1):
            self.fill(arc(11 * side, 73, 5.5, 6), (170, 214, 90), outline=0.5)
            self.fill(arc(11 * side, 73, 2.2, 5.5), INK, outline=0)
            for whisker in ("10,64 33,61", "10,64 33,66"):
                self.line(path(whisker) * (side, 1), 0.9, (150, 144, 150))

    def dog(self, colour):
        for x in (-26, 20):
            self.limb([(x, 30), (x, 5)], 9, toned(colour, 0.8))
        self.limb("-36,48 -46,56 -50,68 -47,76", 7, colour)
        self.fill(curve("-40,50 -20,56 10,55 28,62 33,40 20,24 -10,27 -36,26"), colour)
        for x in (-34, 12):
            self.limb([(x, 32), (x, 5)], 10, colour)
            self.fill(arc(x + 3, 4, 8.5, 4.5), colour, shading=0.06)
        self.fill(curve("12,72 16,90 30,95 40,86 55,79 57,68 42,63 28,58"), colour, shading=0.1)
        muzzle = curve("42,78 54,78 56.5,68 42,64.5")
        self.fill(muzzle, toned(colour, 1.35), shading=0.04, outline=0)
        self.fill(arc(55.5, 77, 3.5, 3), INK, outline=0)
        self.fill(arc(36, 82, 3.6, 4), WHITE, shading=0, outline=0.5)
        self.fill(arc(36.8, 82, 2.2, 2.7), INK, outline=0)
        self.fill(curve("13,92 22,92 26,76 20,60 10,62 8,78"), toned(colour, 0.72))
        self.line("44,68 50,66.5 55,69", 1.4, toned(colour, 0.45))

    def duck(self, colour):
        for x in (-8, 8):
            self.line([(x, 12), (x, 2), (x + 10, 1.5)], 4, BEAK)
        self.fill(curve("-52,50 -30,42 0,44 18,52 36,42 36,22 12,8 -20,10 -42,26"), colour)
        self.fill("36,84 52,79 54,74 36,70", BEAK, shading=0.12, outline=0.8)
        neck = curve("8,46 14,62 4,80 12,96 28,99 41,86 37,70 34,58 36,42")
        self.fill(neck, colour, outline=0)
        self.line(neck[10:75], 1.3, toned(colour, 0.62))
        self.fill(curve("-34,42 -10,40 14,36 8,20 -12,18 -30,28"), toned(colour, 0.88), shading=0.1)
        self.fill(arc(27, 85, 3.6, 4.2), WHITE, shading=0, outline=0.5)
        self.fill(arc(27.7, 85, 2.2, 2.8), INK, outline=0)

    def head(self, skin, hair, fringe):
        self.fill(arc(0, 80, 15.5, 15.5), skin, shading=0.08)
        for side in (-1, 1):
            self.fill(arc(5.6 * side, 79.5, 1.6, 2.1), INK, outline=0)
            self.fill(arc(9.5 * side, 75, 2.6, 1.8), ROSE, outline=0, opacity=0.7)
        self.line(arc(0, 75.5, 4.2, 3.4, 200, 340, 12), 1.3, (170, 70, 70))
        self.fill(fringe, hair, shading=0.1)

    def boy(self, colour):
        skin, hair = self.rng.choice(SKINS), self.rng.choice(HAIRS)
        for side in (-1, 1):
            self.fill(box(7.5 * side - 5.8, 6, 7.5 * side + 5.8, 34), (92, 90, 110))
            self.fill(arc(9.5 * side, 3.5, 8, 3.7), (120, 70, 50))
            self.limb(path("13,58 24,38") * (side, 1), 6, skin)
            self.limb(path("13,58 19,48") * (side, 1), 9.5, colour)
        self.fill("-11,65 11,65 17,60 15,30 -15,30 -17,60", colour)
        self.head(skin, hair, [*arc(0, 82, 16.8, 17, -4, 184), *path("-8,88 2,87 10,90")])

    def girl(self, colour):
        skin, hair = self.rng.choice(SKINS), self.rng.choice(HAIRS)
        for side in (-1, 1):
            self.fill(curve("13,84 24,82 26,68 21,58 17,70") * (side, 1), hair, shading=0.1)
            self.limb(path("6.5,26 6.5,6") * (side, 1), 5.5, skin)
            self.fill(arc(8.5 * side, 3.3, 6.5, 3.4), (120, 60, 70))
            self.limb(path("10,58 24,42") * (side, 1), 5.5, skin)
        self.fill("-9,65 9,65 14,58 11,46 27,20 14,17 0,16 -14,17 -27,20 -11,46 -14,58", colour)
        self.head(skin, hair, [*arc(0, 82, 16.8, 17, -8, 188), *path("-10,86 0,92 10,86")])
        for x in (-19, 19):
            self.fill(arc(x, 83, 3, 3), colour, outline=0.6)

    def house(self, colour):
        self.fill(box(-30, 66, -19, 100), (168, 112, 92))
        self.fill(box(-41, 0, 41, 58), colour, shading=0.12, outline=1.2)
        self.fill("-49,54 -22,93 22,93 49,54", SLATE, outline=1.2)
        for tiles in ("-40.1,64 40.1,64", "-33.2,74 33.2,74", "-26.3,84 26.3,84"):
            self.line(tiles, 0.8, toned(SLATE, 0.8))
        self.fill([(-9, 0), *arc(0, 26, 9, 8, 180, 0), (9, 0)], WOOD)
        self.fill(arc(5.5, 16, 1.4, 1.4), LAMP, outline=0)
        for x in (-26, 26):
            self.fill(box(x - 9.5, 20, x + 9.5, 42), CREAM)
            self.fill(box(x - 7.5, 22, x + 7.5, 40), LAMP, outline=0)
            self.line([(x, 22), (x, 40)], 1.4, CREAM)
            self.line([(x - 7.5, 31), (x + 7.5, 31)], 1.4, CREAM)

    def kite(self, colour):
        t = np.arange(21)
        tail = np.stack([8 * np.sin(0.42 * t), 30 - 1.5 * t], axis=1)
        self.line(tail, 1.3, INK)
        for knot, side in product(tail[[7, 13, 19]], (-1, 1)):
            self.fill(knot + path("0,0 7.5,3.5 7.5,-3.5") * (side, 1), colour, outline=0.6)
        tones = cycle((colour, toned(colour, 1.22)))
        for edge in ("0,100 32,68", "32,68 0,28", "0,28 -32,68", "-32,68 0,100"):
            self.fill(f"{edge} 0,68", next(tones), shading=0.08, outline=0)
        for spar in ("0,100 0,28", "-32,68 32,68", "0,100 32,68 0,28 -32,68 0,100"):
            self.line(spar, 1.4, toned(colour, 0.62))

    def tree(self, colour):
        self.fill("-9,0 -5,12 -4.5,50 4.5,50 5,12 9,0", WOOD)
        crown = path("-24,48 24,48 0,42 -22,68 22,68 0,79")
        for x, y in crown:
            self.fill(arc(x, y, 18.5, 16.5), colour, shading=0.1)
        for x, y in crown:
            self.fill(arc(x, y, 17.8, 15.8), colour, shading=0.12, outline=0)
        self.fill(arc(0, 60, 22, 20), colour, shading=0.06, outline=0)
        for x, y, size in ((-20, 74, 7), (2, 86, 7), (18, 56, 6)):
            self.fill(arc(x, y, size, size * 0.6), toned(colour, 1.3), outline=0, opacity=0.8)

    def umbrella(self, colour):
        self.fill(box(-1.5, 0, 1.5, 95), WOOD, outline=0.6)
        self.fill(arc(0, 97.5, 2.2, 2.2), WOOD, outline=0)
        tones = cycle((colour, toned(colour, 1.4)))
        for left, right in pairwise((-54, -33, -12, 12, 33, 54)):
            dome = [*arc(0, 56, left, 40, 0, 90, 12), *arc(0, 56, right, 40, 90, 0, 12)]
            hem = arc((left + right) / 2, 56, (right - left) / 2, 4.5, 0, 180, 12)
            self.fill([*dome, *hem], next(tones), shading=0.12, outline=0.8)


def draw_picture(place: str, things: list, rng: random.Random) -> Image.Image:
    """Draw `things` at `place`, in their order: an RGB picture of SIZE x SIZE pixels."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    getattr(_Pen(image, rng, 0, SIZE, SIZE, outline=0), place)()
    for thing in things:
        if thing.grounded:  # it casts a shadow
            spread = thing.width * (0.2 if thing.kind == "umbrella" else 0.5)
            mask = Image.new("L", image.size)
            points = arc(thing.x, thing.foot, spread, 5) * SCALE
            ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=110)
            mask = mask.filter(ImageFilter.GaussianBlur(1.5 * SCALE))
            image.paste(SHADOWS.get(place, (50, 46, 40)), mask=mask)
        pen = _Pen(image, rng, thing.x, thing.foot, thing.height, thing.mirrored)
        getattr(pen, thing.kind)(PALETTE[thing.colour])
        if thing.grounded and place == "water":  # a wave covers its foot
            left, width = thing.x - thing.width / 2 - 5, thing.width + 10
            pen = _Pen(image, rng, left, thing.foot + 1, width, outline=0)
            wave = np.stack([np.linspace(0, 100, 41), 2.2 * np.sin(0.9 * np.arange(41))], axis=1)
            pen.fill([*wave, (95, -5), (5, -5)], (62, 150, 206))
            pen.line(wave, 1.4, (214, 240, 250))
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
