"""Few steps from strong noise: no sampler ends far outside the data."""

from __future__ import annotations

import math

import pytest
import torch
from reach import allowed, off

from ornstein import grids
from ornstein.lab.meters import gaussian_law
from ornstein.lab.targets import GaussianTarget, MixtureTarget
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import SAMPLERS, run, sampler, solve

BOUND = 10.0
PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE()}
TARGET = MixtureTarget.of([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 1.0], [0.2, -1.1]], stds=[0.3, 0.2, 0.4])
SIZE = float((TARGET.weights[:, None] * (TARGET.means.square() + TARGET.variances)).sum().div(TARGET.dim).sqrt())


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


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ancestral-learned"}))
def test_no_sampler_ends_far_outside_the_data(name: str) -> None:
    assert largest(name) < BOUND


@pytest.mark.parametrize("std", [0.03, 0.18, 1.0, 3.0])
@pytest.mark.parametrize("name", ["heun", "ancestral-large", "angle-adams", "dpmpp-2m", "unipc"])
def test_few_steps_of_every_grid_stay_near_a_gaussian(name: str, std: float) -> None:
    """The exact law of 1 to 5 steps has the size of the data, or of data of scale one where that is larger."""
    target = GaussianTarget([0.4], [std**2])
    for path in (VP(), VP.cosine(), VE(), Flow()):
        for family in (grids.karras, grids.log_snr, grids.power, grids.uniform):
            for steps in (1, 2, 3, 5):
                found = gaussian_law(sampler(name), target, path, family(steps)(path))
                assert math.hypot(float(found.mean), math.sqrt(float(found.variance))) < 2.5 * math.hypot(
                    0.4, max(std, 1.0)
                )


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ancestral-learned", "ddpm"}))
def test_the_exact_law_of_few_and_of_uneven_steps_is_within_reach(name: str) -> None:
    """Of first order over the long steps, whatever the sampler's order: never magnified."""
    for path in (VP.cosine(), VE()):
        restart = grids.restart(grids.default(path, 7), low=path.time_of(1.0), high=path.time_of(-1.5))
        for grid in (grids.karras(7), grids.log_snr(10), grids.power(10), restart):
            for std in (0.1, 1.0, 2.5):
                mean, rule, times = 0.3 * std, sampler(name), grid(path)
                model = GaussianTarget([mean], [std**2]).denoiser(path)
                far = off(rule, model, path, times, mean, std)
                assert far <= allowed(name, rule, path, times, mean, std), (path, grid, std)
