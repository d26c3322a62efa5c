"""The comparison of Cas-DM's arms: fair in what they see, and honest in what it concludes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.networks import build
from ornstein.objectives import Denoising, TrainBatch
from ornstein.reproduce import Budget, Cells, Record, arms
from ornstein.reproduce import measure as measure_all
from ornstein.reproduce.cas_dm import cells as measure
from ornstein.reproduce.cas_dm import experiment as cas_dm
from ornstein.training.cas_dm import CascadeConfig


def result(fd: float, score: float = 2.0) -> dict:
    numbers = {"FD-lite0": fd, "sFD-lite0": 10 * fd, "IS-lite0": score, "FD-pixels8": fd, "KID-lite0": 0.01 * fd}
    return {
        "parameters": 10,
        "seconds": 1.0,
        "images": 10**7,
        "early": 0.01 * fd,
        "loss": 0.1,
        "at": {str(steps): numbers for steps in measure.STEPS},
    }


def found(pixels: dict | None = None, **factors: float) -> dict:
    """Verdicts on made-up arms: noise of seeds in common, then a factor for each arm, a little noise of its own."""

    class Made(Cells):
        def map(self, function, rows):
            if function is measure.tried:
                return [row["choice"]["lr"] for row in rows]
            assert {row["choice"]["lr"] for row in rows} == {3e-4}, "the best of the trials"
            assert {row["seed"] for row in rows} == {1, 2, 3}, "and seeds that have seen no trial"
            out = []
            for row in rows:
                own = 1.0 + 0.004 * ((row["seed"] * 7 + len(row["arm"])) % 3)
                scale = 100.0 * (1 + row["seed"]) * own
                cell = result(scale * factors.get(row["arm"].replace("-", "_"), 1.0))
                if pixels is not None:
                    told = {"FD-pixels8": scale * pixels.get(row["arm"], 1.0)}
                    cell["at"] = {steps: numbers | told for steps, numbers in cell["at"].items()}
                out.append(cell)
            return out

    findings = measure_all(cas_dm.EXPERIMENT, Made(None), Budget(0.02))
    return {f.claim: f.verdict for f in findings.findings}


def test_verdicts_follow_the_numbers():
    said = found(cas_dm_metric=0.8, cas_dm=0.9, ddpm_large=0.95, ddpm_metric=1.1)
    assert list(said.values())[:2] == ["reproduced", "reproduced"]
    assert set(list(said.values())[3:]) == {"reproduced"}
    said = found(cas_dm_metric=1.2, ddpm_metric=0.7)
    assert [v for c, v in said.items() if "Fréchet" in c] == ["not reproduced"] * 3
    assert said["Added to the loss of a single noise-predicting network, the metric does nothing or harm"] == (
        "not reproduced"
    )
    said = found()
    assert said["Cas-DM with the metric improves on DDPM in Fréchet distance"] == "inconclusive"


def test_claims_about_the_metric_are_judged_without_its_network_too():
    said = found(pixels={"cas-dm-metric": 1.5, "ddpm-metric": 1.5}, cas_dm_metric=0.8, ddpm_metric=0.7)
    claims = {
        "The gain is the metric's and not the cascade's alone": ("reproduced", "not reproduced"),
        "Added to the loss of a single noise-predicting network, the metric does nothing or harm": (
            "not reproduced",
            "reproduced",
        ),
    }
    for claim, verdicts in claims.items():
        assert (said[claim], said[f"{claim}, measured without the metric's network"]) == verdicts


def test_the_arms_are_fair(tmp_path: Path):
    configs = {arm: measure.configuration(arm, tmp_path / arm, 3, 64, 32) for arm in measure.ARMS}
    for arm, config in configs.items():
        predicts = "clean" if arm == "clean" else "noise"
        assert (config.images, config.seed, config.path, config.predicts) == (64, 3, "vp-table", predicts)
    assert isinstance(configs["cas-dm"], CascadeConfig)
    assert configs["cas-dm"].objective.metric == "none"

    def count(config):
        return sum(p.numel() for p in build(config).parameters())

    from dataclasses import replace

    cascade = count(measure.SMALL) + count(replace(measure.SMALL, out_channels=4))
    assert count(measure.LARGE) == pytest.approx(cascade, rel=0.01)


def test_the_metric_in_one_network_trains_it():
    net = nn.Conv2d(3, 3, 1)
    model = orn.Denoiser(lambda x, time: net(x), orn.VP.table(), "noise")
    loss = measure.MetricLoss(denoising=Denoising(), metric=lambda a, b: (a - b).abs().flatten(1).mean(1))
    positions = (0, 1, 2)
    noise = orn.Noise.of(0, positions)
    batch = TrainBatch(clean=torch.zeros(3, 3, 8, 8), cond={}, positions=positions)
    terms = loss(model, batch, noise, 0.0).terms
    assert torch.equal(terms["denoising"], Denoising()(model, batch, noise, 0.0).terms["denoising"])
    (gradient,) = torch.autograd.grad(terms["metric"].mean(), net.weight)
    assert float(gradient.abs().sum()) > 0.0


def test_pixels_are_means():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    vectors = arms.Pixels()(images)
    assert vectors.shape == (2, 192)
    assert vectors[0, 0].item() == pytest.approx((0 + 1 + 16 + 17) / 4 / 255)


def test_every_arm_gets_the_same_computing():
    counts = {arm: measure.operations(arm, 16) for arm in measure.ARMS}
    assert counts["ddpm"] == min(counts.values())
    assert counts["cas-dm"] == pytest.approx(2.0 * counts["ddpm"], rel=0.02)
    assert counts["ddpm-metric"] - counts["ddpm"] == pytest.approx(counts["cas-dm-metric"] - counts["cas-dm"], rel=0.02)
    for arm, cost in counts.items():
        assert measure.seen(arm, 100_000, 16) * cost == pytest.approx(100_000 * counts["ddpm"], rel=1e-3)


@pytest.mark.slow
def test_one_cell():
    cell = Cells(None)(measure.trained, arm="ddpm-metric", seed=0, choice={"lr": 1e-3}, images=64, samples=16, size=16)
    assert set(cell["at"]) == {"5", "10", "50"}
    assert {"FD-lite0", "sFD-lite0", "IS-lite0", "FD-pixels8"} <= set(cell["at"]["5"])


def test_the_record_survives_json():
    class Made(Cells):
        def map(self, function, rows):
            return [1.0 if function is measure.tried else result(100.0 + row["seed"]) for row in rows]

    findings = cas_dm.EXPERIMENT.run(Made(None), Budget(0.02))
    record = Record(
        experiment="cas-dm", title="t", arxiv="a", version=1, budget=0.02, command="c", date="d", seconds=1.0, cells=1,
        machine={}, found=findings,
    )  # fmt: skip
    assert len(Record.from_json(record.to_json()).found.tables) == 6
