"""Samplers: generators that ask for estimates, the loop that drives them, and their names."""

from .accelerated import AcceleratedODE, AcceleratedSDE, MidpointSDE
from .ancestral import Ancestral
from .base import Event, Memory, Problem, Query, Sampler, Step, Steps, plan, run, solve, steps_for, stream
from .ddim import DDIM
from .exponential import DPMSolver, DPMSolver2S
from .heun import Euler, Heun
from .midpoint import Parallel, RandomizedMidpoint, picard
from .named import SAMPLERS, sampler
from .unipc import UniPC

__all__ = [
    "DDIM",
    "SAMPLERS",
    "AcceleratedODE",
    "AcceleratedSDE",
    "Ancestral",
    "DPMSolver",
    "DPMSolver2S",
    "Euler",
    "Event",
    "Heun",
    "Memory",
    "MidpointSDE",
    "Parallel",
    "Problem",
    "Query",
    "RandomizedMidpoint",
    "Sampler",
    "Step",
    "Steps",
    "UniPC",
    "picard",
    "plan",
    "run",
    "sampler",
    "solve",
    "steps_for",
    "stream",
]
