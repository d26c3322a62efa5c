"""Cells are computed once whatever happens; records survive the way through JSON; the command is honest."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import toy_experiment
from toy_experiment import add

from ornstein import reproduce
from ornstein.cli.main import main
from ornstein.errors import ConfigError
from ornstein.reproduce import Budget, Cells, Finding, Record, mean_interval
from ornstein.reproduce.verdicts import judge


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The toy among the experiments; the folder where its cells leave marks."""
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"toy": ("toy_experiment", "TOY")})
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(marks))
    return marks


def test_a_cell_is_computed_once(toy: Path, tmp_path: Path) -> None:
    first = Cells(tmp_path / "cells", "toy", 1)
    assert first(add, a=1, b=2, seed=3) == 6.0
    assert first(add, a=1, b=2, seed=3) == 6.0  # the mark would refuse a second time
    assert Cells(tmp_path / "cells", "toy", 1).map(add, [{"a": 1, "b": 2, "seed": 3}] * 2) == [6.0, 6.0]
    with pytest.raises(FileExistsError):  # another version does not believe it
        Cells(tmp_path / "cells", "toy", 2)(add, a=1, b=2, seed=3)


def test_a_cell_is_counted_once(tmp_path: Path) -> None:
    cells = Cells(tmp_path, "toy", 1)
    for _ in range(2):
        cells.map(add, [{"a": 1, "b": 1, "seed": s} for s in (0, 1, 1)])
        seconds = cells.seconds
    assert cells.used == 2
    again = Cells(tmp_path, "toy", 1)
    again(add, a=1, b=1, seed=1)
    again(add, a=1, b=1, seed=0)
    assert again.used == 2
    assert again.seconds == pytest.approx(seconds)


def test_reproduced_needs_the_whole_interval() -> None:
    said = [judge(interval, 1.4, 1.6)["verdict"] for interval in ((1.41, 1.59), (1.45, 1.61), (1.0, 2.0), (1.7, 1.8))]
    assert said == ["reproduced", "inconclusive", "inconclusive", "not reproduced"]
    assert judge((-math.inf, math.inf), -math.inf, 2.0)["verdict"] == "inconclusive"  # a single seed
    assert judge((math.nan, math.nan), 1.0, 2.0)["verdict"] == "inconclusive"


def test_help_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    text = "".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in text for name in reproduce.EXPERIMENTS)


def test_a_damaged_cell_is_computed_again(tmp_path: Path) -> None:
    Cells(tmp_path, "toy", 1)(add, a=1, b=1, seed=0)
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text("utf-8")[:20], "utf-8")
    assert Cells(tmp_path, "toy", 1)(add, a=1, b=1, seed=0) == 2.0
    assert json.loads(file.read_text("utf-8"))["value"] == 2.0


def test_processes_give_the_same_in_the_same_order(tmp_path: Path) -> None:
    rows = [{"a": a, "b": 0, "seed": 1} for a in range(5)]
    assert Cells(tmp_path, jobs=2).map(add, rows) == Cells(None).map(add, rows) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_killed_run_goes_on(toy: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from ornstein.reproduce import Cells\n"
        "from toy_experiment import die\n"
        "print(Cells(Path(sys.argv[2])).map(die, [{'a': a, 'last': 3} for a in range(6)]))"
    )
    command = [sys.executable, "-c", script, str(Path(toy_experiment.__file__).parent), str(tmp_path / "cells")]
    assert subprocess.run(command, check=False).returncode == 9
    assert len(list((tmp_path / "cells").glob("*.json"))) == 3
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "[0, 1, 4, 9, 16, 25]\n"


def test_only_functions_that_can_be_found_again() -> None:
    with pytest.raises(ConfigError, match="top of a module"):
        Cells(None)(lambda a: a, a=1)


def test_budget() -> None:
    assert Budget(1.0).keep([1, 2, 3]) == [1, 2, 3]
    assert Budget(0.1).keep([1, 2, 3], least=2) == [1, 2]
    assert Budget(5.0).keep([1, 2, 3]) == [1, 2, 3]
    for bad in (0.0, -1.0, math.nan, 1e9):
        with pytest.raises(ConfigError, match="budget"):
            Budget(bad)


def test_interval_is_students() -> None:
    mean, (low, high) = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert (high - low) / 2 == pytest.approx(3.1824463 * math.sqrt(5 / 3) / 2, rel=1e-7)
    assert mean_interval([1.0]) == (1.0, (-math.inf, math.inf))


def test_a_verdict_other_than_reproduced_needs_a_reason() -> None:
    with pytest.raises(ConfigError, match="reason"):
        Finding(claim="c", source="s", expected="e", measured="m", verdict="not reproduced")


def test_command(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["reproduce", "toy", "--out", str(tmp_path / "out"), "--budget", "0.5"]
    assert main([*args, "--json"]) == 0
    (tree,) = json.loads(capsys.readouterr().out)
    assert tree["command"] == "ornstein reproduce toy --budget 0.5"
    assert [f["verdict"] for f in tree["findings"]] == ["reproduced", "not testable here"]
    assert tree == json.loads((tmp_path / "out" / "toy.json").read_text("utf-8"))
    assert Record.from_json(tree).to_json() == tree
    page = (tmp_path / "out" / "toy.html").read_text("utf-8")
    assert "1 reproduced, 1 not testable here" in page
    assert "2.0 times" in page
    assert "<svg" in page
    assert main(args) == 0  # from stored cells alone: the marks refuse anything else
    text = capsys.readouterr().out
    assert "REPRODUCED: Sums are sums." in text
    assert str(tmp_path / "out" / "toy.html") in text
    assert main([*args, "--fresh"]) == 1  # computed again: the marks say that the cells were there


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["toi"], "did you mean 'toy'"),
        (["toy", "--budget", "0"], "--budget must be positive, got 0"),
        (["toy", "--budget", "much"], "budget"),
        (["toy", "--jobs", "0"], "--jobs must be at least 1"),
        (["toy", "--out", __file__], "is a file"),
    ],
)
def test_bad_input_costs_one_line(
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_page_of_reproductions_is_made_from_the_records() -> None:
    root = Path(__file__).parents[2]
    made = runpy.run_path(str(root / "tools" / "reproductions.py"))
    assert (root / "docs" / "reproductions.md").read_text("utf-8") == made["text"](), (
        "run python tools/reproductions.py"
    )
