"""Samplers: generators that ask for estimates, the loop that drives them, and their names."""

from .accelerated import AcceleratedODE, AcceleratedSDE, MidpointSDE
from .ancestral import Ancestral
from .angle import TrigFlowAdams
from .auto import auto, default_for
from .base import Event, Memory, Problem, Query, Sampler, Step, Steps, plan, run, solve, steps_for, stream
from .ddim import DDIM
from .exponential import DPMSolver, DPMSolver2S
from .heun import Euler, Heun
from .integrators import DEIS, Collocation, ExponentialIntegrator
from .midpoint import RandomizedMidpoint
from .named import SAMPLERS, sampler
from .parallel import Parallel, picard, staged
from .stochastic_adams import SASolver
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "SAMPLERS",
    "AcceleratedODE",
    "AcceleratedSDE",
    "Ancestral",
    "Collocation",
    "DPMSolver",
    "DPMSolver2S",
    "Euler",
    "Event",
    "ExponentialIntegrator",
    "Heun",
    "Memory",
    "MidpointSDE",
    "Parallel",
    "Problem",
    "Query",
    "RandomizedMidpoint",
    "SASolver",
    "Sampler",
    "Step",
    "Steps",
    "TrigFlowAdams",
    "UniPC",
    "auto",
    "default_for",
    "picard",
    "plan",
    "run",
    "sampler",
    "solve",
    "staged",
    "steps_for",
    "stream",
]
