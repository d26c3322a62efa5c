"""The loop itself: which neighbours a step sees, what is asked on the way up, and what the drivers show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.errors import GridError
from ornstein.estimates import Estimate
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise, NoiseSource
from ornstein.samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    Event,
    Heun,
    Problem,
    Query,
    RandomizedMidpoint,
    plan,
    run,
    solve,
    steps_for,
    stream,
)
from ornstein.samplers.base import Step

NOISE = Noise.of(3, range(2), dtype=torch.float64)


def test_steps_see_the_neighbours_of_their_own_descent() -> None:
    """(t, s, index, before, after): a turning point hides what lies behind it, on the way up as on the way down."""
    times = (5.0, 3.0, 1.0, 2.0, 4.0, 0.5, 0.2, 0.1, 0.15)
    found = [(s.t, s.s, s.index, s.before, s.after) for s in Problem(DDIM(), VE(), times).stretches()]
    assert found == [
        (5.0, 3.0, 0, None, 1.0),
        (3.0, 1.0, 1, 5.0, None),
        (1.0, 2.0, 2, None, 4.0),
        (2.0, 4.0, 3, 1.0, None),
        (4.0, 0.5, 4, None, 0.2),
        (0.5, 0.2, 5, 4.0, 0.1),
        (0.2, 0.1, 6, 0.5, None),
        (0.1, 0.15, 7, None, None),
    ]


def test_times_may_be_anything_that_is_a_number() -> None:
    problem = Problem(DDIM(), VE(), (3, 1))
    assert problem.times == (3.0, 1.0)
    assert all(type(t) is float for t in problem.times)
    with pytest.raises(GridError, match="at least two times, got 1"):
        Problem(DDIM(), VE(), (3,))
    assert len(Problem(DDIM(), VE(), (3.0, 1.0)).times) == 2


@dataclass
class Remembering:
    """A sampler that notes the memory it is given, and adds noise to nothing."""

    seen: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    order: float = 1
    needs: type[Any] = VE

    def step(self, path: Any, x: Tensor, step: Step, noise: NoiseSource, memory: dict[str, Any]) -> Any:
        self.seen.append((step.index, dict(memory)))
        memory[str(step.index)] = step.s
        yield from ()
        return x + step.s


def test_the_way_up_is_the_paths_own_and_clears_the_memory() -> None:
    """Noise under the key ("up", index); the sampler's memory lives for one descent."""
    rule, x = Remembering(), torch.zeros(2, 3, dtype=torch.float64)
    end = run(solve(rule, VE(), x, (5.0, 3.0, 1.0, 2.0, 0.5), NOISE), DDIM)  # type: ignore[arg-type]
    assert rule.seen == [(0, {}), (1, {"0": 3.0}), (3, {})]
    climbed = 4.0 + (2.0**2 - 1.0**2) ** 0.5 * NOISE.normal(("up", 2), (3,))
    torch.testing.assert_close(end, climbed + 0.5, rtol=1e-14, atol=1e-14)


class Asked:
    """Answers 2x as the clean sample, and notes the questions."""

    def __init__(self, path: Any) -> None:
        self.path, self.times = path, list[float]()

    def __call__(self, x: Tensor, t: float) -> Estimate:
        self.times.append(t)
        return Estimate(x, t, self.path, clean=2.0 * x)


def test_a_climb_asks_for_the_clean_sample_where_the_path_needs_it() -> None:
    """Once, at the start of the climb; from the clean end the state itself is the sample."""
    path = ShiftedPath(shift=lambda clean, cond, t: clean**2)
    x = torch.full((2, 3), 0.7, dtype=torch.float64)
    for low, asked in ((0.3, [0.3]), (0.0, [])):
        model = Asked(path)
        found = run(solve(DDIM(), path, x, (low, 0.6), NOISE), model)  # type: ignore[arg-type]
        clean = 2.0 * x if asked else x
        expected = path.renoise(x, low, 0.6, NOISE.normal(("up", 0), (3,)), clean)
        assert model.times == asked
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_a_climb_draws_noise_of_the_shape_above() -> None:
    path = PyramidPath(alphas=(0.9, 0.5, 0.8), sigmas=(0.1, 0.3, 0.4), factors=(1, 2, 1))
    x = NOISE.normal("start", (1, 4, 4))
    found = run(solve(Ancestral(), path, x, (1.0, 2.0), NOISE), Asked(path))  # type: ignore[arg-type]
    torch.testing.assert_close(found, path.renoise(x, 1.0, 2.0, NOISE.normal(("up", 0), (1, 2, 2))))


def test_events_count_questions_and_end_with_the_result() -> None:
    model, x = Asked(VE()), torch.ones(2, 3, dtype=torch.float64)
    events = list(stream(solve(Heun(), VE(), x, (2.0, 1.0, 0.5), NOISE), model))  # type: ignore[arg-type]
    assert [(e.evaluation, e.t, e.final) for e in events] == [
        (1, 2.0, False),
        (2, 1.0, False),
        (3, 1.0, False),
        (4, 0.5, False),
        (4, 0.5, True),
    ]
    assert events[0].estimate is not None
    assert torch.equal(events[0].estimate.clean, 2.0 * events[0].x)
    assert events[-1].estimate is None
    assert not any(e.x.requires_grad for e in events)
    (only,) = stream(solve(Heun(), VE(), x, (1.0, 2.0), NOISE), model)  # type: ignore[arg-type]
    assert only == Event(0, only.x, 0.0, None)


def test_drivers_keep_no_gradients() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Trained(Asked):
        def __call__(self, x: Tensor, t: float) -> Estimate:
            return Estimate(x, t, self.path, clean=weight * x)

    x, model = torch.ones(2, 3, dtype=torch.float64), Trained(VE())
    assert not run(solve(Heun(), VE(), x, (2.0, 1.0), NOISE), model).requires_grad  # type: ignore[arg-type]
    *_, last = stream(solve(Heun(), VE(), x, (2.0, 1.0), NOISE), model)  # type: ignore[arg-type]
    assert not last.x.requires_grad
    assert torch.is_grad_enabled()


def test_a_dry_run_draws_the_times_of_its_seed() -> None:
    """The default seed is 0; noise of any kind may be asked for; the state may change its shape."""
    rule, times = RandomizedMidpoint(), grids.span_log_snr(5, -2.0, 3.0)(VP())
    for seed in (0, 4):
        model = Asked(VP())
        run(solve(rule, VP(), torch.ones(1, 2, dtype=torch.float64), times, Noise.of(seed, range(1))), model)  # type: ignore[arg-type]
        assert plan(rule, VP(), times, seed) == model.times
    assert plan(rule, VP(), times) == plan(rule, VP(), times, 0) != plan(rule, VP(), times, 1)
    brownian = DPMSolver(stochastic=True, brownian=True)
    assert plan(brownian, VP(), times) == list(times[:-1])


class Forked:
    """A sampler that asks at times which a fork of the noise draws, one for the batch and one a sample."""

    order, needs = 1, Flow

    def step(self, path: Any, x: Tensor, step: Step, noise: NoiseSource, memory: dict[str, Any]) -> Any:
        own = noise.fork("own")
        for part in (own.uniform(step.index), float(own.uniform_per_sample(("rows", step.index))[0])):
            yield Query(x, step.s + part * (step.t - step.s))
        return x


def test_a_dry_run_forks_its_numbers_as_the_run_does() -> None:
    times, noise = (0.8, 0.3), Noise.of(9, range(1))
    parts = (noise.fork("own").uniform(0), float(noise.fork("own").uniform_per_sample(("rows", 0))[0]))
    assert plan(Forked(), Flow(), times, 9) == [0.3 + part * (0.8 - 0.3) for part in parts]  # type: ignore[arg-type]


def test_budgets() -> None:
    """The longest grid within the budget, of the family that is asked for."""
    assert [len(steps_for(Heun(), VE(), n)(VE())) - 1 for n in (1, 2, 3, 4, 5)] == [
        1,
        2,
        2,
        3,
        4,
    ]  # wide steps cost one

    def family(path: Any, steps: int) -> grids.Grid:
        return grids.uniform(2 * steps)

    assert len(steps_for(DDIM(), VE(), 7, family)(VE())) == 7
    with pytest.raises(GridError, match=r"Heun needs at least 3 evaluations here, got 2: raise it"):
        steps_for(Heun(), VE(), 2, family)
    with pytest.raises(GridError, match=r"DDIM needs at least 1 evaluation here, got 0"):
        steps_for(DDIM(), VE(), 0)
