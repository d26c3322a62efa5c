"""A network's inputs besides the state: time, class and vector, as one embedding; positions, as another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ornstein.errors import ConfigError

TimeFeatures = Literal["sinusoidal", "fourier"]


class TimeEmbedding(nn.Module):
    """Time numbers (B,) to features (B, width), before any learned map.

    ``sinusoidal``: cos and sin of scale · time · 10000^(−i/n), i < n = width/2 (Vaswani et al. 2017), made for times
    of 0…1000. ``fourier``: the same with fixed frequencies 2π · N(0, 1) (Tancik et al. 2020), made for log σ; with it
    a ``scale`` of 16 is usual for log(σ)/4.
    """

    frequencies: Tensor

    def __init__(self, width: int, kind: TimeFeatures = "sinusoidal", scale: float = 1.0) -> None:
        super().__init__()
        self.kind: TimeFeatures = kind
        self.scale = scale
        half = width // 2
        if kind == "sinusoidal":
            frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        else:  # drawn, so it belongs in the checkpoint
            frequencies = 2 * math.pi * torch.randn(half)
        self.register_buffer("frequencies", scale * frequencies, persistent=kind == "fourier")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimeEmbedding:
        """The frequencies stay in float32 when the network goes to half precision: rounded ones tell other times."""
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < exact.dtype.itemsize:
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, time: Tensor) -> Tensor:
        """(B,) to (B, width), in float32 whatever autocast says: bf16 would merge neighbouring times."""
        phase = time.float()[:, None] * self.frequencies
        return torch.cat((phase.cos(), phase.sin()), dim=1)


class ConditionEmbedding(nn.Module):
    """Time, and where configured class and vector, to one embedding (B, width) that every block reads.

    The class table has one row more than there are classes: the last is the null class, chosen by label −1. A missing
    label is the null class, a missing vector is the zero vector.
    """

    def __init__(
        self,
        width: int,
        *,
        features: int,
        kind: TimeFeatures = "sinusoidal",
        scale: float = 1.0,
        classes: int = 0,
        vector_width: int = 0,
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(features, kind, scale)
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.vector = nn.Linear(vector_width, width) if vector_width else None

    def forward(self, time: Tensor, label: Tensor | None, vector: Tensor | None) -> Tensor:
        """Time (B,), label (B,) int64, vector (B, V) to (B, width), after the last SiLU."""
        silu = nn.functional.silu
        out = self.second(silu(self.first(self.time(time).to(self.first.weight.dtype))))
        if self.label is not None:
            null = self.label.num_embeddings - 1
            index = torch.full_like(time, null, dtype=torch.int64) if label is None else label.where(label >= 0, null)
            out = out + self.label(index)
        elif label is not None:
            raise ConfigError("the network was given labels but built with classes=0: set classes, or leave labels out")
        if self.vector is not None:
            out = out + self.vector(vector) if vector is not None else out + self.vector.bias
        elif vector is not None:
            raise ConfigError(
                f"the network was given a vector of width {vector.shape[-1]} but built with vector_width=0: set it"
            )
        return silu(out)


def positions_2d(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sine-cosine positions of a ``height`` × ``width`` grid, (height · width, channels), for any size of grid.

    Half of the channels tells the row, half the column, each as in `TimeEmbedding`. ``channels`` must divide by 4.
    """
    quarter = channels // 4
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(quarter, device=like.device) / quarter)
    rows = torch.arange(height, device=like.device)[:, None] * frequencies  # (height, quarter)
    columns = torch.arange(width, device=like.device)[:, None] * frequencies  # (width, quarter)
    row = torch.cat((rows.sin(), rows.cos()), dim=1)[:, None].expand(-1, width, -1)
    column = torch.cat((columns.sin(), columns.cos()), dim=1)[None].expand(height, -1, -1)
    return torch.cat((row, column), dim=2).reshape(height * width, channels).to(like.dtype)
