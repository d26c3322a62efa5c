"""The losses of an autoencoder: pixels, a perceptual metric, the width of its latents, and a discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..denoisers import Denoiser
from ..errors import ConfigError
from ..options import check_fields
from ..randomness import Noise
from ..typed import typed
from .base import Losses, TrainBatch

Metric = Callable[[Tensor, Tensor], Tensor]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionLoss:
    """|e| + γ·|∇e| + λ·M(x̂, x) + β·KL/(3·H·W) + w·adversarial.

    e = x̂ − x, and x̂ is decoded from a draw z ~ N(mean, e^{logvar}). The first term is the mean over pixels. ∇e are the
    differences of neighbours, the means of both directions summed: a small error that changes from pixel to pixel, as
    a texture on what should be flat, costs as much there as an edge of its height (after Mathieu et al. 2016, eq. 6,
    who compare the sizes of the two gradients). KL is the divergence from N(0, 1) summed over the latent, in units of
    Rombach et al. 2022, where 1e-6 leaves it almost free. The adversarial term is −D(x̂) over patches, with

        w = adversarial · ‖∇ rest‖/‖∇ adversarial‖

    where the gradients are those of the decoder's last layer (Esser et al. 2021, eq. 7).
    """

    kind: ClassVar[str] = "reconstructionloss"

    pixels: Literal["l1", "l2"] = "l1"
    """Distance of pixels: l1, or l2, the square."""
    gradients: float = 0.0
    """Weight γ of the difference between the gradients of the two pictures: flat parts stay flat, and edges sharp."""
    metric: str = "lite0"
    """The perceptual metric: none, lite0, vgg, alex, squeeze, or the path of LPIPS weights."""
    metric_weight: float = 0.5
    """Its weight λ."""
    kl: float = 1e-6
    """Weight β of the divergence."""
    adversarial: float = 0.0
    """Weight of the discriminator of patches, relative to the other terms; 0 has none, 0.5 is usual."""
    adversarial_from: int = 50_000
    """Images after which the discriminator begins to learn, and its verdict to count."""

    def __post_init__(self) -> None:
        for name in ("gradients", "metric_weight", "kl", "adversarial", "adversarial_from"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"objective.{name} must not be negative, got {getattr(self, name)}")
        if not self.metric:
            raise ConfigError("objective.metric is empty: name a perceptual metric, or none")
        check_fields(self)

    def with_parts(self, device: torch.device | str, discriminator: nn.Module | None) -> Reconstructing:
        """The objective with its metric loaded, and its discriminator."""
        metric: Metric | None = None
        if self.metric != "none" and self.metric_weight > 0.0:
            from ..metrics.perceptual import lpips

            metric = lpips(self.metric).to(device)
        return Reconstructing(loss=self, metric=metric, discriminator=discriminator)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reconstructing:
    """The objective of an autoencoder: see `ReconstructionLoss`.

    The model's network is called as ``net(image, time, noise=…)`` and returns (reconstruction, mean, logvar). Terms:
    ``pixels``, ``gradients``, ``metric``, ``kl`` and ``adversarial``. Watched: ``psnr`` (dB) and ``latent_std``.
    """

    loss: ReconstructionLoss = field(default_factory=ReconstructionLoss)
    metric: Metric | None = None
    discriminator: nn.Module | None = None

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """The losses of one batch."""
        del progress
        loss, image = self.loss, batch.clean
        again, mean, logvar = autoencode(model.net, image, noise)
        again, mean, logvar = again.float(), mean.float(), logvar.float()
        error = again - image
        terms = {"pixels": (error.abs() if loss.pixels == "l1" else error.square()).flatten(1).mean(1)}
        if loss.gradients:
            terms["gradients"] = loss.gradients * _roughness(error)
        if self.metric is not None:
            terms["metric"] = loss.metric_weight * self.metric(again, image)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
        terms["kl"] = loss.kl / image[0].numel() * divergence
        if self.discriminator is not None and self.begun(batch):
            terms["adversarial"] = self._adversarial(model, again, terms)
        power = error.detach().square().flatten(1).mean(1).clamp_min(1e-10)
        watched = {"psnr": 10.0 * (4.0 / power).log10(), "latent_std": mean.detach().flatten(1).std(1)}
        return Losses(terms=terms, times=torch.zeros(len(image), dtype=torch.float64), watched=watched)

    def discriminator_loss(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses | None:
        """The discriminator's hinge loss on pictures and their reconstructions (Lim & Ye 2017)."""
        del progress
        if self.discriminator is None or not self.begun(batch):
            return None
        with torch.no_grad():
            again = autoencode(model.net, batch.clean, noise)[0].float()
        real, fake = self.discriminator(batch.clean), self.discriminator(again)
        terms = {
            "real": functional.relu(1.0 - real).flatten(1).mean(1),
            "fake": functional.relu(1.0 + fake).flatten(1).mean(1),
        }
        return Losses(terms=terms, times=torch.zeros(len(real), dtype=torch.float64))

    def begun(self, batch: TrainBatch) -> bool:
        """Whether the discriminator is used for this batch."""
        return min(batch.positions) >= self.loss.adversarial_from

    def _adversarial(self, model: Denoiser, again: Tensor, terms: dict[str, Tensor]) -> Tensor:
        assert self.discriminator is not None
        # No gradient for the discriminator's weights: this is a loss of the model.
        frozen = {name: value.detach() for name, value in self.discriminator.state_dict().items()}
        verdict: Tensor = torch.func.functional_call(self.discriminator, frozen, (again,))
        plain = -verdict.flatten(1).mean(1)
        last = last_layer(model.net)
        rest = torch.stack([value.mean() for value in terms.values()]).sum()
        (ours,) = torch.autograd.grad(rest, last, retain_graph=True)
        (theirs,) = torch.autograd.grad(plain.mean(), last, retain_graph=True)
        ratio = (ours.norm() / (theirs.norm() + 1e-4)).clamp(0.0, 1e4).detach()
        return self.loss.adversarial * ratio * plain


def _roughness(error: Tensor) -> Tensor:
    """Mean |difference| of neighbours, both directions summed, (B,)."""
    return sum((error.diff(dim=dim).abs().flatten(1).mean(1) for dim in (-1, -2)), error.new_zeros(()))


def autoencode(net: Any, image: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """The output of the network for pictures, with the noise of these samples for its latents."""
    inner = unwrapped(net)
    shape = inner.latent_shape(image.shape[1:])
    z = noise.normal("latent", shape).to(image, non_blocking=True)
    return net(image, image.new_zeros(len(image)), noise=z)


def last_layer(net: Any) -> Tensor:
    """The weights of the decoder's last layer."""
    return unwrapped(net).auto.last_layer.weight


def unwrapped(net: Any) -> Any:
    """The autoencoder inside what trains it (a data-parallel wrapper, a model with conditions)."""
    while not hasattr(net, "latent_shape"):
        net = net.module if hasattr(net, "module") else net.net
    return net
