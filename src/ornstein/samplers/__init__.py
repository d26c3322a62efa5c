"""Samplers: generators that ask for estimates, the loop that drives them, and their names."""

from . import named
from .auto import auto, default_for
from .base import Event, Memory, Problem, Query, Sampler, Step, Steps, plan, run, solve, steps_for, stream
from .blended import BlendedAdams
from .named import *  # noqa: F403  (the classes of all named samplers, with their names)
from .parallel import Parallel, picard, staged

__all__ = [
    "BlendedAdams",
    "Event",
    "Memory",
    "Parallel",
    "Problem",
    "Query",
    "Sampler",
    "Step",
    "Steps",
    "auto",
    "default_for",
    "picard",
    "plan",
    "run",
    "solve",
    "staged",
    "steps_for",
    "stream",
]
__all__ += named.__all__
