"""What a call of `ornstein.sample` means: the sampler, its times, and the shape of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from . import checks, grids
from .denoisers import DenoiserLike, info_of
from .editing import below, time_of_strength
from .errors import GridError, UsageError
from .grids import Grid, GridLike, times_of
from .paths import PyramidPath
from .paths.base import Path
from .relay import through
from .samplers import DDIM, Sampler, auto, default_for, steps_for
from .samplers import sampler as sampler_named
from .samplers.auto import rule_for

GridT = TypeVar("GridT", Grid, GridLike)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan(checks.OneLine):
    """A resolved call: the sampler, its times, and the shape of one clean sample."""

    sampler: Sampler
    times: tuple[float, ...]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


def usual_steps(path: Path, steps: int | None) -> int:
    """The number of steps that was asked for, or 20; on a pyramid one a level.

    Raises:
        GridError: a pyramid and another number.
    """
    if not isinstance(path, PyramidPath):
        return 20 if steps is None else steps
    if steps not in {None, path.levels}:
        raise GridError(f"a pyramid takes one step a level, {path.levels} here, got {steps}: leave the number out")
    return path.levels


def resolve(
    model: DenoiserLike,
    sampler: str | Sampler | None,
    steps: int | None,
    evaluations: int | None,
    grid: GridLike | None,
    shape: Sequence[int] | None,
    dtype: torch.dtype = torch.float32,
    strength: float | None = None,
    *,
    family: Callable[[int], Grid] | None = None,
    resample: int = 1,
) -> SamplingPlan:
    """Turn the arguments of `sample` into values, refusing what does not fit together.

    With a ``strength`` the times begin at that noise level, and are as many below it as without. ``family`` are grids
    by their number of steps, instead of the model's or the path's; each step is taken ``resample`` times.

    Raises:
        UsageError: no shape is known, or more than one of steps, evaluations and grid is given.
        GridError: steps that the path does not have (see `usual_steps`).
    """
    _check_model(model)
    _check_choice(sampler, steps, evaluations, grid)
    info = info_of(model)
    event = info.shape if shape is None else checks.event(shape)
    if event is None:
        raise UsageError("the model does not know the shape of a sample: pass shape=(channels, height, width)")
    if sum(given is not None for given in (steps, evaluations, grid)) > 1:
        raise UsageError("give one of steps, evaluations and grid, not several")
    if sampler is None:
        sampler = default_for(model.path)
    top = None if strength is None else time_of_strength(model.path, strength)
    known = _Grids(
        path=model.path,
        own=info.grid,
        scale=info.data_std,
        family=family,
        top=top,
        resample=resample,
        nodes=info.handovers,
    )
    rule, chosen = _rule_and_grid(known, sampler, steps, evaluations, grid, math.prod(event))
    times = times_of(chosen, model.path)
    if len(times) < 2:
        raise GridError(f"a grid needs at least two times, got {list(times)}: for example [1.0, 0.5, 0.0]")
    return SamplingPlan(sampler=rule, times=times, shape=event, device=info.device, dtype=checks.precision(dtype))


def _check_model(model: Any) -> None:
    """Refuse what is no denoiser, with the likeliest remedy."""
    if isinstance(model, type):
        raise UsageError(f"the model is the class {model.__name__}, not an object: make one")
    if isinstance(model, nn.Module) and not hasattr(model, "path"):
        raise UsageError(
            f"the model is a bare network ({type(model).__name__}): wrap it, ornstein.Denoiser(network, path=…, "
            "predicts=…, shape=…)"
        )
    if not callable(model) or not isinstance(getattr(model, "path", None), Path):
        raise UsageError(
            f"the model must be a denoiser, such as ornstein.Denoiser or ornstein.load(…), got {checks.brief(model)}"
        )


def _check_choice(sampler: Any, steps: Any, evaluations: Any, grid: Any) -> None:
    if sampler is not None and not isinstance(sampler, str):
        if isinstance(sampler, type):
            raise UsageError(f"the sampler is the class {sampler.__name__}, not an object: write {sampler.__name__}()")
        if not callable(getattr(sampler, "step", None)):
            raise UsageError(f"the sampler must be a name or an object with a step, got {checks.brief(sampler)}")
    for name, value in (("steps", steps), ("evaluations", evaluations)):
        if value is not None:
            checks.whole(name, value, 1, GridError)
    if grid is not None and not isinstance(grid, Grid | str):
        if callable(grid):
            name = getattr(grid, "__name__", type(grid).__name__)
            raise GridError(f"the grid is the function {name}, which makes grids: write {name}(20)")
        checks.numbers("the grid", grid, GridError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grids:
    """The grids of a call by their number of steps: of the family, or else the model's own, or else the path's."""

    path: Path
    own: Callable[[int | None], Grid] | None
    scale: float | None
    family: Callable[[int], Grid] | None
    top: float | None
    resample: int
    nodes: tuple[float, ...] = ()

    def __call__(self, count: int | None) -> Grid:
        """The grid of so many steps below ``top``, through the nodes, each step taken ``resample`` times."""
        if self.family is None and self.own is not None:
            return self.climbing(self.own(count) if self.top is None else grids.partial(self.own(count), self.top))
        family = self.family or (lambda steps: grids.default(self.path, steps))
        steps = usual_steps(self.path, None) if count is None else count
        top, path = self.top, self.path
        rule = family if top is None else lambda few: below(family, few, top, path)
        return self.climbing(self.through(rule, steps))

    def through(self, family: Callable[[int], Grid], steps: int) -> Grid:
        """The grid of a family through the nodes."""
        return through(family, steps, self.nodes) if self.nodes else family(steps)

    def climbing(self, grid: GridT) -> GridT | Grid:
        """A grid with each of its steps taken ``resample`` times."""
        return grid if self.resample == 1 else grids.resample(grid, self.resample)

    def chosen(self, count: int | None, size: int) -> tuple[Sampler, Grid]:
        """What "auto" means for so many evaluations of samplers that need one a step."""
        if self.family is None and self.own is not None:
            return DDIM(), self(count)
        count = 20 if count is None else count
        if self.family is None and self.top is None:
            rule, _ = auto(self.path, count, size, self.scale)
            tuned = self.through(lambda few: auto(self.path, few, size, self.scale)[1], count)
            return rule, self.climbing(tuned)
        return rule_for(self.path, count, self.scale), self(count)


def _rule_and_grid(
    known: _Grids,
    sampler: str | Sampler,
    steps: int | None,
    evaluations: int | None,
    grid: GridLike | None,
    size: int,
) -> tuple[Sampler, GridLike]:
    """The sampler and the grid of a call."""
    path = known.path
    if grid is not None:
        grid = known.climbing(grid if known.top is None else grids.partial(grid, known.top))
        if sampler == "auto":
            return rule_for(path, len(times_of(grid, path)) - 1, known.scale), grid
        return sampler_named(sampler, import_paths=True), grid
    if sampler == "auto":
        return known.chosen(steps if evaluations is None else _shared(evaluations, known.resample), size)
    rule = sampler_named(sampler, import_paths=True)
    if evaluations is not None:
        return rule, steps_for(rule, path, evaluations, lambda _, count: known(count), known.nodes)
    if known.family is None and known.own is not None:
        return rule, known(steps)
    return rule, known(usual_steps(path, steps))


def _shared(evaluations: int, resample: int) -> int:
    """Evaluations for one descent: n steps taken K times cost n·K."""
    if evaluations < resample:
        raise UsageError(
            f"{evaluations} evaluations are not enough for one step taken {resample} times: give more of them"
        )
    return evaluations // resample


def skipped(request: SamplingPlan, steps: int) -> SamplingPlan:
    """The request without its first ``steps`` steps; `GridError` where none would be left."""
    return replace(request, times=grids.without_first(request.times, steps)) if steps else request
