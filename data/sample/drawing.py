"""Draw one picture of the sample data set: a place and the things in it. See draw_sample.py."""

import colorsys
from itertools import cycle, pairwise, product

import numpy as np
from PIL import Image, ImageDraw

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


def tint(colour: tuple, factor: float) -> tuple:
    """Make `colour` lighter (factor above 1, towards white) or darker (below 1)."""
    if factor > 1:
        return tuple(round(value + (255 - value) * (factor - 1)) for value in colour)
    hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in colour))
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, light * factor, saturation))


def blended(size: tuple[int, int], top: tuple, bottom: tuple) -> Image.Image:
    """Make an image whose colour changes from `top` to `bottom`."""
    gradient = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), gradient)


def path(points: str) -> np.ndarray:
    """Read points written as in SVG, "0,0 50,100": an array of shape (points, 2)."""
    return np.array([point.split(",") for point in points.split()], dtype=float)


def arc(x, y, width, height, start=0, stop=360, steps=48) -> np.ndarray:
    """Points on the ellipse of these half-axes about (x, y), anticlockwise; angles in degrees."""
    angles = np.radians(start + (stop - start) * np.arange(steps + 1) / steps)
    return np.c_[x + width * np.cos(angles), y + height * np.sin(angles)]


def box(left, bottom, right, top) -> np.ndarray:
    """Return the corners of a rectangle."""
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


def curve(points: str) -> np.ndarray:
    """Points on the closed Catmull-Rom spline through `points`, ten for each of them."""
    t = np.arange(10)[:, None] / 10
    weights = -t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2
    nearest = (np.roll(path(points), 1 - k, axis=0)[:, None] for k in range(4))
    return sum(map(np.multiply, weights, nearest)).reshape(-1, 2) / 2


class Pen:
    """Draws on an image in the coordinates of one thing: 100 high, (0, 0) is its foot's middle.

    x runs to the right, if mirrored to the left; points are a text for `path` or an array like it.
    """

    def __init__(self, image, rng, x, foot, height, mirrored=False, outline=0.9):
        """Start at (x, foot) of `image`; lengths in pixels of the finished picture."""
        self.image, self.brush, self.outline = image, ImageDraw.Draw(image), outline
        self.rng, self.uniform = rng, rng.uniform
        self.origin, self.unit = np.array([x, foot]) * SCALE, height * SCALE / 100
        self.axes = self.unit * np.array([-1 if mirrored else 1, -1])

    def fill(self, colour, *shapes, shading=0.16, outline=None, opacity=1.0):
        """Fill polygons, lighter above and darker below by `shading`, with a darker outline."""
        outline = SCALE * (self.outline if outline is None else outline)
        pad = np.ceil(outline) + 1
        for corners in map(self.pixels, shapes):
            start = (np.floor(corners.min(axis=0)) - pad).astype(int)
            size = tuple((np.ceil(corners.max(axis=0)) + pad - start).astype(int))
            mask = Image.new("L", size)
            ImageDraw.Draw(mask).polygon((corners - start).ravel().tolist(), round(255 * opacity))
            fill = blended(size, tint(colour, 1 + shading), tint(colour, 1 - shading))
            self.image.paste(fill, tuple(start), mask)
            if outline:
                closed, dark = [*corners, *corners[:2]], tint(colour, 0.62)
                self.brush.line(np.ravel(closed).tolist(), dark, round(outline), joint="curve")

    def line(self, colour, width, *lines):
        """Draw lines with round ends."""
        pixels = max(1, round(width * self.unit))
        for corners in map(self.pixels, lines):
            self.brush.line(corners.ravel().tolist(), colour, pixels, joint="curve")
            for end in corners[[0, -1]]:
                self.brush.circle(end, pixels / 2, colour)

    def limb(self, colour, width, *lines):
        """Draw lines with round ends and a darker outline: legs, arms, a tail."""
        self.line(tint(colour, 0.62), width + 1.6 * SCALE / self.unit, *lines)
        self.line(colour, width, *lines)

    def pixels(self, points):
        """Convert points to pixels of the image."""
        return self.origin + self.axes * (path(points) if isinstance(points, str) else points)

    # The places fill the whole picture.
    def sky(self, above, below, sun=False, clouds=0):
        self.image.paste(blended(self.image.size, above, below))
        if sun:
            x = self.rng.choice((self.uniform(10, 17), self.uniform(83, 90)))
            y = self.uniform(84, 90)
            glow = [arc(x, y, radius, radius) for radius in (13, 11.8, 10.6, 9.4, 8.2)]
            self.fill((255, 242, 180), *glow, shading=0, opacity=0.14)
            self.fill((255, 214, 84), arc(x, y, 6.6, 6.6), shading=0.1)
        puffs = arc(-7.5, 0, 5, 3.2), arc(-2, 2.2, 6.875, 4.4), arc(5, 0.6, 5.625, 3.6)
        for _ in range(clouds):
            x, y, size = self.uniform(15, 85), self.uniform(72, 92), self.uniform(0.7, 1.1)
            self.fill(WHITE, *(puff * size + (x, y) for puff in puffs), shading=0.03, opacity=0.85)

    def land(self, step, *layers):
        phase = self.uniform(0, 6)
        x = np.linspace(0, 100, 41)
        for layer, (height, bump, colour) in enumerate(layers):
            y = height + bump * np.sin(0.042 * x + phase + layer * step)
            self.fill(colour, [(0, -2), *zip(x, y, strict=True), (100, -2)], shading=0.12)

    def beach(self):
        self.sky((112, 196, 240), (236, 246, 236), sun=True, clouds=1)
        self.fill((52, 156, 200), box(0, 0, 100, 42), shading=0.14)
        for _ in range(9):
            x, y = self.uniform(0, 90), self.uniform(33, 41)
            self.line((150, 214, 232), 0.6, [(x, y), (x + self.uniform(4, 10), y)])
        self.land(0, (31.2, 1.2, (240, 250, 248)), (29.5, 1.2, (244, 214, 152)))
        for _ in range(26):
            self.fill((214, 176, 112), arc(self.uniform(0, 100), self.uniform(2, 25), 0.5, 0.35))

    def snow(self):
        self.sky((148, 178, 216), (226, 232, 244))
        self.land(2, (42, 3.5, (206, 220, 240)), (34, 3, (226, 236, 248)), (25, 2, (246, 249, 254)))
        for _ in range(46):
            size = self.uniform(0.5, 1.1)
            self.fill(WHITE, arc(self.uniform(0, 100), self.uniform(25, 100), size, size))

    def grass(self):
        self.sky((116, 190, 246), (226, 244, 250), sun=True, clouds=2)
        self.land(2.4, (40, 3.5, (166, 214, 120)), (31, 2.5, (134, 198, 92)))
        for _ in range(34):
            root = self.uniform(0, 100), self.uniform(1, 27)
            self.line((96, 164, 66), 0.5, path("-0.8,2 0,0 0.7,2.4") + root)
        for _ in range(9):
            x, y = self.uniform(3, 97), self.uniform(2, 25)
            petals = [arc(*petal, 0.7, 0.7) for petal in arc(x, y, 0.85, 0.85, 0, 288, 4)]
            self.fill(WHITE, *petals, shading=0)
            self.fill(LAMP, arc(x, y, 0.6, 0.6))

    def night(self):
        self.sky((16, 20, 62), (72, 76, 152))
        for _ in range(46):
            size = self.rng.choice((0.3, 0.4, 0.6))
            self.fill((255, 250, 220), arc(self.uniform(0, 100), self.uniform(42, 100), size, size))
        x, y = self.rng.choice((14, 86)), self.uniform(84, 88)
        glow = [arc(x, y, radius, radius) for radius in (15, 13.5, 12, 10.5, 9)]
        self.fill((170, 176, 226), *glow, shading=0, opacity=0.08)
        crescent = [*arc(x, y, 7.5, 7.5, 60, 300), *arc(x + 3.5, y, 6.6, 6.6, 280, 80)]
        self.fill((255, 240, 180), crescent, shading=0.05)
        self.land(2.4, (38, 3.5, (60, 65, 115)), (29, 2.5, (44, 84, 104)))

    def water(self):
        self.sky((126, 200, 244), (238, 246, 250), sun=True, clouds=2)
        self.fill((48, 140, 204), box(0, -2, 100, 46), shading=0.2)
        wave = np.c_[np.arange(11) / 10, 0.8 * np.sin(np.arange(11) * 0.63)]
        for row in range(8):
            x = self.uniform(-10, 10)
            while x < 100:
                length = self.uniform(7, 13)
                self.line((120, 196, 232), 0.7, (x, 43 - 5.5 * row) + wave * (length, 1))
                x += length + self.uniform(8, 22)

    def street(self):
        self.sky((160, 204, 236), (250, 236, 216), clouds=1)
        x = -2
        while x < 100:
            width, height = self.uniform(11, 18), self.uniform(52, 72)
            wall = self.rng.choice(((196, 204, 220), (206, 206, 218), (188, 200, 214)))
            self.fill(wall, box(x, 30, x + width, height), shading=0.05)
            for row, column in product(range(int((height - 40) / 5.5)), (0.25, 0.6)):
                left, bottom = x + width * column - 1.2, height - 5 - 5.5 * row
                self.fill((222, 230, 238), box(left, bottom, left + 3, bottom + 2.6), shading=0.03)
            x += width + 0.8
        self.fill((214, 208, 200), box(0, 26, 100, 36), shading=0.06)
        self.fill((170, 164, 160), box(0, 25, 100, 26.6))
        self.fill((112, 112, 122), box(0, -2, 100, 25), shading=0.1)
        lefts = np.arange(-22, 132, 22) + self.uniform(0, 20)
        dashes = [[(x, 3), (x + 11, 3), (x + 12, 5), (x + 1, 5)] for x in lefts]
        self.fill((246, 240, 220), *dashes, shading=0.02)

    def ripples(self):
        wave = np.c_[np.linspace(0, 100, 41), 2.2 * np.sin(0.9 * np.arange(41))]
        self.fill((62, 150, 206), [*wave, (95, -5), (5, -5)])
        self.line((214, 240, 250), 1.4, wave)

    # The things have a colour of their own.
    def ball(self, colour):
        self.fill(colour, arc(0, 50, 50, 50), shading=0.24, outline=1.2)
        t = np.linspace(-1, 1, 17)[1:-1]
        sag = 14 * np.cos(np.pi / 2 * t)
        lower, upper = np.c_[48.9 * t, 46.6 - sag], np.c_[-43.3 * t, 73 - sag]
        left, right = arc(0, 50, 49, 49, 152, 184, 8), arc(0, 50, 49, 49, -4, 28, 8)
        self.fill(CREAM, [*left, *lower, *right, *upper], shading=0.1, outline=0.6)
        self.fill(WHITE, arc(-20, 80, 10, 6), outline=0, opacity=0.75)

    def boat(self, colour):
        self.fill(WOOD, box(-2, 20, 2, 97), outline=0.6)
        self.fill(colour, "-5,92 -5,34 -42,34", shading=0.1)
        self.fill(WHITE, "5,84 5,34 36,34", shading=0.06)
        self.fill(colour, "2,100 2,90 18,95")
        self.fill(colour, "-50,28 50,28 43,12 34,0 -32,0 -42,10", shading=0.2, outline=1.2)
        self.fill(CREAM, "-50,28 50,28 47.5,22 -47.5,22", outline=0.5)

    def car(self, colour):
        self.fill(colour, "-56,50 -42,90 -32,98 16,98 28,90 46,50", shading=0.1, outline=1.2)
        self.fill(GLASS, "-46,56 -35,87 -10,87 -10,56", "-3,56 -3,87 16,87 34,56", outline=0.6)
        body = "-83,20 -84,42 -74,56 -30,58 40,57 70,52 83,40 84,22 40,16 -40,16"
        self.fill(colour, curve(body), outline=1.2)
        self.fill(LAMP, arc(76, 40, 6, 7), outline=0.6)
        self.fill(tint(colour, 0.6), box(-4, 46, 8, 49), outline=0)
        self.fill(INK, arc(-46, 19, 20, 20), arc(47, 19, 20, 20))
        self.fill(STEEL, arc(-46, 19, 10, 10), arc(47, 19, 10, 10), outline=0.5)

    def cat(self, colour):
        self.limb(colour, 7.5, [(12, 6), *curve("16,5 34,8 40,24 32,40 34,42")[10:36]])
        self.fill(colour, curve("0,58 15,48 24,22 22,3 0,0 -22,3 -24,22 -15,48"))
        chest = curve("0,50 9,38 7,20 0,14 -7,20 -9,38")
        self.fill(tint(colour, 1.35), chest, shading=0.04, outline=0)
        self.fill(colour, arc(-10, 4.5, 8.5, 5), arc(10, 4.5, 8.5, 5), shading=0.08)
        self.fill(colour, "-27,74 -24,100 -7,88", "27,74 24,100 7,88")
        self.fill(ROSE, "-23,80 -21,93 -13,87", "23,80 21,93 13,87", outline=0)
        self.fill(colour, arc(0, 70, 28, 22), shading=0.1)
        self.fill((170, 214, 90), arc(-11, 73, 5.5, 6), arc(11, 73, 5.5, 6), outline=0.5)
        self.fill(INK, arc(-11, 73, 2.2, 5.5), arc(11, 73, 2.2, 5.5), outline=0)
        self.fill(tint(colour, 1.45), arc(0, 64, 6, 4), outline=0)
        self.fill(ROSE, "-3,66.5 3,66.5 0,63.5", outline=0.4)
        whiskers = "-10,64 -33,61", "-10,64 -33,66", "10,64 33,61", "10,64 33,66"
        self.line((150, 144, 150), 0.9, *whiskers)

    def dog(self, colour):
        self.limb(tint(colour, 0.8), 9, "-26,30 -26,5", "20,30 20,5")
        self.limb(colour, 7, "-36,48 -46,56 -50,68 -47,76")
        self.fill(colour, curve("-40,50 -20,56 10,55 28,62 33,40 20,24 -10,27 -36,26"))
        self.limb(colour, 10, "-34,32 -34,5", "12,32 12,5")
        self.fill(colour, arc(-31, 4, 8.5, 4.5), arc(15, 4, 8.5, 4.5), shading=0.06)
        self.fill(colour, curve("12,72 16,90 30,95 40,86 55,79 57,68 42,63 28,58"), shading=0.1)
        self.fill(tint(colour, 1.35), curve("42,78 54,78 56.5,68 42,64.5"), shading=0.04, outline=0)
        self.fill(WHITE, arc(36, 82, 3.6, 4), shading=0, outline=0.5)
        self.fill(INK, arc(55.5, 77, 3.5, 3), arc(36.8, 82, 2.2, 2.7), outline=0)
        self.fill(tint(colour, 0.72), curve("13,92 22,92 26,76 20,60 10,62 8,78"))
        self.line(tint(colour, 0.45), 1.4, "44,68 50,66.5 55,69")

    def duck(self, colour):
        self.line(BEAK, 4, "-8,12 -8,2 2,1.5", "8,12 8,2 18,1.5")
        self.fill(colour, curve("-52,50 -30,42 0,44 18,52 36,42 36,22 12,8 -20,10 -42,26"))
        self.fill(BEAK, "36,84 52,79 54,74 36,70", shading=0.12, outline=0.8)
        neck = curve("8,46 14,62 4,80 12,96 28,99 41,86 37,70 34,58 36,42")
        self.fill(colour, neck, outline=0)
        self.line(tint(colour, 0.62), 1.3, neck[10:75])
        self.fill(tint(colour, 0.88), curve("-34,42 -10,40 14,36 8,20 -12,18 -30,28"), shading=0.1)
        self.fill(WHITE, arc(27, 85, 3.6, 4.2), shading=0, outline=0.5)
        self.fill(INK, arc(27.7, 85, 2.2, 2.8), outline=0)

    def head(self, skin, hair, fringe):
        self.fill(skin, arc(0, 80, 15.5, 15.5), shading=0.08)
        self.fill(INK, arc(-5.6, 79.5, 1.6, 2.1), arc(5.6, 79.5, 1.6, 2.1), outline=0)
        self.fill(ROSE, arc(-9.5, 75, 2.6, 1.8), arc(9.5, 75, 2.6, 1.8), outline=0, opacity=0.7)
        self.line((170, 70, 70), 1.3, arc(0, 75.5, 4.2, 3.4, 200, 340, 12))
        self.fill(hair, fringe, shading=0.1)

    def boy(self, colour):
        skin, hair = self.rng.choice(SKINS), self.rng.choice(HAIRS)
        self.fill((92, 90, 110), box(-13.3, 6, -1.7, 34), box(1.7, 6, 13.3, 34))
        self.fill((120, 70, 50), arc(-9.5, 3.5, 8, 3.7), arc(9.5, 3.5, 8, 3.7))
        self.limb(skin, 6, "-13,58 -24,38", "13,58 24,38")
        self.limb(colour, 9.5, "-13,58 -19,48", "13,58 19,48")
        self.fill(colour, "-11,65 11,65 17,60 15,30 -15,30 -17,60")
        self.head(skin, hair, [*arc(0, 82, 16.8, 17, -4, 184), *path("-8,88 2,87 10,90")])

    def girl(self, colour):
        skin, hair = self.rng.choice(SKINS), self.rng.choice(HAIRS)
        lock = curve("13,84 24,82 26,68 21,58 17,70")
        self.fill(hair, lock * (-1, 1), lock, shading=0.1)
        self.limb(skin, 5.5, "-6.5,26 -6.5,6", "6.5,26 6.5,6")
        self.fill((120, 60, 70), arc(-8.5, 3.3, 6.5, 3.4), arc(8.5, 3.3, 6.5, 3.4))
        self.limb(skin, 5.5, "-10,58 -24,42", "10,58 24,42")
        self.fill(colour, "-9,65 9,65 14,58 11,46 27,20 14,17 0,16 -14,17 -27,20 -11,46 -14,58")
        self.head(skin, hair, [*arc(0, 82, 16.8, 17, -8, 188), *path("-10,86 0,92 10,86")])
        self.fill(colour, arc(-19, 83, 3, 3), arc(19, 83, 3, 3), outline=0.6)

    def house(self, colour):
        self.fill((168, 112, 92), box(-30, 66, -19, 100))
        self.fill(colour, box(-41, 0, 41, 58), shading=0.12, outline=1.2)
        self.fill(SLATE, "-49,54 -22,93 22,93 49,54", outline=1.2)
        self.line(tint(SLATE, 0.8), 0.8, "-40.1,64 40.1,64", "-33.2,74 33.2,74", "-26.3,84 26.3,84")
        self.fill(WOOD, [(-9, 0), *arc(0, 26, 9, 8, 180, 0), (9, 0)])
        self.fill(LAMP, arc(5.5, 16, 1.4, 1.4), outline=0)
        self.fill(CREAM, box(-35.5, 20, -16.5, 42), box(16.5, 20, 35.5, 42))
        self.fill(LAMP, box(-33.5, 22, -18.5, 40), box(18.5, 22, 33.5, 40), outline=0)
        self.line(CREAM, 1.4, "-26,22 -26,40", "26,22 26,40")
        self.line(CREAM, 1.4, "-33.5,31 -18.5,31", "18.5,31 33.5,31")

    def kite(self, colour):
        tail = np.c_[8 * np.sin(0.42 * np.arange(21)), 30 - 1.5 * np.arange(21)]
        self.line(INK, 1.3, tail)
        bow = path("0,0 7.5,3.5 7.5,-3.5")
        bows = [knot + bow * (side, 1) for knot in tail[7::6] for side in (-1, 1)]
        self.fill(colour, *bows, outline=0.6)
        self.fill(colour, "0,100 32,68 0,68", "0,28 -32,68 0,68", shading=0.08, outline=0)
        light = tint(colour, 1.22)
        self.fill(light, "32,68 0,28 0,68", "-32,68 0,100 0,68", shading=0.08, outline=0)
        self.line(tint(colour, 0.62), 1.4, "-32,68 32,68", "0,100 32,68 0,28 -32,68 0,100 0,28")

    def tree(self, colour):
        self.fill(WOOD, "-9,0 -5,12 -4.5,50 4.5,50 5,12 9,0")
        crown = path("-24,48 24,48 0,42 -22,68 22,68 0,79")
        self.fill(colour, *(arc(x, y, 18.5, 16.5) for x, y in crown), shading=0.1)
        self.fill(colour, *(arc(x, y, 17.8, 15.8) for x, y in crown), shading=0.12, outline=0)
        self.fill(colour, arc(0, 60, 22, 20), shading=0.06, outline=0)
        leaves = arc(-20, 74, 7, 4.2), arc(2, 86, 7, 4.2), arc(18, 56, 6, 3.6)
        self.fill(tint(colour, 1.3), *leaves, outline=0, opacity=0.8)

    def umbrella(self, colour):
        self.fill(WOOD, box(-1.5, 0, 1.5, 95), outline=0.6)
        self.fill(WOOD, arc(0, 97.5, 2.2, 2.2), outline=0)
        tones = cycle((colour, tint(colour, 1.4)))
        for left, right in pairwise((-54, -33, -12, 12, 33, 54)):
            dome = [*arc(0, 56, left, 40, 0, 90, 12), *arc(0, 56, right, 40, 90, 0, 12)]
            hem = arc((left + right) / 2, 56, (right - left) / 2, 4.5, 0, 180, 12)
            self.fill(next(tones), [*dome, *hem], shading=0.12, outline=0.8)
