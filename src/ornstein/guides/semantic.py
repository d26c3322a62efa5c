"""Guides by what a network sees in a picture: classes, maps, faces, places, texts, styles."""

from __future__ import annotations

from typing import Any

from . import sources, targets
from .contracts import TextImage
from .energies import ClassLogit, Gram, Identity, Likeness, ObjectLocation, SegmentationMap
from .types import GuideContext, GuideType


def _segmentation(context: GuideContext) -> Any:
    wanted = targets.classes_map(context.arg, context.shape, context.network.classes)
    return SegmentationMap(segmenter=context.network, target=wanted)


def _text(context: GuideContext) -> Any:
    return Likeness.to_text(context.network, [context.arg])


def _classifier(context: GuideContext) -> Any:
    return ClassLogit(classifier=context.network, label=targets.class_number(context.arg, context.network.classes))


def _identity(context: GuideContext) -> Any:
    return Identity.like(context.network, _picture(context))


def _boxes(context: GuideContext) -> Any:
    wanted, labels = targets.boxes(context.arg, context.network.classes)
    return ObjectLocation(detector=context.network, boxes=wanted.to(context.device), labels=labels.to(context.device))


def _style(context: GuideContext) -> Any:
    if isinstance(context.network, TextImage):
        return Likeness.to_picture(context.network, _picture(context))
    return Gram.like(context.network, _picture(context))


def _picture(context: GuideContext) -> Any:
    return targets.picture(context.arg, targets.square(context.shape, "this guide")).to(context.device)


KINDS = (
    GuideType(
        name="segmentation",
        takes="MAP[@COLOURS.json]",
        what="a map of classes, as large as the pictures",
        weight=100.0,
        make=_segmentation,
        sources=sources.SEGMENTERS,
        example="segmentation:mask.png:100",
    ),
    GuideType(
        name="text",
        takes="SENTENCE",
        what="a sentence",
        weight=3.0,
        make=_text,
        sources=sources.TEXT_IMAGES,
        example='text:"a green critter with crown":3',
    ),
    GuideType(
        name="classifier",
        takes="CLASS",
        what="a class, by name or number",
        weight=5.0,
        make=_classifier,
        sources=sources.CLASSIFIERS,
        example="classifier:top/crown",
    ),
    GuideType(
        name="identity",
        takes="PICTURE",
        what="who is in a picture",
        weight=400.0,
        make=_identity,
        sources=sources.EMBEDDERS,
        example="identity:photo.png",
    ),
    GuideType(
        name="boxes",
        takes="LABEL@X0,Y0,X1,Y1+…",
        what="objects in places, corners in fractions of the picture from its top left",
        weight=10.0,
        make=_boxes,
        sources=sources.DETECTORS,
        example="boxes:eyes@0.3,0.3,0.7,0.5",
    ),
    GuideType(
        name="style",
        takes="PICTURE",
        what="the style of a picture",
        weight=2.0,
        make=_style,
        sources=sources.STYLES,
        example="style:painting.png",
    ),
)

__all__ = ["KINDS"]
