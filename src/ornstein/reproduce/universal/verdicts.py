"""What the parts of `ornstein.reproduce.universal` share: names, pairs over seeds, and a verdict on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..record import Budget, Finding, Interval, Verdict
from ..verdicts import over_seeds as finding_over_seeds

SOURCE = "arXiv 2302.07121"
RECURRENCES = (1, 2, 4, 8)
SEEDS = 48
Numbers = Mapping[str, Any]
Results = Mapping[tuple[Any, ...], Sequence[Numbers]]  # arm: one result a seed

NAMES = {
    "exact": "exact",
    "plain": "none",
    "forward": "forward",
    "backward": "backward",
    "both": "both (code: one after the other)",
    "paper": "both (paper: shifts added)",
    "corrected": "forward, corrected",
    "posterior": "LinearPosterior",
    "dps": "DPS",
    "noisy": "noisy classifier",
}


def seeds_of(budget: Budget) -> range:
    """The seeds that a budget buys: at least three; a larger budget adds to those of a smaller one."""
    return range(budget.count(SEEDS, 3))


def mean_of(values: Sequence[Numbers], key: str) -> float:
    """Over seeds."""
    return statistics.fmean(value[key] for value in values)


def log_ratios(ours: Sequence[Numbers], theirs: Sequence[Numbers], key: str) -> list[float]:
    """log(ours/theirs), one a seed."""
    return [math.log(max(a[key], 1e-6) / max(b[key], 1e-6)) for a, b in zip(ours, theirs, strict=True)]


def pooled(each: Mapping[str, Sequence[float]], form: str) -> tuple[list[float], str]:
    """(mean over tasks, one a seed; each task's own mean in words)."""
    told = ", ".join(f"{task} {form.format(statistics.fmean(values))}" for task, values in each.items())
    return [statistics.fmean(values) for values in zip(*each.values(), strict=True)], told


def verdict(interval: Interval, edge: float) -> tuple[Verdict, str]:
    """Of the claim that a number lies below ``edge``.

    >>> [verdict(i, 0.0)[0] for i in ((-2.0, -1.0), (-1.0, 1.0), (1.0, 2.0))]
    ['reproduced', 'inconclusive', 'not reproduced']
    """
    if interval[1] < edge:
        return "reproduced", ""
    if interval[0] > edge:
        return "not reproduced", f"the whole interval lies above {edge:.3g}"
    return "inconclusive", f"the interval over seeds reaches across {edge:.3g}"


def over_seeds(
    claim: str, source: str, what: str, values: Sequence[float], edge: float, *, kind: str, told: str = ""
) -> Finding:
    """A claim that the mean of ``values``, one a seed, lies below ``edge``; ``kind`` ratio shows its exponential."""
    mean = statistics.fmean(values)
    size = f"{math.exp(mean):.2f} times" if kind == "ratio" else f"{mean:+.3f}"
    return finding_over_seeds(
        values,
        lambda interval: verdict(interval, edge),
        claim=claim,
        source=source if source.startswith("no claim") else f"{SOURCE}, {source}",
        expected=f"{what}, below {edge:.3g} with its whole 95 % interval over seeds",
        measured=f"{size} over {len(values)} seeds" + (f" ({told})" if told else ""),
    )
