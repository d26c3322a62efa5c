"""Cut-outs put on backgrounds: shifted, scaled, several in a picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ornstein.guides.own.drawings import Cutouts, background_colours
from ornstein.guides.own.towers import SIDE


class Layer(NamedTuple):
    """Cut-outs in their places: colour times coverage (B, 3, R, R), coverage (B, 1, R, R), labels (B, R, R)."""

    colour: Tensor
    coverage: Tensor
    labels: Tensor


def flat(rng: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray]:
    """Backgrounds (B, 3, 1, 1) in the critters' colours, and the numbers of those."""
    table = torch.tensor(list(background_colours().values()))
    which = rng.integers(0, len(table), count)
    return table[torch.from_numpy(which)][:, :, None, None], which


def varied(rng: np.random.Generator, count: int) -> Tensor:
    """Backgrounds (B, 3, R, R) in [0, 1]: a critters' colour, any colour, a gradient of two, or coarse noise."""
    known, _ = flat(rng, count)
    ends = torch.from_numpy(rng.random((2, count, 3, 1, 1), dtype=np.float32))
    angle = torch.from_numpy(rng.uniform(0, 2 * np.pi, (count, 1, 1, 1)).astype(np.float32))
    line = torch.linspace(-1, 1, SIDE)
    ramp = (0.5 + 0.5 * (line * angle.cos() + line[:, None] * angle.sin())).clamp(0, 1)
    noise = torch.from_numpy(rng.random((count, 3, 8, 8), dtype=np.float32))
    noise = functional.interpolate(noise, (SIDE, SIDE), mode="bilinear", align_corners=False)
    kinds = torch.stack([known.expand(-1, -1, SIDE, SIDE), ends[0].expand(-1, -1, SIDE, SIDE),
                         ends[0] + ramp * (ends[1] - ends[0]), noise])  # fmt: skip
    kind = torch.from_numpy(rng.choice(4, count, p=[0.4, 0.2, 0.25, 0.15]))
    return kinds[kind, torch.arange(count)]


def placed(
    cutouts: Cutouts,
    rows: np.ndarray,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    shift: float,
    mirror: bool = True,
) -> Layer:
    """The drawings scaled by a factor from ``scale``, shifted by up to ``shift`` of the picture, perhaps mirrored."""
    count = len(rows)
    size = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]), count))
    offset = rng.uniform(-shift, shift, (count, 2)) * 2
    sign = np.where(rng.random(count) < 0.5, -1.0, 1.0) if mirror else np.ones(count)
    # The map from places in the picture to places in the drawing.
    theta = np.zeros((count, 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = sign / size, 1 / size
    theta[:, 0, 2], theta[:, 1, 2] = -sign * offset[:, 0] / size, -offset[:, 1] / size
    colour, coverage, labels = cutouts.take(rows)
    grid = functional.affine_grid(torch.from_numpy(theta), [count, 3, SIDE, SIDE], align_corners=False)
    both = functional.grid_sample(torch.cat([colour, coverage], 1), grid, align_corners=False)
    near = functional.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
    return Layer(both[:, :3], both[:, 3:], near[:, 0].long())


def over(layer: Layer, background: Tensor) -> Tensor:
    """The layer on a background, in [0, 1]."""
    return layer.colour + (1 - layer.coverage) * background


def signed(picture: Tensor) -> Tensor:
    """[0, 1] to [−1, 1]."""
    return 2 * picture - 1


def extents(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes (B, 4) of masks (B, R, R) as fractions of the side, and the numbers of pixels (B,)."""
    columns, rows = mask.any(1), mask.any(2)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        first = line.float().argmax(1)
        return first, line.shape[1] - line.flip(1).float().argmax(1)

    (x0, x1), (y0, y1) = ends(columns), ends(rows)
    return torch.stack([x0, y0, x1, y1], 1).float() / mask.shape[1], mask.sum((1, 2))
