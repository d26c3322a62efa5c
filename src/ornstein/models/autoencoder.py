"""Autoencoders: what one is, apart from its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..networks.autoencoder import KLAutoencoder, KLConfig
from ..networks.building import initialise
from ..parameterizations import Net
from ..paths import Flow
from .spec import Conditioned, ModelSpec, NoPictures

_WHY = (
    "this run is an autoencoder, which makes no pictures of its own: train a model with --codec RUN, "
    "or measure it with ornstein eval RUN"
)


class Autoencoding(nn.Module):
    """``net(image, time, noise=…)`` → (reconstruction, mean, logvar); the time is not looked at."""

    def __init__(self, auto: KLAutoencoder) -> None:
        super().__init__()
        self.auto = auto

    def latent_shape(self, shape: Any) -> tuple[int, int, int]:
        """Of pictures (3, H, W)."""
        factor = self.auto.config.factor
        return self.auto.config.latent, shape[-2] // factor, shape[-1] // factor

    def forward(self, image: Tensor, time: Tensor, *, noise: Tensor | None = None) -> Any:
        """See `KLAutoencoder.forward`."""
        del time
        return self.auto(image, noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderSpec(ModelSpec):
    """An autoencoder without its weights."""

    kind: ClassVar[str] = "autoencoderspec"
    retired: ClassVar[tuple[str, ...]] = ("path", "predicts", "sigma_data", "text", "classes")

    network: KLConfig

    def build(self, seed: int = 0) -> Conditioned:
        """The network with fresh weights, a pure function of the seed."""
        with torch.random.fork_rng(devices=[]):
            auto = KLAutoencoder(self.network)
        return Conditioned(initialise(Autoencoding(auto), seed), None)

    def denoiser(self, net: Net) -> Denoiser:
        """The network, on a path that is never walked."""
        return Denoiser(net, Flow(), NoPictures(_WHY), shape=self.shape)

    def show(self, model: Conditioned, images: Tensor) -> Tensor:
        """Pictures and, each below its own, their reconstructions: (2·N, 3, H, W), in rows of N."""
        auto: Any = model.net
        with torch.no_grad():
            again = auto(images, images.new_zeros(len(images)))[0]
        parts = [torch.cat((a, b)) for a, b in zip(images.split(4), again.clamp(-1, 1).split(4), strict=True)]
        return torch.cat(parts)
