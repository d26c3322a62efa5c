"""The defaults of every sampler, with where they were published, and the values that are refused at their edges."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch

from ornstein import grids
from ornstein.errors import ConfigError
from ornstein.lab.targets import M2
from ornstein.paths import VP
from ornstein.randomness import Noise
from ornstein.samplers import (
    DDIM,
    DEIS,
    SAMPLERS,
    AcceleratedODE,
    Ancestral,
    Collocation,
    DPMSolver,
    DPMSolver2S,
    ExponentialIntegrator,
    MidpointSDE,
    RandomizedMidpoint,
    SASolver,
    TrigFlowAdams,
    UniPC,
    picard,
    plan,
    sampler,
)

DEFAULTS: list[tuple[Any, dict[str, Any], str]] = [
    (Ancestral(), {"variance": "small"}, "Ho et al. 2020, eq. 6–7"),
    (DDIM(), {"eta": 0.0}, "Song et al. 2021, sec. 4.1: DDIM is η = 0"),
    (
        DPMSolver(),
        {"points": 2, "stochastic": False, "brownian": False, "start": "midpoint"},
        "Lu et al. 2022: 2M is the recommended one",
    ),
    (DPMSolver2S(), {"stochastic": False, "brownian": False}, "Lu et al. 2022, algorithm 1"),
    (
        UniPC(),
        {"p": 2, "variant": "bh2", "corrector": True, "lower_final": True, "start": "third"},
        "Zhao et al. 2023, app. E: order 2 and B₂(h) for guided sampling",
    ),
    (SASolver(), {"predictor": 3, "corrector": 3, "tau": 0.3}, "Xue et al. 2023: three and three points"),
    (DEIS(), {"points": 3, "variable": "time"}, "Zhang & Chen 2023: tAB3"),
    (AcceleratedODE(), {"form": "probe"}, "Li et al. 2024, the rule of the theorem"),
    (MidpointSDE(), {"form": "variance"}, "of order 2 on every target"),
    (ExponentialIntegrator(), {"freeze": "score"}, "Li, Di & Gu 2025"),
    (Collocation(), {"nodes": 3, "sweeps": 3}, "order min(nodes, sweeps)"),
    (
        RandomizedMidpoint(),
        {"form": "noise", "places": "random", "opening": "pair"},
        "Li & Jiao 2025, with the noise in place of the score",
    ),
    (
        TrigFlowAdams(),
        {"points": 3, "corrector": True, "scale": 1.0, "offset": 0.15},
        "scale one is TrigFlow's angle, Lu & Song 2025",
    ),
]


@pytest.mark.parametrize(("rule", "defaults", "source"), DEFAULTS, ids=lambda value: type(value).__name__)
def test_published_defaults(rule: Any, defaults: dict[str, Any], source: str) -> None:
    assert asdict(rule) == defaults, source


NAMES: dict[str, Any] = {
    "ancestral": Ancestral(variance="small"),
    "ancestral-large": Ancestral(variance="large"),
    "ancestral-learned": Ancestral(variance="learned"),
    "ddpm": Ancestral(variance="small"),
    "ddim": DDIM(eta=0.0),
    "ddim-eta1": DDIM(eta=1.0),
    "dpmpp-1": DPMSolver(points=1),
    "dpmpp-2m": DPMSolver(points=2),
    "dpmpp-3m": DPMSolver(points=3),
    "dpmpp-2s": DPMSolver2S(stochastic=False),
    "dpmpp-1-sde": DPMSolver(points=1, stochastic=True),
    "dpmpp-2m-sde": DPMSolver(points=2, stochastic=True),
    "dpmpp-2s-sde": DPMSolver2S(stochastic=True),
    "dpmpp-3m-sde": DPMSolver(points=3, stochastic=True),
    "unipc": UniPC(p=2),
    "unipc-1": UniPC(p=1),
    "unipc-2": UniPC(p=2),
    "unipc-3": UniPC(p=3),
    "accelerated-ode": AcceleratedODE("probe"),
    "accelerated-ode-history": AcceleratedODE("history"),
    "accelerated-ode-memory": AcceleratedODE("memory"),
    "randomized-midpoint": RandomizedMidpoint(places="random"),
    "staggered-midpoint": RandomizedMidpoint(places="middle"),
    "exponential-integrator": ExponentialIntegrator("score"),
    "deis-2": DEIS(points=2, variable="time"),
    "deis-3": DEIS(points=3, variable="time"),
    "collocation-3": Collocation(nodes=3, sweeps=3),
    "collocation-4": Collocation(nodes=4, sweeps=4),
    "angle-adams": TrigFlowAdams(points=3, corrector=True),
    "angle-adams-explicit": TrigFlowAdams(points=3, corrector=False),
    "sa-solver": SASolver(predictor=3, corrector=3, tau=0.3),
    "sde-midpoint": MidpointSDE("variance"),
    "sde-midpoint-exponential": MidpointSDE("exponential"),
}
PLAIN = {"euler", "heun", "accelerated-sde"}  # without any setting


def test_names_and_their_settings() -> None:
    assert {name: sampler(name) for name in NAMES} == NAMES
    assert {type(sampler(name)).__name__ for name in PLAIN} == {"Euler", "Heun", "AcceleratedSDE"}


def test_an_unknown_name_is_answered_with_three_near_ones_and_then_all() -> None:
    for asked, first in (("HEUN", "heun"), ("unipc-9", "unipc-3"), ("ddmp", "ddim")):
        with pytest.raises(ConfigError) as caught:
            sampler(asked)
        said = str(caught.value)
        assert said.startswith(f"unknown sampler {asked!r}: choose one of ")
        listed = said.split("choose one of ")[1].split(", ")
        assert first in listed[:3]
        assert sorted(listed) == sorted(SAMPLERS)
        assert listed[3:] == [name for name in SAMPLERS if name not in listed[:3]]
    with pytest.raises(ConfigError) as caught:
        sampler("zzzzzzzz")
    assert str(caught.value).endswith(", ".join(SAMPLERS))


GOOD: list[Any] = [
    *(lambda n=n: TrigFlowAdams(points=n) for n in (1, 4)),
    *(lambda n=n: Collocation(nodes=n) for n in (2, 6)),
    *(lambda n=n: Collocation(sweeps=n) for n in (1, 8)),
    *(lambda n=n: SASolver(predictor=n) for n in (1, 4)),
    *(lambda n=n: SASolver(corrector=n) for n in (0, 4)),
    *(lambda eta=eta: DDIM(eta) for eta in (0.0, 1.0)),
    lambda: SASolver(tau=0.0),
    lambda: TrigFlowAdams(scale=1e-9, offset=1e-9),
]
BAD: list[Any] = [
    *(lambda n=n: TrigFlowAdams(points=n) for n in (0, 5)),
    *(lambda n=n: Collocation(nodes=n) for n in (1, 7)),
    *(lambda n=n: Collocation(sweeps=n) for n in (0, 9)),
    *(lambda n=n: SASolver(predictor=n) for n in (0, 5)),
    *(lambda n=n: SASolver(corrector=n) for n in (-1, 5)),
    *(lambda eta=eta: DDIM(eta) for eta in (-0.01, 1.01, math.nan)),
    *(lambda tau=tau: SASolver(tau=tau) for tau in (-0.1, math.inf, math.nan)),
    *(lambda s=s: TrigFlowAdams(scale=s) for s in (0.0, math.inf, math.nan)),
    *(lambda s=s: TrigFlowAdams(offset=s) for s in (0.0, math.inf, math.nan)),
    *(lambda n=n: DPMSolver(points=n) for n in (0, 4)),
    *(lambda n=n: UniPC(p=n) for n in (0, 4)),
    *(lambda n=n: DEIS(points=n) for n in (0, 4)),
    lambda: DEIS(variable="level"),  # type: ignore[arg-type]
    lambda: Ancestral("medium"),  # type: ignore[arg-type]
    lambda: ExponentialIntegrator("clean"),  # type: ignore[arg-type]
    lambda: MidpointSDE("half"),  # type: ignore[arg-type]
    lambda: AcceleratedODE("three"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", GOOD)
def test_the_last_values_that_are_allowed(make: Any) -> None:
    assert make().order >= 1


@pytest.mark.parametrize("make", BAD)
def test_the_first_values_that_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


ORDERS: list[tuple[Any, float]] = [
    *((TrigFlowAdams(points=n, corrector=True), o) for n, o in ((1, 2), (2, 3), (3, 3), (4, 3))),
    *((TrigFlowAdams(points=n, corrector=False), o) for n, o in ((1, 1), (2, 2), (3, 2), (4, 2))),
    *((DPMSolver(points=n, stochastic=True), o) for n, o in ((1, 1), (2, 2), (3, 2))),
    *((DPMSolver(points=n, start="plain"), o) for n, o in ((1, 1), (2, 2), (3, 2))),
    *((UniPC(p=n), n + 1) for n in (1, 2, 3)),
    *((UniPC(p=n, corrector=False), n) for n in (1, 2, 3)),
    *((UniPC(p=n, start="plain"), o) for n, o in ((1, 2), (2, 3), (3, 3))),
    *(
        (SASolver(predictor=p, corrector=c, tau=0.0), o)
        for p, c, o in ((1, 0, 1), (3, 0, 2), (1, 1, 2), (1, 3, 2), (3, 1, 2), (2, 2, 3), (4, 4, 3))
    ),
    *((SASolver(predictor=p, corrector=c, tau=0.5), o) for p, c, o in ((1, 0, 1), (1, 2, 1), (2, 0, 2), (4, 4, 2))),
    *((Collocation(nodes=n, sweeps=s), o) for n, s, o in ((2, 5, 2), (5, 2, 2), (4, 4, 4), (3, 1, 1))),
]


@pytest.mark.parametrize(("rule", "order"), ORDERS, ids=lambda value: repr(value)[:70])
def test_orders_of_every_setting(rule: Any, order: float) -> None:
    assert rule.order == order


COSTS: list[tuple[Any, int, int]] = [  # over six steps that end above the clean end, and with a jump to it
    (Collocation(nodes=2, sweeps=1), 6, 7),
    (Collocation(nodes=4, sweeps=3), 6 * 7, 6 * 7 + 1),
    (DEIS(), 7, 8),
    (DPMSolver(points=3), 7, 8),
    (UniPC(p=3), 8, 9),
    (UniPC(p=3, start="plain"), 6, 7),
    (DPMSolver2S(), 12, 13),
    (AcceleratedODE(), 11, 12),
    (RandomizedMidpoint(), 6, 7),
    (RandomizedMidpoint(opening="single"), 5, 6),
    (TrigFlowAdams(), 6, 7),
]


@pytest.mark.parametrize(("rule", "finite", "clean"), COSTS, ids=lambda value: repr(value)[:50])
def test_evaluations_of_every_setting(rule: Any, finite: int, clean: int) -> None:
    times = grids.span_log_snr(6, -2.0, 4.0)(VP())
    assert len(plan(rule, VP(), times)) == finite
    assert len(plan(rule, VP(), (*times, 0.0))) == clean


def test_the_parallel_form_stops_at_no_tolerance() -> None:
    assert inspect.signature(picard).parameters["tolerance"].default == 0.0
    noise = Noise.of(0, range(1), dtype=torch.float64)
    for bad in (-1e-9, math.inf, math.nan):
        with pytest.raises(ConfigError, match="finite and not negative"):
            picard(RandomizedMidpoint(), M2().denoiser(VP()), torch.zeros(1, 2), (0.5, 0.1), noise, 1, tolerance=bad)
