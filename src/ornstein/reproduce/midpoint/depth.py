"""The parallel form's claims: how many questions one after another, and how fast sweeps contract."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..cells import Cells
from ..record import Budget, Finding, Line, Plot, Table, mean_interval
from ..verdicts import Part, columns, judge, slope_of, slopes
from . import cells as jobs

PAPER = "arXiv 2410.13738"
STEPS = (32, 64, 128, 256, 512)  # T
SHORT = (4, 8, 16)  # rounds


def depth(cells: Cells, budget: Budget) -> Part:
    """The parallel form: how many questions one after another reach the sequential run's own error."""
    seeds = budget.count(5, 2)
    steps = STEPS if budget.scale >= 0.5 else STEPS[:4] if budget.scale >= 0.1 else STEPS[:3]
    keys = [(s, t, k) for s in range(seeds) for t in steps for k in SHORT]
    settings = [{"steps": t, "rounds": k, "most": 24, "batch": 64, "seed": s} for s, t, k in keys]
    found: dict[tuple[int, int, int], Any] = dict(zip(keys, cells.map(jobs.sweeps, settings), strict=True))
    best = [
        [min((d for k in SHORT if (d := found[s, t, k]["depth"])), default=math.nan) for t in steps]
        for s in range(seeds)
    ]
    powers = [slope_of([math.log(t) for t in steps], row) for row in best]
    power, interval = mean_interval(powers)
    plain = statistics.fmean(slope_of(steps, row) for row in best)
    means = columns(best)
    gains = [2 * steps[-1] / row[-1] for row in best]
    first = Finding(
        claim="O(log²) questions one after another suffice when those of a sweep are asked in parallel",
        source=f"{PAPER}, appendix E",
        expected="depth to reach the sequential run's own error grows at most like (log T)²: power of log T at most 2",
        measured=f"Depth {means[0]:.0f} at T = {steps[0]} and {means[-1]:.0f} at T = {steps[-1]} (sequential: "
        f"{2 * steps[0]} and {2 * steps[-1]}), like (log T)^{power:.2f}, or T^{plain:.2f}; five ellipses in the plane, "
        "the best of K = 4, 8, 16 rounds.",
        value=power,
        interval=interval,
        effect=2 * steps[-1] / means[-1],
        noise=None if any(map(math.isnan, gains)) else statistics.stdev(gains),
        **judge(interval, -math.inf, 2.0),
    )
    rows: list[list[str | float | int | None]] = []
    for t in steps:
        own = [statistics.fmean(found[s, t, k]["own"] for s in range(seeds)) for k in SHORT]
        each = [_mean_or_none([found[s, t, k]["depth"] for s in range(seeds)]) for k in SHORT]
        rows.append([f"T = {t}", 2 * t, *each, *own])
    head = ["steps", "sequential", *(f"depth, K = {k}" for k in SHORT), *(f"own error, K = {k}" for k in SHORT)]
    lines = [
        Line(name="parallel, best K", x=steps, y=means),
        Line(name="sequential", x=steps, y=[2.0 * t for t in steps]),
        Line(
            name="(log T)²",
            x=steps,
            y=[means[0] * (math.log(t) / math.log(steps[0])) ** 2 for t in steps],
            theory=True,
        ),
    ]
    return Part(
        findings=[first, _contraction(found, seeds)],
        tables=[Table(title="Questions one after another", head=head, rows=rows)],
        plots=[
            Plot(title="Depth to reach the sequential run's own error", x="T", y="questions in sequence", lines=lines)
        ],
    )


def _contraction(found: Mapping[tuple[int, int, int], Any], seeds: int) -> Finding:
    """Per-sweep factors (sweeps 2 to 4) against N log T/T = 2·log T/K."""

    def factor(cell: Any) -> float:
        return math.sqrt(cell["deviations"][3] / cell["deviations"][1])

    at = 128
    factors = [[factor(found[s, at, k]) for k in SHORT] for s in range(seeds)]
    mean, interval, noise = slopes([1.0 / k for k in SHORT], factors)
    means = columns(factors)
    return Finding(
        claim="After M sweeps the deviation from the sequential run is O((N·log T/T)^M), N steps a round",
        source=f"{PAPER}, appendix E",
        expected="the factor of a sweep (sweeps 2 to 4, T = 128) is proportional to N = 2T/K: power of N in [0.7, 1.4]",
        measured=f"Factors {', '.join(f'{m:.2f} (K = {k})' for m, k in zip(means, SHORT, strict=True))}: N^{mean:.2f}. "
        "With few long rounds the deviation first grows, as the claim allows where N·log T/T exceeds 1.",
        value=mean,
        interval=interval,
        effect=mean,
        noise=noise,
        **judge(interval, 0.7, 1.4),
    )


def _mean_or_none(values: Sequence[float]) -> float | None:
    """None where a run did not get there."""
    return statistics.fmean(values) if all(values) else None
