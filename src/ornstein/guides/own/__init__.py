"""The project's own small guide networks, trained on the embedded drawings and shipped: they need no download.

Five functions give them frozen, in evaluation mode, in float32, on the CPU (they are modules: ``.to(device)`` moves
them). All take float pictures (B, 3, H, W) in [−1, 1] of any size, resize inside, and are differentiable.

>>> import torch
>>> from ornstein.guides import own
>>> pictures = torch.zeros(2, 3, 48, 40)
>>> own.segmenter()(pictures).shape
torch.Size([2, 5, 48, 40])
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ornstein.guides.own.files import read_network
from ornstein.guides.own.networks import GUIDES, Classifier, Detector, Embedder, Segmenter, TextImage

KINDS = tuple(GUIDES)
"""segmentation, classifier, identity, text, detection: what ``ornstein train-guide`` trains."""


def segmenter(weights: str | Path | None = None) -> Segmenter:
    """Which part every pixel shows: ``.classes``; pictures → logits (B, K, H, W).

    ``weights`` is a file of ``ornstein train-guide segmentation``. Raises `CheckpointError` where it does not fit.
    """
    return cast("Segmenter", read_network("segmentation", weights))


def classifier(weights: str | Path | None = None) -> Classifier:
    """What a drawing is like: ``.classes`` such as ``"top/crown"``; pictures → log-probabilities (B, K).

    ``weights`` is a file of ``ornstein train-guide classifier``. Raises `CheckpointError` where it does not fit.
    """
    return cast("Classifier", read_network("classifier", weights))


def embedder(weights: str | Path | None = None) -> Embedder:
    """Which creature it is: pictures → unit vectors (B, 64), NaN in rows without a creature.

    ``weights`` is a file of ``ornstein train-guide identity``. Raises `CheckpointError` where it does not fit.
    """
    return cast("Embedder", read_network("identity", weights))


def text_image(weights: str | Path | None = None) -> TextImage:
    """How well words fit: ``.image(pictures)`` and ``.text(list of str)`` → unit vectors, and ``.scale``.

    ``weights`` is a file of ``ornstein train-guide text``. Raises `CheckpointError` where it does not fit.
    """
    return cast("TextImage", read_network("text", weights))


def detector(weights: str | Path | None = None) -> Detector:
    """Where things are: ``.classes``; ``.loss(pictures, boxes, labels)`` → (B,); ``.detect(pictures)``.

    ``weights`` is a file of ``ornstein train-guide detection``. Raises `CheckpointError` where it does not fit.
    """
    return cast("Detector", read_network("detection", weights))


__all__ = [
    "KINDS",
    "Classifier",
    "Detector",
    "Embedder",
    "Segmenter",
    "TextImage",
    "classifier",
    "detector",
    "embedder",
    "segmenter",
    "text_image",
]
