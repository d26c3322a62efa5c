"""Adams' rules in the angle of a state: a multistep method whose last step, to σ = 0, is a step like any other.

With s the scale of the data, the angle θ = arctan(σ̄/s) and r = √(s²α² + σ²), the state y = x/r turns at the rate

    dy/dθ = −F,     F = (x̂_0 − (s²α/r²)·x)·r/(s·σ)

from θ = π/2 (pure noise) to θ = 0 (clean). It is the probability-flow ODE in the coordinates of the v-prediction (s =
1; Lu & Song 2025, arXiv 2410.11081, call it TrigFlow): F is zero for Gaussian data of variance s², F → −ẑ for large s
and F ∝ x̂_0 for small s, so that s lies between the noise and the clean form of other solvers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..errors import ConfigError
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps
from .exponential import combine, spaced

_WIDE = 4.0
"""θ_t/θ_s of the widest step that is corrected."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
Points = list[tuple[float, Tensor]]  # (σ̄, F)


class _Stretch(NamedTuple):
    """A predicted step, to be corrected: its start y, its ends in σ̄, and the slopes that it used."""

    y: Tensor
    bar: float
    after: float
    points: Points


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class TrigFlowAdams:
    """F, interpolated by a polynomial in log(σ̄ + ``offset``) through the last ``points`` estimates, integrated over θ.

        y_s = y_t + ∑_j W_j·F_j,   W_j = ∫ ℓ_j dθ from θ_s to θ_t

    One evaluation a step. ``corrector`` repeats a step with the next estimate as one more node, as UniPC does; but not
    a step over which θ falls to less than a quarter, since F changes by 1/θ where data lie closer than ``scale``.
    ``scale`` is s, see the module. Every step from a finite σ̄ is of full order, the one to σ = 0 included: nothing is
    singular there. The first step has one node and its correction two: that bounds the order of a run that begins where
    F still moves.
    """

    needs = AffinePath
    """The angle is that of σ/α."""

    points: int = 3
    corrector: bool = True
    scale: float = 1.0
    offset: float = 0.15

    def __post_init__(self) -> None:
        if self.points not in (1, 2, 3, 4):
            raise ConfigError(f"Adams' rules extrapolate from 1 to 4 points, got {self.points}")
        for name, value in (("scale", self.scale), ("offset", self.offset)):
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {value}")

    @property
    def order(self) -> int:
        """min(points + 1, 3) with the corrector, min(points, 2) without."""
        return min(self.points + 1, 3) if self.corrector else min(self.points, 2)

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Correct the stretch that led here, then predict the next."""
        del noise
        t, s, scale = step.t, step.s, self.scale
        clean = (yield Query(x, t)).clean
        alpha, sigma, bar, after = path.alpha(t), path.sigma(t), path.sigma_bar(t), path.sigma_bar(s)
        radius = math.hypot(scale * alpha, sigma)
        slope = combine(clean, radius / (scale * sigma), [(-scale * alpha / (radius * sigma), x)])
        last: _Stretch | None = memory.get("stretch") if self.corrector else None
        if last is None or math.atan(last.bar / scale) > _WIDE * math.atan(last.after / scale):
            y = x / radius
        else:
            y = self._moved(last.y, last.bar, last.after, [(bar, slope), *last.points])
        points: Points = [(bar, slope), *memory.get("points", [])][: self.points]
        finite = math.isfinite(bar)
        used = self._spaced(points, after) if finite else points
        memory["points"] = points if finite else []
        memory["stretch"] = _Stretch(y, bar, after, used) if finite else None
        return self._moved(y, bar, after, used) * math.hypot(scale * path.alpha(s), path.sigma(s))

    def _spaced(self, points: Points, after: float) -> Points:
        """See `exponential.spaced`, in the variable of the interpolation."""
        places = [(math.log(bar + self.offset), bar, slope) for bar, slope in points]
        return [(bar, slope) for _, bar, slope in spaced(places, math.log(after + self.offset) - places[0][0])]

    def _moved(self, y: Tensor, bar: float, after: float, points: Points) -> Tensor:
        weights = self._weights(bar, after, [place for place, _ in points])
        return combine(y, 1.0, [(w, slope) for w, (_, slope) in zip(weights, points, strict=True)])

    def _weights(self, bar: float, after: float, places: Sequence[float]) -> list[float]:
        """W_j by Gauss–Legendre nodes in the variable of the interpolation."""
        if len(places) == 1:
            return [math.atan(bar / self.scale) - math.atan(after / self.scale)]
        nodes = [math.log(place + self.offset) for place in places]
        begin, end = math.log(bar + self.offset), math.log(after + self.offset)
        here = begin + 0.5 * (_NODES + 1.0) * (end - begin)
        level = np.exp(here)
        # dθ = s/(s² + σ̄²) dσ̄ with dσ̄ = (σ̄ + offset) d log(σ̄ + offset)
        rate = self.scale / (self.scale**2 + (level - self.offset) ** 2) * level
        measure = 0.5 * (begin - end) * _WEIGHTS * rate
        out: list[float] = []
        for j, own in enumerate(nodes):
            basis = np.ones_like(here)
            for i, other in enumerate(nodes):
                if i != j:
                    basis = basis * (here - other) / (own - other)
            out.append(float(measure @ basis))
        return out
