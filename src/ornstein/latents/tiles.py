"""Large images in overlapping tiles whose seams fade into each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Squares of ``side`` latent pixels, ``overlap`` of which are shared with the next one.

    In the overlap the weight of a tile falls linearly toward its border, and the weights of all tiles at a pixel are
    divided by their sum. A map that commutes with translations comes out as without tiles; a network with padding or
    attention differs a little, the less the larger the overlap.
    """

    side: int = 64
    overlap: int = 16

    def __post_init__(self) -> None:
        if self.side < 2 or not 0 <= self.overlap < self.side:
            raise ConfigError(f"tiles need side ≥ 2 and 0 ≤ overlap < side, got {self.side} and {self.overlap}")

    def starts(self, length: int) -> list[int]:
        """Where the tiles along a side of ``length`` latent pixels begin; the last one ends with it.

        >>> Tiles(side=4, overlap=1).starts(9)
        [0, 3, 5]
        """
        if length <= self.side:
            return [0]
        step = self.side - self.overlap
        return [*range(0, length - self.side, step), length - self.side]

    def run(self, function: Callable[[Tensor], Tensor], x: Tensor, before: int, after: int) -> Tensor:
        """``function`` tile by tile on x (B, C, h·before, w·before); its answers are (B, D, h·after, w·after)."""
        height, width = x.shape[-2] // before, x.shape[-1] // before
        if height <= self.side and width <= self.side:
            return function(x)
        rows, columns = self.starts(height), self.starts(width)
        total: Tensor | None = None
        weights = torch.zeros(1)
        for top in rows:
            for left in columns:
                tall, wide = min(self.side, height), min(self.side, width)
                part = x[..., top * before : (top + tall) * before, left * before : (left + wide) * before]
                out = function(part)
                if total is None:
                    total = out.new_zeros(*out.shape[:-2], height * after, width * after)
                    weights = out.new_zeros(height * after, width * after)
                ramp = self._ramp(tall, top, height, after, out)[:, None] * self._ramp(wide, left, width, after, out)
                at = (slice(top * after, (top + tall) * after), slice(left * after, (left + wide) * after))
                # Not in place: gradients pass through all tiles.
                total = total + _placed(out * ramp, total, at)
                weights[at] += ramp
        assert total is not None
        return total / weights

    def _ramp(self, length: int, start: int, whole: int, after: int, like: Tensor) -> Tensor:
        """Weights along one side of a tile: 1, falling in the overlaps, but not at the border of the image."""
        fade = self.overlap * after
        weight = torch.ones(length * after, device=like.device, dtype=like.dtype)
        if fade:
            rise = (torch.arange(fade, device=like.device, dtype=like.dtype) + 0.5) / fade
            if start > 0:
                weight[:fade] *= rise
            if start + length < whole:
                weight[-fade:] *= rise.flip(0)
        return weight


def _placed(part: Tensor, like: Tensor, at: tuple[slice, slice]) -> Tensor:
    """``part`` in a field of zeros."""
    (rows, columns), (height, width) = at, like.shape[-2:]
    return torch.nn.functional.pad(part, (columns.start, width - columns.stop, rows.start, height - rows.stop))
