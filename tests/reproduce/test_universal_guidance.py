"""The comparison of guidances: its posteriors are exact, its counting is right, its verdicts follow the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.paths import VP
from ornstein.randomness import Noise
from ornstein.reproduce import Budget, Cells, Record, experiment
from ornstein.reproduce.universal import cells as exact
from ornstein.reproduce.universal import images


def test_the_posterior_of_a_mixture_is_bayes_rule() -> None:
    """On a fine grid of the plane: prior times likelihood, normalised."""
    given = exact.problem("M2")
    y = given.observed(3)
    law = exact.posterior(given.target, given.matrix, y, given.std)
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    joint = given.target.log_density(points) - 0.5 * ((points[:, :1] - y) / given.std).square()[:, 0]
    found = torch.softmax(joint, 0)
    expected = law.log_density(points).exp() * float(axis[1] - axis[0]) ** 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_an_observation_has_the_law_of_the_problem() -> None:
    given = exact.problem("M16")
    seen = torch.cat([given.observed(seed) for seed in range(400)])
    assert float(seen.var(0).mean()) == pytest.approx(given.prior_variance + given.std**2, rel=0.15)


def test_distances_of_samples() -> None:
    x = Noise.of(0, range(4000), dtype=torch.float64).normal("x", (2,))
    y = Noise.of(1, range(4000), dtype=torch.float64).normal("x", (2,))
    assert exact.sliced(x, x) == 0.0
    assert exact.sliced(x, y) < 0.06
    assert exact.sliced(x, x + torch.tensor([3.0, 0.0]).double()) == pytest.approx(3.0 / 2**0.5, rel=0.15)
    assert abs(exact.energy_distance(x, y)) < 0.01
    # Two points a apart: 2·a − 0 − 0.
    two = torch.zeros(5, 1, dtype=torch.float64), torch.full((5, 1), 2.0, dtype=torch.float64)
    assert exact.energy_distance(*two) == pytest.approx(4.0)


def test_cells_on_known_posteriors() -> None:
    corrected = exact.gaussian(method="corrected", sampler="ddim", steps=100, recur=1)
    matrix = exact.gaussian(method="posterior", sampler="ddim", steps=100, recur=1)
    assert corrected["w2"] == pytest.approx(matrix["w2"], rel=1e-9)
    assert corrected["w2"] < 0.02
    plain = exact.gaussian(method="paper", sampler="ddim", steps=100, recur=1)
    assert (plain["mean"], plain["variance"]) == (pytest.approx(2.318, abs=0.01), pytest.approx(0.003, abs=0.001))
    asked = {"target": "M1", "scale": 1.0, "seed": 0, "samples": 400}
    once = exact.mixture(method="forward", steps=20, recur=1, **asked)
    again = exact.mixture(method="forward", steps=20, recur=4, **asked)
    assert (once["evaluations"], again["evaluations"]) == (20, 77)
    assert again["sw2"] < 0.5 * once["sw2"]
    assert exact.mixture(method="exact", steps=1, recur=1, **asked)["evaluations"] == 0
    for method in ("dps", "corrected", "posterior", "backward", "both", "paper"):
        assert exact.mixture(method=method, steps=10, recur=1, **asked)["sw2"] < 1.0


def test_calls_and_gradients_are_counted() -> None:
    net = nn.Conv2d(3, 3, 1).requires_grad_(False)
    counted = images.Counted(Denoiser(lambda x, time: net(x), VP(), "clean", shape=(3, 8, 8)))
    assert counted.info.shape == (3, 8, 8)
    measured = guide.Measured(operator=lambda x: x.mean((2, 3)), target=torch.zeros(1, 3))
    x = torch.ones(2, 3, 8, 8)
    for guidance, calls, gradients in (
        (guide.Universal(energies=measured), 1, 1),
        (guide.Universal(energies=measured, strength=0.0, backward=guide.Backward(steps=3, rate=0.1)), 1, 0),
        (guide.LinearPosterior(measured=measured, iterations=3), 1, 4),
    ):
        counted.evaluations = counted.gradients = 0
        with torch.no_grad():
            guidance(counted)(x, 0.5)
        assert (counted.evaluations, counted.gradients) == (calls, gradients)


def test_the_judge_knows_the_colours() -> None:
    source = orn.data.open_source("critters:24", size=32)
    pictures = torch.stack([example.image for example in source]).float() / 127.5 - 1.0
    labels = torch.tensor([example.label for example in source])
    assert float((images.judged(pictures) == labels).float().mean()) > 0.9


@pytest.mark.slow
def test_cells_of_the_network() -> None:
    pictures, labels = images.targets(0, 48)
    assert float((images.judged(pictures) == labels).float().mean()) > 0.9
    plain = images.drawn(task="inpainting", method="plain", steps=4, recur=1, strength=0.0, seed=0, images=4)
    back = images.drawn(task="inpainting", method="backward", steps=4, recur=1, strength=0.0, seed=0, images=4)
    assert (plain["evaluations"], plain["gradients"]) == (back["evaluations"], back["gradients"]) == (4, 0)
    assert back["misfit"] < 0.2 * plain["misfit"]


class Made(Cells):
    """Made-up numbers in place of measurements: ``factor(row)`` times what a seed has in common."""

    def __init__(self, factor: Callable[[Mapping[str, Any]], float]) -> None:
        super().__init__(None)
        self.factor = factor

    def map(self, function: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """One made-up answer a row."""
        return [self._made(row) for row in rows]

    def _made(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        value = self.factor(row) * (1.0 + 0.3 * row.get("seed", 0))
        posterior = {"mean": exact.POSTERIOR[0] + value, "variance": exact.POSTERIOR[1] * (1.0 - value), "w2": value}
        shared = {"sw2": value, "energy": value, "spread": 1.0, "misfit": value, "kid": value, "hidden": value}
        gradients = 0 if row["method"] in {"plain", "backward"} else 1
        return posterior | shared | {"evaluations": 32, "gradients": gradients, "seconds": 1.0}


class MadeDPS(Made):
    """Rows of DPS on a Gaussian name no method."""

    def map(self, function: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """As above."""
        return [self._made({"method": "dps", "recur": 1} | dict(row)) for row in rows]


def verdicts(factor: Callable[[Mapping[str, Any]], float]) -> dict[str, str]:
    found = experiment("universal-guidance").run(MadeDPS(factor), Budget(0.01))
    return {finding.claim: finding.verdict for finding in found.findings}


def test_verdicts_follow_the_numbers() -> None:
    good = {"corrected": 0.01, "posterior": 0.3, "both": 0.3, "dps": 2.0, "noisy": 1.0, "backward": 0.5}

    def helps(row: Mapping[str, Any]) -> float:
        return good.get(row["method"], 0.9) / row["recur"] ** 2

    said = verdicts(helps)
    assert set(said.values()) == {"reproduced"}, said

    def hurts(row: Mapping[str, Any]) -> float:
        return 0.1 / good.get(row["method"], 0.9) * row["recur"] ** 2

    said = verdicts(hurts)
    assert said.pop("Backward guidance costs no call of the denoiser and no gradient through it") == "reproduced"
    assert "reproduced" not in said.values(), said


def test_no_difference_is_inconclusive_and_the_record_survives_json() -> None:
    made = MadeDPS(lambda row: 1.0 + 0.5 * ((row.get("seed", 0) * 7 + len(str(row))) % 3))
    found = experiment("universal-guidance").run(made, Budget(0.01))
    over_seeds = [finding for finding in found.findings if finding.interval is not None]
    assert "inconclusive" in {finding.verdict for finding in over_seeds}
    record = Record(
        experiment="universal-guidance", title="t", arxiv="a", version=1, budget=0.01, command="c", date="d",
        seconds=1.0, cells=1, machine={}, found=found,
    )  # fmt: skip
    assert Record.from_json(record.to_json()).found.findings[0].claim == found.findings[0].claim


def test_a_larger_budget_adds_seeds() -> None:
    from ornstein.reproduce.universal.verdicts import seeds_of

    assert list(seeds_of(Budget(0.01))) == [0, 1, 2]
    assert list(seeds_of(Budget(0.125)))[:3] == [0, 1, 2]
    assert len(seeds_of(Budget(1.0))) == 48


def test_the_public_name() -> None:
    assert experiment("universal-guidance").arxiv == "2302.07121"
    assert orn.guidance.corrected is guide.corrected
