"""ContextDiff's path: the condition, together with the clean sample, bends the mean of every noisy state.

Yang et al., "Cross-Modal Contextualized Diffusion Models", ICLR 2024 (arXiv 2402.16627), eq. 3; the general form is
ShiftDDPM (arXiv 2302.02373).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, PathError
from ..estimates import Estimate
from ..randomness import NoiseSource
from ..scalars import T, Time, expand
from ..typed import typed
from .base import AffinePath, Cond, LocationPath
from .vp import VP

Shift = Callable[[Tensor, Mapping[str, Tensor], Time], Tensor]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShiftedPath(LocationPath):
    """x_t = α(t)·x_0 + k(t)·r(x_0, c, t) + σ(t)·z on top of an affine ``base``.

    ``shift`` is r: (clean (B, …), condition, t) → the shape of clean; an ``nn.Module`` may be used and trained.
    ``bend`` chooses k: "quadratic" α(1 − α) leaves data and prior unshifted (the paper's), "prior" 1 − α moves the
    prior, "data" −α moves the data: the state at the clean end is then x_0 − r, and not x_0.

    An estimate that carries ``extras["shift"]``, a prediction of E[r | x_t], is used instead of r(x̂_0), which is biased
    because r is not linear: r(E[x_0|x_t]) ≠ E[r(x_0)|x_t].
    """

    base: AffinePath = field(default_factory=VP)
    shift: Shift
    bend: Literal["quadratic", "prior", "data"] = "quadratic"
    cond: Cond = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        if self.bend not in ("quadratic", "prior", "data"):
            raise ConfigError(f"unknown bend {self.bend!r}: choose quadratic, prior or data")
        object.__setattr__(self, "cond", dict(self.cond))

    @property
    def t_range(self) -> tuple[float, float]:
        """The base's `t_range`."""
        return self.base.t_range

    @property
    def t_min(self) -> float:
        """The base's `t_min`."""
        return self.base.t_min

    def with_condition(self, cond: Cond) -> ShiftedPath:
        """The path with r bound to this condition."""
        return replace(self, cond=cond)

    def timestep_of(self, t: T) -> T:
        """The base's `timestep_of`."""
        return self.base.timestep_of(t)

    def strength(self, t: T) -> T:
        """k(t)."""
        alpha = self.base.alpha(t)
        if self.bend == "quadratic":
            return alpha * (1.0 - alpha)
        return 1.0 - alpha if self.bend == "prior" else -alpha

    def mean(self, clean: Tensor, t: Time) -> Tensor:
        """α·x_0 + k·r(x_0, c, t)."""
        return self.base.mean(clean, t) + self._bias(self.shift(clean, self.cond, t), t)

    def mean_of(self, estimate: Estimate, t: Time) -> Tensor:
        """The same at an estimate, with its own prediction of r if it has one."""
        return self.base.mean(estimate.clean, t) + self._bias_at(estimate, t)

    def ddim_step(self, x: Tensor, estimate: Estimate, keep: float, s: float) -> Tensor:
        """The base's, plus b_s − keep·b_t with the bias b = k·r at the estimate."""
        bias = self._bias_at(estimate, s) - keep * self._bias_at(estimate, estimate.t)
        return self.base.ddim_step(x, estimate, keep, s) + bias

    def std(self, t: T) -> T:
        """The base's σ(t)."""
        return self.base.sigma(t)

    def gain(self, s: T, t: T) -> T:
        """The base's α_t/α_s."""
        return self.base.gain(s, t)

    def spread(self, s: T, t: T) -> T:
        """The base's transition noise."""
        return self.base.spread(s, t)

    @property
    def renoise_needs_clean(self) -> bool:
        """The transition subtracts the bias at s and adds the one at t, and both know x_0."""
        return True

    def renoise(self, x: Tensor, s: float, t: float, noise: Tensor, clean: Tensor | None = None) -> Tensor:
        """gain·(x_s − b_s) + b_t + spread·z with b = k·r(x_0, c, ·)."""
        if clean is None:
            raise PathError("ShiftedPath.renoise needs the clean sample (or an estimate): pass clean=")
        if self.bend == "data" and s == self.t_range[0]:
            raise PathError("bend='data' moves the data itself: a climb cannot start at the clean end")
        gain, spread = expand(self.gain(s, t), x), expand(self.spread(s, t), x)
        return gain * (x - self.mean(clean, s)) + self.mean(clean, t) + spread * noise

    def prior(self, noise: NoiseSource, shape: Sequence[int], t: float | None = None) -> Tensor:
        """The base's prior; with "prior", shifted by k·r(0, c, t), exact for an r of the condition alone."""
        draw = self.base.prior(noise, shape, t)
        if self.bend != "prior":
            return draw
        end = self.t_range[1] if t is None else t
        return draw + self._bias(self.shift(torch.zeros_like(draw), self.cond, end), end)

    def _bias_at(self, estimate: Estimate, t: Time) -> Tensor:
        predicted = estimate.extras.get("shift")
        return self._bias(self.shift(estimate.clean, self.cond, t) if predicted is None else predicted, t)

    def _bias(self, shift: Tensor, t: Time) -> Tensor:
        return expand(self.strength(t), shift) * shift
