"""Networks that come with Python packages: EfficientNet-lite0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..metrics.features import lite0, resized


class Lite0Classifier:
    """EfficientNet-lite0 on ImageNet, at 128 pixels; its 1000 classes go by their usual numbers, "0" … "999"."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.classes = tuple(str(number) for number in range(1000))
        self._net: Any = lite0(device).module

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, 1000)."""
        return self._net((resized(127.5 * (images.float() + 1.0), 128) - 127.0) / 128.0)


__all__ = ["Lite0Classifier"]
