"""Settings of the laboratory: defaults, and goldens in float64 where a number of nodes is no law of its own."""

import concurrent.futures
import inspect
import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import pytest
import torch

from ornstein.lab.assumptions import score_errors
from ornstein.lab.backward import BLUR, blurred_w1
from ornstein.lab.bench import Bench
from ornstein.lab.certificates import certify
from ornstein.lab.dimension import FAMILIES, dimension
from ornstein.lab.fields import smooth_field
from ornstein.lab.laws import deterministic_tv, stochastic_tv
from ornstein.lab.meters import conditional_root_kl, gaussian_law, propagate
from ornstein.lab.over_times import over_times
from ornstein.lab.rates import measure, measuring_grid
from ornstein.lab.studies import precision, score_error
from ornstein.lab.targets import G8, M1, Giso
from ornstein.lab.trajectories import flow
from ornstein.paths import VP
from ornstein.paths.base import AffinePath
from ornstein.samplers import SAMPLERS, Query, RandomizedMidpoint, Sampler, sampler

DEFAULTS = {
    blurred_w1: {"samples": 20_000, "seed": 0, "blur": 0.1},
    certify: {"denoiser": None, "noise": None, "points": 2001},
    conditional_root_kl: {"draws": 200},
    deterministic_tv: {"points": 8001, "seed": 0, "denoiser": None},
    flow: {"steps": 3000},
    gaussian_law: {"seed": 0, "start": None, "denoiser": None},
    propagate: {"dense": False, "seed": 0, "noise": None},
    score_errors: {"probes": 16},
    smooth_field: {"side": 4, "channels": 1, "length": 1.5},
    measuring_grid: {"low": 0.02, "high": 80.0},
    dimension: {
        "samplers": None, "families": FAMILIES, "dimensions": (4, 16, 64, 256), "path": "vp", "grid": "log-snr",
        "steps": 64, "targets": 4, "schedules": 8, "trajectories": 128,
    },
    measure: {
        "samplers": None, "targets": ("G8", "M1"), "path": "vp", "grid": "log-snr", "counts": None, "quick": False,
        "known": SAMPLERS, "jobs": 1,
    },
    precision: {
        "samplers": None, "target": "M2", "path": "vp", "grid": "log-snr", "counts": (64, 256, 1024),
        "trajectories": 256, "known": SAMPLERS,
    },
    score_error: {
        "samplers": None, "targets": ("G8", "M1"), "path": "vp", "grid": "log-snr", "counts": (32, 128, 512),
        "known": SAMPLERS,
    },
}  # fmt: skip


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda one: one.__name__)
def test_defaults(function):
    found = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    given = {
        name: value
        for name, value in found.items()
        if value is not inspect.Parameter.empty and name in DEFAULTS[function]
    }
    assert given == DEFAULTS[function]
    for name in {"progress", "through"} & set(found):  # defaults: no report, the identity
        assert found[name]("x") == (None if name == "progress" else "x")


def test_the_effort_of_a_full_and_of_a_quick_run():
    full, quick = (asdict(Bench("x", sampler("ddim"), "G8", VP(), quick=quick).effort) for quick in (False, True))
    assert full == {"counts": None, "line": 2001, "cells": 2048, "nodes": 9, "schedules": 60, "samples": 100_000,
                    "reference": 2000}  # fmt: skip
    assert quick == {"counts": 4, "line": 1001, "cells": 1024, "nodes": 5, "schedules": 8, "samples": 8_000,
                     "reference": 600}  # fmt: skip
    assert BLUR == 0.1
    assert not Bench("x", sampler("ddim"), "G8", VP()).quick


def test_eight_nodes_for_a_drawn_time():
    times = measuring_grid("log-snr", 6)(VP())
    usual, eight, seven = (
        over_times(RandomizedMidpoint(), G8(), VP(), times, **kw) for kw in ({}, {"nodes": 8}, {"nodes": 7})
    )
    assert torch.equal(usual.variance, eight.variance)
    assert not torch.equal(usual.variance, seven.variance)


def test_goldens_of_the_laws_on_the_line():
    """Windows, cells, levels, folds, points of interpolation and nodes: all of them move these digits."""
    times = measuring_grid("log-snr", 5)(VP())
    for name, options, w1, noise in (
        ("dpmpp-2m-sde", {}, 0.1603583580120339, 0.059882010399046344),
        ("ancestral", {}, 0.4832502487047039, 0.03247266855507864),
        ("ancestral", {"seed": 3, "blur": 0.3}, 0.46842540722879733, 0.020479544309845412),
    ):
        found = blurred_w1(sampler(name), M1(), VP(), times, samples=160, **options)
        assert (found.w1, found.noise, found.evaluations) == (
            pytest.approx(w1, rel=1e-8),
            pytest.approx(noise, rel=1e-8),
            5,
        )
    times = measuring_grid("log-snr", 12)(VP())
    found = deterministic_tv(sampler("heun"), M1(), VP(), times, points=301)
    assert found == pytest.approx(0.05669008064830044, rel=1e-9)
    times = measuring_grid("log-snr", 12, 0.1)(VP())
    found = stochastic_tv(sampler("accelerated-sde"), M1(), VP(), times, points=256)
    assert found == pytest.approx(0.06579821120485493, rel=1e-8)


class Pool:
    """Processes that are this one: what they were made with is written down."""

    made: ClassVar[list[tuple[int, str]]] = []

    def __init__(self, workers: int, *, mp_context: Any, initializer: Any) -> None:
        threads = torch.get_num_threads()
        initializer()
        self.made.append((workers, mp_context.get_start_method()))
        assert torch.get_num_threads() == 1
        torch.set_num_threads(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Any, items: Any) -> Any:
        return map(function, items)


@pytest.mark.parametrize(
    ("rules", "jobs", "made"),
    [(11, 2, []), (12, 1, []), (12, 2, [2]), (12, 30, [12]), (12, None, [3])],
)
def test_twelve_pairs_are_worth_several_processes(monkeypatch, rules, jobs, made):
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(Pool, "made", [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2} if pid == 0 else set())
    many = {str(i): (lambda i=i: replace(sampler("sa-solver"), tau=0.01 * i)) for i in range(rules)}
    said: list[str] = []
    found = measure(None, ["Giso"], counts=(4,), known=many, jobs=jobs, progress=said.append)
    assert Pool.made == [(workers, "spawn") for workers in made]
    assert said == [f"{name} on Giso" for name in many]
    assert [one.sampler for one in found.series[::2]] == list(many)
    assert found.series == measure(None, ["Giso"], counts=(4,), known=many).series


@dataclass(frozen=True)
class Thrice:
    """DDIM, asked three times a step, and declared of order three."""

    times: int = 3
    order: float = 3
    needs: type[Any] = AffinePath

    def step(self, path, x, step, noise, memory):
        for _ in range(self.times):
            found = yield Query(x, step.t)
        return path.ddim_step(x, found, path.sigma(step.s) / path.sigma(step.t), step.s)


@pytest.mark.parametrize(
    ("rule", "quick", "first"),
    [(Thrice(3), True, 32), (Thrice(4), True, 16), (Thrice(4), False, 32), (Thrice(3, 2), True, 16)],
)
def test_a_quick_run_spares_rules_of_more_than_three_questions_a_step(rule: Sampler, quick, first):
    """On the line, where high orders begin at 32 steps; Giso is a mixture of one there."""
    (found,) = Bench("x", rule, "M1", VP(), quick=quick).series()
    assert found.counts[0] == first


@dataclass(frozen=True)
class Off:
    """The exact flow of N(0, 1), whose end is too large by one part that depends on the number of steps."""

    parts: tuple[tuple[int, float], ...]
    order: float = 2
    needs: type[Any] = AffinePath

    def step(self, path, x, step, noise, memory):
        yield Query(x, step.t)
        if step.before is None:
            width = path.log_snr(step.s) - path.log_snr(step.t)
            x = x * (1.0 + dict(self.parts)[round(2.0 * math.log(4000.0) / width)])
        one, two = Giso().law(path, step.t), Giso().law(path, step.s)
        return x * (two.variance / one.variance).sqrt()


def test_the_floor_and_the_ceilings_of_the_gaussian_meters():
    """Errors below 50·1e-13 are rounding; above 2 in √KL, and above 3 in W2, nothing is asymptotic."""
    parts = ((4, 5.0), (8, 2.4), (16, 1e-3), (32, 1e-6), (64, 5.5e-12), (128, 4.5e-12))
    counts = tuple(n for n, _ in parts)
    kls, w2s = Bench("x", Off(parts), "Giso", VP(), asked=counts).series()
    for series, ceiling in ((kls, 2.0), (w2s, 3.0)):
        usable = [n for n, error in zip(counts, series.errors, strict=True) if 5e-12 <= error <= ceiling]
        assert series.fit.counts == tuple(usable)
    assert kls.fit.counts == (16, 32, 64)
    assert w2s.fit.counts[-2:] == (32, 64)
