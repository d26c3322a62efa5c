"""The network that reads rarity off a noisy image: the encoder half of a U-Net, attention pooling, one linear map.

Stand-alone it looks at the image. As a cascade it looks at the features of a frozen network, and is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..denoisers import Denoiser
from ..errors import ConfigError
from ..guidance.base import affine_path
from ..networks import UNetConfig, checks
from ..networks.blocks import Norm, attend, zeroed
from ..networks.embeddings import ConditionEmbedding, positions_2d
from ..networks.sites import Site, modulated, sites
from ..networks.unet import Conditions, UNetBlock

if TYPE_CHECKING:
    from .spec import DenoiserSpec

_LIMIT = 20.0  # log-SNR beyond which nothing changes


def timestep_of(log_snr: Tensor) -> Tensor:
    """The network's time number, 0 … 1000 for log-SNR 20 … −20: the range that sinusoidal features are made for."""
    return 500.0 * (1.0 - log_snr.clamp(-_LIMIT, _LIMIT) / _LIMIT)


class AttentionPool(nn.Module):
    """A feature (B, C, H, W) to one vector (B, C): its mean attends to all pixels, as in CLIP's image tower.

    The positions of the pixels are sines and cosines, so any size of image fits.
    """

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.query = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        channels, (height, width) = x.shape[1], x.shape[2:]
        places = positions_2d(height, width, channels, x).to(x.dtype)
        tokens = x.flatten(2).transpose(1, 2)  # (B, H W, C)
        mean = tokens.mean(1, keepdim=True)
        keys, values = self.keys(torch.cat((mean, tokens + places), dim=1)).chunk(2, dim=2)
        return self.out(attend(self.query(mean), keys, values, self.heads))[:, 0]


class Encoder(nn.Module):
    """``net(x, time, label=…)``: an image or feature (B, C, H, W) and time (B,) to (B, ``outputs``), zero at first.

    The blocks are those of `ornstein.networks.UNet` down to its middle, with the same sites ``down.…`` and ``mid.…``.
    """

    def __init__(self, config: UNetConfig, outputs: int) -> None:
        super().__init__()
        self.config = config
        widths, last = config.widths, len(config.widths) - 1
        if widths[last] % config.head_width or widths[last] % 4:
            raise ConfigError(
                f"the last level's {widths[last]} channels must divide by head_width={config.head_width} and by 4, for "
                "the attention that pools them: change width, multipliers or head_width"
            )
        self.embedding = ConditionEmbedding(
            4 * config.width,
            features=max(64, config.width),
            kind=config.time_features,
            scale=config.time_scale,
            classes=config.classes,
        )
        self.stem = nn.Conv2d(config.channels * config.patch**2, widths[0], 3, padding=1)
        blocks: list[UNetBlock] = []
        for level, depth in enumerate(config.depths):
            width = widths[level]
            blocks += [UNetBlock(config, level, width, width, f"down.{level}.{i}") for i in range(depth)]
            if level < last:
                blocks.append(
                    UNetBlock(config, level + 1, width, widths[level + 1], f"down.{level}.{depth}", resample="down")
                )
        blocks += [UNetBlock(config, last, widths[last], widths[last], f"mid.{i}") for i in range(2)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(config.norm, widths[last])
        self.pool = AttentionPool(widths[last], config.head_width)
        self.head = zeroed(nn.Linear(widths[last], outputs))

    def forward(self, x: Tensor, time: Tensor, *, label: Tensor | None = None) -> Tensor:
        """See the class."""
        config = self.config
        checks.input_fits(x, config.channels, config.factor)
        cond = Conditions(self.embedding(time, label, None), time, None, None)
        h = functional.pixel_unshuffle(x, config.patch) if config.patch > 1 else x
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            h = block(h, cond)
        return self.head(self.pool(functional.silu(self.norm(h))).float())


class RunFeatures(nn.Module):
    """Features of a trained denoiser's network at named sites, at the noisy image and its noise level; frozen.

    The state comes with unit variance and a log-SNR, is brought to the run's own path and shown to its network as in
    sampling, without condition. Features of several sites are brought to the size of the smallest and joined.
    """

    def __init__(self, spec: DenoiserSpec, net: nn.Module, at: Sequence[str]) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        known = sites(net)
        for name in at:
            if name not in known:
                raise ConfigError(f"the feature network has no site {name!r}: choose among {', '.join(known)}")
        self.at = tuple(at)
        self._spec = spec

    def train(self, mode: bool = True) -> RunFeatures:
        """It stays in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """State x (B, 3, H, W) of unit variance and log-SNR (B,) to the features (B, C, h, w)."""
        path = affine_path(self._spec.denoiser(self.net).path, "a feature network")
        low, high = path.log_snr(_noisiest(path)), path.log_snr(path.t_min)
        level = log_snr.detach().to("cpu", torch.float64).clamp(low, high)
        t = path.time_of(level)
        scale = (path.alpha(t) ** 2 + path.sigma(t) ** 2).sqrt().to(x)
        seen: dict[str, Tensor] = {}

        def keep(feature: Tensor, site: str, t: Any) -> Tensor:
            del t
            seen[site] = feature
            return feature

        denoiser: Denoiser = self._spec.denoiser(self.net)
        with modulated(self.net, dict.fromkeys(self.at, keep)):
            denoiser.raw(x * scale[:, None, None, None], t)
        features = [seen[name].float() for name in self.at]
        size = min(((f.shape[-2], f.shape[-1]) for f in features), key=lambda s: s[0] * s[1])
        return torch.cat([functional.adaptive_avg_pool2d(f, size) if f.shape[-2:] != size else f for f in features], 1)


def _noisiest(path: Any) -> float:
    top = path.t_range[1]
    return path.time_of(-_LIMIT / 2) if path.alpha(top) == 0.0 else top


class Lite0Features(nn.Module):
    """The last stride-8 and stride-16 features of EfficientNet-lite0 at the noisy image of unit variance; frozen.

    Its weights come with a dependency and are not part of a checkpoint.
    """

    channels = 40 + 112

    def __init__(self) -> None:
        super().__init__()
        from ..metrics.features import lite0

        self._net = (lite0().module,)  # in a tuple, so that it is no submodule: checkpoints leave it out

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """State x (B, 3, H, W) to features (B, 152, H/16, W/16)."""
        from ..metrics.perceptual import enlarged

        del log_snr
        net: Any = self._net[0].to(x.device)
        h = net._swish(net._bn0(net._conv_stem(enlarged(x.float(), 64))))
        fine = h
        for index, block in enumerate(net._blocks):
            h = block(h)
            if index == 4:
                fine = h
            if index == 10:
                break
        return torch.cat((functional.avg_pool2d(fine, 2, ceil_mode=True), h), dim=1)


class RarityNet(nn.Module):
    """``net(x, log_snr, label=…)``: x/√(α² + σ²) (B, 3, H, W) and log-SNR (B,) to (B, outputs).

    It knows the noise as a log-SNR and the state at unit variance, so it knows no path.
    """

    def __init__(self, encoder: Encoder, features: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.features = encoder, features

    def forward(self, x: Tensor, time: Tensor, *, label: Tensor | None = None) -> Tensor:
        """``time`` is the log-SNR."""
        seen = x if self.features is None else self.features(x, time)
        return self.encoder(seen, timestep_of(time).float(), label=label)


__all__ = ["AttentionPool", "Encoder", "Lite0Features", "RarityNet", "RunFeatures", "Site", "timestep_of"]
