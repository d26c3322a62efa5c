"""CLIP behind guides: images and texts in one space, differentiable in the images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metrics.clip import Clip


class ClipTextImage:
    """A CLIP of transformers, from the folder of the user's weights or the Hugging Face cache (`metrics.clip.Clip`).

    Images are stretched to the network's side and normalised as CLIP was trained. (The authors' code of universal
    guidance normalises by ImageNet's mean and spread instead.)
    """

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        self._clip = Clip(weights, device)
        self.name = self._clip.name

    @property
    def scale(self) -> float:
        """The factor on cosines that it was trained with."""
        return float(self._clip.model.logit_scale.exp())

    def image(self, images: Tensor) -> Tensor:
        """(B, D)."""
        return self._clip.images(127.5 * (images.float() + 1.0))

    def text(self, texts: list[str]) -> Tensor:
        """(K, D)."""
        with torch.no_grad():
            return self._clip.texts(texts)


__all__ = ["ClipTextImage"]
