"""diffusers' schedulers as they ship, over the settings that their documentation offers, for `practice.py`.

Every scheduler is driven as a pipeline drives it, with a noise-prediction model that is told the exact noise level at
which the scheduler believes its state to stand: nobody is punished for whole time steps, and calls are counted, not
steps.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# (x_t = α·x_0 + σ·z, σ/α) → the noise z in it
Predict = Callable[[Tensor, float], Tensor]

TABLES = {"linear": {}, "scaled-linear": {"beta_start": 0.00085, "beta_end": 0.012}, "cosine": {}}
_BETAS = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_SPACINGS = ({"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"})
_SIGMAS = tuple({name: True} for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
_FINAL = ({"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One scheduler with its options; ``name`` is short and unique, ``family`` what the tables call it."""

    family: str
    kind: str
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Family and options, as in ``UniPC [solver_order=3 use_karras_sigmas]``."""
        words = [key if value is True else f"{key}={value}" for key, value in self.options]
        return f"{self.family} [{' '.join(words)}]" if words else self.family

    def build(self, table: str) -> Any:
        """The scheduler on one of `TABLES`, or for "ve" and "flow"."""
        options = dict(self.options)
        if table in TABLES:
            options |= {"beta_schedule": _BETAS[table], "num_train_timesteps": 1000, **TABLES[table]}
            if self.kind == "HeunDiscreteScheduler":  # its own defaults are those of latent diffusion
                options = {"beta_start": 1e-4, "beta_end": 0.02, **options}
        if self.kind == "DDIMScheduler":
            options["clip_sample"] = False
        return getattr(importlib.import_module("diffusers"), self.kind)(**options)

    def steps(self, evaluations: int) -> int:
        """The most steps that cost no more than this."""
        return (evaluations + 1) // 2 if "Heun" in self.kind else evaluations


def _every(family: str, kind: str, *choices: tuple[dict[str, Any], ...]) -> Iterator[Setting]:
    for chosen in itertools.product(*choices):
        merged = {key: value for choice in chosen for key, value in choice.items()}
        yield Setting(family, kind, tuple(merged.items()))


def settings(table: str) -> list[Setting]:
    """Every setting that is compared on a table, or on "ve" or "flow"; the defaults are among them."""
    if table == "ve":
        grids = ({}, {"sigma_schedule": "exponential"})
        ends = tuple(final | low for final in _FINAL for low in ({}, {"lower_order_final": False}))
        return [
            *_every("EDM Euler", "EDMEulerScheduler", grids),
            *_every("EDM 2M", "EDMDPMSolverMultistepScheduler", grids, ends, ({}, {"solver_type": "heun"})),
            *_every("EDM 3M", "EDMDPMSolverMultistepScheduler", ({"solver_order": 3},), grids, ends),
        ]
    if table == "flow":
        shifts = ({}, {"shift": 0.5}, {"shift": 2.0}, {"shift": 3.0})
        other = ({"use_flow_sigmas": True, "prediction_type": "flow_prediction"},)
        moves = ({}, {"flow_shift": 0.5}, {"flow_shift": 2.0}, {"flow_shift": 3.0})
        low = ({}, {"lower_order_final": False})
        orders = ({"solver_order": 2}, {"solver_order": 3})
        return [
            *_every("flow Euler", "FlowMatchEulerDiscreteScheduler", shifts),
            *_every("flow Euler", "FlowMatchEulerDiscreteScheduler", _SIGMAS),
            *_every("flow Heun", "FlowMatchHeunDiscreteScheduler", shifts),
            *_every("flow DPM-Solver++", "DPMSolverMultistepScheduler", other, orders, moves, low, _FINAL),
            *_every("flow UniPC", "UniPCMultistepScheduler", other, orders, moves, low, _FINAL),
            *_every("flow DEIS", "DEISMultistepScheduler", other, orders, moves, low),
        ]
    placed = (*_SPACINGS, *_SIGMAS)
    multi = (*placed, {"use_lu_lambdas": True})
    if table == "cosine":
        multi = (*multi, *({"lambda_min_clipped": -5.1} | spacing for spacing in _SPACINGS))
    last = ({}, {"euler_at_final": True}, {"lower_order_final": False})
    lower = ({}, {"lower_order_final": False})
    return [
        *_every("DDIM", "DDIMScheduler", ({}, *_SPACINGS[:2]), ({}, {"set_alpha_to_one": False})),
        *_every("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", multi, last, _FINAL, ({}, {"solver_type": "heun"})),
        *_every("DPM-Solver++ 3M", "DPMSolverMultistepScheduler", ({"solver_order": 3},), multi, last, _FINAL),
        *_every(
            "UniPC",
            "UniPCMultistepScheduler",
            ({"solver_order": 2}, {"solver_order": 3}),
            placed,
            lower,
            _FINAL,
            ({}, {"solver_type": "bh1"}),
            ({}, {"predict_x0": False}),
        ),
        *_every("Heun", "HeunDiscreteScheduler", placed),
        *_every("DEIS", "DEISMultistepScheduler", ({"solver_order": 2}, {"solver_order": 3}), placed, lower),
    ]


def default(family: str, table: str) -> Setting:
    """The first setting of a family: what the scheduler does when it is told nothing, apart from its order."""
    return next(setting for setting in settings(table) if setting.family == family)


def drive(scheduler: Any, steps: int, noise: Tensor, predict: Predict) -> tuple[Tensor, int]:
    """(what the scheduler returns from the start ``normal``, calls of the model); on discrete tables and on "ve"."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    edm = type(scheduler).__name__.startswith("EDM")
    x = noise * float(scheduler.init_noise_sigma)
    calls = 0
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t)
        if hasattr(scheduler, "sigmas"):
            bar = float(scheduler.sigmas[scheduler.step_index or 0])
        else:
            product = float(scheduler.alphas_cumprod[int(t)])
            bar = math.sqrt((1.0 - product) / product)
        calls += 1
        if edm:  # the scheduler builds x̂_0 = c_skip·x + c_out·F: hand it the F of the exact answer
            data = scheduler.config.sigma_data
            gain = 1.0 / math.sqrt(1.0 + bar**2)
            clean = x - bar * predict(gain * x, bar)
            square = bar**2 + data**2
            answer = (clean - data**2 / square * x) * (math.sqrt(square) / (bar * data))
        else:
            answer = predict(fed, bar)
        x = scheduler.step(answer, t, x, return_dict=False)[0]
    return x, calls


def drive_flow(scheduler: Any, steps: int, noise: Tensor, velocity: Predict) -> tuple[Tensor, int]:
    """The same for rectified flow; ``velocity(x, t)`` is z − x_0 at flow time t."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x, calls = noise, 0
    for t in scheduler.timesteps:
        time = float(scheduler.sigmas[scheduler.step_index or 0])
        calls += 1
        x = scheduler.step(velocity(x, time), t, x, return_dict=False)[0]
    return x, calls


def finite(x: Tensor) -> bool:
    """Whether nothing has overflowed: some settings divide by a step of length zero."""
    return bool(torch.isfinite(x).all())
