"""Bansal et al. 2024 (arXiv 2302.07121): guides by networks, against no guide and DPS at equal evaluations.

The paper shows one model guided by a segmentation, a face, boxes, a text, a style, and several networks at once. Here
the shipped critters network is guided by the networks that ship, each sample to what a drawing of its own shows that
the network has never seen. An independent network says whether a sample is nearer to that drawing than to the others,
and realism is the kernel distance to the data. Universal guidance and DPS choose among three strengths on another seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cells import Cells
from ..record import Budget, Claim, Finding, Findings, Table, mean_interval
from ..tuning import FIRST_SEED, Candidates, Tuning, tune
from . import guides as made
from .claims import GUIDES
from .guides import DPS, PLAIN, RECURRENCE, STEPS, TASKS, UNIVERSAL
from .verdicts import over_seeds

COUNT, TRIED, SEEDS = 8, 4, 24
KEPT = 0.1
"""A kernel distance larger by less than this counts as kept."""
WHAT: Mapping[str, str] = {name: name for name in TASKS} | {"three": "three networks at once"}
STRENGTHS: Mapping[str, tuple[float, ...]] = {UNIVERSAL: (0.3, 1.0, 3.0), DPS: (0.1, 0.3, 1.0)}
"""In parts of the library's own weight of the guide."""
CANDIDATES: Candidates = {
    f"{task} {method}": tuple({"strength": strength} for strength in strengths)
    for task in TASKS
    for method, strengths in STRENGTHS.items()
}
Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # task: method: one result a seed


@dataclass(frozen=True, slots=True)
class GuidesExperiment:
    """The experiment; see the module's text. ``count`` can be another in trials."""

    name: str = "universal-guides"
    title: str = "Universal guidance: guides by networks, alone and three at once"
    arxiv: str = "2302.07121"
    version: int = 1
    count: int = COUNT

    @property
    def claims(self) -> Mapping[str, Claim]:
        """What is known of every claim beforehand."""
        return GUIDES

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Six tasks, three methods."""
        tried = min(TRIED, self.count)
        tuning = tune(cells, made.tried, CANDIDATES, count=tried)
        seeds = [FIRST_SEED + seed for seed in range(budget.count(SEEDS, 3))]
        keys = [(seed, task, method) for seed in seeds for task in TASKS for method in (PLAIN, UNIVERSAL, DPS)]
        rows = [
            {"task": task, "method": method, "strength": _strength(tuning, task, method), "seed": seed}
            | {"count": self.count}
            for seed, task, method in keys
        ]
        results: dict[str, dict[str, list[Mapping[str, Any]]]] = {task: {} for task in TASKS}
        for (_, task, method), found in zip(keys, cells.map(made.drawn, rows), strict=True):
            results[task].setdefault(method, []).append(found)
        return Findings(
            findings=[finding for task in TASKS for finding in _findings(task, results)],
            tables=[
                _table(results),
                tuning.table(
                    {arm: arm for arm in CANDIDATES},
                    "failures plus KID-lite0",
                    f" with {min(TRIED, self.count)} samples",
                ),
            ],
            notes=_notes(len(seeds), self.count),
        )


def _strength(tuning: Tuning, task: str, method: str) -> float:
    return 0.0 if method == PLAIN else float(tuning.chosen(f"{task} {method}")["strength"])


def _findings(task: str, results: Results) -> list[Finding]:
    def less(key: str, other: str) -> list[float]:
        pairs = zip(results[task][UNIVERSAL], results[task][other], strict=True)
        return [a[key] - b[key] for a, b in pairs]

    def told(key: str, other: str) -> str:
        means = (statistics.fmean(run[key] for run in results[task][method]) for method in (UNIVERSAL, other))
        return " against ".join(f"{mean:.3g}" for mean in means)

    what, none = WHAT[task], "no claim of the paper"
    rows = (
        ("more samples are what was asked for than without a guide", "failed", PLAIN, 0.0, "figures"),
        ("the samples stay as realistic as without a guide", "kid", PLAIN, KEPT, "figures"),
        ("more samples are what was asked for than by DPS at equal evaluations", "failed", DPS, 0.0, none),
        ("the samples are more realistic than by DPS at equal evaluations", "kid", DPS, 0.0, none),
    )
    names = {"failed": "share of failures", "kid": "KID-lite0", PLAIN: "the plain model", DPS: "DPS"}
    return [
        over_seeds(
            f"Guided by {what}, {claim}",
            source,
            f"{names[key]} less that of {names[other]}",
            less(key, other),
            edge,
            kind="difference",
            told=told(key, other),
        )
        for claim, key, other, edge, source in rows
    ]


def _table(results: Results) -> Table:
    rows: list[list[str | float | int | None]] = []
    for task, methods in results.items():
        for method, runs in methods.items():
            row: list[str | float | int | None] = [f"{WHAT[task]}, {method}", runs[0]["evaluations"]]
            row.append(runs[0]["gradients"])
            for key in ("failed", "kid"):
                mean, (_, high) = mean_interval([run[key] for run in runs])
                row += [mean, high - mean]
            row += [statistics.fmean(run[key] for run in runs) for key in ("energy", "seconds")]
            rows.append(row)
    head = ["guide, method", "evaluations", "gradients", "failed", "±", "KID-lite0", "±", "energy", "s/image"]
    note = "Of failures, distances and energies less is better; ± is half the 95 % interval over seeds."
    return Table(title="Guides by networks", head=head, rows=rows, note=note)


def _notes(seeds: int, count: int) -> list[str]:
    success = (
        f"{seeds} seeds of {count} samples. A sample succeeds if EfficientNet-lite0, which no guide uses, finds its "
        f"own drawing the nearest of the {count} that were asked for: by chance one in {count}."
    )
    steps = (
        f"Universal guidance makes {STEPS} steps {RECURRENCE} times each, DPS and the plain model "
        f"{STEPS * RECURRENCE} steps. DPS follows the gradient of the same energy."
    )
    reach = (
        "The guides are the small networks that ship, and critters stand for faces; the paper's networks, pictures "
        "and models are out of reach here."
    )
    return [success, steps, reach]


EXPERIMENT = GuidesExperiment()
