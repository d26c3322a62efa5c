"""The exact moments over drawn times: against draws, against the deterministic meter, and the orders they show."""

import itertools
import math

import pytest
import torch

from ornstein import grids
from ornstein.errors import UsageError
from ornstein.lab.meters import gaussian_law
from ornstein.lab.over_times import over_times
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, GaussianTarget
from ornstein.paths import VE, VP, Flow
from ornstein.samplers import RandomizedMidpoint, sampler

WIDE = VE(sigma_min=1e-6, sigma_max=1e6)
FORMS = ("noise", "clean", "score")


def cells(count, beyond=0):
    return tuple(WIDE.time_of(-2.0 * math.log(80.0 * (0.02 / 80.0) ** (i / count))) for i in range(count + beyond + 1))


def slopes(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def test_without_drawn_times_it_is_the_law():
    times = measuring_grid("log-snr", 24)(VP())
    for name in ("staggered-midpoint", "heun", "ddim"):
        found, exact = over_times(sampler(name), G8(), VP(), times), gaussian_law(sampler(name), G8(), VP(), times)
        torch.testing.assert_close(found.variance, exact.variance, rtol=1e-11, atol=0)
        torch.testing.assert_close(found.square, exact.variance.square(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounds", [False, True], ids=["descent", "rounds"])
def test_it_is_the_mean_over_draws(form, rounds):
    """E[V] and E[V²] within 4.5 standard errors of 80 draws, climbs of the grid included."""
    times = grids.rounds(cells(24, 6), 4)(WIDE) if rounds else cells(24)
    rule, target = RandomizedMidpoint(form), GaussianTarget([0.0, 1.0, 0.0], [0.02, 0.7, 5.0])
    found = over_times(rule, target, WIDE, times, nodes=12)
    draws = torch.stack([gaussian_law(rule, target, WIDE, times, seed=i).variance for i in range(80)])
    for mean, sample in ((found.variance, draws), (found.square, draws.square())):
        assert bool(((sample.mean(0) - mean).abs() < 4.5 * sample.std(0) / math.sqrt(80)).all())
    assert bool((found.square > found.variance.square()).all())


def test_a_turned_covariance_changes_nothing():
    frame = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    v = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    turned, times = GaussianTarget.full([1.0, 0.0, -1.0], frame @ torch.diag(v) @ frame.T), cells(16)
    a = over_times(RandomizedMidpoint(), turned, WIDE, times)
    b = over_times(RandomizedMidpoint(), GaussianTarget([0.0] * 3, v), WIDE, times)
    assert a.root_kl == pytest.approx(b.root_kl, rel=1e-9)


def test_orders_over_eight_rounds():
    """G8, the paper's form, K = 8: 3/2 given the times, 2 for the law; 4.3e-3 given them at 512 evaluations."""
    found = [
        over_times(RandomizedMidpoint("score"), G8(), WIDE, grids.rounds(cells(n // 2, n // 16), 8)(WIDE), nodes=5)
        for n in (256, 512)
    ]
    assert slopes([one.conditional_root_kl for one in found]) == pytest.approx([1.5], abs=0.1)
    assert slopes([one.root_kl for one in found]) == pytest.approx([2.0], abs=0.1)
    assert found[-1].conditional_root_kl == pytest.approx(4.3e-3, rel=0.05)


def test_squared_errors_fall_like_the_third_and_the_fourth_power():
    """E‖err‖² over the draws against the squared error of the mean."""
    found = [over_times(RandomizedMidpoint(), G8(), Flow(), measuring_grid("log-snr", n)(Flow())) for n in (128, 256)]
    assert slopes([one.conditional_root_kl**2 for one in found]) == pytest.approx([3.0], abs=0.3)
    assert slopes([one.root_kl**2 for one in found]) == pytest.approx([4.0], abs=0.3)


def test_refusals():
    times = cells(4)
    with pytest.raises(UsageError, match="draws normals"):
        over_times(sampler("ancestral"), G8(), WIDE, times)
    with pytest.raises(UsageError, match="remembers more than tensors"):
        over_times(sampler("dpmpp-2m"), G8(), WIDE, times)
