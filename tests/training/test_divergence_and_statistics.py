"""The guard's thresholds at the batch where they are passed, and the sums of the log by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from ornstein.errors import ConfigError
from ornstein.objectives import Losses
from ornstein.paths import VE, VP, Flow, PyramidPath
from ornstein.training.divergence import DivergenceConfig, DivergenceMonitor
from ornstein.training.ema import beta, decay, exponent, move, update
from ornstein.training.statistics import EDGES, LossStatistics, emptied, merged, record

CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------------------------------ the guard


def settled(count: int, norm: float = 10.0, **watch: float) -> DivergenceMonitor:
    """A guard that has seen ``count`` quiet batches of stage 4."""
    guard = DivergenceMonitor(watch=DivergenceConfig(**watch))
    assert all(guard.accepts_numbers([1.0, norm, 0.5], 4.0) for _ in range(count))
    assert not guard.cause
    return guard


def first(guard: DivergenceMonitor, numbers: list[float], most: int = 3000) -> int:
    """How many batches of these numbers it takes until the run counts as diverged."""
    for count in range(1, most):
        guard.accepts_numbers(numbers, 4.0)
        if guard.cause:
            return count
    raise AssertionError


def test_watching_by_default():
    assert DivergenceConfig() == DivergenceConfig(outlier=0.0, output=10.0, surge=100.0)


@pytest.mark.parametrize(("before", "admitted"), [(0, True), (19, True), (20, False), (300, False)])
def test_the_first_twenty_batches_of_a_stage_are_never_outliers(before, admitted):
    assert settled(before, outlier=3.0).accepts_numbers([1.0, 1e6, 0.5], 4.0) == admitted
    guard = settled(30, outlier=3.0)
    assert all(guard.accepts_numbers([1.0, 10.0, 0.5], 8.0) for _ in range(before))  # another stage begins anew
    assert guard.accepts_numbers([1.0, 1e6, 0.5], 8.0) == admitted


def test_an_outlier_is_measured_against_the_last_batches():
    assert settled(30, outlier=3.0).accepts_numbers([1.0, 29.9, 0.5], 4.0)
    assert not settled(30, outlier=3.0).accepts_numbers([1.0, 30.1, 0.5], 4.0)
    assert settled(30).accepts_numbers([1.0, 1e30, 0.5], 4.0)  # 0 leaves none out
    # The mean of the logarithms has moved by a tenth of the way: exp(log 10 + 0.1·log 1000) = 10 · 2.
    moved = settled(30, outlier=3.0)
    moved.accepts_numbers([1.0, 1e4, 0.5], 4.0)
    assert moved.accepts_numbers([1.0, 0.99 * 3 * 10 * 1000**0.1, 0.5], 4.0)
    moved = settled(30, outlier=3.0)
    moved.accepts_numbers([1.0, 1e4, 0.5], 4.0)
    assert not moved.accepts_numbers([1.0, 1.01 * 3 * 10 * 1000**0.1, 0.5], 4.0)
    assert settled(30, outlier=3.0).accepts_numbers([1.0, 0.0, 0.5], 4.0)  # a gradient of zero has a logarithm too


@pytest.mark.parametrize("quiet", [300, 1500])
def test_a_surge_is_seen_when_the_fast_mean_leaves_the_slow_one(quiet):
    """After k louder batches the fast mean has moved by 1 − 0.9^k of the way; the slow one, over the stage, less."""
    far = math.log(2e4 / 10.0)
    count, slow = 0, 0.0
    while True:
        count += 1
        slow += (far - slow) / min(quiet + count, 1000)
        if far * (1 - 0.9**count) - slow > math.log(100.0):
            break
    guard = settled(quiet)
    assert first(guard, [1.0, 2e4, 0.5]) == count
    assert guard.slow - math.log(10.0) == pytest.approx(slow, rel=1e-9)
    ratio = math.exp(far * (1 - 0.9**count) - slow)
    assert guard.cause == f"the gradient is {ratio:.3g} times as large as in the stage so far"


def test_a_stage_has_a_usual_size_after_two_hundred_batches():
    guard = settled(150)
    assert first(guard, [1.0, 2e4, 0.5]) == 50


def test_answers_that_grow_are_a_divergence():
    # 11·(1 − 0.9^k) passes 10 at k = 23; nothing was answered before.
    guard = DivergenceMonitor(watch=DivergenceConfig(output=10.0))
    assert first(guard, [1.0, 1.0, 11.0]) == 23
    size = 11 * (1 - 0.9**23)
    assert guard.cause == f"the root mean square of the network's outputs is {size:.3g}, and data lie in [-1, 1]"
    quiet = DivergenceMonitor(watch=DivergenceConfig())
    for _ in range(50):
        quiet.accepts_numbers([1.0, 1.0], 4.0)  # answers that nobody measured have no size
    assert (quiet.size, quiet.cause) == (0.0, "")


@pytest.mark.parametrize("numbers", [[math.nan, 1.0, 1.0], [1.0, math.inf, 1.0], [1.0, 1.0, math.nan]])
def test_eleven_of_twenty_without_a_finite_number_are_a_divergence(numbers):
    guard = settled(40)
    for _ in range(10):
        assert not guard.accepts_numbers(numbers, 4.0)
    assert guard.settled == 40  # they are no part of the means
    assert not guard.cause
    for _ in range(10):
        guard.accepts_numbers([1.0, 10.0, 0.5], 4.0)
    assert not guard.accepts_numbers(numbers, 4.0)  # the eleventh, but the first ten leave the window one by one
    assert not guard.cause
    assert guard.record() == {"left_out": {"nonfinite": 11 / 61, "outlier": 0.0}}
    again = settled(40)
    assert first(again, numbers) == 11
    assert again.cause == "11 of the last 20 batches gave no finite loss or gradient"


def test_counts_are_those_since_the_last_line():
    guard = settled(30, outlier=3.0)
    guard.clear()
    assert guard.record() == {"left_out": {"nonfinite": 0.0, "outlier": 0.0}}
    guard.accepts_numbers([math.nan, 10.0, 0.5], 4.0)
    assert guard.record() == {"left_out": {"nonfinite": 1.0, "outlier": 0.0}}
    guard.clear()
    for norm in (10.0, 1e9, math.nan, 10.0):
        guard.accepts_numbers([1.0, norm, 0.5], 4.0)
    assert guard.record() == {"left_out": {"nonfinite": 0.25, "outlier": 0.25}}
    state = json.loads(json.dumps(guard.state()))
    assert set(state) == {"stage", "settled", "slow", "fast", "size", "bad", "seen", "left_out"}
    twin = DivergenceMonitor(watch=guard.watch)
    twin.load(state)
    for norm in (10.0, 90.0, 1e9, 20.0):
        assert twin.accepts_numbers([1.0, norm, 0.5], 4.0) == guard.accepts_numbers([1.0, norm, 0.5], 4.0)
    assert twin == guard


def test_what_the_guard_is_told_of_a_batch():
    class Processes:
        def __init__(self, count: int) -> None:
            self.num_processes, self.asked = count, []

        def reduce(self, found, how):
            self.asked.append(how)
            return 2.0 * found

    losses = Losses(
        terms={"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([2.0, 2.0])},
        times=torch.ones(2),
        watched={"output": torch.tensor([3.0, 4.0])},
        schedule={"intervals": 20.0},
    )
    alone, pair = DivergenceMonitor(watch=DivergenceConfig()), DivergenceMonitor(watch=DivergenceConfig())
    one, two = Processes(1), Processes(2)
    assert alone.accepts(losses, torch.tensor(7.0), one)
    assert pair.accepts(losses, torch.tensor(7.0), two)
    assert (one.asked, two.asked) == ([], ["mean"])
    assert alone.size == pytest.approx(0.1 * 12.5**0.5)
    assert (alone.fast, alone.slow, alone.stage) == (pytest.approx(math.log(7.0)), pytest.approx(math.log(7.0)), 20.0)
    assert pair.fast == pytest.approx(math.log(14.0))
    broken = Losses(terms={"a": torch.tensor([1.0, math.nan])}, times=torch.ones(2))
    assert not alone.accepts(broken, torch.tensor(7.0), one)
    assert alone.stage == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outlier": -0.1}, "watch.outlier must be at least 0, got -0.1"),
        ({"output": 0.9}, "watch.output must be at least 1, got 0.9"),
        ({"surge": 0.9}, "watch.surge must be at least 1, got 0.9"),
        ({"surge": math.inf}, "watch.surge must be at least 1, got inf"),
        ({"outlier": math.nan}, "outlier must be a finite number, got nan"),
    ],
)
def test_thresholds_that_cannot_be(change, message):
    with pytest.raises(ConfigError) as error:
        DivergenceConfig(**change)
    assert str(error.value) == message
    assert DivergenceConfig(outlier=0.0, output=1.0, surge=1.0)


# ------------------------------------------------------------------------------------------------------ sums of the log


@pytest.mark.parametrize("path", [VP(), Flow(), VE()], ids=lambda path: type(path).__name__)
def test_a_loss_is_counted_at_its_noise_level(path):
    """Eight samples, one in each interval of the log-SNR, the cleanest last, and a ninth beside the last."""
    levels = [-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 6.5, 6.6]
    times = torch.tensor([path.time_of(level) for level in levels], dtype=torch.float64)
    statistics = LossStatistics(path, CPU)
    assert statistics.counts.dtype == statistics.norm.dtype == torch.float64  # whole numbers beyond 2²⁴
    a, b = torch.arange(1.0, 10.0), 0.1 * torch.arange(1.0, 10.0)
    statistics.add(Losses(terms={"a": a, "b": b}, times=times, watched={"w": 2 * a}), torch.tensor(3.0))
    statistics.add(Losses(terms={"a": a[:2], "b": b[:2]}, times=times[:2], watched={"w": a[:2]}), torch.tensor(5.0))
    found = record(statistics.state())
    assert found["levels"]["log_snr"] == list(EDGES) == [-6, -4, -2, 0, 2, 4, 6]
    assert found["levels"]["samples"] == [2, 2, 1, 1, 1, 1, 1, 2]
    assert found["levels"]["loss"] == pytest.approx([1.1, 2.2, 3.3, 4.4, 5.5, 6.6, 7.7, 9.35])
    assert found["levels"]["watched"]["w"] == pytest.approx([1.5, 3, 6, 8, 10, 12, 14, 17])
    assert found["terms"] == {"a": pytest.approx(48 / 11), "b": pytest.approx(4.8 / 11)}
    assert found["loss"] == pytest.approx(52.8 / 11)
    assert found["grad_norm"] == 4.0
    assert "schedule" not in found


def test_a_path_without_a_signal_to_noise_ratio_is_cut_evenly():
    path = PyramidPath()
    statistics = LossStatistics(path, CPU)
    times = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0])
    statistics.add(Losses(terms={"a": torch.arange(5.0)}, times=times, schedule={"c": 0.5}), None)
    statistics.add(Losses(terms={"a": torch.arange(5.0)}, times=times, schedule={"c": 0.25}), None)
    state = statistics.state()
    assert state["counts"] == [2, 0, 2, 0, 0, 2, 0, 4]
    assert state["steps"] == 2
    found = record(state)
    assert found["levels"]["loss"] == [0.0, None, 1.0, None, None, 2.0, None, 3.5]
    assert found["schedule"] == {"c": 0.25}
    assert "watched" not in found["levels"]


def test_sums_are_exact_over_a_pause_and_over_processes():
    path = VP()

    def some(seed: int) -> Losses:
        drawn = torch.Generator().manual_seed(seed)
        term, seen = (torch.rand(6, generator=drawn) for _ in range(2))
        return Losses(terms={"a": term}, times=torch.rand(6, generator=drawn) * 0.9 + 0.05, watched={"w": seen})

    whole, parts = LossStatistics(path, CPU), [LossStatistics(path, CPU) for _ in range(2)]
    for seed in range(4):
        whole.add(some(seed), torch.tensor(1.0 + seed))
    resumed = LossStatistics(path, CPU)
    resumed.add(some(0), torch.tensor(1.0))
    later = LossStatistics(path, CPU)
    later.load(json.loads(json.dumps(resumed.state())))
    for seed in range(1, 4):
        later.add(some(seed), torch.tensor(1.0 + seed))
    assert later.state() == whole.state()
    for seed in range(4):  # two processes that share each step
        for i, statistics in enumerate(parts):
            found, own = some(seed), slice(3 * i, 3 * i + 3)
            share = {name: value[own] for name, value in found.terms.items()}
            seen = {name: value[own] for name, value in found.watched.items()}
            statistics.add(Losses(terms=share, times=found.times[own], watched=seen), torch.tensor(1.0 + seed))
    total = merged([statistics.state() for statistics in parts])
    assert total["counts"] == whole.state()["counts"]
    assert (total["norm"], total["steps"]) == (10.0, 4)
    for part in ("terms", "watched"):
        for name, values in total[part].items():
            assert values == pytest.approx(whole.state()[part][name], rel=1e-12)
    # Where one process carries on the sums of all, the others begin with none of the samples.
    nothing = emptied(total)
    assert merged([total, nothing]) == total
    assert (nothing["norm"], nothing["steps"], sum(nothing["counts"])) == (10.0, 4, 0.0)
    assert emptied({"terms": {"a": [1.0]}, "counts": [1.0], "norm": 1.0, "steps": 1})["terms"] == {"a": [0.0]}
    many = {"terms": {}, "counts": [2.0**24 + 1] * 8, "norm": 0.1, "steps": 3}
    whole.load(many)
    assert whole.state() == many
    whole.clear()
    assert whole.state() == {"terms": {}, "counts": [0.0] * 8, "norm": 0.0, "steps": 0}


# ------------------------------------------------------------------------------------------------------------- averages


def test_what_an_average_keeps():
    power = decay(0.1)
    assert [power(step) for step in (1, 2, 50)] == [beta(step, exponent(0.1)) for step in (1, 2, 50)]
    plain = decay(0.9)
    assert [plain(step) for step in (1, 2, 5, 9)] == pytest.approx([0.0, 0.5, 0.8, 8 / 9])
    assert [plain(step) for step in (10, 11, 1000)] == [0.9] * 3
    assert beta(4, 1.0) == pytest.approx(0.75**2)
    for value in (0.0, 0.28, 0.4, 0.5, 1.0, -0.1):
        with pytest.raises(ConfigError, match="widths in"):
            decay(value)
    for value in (0.0, 0.28):
        with pytest.raises(ConfigError, match=r"0\.28"):
            exponent(value)


def test_an_average_moves_by_what_it_does_not_keep():
    average, model = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    expected = [
        0.7 * a.detach() + 0.3 * b.detach() for a, b in zip(average.parameters(), model.parameters(), strict=True)
    ]
    kept = [p.detach().clone() for p in model.parameters()]
    move(average, model, 0.7)
    for found, wanted in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))
    before = average.weight.detach().clone()
    update(average, model, 3, 1.5)
    torch.testing.assert_close(
        average.weight.detach(), before + (1 - (2 / 3) ** 2.5) * (model.weight.detach() - before)
    )
