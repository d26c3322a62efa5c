"""Few-step models of diffusers: the boundary of their networks, and the times at which their schedulers evaluate them.

The estimate of a consistency model is a sample already. More evaluations mean fresh noise and another descent, so that
the times climb (`ornstein.grids.multistep`); a solver of an ordinary differential equation on falling times does not
apply.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import scalars
from ..errors import ConfigError, GridError
from ..estimates import Estimate
from ..grids import Grid
from ..parameterizations import Parameterization, WrappedParameterization
from ..paths.base import AffinePath, Path
from ..scalars import Time, expand

GAMMA = 0.3
"""The share of noise of trajectory consistency sampling unless another is given (Zheng et al. 2024; diffusers' too)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConsistency(WrappedParameterization):
    """The boundary of latent consistency models (Luo et al. 2023, eq. 9 and app. C) around another parameterization.

    x̂_0 = c_skip·x + c_out·inner,   c_skip = s²/(τ² + s²),   c_out = τ/√(τ² + s²),   s = ½,

    τ being ``scaling`` times the number of the time step, `Path.timestep_of`.
    """

    inner: Parameterization
    scaling: float = 10.0

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """c_skip·x + c_out·(the inner estimate)."""
        answer = self.inner.to_estimate(path, x, t, raw)
        tau = self.scaling * path.timestep_of(t)
        power = tau**2 + 0.25
        return answer.replace(clean=expand(0.25 / power, x) * x + expand(tau / scalars.sqrt(power), x) * answer.clean)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """The inner one's, the boundary left out: it differs from the identity by 10⁻⁶ at the second of 50 levels."""
        return self.inner.target(path, clean, noise, x, t)


def few_step_grids(scheduler: Any, path: AffinePath, *, gamma: float = GAMMA) -> Callable[[int | None], Grid] | None:
    """The grids of a scheduler of few-step models by their number of evaluations, or None for any other scheduler.

    * CMStochasticIterative, LCM and FlowMatchLCM: to the clean end from each of the scheduler's levels, and up again;
    * TCD (Zheng et al. 2024, algorithm 2): down to the time (1 − γ)·t′, rounded down to a step, and up to the next
      time t′. γ = 0 is deterministic, γ = 1 goes down to the first step of noise. It ends there, not at the clean end.

    Args:
        scheduler: a loaded scheduler of diffusers; it is not changed.
        path: that of `ornstein.interop.schedulers.from_scheduler_config`.
        gamma: γ in [0, 1], for TCD alone.

    Raises:
        ConfigError: γ outside [0, 1].
        GridError: when such a grid is made with a number of evaluations that the scheduler does not have.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ConfigError(f"gamma lies in [0, 1], got {gamma}: 0 is deterministic")
    name = type(scheduler).__name__
    if name not in _RULES:
        return None
    usual, rule = _RULES[name]

    def family(evaluations: int | None) -> Grid:
        count = usual if evaluations is None else evaluations
        own = _stepped(scheduler, count)
        return Grid(f"{name}({count})", lambda _: rule(own, path, gamma))

    return family


def _stepped(scheduler: Any, count: int) -> Any:
    own = copy.deepcopy(scheduler)
    if count < 1:
        raise GridError(f"{type(own).__name__} needs at least one evaluation, got {count}")
    try:
        own.set_timesteps(count)
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise GridError(f"{type(own).__name__} cannot make {count} evaluations: {_first(error)}") from None
    return own


def _multistep(levels: list[float], path: AffinePath) -> tuple[float, ...]:
    """Down from each level to the clean end; one at or below the path's floor adds no noise worth an evaluation."""
    clean, top = path.t_range
    kept = [min(level, top) for level in levels if level > path.t_min * (1.0 + 1e-6)]
    return tuple(time for level in kept for time in (level, clean))


def _sigmas(own: Any, path: AffinePath, gamma: float) -> tuple[float, ...]:
    del gamma
    return _multistep([float(sigma) for sigma in own.sigmas if sigma > 0.0], path)


def _numbers(own: Any, path: AffinePath, gamma: float) -> tuple[float, ...]:
    del gamma
    return _multistep([_time(own, k) for k in own.timesteps.tolist()], path)


def _trajectory(own: Any, path: AffinePath, gamma: float) -> tuple[float, ...]:
    del path
    numbers = own.timesteps.tolist()
    out = [_time(own, numbers[0])]
    for above, target in zip(numbers, [*numbers[1:], 0], strict=True):
        low = math.floor((1.0 - gamma) * target)
        if low < above:  # else the step has no length
            out.append(_time(own, low))
        if target > low:
            out.append(_time(own, target))
    return tuple(out)


def _time(own: Any, number: float) -> float:
    return (float(number) + 1.0) / len(own.alphas_cumprod)


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


_Rule = Callable[[Any, AffinePath, float], tuple[float, ...]]
_RULES: Mapping[str, tuple[int, _Rule]] = {
    "CMStochasticIterativeScheduler": (1, _sigmas),
    "LCMScheduler": (4, _numbers),
    "FlowMatchLCMScheduler": (4, _sigmas),
    "TCDScheduler": (4, _trajectory),
}
"""The usual number of evaluations, that of diffusers' pipelines, and the times."""

__all__ = ["GAMMA", "LatentConsistency", "few_step_grids"]
