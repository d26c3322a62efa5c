"""Pictures that need no download: DiceBear's vector styles, drawn from seeds "0", "1", … by resvg.

Each picture knows the parts it was drawn from, so the set carries labels, captions, attributes and exact part masks.
The default set is *critters* (CC0); `STYLES` are twenty-odd CC0 styles that serve as classes. A style under another
licence must be named explicitly (``dicebear:adventurer``) and shows it in the source's ``licence``.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data import captions
from ornstein.data.base import Example, checked
from ornstein.data.cache import Picture, Pictures, Progress, pictures
from ornstein.errors import DataError
from ornstein.storage.files import digest
from ornstein.storage.reading import parse_json

DEFAULT_COUNT = 4096

STYLES = (
    "cameo", "clay", "constellation", "critters", "cutouts", "gaze", "landscape", "lorelei", "marbles", "moods",
    "notionists", "open-peeps", "pixel-art", "pixelbot", "planets", "shapes", "sprouts", "stack", "thumbs",
    "voxel-art", "voxel-bot", "blobs",
)  # fmt: skip
"""The CC0 styles that ``dicebear`` uses as classes, in label order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Drawn pictures: example i has style i mod S and seed ⌊i/S⌋, so any first part of the set is balanced.

    Labels: for ``critters`` the colour of the body (12 classes); for several styles the style; otherwise none.
    """

    name: str
    styles: tuple[str, ...]
    size: int
    pictures: Pictures
    fingerprint: str
    licence: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        if self.styles == ("critters",):
            return captions.CRITTER_CLASSES
        return self.styles if len(self.styles) > 1 else ()

    def __len__(self) -> int:
        return len(self.pictures.notes)

    def __getitem__(self, index: int) -> Example:
        index = checked(index, len(self))
        style, seed = _place(self.styles, index)
        chosen = self.attributes(index)
        return Example(
            image=torch.from_numpy(np.array(self.pictures.array[index])),
            label=self._label(index, chosen),
            caption=captions.caption(style, chosen),
            name=f"{style}/{seed}",
        )

    def read_captions(self) -> list[str]:
        """Sentences about the choices of every drawing."""
        styles = [_place(self.styles, index)[0] for index in range(len(self))]
        return [
            captions.caption(style, captions.named(n)) for style, n in zip(styles, self.pictures.notes, strict=True)
        ]

    def attributes(self, index: int) -> dict[str, str]:
        """Part → the variant drawn, and ``"<part> colour"`` → the colour's name, e.g. ``{"eyes": "trio", …}``."""
        return captions.named(self.pictures.notes[checked(index, len(self))])

    def parts(self, index: int) -> tuple[str, ...]:
        """The parts present in a picture, e.g. ``("body", "top", "eyes", "mouth")``; each has a mask."""
        return tuple(p for p in self.pictures.notes[checked(index, len(self))] if not p.endswith(" colour"))

    def mask(self, index: int, part: str) -> Tensor:
        """Where a part is visible: bool (R, R), exact, by drawing the picture again without it.

        All False if the picture does not have the part; `DataError` if the style does not know it.
        """
        style, seed = _place(self.styles, checked(index, len(self)))
        known = tuple(_definition(style).get("components", {}))
        if part not in known:
            raise DataError(f"style {style} has no part {part!r}; its parts are {', '.join(known)}")
        whole = self.pictures.array[checked(index, len(self))]
        without, _ = draw(style, self.size, {"seed": str(seed), f"{part}Probability": 0})
        return torch.from_numpy((np.asarray(whole) != without).any(axis=0))

    def _label(self, index: int, chosen: dict[str, str]) -> int:
        if self.styles == ("critters",):
            return captions.CRITTER_CLASSES.index(f"{chosen['body colour']} critter")
        return index % len(self.styles) if len(self.styles) > 1 else -1


@lru_cache(maxsize=1)
def known_styles() -> tuple[str, ...]:
    """Every style of the installed package."""
    return tuple(sorted(f.name[:-5] for f in _package_files().iterdir() if f.name.endswith(".json")))


def licence_of(style: str) -> str:
    """The licence a style's own file states, e.g. ``"CC0 1.0"``."""
    return str(_definition(style).get("meta", {}).get("license", {}).get("name", "not stated"))


def open_drawn(
    name: str, styles: tuple[str, ...], *, size: int, count: int = DEFAULT_COUNT, progress: Progress | None = None
) -> Drawn:
    """Draw ``count`` pictures of the styles at ``size`` pixels, or find them in the cache."""
    if count < 1:
        raise DataError(f"{name} needs at least one picture, got {count}")
    for style in styles:
        _definition(style)
    key = {"styles": styles, "versions": {p: version(p) for p in ("dicebear-core", "dicebear-styles", "resvg_py")}}
    found = pictures(key, count, size, partial(_draw_index, styles, size), progress)
    licences = dict.fromkeys(licence_of(style) for style in styles)
    return Drawn(
        name=name,
        styles=styles,
        size=size,
        pictures=found,
        fingerprint=digest("drawn", json.dumps(key, sort_keys=True), count, size),
        licence=", ".join(licences),
    )


def draw(style: str, size: int, options: dict[str, Any]) -> tuple[Picture, dict[str, str]]:
    """One drawing with DiceBear's options (at least ``seed``): uint8 (3, R, R) and its raw attributes."""
    from dicebear import Avatar

    result = Avatar(_style(style), options).to_json()
    return rasterize(result["svg"], size), captions.attributes(result["options"])


def rasterize(svg: str, size: int) -> Picture:
    """An SVG text as uint8 (3, R, R), transparency on white."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
    return np.ascontiguousarray(np.asarray(page)[..., :3].transpose(2, 0, 1))


def _draw_index(styles: tuple[str, ...], size: int, index: int) -> tuple[Picture, dict[str, str]]:
    style, seed = _place(styles, index)
    return draw(style, size, {"seed": str(seed)})


def _place(styles: tuple[str, ...], index: int) -> tuple[str, int]:
    return styles[index % len(styles)], index // len(styles)


def _package_files() -> Any:
    from importlib.resources import files

    return files("dicebear_styles")


@lru_cache(maxsize=128)
def _definition(style: str) -> dict[str, Any]:
    try:
        return parse_json(_package_files().joinpath(f"{style}.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"unknown style {style!r}; known are {', '.join(known_styles())}") from error


@lru_cache(maxsize=128)
def _style(style: str) -> Any:
    from dicebear import Style

    return Style(_definition(style))
