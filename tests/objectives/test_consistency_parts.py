"""Distances, couplings, curricula and levels: the parts of a consistency loss, each by its own law."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.special import erf

from ornstein.errors import ConfigError
from ornstein.objectives import ConsistencyLoss, levels
from ornstein.objectives.couplings import assignment, costs, pairing, transport
from ornstein.objectives.curricula import intervals, target_decay
from ornstein.objectives.distances import cauchy, distance, geman_mcclure, pseudo_huber, square

R = torch.logspace(-12, 6, 91, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------- distances


def test_cauchy_begins_as_the_square_and_grows_as_its_logarithm():
    c = 0.03456
    assert torch.allclose(cauchy(R[R < 1e-9], c), R[R < 1e-9] / (2 * c**2), rtol=1e-6)
    assert torch.allclose(2e8 * cauchy(R, 1e4), R, rtol=6e-3)  # 2c²·ρ → r for a large scale
    r = R.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cauchy(r, c).sum(), r)
    assert torch.allclose(slope, 1.0 / (R + 2 * c**2), rtol=1e-12)
    large = R[R > 10.0]
    for name in ("cauchy", "geman-mcclure"):  # from one large difference to another, a fourth of the growth of Huber's
        growth = distance(name, 4.0 * large, c) / distance(name, large, c)
        assert (growth < pseudo_huber(4.0 * large, c) / pseudo_huber(large, c)).all()
    assert (geman_mcclure(R, c) < 2.0).all()


def test_cauchy_keeps_small_differences_in_float32():
    r, c = torch.tensor(1e-11), 0.0346
    assert cauchy(r, c).item() == pytest.approx(1e-11 / (2 * c**2), rel=1e-6)
    assert (torch.log(0.5 * r + c**2) - 2 * math.log(c)).item() != pytest.approx(1e-11 / (2 * c**2), rel=0.5)
    assert pseudo_huber(r, c).item() == pytest.approx(1e-11 / (2 * c), rel=1e-6)


@pytest.mark.parametrize("name", ["cauchy", "pseudo-huber", "geman-mcclure"])
def test_means_with_c_are_norms_with_c_times_root_d(name):
    """Up to the unit of the distance itself: d² for none of them but Huber's, whose unit is a norm."""
    difference, c = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 0.1
    d = difference[0].numel()
    of_mean = distance(name, square(difference), c)
    of_norm = distance(name, square(difference, "sum"), c * math.sqrt(d))
    unit = math.sqrt(d) if name == "pseudo-huber" else 1.0
    assert torch.allclose(of_norm, unit * of_mean, rtol=1e-5)


def test_slope_is_finite_where_there_is_no_difference():
    for name in ("cauchy", "pseudo-huber", "geman-mcclure", "l2"):
        x = torch.zeros(2, 3, requires_grad=True)
        distance(name, square(x), 1e-4).sum().backward()
        assert (x.grad == 0).all()


# ----------------------------------------------------------------------------------------------------------- couplings


def test_optimal_pairs_are_a_permutation_of_least_cost():
    clean, noise = (torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    cost = costs(clean, noise)
    direct = (clean.flatten(1)[:, None] - noise.flatten(1)[None]).square().sum(2)
    assert np.allclose(cost, direct.numpy(), atol=1e-4)
    found = assignment(cost)
    assert sorted(found) == list(range(7))
    best = min(sum(cost[a, p[a]] for a in range(7)) for p in itertools.permutations(range(7)))
    assert cost[np.arange(7), found].sum() == pytest.approx(best)
    assert best < np.trace(cost)
    assert (assignment(cost / cost.max()) == found).all()


def test_both_solvers_agree():
    pytest.importorskip("ot")
    for seed in range(5):
        clean, noise = (torch.randn(64, 48, generator=torch.Generator().manual_seed(2 * seed + k)) for k in (0, 1))
        assert torch.equal(pairing(clean, noise, "pot"), pairing(clean, noise, "assignment"))
    tied = np.zeros((6, 6))  # every plan is optimal: still a permutation
    assert sorted(transport(tied)) == list(range(6))


def test_one_sample_has_nothing_to_exchange():
    x = torch.ones(1, 3)
    assert pairing(x, x, "assignment").tolist() == [0]
    assert pairing(torch.randn(4, 3), torch.randn(4, 3), "none").tolist() == [0, 1, 2, 3]


def test_noise_stays_within_its_group():
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(12, 5, generator=generator), torch.randn(12, 5, generator=generator)
    groups = torch.tensor([0, 1, -1] * 4)
    found = pairing(clean, noise, "assignment", groups)
    assert sorted(found.tolist()) == list(range(12))
    assert torch.equal(groups[found], groups)
    for label in (0, 1, -1):
        rows = groups == label
        inside = costs(clean[rows], noise[rows])
        paired = (clean[rows] - noise[found][rows]).square().sum().item()
        assert paired == pytest.approx(inside[np.arange(4), assignment(inside)].sum(), rel=1e-5)


def test_without_the_package_pot_is_refused_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ConfigError, match="pip install POT"):
        transport(np.eye(2))


# ------------------------------------------------------------------------------------------------- curriculum and scale


def test_the_curriculum_of_the_published_run():
    steps, length = 327_600, 46_800
    wanted = [11, 21, 41, 81, 161, 321, 641]
    for i, points in enumerate(wanted):
        for step in (i * length, (i + 1) * length - 1):
            assert intervals("doubling", step, steps, 10, 640) + 1 == points
    assert intervals("doubling", steps, steps, 10, 640) == intervals("doubling", 10**9, steps, 10, 640) == 640


@pytest.mark.parametrize("steps", [7, 100, 123_457])
def test_stages_have_the_length_of_the_formula(steps):
    stages = [intervals("doubling", k, steps, 10, 640) for k in range(min(steps, 200))]
    length = steps // 7
    assert all(min(10 * 2 ** (k // length), 640) == S for k, S in enumerate(stages))


def test_other_curricula():
    assert intervals("constant", 3, 100, 10, 640) == 640
    root = [intervals("root", k, 100, 2, 150) for k in range(101)]
    assert root[0] == 1
    assert root[-1] == 150
    assert root == sorted(root)
    assert target_decay(0.9, 1, 2) == pytest.approx(0.9)
    assert 0.9 < target_decay(0.9, 150, 2) < 1.0
    assert target_decay(0.0, 150, 2) == 0.0


def test_the_scale_of_the_published_run():
    loss = ConsistencyLoss()
    found = [loss.scale_at(S, 4 * 32 * 32) for S in (10, 20, 40, 80, 160, 320, 640)]
    table = [0.03456, 0.01364, 0.00614, 0.00277, 0.00125, 0.00056, 0.000253]
    assert found == pytest.approx(table, rel=6e-3)
    assert found == sorted(found, reverse=True)
    assert found[1] == pytest.approx(math.exp(-1.15 * math.log(20) - 0.85), rel=1e-12)
    for size in (48, 512, 1024, 3 * 64 * 64):  # it shrinks in latents of every size, by the same factors
        other = [loss.scale_at(S, size) for S in (10, 20, 40, 80, 160, 320, 640)]
        assert other == pytest.approx([math.sqrt(size / 4096) * c for c in found], rel=1e-12)
    norms = ConsistencyLoss(reduce="sum")
    assert [norms.scale_at(S, 4096) for S in (10, 640)] == pytest.approx([64 * found[0], 64 * found[-1]])
    ict = ConsistencyLoss(scale="constant", reduce="sum")
    assert ict.scale_at(640, 3072) == pytest.approx(0.00054 * math.sqrt(3072))


# -------------------------------------------------------------------------------------------------------------- levels


def test_the_grid_of_levels():
    for count in (1, 10, 640):
        grid = levels.grid(count, 0.002, 80.0, 7.0)
        assert (grid[0], grid[-1], len(grid)) == (80.0, 0.002, count + 1)
        assert all(a > b for a, b in itertools.pairwise(grid))
    assert grid[420] == pytest.approx(0.5286, abs=5e-5)
    assert grid[480] == pytest.approx(0.16975, abs=5e-6)


@pytest.mark.parametrize(("count", "part"), [(10, 0.244), (640, 0.366)])
def test_the_odds_of_intervals(count, part):
    grid = np.array(levels.grid(count, 0.002, 80.0, 7.0))
    level_probabilities = np.array(levels.level_probabilities(tuple(grid), -1.1, 2.0))
    edges = erf((np.log(grid) + 1.1) / (math.sqrt(2) * 2.0))
    assert level_probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert level_probabilities == pytest.approx((edges[:-1] - edges[1:]) / (edges[0] - edges[-1]), rel=1e-9)
    first = math.floor(0.75 * (count + 1))
    assert level_probabilities[first:].sum() == pytest.approx(part, abs=5e-4)
    us = np.random.default_rng(0).random(100_000)
    places = np.array(levels.places(us.tolist(), tuple(grid), "log-normal", -1.1, 2.0))
    drawn = np.bincount(places, minlength=count)
    spread = np.sqrt(len(us) * level_probabilities * (1 - level_probabilities))
    assert (np.abs(drawn - len(us) * level_probabilities) < 4.5 * spread + 1).all()
    assert abs((places >= first).mean() - level_probabilities[first:].sum()) < 0.005


def test_uniform_intervals():
    grid = levels.grid(4, 0.002, 80.0, 7.0)
    assert levels.places((0.0, 0.24, 0.26, 0.99999), grid, "uniform", 0, 1) == [0, 0, 1, 3]


def test_levels_by_a_ratio():
    """The first stage is denoising below a level; the last keeps all but a 512th."""
    assert levels.lower(0.1, 2, 0.0) == 0.0
    assert levels.lower(80.0, 2, 0.0) == pytest.approx(40.0)
    assert levels.lower(0.1, 256, 0.0) == pytest.approx(0.1 * (1 - (1 + 8 / (1 + math.exp(0.1))) / 256))
    drawn = [levels.level(u, 0.002, 80.0, "log-normal", -1.1, 2.0) for u in (0.0, 0.5, 1.0 - 1e-12)]
    assert drawn[0] == pytest.approx(0.002)
    assert drawn[1] == pytest.approx(math.exp(-1.1), rel=0.02)
    assert drawn[2] == pytest.approx(80.0)


@pytest.mark.parametrize(
    "change",
    [
        {"start": 0}, {"end": 5}, {"base": 0.0}, {"low_noise_fraction": 1.5}, {"diffusion": -1.0}, {"target": 1.0},
        {"label_dropout": 2.0},
        {"mean": math.nan}, {"slope": math.inf}, {"offset": math.nan}, {"offset": -1000.0}, {"slope": 20.0},
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        ConsistencyLoss(**change)


def test_a_law_without_levels_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.mean 60"):
        levels.level_probabilities(levels.grid(10, 0.002, 80.0, 7.0), 60.0, 2.0)


def test_a_scale_that_is_constant_has_no_slope():
    assert ConsistencyLoss(scale="constant", offset=-1000.0).scale_at(640, 4096) == pytest.approx(0.03456)
