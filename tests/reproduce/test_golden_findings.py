"""Every sentence, verdict, table, plot and request of the reproductions on made-up answers, as they once were read.

No law says what a table holds: the files of ``golden`` are outputs for fixed answers, and a change that is meant writes
them again (see `canned`).
"""

from __future__ import annotations

import json
import math
from typing import Any

import canned
import pytest

from ornstein.reproduce import EXPERIMENTS, Budget, Findings, Record, mean_interval
from ornstein.reproduce.midpoint.depth import depth


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """Where two trees differ; numbers may by rounding."""
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return [] if found == pytest.approx(expected, rel=1e-8, abs=1e-13) else [f"{where}: {found} for {expected}"]
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        return [one for key, value in expected.items() for one in differences(found[key], value, f"{where}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = zip(found, expected, strict=True)
        return [one for i, (a, b) in enumerate(pairs) for one in differences(a, b, f"{where}[{i}]")]
    return [] if found == expected else [f"{where}: {found!r} for {expected!r}"]


@pytest.fixture(scope="module", params=EXPERIMENTS)
def golden(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    name = request.param
    return name, json.loads((canned.GOLDEN / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("world", canned.WORLDS)
def test_what_is_said_of_made_up_answers(golden: tuple[str, dict[str, Any]], world: str) -> None:
    name, expected = golden
    found = json.loads(json.dumps(canned.made(name, world)))
    assert not differences(found, expected[world], name)


def test_what_is_asked_at_every_budget(golden: tuple[str, dict[str, Any]]) -> None:
    name, expected = golden
    assert canned.requests(name) == expected["requests"]


def test_the_worlds_bring_every_verdict() -> None:
    verdicts = {name: set[str]() for name in canned.WORLDS}
    for name in EXPERIMENTS:
        tree = json.loads((canned.GOLDEN / f"{name}.json").read_text("utf-8"))
        for world, found in verdicts.items():
            found |= {finding["verdict"] for finding in tree[world]["findings"]}
    assert verdicts["calm"] >= {"reproduced", "not testable here"}
    assert len(verdicts["contrary"] - {"reproduced"}) >= 2
    assert verdicts["rough"] == {
        "reproduced", "not reproduced", "inconclusive", "inconclusive (budget)", "not testable here",
    }  # fmt: skip


def test_a_parallel_run_that_does_not_get_there_is_no_number() -> None:
    """Of one seed no run came near enough: the claim is inconclusive, and the table has a gap."""

    class Endless(canned.Canned):
        def sweeps(self, row: Any) -> Any:
            found = super().sweeps(row)
            return {**found, "depth": 0 if row["seed"] == 1 and row["steps"] == 64 else found["depth"]}

    found = depth(Endless("randomized-midpoint", 0.02), Budget(0.02))
    assert (found.findings[0].verdict, found.findings[1].verdict) == ("inconclusive", "reproduced")
    assert found.tables[0].rows[1][2:5] == [None, None, None]
    assert all(cell is not None for row in (found.tables[0].rows[0], found.tables[0].rows[2]) for cell in row)
    assert depth(canned.Canned("randomized-midpoint", 0.02), Budget(0.02)).findings[0].noise is not None
    assert Record.from_json(_record(found)).found.findings[0].value is None
    assert all(math.isnan(x) for x in mean_interval([1.0, math.nan])[1])


def _record(part: Any) -> dict[str, Any]:
    found = Findings(findings=part.findings, tables=part.tables, plots=part.plots)
    about: dict[str, Any] = {"title": "t", "arxiv": "a", "version": 1, "budget": 1.0, "command": "c", "date": "d"}
    record = Record(experiment="e", **about, seconds=0.0, cells=0, machine={}, found=found)
    return json.loads(json.dumps(record.to_json()))
