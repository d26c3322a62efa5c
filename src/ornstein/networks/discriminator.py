"""A discriminator of noised images at several sizes, told the level: one logit an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigError
from ornstein.networks import checks
from ornstein.networks.building import initialise
from ornstein.networks.embeddings import ConditionEmbedding

_SLOPE = 0.2  # of the leaky ReLU


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorConfig:
    """What a `Discriminator` is built from.

    * ``width``: channels of the first block; the others have 2, 8/3, 8/3, … times as many, rounded to eights, as the
      published 192, 384, 512, 512.
    * ``blocks``: residual blocks, all but the first of which halve the size; 0 follows from the smallest image, which
      ends as a single pixel.
    * ``classes``: number of classes, 0 for none; the embedding of a class is added to the level's.
    * ``group``: images whose spread is shown to the last layers (minibatch standard deviation), 1 for none. A batch
      that does not divide by it is cut into the largest groups that it divides by.
    """

    channels: int = 3
    width: int = 32
    blocks: int = 0
    dropout: float = 0.0
    group: int = 4
    classes: int = 0

    def __post_init__(self) -> None:
        checks.positive(channels=self.channels, width=self.width, group=self.group)
        checks.not_negative(blocks=self.blocks, classes=self.classes)
        checks.multiple(8, "so that all widths do", width=self.width)
        checks.dropout_rate(self.dropout)

    def widths(self, smallest: int) -> tuple[int, ...]:
        """Channels of each block for images of at least this side."""
        count = self.blocks or max(1, int(math.log2(smallest)) + 1)
        top = max(2 * self.width, 8 * round(self.width * 8 / 3 / 8))
        return tuple(min(self.width * 2**i, top) for i in range(count))


class Discriminator(nn.Module):
    """``net(x, time, label)``: images (B, C, H, W) of any size from ``smallest`` up, time (B,), to logits (B,).

    After DDGAN (Xiao et al. 2022) and UDPM's code: a pointwise stem, residual blocks with leaky ReLU and the level's
    embedding, the spread within groups of images as a further channel, one more convolution, the sum over pixels and a
    linear map. Row i depends on its group, no further.
    """

    def __init__(self, config: DiscriminatorConfig, smallest: int) -> None:
        super().__init__()
        if smallest < 1:
            raise ConfigError(f"the smallest image of a discriminator has at least one pixel, got {smallest}")
        self.config = config
        widths = config.widths(smallest)
        embedding = 2 * config.width
        # Times are (l − ½)/L in (0, 1): the features' own range is 0 … 1000.
        self.embedding = ConditionEmbedding(embedding, features=64, scale=1000.0, classes=config.classes)
        self.stem = nn.Conv2d(config.channels, widths[0], 1)
        sizes = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.ModuleList(
            _Block(inputs, outputs, embedding, config.dropout, halve=i > 0) for i, (inputs, outputs) in enumerate(sizes)
        )
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.logit = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """See the class. A label of −1 is the null class."""
        embedding = self.embedding(time, label if self.config.classes else None, None)
        h = self.stem(x.contiguous(memory_format=torch.channels_last))  # as in the U-Net: pooling is faster
        for block in self.blocks:
            h = block(h, embedding)
        h = torch.cat((h, self._spread(h)), dim=1)
        h = functional.leaky_relu(self.last(h), _SLOPE).sum((2, 3))
        return self.dropout(self.logit(h))[:, 0]

    def _spread(self, h: Tensor) -> Tensor:
        """(B, 1, H, W): the standard deviation over the group, averaged over channels and pixels."""
        group = max(g for g in range(1, self.config.group + 1) if len(h) % g == 0)
        groups = h.unflatten(0, (-1, group))  # (B/g, g, C, H, W)
        variance = groups.var(1, unbiased=False)
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3), keepdim=True)
        return spread.repeat_interleave(group, 0).expand(-1, 1, *h.shape[2:])


class _Block(nn.Module):
    """(conv(act(conv(act(x)) + embedding)) + shortcut)/√2, halved by averages before the second convolution."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.told = nn.Linear(embedding, outputs)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W'); a single row or column is not halved."""
        h = functional.leaky_relu(x, _SLOPE)
        h = self.first(h) + self.told(embedding)[:, :, None, None]
        h = self.dropout(functional.leaky_relu(h, _SLOPE))
        if self.halve and min(x.shape[2:]) > 1:
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        return (self.second(h) + self.shortcut(x)) * 0.5**0.5


def discriminator(config: DiscriminatorConfig, smallest: int, seed: int = 0) -> Discriminator:
    """A `Discriminator` whose weights are a pure function of the seed; the global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        net = Discriminator(config, smallest)
    initialise(net, seed)
    return net
