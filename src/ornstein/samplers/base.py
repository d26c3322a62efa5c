"""The one sampling loop, and what a sampler is: a generator that requests estimates.

A sampler yields `Query(x, t)`, is sent an `Estimate`, may do so any number of times at any time, and returns the state
at the end of its step. The same body is driven by `run`, seen by `stream`, dry-run by `plan`, or stepped by hand:

    steps = solve(sampler, path, x, times, noise)
    query = next(steps)
    while True:
        query = steps.send(denoiser(query.x, query.t))     # StopIteration.value is the final state
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import checks, grids
from ..denoisers import DenoiserLike
from ..errors import GridError, PathError, UsageError
from ..estimates import Estimate
from ..paths.base import AffinePath, LocationPath, Path
from ..paths.times import is_above, normalised
from ..randomness import Key, Noise, NoiseSource
from ..scalars import StepTime
from ..typed import typed

Memory = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stretch of a grid, from time t to time s (s < t denoises).

    ``index`` keys the noise of the step; ``before`` and ``after`` are the neighbouring times of the same descent, for
    methods that look around.
    """

    t: float
    s: float
    index: int
    before: float | None = None
    after: float | None = None


class Query(NamedTuple):
    """A request to evaluate the denoiser at the state x (B, *event) and time t."""

    x: Tensor
    t: float


Steps = Generator[Query, Estimate, Tensor]


class Sampler(Protocol):
    """One update rule. ``order`` is its global order of convergence, ``needs`` the kind of path it works on."""

    @property
    def order(self) -> float:
        """Global order: the error of n steps between fixed noise levels falls like n^(−order).

        Of a sampler that draws its times, the order given these times.
        """
        ...

    @property
    def needs(self) -> type[Any]:
        """`Path`, `LocationPath` or `AffinePath`."""
        ...

    def step(self, path: Any, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Yield queries, then return the state at step.s; ``memory`` is the loop's, and empty after every climb."""
        ...


class Event(NamedTuple):
    """One evaluation as `stream` shows it; the last event has ``estimate=None`` and the final state in ``x``."""

    evaluation: int
    x: Tensor
    t: float
    estimate: Estimate | None

    @property
    def final(self) -> bool:
        """Whether x is the result."""
        return self.estimate is None

    def __repr__(self) -> str:
        return checks.one_line(self, self._asdict())


@dataclass(frozen=True, slots=True)
class Problem(checks.OneLine):
    """A sampler, a path and a list of times that fit each other; refused at construction where they do not.

    At ``handovers``, the times at which another network takes over (`ornstein.Relay`), a descent begins anew: the first
    step at or below one has no neighbour before it and an empty memory, for what was remembered is of another network.
    The times of its queries are `ornstein.scalars.StepTime`, so that one network makes all evaluations of a step.

    Raises:
        PathError: the sampler needs a method that this kind of path does not have.
        GridError: fewer than two different times, no number, or a time outside the path's `t_range`.
    """

    sampler: Sampler
    path: Path
    times: tuple[float, ...]
    handovers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", normalised(self.times, self.path))
        _check_path(self.sampler, self.path)
        if len(self.times) < 2:
            raise GridError(
                f"a grid needs at least two times, got {len(self.times)}: start and end, not {list(self.times)}"
            )

    def stretches(self) -> Iterator[Step]:
        """The steps; neighbours never reach across a turning point, nor back over a hand-over."""
        times = self.times
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            down = s < t
            before = times[i - 1] if i > 0 and (times[i - 1] > t) == down else None
            before = None if before is not None and down and self._handed_over(before, t) else before
            after = times[i + 2] if i + 2 < len(times) and (times[i + 2] < s) == down else None
            yield Step(t=t, s=s, index=i, before=before, after=after)

    def steps(self, x: Tensor, noise: NoiseSource) -> Steps:
        """The only loop. Upward steps re-noise and clear the solver's memory.

        The state keeps its precision; estimates may be wider (the quotient x̂_0 of a noise prediction in float16).
        """
        memory: Memory = {}
        dtype = x.dtype
        for step in self.stretches():
            if step.s < step.t:
                memory = {} if step.before is None else memory
                asked = self.sampler.step(self.path, x, step, noise, memory)
                x = (yield from (_of_step(asked, step.t) if self.handovers else asked)).to(dtype)
                continue
            memory = {}
            clean: Tensor | None = None
            if self.path.renoise_needs_clean:
                clean = x if step.t == self.path.t_range[0] else (yield Query(x, step.t)).clean
            z = noise.normal(("up", step.index), self.path.state_shape(x.shape[1:], step.s, at=step.t))
            x = self.path.renoise(x, step.t, step.s, z, clean).to(dtype)
        return x

    def _handed_over(self, before: float, t: float) -> bool:
        """Whether the step at t is the first one at or below a hand-over."""
        return any(is_above(before, at, self.path) and not is_above(t, at, self.path) for at in self.handovers)


def _of_step(steps: Steps, began: float) -> Steps:
    """The same queries, whose times know where their step began."""
    try:
        query = next(steps)
        while True:
            query = steps.send((yield Query(query.x, StepTime(query.t, began))))
    except StopIteration as stop:
        return stop.value


def _check_path(sampler: Sampler, path: Path) -> None:
    if isinstance(path, sampler.needs):
        return
    missing = {LocationPath: "mean(x_0, t) and std(t)", AffinePath: "alpha(t), sigma(t) and log_snr(t)"}
    raise PathError(
        f"{type(sampler).__name__} needs {missing.get(sampler.needs, sampler.needs.__name__)}, which "
        f"{type(path).__name__} does not have: use the Ancestral sampler"
    )


@typed(UsageError)
def solve(
    sampler: Sampler,
    path: Path,
    x: Tensor,
    times: Sequence[float],
    noise: NoiseSource,
    handovers: Sequence[float] = (),
) -> Steps:
    """The queries of ``sampler`` from state x at times[0] to times[-1]; arguments are checked before the first.

    ``handovers`` are those of the denoiser, ``info_of(denoiser).handovers``: see `Problem`.

    Raises:
        UsageError: x is no dense tensor of finite real numbers with a dimension of samples.
    """
    checks.state("x", x)
    return Problem(sampler, path, tuple(times), tuple(handovers)).steps(x, noise)


def stream(steps: Steps, denoiser: DenoiserLike) -> Iterator[Event]:
    """Drive ``steps``, showing every evaluation; the last event carries the result. Runs under ``no_grad``."""
    count, answer, query = 0, None, None
    while True:
        try:
            with torch.no_grad():
                query = next(steps) if answer is None else steps.send(answer)
                answer = denoiser(query.x, query.t)
        except StopIteration as stop:
            yield Event(count, stop.value, 0.0 if query is None else query.t, None)
            return
        count += 1
        yield Event(count, query.x, query.t, answer)


def run(steps: Steps, denoiser: DenoiserLike) -> Tensor:
    """Drive ``steps`` to the end and return the final state. Runs under ``no_grad``."""
    with torch.no_grad():
        try:
            query = next(steps)
            while True:
                query = steps.send(denoiser(query.x, query.t))
        except StopIteration as stop:
            return stop.value


@typed(UsageError)
def plan(
    sampler: Sampler, path: Path, times: Sequence[float], seed: int = 0, handovers: Sequence[float] = ()
) -> list[float]:
    """Times at which ``sampler`` evaluates the denoiser, from a dry run on an empty state.

    ``seed`` matters only to samplers that draw their times. Not defined for samplers whose queries depend on the
    estimates.
    """
    shape = (1, 64, 64)
    noise = SilentNoise(Noise.of(seed, range(1)))
    problem = Problem(sampler, path, tuple(times), tuple(handovers))
    steps = problem.steps(torch.zeros(1, *path.state_shape(shape, problem.times[0])), noise)
    found: list[float] = []
    try:
        query = next(steps)
        while True:
            found.append(query.t)
            clean = torch.zeros(1, *path.state_shape(query.x.shape[1:], path.t_range[0], at=query.t))
            extras = {"variance": torch.zeros_like(query.x)}  # for samplers that read the second head
            query = steps.send(Estimate(query.x, query.t, path, clean=clean, extras=extras))
    except StopIteration:
        return found


@typed(UsageError)
def steps_for(
    sampler: Sampler,
    path: Path,
    evaluations: int,
    family: Callable[[Path, int], grids.Grid] = grids.default,
    handovers: Sequence[float] = (),
) -> grids.Grid:
    """The longest grid of ``family`` on which ``sampler`` needs at most ``evaluations`` evaluations.

    It makes samplers comparable at equal cost: Heun takes twelve steps for 23 evaluations, if its grid ends at σ = 0.

    Raises:
        GridError: even the shortest grid costs more.
    """

    def evaluations_of(steps: int) -> int:
        return len(plan(sampler, path, family(path, steps)(path), handovers=handovers))

    # Every step costs at least one evaluation, and longer grids never cost less.
    steps = bisect.bisect_right(range(1, evaluations + 1), evaluations, key=evaluations_of)
    if steps == 0:
        least = evaluations_of(1)
        raise GridError(
            f"{type(sampler).__name__} needs at least {least} evaluation{'s' * (least > 1)} here, "
            f"got {evaluations}: raise it"
        )
    return family(path, steps)


@dataclass(frozen=True, slots=True)
class SilentNoise:
    """A noise source for dry runs: no normal numbers, the true host numbers."""

    source: Noise

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Zeros."""
        del key
        return torch.zeros(1, *event)

    def uniform(self, key: Key) -> float:
        """The source's."""
        return self.source.uniform(key)

    def uniform_per_sample(self, key: Key) -> Tensor:
        """The source's."""
        return self.source.uniform_per_sample(key)

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """Zeros."""
        del key, t0, t1
        return torch.zeros(1, *event)

    def fork(self, name: str) -> SilentNoise:
        """A silent one of the forked source."""
        return SilentNoise(self.source.fork(name))
