"""DINOv2 as a feature network: the features of FD on DINOv2, which agrees with people better than Inception's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ornstein.metrics.features import IMAGENET_MEAN, IMAGENET_STD, POOLED, NetworkFeatures
from ornstein.storage.hub import digest_of, find_folder, load_pretrained

REPOSITORY = "facebook/dinov2-large"
SIDE = 224


def dinov2(weights: str | Path | None = None, device: torch.device | str = "cpu") -> NetworkFeatures:
    """DINOv2's class token after the last normalisation, at 224 px: 1024 features for the large network.

    ``weights`` is the folder of a transformers ``Dinov2Model``, or the name of a repository in the Hugging Face cache;
    None means facebook/dinov2-large, the network of Stein et al. 2023 (arXiv 2306.04675). Nothing is downloaded. Input
    (byte / 255 − mean) / std with ImageNet's, stretched by `resized`.

    The name holds width, patch and the first digits of the weights' SHA-256, e.g. "dinov2-1024-p14-3ab1c2d4", so that a
    distance is FD-dinov2-1024-p14-3ab1c2d4. Raises `CheckpointError` where the weights are not found or do not fit,
    `ConfigError` without the package transformers.
    """
    what = "DINOv2 network"
    folder = find_folder(weights or REPOSITORY, what)
    model = load_pretrained("Dinov2Model", folder, what)
    name = f"dinov2-{model.config.hidden_size}-p{model.config.patch_size}-{digest_of(folder)}"

    def body(x: Tensor) -> dict[str, Tensor]:
        return {POOLED: model(pixel_values=x).last_hidden_state[:, 0]}

    return NetworkFeatures(
        name,
        model.config.hidden_size,
        body,
        module=model,
        side=SIDE,
        shift=[255.0 * mean for mean in IMAGENET_MEAN],
        scale=[255.0 * std for std in IMAGENET_STD],
        device=device,
    )
