"""What several reproductions share: slopes over seeds, and a verdict by an interval."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from .record import Finding, Interval, Plot, Table, Verdict, mean_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Findings of one measurement, with the tables and plots they rest on."""

    findings: Sequence[Finding]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


class Judged(TypedDict):
    """A verdict and its reason, as arguments of a `Finding`."""

    verdict: Verdict
    reason: str


def slope_of(counts: Sequence[float], values: Sequence[float]) -> float:
    """Least squares of log value on log count."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def judge(interval: Interval, low: float, high: float) -> Judged:
    """The whole interval inside the expected range, all of it outside, or neither: then it is not told apart.

    >>> [judge((v - 0.05, v + 0.05), 1.4, 1.6)["verdict"] for v in (1.5, 1.0, 1.59)]
    ['reproduced', 'not reproduced', 'inconclusive']
    """
    if low <= interval[0] and interval[1] <= high:
        return {"verdict": "reproduced", "reason": ""}
    if interval[1] < low or interval[0] > high:
        return {"verdict": "not reproduced", "reason": f"The whole interval lies outside [{low:g}, {high:g}]."}
    return {"verdict": "inconclusive", "reason": f"The interval reaches across the edge of [{low:g}, {high:g}]."}


def slopes(counts: Sequence[float], table: Sequence[Sequence[float]]) -> tuple[float, Interval, float]:
    """(mean, interval, noise between rows) of the slopes of the rows of ``table``, one row a seed."""
    found = [slope_of(counts, row) for row in table]
    mean, interval = mean_interval(found)
    return mean, interval, statistics.stdev(found)


def columns(table: Sequence[Sequence[float]]) -> list[float]:
    """The means over seeds."""
    return [statistics.fmean(column) for column in zip(*table, strict=True)]


def over_seeds(values: Sequence[float], judge: Callable[[Interval], tuple[Verdict, str]], **said: str) -> Finding:
    """The finding that rests on the mean of ``values``, one a seed: ``judge`` gives the verdict on its interval, with
    the reason; ``said`` are the claim, its source, what is expected and what was measured.
    """
    mean, interval = mean_interval(values)
    verdict, reason = judge(interval)
    noise = statistics.stdev(values) if len(values) > 1 else 0.0
    return Finding(value=mean, interval=interval, effect=mean, noise=noise, verdict=verdict, reason=reason, **said)  # pyright: ignore[reportArgumentType]


def negated(interval: Interval) -> Interval:
    """The interval of −x."""
    return -interval[1], -interval[0]


def side(interval: Interval, sign: int) -> tuple[Verdict, str]:
    """Of the claim that a number lies on the side of ``sign``, with the reason.

    >>> [side(i, -1)[0] for i in ((-2.0, -1.0), (-1.0, 1.0), (1.0, 2.0))]
    ['reproduced', 'inconclusive', 'not reproduced']
    """
    low, high = interval if sign > 0 else negated(interval)
    if low > 0.0:
        return "reproduced", ""
    if high < 0.0:
        return "not reproduced", "the whole interval lies on the other side"
    return "inconclusive", "the interval over seeds holds no change"
