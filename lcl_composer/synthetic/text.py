"""What is said about a scene of shapes, before its picture and after it."""

from __future__ import annotations

from random import Random

from lcl_composer.synthetic.scenes import PLACES, Group, Scene

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIZES = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_AT = ("at the {}", "in the {}", "in the {} corner")
_BEFORE = (
    "{first} there {be} {groups}{background}:",
    "{first} we see {groups}{background}:",
    "{first} comes a picture of {groups}{background}:",
    "{first} look for {groups}{background}:",
    "Here {be} {groups}{background}:",
    "The {number} picture shows {groups}{background}:",
)
_FIRST = (("First", "To begin"), ("Next", "Then"), ("After that", "Now"))
_OPENINGS = (
    "A page of shapes. ",
    "These are drawings of simple shapes. ",
    "Some pictures and what they show. ",
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def opening(rng: Random) -> str:
    """Return the start of a document: one time in four a general sentence, else nothing."""
    return rng.choice(_OPENINGS) if rng.random() < 0.25 else ""


def before(scene: Scene, position: int, rng: Random) -> tuple[str, Group | None]:
    """Announce the ``position``-th picture (from 0) of a document.

    Returns:
        The sentence, and the group that it left out, if any: what is said afterwards must then be read
        off the picture, which is what gives the generation loss a reason to look at it.
    """
    groups, hidden = list(scene.groups), None
    if len(groups) > 1 and rng.random() < 0.2:
        hidden = groups.pop(rng.randrange(len(groups)))
    background = f" on a {scene.background} background" if rng.random() < 0.9 else ""
    sentence = rng.choice(_BEFORE).format(
        first=rng.choice(_FIRST[min(position, len(_FIRST) - 1)]),
        number=_ORDINALS[min(position, len(_ORDINALS) - 1)],
        be="is" if groups[0].count == 1 else "are",
        groups=_list([_describe(group, rng) for group in groups]),
        background=background,
    )
    return sentence, hidden


def after(scene: Scene, hidden: Group | None, rng: Random) -> str:
    """Return two sentences about the picture above, the first about the group not yet named, if any."""
    group = hidden or rng.choice(scene.groups)
    told = rng.choice((_name_group, _name_colour, _name_shape))(group, rng)
    facts = [_background, _total] + ([_relation] if len(scene.groups) > 1 else [])
    return f"{told} {rng.choice(facts)(scene, rng)}"


def question(scene: Scene, rng: Random) -> tuple[str, str]:
    """Return a question that the picture answers, and the answer, in a word."""
    shapes = [group.shape for group in scene.groups]
    group = rng.choice(scene.groups)
    asked = [
        (f"How many {group.colour} {_several(group.shape)} are there?", _NUMBERS[group.count]),
        (f"What shape is {group.colour}?", group.shape),
        ("How many shapes are there in all?", _NUMBERS[scene.objects]),
        ("What colour is the background?", scene.background),
    ]
    if shapes.count(group.shape) == 1:
        be = "is" if group.count == 1 else "are"
        asked.append((f"What colour {be} the {_plural(group)}?", group.colour))
    return rng.choice(asked)


def _describe(group: Group, rng: Random) -> str:
    size = rng.choice(_SIZES[group.size])
    number = rng.choice(("a", "one")) if group.count == 1 else _NUMBERS[group.count]
    return f"{number} {size} {group.colour} {_plural(group)} {_at(group, rng)}"


def _plural(group: Group) -> str:
    if group.count == 1:
        return group.shape
    return _several(group.shape)


def _several(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _at(group: Group, rng: Random) -> str:
    return rng.choice(_AT).format(group.place)


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _name_group(group: Group, rng: Random) -> str:
    start = rng.choice(("The picture above shows", "Above you see", "In it we find"))
    return f"{start} {_describe(group, rng)}."


def _name_colour(group: Group, rng: Random) -> str:
    be = "is" if group.count == 1 else "are"
    return f"The {_plural(group)} {_at(group, rng)} {be} {group.colour}."


def _name_shape(group: Group, rng: Random) -> str:
    return f"What is {group.colour} {_at(group, rng)}? {_NUMBERS[group.count].capitalize()} {_plural(group)}."


def _background(scene: Scene, rng: Random) -> str:
    return rng.choice(("The background is {}.", "All of it lies on {}.")).format(scene.background)


def _total(scene: Scene, rng: Random) -> str:
    shapes = "shape" if scene.objects == 1 else "shapes"
    return rng.choice(("It has {} {} in all.", "Together {} {}.")).format(_NUMBERS[scene.objects], shapes)


def _relation(scene: Scene, rng: Random) -> str:
    one, two = rng.sample(scene.groups, 2)
    (x1, y1), (x2, y2) = PLACES[one.place], PLACES[two.place]
    words = [] if y1 == y2 else ["above" if y1 < y2 else "below"]
    if x1 != x2:
        words.append("left of" if x1 < x2 else "right of")
    be = "is" if one.count == 1 else "are"
    where = rng.choice(words)
    return f"The {one.colour} {_plural(one)} {be} {where} the {two.colour} {_plural(two)}."
