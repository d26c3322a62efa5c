"""The losses of UDPM: at every level the image below is fitted, looks right, and deceives a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..denoisers import Denoiser
from ..errors import ConfigError, PathError
from ..networks.discriminator import DiscriminatorConfig
from ..options import check_fields
from ..paths.pyramid import PyramidPath
from ..randomness import Noise
from ..typed import typed
from .base import Losses, TrainBatch, without

Metric = Callable[[Tensor, Tensor], Tensor]
Distance = Literal["l1", "l2"]
Draw = Literal["one", "all"]

_FADING = 600  # how often the noise on the discriminator's images shrinks by 1 % in the published training


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidLoss:
    """The losses at a level l of a pyramid, with ĝ = H^{l−1}x̂_0/k the image of the level below in the range of x_0,
    g the true one, and the discriminator D, which takes l:

        L_G = w_l·mean|ĝ − g| + p_l·M(ĝ, g) + a_l·softplus(−D(ĝ + ν))
        L_D = ½·softplus(D(ĝ + ν)) + ½·softplus(−D(g + ν)) + ½·r_l·|∇_g D(g + ν)|²

    ν is white noise whose std falls with the training. The weights are one number for all levels, or one for each from
    the finest (l = 1) on; empty tuples are the published ones, as `PyramidLoss.weights` says. A weight of zero leaves
    its term out, and without any a_l there is no discriminator.
    """

    kind: ClassVar[str] = "pyramidloss"
    renamed: ClassVar[Mapping[str, str]] = {
        "odds": "level_probabilities",
        "lazy": "r1_interval",
        "blur": "instance_noise",
        "drop": "label_dropout",
    }

    fidelity: tuple[float, ...] = ()
    """Weight w of the pixels' error: one for all levels, or one a level from the finest on. By default 1, and 0 where
    the state carries no signal, for only the mean image could be fitted there; without a discriminator it is 1
    there too."""
    perceptual: tuple[float, ...] = ()
    """Weight p of the perceptual metric; by default 4, and 0 where the state carries no signal."""
    adversarial: tuple[float, ...] = ()
    """Weight a of the discriminator; by default 0.2 at the finest level, 0.5 above, 1 where there is no signal. 0
    trains without one."""
    penalty: tuple[float, ...] = ()
    """Weight r of the discriminator's gradient penalty (R1); by default 0.1, 0.4 above, 0.8 without signal."""
    metric: str = "lite0"
    """The perceptual metric: none, lite0, vgg, alex, squeeze, or the path of LPIPS weights."""
    distance: Distance = "l1"
    """The pixels' error: l1, or l2, which with no other loss makes a diffusion model of each level."""
    draw: Draw = "one"
    """Levels of a step: one, drawn for the whole batch, or all."""
    level_probabilities: tuple[float, ...] = ()
    """Relative frequency of each level, from the finest on, with --objective.draw one; by default all alike."""
    r1_interval: int = 1
    """The gradient penalty, nearly half of the discriminator's cost, is computed in one of this many of its steps,
    drawn at random, and weighs that many times more there. 1: in all."""
    instance_noise: float = 0.4
    """Std of the noise on the discriminator's images at the beginning; it falls to 0.24 % of that."""
    label_dropout: float = 0.1
    """Part of the samples trained without their condition, as classifier-free guidance needs."""

    def __post_init__(self) -> None:
        for name in ("fidelity", "perceptual", "adversarial", "penalty", "level_probabilities"):
            if not all(0.0 <= value < float("inf") for value in getattr(self, name)):
                raise ConfigError(f"objective.{name} must not be negative, got {getattr(self, name)}")
        if self.level_probabilities and not sum(self.level_probabilities) > 0.0:
            raise ConfigError(f"objective.level_probabilities must not all be zero, got {self.level_probabilities}")
        if self.r1_interval < 1:
            raise ConfigError(f"objective.r1_interval must be at least 1, got {self.r1_interval}")
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ConfigError(f"objective.label_dropout must lie in [0, 1], got {self.label_dropout}")
        if not 0.0 <= self.instance_noise < float("inf"):
            raise ConfigError(f"objective.instance_noise must not be negative, got {self.instance_noise}")
        if not self.metric:
            raise ConfigError("objective.metric is empty: name a perceptual metric, or none")
        if self.distance not in ("l1", "l2") or self.draw not in ("one", "all"):
            raise ConfigError(f"objective.distance and draw are {self.distance!r} and {self.draw!r}: see their choices")
        check_fields(self)

    def weights(self, path: PyramidPath) -> tuple[Weights, ...]:
        """What every level weighs, from l = 1 on.

        A level carries no signal where ᾱ_l times a constant image is less than a tenth of the noise, as at the
        published l = 3. For the published path and size 64 these are w = (1, 1, 0), p = (4, 4, 0), a = (0.2, 0.5, 1),
        r = (0.1, 0.4, 0.8).

        Raises `ConfigError` for another number of weights than of levels, and for a level without any loss.
        """
        count = path.levels
        silent = [path.gains[t] * path.scale(t) < 0.1 * path.stds[t] for t in range(1, count + 1)]
        firsts = [level == 0 and not none for level, none in enumerate(silent)]
        adversarial = self._each(
            "adversarial", [1.0 if s else 0.2 if f else 0.5 for s, f in zip(silent, firsts, strict=True)]
        )
        fidelity = self._each(
            "fidelity", [float(not (s and a > 0.0)) for s, a in zip(silent, adversarial, strict=True)]
        )
        perceptual = self._each("perceptual", [0.0 if s else 4.0 for s in silent])
        if self.metric == "none":
            perceptual = (0.0,) * count
        penalty = self._each("penalty", [0.8 if s else 0.1 if f else 0.4 for s, f in zip(silent, firsts, strict=True)])
        out = tuple(Weights(*row) for row in zip(fidelity, perceptual, adversarial, penalty, strict=True))
        for level, weights in enumerate(out, 1):
            if weights.fidelity == weights.perceptual == weights.adversarial == 0.0:
                raise ConfigError(f"level {level} has no loss: give it a fidelity, perceptual or adversarial weight")
        return out

    def frequencies(self, path: PyramidPath) -> tuple[float, ...]:
        """The probability of each level."""
        odds = self._each("level_probabilities", [1.0] * path.levels)
        return tuple(value / sum(odds) for value in odds)

    def _each(self, name: str, otherwise: list[float]) -> tuple[float, ...]:
        given: tuple[float, ...] = getattr(self, name) or tuple(otherwise)
        if len(given) not in (1, len(otherwise)):
            raise ConfigError(f"objective.{name} has {len(given)} values for {len(otherwise)} levels: give one, or all")
        return given if len(given) == len(otherwise) else given * len(otherwise)

    def on(
        self,
        path: PyramidPath,
        side: int,
        network: DiscriminatorConfig,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Pyramid:
        """The objective with its metric and its discriminator, for images whose shorter side is ``side``."""
        from ..networks.discriminator import discriminator

        weights = self.weights(path)
        metric: Metric | None = None
        if any(row.perceptual for row in weights):
            from ..metrics.perceptual import lpips

            metric = lpips(self.metric).to(device)
        discriminator_net = None
        if any(row.adversarial for row in weights):
            discriminator_net = discriminator(network, side // path.factor(0.0, path.levels - 1.0), seed).to(device)
        return Pyramid(loss=self, path=path, metric=metric, discriminator=discriminator_net)


class Weights(NamedTuple):
    """The four weights of a level."""

    fidelity: float
    perceptual: float
    adversarial: float
    penalty: float


class NoisyLevel(NamedTuple):
    """A noised batch of one level: the state, the true image of the level below, the time of each row, and the
    conditions."""

    level: int
    x: Tensor
    below: Tensor
    times: Tensor
    cond: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """The objective of denoisers on a `PyramidPath`: see `PyramidLoss`, with its discriminator ``discriminator``.

    ``metric`` maps two batches of images in [−1, 1] to distances (B,); ``discriminator(images, time, label)`` to
    logits (B,). Terms: ``fidelity``, ``perceptual`` and ``adversarial``, those that have a weight; the
    discriminator's are ``fake``, ``real`` and ``penalty``. The discriminator is frozen and in evaluation mode when
    the model learns, the model when the discriminator does. It takes labels, but no captions.

    Raises `PathError` for a denoiser on another path.
    """

    loss: PyramidLoss = field(default_factory=PyramidLoss)
    path: PyramidPath = field(default_factory=PyramidPath)
    metric: Metric | None = None
    discriminator: nn.Module | None = None

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """The model's losses of one batch."""
        parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        with _frozen(self.discriminator):
            for level in self._levels(noise, "level", batch):
                posed = self._pose(model, level, batch, noise)
                parts.append((posed.times, self._judge(self._answer(model, posed), posed, noise, progress)))
        return _joined(parts)

    def discriminator_loss(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses | None:
        """The discriminator's losses of one batch, at a level and with noise of its own; None if no level uses it."""
        if self.discriminator is None:
            return None
        noise, interval = noise.fork("rival"), self.loss.r1_interval
        due = interval == 1 or interval * noise.uniform(("lazy", batch.positions[0])) < 1.0
        # Only where the model listens to it.
        heard = [float(weights.adversarial > 0.0) for weights in self.loss.weights(self.path)]
        parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        for level in self._levels(noise, "level", batch, heard):
            posed = self._pose(model, level, batch, noise)
            with torch.no_grad(), _evaluating(model.net):
                fake = self._answer(model, posed)
            parts.append((posed.times, self._discriminator_terms(fake, posed, noise, progress, due)))
        return _joined(parts) if parts else None

    def _judge(self, answer: Tensor, posed: NoisyLevel, noise: Noise, progress: float) -> dict[str, Tensor]:
        """The model's losses at a level, (B,) each."""
        weights, terms = self.loss.weights(self.path)[posed.level - 1], dict[str, Tensor]()
        if weights.fidelity:
            error = answer - posed.below
            error = error.abs() if self.loss.distance == "l1" else error.square()
            terms["fidelity"] = weights.fidelity * error.flatten(1).mean(1)
        if weights.perceptual and self.metric is not None:
            terms["perceptual"] = weights.perceptual * self.metric(answer, posed.below)
        if weights.adversarial and self.discriminator is not None:
            logits = self._discriminate(answer, posed, noise, "shown", progress)
            terms["adversarial"] = weights.adversarial * functional.softplus(-logits)
        return terms

    def _discriminator_terms(
        self, fake: Tensor, posed: NoisyLevel, noise: Noise, progress: float, due: bool
    ) -> dict[str, Tensor]:
        """The discriminator's losses at a level, (B,) each; the penalty is zero unless it is ``due``."""
        weights = self.loss.weights(self.path)[posed.level - 1]
        terms = {"fake": 0.5 * functional.softplus(self._discriminate(fake, posed, noise, "fake", progress))}
        real = posed.below.detach().requires_grad_(due and weights.penalty > 0.0)
        logits = self._discriminate(real, posed, noise, "real", progress)
        terms["real"] = 0.5 * functional.softplus(-logits)
        if real.requires_grad:
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            terms["penalty"] = 0.5 * self.loss.r1_interval * weights.penalty * slope.square().flatten(1).sum(1)
        elif weights.penalty:
            terms["penalty"] = torch.zeros_like(terms["real"])  # the mean over steps is that of all of them
        return terms

    def _discriminate(self, images: Tensor, posed: NoisyLevel, noise: Noise, key: str, progress: float) -> Tensor:
        """D(images + ν), (B,), in float32."""
        assert self.discriminator is not None
        std = self.loss.instance_noise * 0.99 ** (_FADING * progress)
        if std:
            images = images + std * noise.normal(("shown", key, posed.level), images.shape[1:]).to(images)
        time = torch.full((len(images),), self.path.timestep_of(float(posed.level)), device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            return self.discriminator(images.float(), time, posed.cond.get("label"))

    def _answer(self, model: Denoiser, posed: NoisyLevel) -> Tensor:
        """ĝ, in float32."""
        raw = model.raw(posed.x, float(posed.level), posed.cond)
        estimate = model.parameterization.to_estimate(model.path, posed.x, float(posed.level), raw.float())
        return estimate.clean / self.path.scale(posed.level - 1)

    def _pose(self, model: Denoiser, level: int, batch: TrainBatch, noise: Noise) -> NoisyLevel:
        path = model.path
        if not isinstance(path, PyramidPath):
            raise PathError(f"the objective of a pyramid needs a PyramidPath, got {type(path).__name__}")
        if path != self.path:
            raise PathError(
                "the objective's path is not the denoiser's: build it with PyramidLoss.on(denoiser.path, …)"
            )
        event = path.state_shape(batch.clean.shape[1:], level)
        x = path.diffuse(batch.clean, level, noise.normal(("noise", level), event).to(batch.clean, non_blocking=True))
        cond = batch.cond
        if cond and self.loss.label_dropout > 0.0:
            cond = without(cond, noise.uniform_per_sample("drop") < self.loss.label_dropout)
        below = path.down(batch.clean, 0, level - 1) / path.scale(level - 1)
        times = torch.full((len(x),), float(level), dtype=torch.float64)
        return NoisyLevel(level=level, x=x, below=below, times=times, cond=cond)

    def _levels(self, noise: Noise, key: str, batch: TrainBatch, heard: Sequence[float] = ()) -> list[int]:
        """The levels of a step, of those ``heard``: a function of the seed and of the first sample's position."""
        heard = heard or (1.0,) * self.path.levels
        if self.loss.draw == "all":
            return [level for level, part in enumerate(heard, 1) if part]
        odds = [share * part for share, part in zip(self.loss.frequencies(self.path), heard, strict=True)]
        if not sum(odds):
            return []
        shares = np.cumsum(odds) / sum(odds)
        u = noise.uniform((key, batch.positions[0]))
        return [1 + min(int(np.searchsorted(shares, u, side="right")), self.path.levels - 1)]


def _joined(parts: list[tuple[Tensor, dict[str, Tensor]]]) -> Losses:
    """The losses of several levels as those of one batch; a term that a level lacks is zero there."""
    names = list(dict.fromkeys(name for _, terms in parts for name in terms))
    like = next(iter(parts[0][1].values()))
    rows = {name: [terms.get(name, like.new_zeros(len(times))) for times, terms in parts] for name in names}
    return Losses(
        terms={name: torch.cat(values) for name, values in rows.items()},
        times=torch.cat([times for times, _ in parts]),
    )


@contextmanager
def _evaluating(net: object) -> Iterator[None]:
    """A module without its dropout, and as it was afterwards."""
    if not isinstance(net, nn.Module):
        yield
        return
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


@contextmanager
def _frozen(net: nn.Module | None) -> Iterator[None]:
    """A module that passes gradients on and takes none, without its dropout; as it was afterwards."""
    if net is None:
        yield
        return
    with _evaluating(net):
        weights = [p for p in net.parameters() if p.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)
