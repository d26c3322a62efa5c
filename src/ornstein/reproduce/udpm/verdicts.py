"""Verdicts on `ornstein.reproduce.udpm`'s claims: ratios of two arms, seed by seed, and what became of an arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..arms import KID
from ..record import ArmTraining, Finding
from ..training import trained_arm
from ..verdicts import over_seeds, side
from .cells import CONSISTENCY, DIFFUSION, FIT, FULL, JUDGED, PLAIN

SOURCE = "arXiv 2305.16269"
NAMES = {
    FULL: "(a) UDPM",
    FIT: "(b) UDPM without discriminator",
    PLAIN: "(c) UDPM as a plain diffusion loss",
    DIFFUSION: "(d) diffusion model",
    CONSISTENCY: "(e) consistency model",
}
PAPER_IMAGES = 600_000 * 64
"""600,000 steps of 64 a GPU, of which at least one."""
LEAST = 1e-4
"""A distance below this, or below 0 as an unbiased one can be, counts as this."""

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # arm: one result a seed
Way = tuple[str, ...]  # an arm and how it was sampled: of several ways the best in each seed counts


def judged(distance: float) -> float:
    """The logarithm of a distance."""
    return math.log(max(distance, LEAST))


def ratios(results: Results, ours: Way, theirs: Way, metric: str) -> list[float]:
    """log(ours / theirs), one for each seed in which neither arm diverged."""
    pairs = zip(results[ours[0]], results[theirs[0]], strict=True)
    return [
        min(judged(a["at"][way][metric]) for way in ours[1:]) - min(judged(b["at"][way][metric]) for way in theirs[1:])
        for a, b in pairs
        if not a["diverged"] and not b["diverged"]
    ]


def trainings(results: Results) -> list[ArmTraining]:
    """How much each arm was trained beside UDPM's authors, and whether it had converged."""
    source = f"{SOURCE}, README of the authors' code: 600,000 steps of 64 a GPU, at least"
    return [
        trained_arm(
            arm,
            cells[0]["images"],
            PAPER_IMAGES,
            source,
            [None if cell["diverged"] else cell["early"] for cell in cells],
            [None if cell["diverged"] else cell["at"][JUDGED[arm]][KID] for cell in cells],
            LEAST,
        )
        for arm, cells in results.items()
    ]


def between_arms(results: Results, ours: Way, theirs: Way, metric: str, claim: str, where: str) -> Finding:
    """That the distance ``metric`` of ``ours`` is less than that of ``theirs``."""
    names = [f"{NAMES[arm][:3]} at {_either(ways)}" for arm, *ways in (ours, theirs)]
    return ratio(
        ratios(results, ours, theirs, metric),
        -1,
        claim=claim,
        source=where if where.startswith("arXiv") else f"{SOURCE}, {where}",
        expected=f"mean of log {metric} of {names[0]} over {names[1]} below 0, with its 95 % interval over seeds",
        what=f"{metric} of {NAMES[ours[0]]} at {_either(ours[1:])} against {NAMES[theirs[0]]} at {_either(theirs[1:])}",
        planned=len(results[ours[0]]),
    )


def ratio(
    values: Sequence[float], sign: int, *, claim: str, source: str, expected: str, what: str, planned: int = 0
) -> Finding:
    """That logarithms of ratios lie on the side of ``sign``; a single one, or none, decides nothing."""
    if len(values) < 2:
        seeds = "" if not values else f"{what}: {_times(values[0])} in the only seed left"
        return Finding(
            claim=claim,
            source=source,
            expected=expected,
            measured=seeds or "nothing: trainings diverged",
            verdict="inconclusive",
            reason="fewer than two seeds came through without a divergence",
        )
    lost = planned - len(values)
    return over_seeds(
        values,
        lambda interval: side(interval, sign),
        claim=claim,
        source=source,
        expected=expected,
        measured=f"{what}: {_times(statistics.fmean(values))} (by seed {', '.join(_times(value) for value in values)})"
        + (f"; {lost} of {planned} seeds diverged" if lost > 0 else ""),
    )


def _either(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else f"the better of {' and '.join(ways)}"


def _times(value: float) -> str:
    return f"× {math.exp(value):.3g}"
