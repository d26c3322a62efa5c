"""The drawings that guide networks learn from: cut out of their backgrounds, with exact part masks, in a cache.

Nothing is annotated by hand. A drawing on black is its colour times its coverage; the same drawing on white tells the
coverage; the drawing without a part tells where the part is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ornstein.data import captions, embedded
from ornstein.data.cache import Picture, Progress, pictures
from ornstein.guides.own.towers import SIDE
from ornstein.randomness import generator

PARTS = ("body", "top", "eyes", "mouth")
"""Of a critter; label 0 of a mask is the background, label i the part before it."""

OTHERS = ("cutouts", "gaze", "stack", "thumbs", "landscape", "shapes", "blobs", "cameo")
"""Styles beside the critters that are quick to draw; the first `OBJECTS` of them are single things with clear edges."""

OBJECTS = 4
_LAST = "none"  # the variant of a part that a critter does not have


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Drawings of one style, of consecutive seeds, without their backgrounds.

    ``colour`` uint8 (N, 3, 64, 64) is the colour times the coverage; ``coverage`` and ``labels`` uint8 (N, 64, 64); the
    labels are those of `PARTS`, all zero for other styles than critters. ``notes`` are the raw attributes.
    """

    style: str
    colour: npt.NDArray[np.uint8]
    coverage: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    notes: Sequence[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.notes)

    def part(self, first: int, last: int) -> Cutouts:
        """From the ``first`` to the ``last`` eighth; at least one drawing is left behind the seventh."""
        seventh = min(len(self) - 1, len(self) * 7 // 8)
        ends = {0: 0, 7: seventh, 8: len(self)}
        cut = slice(ends[first], ends[last])
        return Cutouts(
            style=self.style,
            colour=self.colour[cut],
            coverage=self.coverage[cut],
            labels=self.labels[cut],
            notes=self.notes[cut],
        )

    @cached_property
    def named(self) -> list[dict[str, str]]:
        """The attributes with colours in words, without the background."""
        return [_without_background(captions.named(note)) for note in self.notes]

    def take(self, rows: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor, Tensor]:
        """Colour (B, 3, 64, 64) and coverage (B, 1, 64, 64) in [0, 1], labels (B, 64, 64) int64."""
        colour = torch.from_numpy(self.colour[rows]).float() / 255
        coverage = torch.from_numpy(self.coverage[rows])[:, None].float() / 255
        return colour, coverage, torch.from_numpy(self.labels[rows]).long()


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """What one training, or one measurement, sees.

    ``critters`` and ``recoloured`` hold the same creatures; the second in other colours of body and accent.
    """

    critters: Cutouts
    recoloured: Cutouts
    others: tuple[Cutouts, ...]

    def part(self, first: int, last: int) -> Drawings:
        """From the ``first`` to the ``last`` eighth of each style; the ends are 0, 7 and 8."""
        return Drawings(
            critters=self.critters.part(first, last),
            recoloured=self.recoloured.part(first, last),
            others=tuple(other.part(first, last) for other in self.others),
        )


def open_drawings(count: int, each: int, progress: Progress | None = None) -> tuple[Drawings, Drawings]:
    """Drawings to learn from and held-out ones: ``count`` critters and ``each`` of every other style; an eighth is held
    out. They are drawn once and then found in the cache.
    """
    every = fresh_drawings(0, count, each, progress)
    return every.part(0, 7), every.part(7, 8)


def fresh_drawings(first: int, count: int, each: int, progress: Progress | None = None) -> Drawings:
    """The drawings with the seeds ``first``, ``first + 1``, …: ``count`` critters and ``each`` of every other style."""
    return Drawings(
        critters=_cutouts("critters", first, count, recolour=False, progress=progress),
        recoloured=_cutouts("critters", first, count, recolour=True, progress=progress),
        others=tuple(_cutouts(style, first, each, recolour=False, progress=progress) for style in OTHERS),
    )


def background_colours() -> dict[str, tuple[float, float, float]]:
    """Name → (r, g, b) in [0, 1] of the colours behind the critters."""
    return {captions.colour_name(code): _rgb(code) for code in _colours("background")}


def variants(part: str) -> tuple[str, ...]:
    """The variants of a critter's part, ``none`` last where it may be absent."""
    component = embedded._definition("critters")["components"][part]
    known = tuple(component["variants"])
    return (*known, _LAST) if component.get("probability", 100) < 100 else known


def colours(of: str) -> tuple[str, ...]:
    """Names of the colours of ``"body"`` or ``"background"``, in the order of the style."""
    return tuple(captions.colour_name(code) for code in _colours(of))


def _colours(of: str) -> list[str]:
    return embedded._definition("critters")["colors"][of]["values"]


def _rgb(code: str) -> tuple[float, float, float]:
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _without_background(chosen: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in chosen.items() if name != "background colour"}


def _cutouts(style: str, first: int, count: int, *, recolour: bool, progress: Progress | None) -> Cutouts:
    versions = {p: version(p) for p in ("dicebear-core", "dicebear-styles", "resvg_py")}
    key: dict[str, Any] = {"cutouts": style, "recolour": recolour, "versions": versions}
    if first:
        key["first"] = first
    on_black = partial(_coloured, style, first, recolour)
    colour = pictures({**key, "layer": "colour"}, count, SIDE, on_black, progress)
    # Other colours of the same creature have the same coverage and the same parts.
    planes = partial(_planes, style, first)
    masks = pictures({**key, "recolour": False, "layer": "masks"}, count, SIDE, planes, progress)
    array = np.asarray(masks.array)
    return Cutouts(
        style=style,
        colour=np.asarray(colour.array),
        coverage=array[:, 0],
        labels=array[:, 1],
        notes=colour.notes,
    )


def _on(style: str, background: str, recolour: bool, index: int, **options: Any) -> tuple[Picture, dict[str, str]]:
    chosen: dict[str, Any] = {"seed": str(index), "backgroundColor": [background], **options}
    if recolour:
        known = _colours("body")
        body, accent = generator("recolour", index).permutation(len(known))[:2]
        chosen |= {"bodyColor": [known[body]], "accentColor": [known[accent]]}
    return embedded.draw(style, SIDE, chosen)


def _coloured(style: str, first: int, recolour: bool, index: int) -> tuple[Picture, dict[str, str]]:
    """Colour times coverage."""
    return _on(style, "#000000", recolour, first + index)


def _planes(style: str, first: int, index: int) -> tuple[Picture, dict[str, str]]:
    """Coverage and labels of a drawing as the first two of three planes."""
    index += first
    on_black, on_white = (_on(style, background, False, index)[0] for background in ("#000000", "#ffffff"))
    coverage = 255 - (on_white.astype(np.int16) - on_black).clip(0, 255).max(axis=0)
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    if style == "critters":
        inside = coverage >= 128
        labels[inside] = 1
        for label, part in _layers():
            without, _ = _on(style, "#000000", False, index, **{f"{part}Probability": 0})
            labels[inside & (without != on_black).any(axis=0)] = label
    return np.stack([coverage.astype(np.uint8), labels, np.zeros_like(labels)]), {}


def _layers() -> Iterator[tuple[int, str]]:
    """The parts above the body, the lowest first."""
    return ((label, part) for label, part in enumerate(PARTS, start=1) if part != "body")
