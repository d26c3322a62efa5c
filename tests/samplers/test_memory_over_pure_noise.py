"""What multistep rules keep of a first question at pure noise, and the parallel form's numbers, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.lab.targets import M2
from ornstein.paths import VE, Flow
from ornstein.randomness import Key, Noise
from ornstein.samplers import (
    DEIS,
    DPMSolver,
    RandomizedMidpoint,
    Sampler,
    SASolver,
    TrigFlowAdams,
    UniPC,
    picard,
    run,
    solve,
)

PATH = Flow()
TIMES = (1.0, 0.8, 0.65, 0.5, 0.42)
NOISE = Noise.of(5, range(6), dtype=torch.float64)
MODEL = M2().denoiser(PATH)


class Known:
    """The same noise in every step, whatever its key."""

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        return torch.full((1, *event), 0.7, dtype=torch.float64)


def ended(rule: Sampler, x: Tensor, times: Sequence[float]) -> Tensor:
    return run(solve(rule, PATH, x, times, Known()), MODEL)  # type: ignore[arg-type]


FORGETFUL = [
    DPMSolver(),
    DPMSolver(points=3),
    DPMSolver(points=3, start="plain"),
    DPMSolver(points=3, stochastic=True),
    SASolver(),
    SASolver(predictor=2, corrector=0),
    TrigFlowAdams(),
    TrigFlowAdams(corrector=False),
    DEIS(variable="sigma"),
    DEIS(points=2, variable="log-sigma"),
]


@pytest.mark.parametrize("rule", FORGETFUL, ids=repr)
def test_the_rest_of_a_run_from_pure_noise_is_a_run_of_its_own(rule: Sampler) -> None:
    """No polynomial reaches to an infinite λ or σ̄: neither the answer there nor the step is kept."""
    x = NOISE.normal("prior", (2,))
    middle = ended(rule, x, TIMES[:2])
    torch.testing.assert_close(ended(rule, x, TIMES), ended(rule, middle, TIMES[1:]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variable", ["time", "gain"])
def test_a_finite_place_of_pure_noise_is_kept(variable: str) -> None:
    """Time and ᾱ are finite there: the second step extrapolates from it, u' = u + ∫ ẑ dσ̄ by quadrature."""
    x, (_, t, s) = NOISE.normal("prior", (2,)), TIMES[:3]
    first = MODEL(x, 1.0)
    at = PATH.alpha(t) * first.clean + PATH.sigma(t) * x
    second = MODEL(at, t)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    bar, after = t / (1.0 - t), s / (1.0 - s)
    bars = bar + 0.5 * (nodes + 1.0) * (after - bar)
    time = variable == "time"
    here = bars / (1.0 + bars) if time else 1.0 / (1.0 + bars**2)
    old, new = (1.0, t) if time else (0.0, 1.0 / (1.0 + bar**2))
    parts = 0.5 * (after - bar) * weights
    keep, share = (float(parts @ ((here - a) / (b - a))) for a, b in ((old, new), (new, old)))
    expected = (1.0 - s) * (at / (1.0 - t) + keep * second.noise + share * first.noise)
    found = ended(DEIS(points=2, variable=variable), x, TIMES[:3])  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2])
def test_the_correction_of_a_step_from_pure_noise_is_the_trapezium(p: int, variant: str) -> None:
    """x_s = σ_s·x + α_s·½(D_0 + D_1), from which the next step goes on with D_1 alone."""
    x, (_, t, s) = NOISE.normal("prior", (2,)), TIMES[:3]
    first = MODEL(x, 1.0).clean
    second = MODEL((1.0 - t) * first + t * x, t).clean
    corrected = t * x + (1.0 - t) * 0.5 * (first + second)
    shrink = s / (1.0 - s) / (t / (1.0 - t))  # e^{−h}
    expected = s / t * corrected + (1.0 - s) * (1.0 - shrink) * second
    found = ended(UniPC(p=p, variant=variant), x, TIMES[:3])  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- parallel form


MIDDLE = RandomizedMidpoint(places="middle")
BARS = (4.0, 2.0, 1.1, 0.5, 0.3)


def test_the_first_sweep_asks_at_the_first_state_in_the_scale_of_each_level() -> None:
    """On the exploding path x grows like √(1 + σ²): the first states are x times the ratio of these."""
    path, model = VE(), M2().denoiser(VE())
    x = 4.0 * NOISE.normal("prior", (2,))
    u = x
    inner = [0.5 * (a + b) for a, b in pairwise(BARS[:-1])]
    for bar, (a, b) in zip(inner, pairwise(BARS[:-1]), strict=True):
        u = u + (b - a) * model(x * math.sqrt((1.0 + bar**2) / 17.0), bar).noise
    u = u + (BARS[-1] - BARS[-2]) * model(x * math.sqrt((1.0 + inner[-1] ** 2) / 17.0), inner[-1]).noise
    found = picard(MIDDLE, model, x, BARS, NOISE, 1)
    torch.testing.assert_close(found.x, u, rtol=1e-12, atol=1e-12)
    assert found.x.dtype == torch.float64
    assert path.alpha(1.0) == 1.0


def test_the_deviation_is_how_far_the_last_sweep_moved_the_end() -> None:
    """Root mean square over batch and numbers, in units of √(α² + σ²) at the end; the largest of the descents."""
    model, x = M2().denoiser(VE()), 4.0 * NOISE.normal("prior", (2,))
    runs = [picard(MIDDLE, model, x, BARS, NOISE, sweeps) for sweeps in (1, 2, 3)]
    moved = float((runs[2].x - runs[1].x).square().mean().sqrt()) / math.sqrt(1.0 + BARS[-1] ** 2)
    assert runs[2].deviations == (pytest.approx(moved, rel=1e-10),)
    assert runs[0].deviations == (math.inf,)
    times = (*BARS, 1.5, 0.8, 0.4, 0.2)
    twice = picard(MIDDLE, model, x, times, NOISE, 3)
    assert len(twice.deviations) == 2
    assert twice.deviation == max(twice.deviations)
    assert twice.sweeps == (3, 3)


def test_rounds_and_evaluations_with_jumps_at_both_ends() -> None:
    """One question each for the jumps; between them five cells with four inner questions, 4 + 4 + 3 + 2 + 1 of them."""
    x, times = NOISE.normal("prior", (2,)), grids.log_snr(7)(PATH)
    found = picard(MIDDLE, MODEL, x, times, NOISE, 20)
    assert (found.rounds, found.evaluations, found.sweeps) == (1 + 5 + 1, 1 + 14 + 1, (5,))
    # The paper's form has no slope at pure noise: the descent asks at its own start, too.
    found = picard(RandomizedMidpoint("score", "middle"), MODEL, x, times, NOISE, 20)
    assert (found.rounds, found.evaluations, found.sweeps) == (1 + 1 + 5 + 1, 1 + 1 + 14 + 1, (5,))
    nothing = picard(MIDDLE, MODEL, x, (1.0, 0.5), NOISE, 3)
    assert (nothing.rounds, nothing.evaluations, nothing.deviations, nothing.deviation) == (1, 1, (), 0.0)

    alone = picard(MIDDLE, MODEL, x, (0.8, 0.6), NOISE, 2)
    assert (alone.sweeps, alone.deviations) == ((0,), (0.0,)), "one cell has no inner point that a sweep could move"


def test_the_parallel_form_keeps_no_gradients() -> None:
    x = NOISE.normal("prior", (2,)).requires_grad_()
    assert not picard(MIDDLE, MODEL, x, (0.8, 0.6, 0.5), NOISE, 2).x.requires_grad
