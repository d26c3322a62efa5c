"""Small cells give the numbers they gave, and every training is configured as it was: see `cell_rows`."""

from __future__ import annotations

import json
from typing import Any

import cell_rows
import pytest

from ornstein.reproduce.cas_dm.cells import MetricConfig
from ornstein.storage.configs import from_dict, to_dict
from ornstein.training.methods import config_class

CELLS = json.loads((cell_rows.GOLDEN / "cells.json").read_text("utf-8"))


def test_every_row_has_a_number() -> None:
    assert [[module, name, settings] for module, name, settings, _ in CELLS] == [list(row) for row in cell_rows.rows()]


@pytest.mark.parametrize(("module", "function", "settings", "expected"), CELLS)
def test_a_cell(module: str, function: str, settings: dict[str, Any], expected: Any) -> None:
    """In float64 and without a solve near singular: what another machine rounds otherwise stays below 1e-6."""
    found = cell_rows.value(module, function, settings)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-10), key
    else:
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-10))


def test_trainings_are_configured_as_they_were() -> None:
    found, expected = cell_rows.trainings(), json.loads((cell_rows.GOLDEN / "trainings.json").read_text("utf-8"))
    assert list(found) == list(expected)
    for name, config in expected.items():
        # The names of options may have changed since.
        kind = MetricConfig if config["kind"] == "metricconfig" else config_class(config["kind"])
        assert found[name] == to_dict(from_dict(kind, config)), name
