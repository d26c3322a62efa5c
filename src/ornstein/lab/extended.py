"""A numerical step as the flow of a vector field: the second step of the method in `ornstein.lab.certificates`.

A step of a one-step sampler, run to every intermediate level, is a map y_r = F_r(y). Where F_r is invertible,

    w(r, y) = (∂_r F_r)(F_r⁻¹(y))

is a field whose flow over the whole step is the numerical step. States are y = x/√(α² + σ²), variance-preserving on
every affine path, and r runs down the time of the Ornstein–Uhlenbeck process, ᾱ = α²/(α² + σ²) = e^{−2τ}. Jacobians are
exact, by complex steps through the sampler itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import PathError, UsageError
from ornstein.paths.base import AffinePath, Path
from ornstein.randomness import Key, NoiseSource
from ornstein.samplers.base import Sampler, Step, run
from ornstein.samplers.ddim import DDIM
from ornstein.samplers.exponential import DPMSolver
from ornstein.samplers.integrators import ExponentialIntegrator

TINY = 1e-30  # of the complex step: no cancellation, so as small as one likes
_STENCIL = ((1, 0.75), (2, -0.15), (3, 1.0 / 60.0))  # a central first derivative of order 6
_STRIDE = 0.02  # of the stencil, as a part of the step


def affine_of(path: Path) -> AffinePath:
    """The path itself, if it is affine."""
    if not isinstance(path, AffinePath):
        raise PathError(f"{type(path).__name__} has no alpha(t) and sigma(t): a certificate needs an AffinePath")
    return path


def norm_of(path: AffinePath, t: float) -> float:
    """y/x."""
    return 1.0 / math.hypot(path.alpha(t), path.sigma(t))


def ou_time(path: AffinePath, t: float) -> float:
    """τ with e^{−2τ} = α²/(α² + σ²)."""
    return 0.5 * math.log1p(math.exp(-path.log_snr(t)))


def at_ou_time(path: AffinePath, tau: float) -> float:
    """The time of ``path`` at τ."""
    return path.time_of(-math.log(math.expm1(2.0 * tau)))


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x) (B, d), ∂f_i/∂x_j (B, d, d)) of an analytic function of rows, by one complex step a direction."""
    rows, dim = x.shape
    shifted = torch.complex(x, torch.zeros_like(x)).repeat(dim, 1, 1)
    shifted += 1j * TINY * torch.eye(dim, dtype=x.dtype)[:, None, :]
    out = function(shifted.reshape(dim * rows, dim)).reshape(dim, rows, -1)
    return out[0].real.clone(), (out.imag / TINY).permute(1, 2, 0)


class Still:
    """The noise of a deterministic sampler: any request is refused."""

    def _refuse(self) -> UsageError:
        return UsageError("certificates are for deterministic samplers, and this one draws noise: use lab.laws")

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Refused."""
        del key, event
        raise self._refuse()

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """Refused."""
        del key, t0, t1, event
        raise self._refuse()

    def uniform(self, key: Key) -> float:
        """Refused."""
        del key
        raise self._refuse()

    def uniform_per_sample(self, key: Key) -> Tensor:
        """Refused."""
        del key
        raise self._refuse()

    def fork(self, name: str) -> NoiseSource:
        """Itself."""
        del name
        return self


class Carried(NamedTuple):
    """y_r = F_r(y), its Jacobian ∂y_r/∂y (B, d, d), and the derivatives of both in r."""

    y: Tensor
    jacobian: Tensor
    rate: Tensor
    jacobian_rate: Tensor


class Extended(Protocol):
    """A numerical step as a flow: ``at(r)`` for 0 ≤ r ≤ ``width``, all from the states that it was made with."""

    @property
    def width(self) -> float:
        """The step in τ."""
        ...

    def reach(self, r: float) -> tuple[Tensor, Tensor]:
        """(F_r(y), its Jacobian)."""
        ...

    def at(self, r: float) -> Carried:
        """Where the states are after r, and how they move."""
        ...


@dataclass(frozen=True, slots=True)
class FrozenStep:
    """The three first-order schemes in closed form: y_r = e^r·y + k(r)·z(y), with z the noise asked for at the start.

    "score" k = −(e^r − 1)/S, "noise" k = S_r − e^r·S, "variance" k = −e^{−τ}(σ̄² − σ̄_r²)/(2σ̄), where S² = 1 − ᾱ.
    With exact scores none of them folds.
    """

    freeze: str
    tau: float
    width: float
    y: Tensor
    noise: Tensor
    slope: Tensor  # ∂z/∂y

    def reach(self, r: float) -> tuple[Tensor, Tensor]:
        """(F_r(y), its Jacobian)."""
        return self.at(r)[:2]

    def at(self, r: float) -> Carried:
        """Exactly."""
        grown, (weight, change) = math.exp(r), self._weights(r)
        unit = torch.eye(self.y.shape[1], dtype=self.y.dtype)
        return Carried(
            grown * self.y + weight * self.noise,
            grown * unit + weight * self.slope,
            grown * self.y + change * self.noise,
            grown * unit + change * self.slope,
        )

    def _weights(self, r: float) -> tuple[float, float]:
        """k and dk/dr."""
        first, now = self.tau, self.tau - r
        std = math.sqrt(-math.expm1(-2.0 * first))
        if self.freeze == "score":
            return -math.expm1(r) / std, -math.exp(r) / std
        if self.freeze == "noise":
            std_now = math.sqrt(-math.expm1(-2.0 * now))
            return std_now - math.exp(r) * std, -math.exp(-2.0 * now) / std_now - math.exp(r) * std
        bar = math.sqrt(math.expm1(2.0 * first))
        weight = -math.exp(-now) * (math.expm1(2.0 * first) - math.expm1(2.0 * now)) / (2.0 * bar)
        return weight, weight - math.exp(now) / bar


@dataclass(frozen=True, slots=True)
class SampledStep:
    """Any one-step sampler: F_r is its own step, taken to the level at r; derivatives in r by a stencil of order 6."""

    sampler: Sampler
    denoiser: DenoiserLike
    path: AffinePath
    step: Step
    y: Tensor

    @property
    def width(self) -> float:
        """The step in τ."""
        return ou_time(self.path, self.step.t) - ou_time(self.path, self.step.s)

    def reach(self, r: float) -> tuple[Tensor, Tensor]:
        """(F_r(y), its Jacobian)."""
        if r == 0.0:
            unit = torch.eye(self.y.shape[1], dtype=self.y.dtype)
            return self.y, unit.expand(len(self.y), -1, -1)
        path, t = self.path, self.step.t
        s = self.step.s if r == self.width else at_ou_time(path, ou_time(path, t) - r)
        step = Step(t=t, s=s, index=self.step.index, before=self.step.before, after=self.step.after)
        first, last = norm_of(path, t), norm_of(path, s)
        return jacobian(
            lambda y: last * run(self.sampler.step(path, y / first, step, Still(), {}), self.denoiser), self.y
        )

    def at(self, r: float) -> Carried:
        """F_r and its rate."""
        stride = _STRIDE * self.width
        rate, jacobian_rate = torch.zeros_like(self.y), torch.zeros(*self.y.shape, self.y.shape[1], dtype=self.y.dtype)
        for k, weight in _STENCIL:
            after, before = self.reach(r + k * stride), self.reach(r - k * stride)
            rate += weight / stride * (after[0] - before[0])
            jacobian_rate += weight / stride * (after[1] - before[1])
        return Carried(*self.reach(r), rate, jacobian_rate)


def extend(sampler: Sampler, denoiser: DenoiserLike, step: Step, y: Tensor) -> Extended:
    """The flow that a step of ``sampler`` is, from states y (B, d); in closed form where there is one."""
    path = affine_of(denoiser.path)
    freeze = _frozen(sampler)
    if freeze is None:
        return SampledStep(sampler, denoiser, path, step, y)
    first = norm_of(path, step.t)
    noise, slope = jacobian(lambda y: denoiser(y / first, step.t).noise, y)
    tau = ou_time(path, step.t)
    return FrozenStep(freeze, tau, tau - ou_time(path, step.s), y, noise, slope)


def _frozen(sampler: Sampler) -> str | None:
    if isinstance(sampler, ExponentialIntegrator):
        return sampler.freeze
    return "noise" if sampler in (DDIM(), DPMSolver(points=1)) else None


def pull_back(sampler: Sampler, denoiser: DenoiserLike, step: Step, y: Tensor, r: float) -> Tensor:
    """F_r⁻¹(y) by Newton's iteration.

    Raises:
        UsageError: no convergence, as where the step folds.
    """
    x = y * math.exp(-r)
    for _ in range(50):
        found, slope = extend(sampler, denoiser, step, x).reach(r)
        move = torch.linalg.solve(slope, (found - y)[:, :, None])[:, :, 0]
        x = x - move
        if float((move.abs() / (1.0 + x.abs())).max()) < 1e-14:
            return x
    raise UsageError(f"the step from {step.t:g} to {step.s:g} has no inverse that can be found: it may fold")


def field(sampler: Sampler, denoiser: DenoiserLike, step: Step, y: Tensor, r: float) -> Tensor:
    """w(r, y) = (∂_r F_r)(F_r⁻¹(y)), the field whose flow over ``step`` is the numerical step; y (B, d)."""
    return extend(sampler, denoiser, step, pull_back(sampler, denoiser, step, y, r)).at(r).rate


__all__ = [
    "Carried",
    "Extended",
    "FrozenStep",
    "SampledStep",
    "affine_of",
    "at_ou_time",
    "extend",
    "field",
    "jacobian",
    "norm_of",
    "ou_time",
    "pull_back",
]
