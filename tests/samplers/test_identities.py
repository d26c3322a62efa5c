"""Identities between samplers, and the laws of their noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.estimates import Estimate
from ornstein.lab.meters import gaussian_law
from ornstein.lab.targets import G8, M2, GaussianTarget
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    DPMSolver2S,
    Euler,
    Heun,
    Sampler,
    UniPC,
    run,
    sampler,
    solve,
)
from ornstein.samplers.exponential import moments, quadrature

STOCHASTIC = ["ancestral", "ddim-eta1", "dpmpp-1-sde", "dpmpp-2m-sde", "dpmpp-2s-sde", "dpmpp-3m-sde"]
PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}


def end(method: Sampler, path: AffinePath, times: tuple[float, ...], rows: int = 16) -> Tensor:
    noise = Noise.of(5, range(rows), dtype=torch.float64)
    x = noise.normal("prior", (2,)) * path.sigma(times[0])
    return run(solve(method, path, x, times, noise), M2().denoiser(path))


SAME: list[tuple[Sampler, Sampler]] = [
    (DPMSolver(points=1), DDIM()),
    (DPMSolver(points=1, stochastic=True), DDIM(1.0)),
    (DDIM(1.0), Ancestral()),
    (UniPC(p=1, corrector=False), DDIM()),
    (UniPC(p=2, corrector=False, lower_final=False), DPMSolver(points=2)),
    (UniPC(p=3, corrector=False, lower_final=False, start="plain"), DPMSolver(points=3, start="plain")),
]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda value: repr(value)[:24])
def test_different_bodies_same_rule(one: Sampler, other: Sampler, path: AffinePath) -> None:
    times = grids.log_snr(16)(path)
    scale = path.sigma(times[0])
    gap = float((end(one, path, times) - end(other, path, times)).abs().max())
    assert gap < 1e-12 * max(scale, 1.0)


@pytest.mark.parametrize("path", [VE(), Flow()], ids=["ve", "flow"])
def test_euler_is_ddim_where_the_path_is_straight(path: AffinePath) -> None:
    times = grids.log_snr(12, start=path.time_of(-6.0))(path)
    assert float((end(Euler(), path, times) - end(DDIM(), path, times)).abs().max()) < 1e-10


def test_moments_and_quadrature_against_numerical_integrals() -> None:
    theta, weight = np.polynomial.legendre.leggauss(60)
    theta, weight = 0.5 * (theta + 1.0), 0.5 * weight
    for y in (1e-9, 1e-3, 0.3, 0.999, 1.0, 3.0, 12.0):
        for j, found in enumerate(moments(y, 4)):
            assert found == pytest.approx(float((weight * y * np.exp(-y * (1 - theta)) * theta**j).sum()), rel=1e-13)
        nodes = [0.0, -0.7, -1.9, 1.0]
        weights = quadrature(y, nodes)
        for j, exact in enumerate(moments(y, 4)):
            scale = sum(abs(w * n**j) for w, n in zip(weights, nodes, strict=True))
            assert sum(w * n**j for w, n in zip(weights, nodes, strict=True)) == pytest.approx(exact, abs=1e-13 * scale)
    assert moments(math.inf, 4) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("points", [1, 2, 3])
def test_extrapolation_is_exact_for_polynomials_in_lambda(points: int, path: AffinePath) -> None:
    """An estimate that is a polynomial of degree points − 1 in λ is integrated without error."""

    class Polynomial:
        def __init__(self) -> None:
            self.path = path

        def __call__(self, x: Tensor, t: float) -> Estimate:
            return Estimate(x, t, path, clean=torch.full_like(x, (0.5 * path.log_snr(t)) ** (points - 1)))

    x = torch.ones(1, 1, dtype=torch.float64)
    noise = Noise.of(0, range(1))

    def go(steps: int) -> float:
        times = grids.span_log_snr(steps, 0.0, 3.0)(path)
        method = UniPC(p=points, corrector=True)  # type: ignore[arg-type]
        return float(run(solve(method, path, x, times, noise), Polynomial()))  # type: ignore[arg-type]

    if points != 2:  # the simplified weight of two nodes is not exact, only of the right order
        assert go(4) == pytest.approx(go(40), rel=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_marginal_law_is_kept_where_the_estimate_carries_no_information(name: str, path: AffinePath) -> None:
    """For point data every rule is exact at any number of steps: x_s is a point plus noise of std σ_s."""
    target = GaussianTarget([0.7, -1.0], [0.0, 0.0])
    times = (path.time_of(-6.0), path.time_of(-1.0), path.time_of(0.5), path.time_of(3.0))
    found, law = gaussian_law(sampler(name), target, path, times), target.law(path, times[-1])
    torch.testing.assert_close(found.mean, law.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, law.variance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_marginal_variance_of_gaussians_is_kept_as_steps_shrink(name: str) -> None:
    path = VP()
    times = grids.span_log_snr(400, -8.0, 6.0)(path)
    found, law = gaussian_law(sampler(name), G8(), path, times), G8().law(path, times[-1])
    assert float((found.variance / law.variance - 1.0).abs().max()) < (0.05 if sampler(name).order == 1 else 1e-3)


def test_learned_variance_lies_between_small_and_large() -> None:
    path, times = VP(), grids.log_snr(6)(VP())

    class Headed:
        def __init__(self, value: float) -> None:
            self.path, self.value = path, value

        def __call__(self, x: Tensor, t: float) -> Estimate:
            return Estimate(x, t, path, clean=torch.tanh(x), extras={"variance": torch.full_like(x, self.value)})

    noise = Noise.of(1, range(3), dtype=torch.float64)
    x = noise.normal("prior", (4,))

    def go(variance: str, value: float) -> Tensor:
        return run(solve(Ancestral(variance), path, x, times, noise), Headed(value))  # type: ignore[arg-type]

    torch.testing.assert_close(go("learned", -1.0), go("small", 0.0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(go("learned", 1.0), go("large", 0.0), rtol=1e-12, atol=1e-12)


BROWNIAN = [
    (VP(), DPMSolver(stochastic=True, brownian=True)),
    (VE(), DPMSolver2S(stochastic=True, brownian=True)),
    (Flow(), DPMSolver(stochastic=True, brownian=True)),
]


@pytest.mark.parametrize(("path", "method"), BROWNIAN, ids=["vp-2m", "ve-2s", "flow-2m"])
def test_one_brownian_path_leads_to_one_image(path: AffinePath, method: Sampler) -> None:
    """Refining the grid converges path by path; with noise keyed by steps it does not."""

    def at(tested: Sampler, steps: int) -> Tensor:
        times = grids.span_log_snr(steps, -4.0, 4.0)(path)
        return end(tested, path, times, rows=4)

    fine = at(method, 96)
    gaps = [float((at(method, n) - fine).abs().median()) for n in (12, 48)]
    assert gaps[1] < 0.5 * gaps[0] < 0.1
    keyed = DPMSolver(stochastic=True)
    assert float((at(keyed, 48) - at(keyed, 96)).abs().median()) > 4.0 * gaps[1]


MULTISTEP = [DPMSolver(), DPMSolver(points=3), DPMSolver(stochastic=True), UniPC(p=3)]


@pytest.mark.parametrize("method", MULTISTEP, ids=["2m", "3m", "2m-sde", "unipc-3"])
def test_memory_is_dropped_on_the_way_up(method: Sampler) -> None:
    """After a climb the sampler behaves as at a fresh start from the same state."""
    path, noise = VE(), Noise.of(2, range(4), dtype=torch.float64)
    model, x = M2().denoiser(path), noise.normal("prior", (2,)) * 5.0
    down, up, last = (5.0, 3.0, 1.0), 2.0, 0.5
    middle = run(solve(method, path, x, down, noise), model)
    z = noise.normal(("up", len(down) - 1), (2,))
    climbed = path.renoise(middle, down[-1], up, z)
    whole = run(solve(method, path, x, (*down, up, last), noise), model)

    class Shifted:
        """The same noise at the later steps' keys."""

        def normal(self, key: int | tuple[str, int], event: tuple[int, ...]) -> Tensor:
            return noise.normal(key + 3 if isinstance(key, int) else (key[0], key[1] + 3), event)

    fresh = run(solve(method, path, climbed, (up, last), Shifted()), model)  # type: ignore[arg-type]
    assert torch.equal(whole, fresh)


def test_churn_with_heun_is_the_stochastic_sampler_of_edm() -> None:
    """Karras et al. 2022, algorithm 2 with S_noise = 1, written out."""
    path, noise = VE(), Noise.of(4, range(8), dtype=torch.float64)
    model = M2().denoiser(path)
    churned, low, high, steps = 30.0, 0.05, 50.0, 18
    plain = grids.karras(steps)(path)
    times = grids.churn(grids.karras(steps), total=churned, low=low, high=high)(path)
    start = noise.normal("prior", (2,)) * plain[0]
    ours = run(solve(Heun(), path, start, times, noise), model)

    x, climbs = start, (i for i, (t, s) in enumerate(pairwise(times)) if s > t)
    for t, s in pairwise(plain):
        gamma = min(churned / steps, math.sqrt(2.0) - 1.0) if low <= t <= high else 0.0
        hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(hat**2 - t**2) * noise.normal(("up", next(climbs)), (2,))
        slope = (x - model(x, hat).clean) / hat
        euler = x + (s - hat) * slope
        x = x + (s - hat) * 0.5 * (slope + (euler - model(euler, s).clean) / s) if s != 0.0 else euler
    assert float((ours - x).abs().max()) < 1e-10
    assert len(times) > len(plain)
