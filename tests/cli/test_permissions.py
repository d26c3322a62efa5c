"""Files and folders that may not be read or written: one line, the exit status of the machine or of the input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIMITED = ["setpriv", "--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"]


def without_privileges() -> list[str]:
    """Words before a command for which permissions count: root needs some."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs permissions of files")
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None or subprocess.run([*LIMITED, "true"], check=False).returncode:
        pytest.skip("root reads everything here")
    return LIMITED


@pytest.mark.parametrize(
    ("closed", "mode", "words"),
    [
        ("run/config.json", 0o000, ["sample", "run", "--n", "1", "--out", "out"]),
        ("run", 0o555, ["train", "ddpm", "--out", "run", "--images", "64"]),
        ("photos", 0o000, ["train", "ddpm", "--data", "photos", "--out", "new", "--images", "8"]),
        ("home", 0o555, ["sample", "critters", "--n", "1", "--steps", "1", "--out", "home/out"]),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else str(value),
)
def test_no_permission_is_one_line(bold_run: Path, tmp_path: Path, closed: str, mode: int, words: list[str]) -> None:
    before = without_privileges()
    shutil.copytree(bold_run, tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "home").mkdir()
    path = tmp_path / closed
    kept = path.stat().st_mode
    path.chmod(mode)
    try:
        command = [*before, sys.executable, "-m", "ornstein", *words]
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    finally:
        path.chmod(kept)
    assert found.returncode in (1, 2), found.stderr
    lines = found.stderr.splitlines()
    assert "permission denied" in lines[-1]
    assert lines[-1].startswith("ornstein: ")
    assert Path(closed).name in lines[-1]
    assert "Errno" not in found.stderr
    assert "Traceback" not in found.stderr
