"""The benchmarks run: each with --quick, into a file of the common form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["loop_overhead", "train_speed", "noise_cost", "pairing", "parallel_midpoint", "practice", "practice_sweep"]
)
def test_quick_run_writes_results_with_the_machine(name: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text("utf-8"))
    assert found["benchmark"] == name
    assert found["machine"]["threads"] == 1
    assert found["results"]
    if name == "train_speed":
        assert found["relative_difference_of_losses"] < 1e-5
    if name == "loop_overhead":
        apart = [row["disagreement"] for row in found["results"] if row["disagreement"] is not None]
        assert len(apart) == 4
        assert max(apart) < 1e-3
