"""The denoising objective: compare the network's output with the one that would have been right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import ConfigError, PathError
from ..options import check_fields
from ..parameterizations import EDM, Parameterization
from ..paths.base import AffinePath, Path
from ..paths.ve import VE
from ..paths.vp import VP, Table
from ..randomness import Noise
from ..scalars import sigmoid
from ..typed import typed
from .base import Losses, TrainBatch, quantiles, without
from .weights import WeightName, weight

TimeLaw = Literal["auto", "uniform", "log-normal", "logit-normal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyBatch:
    """Noised samples x_t (B, *event) = diffuse(``clean``, t, ``noise``) at times t (B,), with their conditions."""

    clean: Tensor
    noise: Tensor
    x: Tensor
    t: Tensor
    cond: Mapping[str, Tensor]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """weight(t) · mean((raw(x_t, t) − target)²) with x_t = diffuse(x_0, t, z), one time and one z for every sample."""

    kind: ClassVar[str] = "denoising"
    renamed: ClassVar[Mapping[str, str]] = {"drop": "label_dropout"}

    times: TimeLaw = "auto"
    """Law of the training times: uniform in the path's time, log-normal in σ/α (EDM), or logit-normal in the path's
    time (SD3); auto is log-normal on `ve` and uniform elsewhere."""
    mean: float | None = None
    """Mean of the normal law; by default -1.2 (log-normal) or 0 (logit-normal)."""
    std: float | None = None
    """Standard deviation of the normal law; by default 1.2 (log-normal) or 1 (logit-normal)."""
    stratified: bool = True
    """Spread the times of successive samples evenly, for less noise in the loss; --objective.no-stratified draws
    each by itself."""
    weight: WeightName = "auto"
    """Weight over noise levels: none (on the network's output), min-snr or edm (on the clean sample); auto is min-snr
    for a network that predicts the clean sample, none otherwise."""
    gamma: float = 5.0
    """The limit γ of min-snr."""
    label_dropout: float = 0.1
    """Part of the samples trained without their condition, as classifier-free guidance needs."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ConfigError(f"objective.label_dropout must lie in [0, 1], got {self.label_dropout}")
        if not self.gamma > 0.0:
            raise ConfigError(f"objective.gamma must be positive, got {self.gamma}")
        if self.std is not None and not self.std > 0.0:
            raise ConfigError(f"objective.std must be positive, got {self.std}")
        check_fields(self)

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """One term, ``denoising``: see the class's formula."""
        del progress
        noisy = self.make_noisy_batch(model.path, batch, noise)
        raw = model.raw(noisy.x, noisy.t, noisy.cond)
        return Losses(terms={"denoising": self.error(model.parameterization, model.path, noisy, raw)}, times=noisy.t)

    def make_noisy_batch(self, path: Path, batch: TrainBatch, noise: Noise) -> NoisyBatch:
        """A time and noise for every sample of a batch and, for some, no condition."""
        t = self.draw(path, batch.positions, noise)
        z = noise.normal("noise", path.state_shape(batch.clean.shape[1:], 0.0)).to(batch.clean, non_blocking=True)
        cond = batch.cond
        if cond and self.label_dropout > 0.0:
            cond = without(cond, noise.uniform_per_sample("drop") < self.label_dropout)
        return NoisyBatch(clean=batch.clean, noise=z, x=path.diffuse(batch.clean, t, z), t=t, cond=cond)

    def error(self, reading: Parameterization, path: Path, noisy: NoisyBatch, raw: Tensor) -> Tensor:
        """weight(t) · mean((raw − target)²), (B,)."""
        target = reading.target(path, noisy.clean, noisy.noise, noisy.x, noisy.t)
        error = (raw.float() - target.float()).square().flatten(1).mean(1)
        sigma_data = reading.sigma_data if isinstance(reading, EDM) else 0.5
        by = weight(self.weight, reading, path, noisy.t, gamma=self.gamma, sigma_data=sigma_data)
        return error if by is None else error * by.to(error)

    def draw(self, path: Path, positions: tuple[int, ...], noise: Noise) -> Tensor:
        """The times of the samples, (B,) float64 on the host: a function of (seed, position) alone."""
        us = quantiles("time", positions, noise, self.stratified)
        # One by one on the host: vectorised functions may round the last rows of a tensor differently.
        return torch.tensor([self._time(path, u) for u in us], dtype=torch.float64)

    def _time(self, path: Path, u: float) -> float:
        """The time at the quantile u of the law."""
        low, high = path.t_min, path.t_range[1]
        steps = len(path.schedule.betas) if isinstance(path, VP) and isinstance(path.schedule, Table) else 0
        law = self.times
        if law == "auto":
            law = "log-normal" if isinstance(path, VE) else "uniform"
        if law == "log-normal":
            if not isinstance(path, AffinePath):
                raise PathError(f"log-normal times need an AffinePath, got {type(path).__name__}: use 'uniform'")
            t = path.time_of(-2.0 * self._normal(u, -1.2, 1.2))
        elif law == "logit-normal":
            t = low + (high - low) * sigmoid(self._normal(u, 0.0, 1.0))
        elif steps:
            return (math.floor(u * steps) + 1.0) / steps
        else:
            t = low + (high - low) * u
        t = min(max(t, low), high)
        return max(round(t * steps), 1) / steps if steps else t

    def _normal(self, u: float, mean: float, std: float) -> float:
        z = NormalDist().inv_cdf(min(max(u, 2.0**-54), 1.0 - 2.0**-53))
        return (mean if self.mean is None else self.mean) + (std if self.std is None else self.std) * z
