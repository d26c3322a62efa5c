"""The U-Net of the ADM and EDM family, with every feature behind a named site.

Sites, in the order of a forward pass. Level 0 is the finest; B is the number of blocks of the level, N of levels:

| name | the feature | channels |
|---|---|---|
| ``down.L.i.hidden`` | after encoder block i of level L, i < B | width · multipliers[L] |
| ``down.L.B.hidden`` | after the block that halves the size (all levels but the last) | width · multipliers[L+1] |
| ``mid.i.hidden`` | after middle block i, i = 0, 1 | width · multipliers[N−1] |
| ``up.L.i.backbone`` | the decoder's feature just before it is joined with a skip, i < B | width · multipliers[L] |
| ``up.L.i.skip`` | the encoder's feature, ``down.L.(B−1−i).hidden``, just before the join | width · multipliers[L] |
| ``up.L.i.hidden`` | after decoder block i of level L (levels run N−1 … 0) | width · multipliers[L] |
| ``up.L.B.hidden`` | after the block that doubles the size (all levels but 0) | width · multipliers[L−1] |

A block that attends has ``….query``, ``….value`` and ``….attended`` before its ``hidden``: the queries, the values and
the result of its self-attention, all with the block's channels.

A modulation of ``down.…hidden`` is seen by the encoder and by the skip; one of ``up.…skip`` by the decoder alone.
``up.L.i.backbone`` is the same feature as the ``hidden`` before it: it exists so that a backbone and its skip can be
bound as a pair (FreeU, DMFFT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigError
from ornstein.networks import checks
from ornstein.networks.blocks import CrossAttention, Norm, NormKind, Resample, ResidualBlock, SelfAttention, zeroed
from ornstein.networks.embeddings import ConditionEmbedding, TimeFeatures
from ornstein.networks.sites import Site
from ornstein.options import HIDDEN, Count, Index, Part, check_fields
from ornstein.typed import typed


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """What a `UNet` is built from.

    * ``channels``, ``out_channels``: of the image in and out; ``out_channels=None`` means as many as ``channels``.
    * ``width``: channels of the finest level; ``multipliers``: of each level, as multiples of it, finest first.
    * ``blocks``: encoder blocks a level (as many decoder blocks), one number or one for each level.
    * ``attention``: the *levels* (0 is the finest) whose blocks attend, each pixel to all others, and to the text
      where there is one. The middle attends if the last level does.
    * ``head_width``: channels of an attention head; 32 to 64 is fastest on every device.
    * ``patch``: squares of ``patch`` × ``patch`` pixels become channels at the input and pixels again at the output, so
      that the network runs on ``patch``² times fewer positions.
    * ``smooth``: channels of a last convolution over single pixels, which sees the noisy image beside them and leaves
      no seams between patches; 0 for none.
    * ``classes``: number of classes, 0 for none. ``text_width``: channels of the text tokens, 0 for no text.
      ``vector_width``: length of the vector condition, 0 for none.
    * ``norm``: see `Norm`; ``norm_size`` is the side of the images, if the bias of ``nonscaling`` norms shall depend on
      the pixel, as published. The network then takes this size alone. 0: one bias a channel, and any size.
    * ``time_features``, ``time_scale``: see `TimeEmbedding`.

    Height and width of an image must divide by ``factor`` = patch · 2^(levels − 1).
    """

    kind: ClassVar[str] = "unet"

    channels: Annotated[Count, HIDDEN] = 3
    """Channels of the image, which follow from the data."""
    out_channels: Annotated[int | None, HIDDEN] = None
    """Channels of the output; as many as of the image."""
    width: Count = 64
    """Channels of the finest level, a multiple of 8."""
    multipliers: tuple[Count, ...] = (1, 2, 3)
    """Channels of each level as multiples of the width, finest first."""
    blocks: Count | tuple[Count, ...] = 2
    """Encoder blocks of a level (as many decoder blocks): one number, or one for each level."""
    attention: tuple[Index, ...] = (2,)
    """Levels whose blocks attend; 0 is the finest."""
    head_width: Count = 64
    """Channels of an attention head."""
    patch: Count = 1
    """Squares of patch × patch pixels become channels at the input, and pixels again at the output."""
    smooth: Index = 0
    """Channels of a last convolution over single pixels, which sees the noisy image beside them and leaves no seams
    between patches; 0 for none."""
    classes: Annotated[Index, HIDDEN] = 0
    """Number of labels, which follows from --condition and the data."""
    text_width: Annotated[Index, HIDDEN] = 0
    """Channels of a word, which follow from --condition and the data."""
    vector_width: Annotated[Index, HIDDEN] = 0
    """Length of a vector condition."""
    norm: NormKind = "group"
    """Normalisation."""
    norm_size: Index = 0
    """Side of the images, if the bias of nonscaling norms shall depend on the pixel, as published; the network then
    takes that size alone."""
    dropout: Part = 0.0
    """Part of the features dropped in training."""
    time_features: TimeFeatures = "sinusoidal"
    """How the time number becomes features: sinusoidal for times of 0 … 1000, fourier for log σ/4."""
    time_scale: float = 1.0
    """Factor on the time number; 16 is usual with fourier features of log(σ)/4."""

    def __post_init__(self) -> None:
        checks.positive(channels=self.channels, out_channels=self.outputs, width=self.width, head_width=self.head_width)
        checks.positive(patch=self.patch)
        checks.multiple(8, "normalisation works on groups of channels", width=self.width)
        checks.not_negative(
            smooth=self.smooth, classes=self.classes, text_width=self.text_width, vector_width=self.vector_width
        )
        checks.choice(("group", "rms", "nonscaling", "none"), norm=self.norm)
        checks.not_negative(norm_size=self.norm_size)
        checks.multiple(self.factor, "every level has a whole side", norm_size=self.norm_size)
        if self.norm_size and self.norm != "nonscaling":
            raise ConfigError(f"norm_size={self.norm_size} is for norm='nonscaling', not {self.norm!r}: leave it out")
        checks.choice(("sinusoidal", "fourier"), time_features=self.time_features)
        checks.dropout_rate(self.dropout)
        levels = len(self.multipliers)
        if levels == 0 or min(self.multipliers) < 1:
            raise ConfigError(
                f"multipliers={self.multipliers} must be at least one number, each at least 1, e.g. (1, 2, 3)"
            )
        if len(self.depths) != levels or min(self.depths) < 1:
            raise ConfigError(
                f"blocks={self.blocks} must be one number, or {levels} (one for each level), each at least 1"
            )
        for level in self.attention:
            if not 0 <= level < levels:
                raise ConfigError(
                    f"attention={self.attention} names level {level}: levels are 0 … {levels - 1}, 0 the finest"
                )
            if self.widths[level] % self.head_width:
                raise ConfigError(
                    f"head_width={self.head_width} does not divide the {self.widths[level]} channels of level {level}: "
                    "change head_width, width or multipliers"
                )
        if self.text_width and not self.attention:
            raise ConfigError(
                f"text_width={self.text_width} needs a level that attends to the text: name one in attention"
            )
        check_fields(self)

    def side(self, level: int) -> int:
        """Side of the features of a level, where it is known."""
        return self.norm_size // self.patch // 2**level

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.channels if self.out_channels is None else self.out_channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * m for m in self.multipliers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each level."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else tuple(self.blocks)

    @property
    def factor(self) -> int:
        """What height and width of an image must divide by."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @classmethod
    def small(
        cls, *, channels: int = 3, classes: int = 0, text_width: int = 0, vector_width: int = 0, dropout: float = 0.0
    ) -> UNetConfig:
        """The default for drawings of 64 × 64 pixels on a CPU: 2.7 million parameters, made for images a second.

        One thread of an AVX2 core: 10 ms an image forward, 41 ms forward and backward at batch 32 in float32, two
        thirds of it convolutions at 60 of 73 GFLOP/s. bf16 pays only where the processor has it: here it takes ten
        times as long.
        """
        return cls(
            channels=channels,
            width=32,
            multipliers=(1, 2, 4),
            blocks=1,
            attention=(2,),
            head_width=32,
            patch=2,
            classes=classes,
            text_width=text_width,
            vector_width=vector_width,
            dropout=dropout,
        )


class UNetBlock(nn.Module):
    """A residual block, then self- and cross-attention where the level has them, then the site of the result."""

    def __init__(
        self, config: UNetConfig, level: int, inputs: int, outputs: int, site: str, resample: Resample = None
    ) -> None:
        super().__init__()
        attends = level in config.attention
        norm, heads = config.norm, config.head_width
        before = level + {"down": -1, "up": 1}.get(resample or "", 0)
        size = config.side(level)
        self.residual = ResidualBlock(
            inputs,
            outputs,
            4 * config.width,
            norm=norm,
            dropout=config.dropout,
            resample=resample,
            sizes=(config.side(before), size),
        )
        self.attention = SelfAttention(outputs, heads, norm, site, size) if attends else None
        conditional = attends and config.text_width
        self.cross = CrossAttention(outputs, heads, norm, config.text_width, size) if conditional else None
        self.hidden = Site(f"{site}.hidden")

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        x = self.residual(x, cond.embedding)
        if self.attention is not None:
            x = self.attention(x, cond.time)
        if self.cross is not None:
            x = self.cross(x, cond.text, cond.text_mask)
        return self.hidden(x, cond.time)


class JoinBlock(nn.Module):
    """A decoder block: joins the backbone with a skip feature, each behind its site, and runs a `UNetBlock`."""

    def __init__(self, config: UNetConfig, level: int, site: str) -> None:
        super().__init__()
        width = config.widths[level]
        self.backbone, self.skip = Site(f"{site}.backbone"), Site(f"{site}.skip")
        self.block = UNetBlock(config, level, 2 * width, width, site)

    def forward(self, x: Tensor, skip: Tensor, cond: Conditions) -> Tensor:
        """Backbone and skip, (B, C, H, W) each, to (B, C, H, W)."""
        joined = torch.cat((self.backbone(x, cond.time), self.skip(skip, cond.time)), dim=1)
        return self.block(joined, cond)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What every block of one forward pass reads besides its feature."""

    embedding: Tensor  # (B, E)
    time: Tensor  # (B,)
    text: Tensor | None  # (B, L, D)
    text_mask: Tensor | None  # (B, L)


class UNet(nn.Module):
    """``net(x, time, label=…, text=…, text_mask=…, vector=…)``: an image-sized prediction for a noisy image.

    Residual blocks after ADM (Dhariwal & Nichol 2021) in the arrangement of EDM (Karras et al. 2022), with three
    changes for speed: each encoder block feeds exactly one decoder block, the doubling of the size happens between the
    two convolutions of its block, and an optional patch stem. The output starts at exactly zero.

    >>> from ornstein.networks import build
    >>> net = build(UNetConfig.small(classes=10))
    >>> net(torch.zeros(2, 3, 64, 64), torch.tensor([10.0, 500.0]), label=torch.tensor([3, -1])).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.widths, len(config.widths) - 1
        self.embedding = ConditionEmbedding(
            4 * config.width,
            features=max(64, config.width),
            kind=config.time_features,
            scale=config.time_scale,
            classes=config.classes,
            vector_width=config.vector_width,
        )
        self.stem = nn.Conv2d(config.channels * config.patch**2, widths[0], 3, padding=1)
        # Registered in the order of the forward pass, so that `sites` lists them in the order of their visits.
        self.down = nn.ModuleList(self._encoder_level(level) for level in range(last + 1))
        self.mid = nn.ModuleList(UNetBlock(config, last, widths[last], widths[last], f"mid.{i}") for i in range(2))
        self.up = nn.ModuleList(self._decoder_level(level) for level in range(last, -1, -1))
        self.norm = Norm(config.norm, widths[0], config.side(0))
        if config.smooth:
            self.head = nn.Conv2d(widths[0], config.smooth * config.patch**2, 3, padding=1)
            self.smooth = zeroed(nn.Conv2d(config.smooth + config.channels, config.outputs, 3, padding=1))
        else:
            self.head = zeroed(nn.Conv2d(widths[0], config.outputs * config.patch**2, 3, padding=1))

    def _encoder_level(self, level: int) -> nn.ModuleList:
        config, width, depth = self.config, self.config.widths[level], self.config.depths[level]
        blocks = [UNetBlock(config, level, width, width, f"down.{level}.{i}") for i in range(depth)]
        if level + 1 < len(config.widths):
            below = config.widths[level + 1]
            blocks.append(UNetBlock(config, level + 1, width, below, f"down.{level}.{depth}", resample="down"))
        return nn.ModuleList(blocks)

    def _decoder_level(self, level: int) -> nn.ModuleList:
        config, width, depth = self.config, self.config.widths[level], self.config.depths[level]
        blocks: list[nn.Module] = [JoinBlock(config, level, f"up.{level}.{i}") for i in range(depth)]
        if level > 0:
            above = config.widths[level - 1]
            blocks.append(UNetBlock(config, level - 1, width, above, f"up.{level}.{depth}", resample="up"))
        return nn.ModuleList(blocks)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Tensor:
        """Image x (B, C, H, W) and time (B,) to (B, C_out, H, W), in the dtype of x.

        label (B,) int64, −1 for the null class; text (B, L, D) with text_mask (B, L) bool, True where there is a word;
        vector (B, V). Each may be None. Raises `ConfigError` for a size that does not divide by ``config.factor``, and
        for a condition that the configuration does not have.
        """
        config = self.config
        checks.input_fits(x, config.channels, config.factor)
        if config.norm_size and x.shape[2:] != (config.norm_size, config.norm_size):
            raise ConfigError(
                f"a network with norm_size={config.norm_size} takes images of that side, not {x.shape[2]}×{x.shape[3]}"
            )
        checks.text_fits(text, config.text_width)
        cond = Conditions(self.embedding(time, label, vector), time, text, text_mask)
        h = functional.pixel_unshuffle(x, config.patch) if config.patch > 1 else x
        # Pooling and upsampling are four to seven times faster in this format, convolutions 1.0 to 1.7 times.
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for level, depth in zip(self.down, config.depths, strict=True):
            for i, block in enumerate(level):  # type: ignore[arg-type]
                h = block(h, cond)
                if i < depth:
                    skips.append(h)
        for block in self.mid:
            h = block(h, cond)
        for level in self.up:
            for block in level:  # type: ignore[union-attr]
                h = block(h, skips.pop(), cond) if isinstance(block, JoinBlock) else block(h, cond)
        h = self.head(functional.silu(self.norm(h)))
        h = functional.pixel_shuffle(h, config.patch) if config.patch > 1 else h
        if config.smooth:
            h = self.smooth(torch.cat((functional.silu(h), x), dim=1))
        return h.to(dtype=x.dtype, memory_format=torch.contiguous_format)
