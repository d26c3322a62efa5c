"""How far from the exact law of a Gaussian a sampler may end, by its order and the steps of its grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

import ornstein as orn
from ornstein.lab.meters import propagate
from ornstein.samplers import Sampler

WITHIN, SCALED, MOST = 4.0, 6.0, 5.0
"""How far off a sampler may be: times its `reach`, the same for `OF_SCALE_ONE`, and times the data's size at most."""
OF_SCALE_ONE = ("euler", "heun", "exponential", "angle", "auto", "ancestral-large")
"""Rules whose formulas know the scale of the data, which is one, and not only σ/α."""
OF_JUMPS = ("accelerated-ode", "accelerated-ode-history")
"""Rules that are of first order over steps in which σ/α falls to less than a half."""
SHORT = 0.3
"""Steps before, in parts of a step in log-SNR, that are too short to extrapolate from."""


def reach(path: orn.AffinePath, times: Sequence[float], std: float, order: float, stochastic: bool = False) -> float:
    """How far off a sampler may end, in units of the data.

    In the angle θ = arctan(σ/(α·std)) the exact flow is a rotation and DDIM is off by ½·Δθ² a step. A rule of order p
    adds Δθ^{p+1}, but is of first order in the first step of every descent, where its memory is empty, after a step
    that is much shorter, and in the last.

    A stochastic rule replaces the part 1 − e^{−2h} of the noise over a step h in log(α/σ). With the estimate frozen the
    samples lose what the clean sample varies by at a given state: their variance falls by θ²·(1 − e^{−2h})², which is
    more than Δθ² where the step is wide, and an extrapolation takes away one factor more.
    """
    angles = [math.atan2(path.sigma(t), path.alpha(t) * std) for t in times]
    total, before = 0.0, 0.0
    for i, (a, b) in enumerate(itertools.pairwise(angles)):
        if a <= b:
            before = 0.0
            continue
        step = math.inf
        if b > 0.0 and path.alpha(times[i]) > 0.0:
            step = path.log_snr(times[i + 1]) - path.log_snr(times[i])
        plain = before < SHORT * step or math.isinf(step) or i == len(angles) - 2
        power = 2.0 if plain else min(order, 2.0) + 1.0
        drawn = a * a * (-math.expm1(-step)) ** power if stochastic and math.isfinite(step) else 0.0
        total += max((a - b) ** power, drawn)
        before = step if math.isfinite(step) else 0.0
    return total


def allowed(name: str, rule: Sampler, path: orn.AffinePath, times: Sequence[float], mean: float, std: float) -> float:
    """How far from the exact law of N(mean, std²) the sampler of this name may end."""
    scaled = name.startswith(OF_SCALE_ONE)
    unit = max(std, 1.0) + abs(mean) if scaled else std
    order = 1.0 if name in OF_JUMPS else rule.order
    return unit * min(MOST, (SCALED if scaled else WITHIN) * reach(path, times, std, order, name.endswith("-sde")))


def exact_law(path: orn.AffinePath, t: float, mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation at t where the data are N(mean, std²)."""
    return path.alpha(t) * mean, math.hypot(path.alpha(t) * std, path.sigma(t))


def found_law(
    rule: Sampler, model: orn.DenoiserLike, path: orn.AffinePath, times: Sequence[float], mean: float, std: float
) -> tuple[float, float]:
    """The same at the last time, of samples that begin in the exact law, computed without drawing."""
    begin, root = exact_law(path, times[0], mean, std)
    found = propagate(
        rule, model, times, torch.tensor([begin], dtype=torch.float64), torch.tensor([[root]], dtype=torch.float64)
    )
    return float(found.mean), math.sqrt(max(float(found.variance), 0.0))


def off(
    rule: Sampler, model: orn.DenoiserLike, path: orn.AffinePath, times: Sequence[float], mean: float, std: float
) -> float:
    """The distance between the two."""
    return math.dist(found_law(rule, model, path, times, mean, std), exact_law(path, times[-1], mean, std))
