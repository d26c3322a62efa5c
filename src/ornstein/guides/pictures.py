"""Guides by what a picture looks like: colours, outlines, a known part, a small version. Most need no network."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..guidance import energies
from . import sources, targets
from .energies import Outlines
from .types import GuideContext, GuideType


def _colour(context: GuideContext) -> Any:
    wanted = targets.colours(context.arg)
    if len(wanted) != 1:
        raise UsageError(f"one mean colour is wanted, got {context.arg!r}: palette takes several")
    return energies.Colour(target=wanted)


def _palette(context: GuideContext) -> Any:
    return energies.Palette(colours=targets.colours(context.arg))


def _edges(context: GuideContext) -> Any:
    wanted = targets.picture(context.arg, targets.square(context.shape, "edges")).to(context.device)
    return energies.Edges.like(wanted) if context.network is None else Outlines.like(context.network, wanted)


def _inpaint(context: GuideContext) -> Any:
    wanted, known = targets.inpainting(context.arg, context.shape)
    return energies.inpainting(wanted, known, std=_STD)


def _super_resolution(context: GuideContext) -> Any:
    wanted, factor = targets.small(context.arg, context.shape)
    return energies.super_resolution(wanted, factor, std=_STD)


_STD = 1.0  # ℓ is half the sum of squared differences; the weight stands for 1/std²

KINDS = (
    GuideType(
        name="edges",
        takes="PICTURE",
        what="the outlines of a picture",
        weight=8000.0,
        make=_edges,
        sources=sources.EDGES,
        example="edges:sketch.png",
    ),
    GuideType(
        name="colour",
        takes="#RRGGBB",
        what="the mean colour, written #rrggbb or by a name of CSS",
        weight=20.0,
        make=_colour,
        example="colour:#3366cc",
    ),
    GuideType(
        name="palette",
        takes="#RRGGBB,#RRGGBB,…",
        what="every pixel near one of some colours",
        weight=100.0,
        make=_palette,
        example="palette:navy,white,orange",
    ),
    GuideType(
        name="inpaint",
        takes="PICTURE@MASK",
        what="the known part of a picture: white in the mask is kept, black is filled in",
        weight=1.0,
        make=_inpaint,
        example="inpaint:photo.png@mask.png",
    ),
    GuideType(
        name="super-resolution",
        takes="SMALL",
        what="a small picture, whose side is a whole part of the model's",
        weight=3.0,
        make=_super_resolution,
        example="super-resolution:small.png",
    ),
)

__all__ = ["KINDS"]
