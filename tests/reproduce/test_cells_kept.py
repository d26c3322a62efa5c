"""The store of cells: what names a cell, what is said and counted, what a killed or damaged file costs."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import toy_experiment
from toy_experiment import add

from ornstein.errors import ConfigError
from ornstein.reproduce import Cells

calls: list[dict[str, Any]] = []


def cell(**settings: Any) -> Any:
    calls.append(settings)
    return {"sum": sum(settings.values()), "list": (1, 2)}


def _hidden(a: int) -> int:
    calls.append({"a": a})
    return a


def filed(a: int, files: Path) -> str:
    return f"{a} {files.is_dir()} {files.name}"


@pytest.fixture(autouse=True)
def fresh() -> None:
    calls.clear()


def test_a_cell_is_named_by_experiment_version_function_and_settings(tmp_path: Path) -> None:
    for experiment, version, settings in (
        *(("e", 1, {"a": 1, "b": 2}), ("f", 1, {"a": 1, "b": 2}), ("e", 2, {"a": 1, "b": 2})),
        *(("e", 1, {"a": 1, "b": 3}), ("e", 1, {"a": 1, "c": 2})),
    ):
        assert Cells(tmp_path, experiment, version)(cell, **settings)["sum"] == sum(settings.values())
    assert len(calls) == len(list(tmp_path.glob("cell-*.json"))) == 5
    assert Cells(tmp_path, "e", 1).map(cell, [{"b": 2, "a": 1}]) == [{"sum": 3, "list": [1, 2]}]
    assert len(calls) == 5, "the order of settings is none"
    Cells(tmp_path, "e", 1)(_hidden, a=1)
    assert len(list(tmp_path.glob("hidden-*.json"))) == 1
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    Cells(tmp_path, "e", 3)(cell, a=1)
    (file,) = tmp_path.glob("*.json")
    tree = json.loads(file.read_text("utf-8"))
    assert tree["value"] == {"sum": 1, "list": [1, 2]}
    assert 0.0 <= tree["seconds"] < 5.0
    assert (tree["experiment"], tree["version"], tree["settings"]) == ("e", 3, {"a": 1})


def test_values_are_plain_also_in_memory() -> None:
    cells = Cells(None)
    first = cells(cell, a=1)
    assert first == {"sum": 1, "list": [1, 2]}
    assert cells(cell, a=1) == first
    assert len(calls) == 1
    assert cells.used == 1


def test_what_was_computed_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    cells = Cells(tmp_path, "e", 1, note=said.append)
    cells(cell, a=1)
    cells.map(cell, [{"a": n} for n in (1, 2, 3)])
    assert said == ["cell a=1 (1 of 1)", "cell a=2 (1 of 2)", "cell a=3 (2 of 2)"]
    long = {f"name{i}": 10**9 + i for i in range(20)}
    cells(cell, **long)
    assert said[-1] == f"cell {' '.join(f'{k}={v}' for k, v in long.items())} (1 of 1)"[:160]
    assert cells.used == 4


def test_seconds_are_those_of_the_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr("ornstein.reproduce.cells.time.perf_counter", lambda: next(clock))
    cells = Cells(tmp_path, "e", 1)
    cells.map(cell, [{"a": 1}, {"a": 2}, {"a": 1}])
    assert (cells.used, cells.seconds) == (2, 3.5)
    cells(cell, a=2)
    assert (cells.used, cells.seconds) == (2, 3.5)
    again = Cells(tmp_path, "e", 1)
    again(cell, a=2)
    assert (again.used, again.seconds) == (1, 1.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"value": 1}', '{"seconds": 1}', '{"value": 1, "seconds": "x"}', "3"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, text: str) -> None:
    Cells(tmp_path)(cell, a=1)
    (file,) = tmp_path.glob("*.json")
    file.write_text(text, "utf-8")
    assert Cells(tmp_path)(cell, a=1)["sum"] == 1
    assert len(calls) == 2


def test_files_stay_with_the_cells_or_go_with_the_object(tmp_path: Path) -> None:
    kept = Cells(tmp_path / "kept")
    assert kept(filed, a=1) == "1 True files"
    assert kept.files() == tmp_path / "kept" / "files"
    passing = Cells(None)
    folder = passing.files()
    assert folder == passing.files()
    assert passing(filed, a=2) == f"2 True {folder.name}"
    assert folder.name.startswith("ornstein-cells-")
    del passing
    gc.collect()
    assert not folder.exists()
    assert Cells(None)(add, a=1, b=2, seed=3) == 6.0


def test_edges_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs must be at least 1, got 0"):
        Cells(tmp_path, jobs=0)
    assert Cells(tmp_path).map(cell, []) == []

    def inner(a: int) -> int:
        return a

    with pytest.raises(ConfigError, match=r"top of a module, got test_edges_of_the_store\.<locals>\.inner"):
        Cells(tmp_path)(inner, a=1)
    # One cell alone needs no further process: it may be computed here.
    said: list[str] = []
    assert Cells(None, jobs=2, note=said.append).map(toy_experiment.add, [{"a": 1, "b": 1, "seed": 1}] * 2) == [
        3.0,
        3.0,
    ]
    assert said == ["add a=1 b=1 seed=1 (1 of 1)"]
