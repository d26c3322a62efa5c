"""`auto` beside DPM-Solver++ 2M on the grid that `auto` takes: smooth, clustered and point targets of any scale.

The distance of a sample is the one to the exact end of the probability-flow ODE from the same start, over the data's
scale. A class of targets has the geometric mean over its targets of (mean distance + FLOOR): distances to points fall
below any bound, and one start of many that ends at another point is a matter of chance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import grids
from ornstein.lab.targets import MixtureTarget
from ornstein.paths import VE, VP, AffinePath
from ornstein.randomness import Noise
from ornstein.samplers import BlendedAdams, DPMSolver, Sampler, auto, run, solve

FLOOR = 0.01
CLASSES = {  # components, standard deviation of each, numbers
    "points": ((10, 0.0, 2), (10, 0.0, 3), (12, 0.0, 6)),
    "clusters": ((8, 0.05, 2), (8, 0.05, 8), (6, 0.05, 4)),
    "smooth": ((3, 0.5, 3), (2, 0.9, 2), (3, 0.5, 64)),
}
ROWS = 16


def target(components: int, std: float, numbers: int, scale: float, seed: int) -> MixtureTarget:
    """Equal components with random means; all together of standard deviation ``scale``."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(components, numbers, generator=draw, dtype=torch.float64)
    means = means - means.mean(0)
    means = means * math.sqrt(1.0 - std**2) / means.square().mean().sqrt()
    return MixtureTarget.of([1.0 / components] * components, scale * means, stds=[scale * std] * components)


def ends(goal: MixtureTarget, path: AffinePath, rule: Sampler, times: Sequence[float]) -> Tensor:
    noise = Noise.of(5, range(ROWS), dtype=torch.float64)
    start = goal.start(noise, path, path.t_range[1])
    return run(solve(rule, path, start, times, noise), goal.denoiser(path))


@cache
def exact(kind: str, index: int, seed: int, scale: float, path: AffinePath) -> tuple[MixtureTarget, Tensor]:
    """The target, and where its samples end: 160 steps in equal ratios of σ/α, the last from 1e-6 of the scale."""
    goal = target(*CLASSES[kind][index], scale, seed)
    top, low = max(path.log_snr(path.t_range[1]), -20.0), path.log_snr(path.t_min)
    inner = [path.time_of(top + (low - top) * i / 160) for i in range(1, 160)]
    times = (path.t_range[1], *inner, path.t_range[0])
    return goal, ends(goal, path, BlendedAdams(scale=scale, offset=1e-3 * scale), times)


def distance(
    kind: str, path: AffinePath, scale: float, count: int, seeds: Sequence[int], rule: Sampler | None
) -> float:
    """The geometric mean of a class, in units of the scale."""
    logs: list[float] = []
    for seed in seeds:
        for index, (_, _, numbers) in enumerate(CLASSES[kind]):
            goal, end = exact(kind, index, seed, scale, path)
            ours, grid = auto(path, count, numbers, scale)
            found = ends(goal, path, ours if rule is None else rule, grid(path))
            off = float((found - end).norm(dim=1).mean()) / (scale * math.sqrt(numbers))
            logs.append(math.log(off + FLOOR))
    return math.exp(sum(logs) / len(logs))


def check(path: AffinePath, scale: float, counts: Sequence[int], seeds: Sequence[int]) -> None:
    worse = {}
    for kind in CLASSES:
        for count in counts:
            ours = distance(kind, path, scale, count, seeds, None)
            theirs = distance(kind, path, scale, count, seeds, DPMSolver(points=2))
            if ours > 1.1 * theirs:
                worse[kind, count] = ours, theirs
    assert not worse


def exploding(scale: float) -> VE:
    """One path for data of every scale: its levels go from 80 times the scale down to 1e-6 of it."""
    return VE(sigma_min=1e-6 * scale, sigma_max=80.0 * scale)


def test_auto_is_no_worse_than_2m_on_its_own_grid() -> None:
    """At one scale: on these paths the others are the same but for a factor, see below."""
    check(exploding(1.0), 1.0, (1, 2, 5, 8, 12, 13, 14, 17, 25), (0, 1))


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


def test_more_evaluations_do_not_hurt_near_points() -> None:
    """Ten points in the plane: 13 evaluations were twenty times as far as 12."""
    path = exploding(1.0)
    errors = [distance("points", path, 1.0, count, (0, 1), None) for count in (8, 11, 13, 15, 20)]
    assert all(after < 1.05 * before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("corrector", [True, False])
def test_order_of_the_blended_rule(corrector: bool) -> None:
    """Second order between fixed levels, where the weights of the forms have settled."""
    path, goal = VP(), target(3, 0.5, 3, 1.0, 0)
    rule = BlendedAdams(corrector=corrector)

    def ended(steps: int, by: Sampler) -> Tensor:
        return ends_between(goal, path, by, steps)

    fine = ended(800, DPMSolver(points=3))
    few, many = (float((ended(steps, rule) - fine).norm(dim=1).median()) for steps in (48, 96))
    assert math.log2(few / many) > rule.order - 0.2


def ends_between(goal: MixtureTarget, path: AffinePath, rule: Sampler, steps: int) -> Tensor:
    """From log-SNR −2 to 4."""
    times = grids.span_log_snr(steps, -2.0, 4.0)(path)
    noise = Noise.of(5, range(ROWS), dtype=torch.float64)
    return run(solve(rule, path, goal.start(noise, path, times[0]), times, noise), goal.denoiser(path))
