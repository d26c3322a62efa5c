"""The consistency loss term by term, and its parts at points where no two numbers are alike."""

import math
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.objectives import ConsistencyLoss, ConsistencyTraining, TrainBatch, levels
from ornstein.objectives.consistency import sigma_min
from ornstein.objectives.couplings import pairing, transport
from ornstein.objectives.curricula import intervals, target_decay
from ornstein.objectives.distances import distance, square
from ornstein.parameterizations import EDM, Anchored, Consistency, parameterization
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise

F64 = torch.float64
EVENT = (3, 2, 4)


def batch(rows: int, cond: Mapping[str, Tensor] | None = None, first: int = 0) -> TrainBatch:
    positions = tuple(range(first, first + rows))
    clean = 0.5 * Noise.of(5, positions).normal("clean", EVENT)
    return TrainBatch(clean=clean, cond=cond or {}, positions=positions)


def net(x: Tensor, time: Tensor) -> Tensor:
    return torch.sin(1.3 * x) + 0.2 * time[:, None, None, None]


def other(x: Tensor, time: Tensor) -> Tensor:
    return torch.cos(0.7 * x) - 0.1


# ------------------------------------------------------------------------------------------------------------ distances


def test_distances_at_a_point():
    r, c = torch.tensor([0.0, 0.3, 2.0], dtype=F64), 0.7
    wanted = {
        "cauchy": torch.log(1.0 + r / (2.0 * c**2)),
        "pseudo-huber": torch.sqrt(r + c**2) - c,
        "geman-mcclure": 2.0 * r / (r + 4.0 * c**2),
        "l2": r,
    }
    for name, value in wanted.items():
        torch.testing.assert_close(distance(name, r, c), value, rtol=1e-13, atol=1e-15)
    difference = torch.arange(12.0).reshape(2, 3, 2)
    assert square(difference).tolist() == pytest.approx([55 / 6, 451 / 6])
    assert square(difference, "sum").tolist() == [55.0, 451.0]
    assert square(difference.bfloat16()).dtype == torch.float32


# ------------------------------------------------------------------------------------------------ curriculum and levels


@pytest.mark.parametrize(
    ("start", "end", "steps", "wanted"),
    [
        # ⌊log₂⌊end/start⌋⌋ + 1 stages of equal length, the last for ever
        (10, 640, 700, {0: 10, 99: 10, 100: 20, 599: 320, 600: 640, 10**6: 640}),
        (3, 20, 30, {0: 3, 7: 3, 8: 6, 16: 12, 24: 20}),  # log₂ 6 = 2.58: K' = ⌊30/3.58⌋ = 8
        (4, 4, 10, {0: 4, 9: 4}),
        (1, 2**40, 1, {0: 1, 1: 2, 100: 2**40}),
    ],
)
def test_doubling(start, end, steps, wanted):
    assert {k: intervals("doubling", k, steps, start, end) for k in wanted} == wanted


def test_root_and_the_decay_of_its_target():
    for step, steps, start, end in ((0, 9, 2, 150), (4, 9, 2, 150), (8, 9, 5, 60), (9, 9, 5, 60), (20, 9, 5, 60)):
        part = min(step / steps, 1.0)
        wanted = max(math.ceil(math.sqrt(part * ((end + 1) ** 2 - start**2) + start**2) - 1.0), 1)
        assert intervals("root", step, steps, start, end) == wanted
    assert intervals("root", 0, 9, 1, 150) == 1
    assert [intervals("root", k, 9, 5, 60) for k in (0, 9, 20)] == [4, 60, 60]
    # μ = exp(s_0·log μ_0/N), N = S + 1
    assert target_decay(0.9, 9, 2) == pytest.approx(0.9 ** (2 / 10), rel=1e-14)
    assert target_decay(0.95, 149, 2) == pytest.approx(0.95 ** (2 / 150), rel=1e-14)
    assert ConsistencyLoss(curriculum="root", start=2, end=150).intervals(9, 9) == 150
    assert ConsistencyLoss(curriculum="constant").intervals(0, 9) == 640


def test_a_grid_at_any_exponent():
    low, high = 0.05, 9.0
    for rho in (1.0, 3.0, 7.0):
        at = np.arange(6) / 5
        wanted = (high ** (1 / rho) + at * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert levels.grid(5, low, high, rho) == pytest.approx(wanted.tolist(), rel=1e-12)
        assert levels.grid(5, low, high, rho)[-1] == low
    assert levels.grid(2, 0.0, 4.0, 2.0) == (4.0, 1.0, 0.0)


def test_the_interval_of_a_quantile():
    """At a boundary between two intervals the lower one; the last interval for what rounds to one."""
    nodes, mean, std = (8.0, 2.0, 0.5, 0.0), 0.3, 1.1
    edges = norm.cdf((np.log([8.0, 2.0, 0.5]) - mean) / std)
    level_probabilities = np.array([edges[0] - edges[1], edges[1] - edges[2], edges[2]]) / edges[0]
    assert levels.level_probabilities(nodes, mean, std) == pytest.approx(level_probabilities.tolist(), rel=1e-9)
    ends = np.cumsum(level_probabilities)
    us = [0.0, ends[0] - 1e-9, ends[0] + 1e-9, ends[1] - 1e-9, ends[1] + 1e-9, 1.0 - 2.0**-53]
    assert levels.places(us, nodes, "log-normal", mean, std) == [0, 0, 1, 1, 2, 2]
    us = [0.0, 0.33, 0.34, 0.66, 0.67, 1.0 - 2.0**-53]
    assert levels.places(us, nodes, "uniform", 0.0, 1.0) == [0, 0, 1, 1, 2, 2]
    exact = levels.level_probabilities((math.inf, 1.0, 0.0), 0.0, 1.0)  # two halves, in numbers that hold them
    assert exact == (0.5, 0.5)
    assert levels.places([0.0, 0.5 - 2.0**-53, 0.5], (math.inf, 1.0, 0.0), "log-normal", 0.0, 1.0) == [0, 0, 1]


def test_a_level_of_its_own_law():
    low, high, mean, std = 0.01, 50.0, -0.8, 1.7
    us = np.array([0.0, 0.2, 0.5, 0.93, 1.0 - 1e-9])
    ends = norm.cdf((np.log([low, high]) - mean) / std)
    wanted = np.exp(mean + std * norm.ppf(ends[0] + (ends[1] - ends[0]) * us))
    found = [levels.level(u, low, high, "log-normal", mean, std) for u in us]
    assert found == pytest.approx(wanted.tolist(), rel=1e-6)
    assert [levels.level(u, low, high, "uniform", mean, std) for u in (0.0, 0.3)] == pytest.approx([0.01, 15.007])
    for u in (0.0, 1.0):  # a law wholly above, or below, the levels: the end that is nearer
        assert levels.level(u, low, high, "log-normal", 90.0, 0.5) in (low, high)
    assert levels.level(0.0, 0.0, 1.0, "log-normal", 0.0, 1.0) < 1e-3


def test_the_lower_level_of_a_ratio():
    """σ̄·(1 − (1 + 8·sigmoid(−σ̄))/S), not below the least level."""
    n = lambda level, slope: 1.0 + slope / (1.0 + math.exp(level))  # noqa: E731
    assert levels.lower(0.7, 20, 0.002) == pytest.approx(0.7 * (1.0 - n(0.7, 8.0) / 20), rel=1e-14)
    assert levels.lower(0.7, 20, 0.002, slope=3.0) == pytest.approx(0.7 * (1.0 - n(0.7, 3.0) / 20), rel=1e-14)
    assert levels.lower(0.7, 4, 0.3) == 0.3


def test_the_scale_at_the_end_of_the_first_stage():
    loss = ConsistencyLoss(start=4, end=64, base=0.01, slope=0.9, offset=0.2)
    scale = math.sqrt(48 / 4096)  # the published constants are those of 4,096 values
    first, later = 0.01 * math.sqrt(48), [scale * math.exp(-0.9 * math.log(S) - 0.2) for S in (5, 64)]
    assert [loss.scale_at(S, 48) for S in (3, 4, 5, 64)] == pytest.approx([first, first, *later], rel=1e-13)
    summed = ConsistencyLoss(start=4, end=64, base=0.01, slope=0.9, offset=0.2, reduce="sum")
    assert [summed.scale_at(S, 48) for S in (4, 5)] == pytest.approx([first * 48**0.5, later[0] * 48**0.5], rel=1e-13)


# ----------------------------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("reading", [Consistency(sigma_data=0.7), Anchored(inner=EDM(sigma_data=0.7), width=0.05)])
@pytest.mark.parametrize("weight", ["gap", "none"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_every_term_has_its_formula(reading, weight, reduce):
    """A teacher that is another network, data of a width that is not ½, high and low noise in one batch."""
    loss = ConsistencyLoss(
        distance="cauchy",
        reduce=reduce,
        weight=weight,
        coupling="none",
        diffusion=3.0,
        start=6,
        end=48,
        low_noise_fraction=0.6,
    )
    model, teacher = (orn.Denoiser(part, VE(), reading) for part in (net, other))
    objective = ConsistencyTraining(loss=loss, steps=8, of=6.0, sigma_max=30.0, teacher=teacher)
    data, source = batch(32), Noise.of(1, range(32))
    losses = objective(model, data, source, 0.5)
    count = 12  # after 3 of 8 steps: the second of four stages
    nodes = levels.grid(count, 0.002, 30.0, 7.0)
    pair = objective.make_noisy_batch(model, data, source, count)
    c = loss.scale_at(count, 24)
    assert losses.schedule == {"intervals": 12.0, "c": c}
    place = torch.tensor([nodes.index(level) for level in pair.upper.tolist()])
    assert pair.lower.tolist() == [nodes[i + 1] for i in place]
    assert torch.equal(pair.quiet, place >= 7)  # ⌊.6·13⌋ of the 13 nodes
    assert 3 < int(pair.quiet.sum()) < 29
    z = source.normal("noise", EVENT)
    states = [data.clean + level[:, None, None, None].float() * z for level in (pair.upper, pair.lower)]
    answer, target = model(states[0], pair.upper).clean, teacher(states[1], pair.lower).clean
    bottom = place == 11
    target[bottom] = states[1][bottom]
    error = (answer - target).double().square().flatten(1)
    r = error.mean(1) if reduce == "mean" else error.sum(1)
    wanted = torch.log1p(r / (2.0 * c**2)) / ((pair.upper - pair.lower) if weight == "gap" else 1.0)
    torch.testing.assert_close(losses.terms["consistency"].double(), wanted, rtol=1e-4, atol=1e-6)
    wrong = (answer - data.clean).double().square().flatten(1).mean(1)
    low = 3.0 * (1.0 / pair.upper**2 + 1.0 / 0.49) * wrong * pair.quiet * (32 / int(pair.quiet.sum()))
    torch.testing.assert_close(losses.terms["diffusion"].double(), low, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.watched["jump"].double(), error.mean(1).sqrt(), rtol=1e-4, atol=1e-6)
    output = answer.double().square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(losses.watched["output"].double(), output, rtol=1e-4, atol=1e-6)
    assert torch.equal(losses.times, pair.upper)
    assert list(losses.terms) == ["consistency", "diffusion"]


def test_at_the_least_level_the_target_is_the_state_whatever_the_network_says():
    """At σ̄' ≤ σ_min the answer is x_0 + σ̄'·z; a network that answers NaN there spoils no other row either."""
    model = orn.Denoiser(net, VE(), Consistency(sigma_min=0.0))
    objective = ConsistencyTraining(loss=ConsistencyLoss(coupling="none"))
    data = batch(16)
    pair = objective.make_noisy_batch(model, data, Noise.of(0, range(16)), 3)
    found = objective.target(model, data.clean, pair)
    last = pair.lower == 0.0
    assert last.any()
    assert not last.all()
    assert torch.equal(found[last], data.clean[last])
    torch.testing.assert_close(found[~last], model(pair.x_next, pair.t_next).clean[~last])


@pytest.mark.parametrize("path", [VE(), VP.cosine(), Flow(), VE(sigma_max=5.0)], ids=["VE", "VP", "Flow", "VE to 5"])
def test_times_and_states_of_every_path(path):
    """σ̄(t) is the level, within the path's own span; the highest level is the lesser of 80 and the path's."""
    model = orn.Denoiser(net, path, Consistency())
    objective = ConsistencyTraining(loss=ConsistencyLoss(coupling="none", times="uniform"))
    data = batch(40)
    pair = objective.make_noisy_batch(model, data, Noise.of(0, range(40)), 8)
    top = min(80.0, path.sigma_bar(path.t_range[1]))
    nodes = levels.grid(8, 0.002, top, 7.0)
    assert {nodes.index(level) for level in pair.upper.tolist()} == set(range(8))
    for level, t, x in ((pair.upper, pair.t, pair.x), (pair.lower, pair.t_next, pair.x_next)):
        inside = level >= path.sigma_bar(path.t_min)
        torch.testing.assert_close(path.sigma_bar(t)[inside], level[inside], rtol=1e-7, atol=0)
        assert (t[~inside] == path.t_min).all()
        assert t.max() <= path.t_range[1]
        torch.testing.assert_close(x, path.diffuse(data.clean, t, pair.noise), rtol=1e-6, atol=1e-6)


def test_the_pairs_of_a_ratio():
    loss = ConsistencyLoss(
        spacing="ratio", coupling="none", end=64, low_noise_fraction=0.5, stratified=False, mean=-4.0, std=3.0
    )
    model = orn.Denoiser(net, VE(), Consistency())
    source, positions = Noise.of(3, range(64)), tuple(range(64))
    upper, lower, quiet = ConsistencyTraining(loss=loss, sigma_max=20.0).levels(VE(), 0.002, positions, source, 16)
    ends = norm.cdf((np.log([0.002 * 1.001, 20.0]) + 4.0) / 3.0)  # a thousandth above the least level
    us = source.uniform_per_sample("time").numpy()
    assert upper == pytest.approx(np.exp(3.0 * norm.ppf(ends[0] + (ends[1] - ends[0]) * us) - 4.0).tolist(), rel=1e-6)
    assert lower == [levels.lower(level, 16, 0.002) for level in upper]
    bound = levels.grid(64, 0.002, 20.0, 7.0)[32]  # ⌊.5·65⌋
    assert quiet == [level <= bound for level in upper]
    assert {True, False} == set(quiet)
    every = ConsistencyLoss(spacing="ratio", low_noise_fraction=1.0, end=64)  # no node is beyond the last
    assert not any(ConsistencyTraining(loss=every).levels(VE(), 0.002, positions, source, 16)[2])
    assert sigma_min(model) == 0.002
    assert sigma_min(orn.Denoiser(net, VE(), Anchored(inner=parameterization("v"), sigma_min=0.03))) == 0.03
    with pytest.raises(UsageError, match="reads V"):
        sigma_min(orn.Denoiser(net, VE(), "v"))


def test_an_anchored_reading_without_a_width_of_data_counts_one_half():
    """The denoising loss of `Anchored(inner=noise)`: 1/σ̄² + 4."""
    model = orn.Denoiser(net, VE(), Anchored(inner=parameterization("clean")))
    loss = ConsistencyLoss(coupling="none", low_noise_fraction=0.0, diffusion=1.0, distance="l2", weight="none")
    data, source = batch(8), Noise.of(0, range(8))
    losses = ConsistencyTraining(loss=loss)(model, data, source, 1.0)
    pair = ConsistencyTraining(loss=loss).make_noisy_batch(model, data, source, 640)
    wrong = (model(pair.x, pair.t).clean - data.clean).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.terms["diffusion"].double(), (1.0 / pair.upper**2 + 4.0) * wrong.double())


# ----------------------------------------------------------------------------------------------- conditions and pairing


class Conditioning(nn.Module):
    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        return 0.0 * x


@pytest.mark.parametrize(
    ("cond", "within", "groups"),
    [
        ({}, True, None),
        ({"label": torch.tensor([0, 1] * 12)}, True, "label"),
        ({"label": torch.tensor([0, 1] * 12)}, False, None),
        ({"text": torch.ones(24, 2, 3), "mask": torch.tensor([[1, 1], [0, 0]] * 12)}, True, "alone"),
        ({"text": torch.tensor([[1.0], [0.0]] * 12)}, True, "half"),
    ],
    ids=["none", "labels", "labels, all", "captions", "some captions"],
)
def test_noise_is_paired_within_what_the_condition_tells(cond, within, groups):
    """Any entry that is not zero tells something; samples that are told nothing form one group."""
    loss = ConsistencyLoss(label_dropout=0.0, same_class_only=within)
    data, source = batch(24, cond), Noise.of(0, range(24))
    pair = ConsistencyTraining(loss=loss).make_noisy_batch(
        orn.Denoiser(Conditioning(), VE(), "consistency"), data, source, 10
    )
    noise = source.normal("noise", EVENT)
    rows = torch.arange(24)
    own = {
        "label": lambda: cond["label"],
        "alone": lambda: rows,
        "half": lambda: torch.where(rows % 2 == 0, rows, -1),
    }.get(groups, lambda: None)()
    wanted = pairing(data.clean, noise, "assignment", own)
    assert torch.equal(pair.noise, noise[wanted])
    assert groups == "alone" or not torch.equal(wanted, rows)


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        ([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5], [0.5, 0.0, 0.0]], [1, 2, 0]),
        # Two rows have their largest part in one column: the permutation of most mass.
        ([[0.2, 0.3, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.2]], [0, 1, 2]),
    ],
)
def test_a_plan_of_transport_is_read_as_a_permutation(monkeypatch, plan, wanted):
    seen = {}

    def emd(a, b, cost):
        seen.update(a=a, b=b, cost=cost)
        return np.array(plan)

    monkeypatch.setitem(sys.modules, "ot", SimpleNamespace(emd=emd))
    cost = np.arange(9.0).reshape(3, 3)
    assert transport(cost).tolist() == wanted
    assert seen["a"].tolist() == seen["b"].tolist() == pytest.approx([1 / 3] * 3)
    np.testing.assert_allclose(seen["cost"], cost / 8.0)
    assert np.isfinite(seen["cost"]).all()
    transport(np.zeros((3, 3)))
    assert not seen["cost"].any()


def test_conditions_are_dropped_before_the_noise_is_paired():
    """Those whose condition was dropped may exchange noise; u < drop, at both sides of the bound."""
    cond = {"label": torch.tensor([0, 1] * 12)}
    data, source = batch(24, cond), Noise.of(0, range(24))
    us = source.uniform_per_sample("drop")
    bound = us.sort().values[5].item()  # five are below
    pair = ConsistencyTraining(loss=ConsistencyLoss(label_dropout=bound)).make_noisy_batch(
        orn.Denoiser(Conditioning(), VE(), "consistency"), data, source, 10
    )
    wanted = torch.where(us < bound, -1, cond["label"])
    assert torch.equal(pair.cond["label"], wanted)
    assert int((wanted == -1).sum()) == 5
    noise = source.normal("noise", EVENT)
    assert torch.equal(pair.noise, noise[pairing(data.clean, noise, "assignment", wanted)])
