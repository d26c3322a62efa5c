"""The comparison of UDPM's arms: fair in what they cost, honest in what it concludes, resumable."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ornstein as orn
from ornstein import grids, reproduce
from ornstein.networks import UNetConfig, build
from ornstein.networks.discriminator import DiscriminatorConfig
from ornstein.objectives.pyramid import PyramidLoss
from ornstein.parameterizations import LevelBelow
from ornstein.paths import PyramidPath
from ornstein.reproduce import Budget, Cells, Record, arms
from ornstein.reproduce.udpm import cells as measure
from ornstein.reproduce.udpm import experiment as udpm
from ornstein.reproduce.udpm import verdicts
from ornstein.training import DivergedError, TrainConfig, train
from ornstein.training.slct import SLCTConfig
from ornstein.training.udpm import UDPMConfig

SIZE, WIDTH = 32, 8
CHOICE = {"lr": 1e-3, "odds": [1.0, 1.0, 1.0]}
TINY = {"seed": 0, "choice": CHOICE, "images": 64, "samples": 16, "size": SIZE, "width": WIDTH}
COUNTED = {"udpm": 4.0, "udpm-fit": 2.0, "udpm-plain": 1.0, "diffusion": 2.0, "consistency": 3.0}


def distances(value: float) -> dict:
    near = {arms.RECALL: 0.5, arms.COVERAGE: 0.5}
    return {arms.KID: value, arms.FD: 100 * value, arms.PIXELS: value, **near}


def result(arm: str, value: float, *, diverged: str | None = None, coarse: float = 4.0) -> dict:
    ways = {measure.DIFFUSION: measure.WAYS, measure.CONSISTENCY: (measure.ONE,)}.get(arm, (measure.THREE,))
    moved = {"all": 1.0, "coarse": 0.05, "metric": 0.1}
    pyramid = arm in measure.PYRAMIDS
    levels = {str(n): moved | {"coarse": 0.05 * coarse ** (n - 1)} for n in (1, 2, 3)} | {"0": moved}
    return {
        "parameters": 10,
        "images": 10**7,
        "early": None if diverged else value,
        "operations": 1e6,
        "seconds": 1.0,
        "diverged": diverged,
        "at": {} if diverged else {way: distances(value) for way in ways},
        "levels": levels if pyramid and not diverged else None,
        "middle": {"noise": distances(value), "pixels": distances(2 * value), "smooth": 0.2}
        if pyramid and not diverged
        else None,
    }


class Made(Cells):
    """Cells with made-up numbers: noise of seeds in common, a factor for each arm, a little noise of its own."""

    def __init__(self, diverged: tuple[tuple[str, int], ...] = (), coarse: float = 4.0, **factors: float) -> None:
        super().__init__(None)
        self.trials: list[int] = []
        self.judged: list[tuple[str, int, float]] = []
        self.diverged, self.coarse, self.factors = diverged, coarse, factors

    def map(self, function, rows):
        if function is measure.cost:
            seconds = {"three": [0.3, 0.31, 0.3], "one": [1.0, 1.0, 1.1], "squares": [0.25, 0.26, 0.25]}
            return [{"operations": {"three": 0.33e6, "one": 1e6, "squares": 0.25e6}, "seconds": seconds}]
        if function is measure.tried:
            self.trials += [row["seed"] for row in rows]
            return [abs(math.log10(row["choice"]["lr"]) + 3.0) for row in rows]  # a rate of 1e-3 is the best
        out = []
        for row in rows:
            arm, seed = row["arm"], row["seed"]
            self.judged.append((arm, seed, row["choice"]["lr"]))
            own = 1.0 + 0.004 * ((seed * 7 + len(arm)) % 3)
            value = 0.1 * (1 + seed) * self.factors.get(arm.replace("-", "_"), 1.0) * own
            why = "the loss is not finite" if (arm, seed) in self.diverged else None
            out.append(result(arm, value, diverged=why, coarse=self.coarse))
        return out


def said(cells: Made) -> dict[str, str]:
    return {f.claim: f.verdict for f in reproduce.measure(udpm.EXPERIMENT, cells, Budget(0.02)).findings}


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_verdicts_follow_the_numbers():
    found = said(Made(udpm=0.5, udpm_fit=0.8))
    assert {v for c, v in found.items() if "of DDIM" in c} == {"reproduced"}
    assert {v for c, v in found.items() if "term is needed" in c or "Without the" in c} == {"reproduced"}
    assert {v for c, v in found.items() if c.startswith("The perceptual term")} == {"reproduced"}
    assert list(found.values()).count("not testable here") == 1
    assert set(found.values()) == {"reproduced", "not testable here"}
    found = said(Made(udpm=2.0, coarse=0.25))
    assert {v for c, v in found.items() if "of DDIM" in c or "term is needed" in c} == {"not reproduced"}
    assert found["The noise of the last level decides what is seen, that of the first does not"] == "not reproduced"
    found = said(Made())
    assert {v for c, v in found.items() if c.startswith("The perceptual term")} == {"inconclusive"}


def test_every_arm_is_tuned_alike_and_judged_on_other_seeds():
    cells = Made(udpm=0.5)
    found = udpm.EXPERIMENT.run(cells, Budget(0.02))
    counts = {len(choices) for choices in measure.CANDIDATES.values()}
    assert len(counts) == 1
    assert set(measure.CANDIDATES) == set(measure.ARMS)
    assert set(cells.trials) == {0}
    assert {seed for _, seed, _ in cells.judged} == {1, 2, 3}
    assert {lr for _, _, lr in cells.judged} == {1e-3}, "the best candidate of the trials is taken"
    table = next(table for table in found.tables if table.title == "Tuning")
    assert len(table.rows) == counts.pop() * len(measure.ARMS)
    assert [row[-1] for row in table.rows].count("taken") == len(measure.ARMS)
    assert measure.CANDIDATES[measure.FULL][0]["odds"] == [1.0, 1.0, 1.0]


def test_the_better_of_two_grids_of_ddim_counts():
    """In each seed and metric by itself, so that no choice of a grid makes the diffusion model worse than it is."""

    class Spaced(Made):
        def map(self, function, rows):
            found = super().map(function, rows)
            for row, cell in zip(rows, found, strict=True):
                if function is measure.trained and row["arm"] == measure.DIFFUSION:
                    cell["at"]["ddim 3"] = distances(10.0) | {arms.KID: 0.01}
                    cell["at"]["ddim 3, equal times"] = distances(10.0) | {arms.PIXELS: 0.01}
            return found

    verdicts_of = {f.claim: f for f in udpm.EXPERIMENT.run(Spaced(udpm=0.5), Budget(0.02)).findings}
    for metric in (arms.KID, arms.PIXELS):
        few = verdicts_of[f"Three evaluations of UDPM are better than 3 of DDIM, in {metric}"]
        assert few.verdict == "not reproduced"
        assert "the better of ddim 3 and ddim 3, equal times" in few.expected
        assert verdicts_of[f"Three evaluations of UDPM are better than 5 of DDIM, in {metric}"].verdict == "reproduced"


def test_every_way_takes_as_many_evaluations_as_it_says():
    asked: list[float] = []

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        asked.append(float(time[0]))
        return torch.zeros_like(x)

    path = orn.VP.cosine()
    model = orn.Denoiser(net, path, predicts="clean", shape=(3, 8, 8))
    times: dict[str, list[float]] = {}
    for way in measure.WAYS:
        asked.clear()
        orn.sample(model, 1, seed=0, **measure._how(way))
        times[way] = list(asked)
    assert {way: len(found) for way, found in times.items()} == {
        **{f"ddim {steps}": steps for steps in (3, 5, 10, 50)},
        **{f"ddim {steps}, equal times": steps for steps in (3, 5, 10)},
        "auto 3": 3,
    }
    clock = [float(path.timestep_of(path.t_range[1] * (1.0 - i / 5))) for i in range(5)]
    assert times["ddim 5, equal times"] == pytest.approx(clock)
    levels = grids.times_of(grids.log_snr(3), path)  # not those that three steps take by default: cells are stored
    assert times["ddim 3"] == times["auto 3"] == pytest.approx([float(path.timestep_of(t)) for t in levels[:-1]])


def test_a_divergence_is_told_and_its_seed_left_out():
    found = udpm.EXPERIMENT.run(Made(diverged=(("udpm", 1),), udpm=0.5), Budget(0.02))
    first = found.findings[0]
    assert first.verdict == "reproduced"
    assert "1 of 3 seeds diverged" in first.measured
    assert any("seed 1: the loss is not finite" in note for note in found.notes)
    costs = next(table for table in found.tables if table.title == "What a training costs")
    assert [row[-1] for row in costs.rows] == [1, 0, 0, 0, 0]
    found = udpm.EXPERIMENT.run(Made(diverged=(("udpm", 1), ("udpm", 2), ("udpm", 3))), Budget(0.02))
    assert {f.verdict for f in found.findings if "UDPM are better" in f.claim} == {"inconclusive"}
    assert all(f.reason for f in found.findings if f.verdict != "reproduced")


def test_distances_that_are_none_or_negative_count_as_the_least():
    assert verdicts.judged(-0.01) == verdicts.judged(0.0) == math.log(verdicts.LEAST)
    assert verdicts.judged(0.5) == math.log(0.5)


def test_the_record_survives_json():
    found = udpm.EXPERIMENT.run(Made(diverged=(("diffusion", 2),)), Budget(0.02))
    record = Record(
        experiment="udpm", title="t", arxiv="a", version=1, budget=0.02, command="c", date="d", seconds=1.0, cells=1,
        machine={}, found=found,
    )  # fmt: skip
    again = Record.from_json(record.to_json()).found
    assert len(again.tables) == 6
    assert len(again.plots) == 2
    assert [f.claim for f in again.findings] == [f.claim for f in found.findings]


# ---------------------------------------------------------------------------------------------------------------- arms


def test_the_arms_differ_in_what_they_should(tmp_path: Path):
    configs = {arm: measure.configuration(arm, tmp_path, 3, 64, SIZE, 32) for arm in measure.ARMS}
    full, fit, plain, flat, one = (configs[arm] for arm in measure.ARMS)
    assert isinstance(full, UDPMConfig)
    assert fit.optimizer == plain.optimizer, "arms without a discriminator share an optimizer"
    alike = {"objective": full.objective, "optimizer": full.optimizer}
    assert replace(fit, **alike) == replace(plain, **alike) == full
    assert replace(plain.objective, metric="lite0", distance="l1") == fit.objective
    assert replace(fit.objective, adversarial=()) == full.objective
    assert fit.objective.on(full.path, SIZE, full.discriminator).discriminator is None
    assert plain.objective.on(full.path, SIZE, full.discriminator).metric is None
    assert type(flat) is TrainConfig
    assert (flat.predicts, flat.path, flat.images, flat.seed, flat.batch) == ("clean", "vp-cosine", 64, 3, full.batch)
    assert isinstance(one, SLCTConfig)
    assert (one.network, one.objective.distance, one.seed) == (flat.network, "pseudo-huber", flat.seed)
    for changed in ("seed", "batch", "images", "data", "size"):
        assert getattr(flat, changed) == getattr(full, changed)

    def count(config: UNetConfig) -> int:
        return sum(p.numel() for p in build(config).parameters())

    ours = count(replace(full.network, out_channels=12))
    assert count(flat.network) == pytest.approx(ours, rel=0.01)


def test_every_arm_gets_the_same_computing():
    # Small networks make the metric the larger part, but the law is the same.
    counts = {arm: measure.operations(arm, SIZE, WIDTH) for arm in measure.ARMS}
    assert counts["udpm"] > counts["udpm-fit"] > counts["udpm-plain"]
    for arm, cost in counts.items():
        slack = measure.BATCH * cost / (20_000 * counts["udpm"])
        assert measure.seen(arm, 20_000, SIZE, WIDTH) * cost == pytest.approx(20_000 * counts["udpm"], rel=slack)


def test_the_penalty_costs_three_evaluations_and_all_is_counted():
    """The gradient to the real images is one evaluation's cost, and its derivative two more."""
    path = PyramidPath()
    net = build(replace(measure.network(WIDTH), out_channels=12))
    model = orn.Denoiser(net, path, LevelBelow(), shape=(3, SIZE, SIZE))

    def counted(lazy: int) -> float:
        loss = PyramidLoss(level_probabilities=(1.0, 0.0, 0.0), metric="none", r1_interval=lazy)
        both = loss.on(path, SIZE, DiscriminatorConfig(width=8))
        return arms.counted(lambda batch, noise: both.discriminator_loss(model, batch, noise, 0.5), (3, SIZE, SIZE))

    rival = PyramidLoss(metric="none").on(path, SIZE, DiscriminatorConfig(width=8)).discriminator
    with FlopCounterMode(display=False) as counter:
        rival(torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2))
    once = counter.get_total_flops() / 2
    assert counted(1) - counted(10**12) == pytest.approx(3 * once, rel=0.05)


def test_three_levels_cost_a_third_of_one():
    counted = measure.cost(size=SIZE, width=WIDTH, batch=2)
    share = counted["operations"]["three"] / counted["operations"]["one"]
    assert udpm.SHARE[0] <= share <= udpm.SHARE[1]
    assert all(len(rounds) == 5 for rounds in counted["seconds"].values())


# --------------------------------------------------------------------------------------------------------------- cells


def test_the_level_that_is_drawn_anew_is_the_one_that_moves(tmp_path: Path):
    """A network that only enlarges: new noise at level l leaves a trace of that level's size."""
    path = PyramidPath(alphas=(0.5, 0.5, 0.5), sigmas=(0.1, 0.2, 0.3))

    def enlarge(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")

    model = orn.Denoiser(enlarge, path, LevelBelow(preconditioned=False), shape=(3, SIZE, SIZE))
    moved = measure.varied(model, 80, tmp_path / "levels.png")
    assert set(moved) == {"0", "1", "2", "3"}
    shares = [moved[level]["coarse"] / moved[level]["all"] for level in "123"]
    assert shares[0] < shares[1] < shares[2]
    assert (tmp_path / "levels.png").is_file()


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "operations", lambda arm, size, width, choice=None: COUNTED[arm])


def told(cell: dict) -> dict:
    return {name: value for name, value in cell.items() if name != "seconds"}


def also(extra):
    """`train` that calls ``extra`` after every step, behind the function that it is given."""

    def trained(config, *, quiet, after_step):
        def both(session):
            after_step(session)
            extra(session)

        return train(config, quiet=quiet, after_step=both)

    return trained


class Drawn:
    """In place of the judge: what is drawn itself, which any other weights would change."""

    def __init__(self, size: int, samples: int, files: Path) -> None:
        self.samples = samples

    def __call__(self, model: Any, name: str, **how: Any) -> dict[str, float]:
        drawn = orn.sample(model, 2, **how).double().sum().item()
        return {"drawn": drawn, arms.KID: drawn}


@pytest.mark.parametrize("judged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_cell_ends_with_the_same_numbers(judged, cheap, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 1e-6)  # a checkpoint at every step
    if not judged:
        monkeypatch.setattr(measure, "Judge", Drawn)
        monkeypatch.setattr(measure, "varied", lambda *args: None)
        monkeypatch.setattr(measure, "between", lambda *args: None)
    arm = measure.PLAIN
    whole = Cells(tmp_path / "whole")(measure.trained, arm=arm, **TINY)
    steps = []

    def interrupted(session):
        steps.append(session.step)
        if len(steps) == 4:  # after three checkpoints, before the fourth
            raise KeyboardInterrupt

    monkeypatch.setattr("ornstein.training.train", also(interrupted))
    with pytest.raises(KeyboardInterrupt):
        Cells(tmp_path / "killed")(measure.trained, arm=arm, **TINY)
    again = Cells(tmp_path / "killed")(measure.trained, arm=arm, **TINY)
    # Four times the images; the fourth step is taken again.
    assert steps == [1, 2, 3, 4, *range(4, 64 * 4 // measure.BATCH + 1)]
    assert told(again) == told(whole)
    assert all(math.isfinite(value) for value in again["at"][measure.THREE].values())
    assert math.isfinite(again["early"])
    assert again["early"] != again["at"][measure.THREE][arms.KID], "two thirds of the training are not all of it"
    if judged:
        pictures = {path.name for path in (tmp_path / "whole" / "files").glob("*.png")}
        assert len(pictures) == 4


def test_a_divergence_does_not_end_the_reproduction(cheap, tmp_path, monkeypatch):
    def diverging(config, **how):
        raise DivergedError(f"the loss is not finite; the last good checkpoint is {config.out}/x: lower the rate")

    monkeypatch.setattr("ornstein.training.train", diverging)
    cell = Cells(tmp_path)(measure.trained, arm=measure.FULL, **TINY)
    assert cell["diverged"].startswith("the loss is not finite")
    assert str(tmp_path) not in cell["diverged"]
    assert (cell["at"], cell["levels"], cell["middle"]) == ({}, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("arm", [measure.FULL, measure.FIT, measure.DIFFUSION, measure.CONSISTENCY])
def test_a_cell_of_every_arm(cheap, tmp_path, arm):
    cell = Cells(tmp_path)(measure.trained, arm=arm, **TINY)
    ways = {measure.DIFFUSION: set(measure.WAYS), measure.CONSISTENCY: {measure.ONE}}
    assert set(cell["at"]) == ways.get(arm, {measure.THREE})
    assert cell["images"] == round(64 * 4.0 / COUNTED[arm] / measure.BATCH) * measure.BATCH
    assert (cell["levels"] is None) == (arm not in measure.PYRAMIDS)
