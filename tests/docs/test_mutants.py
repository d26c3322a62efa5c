"""The page of faults that no test noticed quotes lines that stand in the source today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_as_it_would_be_written() -> None:
    command = [sys.executable, str(ROOT / "tools" / "mutants.py"), "table", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 0, found.stderr


def test_quoted_lines_exist() -> None:
    parts = re.split(r"^## ", (ROOT / "docs" / "mutants.md").read_text("utf-8"), flags=re.MULTILINE)
    quoted = [line for part in parts[1:3] for line in part.splitlines() if line.startswith("* ")]
    assert len(quoted) > 50
    for line in quoted:
        found = re.match(r"\* `([^`]+)`[^`]*: `(.*?)` → `", line)
        assert found is not None, line
        source = (ROOT / "src" / "ornstein" / found[1]).read_text("utf-8").splitlines()
        assert found[2] in (text.strip() for text in source), line
