"""Equal tuning effort: every arm chooses among as many candidates on one seed, and is judged on others.

An arm that was tuned is compared with one that was not only by accident. So each arm of a comparison has a list of
candidates (a learning rate, odds of the levels), all lists of one length; each candidate is trained once, on
`TUNING_SEED`, for the same computing; the best one by the kernel distance is taken, and all trainings that are judged
have other seeds. Candidates, their distances and the choice stand in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .cells import Cells, Job
from .record import Table

TUNING_SEED = 0
"""The seed of all trials; judged trainings begin at the next one."""
FIRST_SEED = TUNING_SEED + 1

Choice = Mapping[str, Any]
Candidates = Mapping[str, Sequence[Choice]]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was tried: arm → pairs of a candidate and its distance, None where it diverged."""

    tried: Mapping[str, Sequence[tuple[Choice, float | None]]]

    def chosen(self, arm: str) -> Choice:
        """The candidate of the least distance; the first one if all diverged."""
        return min(self.tried[arm], key=lambda pair: math.inf if pair[1] is None else pair[1])[0]

    def table(self, names: Mapping[str, str], measure: str, how: str = ", trained for half of the computing") -> Table:
        """All candidates, and which were taken; ``how`` says how they were tried."""
        rows: list[list[str | float | int | None]] = [
            [names[arm], words(choice), far, "taken" if choice == self.chosen(arm) else ""]
            for arm, pairs in self.tried.items()
            for choice, far in pairs
        ]
        note = (
            f"Each arm has as many candidates, each tried once on seed {TUNING_SEED}{how}; the least "
            f"{measure} is taken, and what is judged has other seeds. A gap is a divergence."
        )
        return Table(title="Tuning", head=["arm", "candidate", measure, ""], rows=rows, note=note)


def words(choice: Choice) -> str:
    """A candidate in words.

    >>> words({"lr": 0.0005, "odds": [2, 2, 1]}), words({"lr": 0.001, "odds": []})
    ('rate 0.0005, odds 2:2:1', 'rate 0.001')
    """
    names = {"lr": "rate"}
    parts = ((names.get(name, name), value) for name, value in choice.items() if value != [])
    told = (
        (name, ":".join(f"{v:g}" for v in value) if isinstance(value, list) else f"{value:g}") for name, value in parts
    )
    return ", ".join(f"{name} {value}" for name, value in told)


def tune(cells: Cells, function: Job, candidates: Candidates, **shared: Any) -> Tuning:
    """Try all candidates on `TUNING_SEED`.

    Args:
        cells: where trials are kept.
        function: a cell of ``arm``, ``seed``, ``choice`` and ``shared`` that gives the distance, None if it diverged.
        candidates: arm → its candidates.
        shared: settings that all trials have in common.

    Raises:
        ConfigError: the arms have different numbers of candidates.
    """
    counts = {arm: len(choices) for arm, choices in candidates.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise ConfigError(f"arms must have equally many candidates, got {counts}")
    keys = [(arm, choice) for arm, choices in candidates.items() for choice in choices]
    rows = [{"arm": arm, "seed": TUNING_SEED, "choice": dict(choice), **shared} for arm, choice in keys]
    tried: dict[str, list[tuple[Choice, float | None]]] = {arm: [] for arm in candidates}
    for (arm, choice), far in zip(keys, cells.map(function, rows), strict=True):
        tried[arm].append((choice, far))
    return Tuning(tried)


__all__ = ["FIRST_SEED", "TUNING_SEED", "Candidates", "Choice", "Tuning", "tune", "words"]
