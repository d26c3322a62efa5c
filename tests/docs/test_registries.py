"""Registries hold their data: each part once, with a name for the command line and one line that says what it is."""

import inspect
import re

import pytest

from ornstein.guidance.registry import GUIDANCES
from ornstein.guides import kinds
from ornstein.methods import PAPERS
from ornstein.metrics.measure import METRICS
from ornstein.samplers import SAMPLERS
from ornstein.training.methods import METHODS

REGISTRIES = {
    "samplers": {name: inspect.getdoc(type(make())) for name, make in SAMPLERS.items()},
    "guidances": {name: one.what for name, one in GUIDANCES.items()},
    "metrics": {name: one.what for name, one in METRICS.items()},
    "guides": {name: one.what for name, one in kinds().items()},
    "training methods": {name: one.what for name, one in METHODS.items()},
    "papers": {one.name: one.what for one in PAPERS},
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_each_part_says_in_one_line_what_it_is(name: str) -> None:
    for part, what in REGISTRIES[name].items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9+-]*", part), part
        assert what, f"{name}: {part} has no description"
        first = what.split("\n\n")[0]
        assert 3 < len(first) < 400, f"{name}: {part}"


def test_there_are_eleven_papers() -> None:
    assert len(PAPERS) == len(REGISTRIES["papers"]) == 11
    assert {one.state for one in PAPERS} <= {"ready", "parts", "planned"}
