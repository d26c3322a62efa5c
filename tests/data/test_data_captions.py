"""Words for drawings: the nearest name of a colour, what is said of a part and what is left unsaid."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ornstein.data import captions

PALETTE = dict(
    line.split(" ", 1)
    for line in """
    #7dd3fc sky blue, #a5b4fc periwinkle, #c4b5fd lavender, #f0abfc orchid, #fda4af pink, #fca5a5 salmon,
    #fdba74 orange, #fcd34d yellow, #bef264 lime, #6ee7b9 green, #5eead4 turquoise, #e2e8f0 white, #0369a1 ocean blue,
    #1d4ed8 royal blue, #4338ca indigo, #6d28d9 violet, #a21caf magenta, #be185d raspberry, #be123c crimson,
    #c2410c rust, #b45309 amber, #047857 forest green, #0f766e teal, #1e293b navy, #000000 black, #ffffff white,
    #808080 grey, #c0c0c0 silver, #d62728 red, #8b5a2b brown, #d2b48c tan, #f5f0e1 cream, #ffd700 gold, #556b2f olive,
    #4a2c1a dark brown, #2b6cb0 blue, #f1c9a5 peach, #222244 midnight blue
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)

# Ottosson (2020): XYZ (D65) to cone responses and their cube roots to Lab, with the published matrices; sRGB to XYZ as
# in IEC 61966-2-1. Ours goes from linear RGB to cones in one step.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
TO_CONE = [
    [0.8189330101, 0.3618667424, -0.1288597137],
    [0.0329845436, 0.9293118715, 0.0361456387],
    [0.0482003018, 0.2643662691, 0.6338517070],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def oklab(codes: list[str]) -> np.ndarray:
    srgb = np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in codes])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_XYZ.T @ np.transpose(TO_CONE)) @ np.transpose(TO_LAB)


def test_every_named_colour_has_its_name_in_either_case() -> None:
    for code, name in PALETTE.items():
        assert captions.colour_name(code) == captions.colour_name(code.upper()) == name


@pytest.mark.parametrize("most", [256, 24], ids=["all colours", "near the knee of the gamma"])
def test_the_name_of_a_colour_is_the_nearest_in_oklab(most: int) -> None:
    draw = np.random.default_rng(0)
    codes = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in draw.integers(0, most, (3000, 3)).tolist()]
    far = np.square(oklab(codes)[:, None] - oklab(list(PALETTE))[None]).sum(-1)
    names = list(PALETTE.values())
    close = np.sort(far, 1)
    tried = 0
    for code, row, (first, second, *_) in zip(codes, far, close, strict=True):
        # Published matrices are rounded: a colour in the middle between two names may go to either.
        if second - first > 2e-3 * second:
            tried += 1
            assert captions.colour_name(code) == names[int(row.argmin())], code
    assert tried > 2900


def test_the_article() -> None:
    for phrase in ("orange", "amber critter", "indigo", "umbra", "Eye"):
        assert captions.article(phrase) == "an"
    for phrase in ("green", "yellow", "hour", "Bear", "9"):
        assert captions.article(phrase) == "a"


def test_attributes_are_the_variants_and_first_colours_alone() -> None:
    options = {
        "seed": "5",
        "topVariant": "crown",
        "bodyColor": ["#fda4af", "#000000"],
        "backgroundColor": ("#1e293b",),
        "cheeksColor": [],
        "eyesVariant": None,
        "mouthProbability": 100,
        "animationVariant": "wave",
        "animationColor": ["#ffffff"],
        "star02Variant": "star",
        "shape16Color": ["#ffffff"],
        "shape3Variant": "disc",
    }
    assert captions.attributes(options) == {
        "top": "crown",
        "body colour": "#fda4af",
        "background colour": "#1e293b",
        "shape3": "disc",
    }
    raw = {"top": "crown", "body colour": "#fda4af", "hat": "fda4af"}
    assert captions.named(raw) == {"top": "crown", "body colour": "pink", "hat": "fda4af"}


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"body colour": "orange"}, "an orange critter"),
        ({"body colour": "amber", "background colour": "navy"}, "an amber critter on navy"),
        ({"body colour": "green", "top": "crown"}, "a green critter with a crown"),
        (
            {
                "cheeks": "freckles",
                "pattern": "bar",
                "mouth": "grin",
                "eyes": "trio",
                "top": "horns",
                "body colour": "lime",
            }
            | {"background colour": "teal"},
            "a lime critter with horns, three eyes, a grin, a bar and freckles on teal",
        ),
        (
            {"body colour": "lime", "top": "bigEars", "eyes": "oval-shaped"},
            "a lime critter with big ears and an oval shaped",
        ),
    ],
)
def test_a_critter_in_words(chosen: dict[str, str], text: str) -> None:
    assert captions.caption("critters", chosen) == text


@pytest.mark.parametrize(
    ("style", "chosen", "text"),
    [
        ("planets", {}, "a planet"),
        ("unheard-of", {"ink colour": "black", "rim colour": "indigo"}, "an indigo unheard of picture"),
        (
            "sprouts",
            {"background colour": "cream", "skin colour": "tan", "outline colour": "black", "pot colour": "rust"}
            | {"leaf": "broadLeaf", "pot": "default", "vine": "none", "eyes": "variant07", "shape3": "round"},
            "a rust potted plant with broad leaf leaf on cream",
        ),
        ("stack", {"top": "smallStone", "base": "flat"}, "a stack of stones with small stone top and flat base"),
    ],
)
def test_other_styles_in_words(style: str, chosen: dict[str, str], text: str) -> None:
    assert captions.caption(style, chosen) == text


VARIANTS = {
    "top": "horns hornsIn hornsSmall spike antenna antennae earsRound earsPointy earsDroop spikes fin crown sprout nub "
    "bobble",
    "eyes": "round dots bigPupils sideeye inward mono uneven trio threeRow four happy closedLine wink squint wide "
    "sleepy angry monoSleepy close",
    "mouth": "tinySmile grin ooh line wavy catMouth sad slant dot open teeth tooth zigzag tongue blep",
    "pattern": "belly bar bars spot dotRow chevron ring",
    "cheeks": "blush blushBig freckles",
}
STYLES = (
    "critters sprouts planets landscape clay moods cutouts marbles cameo gaze pixel-art voxel-art voxel-bot pixelbot "
    "open-peeps lorelei notionists constellation stack thumbs blobs shapes"
)


def test_the_vocabulary_is_what_models_were_trained_on() -> None:
    """One changed word is another data set: captions are bits of it as pictures are."""
    said = [
        captions.caption("critters", {"body colour": "lime", part: variant})
        for part, variants in VARIANTS.items()
        for variant in variants.split()
    ]
    said += [captions.noun(style) for style in STYLES.split()]
    assert len(set(said)) == len(said) == 59 + 22
    assert captions.noun("no-such") == "no such picture"
    digest = hashlib.sha256("\n".join([*said, *captions.CRITTER_CLASSES]).encode()).hexdigest()
    assert digest == VOCABULARY, said


VOCABULARY = "6785c12976b2e27e9744ae4516587171f06c12d93ff8d1f15c8dbe81b435d82d"
