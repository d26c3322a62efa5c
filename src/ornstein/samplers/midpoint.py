"""Staggered midpoint rules: evaluations at random or middle points of a grid's cells (Li & Jiao 2025, arXiv
2410.13738).

The probability-flow ODE is dw = G dr for a scaled state w and a clock r that only the path knows:

    form      w      r                  G
    noise     x/α    σ̄                  ẑ
    clean     x/σ    1/σ̄                x̂_0
    score     x/α    1 − ᾱ = τ          ẑ/(2·√τ·(1 − τ)^{3/2}),   the paper's own

Over a cell r_t → r_s the slope is evaluated at a point r_m inside, reached from r_t with the slope of the cell before,
and then carries the state over the whole cell: one evaluation a cell, and no bias where r_m is uniform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..estimates import Estimate
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..scalars import Time, expand
from ..typed import typed
from .accelerated import alpha_bar, is_jump, jump
from .base import Memory, Query, Step, Steps

Form = Literal["noise", "clean", "score"]


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock r, the scale x/w and the slope G of one form on one path."""

    form: Form
    path: AffinePath

    def at(self, t: float) -> float:
        """r(t)."""
        bar = self.path.sigma_bar(t)
        if self.form == "score":
            return bar**2 * alpha_bar(bar)
        return 1.0 / bar if self.form == "clean" else bar

    def scale(self, t: float) -> float:
        """x/w at t."""
        return self.path.sigma(t) if self.form == "clean" else self.path.alpha(t)

    def inside(self, t: float, s: float, part: float) -> float:
        """The time at which r has gone ``part`` of the way from t to s."""
        r = self.at(t) + part * (self.at(s) - self.at(t))
        if self.form == "score":
            log_snr = math.log1p(-r) - math.log(r)
        else:
            log_snr = 2.0 * math.log(r) * (1.0 if self.form == "clean" else -1.0)
        return min(max(self.path.time_of(log_snr), s), t)

    def weight(self, t: float) -> float:
        """G/ẑ, or G/x̂_0: dσ̄/dr."""
        bar = self.path.sigma_bar(t)
        return 0.5 / (bar * alpha_bar(bar) ** 2) if self.form == "score" else 1.0

    def slope(self, estimate: Estimate, weight: Time) -> Tensor:
        """G."""
        if self.form == "clean":
            return estimate.clean
        return estimate.noise if self.form == "noise" else estimate.noise * expand(weight, estimate.noise)

    def move(self, x: Tensor, t: float, s: float, slope: Tensor) -> Tensor:
        """x_s of the straight line from (t, x) with this slope."""
        out = x * (self.scale(s) / self.scale(t))
        return torch.add(out, slope, alpha=self.scale(s) * (self.at(s) - self.at(t)))


@typed()
@dataclass(frozen=True, slots=True)
class RandomizedMidpoint:
    """The randomized midpoint method, and its deterministic twin: one evaluation a cell.

    ``places``: "random" draws r_m uniformly in each cell from ``noise.uniform`` (one point for the whole batch),
    "middle" takes its centre, which is the better one when only quality counts. ``form`` is the clock, see the module:
    "noise" for use, "score" for the paper's letter (it explodes where ᾱ doubles within a cell: below some 30 cells).

    A descent of n steps costs n evaluations: the first step evaluates at its start and inside, the last one goes with
    the slope it has. With ``opening="single"`` the first step evaluates at its start only, as on the grids of
    `ornstein.grids.rounds` that begin and end inside a cell. The rounds of the paper, each falling back by half of its
    cells with fresh noise, are that climbing grid; `ornstein.samplers.picard` makes all evaluations of a round
    together.
    """

    needs = AffinePath

    form: Form = "noise"
    places: Literal["random", "middle"] = "random"
    opening: Literal["pair", "single"] = "pair"

    def __post_init__(self) -> None:
        for value, known in (
            (self.form, ("noise", "clean", "score")),
            (self.places, ("random", "middle")),
            (self.opening, ("pair", "single")),
        ):
            if value not in known:
                raise ConfigError(f"a midpoint rule knows {', '.join(map(repr, known))}, got {value!r}")

    @property
    def order(self) -> float:
        """2 at the middle. At random 3/2 given the drawn points; the law over all draws is of order 2."""
        return 2 if self.places == "middle" else 1.5

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Reach into the cell with the last slope, evaluate there, cross the cell with the new slope."""
        t, s, clock = step.t, step.s, Clock(self.form, path)
        if is_jump(path, t, s):
            estimate = yield Query(x, t)
            if self.form != "score":
                memory["slope"] = clock.slope(estimate, 1.0)
            return jump(path, estimate, s)
        first = "slope" not in memory
        if first:
            memory["slope"] = clock.slope((yield Query(x, t)), clock.weight(t))
        if not self.asks_inside(path, step, first):
            return clock.move(x, t, s, memory["slope"])
        middle = self.place(clock, step, noise)
        estimate = yield Query(clock.move(x, t, middle, memory["slope"]), middle)
        memory["slope"] = clock.slope(estimate, clock.weight(middle))
        return clock.move(x, t, s, memory["slope"])

    def asks_inside(self, path: AffinePath, step: Step, first: bool) -> bool:
        """Whether this step has its evaluation inside its cell: all but the last of a descent, and a single opening."""
        last = step.after is None or path.sigma(step.after) == 0.0
        return not (last or (first and self.opening == "single"))

    def place(self, clock: Clock, step: Step, noise: NoiseSource) -> float:
        """The time of the evaluation inside the cell."""
        part = noise.uniform(("midpoint", step.index)) if self.places == "random" else 0.5
        return clock.inside(step.t, step.s, part)
