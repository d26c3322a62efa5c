"""The randomized midpoint's parallel form, and denoisers asked at many times together."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import grids
from ornstein.cascade import Cascade
from ornstein.denoisers import CachedDenoiser, Denoiser, PredictsTimes, info_of, predict_times
from ornstein.errors import ConfigError, GridError, UsageError
from ornstein.lab.targets import M2
from ornstein.paths import VE, VP, AffinePath, Flow, ShiftedPath
from ornstein.randomness import Noise
from ornstein.samplers import RandomizedMidpoint, picard, plan, run, solve, staged
from ornstein.samplers.midpoint import Form

MIDDLE = RandomizedMidpoint(places="middle")
FORMS: tuple[Form, ...] = ("noise", "clean", "score")
TIMES = (0.9, 0.5, 0.2, 0.05)


def cells(path: AffinePath, count: int, first: float, last: float) -> tuple[float, ...]:
    """Equal steps of log-SNR between two σ̄."""
    return grids.span_log_snr(count, -2.0 * math.log(first), -2.0 * math.log(last))(path)


def pointwise(x: Tensor, time: Tensor, shift: Tensor | None = None) -> Tensor:
    """A network without rounding of its own: each row is treated alike whatever the batch."""
    out = 0.3 * x + 0.001 * time.to(x.dtype).reshape(-1, 1, 1, 1)
    return out if shift is None else out + shift.reshape(-1, 1, 1, 1)


PARAMETERIZATIONS = [
    (VP(), "noise"),
    (VP(), "v"),
    (VP(), "clean"),
    (VE(), "edm"),
    (Flow(), "velocity"),
    (VP.cosine(), "edm"),
]


@pytest.mark.parametrize(("path", "predicts"), PARAMETERIZATIONS, ids=lambda p: p if isinstance(p, str) else None)
def test_many_times_together_are_separate_calls(path: AffinePath, predicts: str) -> None:
    """Bit for bit, for every parameterization, with conditions of one row and of B rows, in one call."""
    x = Noise.of(1, range(12), dtype=torch.float64).normal("x", (2, 3, 3)).unflatten(0, (4, 3))
    calls: list[int] = []

    def network(x: Tensor, time: Tensor, shift: Tensor | None = None) -> Tensor:
        calls.append(len(x))
        return pointwise(x, time, shift)

    bare = Denoiser(network, path, predicts)
    for model in (
        bare,
        bare.with_condition({"shift": torch.ones(1)}),
        bare.with_condition({"shift": torch.tensor([0.1, 0.2, 0.3])}),
    ):
        calls.clear()
        together = model.predict_times(x, TIMES)
        assert calls == [12]
        for found, part, t in zip(together, x, TIMES, strict=True):
            assert torch.equal(found.clean, model(part, t).clean)
            assert found.t == t
    for a, b in zip(predict_times(CachedDenoiser(bare), x, TIMES), bare.predict_times(x, TIMES), strict=True):
        assert torch.equal(a.clean, b.clean)


def test_many_times_with_a_conditional_mean() -> None:
    """The path's own condition, one row a sample, stays with its sample."""
    path = ShiftedPath(shift=lambda clean, c, t: clean * c["gain"].reshape(-1, 1, 1, 1))
    model = Denoiser(lambda x, time, gain: 0.5 * x, path, "clean").with_condition(
        {"gain": torch.tensor([0.1, 0.4, 0.9])}
    )
    x = Noise.of(1, range(6)).normal("x", (1, 2, 2)).unflatten(0, (2, 3))
    for found, part, t in zip(model.predict_times(x, (0.7, 0.2)), x, (0.7, 0.2), strict=True):
        assert torch.equal(found.noise, model(part, t).noise)


def test_a_denoiser_without_the_method_is_asked_in_turn() -> None:
    model = M2().denoiser(VP())
    x = Noise.of(1, range(6), dtype=torch.float64).normal("x", (2,)).unflatten(0, (2, 3))
    assert not isinstance(model, PredictsTimes)
    for found, part, t in zip(predict_times(model, x, (0.7, 0.2)), x, (0.7, 0.2), strict=True):
        assert torch.equal(found.clean, model(part, t).clean)
    for asked in (model, Denoiser(pointwise, VP())):
        with pytest.raises(UsageError, match="3 times"):
            predict_times(asked, x, (0.7, 0.2, 0.1))
        with pytest.raises(UsageError, match="0 times"):
            predict_times(asked, x[:0], ())


@pytest.mark.parametrize("form", FORMS)
def test_as_many_sweeps_as_cells_give_the_sequential_result(form: Form) -> None:
    path, rule = VE(), RandomizedMidpoint(form)
    noise = Noise.of(3, range(4), dtype=torch.float64)
    model, x = M2().denoiser(path), noise.normal("prior", (2,)) * 2.0
    times = grids.rounds(cells(path, 16, 2.0, 2.0 * 0.05 ** (16 / 12)), 3)(path)
    sequential = run(solve(rule, path, x, times, noise), model)
    whole = picard(rule, model, x, times, noise, sweeps=8)
    torch.testing.assert_close(whole.x, sequential, rtol=1e-13, atol=1e-13)
    assert (whole.rounds, whole.sweeps) == (3 * (1 + 8), (8, 8, 8))
    assert whole.evaluations == 3 * (1 + 7 + sum(range(1, 8)))  # points that are exact are not asked again
    few = picard(rule, model, x, times, noise, sweeps=3)
    assert float((few.x - sequential).abs().max()) > 1e-8
    assert (few.rounds, few.evaluations) == (3 * (1 + 3), 3 * (1 + 7 + 7 + 6))
    assert picard(rule, model, x, times, noise, sweeps=99).rounds == whole.rounds


def test_one_sweep_freezes_the_first_state() -> None:
    """M = 1: every slope is asked at a copy of the state the round began with."""
    path, noise = VP(), Noise.of(3, range(4), dtype=torch.float64)
    model, x, times = M2().denoiser(path), noise.normal("prior", (2,)), cells(VP(), 6, 2.0, 0.3)
    asked = plan(MIDDLE, path, times)
    u = x / path.alpha(times[0])
    for i, t in enumerate(asked[1:]):
        u = u + model(x, t).noise * (path.sigma_bar(times[i + 1]) - path.sigma_bar(times[i]))
    u = u + model(x, asked[-1]).noise * (path.sigma_bar(times[6]) - path.sigma_bar(times[5]))
    found = picard(MIDDLE, model, x, times, noise, sweeps=1)
    torch.testing.assert_close(found.x, path.alpha(times[-1]) * u, rtol=1e-12, atol=1e-12)
    assert math.isinf(found.deviation)


@pytest.mark.parametrize("path", [VP(), Flow()], ids=["vp", "flow"])
def test_the_parallel_form_takes_the_same_jumps(path: AffinePath) -> None:
    noise = Noise.of(3, range(4), dtype=torch.float64)
    model, x = M2().denoiser(path), noise.normal("prior", (2,))
    times = grids.log_snr(7)(path)
    rule = RandomizedMidpoint()
    found = picard(rule, model, x, times, noise, sweeps=20)
    torch.testing.assert_close(found.x, run(solve(rule, path, x, times, noise), model), rtol=1e-12, atol=1e-12)


def test_every_sweep_is_one_call_of_the_network() -> None:
    """Conditions of one row or of B, and the count of rows in each call."""
    path, noise, calls = VP(), Noise.of(3, range(2), dtype=torch.float64), list[int]()
    x, times = noise.normal("prior", (1, 2, 2)), cells(VP(), 5, 2.0, 0.3)

    def network(x: Tensor, time: Tensor, shift: Tensor) -> Tensor:
        calls.append(len(x))
        return pointwise(x, time, shift)

    for shift in (torch.tensor([0.1]), torch.tensor([0.1, -0.4])):
        model = Denoiser(network, path, "noise").with_condition({"shift": shift})
        expected = run(solve(MIDDLE, path, x, times, noise), model)
        calls.clear()
        found = picard(MIDDLE, model, x, times, noise, 9)
        assert calls == [2, 8, 8, 6, 4, 2]
        assert (found.rounds, found.evaluations, found.together) == (6, 15, True)
        torch.testing.assert_close(found.x, expected, rtol=1e-12, atol=1e-12)


def test_sweeps_stop_at_the_tolerance() -> None:
    """The change of the last sweep is reported, bounds what is left, and ends the sweeps."""
    path, noise = VP(), Noise.of(3, range(64), dtype=torch.float64)
    model, x, times = M2().denoiser(path), noise.normal("prior", (2,)), cells(VP(), 32, 2.0, 0.3)
    sequential = run(solve(MIDDLE, path, x, times, noise), model)
    found = picard(MIDDLE, model, x, times, noise, 32, tolerance=1e-6)
    assert 3 < found.sweeps[0] < 16
    assert found.deviation == found.deviations[0] <= 1e-6
    assert 0.0 < float((found.x - sequential).square().mean().sqrt()) < found.deviation
    before = picard(MIDDLE, model, x, times, noise, found.sweeps[0] - 1)
    assert before.deviation > 1e-6
    same = picard(MIDDLE, model, x, times, noise, found.sweeps[0])
    assert torch.equal(same.x, found.x)
    assert same.deviation == found.deviation
    assert found.seconds > 0.0
    assert not found.together


def test_one_call_is_told_from_many() -> None:
    """A memo answers together only where the denoiser inside does; a staged parameterization never."""
    plain, exact = Denoiser(lambda x, time: 0.1 * x, VP()), M2().denoiser(VP())
    cascade = Denoiser(lambda x, time: x, VP.table(), Cascade())
    assert [info_of(d).times_together for d in (plain, CachedDenoiser(plain), exact, CachedDenoiser(exact))] == [
        True,
        True,
        False,
        False,
    ]
    assert not info_of(cascade).times_together
    assert not info_of(CachedDenoiser(CachedDenoiser(cascade))).times_together


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_staged_rounds_end_clean(path: AffinePath) -> None:
    times = staged(32, 4)(path)
    assert (times[0], times[-1]) == (path.t_range[1], path.t_range[0])
    assert min(times[:-1]) == pytest.approx(path.t_min)
    assert len(plan(MIDDLE, path, times)) == 33 - (path.alpha(path.t_range[1]) == 0.0)
    assert sum(s > t for t, s in pairwise(times)) == 3
    for cells_, count in ((32, 3), (0, 1), (8, 0), (4, 4)):
        with pytest.raises(GridError, match="multiple"):
            staged(cells_, count)


def test_refusals() -> None:
    model, x, noise = M2().denoiser(VP()), torch.zeros(1, 2), Noise.of(0, range(1))
    with pytest.raises(ConfigError, match="at least one sweep"):
        picard(MIDDLE, model, x, (0.5, 0.1), noise, 0)
    with pytest.raises(ConfigError, match="tolerance"):
        picard(MIDDLE, model, x, (0.5, 0.1), noise, 1, tolerance=-1.0)


def test_the_same_pictures_as_sample() -> None:
    """Same seed, sampler and grid: the noise and the drawn times are shared."""
    model = Denoiser(pointwise, VP(), "noise", shape=(1, 3, 3))
    rule, grid = RandomizedMidpoint("clean"), staged(16, 2)
    noise = Noise.of(7, range(3))
    found = picard(rule, model, model.path.prior(noise, (1, 3, 3)), grid(model.path), noise, sweeps=8)
    expected = orn.sample(model, 3, sampler=rule, grid=grid, seed=7)
    torch.testing.assert_close(found.x, expected, rtol=1e-4, atol=1e-5)
