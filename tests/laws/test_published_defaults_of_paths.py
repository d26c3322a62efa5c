"""One table: published numbers of every method against the defaults of its function or class here."""

import dataclasses
import inspect
from typing import Any

import pytest

from ornstein import cascade, estimates, grids, interpolation, sampling
from ornstein.cascade import Cascade
from ornstein.denoisers import Denoiser
from ornstein.networks.stages import Stages
from ornstein.parameterizations import EDM, Anchored, Consistency, LevelBelow, NoisePrediction
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.paths.vp import Cosine, Linear, ScaledLinear
from ornstein.randomness import Noise

PUBLISHED: dict[Any, dict[str, Any]] = {
    # Ho et al. 2020 and Song et al. 2021: β from 0.1 to 20 over [0, 1], networks from 1e-3 on.
    Linear: {"beta_min": 0.1, "beta_max": 20.0, "t_range": (0.0, 1.0), "t_min": 1e-3},
    # Rombach et al. 2022: 0.00085 and 0.012 times 1000 steps.
    ScaledLinear: {"beta_min": 0.85, "beta_max": 12.0, "t_range": (0.0, 1.0), "t_min": 1e-3},
    # Nichol & Dhariwal 2021: s = 0.008; α vanishes at 1.
    Cosine: {"offset": 0.008, "t_range": (0.0, 0.999), "t_min": 1e-3},
    # Karras et al. 2022, table 1.
    VE: {"sigma_min": 0.002, "sigma_max": 80.0},
    EDM: {"sigma_data": 0.5},
    grids.karras: {"rho": 7.0, "start": None},
    grids.churn: {"total": 40.0, "low": 0.05, "high": 50.0},
    Flow: {"t_min": 1e-3},
    # Song et al. 2023, appendix C.
    Consistency: {"sigma_data": 0.5, "sigma_min": 0.002},
    Anchored: {"sigma_min": 0.002, "width": 0.01},
    # Abu-Hussein & Giryes 2024: the schedule of the public weights.
    PyramidPath: {
        "alphas": (0.5, 0.2, 1e-3),
        "sigmas": (0.1, 0.2, 0.3),
        "factors": (2, 2, 2),
        "rule": "exact",
        "kernel": (),
    },
    LevelBelow: {"scaled": True, "preconditioned": True, "sigma_data": 0.5},
    # Yang et al. 2024: α(1 − α).
    ShiftedPath: {"base": VP(), "bend": "quadratic", "cond": {}},
    VP: {"schedule": Linear()},
    VP.table: {"kind": "linear", "steps": 1000, "start": None, "end": None},
    # An et al. 2024.
    Cascade: {
        "front": NoisePrediction(),
        "clip": 1.0,
        "gate": "map",
        "squash": "sigmoid",
        "see_state": False,
        "residual": False,
        "forced": None,
    },
    cascade.cascaded: {
        "freeze": True,
        "back_conditions": None,
        "clip": 1.0,
        "gate": "map",
        "squash": "sigmoid",
        "see_state": False,
        "residual": False,
    },
    Stages: {"back_conditions": None},
    # Song et al. 2021: the quadratic grid of DDIM.
    grids.power: {"exponent": 2.0, "start": None},
    grids.uniform: {"start": None},
    grids.log_snr: {"start": None},
    grids.cauchy: {"centre": 0.3, "width": 2.0, "start": None},
    # Li et al. 2024; Li & Jiao 2025; Li, Di & Gu 2025: the constants of the sheets.
    grids.li2024: {"c0": 2.0, "c1": 4.0},
    grids.li2025: {"c0": 2.0, "c1": 5.0, "beyond": 0},
    grids.early_stopping: {"delta": 0.01, "horizon": 5.0},
    grids.rounds: {"draw": None, "climb": True},
    grids.timesteps: {"table": 1000},
    grids.restart: {"rounds": 1, "steps": 3},
    grids.multistep: {"start": None},
    interpolation.Between: {"seed": 0},
    interpolation.Square: {"seed": 0},
    interpolation.Varied: {"keep": 0.0, "seed": 0},
    Noise: {"shared": 0, "name": ""},
    Denoiser: {
        "predicts": "noise",
        "shape": None,
        "timestep_of": None,
        "time_name": None,
        "integer_time": False,
        "learned_variance": False,
        "cond": {},
        "grid": None,
        "codec": None,
        "data_std": None,
    },
    estimates.Estimate: {"clean": None, "noise": None, "velocity": None, "extras": {}},
    sampling.sample: {
        "n": 1,
        "sampler": None,
        "steps": None,
        "evaluations": None,
        "grid": None,
        "seed": 0,
        "first": 0,
        "noise": None,
        "batch": None,
        "cond": None,
        "shape": None,
        "strict": False,
        "decode": True,
        "prior_scale": 1.0,
        "skip_steps": 0,
        "start": None,
        "strength": None,
        "mask": None,
        "progress": False,
    },
    sampling.stream: {
        "n": 1,
        "sampler": None,
        "steps": None,
        "evaluations": None,
        "grid": None,
        "seed": 0,
        "first": 0,
        "cond": None,
        "shape": None,
        "prior_scale": 1.0,
        "skip_steps": 0,
        "start": None,
        "strength": None,
        "mask": None,
    },
}
NOT_NUMBERS = {"device", "dtype"}


def defaults_of(what: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(what):
        out: dict[str, Any] = {}
        for one in dataclasses.fields(what):
            if one.default is not dataclasses.MISSING:
                out[one.name] = one.default
            elif one.default_factory is not dataclasses.MISSING:
                out[one.name] = one.default_factory()
    else:
        parameters = inspect.signature(what).parameters.values()
        out = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {name: value for name, value in out.items() if name not in NOT_NUMBERS}


@pytest.mark.parametrize("what", PUBLISHED, ids=lambda what: what.__qualname__)
def test_defaults_are_the_published_ones(what: Any) -> None:
    assert defaults_of(what) == PUBLISHED[what]


def test_the_usual_paths() -> None:
    assert (VP.cosine().schedule, VP.scaled_linear().schedule) == (Cosine(), ScaledLinear())
    assert VP.table().schedule.betas[::999] == (1e-4, 0.02)  # type: ignore[attr-defined]
    assert VP.table("scaled-linear").schedule.betas[::999] == pytest.approx((0.00085, 0.012), rel=1e-14)  # type: ignore[attr-defined]
    path = PyramidPath()
    assert (path.t_range, path.t_min, path.levels) == ((0.0, 3.0), 1.0, 3)
    assert [path.timestep_of(level) for level in (1.0, 2.0, 3.0)] == pytest.approx([1 / 6, 1 / 2, 5 / 6], rel=1e-15)
