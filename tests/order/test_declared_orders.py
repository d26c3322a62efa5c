"""Every registered sampler shows the order that it declares: nowhere less, and on its worst target no more.

A new name in the registry is measured without a word here: the sampler is asked what randomness it uses, and that
decides the meter. Deterministic rules: distance to the fine solution on a mixture, on every path, and √KL on eight
Gaussian directions. Stochastic ones: √KL, and the exact total variation on the mixture where nothing is remembered.
Rules that draw their times: the exact √KL given these. All in float64, between fixed levels, without sampling noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.estimates import Estimate
from ornstein.lab.laws import is_one_step, stochastic_tv
from ornstein.lab.meters import NoiseBasis, gaussian_law, kl
from ornstein.lab.over_times import over_times
from ornstein.lab.targets import G8, M1
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.paths.base import Cond
from ornstein.randomness import Noise, NoiseSource
from ornstein.samplers import (
    DDIM,
    DEIS,
    SAMPLERS,
    AcceleratedODE,
    AcceleratedSDE,
    Ancestral,
    Collocation,
    DPMSolver,
    DPMSolver2S,
    Heun,
    MidpointSDE,
    RandomizedMidpoint,
    Sampler,
    SASolver,
    TrigFlowAdams,
    UniPC,
    run,
    sampler,
    solve,
)
from ornstein.samplers.base import Memory, Step, Steps

PATHS: Mapping[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
MIDWAY = (-2.0, 4.0)  # log-SNR: the estimate moves at both ends, so that every starting procedure shows
SHORT = (-1.0, 2.0)  # where the law on the mixture is asymptotic from some 16 steps on
NEAR = 0.2  # less than half of the distance between two orders
STARTS = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """Which step counts the slope is taken between, and whether the Gaussian meter holds."""

    reason: str = ""
    counts: tuple[int, int] = (64, 128)
    gaussian: bool = True


USUAL = Way()
EXCEPTIONS: Mapping[str, Way] = {
    "sa-solver": Way(
        reason="τ = .3: its noise, whose error is of order 2, is small, and until 128 steps the rest of order 3 shows",
        counts=(128, 256),
    ),
    "ancestral-learned": Way(
        reason="it reads a second head of the network, which the rows of the Gaussian meter cannot carry",
        gaussian=False,
    ),
}


@dataclass(frozen=True)
class Headed:
    """The exact denoiser of M1 with a variance head that says: halfway between the two logarithms."""

    path: AffinePath

    def __call__(self, x: Tensor, t: Any) -> Estimate:
        clean = M1().denoiser(self.path)(x, t).clean
        return Estimate(x, t, self.path, clean=clean, extras={"variance": torch.zeros_like(x)})

    def with_condition(self, cond: Cond) -> Headed:
        return self

    def predict_conditions(self, x: Tensor, t: Any, conds: Sequence[Cond]) -> list[Estimate]:
        return [self(x, t) for _ in conds]

    def denoiser(self, path: AffinePath) -> Headed:
        """As a target that answers with itself."""
        return Headed(path)


def times_of(path: AffinePath, steps: int, ends: tuple[float, float]) -> tuple[float, ...]:
    return grids.span_log_snr(steps, *ends)(path)


def slope(error: Callable[[int], float], counts: tuple[int, int]) -> float:
    few, many = map(error, counts)
    return math.log(few / many) / math.log(counts[1] / counts[0])


def descend(rule: Sampler, path: AffinePath, steps: int) -> Tensor:
    """41 points on the line, as many deviations of the law at the top."""
    times = times_of(path, steps, MIDWAY)
    x = STARTS * math.hypot(path.alpha(times[0]), path.sigma(times[0]))
    return run(solve(rule, path, x, times, Noise.of(0, range(41))), Headed(path))


@lru_cache
def fine(path: AffinePath) -> Tensor:
    return descend(UniPC(p=3), path, 600)


def distance(rule: Sampler, path: AffinePath) -> Callable[[int], float]:
    """Median: points where two modes meet go to either."""
    return lambda steps: float((descend(rule, path, steps) - fine(path)).abs().median())


def root_kl(rule: Sampler, path: AffinePath) -> Callable[[int], float]:
    def error(steps: int) -> float:
        times = times_of(path, steps, MIDWAY)
        return math.sqrt(kl(gaussian_law(rule, G8(), path, times), G8().law(path, times[-1])))

    return error


def total_variation(rule: Sampler, path: AffinePath) -> Callable[[int], float]:
    def error(steps: int) -> float:
        times = times_of(path, steps, SHORT)
        return stochastic_tv(rule, M1(), path, times, points=512, nodes=5, denoiser=Headed(path))

    return error


@cache
def orders(rule: Sampler, path: AffinePath = PATHS["vp"], way: Way = USUAL) -> Mapping[str, float]:
    """Measure → order, whatever kind of sampler it is."""
    basis = NoiseBasis()
    run(solve(rule, path, STARTS[:1], times_of(path, 3, MIDWAY), basis), Headed(path))
    if basis.draws_times:

        def given(steps: int) -> float:
            return over_times(rule, G8(), path, times_of(path, steps, MIDWAY), nodes=5).conditional_root_kl

        return {"√KL given the times": slope(given, way.counts)}
    found: dict[str, float] = {}
    if way.gaussian:
        found["√KL"] = slope(root_kl(rule, path), way.counts)
    if not basis.stochastic:
        found["distance"] = slope(distance(rule, path), way.counts)
    elif is_one_step(rule, Headed(path), path, times_of(path, 16, MIDWAY)):  # type: ignore[arg-type]
        found["total variation"] = slope(total_variation(rule, path), (32, 64))
    return found


def check(declared: float, found: Mapping[str, float]) -> None:
    """The order of a sampler is the one on its worst target."""
    slowest = min(found.values())
    assert slowest > declared - NEAR, f"declares {declared}, which is not reached: {found}"
    assert slowest < declared + NEAR, f"declares {declared}, and is better everywhere: {found}"


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_registered_sampler_shows_its_declared_order(name: str) -> None:
    rule, way = sampler(name), EXCEPTIONS.get(name, USUAL)
    found = orders(rule, PATHS["vp"], way)
    check(rule.order, found)
    for false in (rule.order - 0.5, rule.order + 0.5, rule.order + 1.0, 4.0 if rule.order < 4 else 1.0):
        with pytest.raises(AssertionError, match="declares"):
            check(false, found)


@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_does_not_depend_on_the_path(name: str, path: str) -> None:
    """Distances for the deterministic ones, laws on Gaussians for the others."""
    rule, way = sampler(name), EXCEPTIONS.get(name, USUAL)
    on_vp = orders(rule, PATHS["vp"], way)
    if "distance" in on_vp:
        check(rule.order, {**on_vp, "distance": slope(distance(rule, PATHS[path]), way.counts)})
    elif "√KL" in on_vp:
        check(rule.order, {**on_vp, "√KL": slope(root_kl(rule, PATHS[path]), way.counts)})


def test_exceptions_are_of_registered_samplers_and_say_why() -> None:
    assert set(EXCEPTIONS) <= set(SAMPLERS)
    assert all(way.reason for way in EXCEPTIONS.values())


VARIANTS: list[Sampler] = [
    DDIM(0.5),
    DPMSolver(points=3, start="plain"),
    UniPC(p=1, corrector=False),
    UniPC(p=2, corrector=False),
    UniPC(p=3, corrector=False),
    UniPC(p=2, variant="bh1"),
    UniPC(p=3, variant="bh1"),
    UniPC(p=2, lower_final=False),
    DEIS(points=2, variable="sigma"),
    DEIS(variable="sigma"),
    DEIS(variable="log-sigma"),
    DEIS(variable="gain"),
    Collocation(nodes=4, sweeps=2),
    Collocation(nodes=2, sweeps=4),
    SASolver(predictor=1, corrector=0, tau=0.0),
    SASolver(predictor=1, corrector=0, tau=1.0),
    SASolver(predictor=2, corrector=0, tau=1.0),
    SASolver(predictor=2, corrector=2, tau=0.0),
    SASolver(predictor=3, corrector=0, tau=0.0),
    SASolver(predictor=1, corrector=1, tau=0.0),
    RandomizedMidpoint("clean"),
    RandomizedMidpoint("clean", "middle"),
    RandomizedMidpoint("score", "middle"),
    TrigFlowAdams(points=1, corrector=False),
    TrigFlowAdams(points=1),
    TrigFlowAdams(points=2, corrector=False),
    TrigFlowAdams(points=2),
    TrigFlowAdams(points=4, corrector=False),
    TrigFlowAdams(points=4),
]


LATE: list[Sampler] = [
    UniPC(p=3, start="plain"),  # the share of its first step, of lower order, is small at first
    SASolver(predictor=2, corrector=2, tau=1.0),  # and so is that of its noise
]


@pytest.mark.parametrize("rule", [*VARIANTS, *LATE], ids=repr)
def test_variants_show_their_declared_order(rule: Sampler) -> None:
    check(rule.order, orders(rule, way=Way(counts=(128, 256)) if rule in LATE else USUAL))


@dataclass(frozen=True)
class Claim:
    """A sampler whose body is ``rule`` and whose order is what it says."""

    rule: Sampler
    order: float

    @property
    def needs(self) -> type[Any]:
        return self.rule.needs

    def step(self, path: Any, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        return self.rule.step(path, x, step, noise, memory)


FALSE: list[Claim] = [
    Claim(DDIM(), 2),
    Claim(Heun(), 4),
    Claim(Heun(), 1),
    Claim(DPMSolver(points=3), 4),
    Claim(AcceleratedODE("memory"), 3),
    Claim(Ancestral(), 1.5),
    Claim(AcceleratedSDE(), 2),  # as on Gaussians
    Claim(MidpointSDE(), 3),  # as on Gaussians
    Claim(MidpointSDE("exponential"), 1),  # as a dip before the asymptotic end suggests
    Claim(DPMSolver2S(stochastic=True), 3),
    Claim(DPMSolver(points=3, stochastic=True), 3),
    Claim(RandomizedMidpoint(), 2),  # as in the law over all draws
    Claim(RandomizedMidpoint(places="middle"), 1.5),
]


@pytest.mark.parametrize("rule", FALSE, ids=repr)
def test_a_false_claim_is_rejected(rule: Claim) -> None:
    with pytest.raises(AssertionError, match="declares"):
        check(rule.order, orders(rule))


@pytest.mark.parametrize("rule", [Claim(Heun(), 2), Claim(Ancestral(), 1)], ids=repr)
def test_a_true_claim_of_an_unknown_sampler_is_accepted(rule: Claim) -> None:
    check(rule.order, orders(rule))


def test_a_dip_is_no_order() -> None:
    """The exponential midpoint rule: below its order over a long range of levels at some steps, and 2 at the end."""
    rule, path = MidpointSDE("exponential"), PATHS["vp"]

    def error(steps: int) -> float:
        return stochastic_tv(rule, M1(), path, times_of(path, steps, MIDWAY), points=512, nodes=5)

    assert slope(error, (16, 32)) < 1.7
    assert orders(rule)["total variation"] == pytest.approx(2.0, abs=0.05)
