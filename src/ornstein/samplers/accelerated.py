"""Provably accelerated samplers (Li, Huang, Efimov, Wei, Chi & Chen 2024, arXiv 2403.03852), on any affine path.

In u = x/α the reverse process is a clock of D = σ̄_t² − σ̄_s² with the score h = −z/σ̄ of the law of u:

    probability flow  du = −½·h d(σ̄²),      reverse SDE  du = −h d(σ̄²) + √|d(σ̄²)| noise

so the papers' recursions in ᾱ = 1/(1 + σ̄²), with α_t = ᾱ_t/ᾱ_s and β = 1 − α_t = ᾱ_t·D, hold between any two levels.
A step to σ_s = 0 is a jump to the clean estimate and one from α_t = 0 is of first order, as in every sampler here.

A frozen score keeps half of the noise, however far the level falls: over a few wide steps the state would end at many
times the size of the data. So a wide step is a jump as well, of first order and without that fault: one over which σ̄
falls to less than a quarter (`is_wide`), or by less where a rule says so. The orders are those of small steps and do
not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..estimates import Estimate
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps
from .exponential import ExponentialStep, combine

_WIDE = 4.0
"""σ̄_t/σ̄_s of the widest step with a frozen score under fresh noise, which forgets what the steps before missed."""
_WIDE_ODE, _FIRST_ODE = {"probe": 2.0, "history": 1.5}, 4.0 / 3.0
"""The same for the probability flow, where what is missed adds up: 10 steps of ratio 4 end at 15 times the size of the
data; and of its first step, which without a neighbour keeps ½(r + 1/r) times the noise."""


def alpha_bar(bar: float) -> float:
    """ᾱ = 1/(1 + σ̄²), the squared gain of the variance-preserving picture; 0 at σ̄ = ∞."""
    return 1.0 / (1.0 + bar**2)


def variance_between(bar: float, other: float) -> float:
    """σ̄² − σ̄'² without cancellation."""
    return (bar - other) * (bar + other)


def moved(path: AffinePath, x: Tensor, t: float, s: float, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """x_s = α_s·(x_t/α_t + ∑ weight·tensor): an update written in u = x/α."""
    gain = path.alpha(s)
    return combine(x, path.gain(t, s), [(gain * weight, term) for weight, term in terms])


def is_jump(path: AffinePath, t: float, s: float) -> bool:
    """Whether one end has no finite log-SNR: pure noise before, or no noise after."""
    return path.alpha(t) == 0.0 or path.sigma(s) == 0.0


def is_wide(path: AffinePath, t: float, s: float) -> bool:
    """Whether a rule that freezes the score must jump: one end without log-SNR, or σ̄ falls to less than a quarter."""
    return is_jump(path, t, s) or path.sigma_bar(t) > _WIDE * path.sigma_bar(s)


def jump(path: AffinePath, estimate: Estimate, s: float) -> Tensor:
    """The first-order step from or to such an end: α_s·x̂_0 + σ_s·ẑ."""
    std = path.sigma(s)
    clean = path.mean(estimate.clean, s)
    return clean if std == 0.0 else torch.add(clean, estimate.noise, alpha=std)


@typed()
@dataclass(frozen=True, slots=True)
class AcceleratedODE:
    """The accelerated deterministic sampler, of second order.

    ``form``:

    * "probe", the paper's: with s at x_t, a forward step x⁻ to the noisier neighbour ``step.before`` and the score
      there, s⁻ = s(x⁻),

          x⁻  = √α_before·(x_t − ½β_before·s)
          x_s = (x_t + ½β·s + β²/(4β_before)·(s − √α_before·s⁻))/√α_t

      Two evaluations a step. In u it extrapolates the score linearly in σ̄², but for third order.
    * "history": the same with the score that the step before asked for in place of s⁻; one evaluation.
    * "memory", the practical form: the noise, extrapolated linearly in ᾱ through this level and the one before,

          u_s = u_t + (σ̄_s − σ̄_t)·z_t + B/(ᾱ_t − ᾱ_before)·(z_before − z_t),   B = ∫ (ᾱ_t − ᾱ) dσ̄ over the step.

      One evaluation a step, and by far the most accurate of the three: below about 50 evaluations the other two are
      for study only, since the score changes too fast to be extrapolated over large steps.

    The first step of a descent has no neighbour: it freezes the score (probe, history) or the noise (memory). Where σ̄
    falls to less than a half (probe) or two thirds (history), or in the first step to less than three quarters, they
    jump (see the module): with as few as 10 steps of the default grid they always do, and are of first order.
    """

    order = 2
    needs = AffinePath
    """The method lives on the noise level σ/α."""

    form: Literal["probe", "history", "memory"] = "probe"

    def __post_init__(self) -> None:
        if self.form not in ("probe", "history", "memory"):
            raise ConfigError(f"the accelerated ODE has the forms 'probe', 'history' and 'memory', got {self.form!r}")

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Evaluate here and at the noisier neighbour or remember it, then extrapolate."""
        del noise
        t, s = step.t, step.s
        here = yield Query(x, t)
        before: tuple[float, Tensor] | None = memory.get("noise")  # (σ̄, ẑ) of the last question
        bar = path.sigma_bar(t)
        memory["noise"] = (bar, here.noise)
        if is_jump(path, t, s):
            return jump(path, here, s)
        after = path.sigma_bar(s)
        short = 0.01 * math.log(bar / after)  # as `exponential.spaced`: no line through one place twice
        if before is not None and math.log(before[0] / bar) < short:
            before = None
        if self.form == "memory":
            weights = _noise_weights(bar, after, None if before is None else before[0])
            terms = [here.noise] if before is None else [here.noise, before[1]]
            return moved(path, x, t, s, list(zip(weights, terms, strict=True)))
        up = step.before
        if up is not None and (path.alpha(up) == 0.0 or math.log(path.sigma_bar(up) / bar) < short):
            up = None
        if self.form == "history" and before is None:
            up = None
        if bar > (_FIRST_ODE if up is None else _WIDE_ODE[self.form]) * after:
            return jump(path, here, s)
        if up is not None and self.form == "probe":
            noisier = path.sigma_bar(up)
            rise = 0.5 * alpha_bar(noisier) * variance_between(noisier, bar) / alpha_bar(bar)
            probe = moved(path, x, t, up, [(rise / bar, here.noise)])
            slope = yield Query(probe, up)
            before = noisier, slope.noise
        return moved(path, x, t, s, _score_terms(bar, after, here.noise, None if up is None else before))


def _score_terms(
    bar: float, after: float, noise: Tensor, before: tuple[float, Tensor] | None
) -> list[tuple[float, Tensor]]:
    """½D·h + ¼D·(β/β_before)·(h − h_before) with h = −z/σ̄."""
    width = variance_between(bar, after)
    if before is None:
        return [(-0.5 * width / bar, noise)]
    noisier, earlier = before
    ratio = alpha_bar(bar) * width / (alpha_bar(noisier) * variance_between(noisier, bar))
    bend = 0.25 * width * ratio
    return [(-(0.5 * width + bend) / bar, noise), (bend / noisier, earlier)]


def _noise_weights(bar: float, after: float, before: float | None) -> tuple[float, ...]:
    """Weights of the noises here and before: ∫ dσ̄ of the line through them in ᾱ, exactly."""
    change = after - bar
    if before is None:
        return (change,)
    # ∫ (ᾱ_t − ᾱ) dσ̄ = ᾱ_t·(σ̄_s − σ̄_t) + arctan σ̄_t − arctan σ̄_s, arranged so that little cancels.
    slant = -change / (1.0 + bar * after)
    area = change**2 * bar * alpha_bar(bar) / (1.0 + bar * after) + (math.atan(slant) - slant)
    rise = alpha_bar(bar) if math.isinf(before) else variance_between(before, bar) * alpha_bar(bar) * alpha_bar(before)
    return change - area / rise, area / rise


@typed()
@dataclass(frozen=True, slots=True)
class AcceleratedSDE:
    """The accelerated stochastic sampler: half of the noise before the evaluation, half after.

        x⁺  = x_t + √(β/2)·z
        x_s = (x⁺ + β·s(x⁺, t) + √(β/2)·z⁺)/√α_t

    One evaluation a step. Both noises stand inside the bracket; printed with the last one outside (as in the authors'
    code) the rule loses its acceleration. In law it is of second order on Gaussians, where the score is linear, and of
    first order in general, with an error about half of ancestral sampling's at equal cost.

    Where σ̄ falls to less than a quarter in one step it jumps, as `Ancestral` of a wide step does (see the module): as
    printed, two steps from σ̄ = 157 end at 44 times the size of the data.
    """

    order = 1
    """On every law; on Gaussians it is 2."""
    needs = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Stir, ask, move, stir again."""
        del memory
        t, s = step.t, step.s
        if is_wide(path, t, s):
            return (yield from stochastic_jump(path, x, step, noise))
        bar = path.sigma_bar(t)
        width = variance_between(bar, path.sigma_bar(s))
        half = math.sqrt(0.5 * width)
        stirred = torch.add(x, noise.normal(("first", step.index), x.shape[1:]), alpha=path.alpha(t) * half)
        estimate = yield Query(stirred, t)
        last = noise.normal(step.index, x.shape[1:])
        return moved(path, stirred, t, s, [(-width / bar, estimate.noise), (half, last)])


@typed()
@dataclass(frozen=True, slots=True)
class MidpointSDE:
    """A reverse-SDE step with its evaluation in the middle: two evaluations.

    ``form`` "variance" halves D, the step in σ̄²:

        u_m = u_t + ½D·h(u_t, t) + √(D/2)·z₁,   u_s = u_t + D·h(u_m, σ̄_m² = σ̄_t² − ½D) + √(D/2)·(z₁ + z₂)

    It is of second order in law on every target, and jumps where σ̄ falls to less than a quarter in one step (see the
    module): without that, two steps from σ̄ = 157 end at 67 times the size of the data. "exponential" freezes the clean
    estimate instead, under the exact weights of the linear part, with the middle at half of the integral of the
    signal-to-noise ratio: 1/σ̄_m² is the mean of its ends. It is the better one at few evaluations, of the same order,
    and of order 3 on Gaussians. On mixtures its slope comes down from 3 and dips before it settles at 2: from σ̄ = 80 to
    .02 it is 1.45 between 64 and 128 steps and rises from there; over a short range no dip shows. Beyond the paper;
    `DPMSolver2S` puts the middle at half of λ.
    """

    order = 2
    """In law."""
    needs = AffinePath

    form: Literal["variance", "exponential"] = "variance"

    def __post_init__(self) -> None:
        if self.form not in ("variance", "exponential"):
            raise ConfigError(f"the midpoint SDE has the forms 'variance' and 'exponential', got {self.form!r}")

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """To the middle, and from the start with what was found there, under the same noise."""
        del memory
        t, s = step.t, step.s
        if (is_wide if self.form == "variance" else is_jump)(path, t, s):
            return (yield from stochastic_jump(path, x, step, noise))
        first = noise.normal(("middle", step.index), x.shape[1:])
        second = noise.normal(step.index, x.shape[1:])
        here = yield Query(x, t)
        bar, after = path.sigma_bar(t), path.sigma_bar(s)
        if self.form == "exponential":
            middle = path.time_of(math.log(0.5 * (bar**-2 + after**-2)))
            whole, half = ExponentialStep.between(path, t, s, 2), ExponentialStep.between(path, t, middle, 2)
            rest = ExponentialStep.between(path, middle, s, 2)
            between = half.to(x, (-math.expm1(-half.y),), [here.clean])
            found = yield Query(torch.add(between, first, alpha=half.fresh), middle)
            mean = whole.to(x, (-math.expm1(-whole.y),), [found.clean])
            return combine(mean, 1.0, [(rest.keep * half.fresh, first), (rest.fresh, second)])
        width = variance_between(bar, after)
        std = math.sqrt(0.5 * width)
        centre = math.sqrt(0.5 * (bar**2 + after**2))
        middle = path.time_of(-2.0 * math.log(centre))
        stirred = moved(path, x, t, middle, [(-0.5 * width / bar, here.noise), (std, first)])
        found = yield Query(stirred, middle)
        return moved(path, x, t, s, [(-width / centre, found.noise), (std, first), (std, second)])


def stochastic_jump(path: AffinePath, x: Tensor, step: Step, noise: NoiseSource) -> Steps:
    """A stochastic step from or to an end without log-SNR: α_s·x̂_0 + σ_s·fresh noise."""
    estimate = yield Query(x, step.t)
    clean, std = path.mean(estimate.clean, step.s), path.sigma(step.s)
    return clean if std == 0.0 else torch.add(clean, noise.normal(step.index, clean.shape[1:]), alpha=std)
