"""`auto` beside DPM-Solver++ 2M on the grid that `auto` takes: smooth, clustered and point targets of any scale.

The targets, their exact ends and the ratio of two errors are those of benchmarks/practice_sweep.py.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import grids
from ornstein.lab.targets import MixtureTarget
from ornstein.paths import VE, VP, AffinePath
from ornstein.randomness import Noise
from ornstein.samplers import BlendedAdams, DPMSolver, Sampler, auto, run, solve

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS = 16


@pytest.fixture(scope="module")
def sweep() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("practice_sweep")


def worst_ratios(sweep: Any, stack: Any, path: str, scale: float, counts: Sequence[int]) -> dict[int, float]:
    """Count → the greatest ratio of `auto` to 2M over the kinds of target, whose errors are means over dimensions."""
    (problem,) = sweep.problems(stack, [path], [scale])
    out: dict[int, float] = {}
    for count in counts:
        errors = problem.compared(count, usual=False)

        def mean(rule: str, kind: str, errors: dict[str, Any] = errors) -> float:
            found = [value for (own, _), value in errors[rule].items() if own == kind]
            return sum(found) / len(found)

        out[count] = max(sweep.ratio(mean("auto", kind), mean("2M, the grid of auto", kind)) for kind in stack.kinds)
    return out


@pytest.mark.parametrize(("path", "scale"), [("vp", 1.0), ("vp", 0.1), ("ve", 10.0), ("flow", 1.0)])
def test_auto_is_no_worse_than_2m_on_its_own_grid(sweep: Any, path: str, scale: float) -> None:
    stack = sweep.Stack(seeds=2, rows=32)
    found = worst_ratios(sweep, stack, path, scale, (1, 2, 3, 4, 5, 6, 8, 10, 13, 17))
    assert {count: worst for count, worst in found.items() if worst > 1.02} == {}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
def test_auto_is_no_worse_than_2m_at_any_count(sweep: Any, path: str, scale: float) -> None:
    found = worst_ratios(sweep, sweep.Stack(seeds=4, rows=48), path, scale, range(1, 101))
    assert {count: worst for count, worst in found.items() if worst > 1.02} == {}


def exploding(scale: float) -> VE:
    """One path for data of every scale: its levels go from 80 times the scale down to 1e-6 of it."""
    return VE(sigma_min=1e-6 * scale, sigma_max=80.0 * scale)


@pytest.mark.parametrize("count", [1, 3, 8, 13, 20, 40])
def test_samples_follow_the_scale_of_the_data(count: int) -> None:
    """Data times s on levels times s: samples times s, through `ornstein.sample`."""

    def samples(scale: float) -> Tensor:
        path = exploding(scale)
        return orn.sample(
            orn.Denoiser(
                lambda x, time: scale * torch.tanh(x / scale), path=path, predicts="clean", shape=(3,), data_std=scale
            ),
            4,
            sampler="auto",
            evaluations=count,
            dtype=torch.float64,
        )

    torch.testing.assert_close(samples(8.0) / 8.0, samples(1.0), rtol=1e-9, atol=1e-9)


@cache
def points(seed: int) -> MixtureTarget:
    """Ten random points in the plane, of scale one."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(10, 2, generator=draw, dtype=torch.float64)
    means = means - means.mean(0)
    return MixtureTarget.of([0.1] * 10, means / means.square().mean().sqrt(), stds=[0.0] * 10)


def ends(goal: MixtureTarget, path: AffinePath, rule: Sampler, times: Sequence[float]) -> Tensor:
    noise = Noise.of(5, range(ROWS), dtype=torch.float64)
    return run(solve(rule, path, goal.start(noise, path, times[0]), times, noise), goal.denoiser(path))


def test_more_evaluations_do_not_hurt_near_points(sweep: Any) -> None:
    """On ten points in the plane 13 were twenty times as far as 12. Here the mean over 1, 2 and 8 dimensions."""
    (problem,) = sweep.problems(sweep.Stack(kinds=("points",)), ["ve"], [1.0])

    def error(count: int) -> float:
        rule, grid = auto(problem.path, count)
        found = problem.errors(rule, grid(problem.path))
        return sum(found.values()) / len(found) + sweep.FLOOR

    errors = [error(count) for count in (8, 10, 12, 13, 15, 20)]
    assert all(after < 1.05 * before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("corrector", [True, False])
def test_order_of_the_blended_rule(corrector: bool) -> None:
    """Second order between fixed levels, where the weights of the forms have settled."""
    path, rule = VP(), BlendedAdams(corrector=corrector)
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    goal = MixtureTarget.of([1.0 / 3.0] * 3, means, stds=[0.5] * 3)

    def ended(steps: int, by: Sampler) -> Tensor:
        return ends(goal, path, by, grids.span_log_snr(steps, -2.0, 4.0)(path))

    fine = ended(800, DPMSolver(points=3))
    few, many = (float((ended(steps, rule) - fine).norm(dim=1).median()) for steps in (48, 96))
    assert math.log2(few / many) > rule.order - 0.2


def test_a_step_far_longer_than_the_last_does_not_extrapolate() -> None:
    """Levels crowd above the floor of a path, and the last step goes from there to zero: it overshot there."""
    path = VE(sigma_min=0.1, sigma_max=80.0)
    times = grids.log_snr(60)(path)
    goal = points(0)
    exact = ends(goal, exploding(1.0), BlendedAdams(offset=1e-3), (*grids.log_snr(160)(exploding(1.0)),))
    ours, theirs = (
        float((ends(goal, path, rule, times) - exact).norm(dim=1).mean())
        for rule in (BlendedAdams(), DPMSolver(points=2))
    )
    assert ours < 1.02 * theirs
