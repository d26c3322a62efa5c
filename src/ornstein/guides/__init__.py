"""Guides that work out of the box: energies with networks behind them, asked for in a few words.

from ornstein import guides

ready = guides.make(["segmentation:mask.png:400", 'text:"a green critter":10'], shape=model.shape)
images = orn.sample(guides.compose(ready)(model), n=4)

`ornstein.guidance` holds the guidances themselves; the networks that come with the library are in
`ornstein.guides.own`.
"""

from .compose import GuidanceOptions, backward_of, compose, window_of
from .contracts import Classifier, Detector, EdgeMap, Embedder, FeatureMaps, Segmenter, TextImage
from .energies import (
    IGNORED,
    ClassLogit,
    Gram,
    Identity,
    Likeness,
    ObjectLocation,
    Outlines,
    SegmentationMap,
    grams,
)
from .registry import Guides, Networks, kinds, make, source_of
from .types import GuideContext, GuideSpec, GuideType, NetworkChoice, NetworkSource

__all__ = [
    "IGNORED",
    "ClassLogit",
    "Classifier",
    "Detector",
    "EdgeMap",
    "Embedder",
    "FeatureMaps",
    "Gram",
    "GuidanceOptions",
    "GuideContext",
    "GuideSpec",
    "GuideType",
    "Guides",
    "Identity",
    "Likeness",
    "NetworkChoice",
    "NetworkSource",
    "Networks",
    "ObjectLocation",
    "Outlines",
    "SegmentationMap",
    "Segmenter",
    "TextImage",
    "backward_of",
    "compose",
    "grams",
    "kinds",
    "make",
    "source_of",
    "window_of",
]
