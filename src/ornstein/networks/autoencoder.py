"""A small convolutional autoencoder with a Gaussian bottleneck, and the patch discriminator of its training.

The layout is that of the first stage of latent diffusion (Rombach et al. 2022, app. G.1) without attention, and with a
patch stem: at a picture's full resolution nothing is computed, which is where a processor would spend its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.networks import checks
from ornstein.networks.blocks import Norm, NormKind, grow, shrink, zeroed
from ornstein.options import HIDDEN, Count, Index, check_fields
from ornstein.typed import typed

_LOGVAR = (-30.0, 20.0)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """What a `KLAutoencoder` is built from.

    * ``latent``: channels of the latent; ``channels``: of the picture.
    * ``width``: channels of the finest level; ``multipliers``: of each level, finest first.
    * ``blocks``: residual blocks a level, in the encoder; the decoder has one more.
    * ``patch``: squares of patch × patch pixels become channels first, and pixels again last.
    * ``smooth``: channels of a last convolution over single pixels, which leaves no seams between patches; 0 has none.

    A latent pixel stands for ``factor`` = patch · 2^(levels − 1) pixels a side.
    """

    kind: ClassVar[str] = "klconfig"

    channels: Annotated[Count, HIDDEN] = 3
    """Channels of the picture, which follow from the data."""
    latent: Count = 4
    """Channels of the latent."""
    width: Count = 32
    """Channels of the finest level, a multiple of 8."""
    multipliers: tuple[Count, ...] = (1, 2)
    """Channels of each level, finest first, as multiples of the width. Each level after the first halves the size."""
    blocks: Count = 1
    """Residual blocks a level of the encoder; the decoder has one more."""
    patch: Count = 2
    """Squares of patch × patch pixels become channels first, and pixels again last."""
    smooth: Index = 0
    """Channels of a last convolution over single pixels, which leaves no seams between patches; 0 for none."""
    norm: NormKind = "group"
    """Normalisation."""

    def __post_init__(self) -> None:
        checks.positive(channels=self.channels, latent=self.latent, width=self.width, blocks=self.blocks)
        checks.positive(patch=self.patch, levels=len(self.multipliers), multipliers=min(self.multipliers, default=0))
        checks.multiple(8, "normalisation works on groups of channels", width=self.width)
        checks.choice(("group", "rms", "nonscaling", "none"), norm=self.norm)
        check_fields(self)

    @property
    def factor(self) -> int:
        """Pixels a side of a latent pixel."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); starts as its shortcut."""

    def __init__(self, inputs: int, outputs: int, norm: NormKind) -> None:
        super().__init__()
        self.norm_in, self.norm_out = Norm(norm, inputs), Norm(norm, outputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_out = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(functional.silu(self.norm_in(x)).to(x.dtype))
        return self.shortcut(x) + self.conv_out(functional.silu(self.norm_out(h)).to(x.dtype))


class _Shrink(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return shrink(x)


class _Grow(nn.Module):
    """Twice the size, then a convolution that may undo the squares."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(grow(x))


class KLAutoencoder(nn.Module):
    """``net.moments(image)`` → (mean, logvar) of the latent; ``net.decode(latent)`` → the image.

    ``net(image, noise)`` is both: the reconstruction of a draw (of the mean without noise), mean and logvar.
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        widths, norm = config.widths, config.norm
        pixels = config.channels * config.patch**2
        down: list[nn.Module] = [nn.Conv2d(pixels, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level:
                down += [_Shrink(), _Block(widths[level - 1], width, norm)]
            down += [_Block(width, width, norm) for _ in range(config.blocks)]
        self.encoder = nn.Sequential(*down, Norm(norm, widths[-1]), nn.SiLU())
        self.to_latent = nn.Conv2d(widths[-1], 2 * config.latent, 3, padding=1)
        up: list[nn.Module] = [nn.Conv2d(config.latent, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            up += [_Block(widths[level], widths[level], norm) for _ in range(config.blocks + 1)]
            if level:
                up += [_Grow(widths[level]), _Block(widths[level], widths[level - 1], norm)]
        self.decoder = nn.Sequential(*up, Norm(norm, widths[0]), nn.SiLU())
        self.to_pixels = nn.Conv2d(widths[0], config.smooth * config.patch**2 or pixels, 3, padding=1)
        if config.smooth:
            self.smooth = nn.Conv2d(config.smooth, config.channels, 3, padding=1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution whose output is the picture."""
        return self.smooth if self.config.smooth else self.to_pixels

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, c, H/f, W/f) each, of pictures (B, 3, H, W)."""
        config = self.config
        checks.input_fits(image, config.channels, config.factor)
        x = functional.pixel_unshuffle(image, config.patch) if config.patch > 1 else image
        h = self.encoder(x.contiguous(memory_format=torch.channels_last)).to(image.dtype)
        mean, logvar = self.to_latent(h).contiguous().chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR)

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures (B, 3, f·h, f·w) of latents (B, c, h, w)."""
        h = self.decoder(latent.contiguous(memory_format=torch.channels_last)).to(latent.dtype)
        x = self.to_pixels(h)
        x = functional.pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x
        if self.config.smooth:
            x = self.smooth(functional.silu(x))
        return x.contiguous()

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, mean, logvar)."""
        mean, logvar = self.moments(image)
        latent = mean if noise is None else mean + (0.5 * logvar).exp() * noise.to(mean)
        return self.decode(latent), mean, logvar


class PatchDiscriminator(nn.Module):
    """A verdict for each patch of a picture, (B, 1, h, w): large for real ones (Isola et al. 2017)."""

    def __init__(self, channels: int = 3, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        checks.positive(width=width, layers=layers)
        checks.multiple(8, "normalisation works on groups of channels", width=width)
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers):
            inputs, outputs = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
            parts += [nn.Conv2d(inputs, outputs, 4, 2, 1), Norm("group", outputs), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(width * min(2 ** (layers - 1), 8), 1, 3, padding=1))
        self.body = nn.Sequential(*parts)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W)."""
        return self.body(image)
