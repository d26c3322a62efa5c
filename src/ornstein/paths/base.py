"""Forward paths: how data becomes noise, and the conditional posteriors that lead back.

Three nested kinds. A sampler declares the least it needs:

* `Path` – anything with a posterior; the state may change shape (`PyramidPath`).
* `LocationPath` – x_t = mean(x_0, t) + std(t)·z; the mean may be any function of x_0 (`ShiftedPath`).
* `AffinePath` – mean = α(t)·x_0; adds α, σ, the log-SNR and its inverse (`VP`, `VE`, `Flow`).

Times grow with noise. Sampling passes host floats, training passes (B,) float64 tensors; every method takes both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from .. import scalars
from ..checks import OneLine
from ..errors import GridError, PathError
from ..estimates import Estimate, Gaussian
from ..randomness import NoiseSource
from ..scalars import T, Time, expand, widened

Cond = Mapping[str, Tensor]


@runtime_checkable
class Path(Protocol):
    """The forward law of a diffusion: what every sampler may rely on."""

    @property
    def t_range(self) -> tuple[float, float]:
        """(clean, prior): the first and the last time."""
        ...

    @property
    def t_min(self) -> float:
        """The least noisy time at which a network is trained or evaluated; grids jump from there to ``t_range[0]``."""
        ...

    def check(self, t: float) -> None:
        """Raise `GridError` unless the path is defined at time t."""
        ...

    def state_shape(self, shape: Sequence[int], t: float, at: float | None = None) -> torch.Size:
        """Shape (without batch) of the state at t, when a state at time ``at`` (default: clean) has ``shape``."""
        ...

    def with_condition(self, cond: Cond) -> Path:
        """The path under a condition; itself unless the law depends on the condition."""
        ...

    def timestep_of(self, t: T) -> T:
        """The number that a network on this path takes as its time input, unless its denoiser overrides it."""
        ...

    def prior(self, noise: NoiseSource, shape: Sequence[int], t: float | None = None) -> Tensor:
        """A draw from the law at t (default: ``t_range[1]``) that needs no data; ``shape`` is the clean event."""
        ...

    def diffuse(self, clean: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t given x_0; ``noise`` is standard normal of the shape of x_t."""
        ...

    def renoise(self, x: Tensor, s: float, t: float, noise: Tensor, clean: Tensor | None = None) -> Tensor:
        """x_t given x_s for s < t; ``clean`` only where the law's transition depends on x_0."""
        ...

    @property
    def renoise_needs_clean(self) -> bool:
        """Whether `renoise` needs x_0 (or an estimate of it)."""
        ...

    def posterior(self, x: Tensor, estimate: Estimate, t: float, s: float) -> Gaussian:
        """x_s given x_t and x_0 (s < t), with the estimate's clean sample for x_0."""
        ...


class LocationPath(OneLine, ABC):
    """x_t = mean(x_0, t) + std(t)·z, with a Markov transition x_t − m_t = gain·(x_s − m_s) + spread·z.

    The posterior follows from these alone. With m_t = mean(x_0, t):

        x_s | x_t, x_0 ~ N( m_s + gain·(std_s²/std_t²)·(x_t − m_t),  std_s²·spread²/std_t² )
    """

    __slots__ = ()

    @property
    @abstractmethod
    def t_range(self) -> tuple[float, float]:
        """(clean, prior)."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The least noisy time at which a network is evaluated."""

    @abstractmethod
    def mean(self, clean: Tensor, t: Time) -> Tensor:
        """E[x_t | x_0], the shape of ``clean``."""

    @abstractmethod
    def std(self, t: T) -> T:
        """Standard deviation of x_t given x_0."""

    @abstractmethod
    def gain(self, s: T, t: T) -> T:
        """Factor from x_s − m_s to x_t − m_t in the transition s → t."""

    @abstractmethod
    def timestep_of(self, t: T) -> T:
        """The number that a network on this path takes as its time input, unless its denoiser overrides it."""

    def mean_of(self, estimate: Estimate, t: Time) -> Tensor:
        """E[x_t | x_0] at the estimate; a path with a further unknown reads it from ``estimate.extras``."""
        return self.mean(estimate.clean, t)

    def ddim_step(self, x: Tensor, estimate: Estimate, keep: float, s: float) -> Tensor:
        """m_s + keep·(x − m_t) with m = E[· | x̂_0]: the posterior's mean, and DDIM's step for keep = std_s/std_t."""
        return self.mean_of(estimate, s) + keep * (x - self.mean_of(estimate, estimate.t))

    def clean_from_noise(self, x: Tensor, noise: Tensor, t: Time) -> Tensor:
        """x_0 from x_t and z; only an affine path can solve its mean for x_0."""
        del x, noise, t
        raise PathError(
            f"{type(self).__name__} cannot turn a noise prediction into a clean sample: its mean is no multiple of it; "
            "use predicts='clean'"
        )

    def from_velocity(self, x: Tensor, velocity: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(x_0, z) from x_t and dx_t/dt; only an affine path can solve for them."""
        del x, velocity, t
        raise PathError(f"{type(self).__name__} has no rates(t): a velocity prediction needs an AffinePath")

    def rates(self, t: T) -> tuple[T, T]:
        """(dα/dt, dσ/dt); only an affine path has them."""
        del t
        raise PathError(f"{type(self).__name__} has no rates(t): an AffinePath is needed for the velocity")

    def check(self, t: float) -> None:
        """Raise `GridError` unless t lies in `t_range`."""
        low, high = self.t_range
        if not low <= t <= high:
            raise GridError(f"time {t} is outside the span [{low:g}, {high:g}] of {type(self).__name__}: clip the grid")

    def state_shape(self, shape: Sequence[int], t: float, at: float | None = None) -> torch.Size:
        """The state keeps its shape."""
        del t, at
        return torch.Size(shape)

    def with_condition(self, cond: Cond) -> Self:
        """The law does not depend on the condition."""
        del cond
        return self

    def prior(self, noise: NoiseSource, shape: Sequence[int], t: float | None = None) -> Tensor:
        """std(t)·z, the law of x_t once the mean has died out or is small beside the noise."""
        return noise.normal("prior", shape) * self.std(self.t_range[1] if t is None else t)

    def diffuse(self, clean: Tensor, t: Time, noise: Tensor) -> Tensor:
        """mean(x_0, t) + std(t)·z."""
        return self.mean(clean, t) + expand(self.std(t), clean) * noise

    def spread(self, s: T, t: T) -> T:
        """Standard deviation of the transition: spread² = std_t² − gain²·std_s²."""
        gain = self.gain(s, t)
        variance = self.std(t) ** 2 - (gain * self.std(s)) ** 2
        return scalars.sqrt(variance.clamp_min(0.0) if isinstance(variance, Tensor) else max(variance, 0.0))

    def bridge_std(self, t: T, s: T) -> T:
        """Standard deviation of x_s given x_t and x_0."""
        return self.std(s) * self.spread(s, t) / self.std(t)

    @property
    def renoise_needs_clean(self) -> bool:
        """Only where the mean is not proportional to x_0."""
        return False

    def renoise(self, x: Tensor, s: float, t: float, noise: Tensor, clean: Tensor | None = None) -> Tensor:
        """gain·x_s + spread·z: the transition of a path whose mean is proportional to x_0."""
        del clean
        return expand(self.gain(s, t), x) * x + expand(self.spread(s, t), x) * noise

    def posterior(self, x: Tensor, estimate: Estimate, t: float, s: float) -> Gaussian:
        """See the class's formula."""
        slope = self.gain(s, t) * (self.std(s) / self.std(t)) ** 2
        mean = self.ddim_step(x, estimate, slope, s)
        return Gaussian(mean=mean, root=self.bridge_std(t, s))


class AffinePath(LocationPath):
    """x_t = α(t)·x_0 + σ(t)·z.

    ``log_snr(t)`` is log(α²/σ²), decreasing in t, +∞ at a noiseless time and −∞ at pure noise. ``sigma_bar`` is σ/α,
    the noise level in the coordinates x/α of the variance-exploding (EDM) picture.
    """

    __slots__ = ()

    @abstractmethod
    def alpha(self, t: T) -> T:
        """Signal gain."""

    @abstractmethod
    def sigma(self, t: T) -> T:
        """Noise level."""

    @abstractmethod
    def time_of(self, log_snr: T) -> T:
        """Inverse of `log_snr`."""

    @abstractmethod
    def rates(self, t: T) -> tuple[T, T]:
        """(dα/dt, dσ/dt), for the velocity of the probability-flow ODE."""

    def std(self, t: T) -> T:
        """σ(t)."""
        return self.sigma(t)

    def mean(self, clean: Tensor, t: Time) -> Tensor:
        """α(t)·x_0."""
        return expand(self.alpha(t), clean) * clean

    def gain(self, s: T, t: T) -> T:
        """α_t / α_s; from a time to itself 1, at pure noise too."""
        if not isinstance(t, Tensor) and t == s:
            return 1.0  # pyright: ignore[reportReturnType]
        return self.alpha(t) / self.alpha(s)

    def spread(self, s: T, t: T) -> T:
        """σ_t²·(1 − SNR_t/SNR_s) under a root, which keeps its digits when s is close to t; 0 from a time to itself."""
        if not isinstance(t, Tensor) and t == s:
            return 0.0  # pyright: ignore[reportReturnType]
        shrink = -scalars.expm1(self.log_snr(t) - self.log_snr(s))
        return self.sigma(t) * scalars.sqrt(shrink)

    def log_snr(self, t: T) -> T:
        """log(α²/σ²)."""
        return 2.0 * (scalars.log(self.alpha(t)) - scalars.log(self.sigma(t)))

    def sigma_bar(self, t: T) -> T:
        """σ/α; infinite at pure noise."""
        return scalars.divide(self.sigma(t), self.alpha(t))

    def ddim_step(self, x: Tensor, estimate: Estimate, keep: float, s: float) -> Tensor:
        """keep·x + (α_s − keep·α_t)·x̂_0 in two passes: straight from the noise, if the estimate holds that alone."""
        t, noise = estimate.t, estimate.held("noise")
        if isinstance(t, Tensor):
            return LocationPath.ddim_step(self, x, estimate, keep, s)
        alpha = self.alpha(t)
        weight = self.alpha(s) - keep * alpha
        if noise is None or x is not estimate.x or alpha == 0.0 or estimate.held("clean") is not None:
            return (keep * x).add_(estimate.clean, alpha=weight)
        return ((keep + weight / alpha) * x).add_(noise, alpha=-weight / alpha * self.sigma(t))

    def clean_from_noise(self, x: Tensor, noise: Tensor, t: Time) -> Tensor:
        """(x − σz)/α, in float32 at least: under strong noise it leaves the range of float16."""
        x, noise = widened(x), widened(noise)
        if isinstance(t, Tensor):
            return (x - expand(self.sigma(t), x) * noise) / expand(self.alpha(t), x)
        return torch.sub(x, noise, alpha=self.sigma(t)).div_(self.alpha(t))

    def from_velocity(self, x: Tensor, velocity: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Solve x = αc + σz, v = α'c + σ'z, in float32 at least."""
        x, velocity = widened(x), widened(velocity)
        (alpha, sigma), (d_alpha, d_sigma) = (self.alpha(t), self.sigma(t)), self.rates(t)
        det = expand(alpha * d_sigma - sigma * d_alpha, x)
        clean = (expand(d_sigma, x) * x - expand(sigma, x) * velocity) / det
        noise = (expand(alpha, x) * velocity - expand(d_alpha, x) * x) / det
        return clean, noise
