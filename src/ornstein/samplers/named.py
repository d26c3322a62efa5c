"""Samplers by name: the registry at the edge, for command lines and configuration files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from ..errors import ConfigError
from .accelerated import AcceleratedODE, AcceleratedSDE, MidpointSDE
from .ancestral import Ancestral
from .angle import TrigFlowAdams
from .base import Sampler
from .ddim import DDIM
from .exponential import DPMSolver, DPMSolver2S
from .heun import Euler, Heun
from .integrators import DEIS, Collocation, ExponentialIntegrator
from .midpoint import RandomizedMidpoint
from .stochastic_adams import SASolver
from .unipc import UniPC

SAMPLERS: Mapping[str, Callable[[], Sampler]] = MappingProxyType(
    {
        "ancestral": Ancestral,
        "ancestral-large": partial(Ancestral, "large"),
        "ancestral-learned": partial(Ancestral, "learned"),
        "ddpm": Ancestral,
        "ddim": DDIM,
        "ddim-eta1": partial(DDIM, 1.0),
        "euler": Euler,
        "heun": Heun,
        "dpmpp-1": partial(DPMSolver, points=1),
        "dpmpp-2m": partial(DPMSolver, points=2),
        "dpmpp-2s": DPMSolver2S,
        "dpmpp-3m": partial(DPMSolver, points=3),
        "dpmpp-1-sde": partial(DPMSolver, points=1, stochastic=True),
        "dpmpp-2m-sde": partial(DPMSolver, points=2, stochastic=True),
        "dpmpp-2s-sde": partial(DPMSolver2S, stochastic=True),
        "dpmpp-3m-sde": partial(DPMSolver, points=3, stochastic=True),
        "unipc": UniPC,
        "unipc-1": partial(UniPC, p=1),
        "unipc-2": UniPC,
        "unipc-3": partial(UniPC, p=3),
        "accelerated-ode": AcceleratedODE,
        "accelerated-ode-history": partial(AcceleratedODE, "history"),
        "accelerated-ode-memory": partial(AcceleratedODE, "memory"),
        "accelerated-sde": AcceleratedSDE,
        "randomized-midpoint": RandomizedMidpoint,
        "staggered-midpoint": partial(RandomizedMidpoint, places="middle"),
        "exponential-integrator": ExponentialIntegrator,
        "deis-2": partial(DEIS, points=2),
        "deis-3": DEIS,
        "collocation-3": Collocation,
        "collocation-4": partial(Collocation, nodes=4, sweeps=4),
        "angle-adams": TrigFlowAdams,
        "angle-adams-explicit": partial(TrigFlowAdams, corrector=False),
        "sa-solver": SASolver,
        "sde-midpoint": MidpointSDE,
        "sde-midpoint-exponential": partial(MidpointSDE, "exponential"),
    }
)


def sampler(which: str | Sampler) -> Sampler:
    """The sampler with this name; a sampler passes through.

    >>> sampler("dpmpp-2m")
    DPMSolver(points=2, stochastic=False, brownian=False, start='midpoint')

    Raises:
        ConfigError: no sampler has this name; the closest ones are named first.
    """
    if not isinstance(which, str):
        return which
    if which in SAMPLERS:
        return SAMPLERS[which]()
    close = difflib.get_close_matches(which.lower(), SAMPLERS, n=3, cutoff=0.4)
    if which == "auto":
        raise ConfigError("auto is no sampler of its own: samplers.auto(path, evaluations) gives one, with its grid")
    names = ", ".join([*close, *(name for name in SAMPLERS if name not in close)])
    raise ConfigError(f"unknown sampler {which!r}: choose one of {names}")
