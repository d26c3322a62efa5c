"""SA-Solver: a multistep predictor and corrector for reverse SDEs of any noise (Xue et al. 2023, arXiv 2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps
from .exponential import combine, half_log_snr, quadrature, reliable


class _Stretch(NamedTuple):
    """A predicted step, to be corrected: its start, its noise, and the estimates it used at their nodes."""

    x: Tensor
    step: Step
    noise: Tensor | None
    nodes: list[float]
    clean: list[Tensor]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class SASolver:
    """Between two times with h = λ_s − λ_t and y = (1 + τ²)·h

        x_s = (σ_s/σ_t)·e^{−τ²h}·x_t + α_s·y ∫₀¹ e^{−y(1−θ)} D(λ_t + θh) dθ + σ_s·√(1 − e^{−2τ²h})·z

    τ = 0 is the probability flow, τ = 1 the reverse SDE. The predictor extrapolates D through the last ``predictor``
    estimates; after the next evaluation the corrector repeats the step with that estimate, the last ``corrector`` ones
    before it and the same noise (0: no corrector). One evaluation a step. At few evaluations τ of .3 to .5 with a
    corrector is far better than τ = 1. Over long steps, and after short ones, fewer points serve
    (`exponential.reliable`): a restart between 7 steps ended at seven times the size of the data.
    ``SASolver(predictor=1, corrector=0)`` is DDIM (τ = 0) and ancestral sampling (τ = 1).
    """

    needs = AffinePath

    predictor: int = 3
    corrector: int = 3
    tau: float = 0.3

    def __post_init__(self) -> None:
        if not (1 <= self.predictor <= 4 and 0 <= self.corrector <= 4):
            raise ConfigError(f"SA-Solver has 1–4 predictor and 0–4 corrector points, got {self}")
        if not 0.0 <= self.tau < math.inf:
            raise ConfigError(f"tau must be finite and not negative, got {self.tau}")

    @property
    def order(self) -> int:
        """In law, at most 2 with noise; without it a corrector raises the order, and the one-point start bounds it."""
        if self.predictor == 1 and self.corrector == 0:
            return 1
        if self.tau > 0.0:
            return min(self.predictor, 2)
        return 2 if self.corrector == 0 else min(self.predictor + 1, self.corrector + 1, 3)

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Correct the stretch that led here, then predict the next."""
        estimate = yield Query(x, step.t)
        last: _Stretch | None = memory.get("stretch")
        if last is not None and self.corrector:
            keep = min(len(last.clean), self.corrector)
            nodes, clean = [*last.nodes[:keep], 1.0], [*last.clean[:keep], estimate.clean]
            x = self._leap(path, last.x, last.step, nodes, clean, last.noise)
        now = half_log_snr(path, step.t)
        wanted = max(self.predictor, self.corrector)
        points: list[tuple[float, Tensor]] = [(now, estimate.clean), *memory.get("points", [])][:wanted]
        memory["points"] = points if math.isfinite(now) else []
        h = half_log_snr(path, step.s) - now
        finite = math.isfinite(h)
        points = reliable(points, h, (1.0 + self.tau**2) * h) if finite else points
        nodes = [(at - now) / h for at, _ in points] if finite else [0.0]
        clean = [d for _, d in points][: len(nodes)]
        z = noise.normal(step.index, x.shape[1:]) if self.tau > 0.0 and path.sigma(step.s) > 0.0 else None
        memory["stretch"] = _Stretch(x, step, z, nodes, clean) if finite else None
        return self._leap(path, x, step, nodes[: self.predictor], clean[: self.predictor], z)

    def _leap(
        self,
        path: AffinePath,
        x: Tensor,
        step: Step,
        nodes: Sequence[float],
        clean: Sequence[Tensor],
        noise: Tensor | None,
    ) -> Tensor:
        h = half_log_snr(path, step.s) - half_log_snr(path, step.t)
        square, gain = self.tau**2, path.alpha(step.s)
        keep = path.sigma(step.s) / path.sigma(step.t) * (math.exp(-square * h) if square else 1.0)
        weights = quadrature((1.0 + square) * h, nodes)
        out = combine(x, keep, [(gain * w, d) for w, d in zip(weights, clean, strict=True)])
        if noise is None:
            return out
        return torch.add(out, noise, alpha=path.sigma(step.s) * math.sqrt(-math.expm1(-2.0 * square * h)))
