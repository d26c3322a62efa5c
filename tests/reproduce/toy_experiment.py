"""An experiment of a few additions, for testing the framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ornstein.reproduce import Budget, Cells, Claim, Finding, Findings, Line, Plot, Table, mean_interval


def add(a: int, b: int, seed: int) -> float:
    """A cell; leaves a mark in $TOY_MARKS each time it is really computed."""
    if marks := os.environ.get("TOY_MARKS"):
        (Path(marks) / f"{a}-{b}-{seed}").touch(exist_ok=False)
    return float(a + b + seed)


def die(a: int, last: int) -> int:
    """A cell that kills its process once, at ``last``."""
    mark = Path(os.environ["TOY_MARKS"]) / f"die-{a}"
    mark.touch(exist_ok=False)
    if a == last and not (mark.parent / "died").exists():
        mark.unlink()
        (mark.parent / "died").touch()
        os._exit(9)
    return a * a


class Toy:
    """Adds numbers."""

    name = "toy"
    title = "A toy"
    arxiv = "0000.00000"
    version = 1
    claims: ClassVar[Mapping[str, Claim]] = {"Sums are": Claim("none")}

    def run(self, cells: Cells, budget: Budget) -> Findings:
        """Two claims, one table, one plot."""
        seeds = range(budget.count(10, 3))
        sums = cells.map(add, [{"a": 1, "b": 2, "seed": s} for s in seeds])
        mean, interval = mean_interval(sums)
        return Findings(
            findings=[
                Finding(
                    claim="Sums are sums.",
                    source="Euclid",
                    expected="a mean above 3",
                    measured=f"{len(sums)} seeds gave a mean of {mean:g}.",
                    verdict="reproduced",
                    value=mean,
                    interval=interval,
                    effect=1.0,
                    noise=0.5,
                ),
                Finding(
                    claim="Sums are large.",
                    source="Euclid",
                    expected="a million",
                    measured="",
                    verdict="not testable here",
                    reason="The machine is small.",
                ),
            ],
            tables=[Table(title="Sums", head=["seed", "sum"], rows=[[str(s), v] for s, v in enumerate(sums)])],
            plots=[
                Plot(
                    title="Sums",
                    x="seed",
                    y="sum",
                    log_x=False,
                    lines=[
                        Line(name="sum", x=list(seeds), y=[*sums[:-1], None]),
                        Line(name="theory", x=[0, 9], y=[3.0, 12.0], theory=True),
                    ],
                )
            ],
            notes=["nothing to add"],
        )


TOY = Toy()
