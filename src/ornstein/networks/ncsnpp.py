"""The NCSN++ network (Song et al. 2021) in EDM's arrangement, with the weights' names of the published checkpoints.

It exists to run those: our own networks are `UNet` and `DiT`. Residual blocks with additive conditioning, every sum
divided by √2, the [1, 3, 3, 1] filter wherever the size changes, a residual encoder path that carries the input along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigError

_HALF = math.sqrt(0.5)
_FILTER = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NCSNppConfig:
    """What an `NCSNpp` is built from; ``resolution`` is the nominal one, by which its parts are named.

    ``attention`` are nominal resolutions whose blocks attend (in the encoder all of them, in the decoder the last).
    """

    resolution: int
    channels: int = 3
    out_channels: int = 12
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16, 8, 4)
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.multipliers or self.resolution % 2 ** (len(self.multipliers) - 1):
            raise ConfigError(f"resolution {self.resolution} cannot be halved {len(self.multipliers) - 1} times")
        if self.width % 4 or self.blocks < 1:
            raise ConfigError(f"need a width that divides by 4 and at least a block, got {self.width}, {self.blocks}")

    def levels(self) -> Iterator[tuple[int, int]]:
        """(nominal resolution, channels) of each level, finest first."""
        for level, multiplier in enumerate(self.multipliers):
            yield self.resolution >> level, self.width * multiplier


class NCSNpp(nn.Module):
    """``net(x, time, label)``: images (B, C, H, W), time (B,) and labels (B,) int64 (−1: none) to (B, C_out, H, W).

    H and W need not be the nominal resolution, but must be divisible as often.
    """

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, 4 * config.width
        self.map_noise = _Fourier(2 * width)
        self.map_label = nn.Linear(config.classes, 2 * width) if config.classes else None
        self.map_layer0 = nn.Linear(2 * width, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        levels, now, carried, skips = list(config.levels()), config.width, config.channels, list[int]()
        for index, (r, channels) in enumerate(levels):
            if index == 0:
                self.enc[f"{r}x{r}_conv"] = _Conv(config.channels, width, 3)
            else:
                self.enc[f"{r}x{r}_down"] = _Block(now, now, embedding, config.dropout, resample="down")
                self.enc[f"{r}x{r}_aux_residual"] = _Conv(carried, now, 3, "down", fused=True)
                carried = now
            skips.append(now)
            for i in range(config.blocks):
                attends = r in config.attention
                self.enc[f"{r}x{r}_block{i}"] = _Block(now, channels, embedding, config.dropout, attends=attends)
                now = channels
                skips.append(now)
        for index, (r, channels) in reversed(list(enumerate(levels))):
            if index == len(levels) - 1:
                self.dec[f"{r}x{r}_in0"] = _Block(now, now, embedding, config.dropout, attends=True)
                self.dec[f"{r}x{r}_in1"] = _Block(now, now, embedding, config.dropout)
            else:
                self.dec[f"{r}x{r}_up"] = _Block(now, now, embedding, config.dropout, resample="up")
            for i in range(config.blocks + 1):
                attends = i == config.blocks and r in config.attention
                inputs = now + skips.pop()
                self.dec[f"{r}x{r}_block{i}"] = _Block(inputs, channels, embedding, config.dropout, attends=attends)
                now = channels
        r = config.resolution
        self.dec[f"{r}x{r}_aux_norm"] = _norm(now)
        self.dec[f"{r}x{r}_aux_conv"] = _Conv(now, config.out_channels, 3)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """See the class."""
        embedding = self._embedded(time, label)
        skips: list[Tensor] = []
        aux = h = x
        for name, part in self.enc.items():
            if name.endswith("_aux_residual"):
                # The input, carried along in parallel; the sum is the skip and what is carried on.
                h = aux = skips[-1] = (h + part(aux)) * _HALF
                continue
            h = part(h, embedding) if isinstance(part, _Block) else part(h)
            skips.append(h)
        for name, part in self.dec.items():
            if name.endswith("_aux_norm"):
                h = functional.silu(part(h))
            elif isinstance(part, _Block):
                joined = "_block" in name
                h = part(torch.cat((h, skips.pop()), dim=1) if joined else h, embedding)
            else:
                h = part(h)
        return h

    def _embedded(self, time: Tensor, label: Tensor | None) -> Tensor:
        out = self.map_noise(time)
        if self.map_label is not None:
            classes = self.config.classes
            label_vector = self.map_label.weight.new_zeros(len(time), classes)
            if label is not None:
                label_vector = (label[:, None] == torch.arange(classes, device=label.device)).to(label_vector)
            out = out + self.map_label(label_vector * math.sqrt(classes))
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(out))))


class _Fourier(nn.Module):
    """sin and cos of 2π·f·time, the halves in this order; scale 16."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16.0 * torch.randn(width // 2))

    def forward(self, time: Tensor) -> Tensor:
        phase = time.float()[:, None] * (2.0 * math.pi * self.freqs)
        return torch.cat((phase.sin(), phase.cos()), dim=1)


class _Conv(nn.Module):
    """A convolution; where the size changes with the [1, 3, 3, 1] filter before it (up, down) or after it (fused)."""

    resample_filter: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, resample: str | None = None, fused: bool = False
    ) -> None:
        super().__init__()
        self.resample, self.fused = resample, fused
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * (inputs * kernel**2) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        if resample is not None:
            taps = torch.tensor(_FILTER)
            self.register_buffer("resample_filter", (taps[:, None] * taps / taps.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        bias, pad = self.bias[:, None, None], self.weight.shape[-1] // 2
        if self.fused:
            x = functional.conv2d(x, self.weight, padding=pad + 1)
            return self._filtered(x, 0) + bias
        if self.resample == "up":
            taps = (4.0 * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)
            x = functional.conv_transpose2d(x, taps, stride=2, padding=1, groups=x.shape[1])
        if self.resample == "down":
            x = self._filtered(x, 1)
        return functional.conv2d(x, self.weight, padding=pad) + bias

    def _filtered(self, x: Tensor, pad: int) -> Tensor:
        taps = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return functional.conv2d(x, taps, stride=2, padding=pad, groups=x.shape[1])


class _Block(nn.Module):
    """((conv(dropout(silu(norm(conv(silu(norm(x))) + affine(e))))) + skip(x))/√2, and attention likewise."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        *,
        attends: bool = False,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.norm0 = _norm(inputs)
        self.conv0 = _Conv(inputs, outputs, 3, resample)
        self.affine = nn.Linear(embedding, outputs)
        self.norm1 = _norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = _Conv(outputs, outputs, 3)
        self.skip = _Conv(inputs, outputs, 1, resample) if inputs != outputs or resample else None
        self.norm2 = _norm(outputs) if attends else None
        self.qkv = _Conv(outputs, 3 * outputs, 1) if attends else None
        self.proj = _Conv(outputs, outputs, 1) if attends else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x))) + self.affine(embedding)[:, :, None, None]
        h = self.conv1(self.dropout(functional.silu(self.norm1(h))))
        h = (h + (x if self.skip is None else self.skip(x))) * _HALF
        if self.norm2 is None or self.qkv is None or self.proj is None:
            return h
        # Channels hold (query, key, value) in turn.
        q, k, v = self.qkv(self.norm2(h)).flatten(2).unflatten(1, (-1, 3)).transpose(1, 3).unbind(2)  # (B, N, C) each
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, h.shape[2:])
        return (self.proj(attended) + h) * _HALF


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)
