"""Measured orders of convergence beside the declared ones: every sampler, on targets with exact answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ornstein.errors import ConfigError, PathError
from ornstein.samplers.base import Sampler
from ornstein.samplers.named import SAMPLERS, sampler

from .bench import PATHS, TARGETS, Bench, GridName, PathName, Series, claimed, measuring_grid

_WORTH_A_POOL = 12  # pairs of sampler and target: below that, starting processes costs more than it saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """What could not be measured, and why."""

    sampler: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many times closer ``sampler`` is than ``against``, at equal numbers of evaluations."""

    sampler: str
    against: str
    target: str
    measure: str
    evaluations: tuple[int, ...]
    closer: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All series of one run. ``passed`` is False as soon as one measured order is below its declared one.

    ``comparisons`` holds the accelerated SDE beside ancestral sampling (DDPM), where both were measured.
    """

    path: str
    grid: str
    quick: bool
    seconds: float
    series: tuple[Series, ...]
    skipped: tuple[Skipped, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every sampler has at least the order it declares."""
        return all(series.passed for series in self.series)

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values."""
        return {**asdict(self), "passed": self.passed}


def measure(
    samplers: Iterable[str] | None = None,
    targets: Iterable[str] = ("G8", "M1"),
    path: str = "vp",
    grid: str = "log-snr",
    counts: Sequence[int] | None = None,
    quick: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    known: Mapping[str, Callable[[], Sampler]] = SAMPLERS,
    jobs: int | None = 1,
) -> Report:
    """Measure the order of every named sampler (default: all) on every target.

    Gaussian targets are measured exactly in √KL and W2, over the drawn times as well; targets on the line in the exact
    total variation, or in W1 with a stated noise where a stochastic sampler remembers; the others by the median
    distance of coupled trajectories. ``counts`` are step counts, by default chosen by declared order. ``known`` is the
    registry of names. ``jobs`` processes share the work (None: one for every core); the numbers do not depend on it.

    Raises:
        ConfigError: an unknown sampler, target, path or grid, or less than one job.
    """
    begin = time.perf_counter()
    if path not in PATHS:
        raise ConfigError(f"unknown path {path!r}: choose one of {', '.join(PATHS)}")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}: None takes every core")
    measuring_grid(grid, 1)
    chosen_targets = [_known_target(name) for name in targets]
    law = PATHS[path]()
    rules = distinct(known if samplers is None else chosen(samplers, known))
    benches = [
        Bench(name, rule, target, law, grid, tuple(counts or ()), quick)
        for name, rule in rules
        for target in chosen_targets
    ]
    series: list[Series] = []
    skipped: list[Skipped] = []
    for found in _answers(benches, jobs, progress):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            series += found
    seconds = round(time.perf_counter() - begin, 1)
    return Report(
        path=path,
        grid=grid,
        quick=quick,
        seconds=seconds,
        series=tuple(series),
        skipped=tuple(skipped),
        comparisons=tuple(_compared(series, "accelerated-sde", "ancestral")),
    )


def _compared(series: Sequence[Series], name: str, against: str) -> Iterator[Comparison]:
    other = {(one.target, one.measure): one for one in series if one.sampler == against}
    for one in series:
        rival = other.get((one.target, one.measure))
        if one.sampler != name or rival is None:
            continue
        theirs = dict(zip(rival.evaluations, rival.errors, strict=True))
        pairs = [(n, mine, theirs.get(n)) for n, mine in zip(one.evaluations, one.errors, strict=True)]
        closer = {n: their / mine for n, mine, their in pairs if mine and their}
        yield Comparison(
            sampler=name,
            against=against,
            target=one.target,
            measure=one.measure,
            evaluations=tuple(closer),
            closer=tuple(closer.values()),
        )


def _answers(
    benches: Sequence[Bench], jobs: int | None, progress: Callable[[str], None]
) -> Iterator[list[Series] | Skipped]:
    """In the order of ``benches``, in this process or in several."""
    workers = min(jobs or len(os.sched_getaffinity(0)), len(benches))
    if workers < 2 or len(benches) < _WORTH_A_POOL:
        for bench in benches:
            progress(f"{bench.name} on {bench.target}")
            yield _answer(bench)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Fresh processes: a copy of this one could hold locks of torch's threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for bench, found in zip(benches, pool.map(_answer, benches), strict=True):
            progress(f"{bench.name} on {bench.target}")
            yield found


def _answer(bench: Bench) -> list[Series] | Skipped:
    try:
        return bench.series()
    except PathError as error:
        return Skipped(sampler=bench.name, target=bench.target, reason=str(error))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _known_target(name: str) -> str:
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}: choose one of {', '.join(TARGETS)}")
    return name


def chosen(names: Iterable[str], known: Mapping[str, Callable[[], Sampler]]) -> Mapping[str, Callable[[], Sampler]]:
    """The named samplers; any other word is an import path, or gets the registry's own message."""
    return {name: known[name] if name in known else lambda n=name: sampler(n, import_paths=True) for name in names}


def distinct(known: Mapping[str, Callable[[], Sampler]]) -> list[tuple[str, Sampler]]:
    """Aliases are measured once, under their first name."""
    out: list[tuple[str, Sampler]] = []
    for name, make in known.items():
        rule = make()
        if all(rule != other for _, other in out):
            out.append((name, rule))
    return out


__all__ = [
    "PATHS",
    "TARGETS",
    "Comparison",
    "GridName",
    "PathName",
    "Report",
    "Series",
    "Skipped",
    "chosen",
    "claimed",
    "distinct",
    "measure",
    "measuring_grid",
]
