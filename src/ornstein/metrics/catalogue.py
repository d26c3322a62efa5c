"""Feature networks by name."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ConfigError
from .features import NetworkFeatures, inception, lite0


def features(
    name: str = "lite0", weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> NetworkFeatures:
    """The feature network called ``name``.

    * "lite0": the offline default, `lite0`;
    * "inception": FID's, from the file ``weights`` or torch hub's cache, `inception`;
    * "dinov2": from the folder or repository ``weights`` or the Hugging Face cache, `ornstein.metrics.dino.dinov2`.
    """
    if name == "lite0":
        if weights is not None:
            raise ConfigError(
                f"lite0 has its own weights, got weights={str(weights)!r}: drop it, or ask for 'inception'"
            )
        return lite0(device)
    if name == "inception" or name.startswith("inception-"):
        return inception(weights, device)
    if name == "dinov2" or name.startswith("dinov2-"):
        from ornstein.metrics.dino import dinov2

        return dinov2(weights, device)
    raise ConfigError(f"unknown features {name!r}: choose lite0, inception or dinov2")
