"""Few steps from strong noise: no sampler ends far outside the data, but for those whose page cautions of it."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
import torch

from ornstein import grids
from ornstein.lab.targets import MixtureTarget
from ornstein.paths import VE, VP, AffinePath
from ornstein.randomness import Noise
from ornstein.samplers import SAMPLERS, run, sampler, solve

BOUND = 10.0
CAUTIONED = ("heun", "ancestral-large")
PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE()}
TARGET = MixtureTarget.of([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 1.0], [0.2, -1.1]], stds=[0.3, 0.2, 0.4])
SIZE = float((TARGET.weights[:, None] * (TARGET.means.square() + TARGET.variances)).sum().div(TARGET.dim).sqrt())
PAGE = FilePath(__file__).parents[2] / "docs" / "reference" / "samplers.md"


def after_a_leap(path: AffinePath, steps: int) -> tuple[float, ...]:
    """One step to half of the path, and equal ratios of times from there on."""
    top, end = path.t_range[1], path.t_range[0]
    middle = 0.5 * (top + end)
    inner = [middle * (path.t_min / middle) ** (i / max(steps - 2, 1)) for i in range(steps - 1)]
    return (top, *inner, end)


def largest(name: str) -> float:
    """The greatest size of the samples over that of the data."""
    found = 0.0
    for path in PATHS.values():
        for steps in (2, 3, 5, 20):
            for times in (grids.default(path, steps)(path), after_a_leap(path, steps)):
                noise = Noise.of(0, range(16), dtype=torch.float64)
                x = path.prior(noise, (TARGET.dim,), times[0])
                end = run(solve(sampler(name), path, x, times, noise), TARGET.denoiser(path))
                found = max(found, float(end.square().mean().sqrt()) / SIZE)
    return found


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(CAUTIONED) - {"ancestral-learned"}))
def test_no_sampler_ends_far_outside_the_data(name: str) -> None:
    assert largest(name) < BOUND


@pytest.mark.parametrize("name", CAUTIONED)
def test_the_others_are_named_on_the_page(name: str) -> None:
    assert largest(name) > BOUND, "it stays near: take its caution away"
    remark = PAGE.read_text("utf-8").split("**At few steps from strong noise**")[1].split("\n* ")[0]
    assert f"`{name}`" in remark
