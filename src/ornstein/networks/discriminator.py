"""The discriminator of images at several sizes, conditioned on the level: one logit per image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigError
from ornstein.networks import checks
from ornstein.networks.blocks import ResidualBlock
from ornstein.networks.building import initialise
from ornstein.options import HIDDEN, Count, Index, Part, check_fields
from ornstein.typed import typed

_SLOPE = 0.2  # of the leaky ReLU


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorConfig:
    """Configuration of a `Discriminator`.

    * ``width``: channels before the first block and of the level's embedding; the blocks have 2, 8/3, 8/3, … times as
      many, rounded to eights, as the published 384, 512, 512 for a width of 192.
    * ``blocks``: residual blocks, all but the first of which halve the size; 0 derives the number from the smallest
      image, which ends as a single pixel.
    * ``dropout``: of the blocks' features and of the logit, in the discriminator's own steps; published are 0.2 to 0.4.
    * ``classes``: number of classes, 0 for none; the embedding of a class is added to the level's.
    * ``group``: images of a group, whose standard deviation the last layers see; 1 for none. A batch that does not
      divide by it is cut into the largest groups that it divides by.
    """

    kind: ClassVar[str] = "discriminatorconfig"

    channels: Annotated[Count, HIDDEN] = 3
    """Channels of the picture, which follow from the data."""
    width: Count = 32
    """Channels before its first block; the published one has 192."""
    blocks: Index = 0
    """Its residual blocks; 0 follows from the smallest picture."""
    dropout: Part = 0.0
    """Part of its features, and of its logits, dropped in training."""
    group: Count = 4
    """Pictures whose standard deviation is one of its features; 1 none."""
    classes: Annotated[Index, HIDDEN] = 0
    """Number of labels, which follows from --condition and the data."""

    def __post_init__(self) -> None:
        checks.positive(channels=self.channels, width=self.width, group=self.group)
        checks.not_negative(blocks=self.blocks, classes=self.classes)
        checks.multiple(8, "so that all widths do", width=self.width)
        checks.dropout_rate(self.dropout)
        check_fields(self)

    def widths(self, smallest: int) -> tuple[int, ...]:
        """Output channels of each block for images of at least this side.

        Raises `ConfigError` for more blocks than such an image can be halved.
        """
        most = int(math.log2(smallest)) + 1
        if self.blocks > most:
            raise ConfigError(f"discriminator.blocks {self.blocks} halve {smallest} pixels too often: at most {most}")
        top = max(2 * self.width, 8 * round(self.width * 8 / 3 / 8))
        return tuple(min(self.width * 2**i, top) for i in range(1, (self.blocks or most) + 1))


class Discriminator(nn.Module):
    """``net(x, time, label)``: images (B, C, H, W) of any size from ``smallest`` up, time (B,), to logits (B,).

    The discriminator of UDPM's code, after DDGAN (Xiao et al. 2022): a 1 × 1 convolution; residual blocks
    (`ResidualBlock`: group norm, SiLU, scale and shift from the embedding) with a leaky ReLU between them; the spread
    within groups of images as one more channel; a 3 × 3 convolution; the sum over pixels and a linear map. The time is
    embedded by sines and cosines, without learned layers. Row i depends on its group alone.
    """

    def __init__(self, config: DiscriminatorConfig, smallest: int) -> None:
        super().__init__()
        if smallest < 1:
            raise ConfigError(f"the smallest image of a discriminator has at least one pixel, got {smallest}")
        self.config = config
        widths = (config.width, *config.widths(smallest))
        self.label = nn.Embedding(config.classes + 1, config.width) if config.classes else None
        self.stem = nn.Conv2d(config.channels, config.width, 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                widths[i],
                widths[i + 1],
                config.width,
                norm="group",
                dropout=config.dropout,
                resample="down" if i else None,
            )
            for i in range(len(widths) - 1)
        )
        for block in self.blocks:
            block.conv_out.reset_parameters()  # type: ignore[union-attr, operator]  # zero in a U-Net, not here
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.logit = nn.Linear(widths[-1], 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits (B,) of images (B, C, H, W) at times (B,); a label of −1 is the null class."""
        embedding = self._embedding(time, label)
        h = self.stem(x.contiguous(memory_format=torch.channels_last))  # as in the U-Net: pooling is faster
        h = functional.leaky_relu(h, _SLOPE)
        for block in self.blocks:
            h = functional.leaky_relu(block(h, embedding), _SLOPE)
        h = torch.cat((h, self._spread(h)), dim=1)
        h = functional.leaky_relu(self.last(h), _SLOPE).sum((2, 3))
        return self.dropout(self.logit(h))[:, 0]

    def _embedding(self, time: Tensor, label: Tensor | None) -> Tensor:
        """(B, width): cos and sin of time · 10000^(−i/n), i < n = width/2, and the class."""
        half, own = self.config.width // 2, self.stem.weight.dtype
        like = torch.promote_types(own, torch.float32)
        index = torch.arange(half, device=time.device, dtype=like)
        phase = time[:, None].to(like) * torch.exp(-math.log(10000.0) / half * index)
        out = torch.cat((phase.cos(), phase.sin()), dim=1).to(own)
        if self.label is None:
            return out
        null = self.config.classes
        index = torch.full_like(time, null, dtype=torch.int64) if label is None else label.where(label >= 0, null)
        return out + self.label(index)

    def _spread(self, h: Tensor) -> Tensor:
        """(B, 1, H, W): the standard deviation over the group, *summed* over channels and pixels.

        The groups are those of rows i, i + B/g, i + 2B/g, …
        """
        group = max(g for g in range(1, self.config.group + 1) if len(h) % g == 0)
        variance = h.unflatten(0, (group, -1)).var(0, unbiased=False)  # (B/g, C, H, W)
        spread = (variance + 1e-8).sqrt().sum((1, 2, 3))
        return spread.repeat(group)[:, None, None, None].expand(-1, 1, *h.shape[2:])


def discriminator(config: DiscriminatorConfig, smallest: int, seed: int = 0) -> Discriminator:
    """A `Discriminator` whose weights are a pure function of the seed; the global generator is not touched.

    Weights ~ N(0, 1 / fan-in) in the blocks and a third of this variance outside, as published; biases are zero.
    """
    with torch.random.fork_rng(devices=[]):
        net = Discriminator(config, smallest)
    initialise(net, seed)
    with torch.no_grad():
        for layer in (net.stem, net.last, net.logit):
            layer.weight.mul_(3.0**-0.5)
    return net
