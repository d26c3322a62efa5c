"""UniPC: a multistep predictor, and a corrector that reuses the next step's evaluation (Zhao et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ..errors import ConfigError
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps
from .exponential import ExponentialStep, half_log_snr, moments, quadrature, spaced


class _Stretch(NamedTuple):
    """A step already predicted: its start, coefficients, and the estimates it used at their nodes (in units of h)."""

    x: Tensor
    leap: ExponentialStep
    nodes: list[float]
    clean: list[Tensor]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class UniPC:
    """UniPC-p for data prediction, p = 1, 2, 3 (Zhao et al. 2023, algorithms 5–6 and app. E).

    The predictor integrates the polynomial through the last p estimates (p = 2: the variant's simplified weight); when
    the next evaluation, the corrector repeats the step with that estimate as one more node. One
    evaluation a step. The two variants, B(h) = 1 − e^{−h} (bh2) and h (bh1), differ only in the simplified weights of
    the two-node rules, ½B(h).

    The corrector raises the order to p + 1. With p = 3 the first step, of two nodes and local error h³, would limit the
    run to order 3 (``start="plain"``, as published); the default start evaluates at ⅓ and ⅔ of it as well. On grids
    that begin at pure noise, where the estimate hardly moves, the plain start shows its limit only at very small steps.

    ``lower_final`` lowers p to 2 in the step before the jump to σ = 0; the jump itself is always of first order, and so
    is a step from α = 0. On grids that end above σ = 0 nothing is lowered.
    """

    needs = AffinePath
    """The method lives on the log-SNR."""

    p: Literal[1, 2, 3] = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    lower_final: bool = True
    start: Literal["third", "plain"] = "third"

    def __post_init__(self) -> None:
        if self.p not in (1, 2, 3):
            raise ConfigError(f"UniPC has p = 1, 2 and 3, got {self.p}")

    @property
    def order(self) -> int:
        """p + 1 with the corrector, p without; one less for p = 3 with a plain start."""
        return self.p + int(self.corrector) - int(self.p == 3 and self.start == "plain")

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Correct the stretch that led here, then predict the next."""
        del noise
        estimate = yield Query(x, step.t)
        last: _Stretch | None = memory.get("stretch")
        if last is not None and self.corrector:
            weights = self._weights(last.leap.y, [*last.nodes, 1.0])
            x = last.leap.to(last.x, weights, [*last.clean, estimate.clean])
        leap, now = ExponentialStep.between(path, step.t, step.s), half_log_snr(path, step.t)
        points: list[tuple[float, Tensor]] = [(now, estimate.clean), *memory.get("points", [])][: self.p]
        memory["points"] = points if math.isfinite(now) else []
        points = points[:1] if math.isinf(leap.h) else spaced(points, leap.h)
        if self.lower_final and step.after is not None and path.sigma(step.after) == 0.0:
            points = points[:2]
        nodes = [(at - now) / leap.h for at, _ in points] if len(points) > 1 else [0.0]
        clean = [d for _, d in points]
        weights = self._weights(leap.y, nodes)
        if self.p == 3 and self.start == "third" and len(points) == 1 and math.isfinite(leap.h):
            nodes, clean = [0.0, 2.0 / 3.0], [*clean, (yield from _two_thirds(path, x, clean[0], step))]
            weights = quadrature(leap.y, nodes)
        memory["stretch"] = _Stretch(x, leap, nodes, clean)
        return leap.to(x, weights, clean)

    def _weights(self, y: float, nodes: list[float]) -> tuple[float, ...]:
        if len(nodes) != 2:
            return quadrature(y, nodes)
        first = moments(y, 1)[0]
        # From α_t = 0 (y = ∞) both variants are the trapezium in 1/σ̄.
        slope = 0.5 * (y if self.variant == "bh1" and math.isfinite(y) else first) / nodes[1]
        return first - slope, slope


def _two_thirds(path: AffinePath, x: Tensor, clean: Tensor, step: Step) -> Steps:
    """The clean estimate two thirds along the step in λ, with an error of h³: all but the end of Heun's third rule."""
    start, width = path.log_snr(step.t), path.log_snr(step.s) - path.log_snr(step.t)
    times = [path.time_of(start + width * part) for part in (1.0 / 3.0, 2.0 / 3.0)]
    one, two = (ExponentialStep.between(path, step.t, time) for time in times)
    first = yield Query(one.to(x, quadrature(one.y, [0.0]), [clean]), times[0])
    second = yield Query(two.to(x, quadrature(two.y, [0.0, 0.5]), [clean, first.clean]), times[1])
    return second.clean
