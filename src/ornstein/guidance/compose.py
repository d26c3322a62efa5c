"""How guidances combine: one after the other (`compose`), side by side (`add`), and where (`interval`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks, grids, scalars
from ..denoisers import DenoiserLike, Guidance
from ..errors import ConfigError
from ..estimates import Estimate
from ..scalars import Time, expand
from ..typed import typed
from .base import CachedEvaluation, Rule, differentiates


@dataclass(frozen=True, slots=True)
class Composition(Rule):
    """See `compose`."""

    guidances: tuple[Guidance, ...]

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The last guidance's estimate."""
        denoiser: DenoiserLike = CachedEvaluation.of(inner)
        for guidance in self.guidances:
            denoiser = guidance(denoiser)
        return denoiser(x, t)

    @property
    def differentiates(self) -> bool:
        """Whether one of them does."""
        return any(map(differentiates, self.guidances))


@dataclass(frozen=True, slots=True)
class Sum(Rule):
    """See `add`."""

    guidances: tuple[Guidance, ...]

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """D + ∑ (gᵢ(D) − D)."""
        shared = CachedEvaluation.of(inner)
        # Those with gradients first: their answers serve the others, but not the other way round.
        order = sorted(range(len(self.guidances)), key=lambda i: not differentiates(self.guidances[i]))
        answers = {i: self.guidances[i](shared)(x, t) for i in order}
        plain = shared(x, t)
        moved = [answers[i] for i in sorted(answers) if answers[i] is not plain]
        if len(moved) < 2:
            return moved[0] if moved else plain
        clean = plain.clean
        for answer in moved:
            clean = clean + (answer.clean - plain.clean)
        return plain.replace(clean=clean)

    @property
    def differentiates(self) -> bool:
        """Whether one of them does."""
        return any(map(differentiates, self.guidances))


def compose(*guidances: Guidance) -> Composition:
    """Guidances one after the other, the first innermost: g_n(… g_1(D)). Each estimate of the base is computed once.

    What a later guidance takes for the model is the earlier ones' estimate: ``compose(CFG(…), Universal(…))`` gives the
    energy the guided clean sample and differentiates through both of CFG's estimates.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: 2.0 * x, path=orn.VE(), predicts="clean")
    >>> from ornstein.guidance import Threshold
    >>> compose(Threshold(), Threshold())(model)(torch.ones(1, 1, 2, 2), 1.0).clean.amax().item()
    1.0
    """
    for guidance in guidances:
        checks.function("a guidance", guidance, "a function from a denoiser to a denoiser")
    return Composition(tuple(guidances))


def add(*guidances: Guidance) -> Sum:
    """Guidances side by side: each works on the base model, and their shifts add,  D̂ = D + ∑ (gᵢ(D) − D).

    The order does not matter but for rounding, and an estimate that several need is computed once.
    ``add(CFG(weight=w, …), PAG(scale=s))`` is u + w·(c − u) + s·(c − c̃) at three evaluations. Guidances that
    do nothing leave no trace: the result of one that acts alone is bit for bit its own.
    """
    for guidance in guidances:
        checks.function("a guidance", guidance, "a function from a denoiser to a denoiser")
    return Sum(tuple(guidances))


@typed()
@dataclass(frozen=True, slots=True)
class Interval(Rule):
    """See `interval`."""

    guidance: Guidance
    low: float
    high: float

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The guided estimate inside the window, the inner one outside."""
        log_snr = grids.affine(inner.path).log_snr(t)
        if not isinstance(log_snr, Tensor):
            return (self.guidance(inner) if self.low <= log_snr < self.high else inner)(x, t)
        shared = CachedEvaluation.of(inner)
        plain, guided = shared(x, t), self.guidance(shared)(x, t)
        inside = expand(((log_snr >= self.low) & (log_snr < self.high)).to(torch.float64), x)
        return plain.replace(clean=torch.where(torch.as_tensor(inside) > 0, guided.clean, plain.clean))

    @property
    def differentiates(self) -> bool:
        """As the guidance."""
        return differentiates(self.guidance)


@typed()
def interval(
    guidance: Guidance,
    *,
    log_snr: tuple[float, float] | None = None,
    sigma: tuple[float, float] | None = None,
) -> Interval:
    """The guidance at a ≤ log-SNR < b alone; outside, the estimate is the plain model's, bit for bit.

    The window may be given as ``sigma=(low, high)`` instead: low < σ/α ≤ high, the noise level of the exploding (EDM)
    picture, as in limited-interval guidance (Kynkäänniemi et al. 2024, eq. 6). Both mean the same on every path and for
    every number of steps. A guidance with a second evaluation costs nothing outside.

    Args:
        guidance: any guidance.
        log_snr: (a, b), a < b; ``-inf`` and ``inf`` leave an end open.
        sigma: (low, high) instead, 0 ≤ low < high.

    Raises:
        ConfigError: not exactly one window, or an empty one.
    """
    if (log_snr is None) == (sigma is None):
        raise ConfigError("a window is given by log_snr=(a, b) or by sigma=(low, high), by one of them")
    if sigma is not None:
        low, high = sigma
        if not 0.0 <= low < high:
            raise ConfigError(f"a window in sigma needs 0 ≤ low < high, got {sigma}")
        log_snr = (-2.0 * scalars.log(high), -2.0 * scalars.log(low))
    assert log_snr is not None
    if not log_snr[0] < log_snr[1]:
        raise ConfigError(f"a window in log-SNR needs a < b, got {log_snr}")
    return Interval(guidance, *log_snr)
