"""Guidance that mixes two predictions: classifier-free, its projected and its manifold form, and autoguidance.

In the formulas c = E[x_0 | x_t, condition] and u = E[x_0 | x_t] are clean estimates. Mixing these rather than noise or
velocity changes nothing on an affine path, where all are affine in each other, and works on every other path too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import checks, scalars
from ..denoisers import DenoiserLike
from ..errors import ConfigError
from ..estimates import Estimate
from ..grids import GridLike, times_of
from ..paths.base import Cond
from ..scalars import Time, expand
from ..typed import typed
from .base import Rule, Strength, affine_path, condition_of, null_beside, strength_at


def both(inner: DenoiserLike, null: Cond, x: Tensor, t: Time) -> tuple[Estimate, Estimate]:
    """(c, u): one batch of 2·B rows where the two conditions have the same keys and widths, else two calls."""
    cond, null = condition_of(inner), null_beside(null, inner)
    fits = cond is not None and cond.keys() == null.keys()
    if fits and cond is not None and all(value.shape[1:] == null[key].shape[1:] for key, value in cond.items()):
        c, u = inner.predict_conditions(x, t, [cond, null])
        return c, u
    return inner(x, t), inner.with_condition(null)(x, t)


def mixed(weight: Time, strong: Estimate, weak: Estimate) -> Estimate:
    """weak + w·(strong − weak) on clean; a number of 1 or 0 gives one of them untouched."""
    if not isinstance(weight, Tensor):
        return Estimate.mix((weight, strong), (1.0 - weight, weak))
    w = expand(weight, strong.clean)
    return strong.replace(clean=w * strong.clean + (1.0 - w) * weak.clean)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CFG(Rule):
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6):  x̂_0 = u + w·(c − u), two evaluations in one batch.

    ``weight`` w is a number or a function of the log-SNR. 1 is the plain conditional model, bit for bit and at one
    evaluation; 0 the unconditional one. (Ho & Salimans' own w is ours minus one.) ``null`` is the empty condition, e.g.
    ``run.null()``: keyword tensors of B rows or of one. The condition is the one that the model is bound to by
    ``with_condition`` or ``sample(cond=…)``.

    ``rescale`` φ (Lin et al. 2024, section 3.4) brings the spread of the result back to that of c,

        x̂_0 ← φ·x̂_0·std(c)/std(x̂_0) + (1 − φ)·x̂_0,

    std over all numbers of a sample. It acts on the clean estimate, whatever the network predicts; their formula is
    applied to the network's output, so values do not carry over for networks that predict noise. A sample without
    spread – flat, or of one number – has nothing to be brought back and stays as it is.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time, label: 0 * x + label[:, None], path=orn.VP(), predicts="clean")
    >>> guided = CFG(weight=3.0, null={"label": torch.tensor([1.0])})(model).with_condition(
    ...     {"label": torch.tensor([2.0])}
    ... )
    >>> guided(torch.zeros(1, 1), 0.5).clean.item()
    4.0
    """

    weight: Strength
    null: Cond
    rescale: float = 0.0

    def __post_init__(self) -> None:
        checks.strength("weight", self.weight)
        checks.conditions(self.null, ConfigError, "null")
        checks.real("rescale", self.rescale)
        if not 0.0 <= self.rescale <= 1.0:
            raise ConfigError(f"rescale must lie in [0, 1], got {self.rescale}")

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """u + w·(c − u), rescaled."""
        weight = strength_at(self.weight, inner.path, t)
        if not isinstance(weight, Tensor) and weight == 1.0:
            return inner(x, t)
        if not isinstance(weight, Tensor) and weight == 0.0 and self.rescale == 0.0:
            return inner.with_condition(null_beside(self.null, inner))(x, t)
        c, u = both(inner, self.null, x, t)
        guided = mixed(weight, c, u)
        return guided if self.rescale == 0.0 else _rescaled(guided, c, self.rescale)


def _rescaled(guided: Estimate, c: Estimate, share: float) -> Estimate:
    clean = guided.clean
    kind = torch.promote_types(clean.dtype, torch.float32)
    wanted, rows = c.clean.flatten(1).to(kind), clean.flatten(1).to(kind)
    if rows.shape[1] < 2:
        return guided
    std = rows.std(1)
    flat = std <= 4.0 * torch.finfo(clean.dtype).eps * rows.abs().amax(1)  # the spread is rounding alone
    ratio = torch.where(flat, 1.0, wanted.std(1) / torch.where(flat, 1.0, std))
    return guided.replace(clean=clean * expand(share * ratio + (1.0 - share), clean))


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2025, algorithm 1), two evaluations in one batch.

        d = c − u,   d ← d·min(1, r/‖d‖),   x̂_0 = c + (w − 1)·(d⊥ + η·d∥),

    d∥ being the part of d along c, norms and projections per sample over all its numbers. The parallel part is what
    over-saturates; ``parallel`` η = 0 drops it, and with η = 1 and no ``norm`` r this is `CFG`. ``weight`` 1 is no
    guidance, bit for bit.

    The paper's momentum (a running mean of d over the steps) is left out: an estimate would depend on the evaluations
    before it, so that samplers of several stages, samples one at a time and restarts would each see another guidance.
    """

    weight: Strength
    null: Cond
    parallel: float = 0.0
    norm: float | None = None

    def __post_init__(self) -> None:
        checks.strength("weight", self.weight)
        checks.conditions(self.null, ConfigError, "null")
        checks.real("parallel", self.parallel)
        if self.norm is not None and not checks.real("norm", self.norm) > 0.0:
            raise ConfigError(f"norm must be positive (or None for no limit), got {self.norm}")

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """c + (w − 1)·(d⊥ + η·d∥)."""
        weight = strength_at(self.weight, inner.path, t)
        if not isinstance(weight, Tensor) and weight == 1.0:
            return inner(x, t)
        c, u = both(inner, self.null, x, t)
        kind = torch.promote_types(x.dtype, torch.float32)
        along, d = c.clean.to(kind), c.clean.to(kind) - u.clean.to(kind)
        if self.norm is not None:
            d = d * expand((self.norm / _norm(d)).clamp(max=1.0), d)
        square = along.square().flatten(1).sum(1).clamp_min(torch.finfo(kind).tiny)
        part = expand((d * along).flatten(1).sum(1) / square, d) * along
        shift = d - part + self.parallel * part
        return c.replace(clean=c.clean + (expand(weight, d) - 1.0) * shift.to(x.dtype))


def _norm(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1).clamp_min(torch.finfo(d.dtype).tiny)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CFGpp(Rule):
    """CFG++ (Chung et al. 2025, algorithm 2): classifier-free guidance that re-noises with the unconditional noise.

    On DDIM it reads, with ẑ_u the unconditional noise and λ = ``scale`` in [0, 1],

        x̂_0 = u + λ·(c − u),   x_s = α_s·x̂_0 + σ_s·ẑ_u.

    The two halves use different estimates, so at first sight this is a sampler. But ẑ_u = (x − α_t·u)/σ_t, and solving
    for the one estimate that moves plain DDIM to the same x_s gives classifier-free guidance of a weight that depends
    on the step alone:

        x̂_0 = u + w·(c − u),   w = λ / (1 − σ̄_s/σ̄_t),   σ̄ = σ/α.

    So it is a guidance after all, one that must know the ``grid``: with `DDIM` of η = 0 on that grid it is CFG++
    exactly, with every other sampler the same strength by noise level. Weights are large where steps are short, and the
    last step to the clean end has w = λ. Off the grid, s is the next time below on it. No λ means "no guidance": λ = 0
    is the unconditional model; λ = 1 still re-noises with ẑ_u.
    """

    scale: float
    null: Cond
    grid: GridLike

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale <= 1.0:
            raise ConfigError(f"the scale of CFG++ lies in [0, 1], got {self.scale}: 0.6 is about a weight of 7.5")

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """u + w·(c − u) with the step's weight."""
        if isinstance(t, Tensor):
            raise ConfigError("CFG++ belongs to the steps of a sampler: it has no meaning at a time for each sample")
        path = affine_path(inner.path, "CFG++")
        s = next_time(self.grid, inner, t)
        ratio = path.sigma(s) * path.alpha(t) / (path.alpha(s) * path.sigma(t))
        c, u = both(inner, self.null, x, t)
        return mixed(scalars.divide(self.scale, 1.0 - ratio), c, u)


def next_time(grid: GridLike, inner: DenoiserLike, t: float) -> float:
    """The first time of the grid below t; the clean end where there is none."""
    return max((s for s in times_of(grid, inner.path) if s < t), default=inner.path.t_range[0])


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Autoguidance(Rule):
    """Guidance by a worse model of the same kind (Karras et al. 2024, eq. 3):  x̂_0 = b + w·(D − b).

    ``worse`` b is a smaller or less trained model on the same path, under the condition that D is bound to. The
    formula works without any condition. It also is classifier-free guidance with a separate unconditional model: pass
    that, and ``conditional=False``, which leaves it as it is. ``weight`` 1 is no guidance, bit for bit.
    """

    weight: Strength
    worse: DenoiserLike = field(repr=False)
    conditional: bool = True

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """b + w·(D − b)."""
        weight = strength_at(self.weight, inner.path, t)
        if not isinstance(weight, Tensor) and weight == 1.0:
            return inner(x, t)
        cond = condition_of(inner) if self.conditional else None
        worse = self.worse.with_condition(cond) if cond else self.worse
        if not isinstance(weight, Tensor) and weight == 0.0:
            return worse(x, t)
        return mixed(weight, inner(x, t), worse(x, t))


__all__ = ["APG", "CFG", "Autoguidance", "CFGpp", "both", "mixed", "next_time"]
