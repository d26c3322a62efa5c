"""The reproduction of minority guidance: fair in what its arms spend, honest in what it concludes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.reproduce import Budget, Cells, Record
from ornstein.reproduce.minority import arms, exact, measures
from ornstein.reproduce.minority import cells as made
from ornstein.reproduce.minority import experiment as minority

TINY = "critters:60+planets:10+landscape:10"

EFFECT = {
    "noisy-1": 1.1, "noisy-3": 1.3, "noisy-8": 1.6, "noisy-3-middle": 1.05, "noisy-3-common": 0.9, "noisy-3-high": 1.1,
    "noisy-3-mid": 1.2, "noisy-3-low": 1.05, "noisy-3-high-snr": 1.1, "noisy-3-mid-snr": 1.2, "noisy-3-low-snr": 1.05,
    "self": 1.4, "boost": 1.1,
}  # fmt: skip
"""What every claim being true would look like, in parts of plain sampling."""


def drawn(arm: str, seed: int, factors: Mapping[str, float]) -> dict[str, Any]:
    """Made-up numbers: the noise of a seed in common, a factor for each arm, and a little of its own."""
    factor = factors.get(arm, 1.0) * (1.0 + 0.004 * ((seed * 7 + len(arm)) % 3))
    common = 10.0 * (1 + seed)
    rarity = dict.fromkeys(("avgknn", "lof", "rarity", "avgknn pixels", "lof pixels", "rarity pixels"), common * factor)
    quality = dict.fromkeys(
        (
            "precision",
            "recall rare",
            "recall rare pixels",
            "density pixels",
            "coverage pixels",
            "undefined pixels",
            "recall pixels",
            "recall",
            "density",
            "coverage",
            "kid",
            "coverage rare",
            "undefined",
        ),
        0.5,
    )
    own = {
        "precision pixels": 0.8 - (0.3 if arm == "boost-ddim" else 0.0) + 0.001 * seed,
        "share": 0.1 * factor + 0.001 * seed,
        "coverage rare pixels": 0.3 * factor + 0.001 * seed,
        "kid rare": 1.0 / factor,
        "precision": 0.9,
    }
    return {**rarity, **quality, **own, "steps": 16, "model": 48.0, "classifier": 0.0}


class Made(Cells):
    """Cells whose values are made up; what is exact is computed."""

    factors: Mapping[str, float] = EFFECT
    area = 0.9

    def map(self, function: Any, rows: Any) -> list[Any]:
        return [self._value(function, row) for row in rows]

    def _value(self, function: Any, row: Mapping[str, Any]) -> Any:
        if function in (exact.truncated, exact.mixture):
            return super().map(function, [row])[0]
        if function is made.based:
            return {"parameters": 1, "seconds": 1.0, "loss": 0.1}
        if function is made.scored:
            area = self.area + 0.001 * row["seed"]
            return {"auc": {"planets": area, "landscape": area, "rare": area}, "share": {"planets": 0.5}}
        if function is made.taught:
            return {
                "seconds": 1.0,
                "log_snr": [-8.0, 8.0],
                "accuracy": [0.1, 0.4 + 0.01 * row["seed"]],
                "loss": [1.0, 1.0],
            }
        if function is measures.judging:
            return {"rare": 1.0, "common": 1.0, "hash": "0" * 32}
        assert function is arms.drawn
        return drawn(row["arm"], row["seed"], self.factors)


def found(factors: Mapping[str, float], area: float = 0.9) -> dict[str, Any]:
    cells = Made(None)
    cells.factors, cells.area = factors, area
    findings = replace(minority.EXPERIMENT, exact_steps=4).run(cells, Budget(0.01))
    return {finding.claim: finding for finding in findings.findings}


def test_verdicts_follow_the_numbers() -> None:
    said = found(EFFECT)
    measured = [
        finding for finding in said.values() if "test H" not in finding.source and "w is a power" not in finding.claim
    ]
    assert {finding.claim: finding.verdict for finding in measured} == {f.claim: "reproduced" for f in measured}
    assert len(measured) == 23

    other_way = {arm: 1.0 / factor for arm, factor in EFFECT.items()}
    said = found(other_way, area=0.5)
    lost = [claim for claim, finding in said.items() if finding.verdict == "not reproduced"]
    assert sum("guidance toward the rarest class raises" in claim for claim in lost) == 6
    assert {"Rarity grows with the weight", "Guidance toward the commonest class lowers rarity"} <= set(lost)
    assert said["One-step reconstruction distance is larger for rare images"].verdict == "not reproduced"

    nothing = found({})
    assert nothing["Self-guided sampling raises rarity without a classifier"].verdict == "inconclusive"
    assert nothing["Rarity grows with the weight"].verdict == "inconclusive"


def test_one_false_step_is_seen() -> None:
    said = found({**EFFECT, "noisy-8": 1.2})
    assert said["Rarity grows with the weight"].verdict == "not reproduced"
    said = found({**EFFECT, "noisy-3-mid": 1.0})
    mid = [finding.verdict for claim, finding in said.items() if "mid noise alone" in claim]
    assert mid == ["not reproduced", "reproduced"]


def test_a_number_that_is_nowhere_defined_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(arm: str, seed: int, factors: Mapping[str, float]) -> dict[str, Any]:
        return real(arm, seed, factors) | {"rarity": None if seed == 1 else 1.0}

    real = drawn
    monkeypatch.setitem(globals(), "drawn", off)
    finding = found(EFFECT)["At equal evaluations, guidance toward the rarest class raises the rarity score on lite0"]
    assert (finding.verdict, finding.value) == ("inconclusive", None)


def test_the_record_survives_json() -> None:
    findings = replace(minority.EXPERIMENT, exact_steps=4).run(Made(None), Budget(0.01))
    record = Record(
        experiment="minority-guidance", title="t", arxiv="a", version=1, budget=0.01, command="c", date="d",
        seconds=1.0, cells=1, machine={}, found=findings,
    )  # fmt: skip
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    assert [f.verdict for f in again.found.findings] == [f.verdict for f in findings.findings]


# ------------------------------------------------------------------------------------------------------------ fairness


class Rare:
    """A classifier that prefers bright images."""

    labels = ()

    def number(self, target: int) -> int:
        return target % 10

    def log_likelihood(
        self, state: torch.Tensor, log_snr: torch.Tensor, target: int, label: Any = None
    ) -> torch.Tensor:
        del log_snr, label
        return (0.1 if target else -0.1) * state.flatten(1).sum(1)


def test_no_arm_spends_more_than_the_others() -> None:
    model = orn.Denoiser(lambda x, time: 0.5 * x, path=orn.VP.cosine(), predicts="clean", shape=(3, 8, 8))
    known = arms.nearness(np.random.default_rng(0).uniform(size=(300, 192)))
    for name, arm in arms.ARMS.items():
        images, spent = arms.pictures(arm, model, Rare, 0, 3, 24, away=lambda: known)
        total = spent["model"] + spent["classifier"]
        assert total <= 24 + 1e-9, name
        if arm.full:
            assert total > 24 - 3 * arms.EVERY / 2 - 1, name
        assert images.shape == (3, 3, 8, 8)
        assert images.dtype == torch.uint8
    bright = [
        float(arms.pictures(arms.ARMS[n], model, Rare, 0, 8, 24)[0].float().mean()) for n in ("noisy-3", "plain-short")
    ]
    assert bright[0] > bright[1]


def test_the_two_baselines_do_what_they_say() -> None:
    """The rarest third is what the classifier likes best, and the other arm lies farther from the mean of the data."""
    model = orn.Denoiser(lambda x, time: 0.5 * x, path=orn.VP.cosine(), predicts="clean", shape=(3, 8, 8))
    third, _ = arms.pictures(arms.ARMS["selected"], model, Rare, 0, 8, 24)
    every, _ = arms.pictures(replace(arms.ARMS["selected"], method="plain"), model, Rare, 0, 24, 7)
    means = every.float().mean((1, 2, 3)).sort(descending=True).values
    assert torch.allclose(third.float().mean((1, 2, 3)).sort(descending=True).values, means[:8])
    known = arms.nearness(np.random.default_rng(0).normal(0.5, 0.1, size=(400, 192)))
    energy = [
        float(known(arms.pictures(arm, model, Rare, 0, 8, 24, lambda: known)[0].float() / 127.5 - 1.0).mean())
        for arm in (arms.ARMS["away-100"], arms.ARMS["plain"])
    ]
    assert energy[0] < energy[1]
    rows = torch.from_numpy(np.random.default_rng(1).normal(0.5, 0.1, size=(5, 192))).float()
    flat = arms.Nearness(mean=torch.full((192,), 0.5), whitening=torch.eye(192) / 0.1)
    expected = -0.5 * ((rows - 0.5) / 0.1).square().mean(1)
    assert torch.allclose(flat(2.0 * rows.reshape(5, 3, 8, 8) - 1.0), expected, rtol=1e-4)


def test_the_windows_are_the_whole_chain_cut_in_three() -> None:
    path = orn.VP.table()
    for how, shift in (("", 2.0 * math.log(256 / made.SIZE)), (", same SNR", 0.0)):
        edges = [arms.WINDOWS[name + how] for name in ("high noise", "mid noise", "low noise")]
        assert edges[0][0] == -math.inf
        assert edges[2][1] == math.inf
        assert (edges[0][1], edges[1][1]) == (edges[1][0], edges[2][0])
        assert [path.log_snr(n / 1000) + shift for n in (667, 333)] == pytest.approx(edges[1], abs=0.06)


# ------------------------------------------------------------------------------------------------------------ measures


def test_the_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    above, below = draw.integers(0, 9, 40).astype(float), draw.integers(0, 7, 60).astype(float)
    labels = np.r_[np.ones(40), np.zeros(60)]
    assert made.area(above, below) == pytest.approx(metrics.roc_auc_score(labels, np.r_[above, below]), abs=1e-12)


def test_the_judge_tells_clusters_apart_whatever_their_sizes() -> None:
    draw = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], (300, 12, 9))
    centres = np.array([[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    rows = centres[labels] + 0.3 * draw.standard_normal((len(labels), 3))
    assert (measures.judged(rows, measures.judge(rows, labels, ridge=1e-3)) == labels).mean() > 0.97


def test_held_out_drawings_are_not_those_of_the_data() -> None:
    counts = measures.counts(TINY)
    joined = made.source(TINY, 16)
    held = measures.held(TINY, 16, 16)
    rare = measures._rare(TINY, 16)
    assert len(rare) == counts["planets"] + counts["landscape"]
    assert len(held) == 16
    seen = {joined[i].image.numpy().tobytes() for i in range(len(joined))}
    planets = {image.numpy().tobytes() for image in rare}
    assert len(seen & planets) <= 2  # small drawings may coincide
    new = measures.beyond(TINY, 16, 1, 0, 1)[0]
    assert torch.equal(new, orn.data.open_source("planets:11", size=16)[10].image)


def test_exact_samples_follow_the_rare_tenth() -> None:
    told = exact.truncated(sampler="ddim", weight=1.0, steps=250, samples=3000)
    assert told["mean"] == pytest.approx(exact.TRUTH["mean"], abs=0.03)
    assert told["inside"] > 0.99
    assert exact.mixture(target=1, weight=1.0, steps=50, samples=1000) == 1.0
    assert exact.mixture(target=1, weight=0.0, steps=50, samples=1000) == pytest.approx(0.1, abs=0.03)


def test_class_probabilities_are_probabilities() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    both = torch.stack([exact.component(n)(x, torch.zeros(7)) for n in (0, 1)]).exp().sum(0)
    assert torch.allclose(both, torch.ones(7, dtype=torch.float64), atol=1e-12)
    # A state says nothing at pure noise, and all at none.
    assert exact.tails(x, torch.full((7,), -60.0)).exp().tolist() == pytest.approx([0.1] * 7, abs=1e-6)
    assert exact.tails(x, torch.full((7,), 60.0)).exp().round().tolist() == [1, 1, 0, 0, 0, 1, 1]


def test_functions_that_take_files_are_given_a_folder(tmp_path: Path) -> None:
    kept = Cells(tmp_path, "one")
    assert kept(keeping, word="a") == "a"
    assert (tmp_path / "files" / "a.txt").read_text() == "a"
    first = kept._name(keeping, {"word": "a"})
    assert (tmp_path / f"{first}.json").is_file()
    passing = Cells(None, "one")
    assert passing(keeping, word="b") == "b"
    folder = passing.files()
    assert (folder / "b.txt").is_file()
    del passing
    assert not folder.exists()


def keeping(*, word: str, files: Path) -> str:
    (files / f"{word}.txt").write_text(word)
    return word


@pytest.mark.slow
def test_a_tiny_run_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGES", "TAUGHT"):
        monkeypatch.setattr(minority, name, 64)
    monkeypatch.setattr(minority, "EVALUATIONS", 6)
    monkeypatch.setattr(minority, "SEEDS", 1)
    tiny = replace(minority.EXPERIMENT, data=TINY, size=16, reference=60, exact_steps=4)
    cells = Cells(tmp_path / "cells")
    findings = tiny.run(cells, Budget(0.01))
    assert len(findings.findings) == 26
    held = findings.tables[0].rows[0]
    assert held[0] == "held-out drawings"
    # Again, with the trainings kept but the cells lost: nothing is trained twice, and nothing differs.
    for cell in (tmp_path / "cells").glob("*.json"):
        cell.unlink()
    again = tiny.run(Cells(tmp_path / "cells"), Budget(0.01))
    assert again.tables[0] == findings.tables[0]
