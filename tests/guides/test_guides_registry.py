"""Guides in words: what is read is what was meant, and what cannot be read costs one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein import guides
from ornstein.errors import ConfigError, DataError, UsageError
from ornstein.guides import targets, types
from ornstein.guides.sources import required

WISHES = [
    guides.GuideSpec(kind="text", arg="a green critter with crown", weight=10.0),
    guides.GuideSpec(kind="text", arg="left: a cat", weight=None),
    guides.GuideSpec(kind="text", arg='"quoted" words', weight=0.1),
    guides.GuideSpec(kind="segmentation", arg="some/mask.png@table.json", weight=-400.0),
    guides.GuideSpec(kind="boxes", arg="eyes@0,0,0.5,1e-1+mouth@0,0,1,1", weight=None),
    guides.GuideSpec(kind="colour", arg="#3366cc", weight=1e-300),
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_words_round_trip(wish: guides.GuideSpec) -> None:
    assert guides.GuideSpec.read(str(wish)) == wish


def test_words() -> None:
    assert guides.GuideSpec.read('text:"a: b":3') == guides.GuideSpec(kind="text", arg="a: b", weight=3.0)
    assert guides.GuideSpec.read('text:"a: 3"') == guides.GuideSpec(kind="text", arg="a: 3")
    assert guides.GuideSpec.read("text:a b:") == guides.GuideSpec(kind="text", arg="a b")
    for choice in (
        guides.NetworkChoice(kind="text", source="standard", weights="C:/x"),
        guides.NetworkChoice(kind="a", source="own"),
    ):
        assert guides.NetworkChoice.read(str(choice)) == choice


@pytest.mark.parametrize(
    "words", ["colour", "colour:", ":x", "colour:red:much", "colour:red:nan", 'text:"a"b', "colour::3"]
)
def test_words_that_are_none(words: str) -> None:
    with pytest.raises(UsageError):
        guides.GuideSpec.read(words)


@pytest.mark.parametrize("words", ["text", "text=", "=own", "text:own"])
def test_choices_that_are_none(words: str) -> None:
    with pytest.raises(UsageError):
        guides.NetworkChoice.read(words)


def test_every_kind_is_whole() -> None:
    found = guides.kinds()
    assert list(found) == [kind.name for kind in found.values()]
    for kind in found.values():
        assert kind.weight > 0.0
        assert guides.GuideSpec.read(kind.example).kind == kind.name
        names = [source.name for source in kind.sources]
        assert names == sorted(set(names), key=types.SOURCES.index), "the source of a fresh machine comes first"
        assert not names or names[0] == "own"


def test_sources_are_chosen_by_what_there_is() -> None:
    absent, present = (
        guides.NetworkSource(name=name, what="", load=lambda w, d, name=name: (name, w), missing=lambda m=missing: m)
        for name, missing in (("own", "weights"), ("package", None))
    )
    kind = guides.GuideType(name="x", takes="", what="", weight=1.0, make=lambda job: None, sources=(absent, present))
    assert guides.source_of(kind) is present
    assert guides.source_of(kind, guides.NetworkChoice(kind="x", source="own")) is absent
    assert guides.source_of(guides.GuideType(name="y", takes="", what="", weight=1.0, make=print)) is None
    with pytest.raises(ConfigError, match="own or package"):
        guides.source_of(kind, guides.NetworkChoice(kind="x", source="standard"))
    assert required(None, "a", None, "b") == "a and b"
    with pytest.raises(UsageError, match="twice"):
        guides.Networks([guides.NetworkChoice(kind="text", source="own")] * 2)
    with pytest.raises(UsageError, match="did you mean 'text'"):
        guides.Networks([guides.NetworkChoice(kind="txet", source="own")])


def test_networks_are_loaded_once() -> None:
    loads = []
    source = guides.NetworkSource(name="own", what="", load=lambda weights, device: loads.append(weights) or object())
    kinds = [
        guides.GuideType(name=name, takes="", what="", weight=1.0, make=print, sources=(source,))
        for name in ("text", "style")
    ]
    networks = guides.Networks()
    assert networks.of(kinds[0]) == networks.of(kinds[1])
    assert loads == [None]


# ----------------------------------------------------------------------------------------------------------------- maps

CLASSES = ("background", "body", "eyes")


def saved(array: object, path: Path, mode: str | None = None, palette: list[int] | None = None) -> str:
    image = Image.fromarray(np.asarray(array, dtype=np.uint8), mode)
    if palette is not None:
        image = image.convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(palette)
    image.save(path)
    return str(path)


NUMBERS = np.array([[0, 1, 2, 255], [1, 1, 0, 0], [2, 2, 2, 2], [0, 0, 255, 255]])
MEANT = torch.from_numpy(np.where(NUMBERS == 255, -1, NUMBERS))[None]


def test_maps_of_indices_of_any_kind_mean_the_same(tmp_path: Path) -> None:
    shape = (3, 4, 4)
    grey = saved(NUMBERS, tmp_path / "grey.png")
    palette = saved(NUMBERS, tmp_path / "palette.png", palette=[9, 9, 9] * 256)
    colours = np.array([*targets.colours_of(3), (1, 1, 1)], np.uint8)[np.where(NUMBERS == 255, 3, NUMBERS)]
    alpha = np.where(NUMBERS == 255, 0, 255)[..., None]
    rgba = saved(np.concatenate([colours, alpha], 2), tmp_path / "rgba.png")
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"body": "#800000", "2": "rgb(0,128,0)", "background": "black", "ignore": "#010101"}))
    named = f"{saved(colours, tmp_path / 'rgb.png')}@{table}"
    for arg in (grey, palette, rgba, named):
        assert torch.equal(targets.classes_map(arg, shape, CLASSES), MEANT), arg


def test_the_colours_of_pascal_voc() -> None:
    found = targets.colours_of(22)
    assert len(set(found)) == 22
    assert found[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert found[15] == (192, 128, 128), "person"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "nothing.png"), "no map of classes at"),
        (lambda p: saved(NUMBERS[:2], p / "a.png"), "4 × 2 pixels, the model's pictures are 4 × 4"),
        (lambda p: saved(NUMBERS + 1, p / "a.png"), "class number 3"),
        (lambda p: saved(0 * NUMBERS + 255, p / "a.png"), "asks for nothing"),
        (lambda p: saved(np.full((4, 4, 3), 7), p / "a.png"), "the colour #070707"),
        (lambda p: saved(np.full((4, 4, 3), 7), p / "a.png") + f"@{p / 'b.json'}", "no table of colours"),
    ],
)
def test_maps_that_cannot_be(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        targets.classes_map(make(tmp_path), (3, 4, 4), CLASSES)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"body": "no colour"}', '{"nose": "red"}'])
def test_tables_that_cannot_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    path = saved(np.zeros((4, 4, 3)), tmp_path / "a.png")
    with pytest.raises(UsageError):
        targets.classes_map(f"{path}@{tmp_path / 't.json'}", (3, 4, 4), CLASSES)


# ------------------------------------------------------------------------------------------------------ other arguments


def test_pictures_masks_and_small_pictures(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3))
    wide[:, 4:12] = 255
    assert torch.equal(targets.picture(saved(wide, tmp_path / "w.png"), 8), torch.ones(1, 3, 8, 8))
    mask = np.zeros((4, 4))
    mask[:2] = 200
    picture = saved(np.full((4, 4, 3), 255), tmp_path / "p@1.png")
    seen, known = targets.inpainting(f"{picture}@{saved(mask, tmp_path / 'm.png')}", (3, 4, 4))
    assert torch.equal(seen, torch.ones(1, 3, 4, 4))
    assert known[0, 0].tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 2
    pixels, factor = targets.small(picture, (3, 12, 12))
    assert (pixels.shape, factor) == ((1, 3, 4, 4), 3)


def test_colours_and_boxes() -> None:
    found = targets.colours("#ff0000, white,rgb(0,0,0)".replace("rgb(0,0,0)", "black"))
    assert found.tolist() == [[1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
    boxes, labels = targets.boxes("eyes@0,0.25,0.5,1+0@0,0,1,1", CLASSES)
    assert boxes.tolist() == [[0.0, 0.25, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]]
    assert labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("colr:red", "did you mean 'colour'"),
        ("colour:redd", "no colour"),
        ("colour:red,blue", "palette"),
        ("palette:red,,blue", "no colour"),
        ("edges:nothing.png", "no picture at 'nothing.png'"),
        ("edges:BROKEN", "cannot be read as a picture"),
        ("inpaint:GOOD", "PICTURE@MASK"),
        ("inpaint:GOOD@nothing.png", "no mask at"),
        ("inpaint:GOOD@GOOD", "black everywhere"),
        ("inpaint:GOOD@WIDE", "8 × 4 pixels"),
        ("inpaint:GOOD@BROKEN", "cannot be read as a mask"),
        ("super-resolution:WIDE", "no whole part"),
        ("classifier:purple critter", "there are green critter"),
        ("classifier:9", "unknown class"),
        ("boxes:nose@0,0,1,1", "there are eyes, mouth"),
        ("boxes:eyes", "LABEL@x0,y0,x1,y1"),
        ("boxes:eyes@0,0,1", "LABEL@x0,y0,x1,y1"),
        ("boxes:eyes@0,0,1,nan", "LABEL@x0,y0,x1,y1"),
        ("boxes:eyes@0,0,64,64", "leaves the picture"),
        ("boxes:eyes@0.5,0,0.5,1", "is empty"),
        ("identity:GOOD", "nobody was found"),
        ("segmentation:WIDE", "8 × 4 pixels"),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_arguments_that_cannot_be(tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good, wide = saved(np.zeros((8, 8, 3)), tmp_path / "good.png"), saved(np.zeros((4, 8)), tmp_path / "wide.png")
    for name, path in (("GOOD", good), ("WIDE", wide), ("BROKEN", str(tmp_path / "broken.png"))):
        words = words.replace(name, path)
    with pytest.raises(UsageError, match=message) as caught:
        guides.make([words], shape=(3, 8, 8))
    assert "\n" not in str(caught.value)


def test_grey_models_are_refused() -> None:
    with pytest.raises(UsageError, match="three channels"):
        guides.make(["colour:red"], shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("read", "words"),
    [(guides.backward_of, w) for w in ("", "x", "0", "3:0", "3:x", "3:inf")]
    + [(guides.window_of, w) for w in ("", "1", "3:1", "-1:2", "a:b", "nan:1")],
)
def test_manners_that_cannot_be(read, words: str) -> None:
    with pytest.raises(UsageError):
        read(words)
    assert guides.window_of("0:inf") == (0.0, float("inf"))
    assert guides.backward_of("3").steps == 3
