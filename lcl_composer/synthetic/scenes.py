"""Scenes of coloured shapes: what is in them, and how they are drawn."""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (245, 220, 40),
    "green": (44, 160, 44),
    "blue": (31, 100, 200),
    "purple": (140, 60, 190),
    "pink": (250, 130, 190),
    "brown": (125, 75, 45),
}
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "grey": (150, 150, 150),
    "cream": (245, 232, 200),
    "navy": (20, 30, 80),
    "mint": (190, 235, 210),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
#: The four quarters of the picture, as (column, row).
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}

#: Scenes fall into these parts by a checksum of what is in them, so a combination of attributes that one
#: split shows is in none of the others.
SPLITS = {"held_out": 0, "probe_train": 1, "probe_val": 2}
_SPLIT_PARTS = 8  # the five parts that SPLITS does not name are for training

_SUPERSAMPLING = 8
_LARGE, _SMALL = 0.40, 0.17  # diameters as shares of the picture's side


@dataclass(frozen=True, slots=True)
class Group:
    """Like objects in one quarter of the picture: one large one, or one to three small ones."""

    count: int
    size: str  # "small" or "large"
    colour: str
    shape: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and groups of objects of different colours in different quarters."""

    background: str
    groups: tuple[Group, ...]

    @property
    def objects(self) -> int:
        """How many objects the picture holds."""
        return sum(group.count for group in self.groups)


def split_of(scene: Scene) -> str:
    """Return the one split that may show this combination: train, or a name of :data:`SPLITS`."""
    words = [scene.background]
    for group in sorted(scene.groups, key=lambda g: g.place):
        words += [str(group.count), group.size, group.colour, group.shape, group.place]
    part = zlib.crc32(" ".join(words).encode()) % _SPLIT_PARTS
    return next((name for name, number in SPLITS.items() if number == part), "train")


def draw_scene(rng: Random, split: str, max_groups: int = 3) -> Scene:
    """Draw a scene of one to ``max_groups`` groups (at most four) that belongs to ``split``."""
    while True:
        number = rng.randint(1, max_groups)
        colours, places = rng.sample(list(COLOURS), number), rng.sample(list(PLACES), number)
        groups = tuple(_draw_group(rng, colour, place) for colour, place in zip(colours, places, strict=True))
        scene = Scene(rng.choice(list(BACKGROUNDS)), groups)
        if split_of(scene) == split:
            return scene


def draw_probe_scene(rng: Random, split: str, colour: str, shape: str) -> Scene:
    """Draw a scene whose only large object is a ``colour`` ``shape``, among two groups of other objects."""
    while True:
        first, *places = rng.sample(list(PLACES), 3)
        others = rng.sample([c for c in COLOURS if c != colour], 2)
        groups = [Group(1, "large", colour, shape, first)]
        for other, place in zip(others, places, strict=True):
            groups.append(Group(rng.randint(1, 3), "small", other, rng.choice(SHAPES), place))
        scene = Scene(rng.choice(list(BACKGROUNDS)), tuple(groups))
        if split_of(scene) == split:
            return scene


def render(scene: Scene, image_size: int, rng: Random) -> bytes:
    """Draw the scene as a square PNG, ``image_size`` pixels a side; ``rng`` moves the objects a little."""
    picture = Image.new("RGB", (image_size, image_size), BACKGROUNDS[scene.background])
    for group in scene.groups:
        colour = COLOURS[group.colour]
        for left, top, diameter in _boxes(group, image_size, rng):
            picture.paste(colour, (left, top), _mask(group.shape, diameter))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # at this size zlib's level decides nothing but the time
    return buffer.getvalue()


def _draw_group(rng: Random, colour: str, place: str) -> Group:
    size = rng.choice(("small", "large"))
    count = 1 if size == "large" else rng.randint(1, 3)
    return Group(count, size, colour, rng.choice(SHAPES), place)


def _boxes(group: Group, image_size: int, rng: Random) -> list[tuple[int, int, int]]:
    """Return (left, top, diameter) in pixels of each object of a group, none over another."""
    column, row = PLACES[group.place]
    quarter = image_size // 2
    cells, share = (1, _LARGE) if group.size == "large" else (2, _SMALL)
    cell, boxes = quarter // cells, []
    for number in rng.sample(range(cells * cells), group.count):
        diameter = max(3, round(image_size * share * (0.9 + 0.2 * rng.random())))
        room = max(0, cell - diameter)
        left = column * quarter + number % cells * cell + rng.randint(0, room)
        top = row * quarter + number // cells * cell + rng.randint(0, room)
        boxes.append((left, top, diameter))
    return boxes


@lru_cache(maxsize=512)
def _mask(shape: str, diameter: int) -> Image.Image:
    """Return the shape's antialiased coverage, a grey image of ``diameter`` pixels a side.

    Cached: a set of pictures needs a few dozen of them, and pasting one costs microseconds.
    """
    side = diameter * _SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    pen, end = ImageDraw.Draw(mask), side - 1
    if shape == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif shape == "ring":
        pen.ellipse((0, 0, end, end), fill=255)
        hole = side * 0.27
        pen.ellipse((hole, hole, end - hole, end - hole), fill=0)
    elif shape == "square":
        edge = side * 0.07
        pen.rectangle((edge, edge, end - edge, end - edge), fill=255)
    elif shape == "cross":
        low, high = side * 0.34, side * 0.66
        pen.rectangle((low, 0, high, end), fill=255)
        pen.rectangle((0, low, end, high), fill=255)
    elif shape == "triangle":
        pen.polygon([(end / 2, 0), (end, end * 0.93), (0, end * 0.93)], fill=255)
    else:
        pen.polygon(_star(end), fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _star(side: float) -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star in a square of this side."""
    centre, points = side / 2, []
    for corner in range(10):
        radius = centre * (1.0 if corner % 2 == 0 else 0.45)
        angle = math.pi * (corner / 5 - 0.5)
        points.append((centre + radius * math.cos(angle), centre + radius * math.sin(angle)))
    return points
