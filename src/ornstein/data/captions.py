"""Words for drawn pictures: names of colours, attributes and captions from a drawing's options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# One plain name for every colour of the default set, then enough others for a nearest name to be sensible.
_NAMES = {
    "#7dd3fc": "sky blue", "#a5b4fc": "periwinkle", "#c4b5fd": "lavender", "#f0abfc": "orchid",
    "#fda4af": "pink", "#fca5a5": "salmon", "#fdba74": "orange", "#fcd34d": "yellow",
    "#bef264": "lime", "#6ee7b9": "green", "#5eead4": "turquoise", "#e2e8f0": "white",
    "#0369a1": "ocean blue", "#1d4ed8": "royal blue", "#4338ca": "indigo", "#6d28d9": "violet",
    "#a21caf": "magenta", "#be185d": "raspberry", "#be123c": "crimson", "#c2410c": "rust",
    "#b45309": "amber", "#047857": "forest green", "#0f766e": "teal", "#1e293b": "navy",
    "#000000": "black", "#ffffff": "white", "#808080": "grey", "#c0c0c0": "silver", "#d62728": "red",
    "#8b5a2b": "brown", "#d2b48c": "tan", "#f5f0e1": "cream", "#ffd700": "gold", "#556b2f": "olive",
    "#4a2c1a": "dark brown", "#2b6cb0": "blue", "#f1c9a5": "peach", "#222244": "midnight blue",
}  # fmt: skip

_BODY_COLOURS = (
    "sky blue", "periwinkle", "lavender", "orchid", "pink", "salmon", "orange", "yellow", "lime", "green",
    "turquoise", "white",
)  # fmt: skip

CRITTER_CLASSES = tuple(f"{colour} critter" for colour in _BODY_COLOURS)
"""Labels of the default set: the colour of the body, the one attribute that fills most of the picture."""

_TOPS = {
    "horns": "horns", "hornsIn": "inward horns", "hornsSmall": "small horns", "spike": "a spike",
    "antenna": "an antenna", "antennae": "two antennae", "earsRound": "round ears", "earsPointy": "pointy ears",
    "earsDroop": "droopy ears", "spikes": "spikes", "fin": "a fin", "crown": "a crown", "sprout": "a sprout",
    "nub": "a nub", "bobble": "a bobble",
}  # fmt: skip
_EYES = {
    "round": "round eyes", "dots": "dot eyes", "bigPupils": "big-pupil eyes", "sideeye": "sideways eyes",
    "inward": "inward eyes", "mono": "one eye", "uneven": "uneven eyes", "trio": "three eyes",
    "threeRow": "three eyes in a row", "four": "four eyes", "happy": "happy eyes", "closedLine": "closed eyes",
    "wink": "a winking eye", "squint": "squinting eyes", "wide": "wide eyes", "sleepy": "sleepy eyes",
    "angry": "angry eyes", "monoSleepy": "one sleepy eye", "close": "close-set eyes",
}  # fmt: skip
_MOUTHS = {
    "tinySmile": "a tiny smile", "grin": "a grin", "ooh": "an 'ooh' mouth", "line": "a straight mouth",
    "wavy": "a wavy mouth", "catMouth": "a cat mouth", "sad": "a sad mouth", "slant": "a slanted mouth",
    "dot": "a dot mouth", "open": "an open mouth", "teeth": "a mouth full of teeth", "tooth": "a single tooth",
    "zigzag": "a zigzag mouth", "tongue": "a tongue out", "blep": "a small tongue out",
}  # fmt: skip
_PATTERNS = {
    "belly": "a pale belly", "bar": "a bar", "bars": "bars", "spot": "a spot", "dotRow": "a row of dots",
    "chevron": "a chevron", "ring": "a ring",
}  # fmt: skip
_CHEEKS = {"blush": "a blush", "blushBig": "a big blush", "freckles": "freckles"}

# "critters" is a critter; the other styles' names are not plurals of one thing, or need a kinder noun.
_NOUNS = {
    "critters": "critter", "sprouts": "potted plant", "planets": "planet", "landscape": "landscape",
    "clay": "clay creature", "moods": "mood face", "cutouts": "paper cutout face", "marbles": "marble face",
    "cameo": "cameo", "gaze": "gazing shape", "pixel-art": "pixel art person", "voxel-art": "voxel person",
    "voxel-bot": "voxel robot", "pixelbot": "pixel robot", "open-peeps": "line-drawn person",
    "lorelei": "ink portrait", "notionists": "sketched person", "constellation": "constellation",
    "stack": "stack of stones", "thumbs": "thumb face", "blobs": "blob", "shapes": "pattern of shapes",
}  # fmt: skip


def noun(style: str) -> str:
    """What one picture of a style shows: ``"critter"`` for critters."""
    return _NOUNS.get(style, style.replace("-", " ") + " picture")


@lru_cache(maxsize=4096)
def colour_name(code: str) -> str:
    """The plain English name of a ``#rrggbb`` colour: exact for the default set, otherwise the nearest in OKLab."""
    code = code.lower()[:7]
    if code in _NAMES:
        return _NAMES[code]
    distances = np.square(_oklab([code]) - _oklab(list(_NAMES))).sum(axis=1)
    return list(_NAMES.values())[int(distances.argmin())]


def _oklab(codes: list[str]) -> npt.NDArray[np.float64]:
    """Colours in OKLab, where Euclidean distance follows perception (Ottosson 2020), shape (N, 3)."""
    srgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in codes]) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_cone = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929],
         [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468],
         [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    return np.cbrt(linear @ to_cone.T) @ to_lab.T


def attributes(options: Mapping[str, object]) -> dict[str, str]:
    """The visible choices of a DiceBear drawing: part → variant, and ``"<part> colour"`` → colour code.

    Numbered repetitions (star02, shape16), motion and geometry are left out: they carry no words.
    """
    found: dict[str, str] = {}
    for key, value in options.items():
        part, kind = re.fullmatch(r"(.*?)(Variant|Color|)", key).groups()  # type: ignore[union-attr]
        if not kind or part == "animation" or re.search(r"\d\d$", part):
            continue
        if kind == "Variant" and isinstance(value, str):
            found[part] = value
        elif kind == "Color" and isinstance(value, (list, tuple)) and value:
            found[f"{part} colour"] = str(value[0])
    return found


def named(raw: Mapping[str, str]) -> dict[str, str]:
    """The same attributes with colour codes replaced by names."""
    return {part: colour_name(value) if value.startswith("#") else value for part, value in raw.items()}


def caption(style: str, chosen: Mapping[str, str]) -> str:
    """One English phrase from the named attributes, e.g. 'a green critter with a crown and three eyes on navy'."""
    if style == "critters":
        return _critter(chosen)
    colour = next((chosen[k] for k in chosen if k.endswith(" colour") and k not in _QUIET), "")
    parts = [f"{words(value)} {words(part)}" for part, value in chosen.items() if _telling(part, value)]
    background = chosen.get("background colour", "")
    return _phrase(f"{colour} {noun(style)}".strip(), parts, background)


_QUIET = frozenset({"background colour", "ink colour", "outline colour", "skin colour"})


def _telling(part: str, variant: str) -> bool:
    """Whether a variant's name says something: 'crown' does, 'variant07', 'shape3' and 'default' do not."""
    return " colour" not in part and variant not in {"default", "none"} and not re.search(r"\d", variant + part)


def _critter(chosen: Mapping[str, str]) -> str:
    tables = (("top", _TOPS), ("eyes", _EYES), ("mouth", _MOUTHS), ("pattern", _PATTERNS), ("cheeks", _CHEEKS))
    parts = [_part(table, chosen[part]) for part, table in tables if part in chosen]
    return _phrase(f"{chosen['body colour']} critter", parts, chosen.get("background colour", ""))


def _part(table: Mapping[str, str], variant: str) -> str:
    known = table.get(variant)
    if known is not None:
        return known
    plain = words(variant)
    return plain if plain.endswith("s") else f"{article(plain)} {plain}"


def _phrase(thing: str, parts: list[str], background: str) -> str:
    listed = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
    text = f"{article(thing)} {thing}"
    if listed:
        text += f" with {listed}"
    return f"{text} on {background}" if background else text


def article(phrase: str) -> str:
    """'a' or 'an'."""
    return "an" if phrase[:1].lower() in "aeiou" else "a"


@lru_cache(maxsize=4096)
def words(variant: str) -> str:
    """camelCase and kebab-case as separate lower-case words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", variant).replace("-", " ").lower()
