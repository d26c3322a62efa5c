"""Interfaces of the networks behind guides.

Every network takes floating-point images (B, 3, H, W) in [−1, 1] of any size, does its own resizing and normalising,
is frozen, computes in float32, and is differentiable in the images. Row i of an answer depends on image i alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Segmenter(Protocol):
    """A class for every pixel."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w), of the network's own resolution."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A class for every image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Who is in an image: near vectors for the same identity."""

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors (B, D); a row of NaN where nothing was found."""
        ...


@runtime_checkable
class TextImage(Protocol):
    """Images and texts in one space, as CLIP has it."""

    @property
    def scale(self) -> float:
        """The factor on cosines that the network was trained with: 100 for CLIP."""
        ...

    def image(self, images: Tensor) -> Tensor:
        """Vectors (B, D) of images."""
        ...

    def text(self, texts: list[str]) -> Tensor:
        """Vectors (K, D) of texts."""
        ...


@runtime_checkable
class Detector(Protocol):
    """Objects and where they are."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...

    def loss(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """How badly what is seen fits the boxes (K, 4), x0 y0 x1 y1 in [0, 1], with labels (K,): (B,)."""
        ...


@runtime_checkable
class EdgeMap(Protocol):
    """Where the outlines are."""

    def __call__(self, images: Tensor) -> Tensor:
        """The map (B, 1, h, w)."""
        ...


@runtime_checkable
class FeatureMaps(Protocol):
    """The inner features of a network, finest first."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Maps (B, C_k, h_k, w_k)."""
        ...


__all__ = ["Classifier", "Detector", "EdgeMap", "Embedder", "FeatureMaps", "Segmenter", "TextImage"]
