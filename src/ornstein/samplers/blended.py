"""Adams' rule in three forms, weighed per sample by which of them predicted the last step best.

In the angle form (`TrigFlowAdams`) the slope F is interpolated, in the clean forms (DPM-Solver++ 2M and 3M) the clean
estimate x̂₀, through two answers and through three:

    y_s = y_t + ∑ W_j·F_j,                              y = x/√(s²α² + σ²)
    x_s/α_s = (σ̄_s/σ̄_t)·x_t/α_t + ∑ V_j·x̂₀_j,           V_j = ∫ ℓ_j·σ̄_s/σ̄² dσ̄

F hardly moves for smooth data of scale s, where x̂₀ moves with the state; x̂₀ is constant near a point or a narrow
cluster, where F turns. Which of the two a sample is near shows when the next answer is there: with the correction of
the step that led here, form i has the error e_i of its own prediction, and

    w_i = e_i⁻⁴ / ∑_k e_k⁻⁴

is its weight. So data that are nearly singular cost no accuracy on those that are smooth, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConfigError
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from .angle import TrigFlowAdams
from .base import Memory, Query, Step, Steps
from .exponential import combine, spaced

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_CLEAN = (2, 3)
"""Answers from which the clean forms predict. Two settle on a point where three overshoot."""
_FAR = ((3.0, 1), (1.5, 2))
"""(length of a step over that of the one before, answers at most): a parabola carried further magnifies its errors. The
last step of a path whose levels end early is the case that counts."""


_Rate = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


class _Node(NamedTuple):
    """What the network said at a level σ̄: the slope of the angle form, and the clean sample."""

    bar: float
    slope: Tensor
    clean: Tensor


class _Stretch(NamedTuple):
    """The step that led here: its start, the answers that it used, and where each form said that it ends."""

    t: float
    x: Tensor
    nodes: tuple[_Node, ...]
    ahead: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedAdams:
    """Adams' rule with one evaluation a step, in the angle form or a clean form, whichever suits the sample.

    See the module for the forms and the weights.

    Args:
        points: answers from which the angle form extrapolates, 2 to 4.
        corrector: repeat a step with the next answer as one more node, as UniPC does.
        scale: s, the standard deviation of the data.
        offset: all forms interpolate in log(σ̄ + offset).
    """

    order = 2
    needs = AffinePath

    points: int = 3
    corrector: bool = True
    scale: float = 1.0
    offset: float = 0.15

    def __post_init__(self) -> None:
        if self.points not in (2, 3, 4):
            raise ConfigError(f"the blended rule extrapolates from 2 to 4 points, got {self.points}")
        TrigFlowAdams(points=self.points, scale=self.scale, offset=self.offset)  # the same bounds

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Weigh the forms by the stretch that led here, correct it, then predict the next."""
        del noise
        t, s = step.t, step.s
        clean = (yield Query(x, t)).clean
        alpha, sigma, bar = path.alpha(t), path.sigma(t), path.sigma_bar(t)
        radius = self._radius(path, t)
        slope = combine(clean, radius / (self.scale * sigma), [(-self.scale * alpha / (radius * sigma), x)])
        if not math.isfinite(bar):
            memory.clear()
            return self._angle(path, t, s, x, (_Node(bar, slope, clean),))
        node, last = _Node(bar, slope, clean), memory.get("stretch")
        if last is not None:
            better = self._forms(path, last.t, t, last.x, (node, *last.nodes), 1)
            memory["weights"] = _weights([one - other for one, other in zip(last.ahead, better, strict=True)])
            if self.corrector:
                x = _blend(memory["weights"], better)
        memory["nodes"] = self._spaced((node, *memory.get("nodes", ()))[: _most(self.points)], path.sigma_bar(s))
        nodes = self._near(memory["nodes"], path.sigma_bar(s))
        ahead = self._forms(path, t, s, x, nodes)
        memory["stretch"] = _Stretch(t, x, nodes, ahead)
        return _blend(memory["weights"], ahead) if "weights" in memory else ahead[0].clone()

    def _forms(
        self, path: AffinePath, t: float, s: float, x: Tensor, nodes: Sequence[_Node], more: int = 0
    ) -> tuple[Tensor, ...]:
        """From x at t to s in each form; ``more`` answers than it predicts from where a step is corrected."""
        angle = self._angle(path, t, s, x, nodes[: self.points + more])
        return angle, *(self._clean(path, t, s, x, nodes[: count + more]) for count in _CLEAN)

    def _spaced(self, nodes: Sequence[_Node], after: float) -> tuple[_Node, ...]:
        """See `exponential.spaced`, in the variable of the interpolation."""
        places = [(self._place(node.bar), node) for node in nodes]
        return tuple(node for _, node in spaced(places, self._place(after) - places[0][0]))

    def _near(self, nodes: tuple[_Node, ...], after: float) -> tuple[_Node, ...]:
        """As many of the answers as a step to ``after`` may be predicted from, see `_FAR`: all below the offset, where
        smooth data are nearly linear and the clean forms have the others."""
        if len(nodes) == 1 or nodes[0].bar < 0.5 * self.offset:
            return nodes
        here, before = (self._place(node.bar) for node in nodes[:2])
        ratio = (self._place(after) - here) / (here - before)
        return nodes[: next((count for far, count in _FAR if ratio > far), len(nodes))]

    def _place(self, bar: float) -> float:
        return math.log(bar + self.offset)

    def _radius(self, path: AffinePath, t: float) -> float:
        return math.hypot(self.scale * path.alpha(t), path.sigma(t))

    def _angle(self, path: AffinePath, t: float, s: float, x: Tensor, nodes: Sequence[_Node]) -> Tensor:
        """From x at t to s with the interpolated slope."""
        bar, after, end = path.sigma_bar(t), path.sigma_bar(s), self._radius(path, s)
        if len(nodes) == 1:
            weights = [math.atan(bar / self.scale) - math.atan(after / self.scale)]
        else:
            # dθ = s/(s² + σ̄²) dσ̄
            weights = self._weights(bar, after, nodes, lambda level: self.scale / (self.scale**2 + level**2))
        return combine(
            x, end / self._radius(path, t), [(end * w, node.slope) for w, node in zip(weights, nodes, strict=True)]
        )

    def _clean(self, path: AffinePath, t: float, s: float, x: Tensor, nodes: Sequence[_Node]) -> Tensor:
        """From x at t to s with the interpolated clean sample; to σ = 0 it is the newest one."""
        bar, after, alpha = path.sigma_bar(t), path.sigma_bar(s), path.alpha(s)
        if after == 0.0:
            return alpha * nodes[0].clean
        total = 1.0 - after / bar
        weights = [total] if len(nodes) == 1 else self._weights(bar, after, nodes, lambda level: after / level**2)
        share = total / math.fsum(weights)  # a constant x̂₀ is met exactly, whatever the quadrature
        terms = [(alpha * share * w, node.clean) for w, node in zip(weights, nodes, strict=True)]
        return combine(x, alpha * after / (path.alpha(t) * bar), terms)

    def _weights(self, bar: float, after: float, nodes: Sequence[_Node], rate: _Rate) -> list[float]:
        """∫ ℓ_j(log(σ̄ + offset))·rate(σ̄) dσ̄ from ``after`` to ``bar``, by Gauss–Legendre nodes."""
        places = [self._place(node.bar) for node in nodes]
        begin, end = self._place(bar), self._place(after)
        here = begin + 0.5 * (_NODES + 1.0) * (end - begin)
        shifted = np.exp(here)  # dσ̄ = (σ̄ + offset) d log(σ̄ + offset)
        measure = 0.5 * (begin - end) * _WEIGHTS * rate(shifted - self.offset) * shifted
        out: list[float] = []
        for j, own in enumerate(places):
            others = [place for i, place in enumerate(places) if i != j]
            basis = np.prod([(here - other) / (own - other) for other in others], axis=0)
            out.append(float(measure @ basis))
        return out


def _most(points: int) -> int:
    """Answers that are remembered."""
    return max(points, *_CLEAN)


def _weights(errors: Sequence[Tensor]) -> Tensor:
    """e_i⁻⁴/∑e_k⁻⁴ per sample, (forms, B, 1, …), from the errors of the predictions.

    Each row is one reduction over its own numbers, so that no sample depends on its batch.
    """
    like = errors[0]
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    norms = torch.stack([torch.stack([row.to(wide).square().sum().sqrt() for row in error]) for error in errors])
    parts = (norms / norms.amax(0).clamp_min(torch.finfo(wide).tiny)).clamp_min(1e-7).pow(-4)
    weights = (parts / parts.sum(0)).to(like.dtype)
    return weights.reshape(*weights.shape, *(1,) * (like.ndim - 1))


def _blend(weights: Tensor, ends: Sequence[Tensor]) -> Tensor:
    """∑ w_i·x_i."""
    out = weights[0] * ends[0]
    for weight, end in zip(weights[1:], ends[1:], strict=True):
        out.addcmul_(weight, end)
    return out
