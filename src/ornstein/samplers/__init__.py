"""Samplers: generators that ask for estimates, the loop that drives them, and their names."""

from .ancestral import Ancestral
from .base import Event, Memory, Problem, Query, Sampler, Step, Steps, plan, run, solve, steps_for, stream
from .ddim import DDIM
from .exponential import DPMSolver, DPMSolver2S
from .heun import Euler, Heun
from .named import SAMPLERS, sampler
from .unipc import UniPC

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Ancestral",
    "DPMSolver",
    "DPMSolver2S",
    "Euler",
    "Event",
    "Heun",
    "Memory",
    "Problem",
    "Query",
    "Sampler",
    "Step",
    "Steps",
    "UniPC",
    "plan",
    "run",
    "sampler",
    "solve",
    "steps_for",
    "stream",
]
