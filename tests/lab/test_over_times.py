"""The exact moments over drawn times: against draws, against the deterministic meter, and the orders they show."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from ornstein import grids
from ornstein.errors import UsageError
from ornstein.lab.meters import gaussian_law
from ornstein.lab.over_times import OverTimes, over_times
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, GaussianTarget
from ornstein.paths import VE, VP, Flow
from ornstein.paths.base import AffinePath
from ornstein.samplers import Query, RandomizedMidpoint, sampler

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


def test_errors_from_the_moments_by_hand():
    """√KL of the mean variance, and half of the root mean square of V/v − 1, summed over directions."""
    law = OverTimes(*(torch.tensor(row, dtype=torch.float64) for row in ([2.0, 0.5], [4.5, 0.3], [1.5, 0.6])))
    deltas = (2.0 / 1.5 - 1.0, 0.5 / 0.6 - 1.0)
    assert law.root_kl == pytest.approx(math.sqrt(sum(0.5 * (d - math.log1p(d)) for d in deltas)), rel=1e-12)
    spread = ((4.5 - 2.0 * 2.0 * 1.5 + 2.25) / 2.25, (0.3 - 2.0 * 0.5 * 0.6 + 0.36) / 0.36)
    assert law.conditional_root_kl == pytest.approx(0.5 * math.sqrt(sum(spread)), rel=1e-12)
    still = OverTimes(*(torch.tensor([0.7], dtype=torch.float64).pow(k) for k in (1, 2, 1)))
    assert (still.root_kl, still.conditional_root_kl) == (0.0, pytest.approx(0.0, abs=1e-7))


@dataclass(frozen=True)
class Drawing:
    """The state times the numbers that it draws under its keys."""

    keys: tuple = ("a",)
    what: str = "uniform"
    order, needs = 1, AffinePath

    def step(self, path, x, step, noise, memory):
        yield Query(x, step.t)
        for key in self.keys:
            source = noise.fork("of its own")
            if self.what == "uniform":
                x = (1.0 + source.uniform((key, step.index))) * x
            elif self.what == "uniforms":
                source.uniform_per_sample(key)
            else:
                source.brownian_increment(key, 0.0, 1.0, x.shape[1:])
        return x


def test_one_number_a_step_is_averaged_exactly():
    """E[(1 + q)²] = 7/3 and E[(1 + q)⁴] = 31/5 for q uniform, once a step; the same key twice is the same number."""
    target, times = GaussianTarget([0.3], [0.5]), (3.0, 1.0, 0.5)
    start = 9.5
    found = over_times(Drawing(), target, VE(), times)
    assert float(found.variance) == pytest.approx((7.0 / 3.0) ** 2 * start, rel=1e-12)
    assert float(found.square) == pytest.approx((31.0 / 5.0) ** 2 * start**2, rel=1e-12)
    assert float(found.exact) == pytest.approx(0.75, rel=1e-12)
    twice = over_times(Drawing(("a", "a")), target, VE(), times)
    assert float(twice.variance) == pytest.approx((31.0 / 5.0) ** 2 * start, rel=1e-12)


def test_what_has_no_exact_moments_is_refused():
    for rule, said in (
        (Drawing(("a", "b")), "draws 2 numbers a step"),
        (Drawing(what="uniforms"), "a time for every sample"),
        (Drawing(what="increment"), "draws normals"),
    ):
        with pytest.raises(UsageError, match=said):
            over_times(rule, G8(), WIDE, cells(3))
