"""Guides by what a network sees in a picture: classes, maps, faces, places, texts, styles."""

from __future__ import annotations

from typing import Any

from . import sources, targets
from .contracts import TextImage
from .energies import ClassLogit, Gram, Identity, Likeness, ObjectLocation, SegmentationMap
from .types import GuideContext, GuideType


def _segmentation(job: GuideContext) -> Any:
    wanted = targets.classes_map(job.arg, job.shape, job.network.classes)
    return SegmentationMap(segmenter=job.network, target=wanted)


def _text(job: GuideContext) -> Any:
    return Likeness.to_text(job.network, [job.arg])


def _classifier(job: GuideContext) -> Any:
    return ClassLogit(classifier=job.network, label=targets.class_number(job.arg, job.network.classes))


def _identity(job: GuideContext) -> Any:
    return Identity.like(job.network, _picture(job))


def _boxes(job: GuideContext) -> Any:
    wanted, labels = targets.boxes(job.arg, job.network.classes)
    return ObjectLocation(detector=job.network, boxes=wanted.to(job.device), labels=labels.to(job.device))


def _style(job: GuideContext) -> Any:
    if isinstance(job.network, TextImage):
        return Likeness.to_picture(job.network, _picture(job))
    return Gram.like(job.network, _picture(job))


def _picture(job: GuideContext) -> Any:
    return targets.picture(job.arg, targets.square(job.shape, "this guide")).to(job.device)


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
