"""A sampler that somebody else's loop drives: the list of its evaluations beforehand, and where to begin in it.

A foreign loop evaluates its network at the entries of a list and returns each output. The list is a dry run of the
sampler. A loop may begin anywhere in it, at the state of that entry's time (image-to-image): `beginning` finds the
steps that then ask for the rest of the list.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import grids
from ..errors import UsageError
from ..estimates import Estimate
from ..paths import VP
from ..paths.base import AffinePath
from ..paths.times import is_near
from ..randomness import Noise, NoiseSource
from ..samplers import DDIM, Problem, Query, Sampler, Steps
from ..samplers.base import Memory, SilentNoise, Step


class Entry(NamedTuple):
    """One evaluation of the list: the number of its step, its time, and whether it is made at the state of the step's
    start."""

    step: int
    t: float
    opens: bool


@dataclass(frozen=True, slots=True)
class Start:
    """How a loop begins: perhaps a step to the next time of the grid (``bridge``), ``unused`` evaluations, and the
    steps of the grid from number ``step`` on, by ``sampler``."""

    index: int
    sampler: Sampler
    step: int
    bridge: tuple[Sampler, Step] | None = None
    unused: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """The evaluations of a sampler on falling times. ``seed`` is that of samplers that draw their times."""

    sampler: Sampler
    path: AffinePath
    steps: tuple[Step, ...]
    entries: tuple[Entry, ...]
    seed: int

    @classmethod
    def of(cls, sampler: Sampler, path: AffinePath, times: Sequence[float], seed: int = 0) -> EvaluationList:
        """The list on these times. A sampler whose first evaluation is not at the state that it is given begins with
        one that is not used: a foreign loop evaluates its network there before it asks.

        Raises:
            UsageError: the sampler's times depend on its estimates.
        """
        steps = tuple(Problem(sampler, path, tuple(times)).stretches())
        entries = _entries(sampler, path, steps, seed, 0.0)
        if _entries(sampler, path, steps, seed, 1.0) != entries:
            raise UsageError(
                f"{type(sampler).__name__} has no list of evaluations: its times depend on the estimates, and a "
                "scheduler must list them beforehand; sample with ornstein.sample"
            )
        if not entries[0].opens:
            entries = [Entry(0, steps[0].t, True), *entries]
        return cls(sampler, path, steps, tuple(entries), seed)

    def beginning(self, index: int) -> Start:
        """The steps of a loop that begins at this entry, at the state of its time, with nothing remembered.

        Where the sampler's own steps do not ask for the rest of the list – it begins inside a step, or a multistep rule
        would evaluate once more – one step of its own or of `DDIM` leads to the next time of the grid.

        Raises:
            UsageError: the sampler cannot begin there.
        """
        here, rest = self.entries[index], self.entries[index:]
        if index == 0:
            unused = len(rest) - len(_entries(self.sampler, self.path, self.steps, self.seed, 0.0))
            return Start(0, self.sampler, 0, unused=unused)
        for first in range(here.step, len(self.steps)):
            for start in self._starts(index, here.t, first):
                lead = self._lead(start)
                asked = [*lead, *self._asked(start)]
                spare = len(rest) - len(asked)
                fits = spare >= 0 and _same(asked, (*rest[: len(lead)], *rest[len(lead) + spare :]))
                if fits and (asked[0].opens or (spare and not lead)):
                    return dataclasses.replace(start, unused=spare)
        if here.step < len(self.steps) - 1:
            raise UsageError(
                f"{type(self.sampler).__name__} cannot begin at evaluation {index + 1} of {len(self.entries)}: begin "
                "at the first (strength 1), or take another sampler"
            )
        bridge = DDIM(), Step(t=here.t, s=self.steps[-1].s, index=here.step)
        return Start(index, self.sampler, len(self.steps), bridge, unused=len(rest) - 1)

    def run(self, start: Start, x: Tensor, noise: NoiseSource) -> Steps:
        """The queries of such a loop from state x, as many as the list has from there on."""
        memory: Memory = {}
        dtype, place = x.dtype, start.index
        if start.bridge is not None:
            rule, step = start.bridge
            x = (yield from rule.step(self.path, x, step, noise, memory)).to(dtype)
            place += len(self._lead(start))
        for entry in self.entries[place : place + start.unused]:
            yield Query(x, entry.t)
        for step in self.steps[start.step :]:
            x = (yield from start.sampler.step(self.path, x, step, noise, memory)).to(dtype)
        return x

    def _starts(self, index: int, t: float, first: int) -> Iterator[Start]:
        """Ways to come from t to the start of the grid's step ``first``, or of the next one."""
        step, plain = self.steps[first], _plain(self.sampler)
        rules = [self.sampler] if plain == self.sampler else [self.sampler, plain]
        if is_near(t, step.t, self.path):
            yield from (Start(index, rule, first) for rule in rules)
            if first + 1 < len(self.steps):
                yield from (Start(index, rule, first + 1, (DDIM(), step)) for rule in rules)
        elif t > step.t:
            bridge = Step(t=t, s=step.t, index=first - 1, after=step.s)
            yield from (Start(index, rule, first, (rule, bridge)) for rule in rules)
            yield from (Start(index, rule, first, (DDIM(), bridge)) for rule in rules)

    def _lead(self, start: Start) -> list[Entry]:
        """The evaluations of the bridge."""
        if start.bridge is None:
            return []
        return _entries(start.bridge[0], self.path, (start.bridge[1],), self.seed, 0.0)

    def _asked(self, start: Start) -> list[Entry]:
        """The evaluations of the steps after the bridge, which they may remember."""
        steps = self.steps[start.step :]
        return _entries(start.sampler, self.path, steps, self.seed, 0.0, first=start.step, bridge=start.bridge)


class Descent:
    """One loop over such a list: the query that is to be answered next, and the answers that are sent to it."""

    def __init__(self, listed: EvaluationList, index: int, x: Tensor, noise: NoiseSource) -> None:
        self.listed, self.position, self.done = listed, index, False
        self._steps = listed.run(listed.beginning(index), x, noise)
        self.query = next(self._steps)

    def replace(self, x: Tensor) -> None:
        """Take x for the state of the query, in place, so that the sampler goes on from it."""
        if x.shape != self.query.x.shape:
            raise UsageError(
                f"the state has changed its shape from {tuple(self.query.x.shape)} to {tuple(x.shape)}: call "
                "set_timesteps before another loop"
            )
        self.query.x.copy_(x)

    def send(self, estimate: Estimate) -> Tensor:
        """Answer the query: the state of the next one, or the final one.

        Raises:
            UsageError: the sampler asks for another time than it did in the dry run.
        """
        try:
            self.query = self._steps.send(estimate)
        except StopIteration as stop:
            self.done = True
            return stop.value
        self.position += 1
        if self.query.t != self.listed.entries[self.position].t:
            raise UsageError(
                f"{type(self.listed.sampler).__name__} has no list of evaluations: it asks for the time "
                f"{self.query.t:g} and not for {self.listed.entries[self.position].t:g}; sample with ornstein.sample"
            )
        return self.query.x


def evaluations_per_step(sampler: Sampler) -> int:
    """The evaluations of a usual step: the most frequent number on a grid of twelve steps."""
    path = VP()
    steps = tuple(Problem(sampler, path, grids.uniform(12)(path)).stretches())
    counts = Counter(entry.step for entry in _entries(sampler, path, steps, 0, 0.0))
    return Counter(counts.values()).most_common(1)[0][0]


def _entries(
    sampler: Sampler,
    path: AffinePath,
    steps: Sequence[Step],
    seed: int,
    clean: float,
    *,
    first: int = 0,
    bridge: tuple[Sampler, Step] | None = None,
) -> list[Entry]:
    """A dry run of the steps on an empty state, the clean estimate being the same number everywhere; a bridge before
    them is not listed."""
    noise, memory = SilentNoise(Noise.of(seed, range(1))), dict[str, Any]()
    x = torch.zeros(1, 1, 1, 1)
    found: list[Entry] = []
    pieces = [(sampler, number, step) for number, step in enumerate(steps, first)]
    if bridge is not None:
        pieces.insert(0, (bridge[0], -1, bridge[1]))
    for rule, number, step in pieces:
        before, count = x, 0
        asking = rule.step(path, x, step, noise, memory)
        answer: Estimate | None = None
        while True:
            try:
                query = next(asking) if answer is None else asking.send(answer)
            except StopIteration as stop:
                x = stop.value
                break
            if number >= 0:
                found.append(Entry(number, query.t, count == 0 and query.x is before))
            count += 1
            extras = {"variance": torch.zeros_like(query.x)}  # for samplers that read the second head
            answer = Estimate(query.x, query.t, path, clean=torch.full_like(query.x, clean), extras=extras)
    return found


def _plain(sampler: Sampler) -> Sampler:
    """The sampler without the further evaluations that a multistep rule makes in its first step."""
    rule: Any = sampler
    if not dataclasses.is_dataclass(rule):
        return sampler
    names = {item.name for item in dataclasses.fields(rule)}
    changes = {name: value for name, value in (("start", "plain"), ("opening", "single")) if name in names}
    if not changes and "points" in names:
        changes = {"points": min(rule.points, 2)}  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.replace(rule, **changes)  # pyright: ignore[reportArgumentType]


def _same(asked: Sequence[Entry], listed: Sequence[Entry]) -> bool:
    return len(asked) == len(listed) and all(a.t == b.t for a, b in zip(asked, listed, strict=True))
