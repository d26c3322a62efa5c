"""`ornstein sample` of a model of labels, without --label: all classes in turn, which is said once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ornstein.cli.main import main
from ornstein.runs import open_own


def drawn(capsys: pytest.CaptureFixture[str], run: Path, out: Path, *words: str) -> tuple[list[bytes], list[str]]:
    """The PNGs of a call, and what it said of labels."""
    assert main(["sample", str(run), "--out", str(out), "--strict", "--steps", "1", *words]) == 0
    files = [path.read_bytes() for path in sorted(out.glob("0*.png"))]
    return files, [line for line in capsys.readouterr().err.splitlines() if "label" in line]


@pytest.mark.parametrize("part", [("--n", "5"), ("--n", "3", "--first", "11", "--batch", "2")])
def test_all_classes_in_turn(
    capsys: pytest.CaptureFixture[str], bold_run: Path, tmp_path: Path, part: tuple[str, ...]
) -> None:
    names = open_own(bold_run).classes
    by_default, said = drawn(capsys, bold_run, tmp_path / "a", *part)
    named, silent = drawn(capsys, bold_run, tmp_path / "b", *part, "--label", *names)
    bare, quiet = drawn(capsys, bold_run, tmp_path / "c", *part, "--label", "")
    assert by_default == named
    assert not set(by_default) & set(bare)
    assert len(said) == 1
    assert names[0] in said[0]
    assert "in turn" in said[0]
    assert not silent
    assert not quiet


def test_images_between_images_have_no_label(
    capsys: pytest.CaptureFixture[str], bold_run: Path, tmp_path: Path
) -> None:
    words = ("--n", "3", "--interpolate", "0", "1")
    by_default, said = drawn(capsys, bold_run, tmp_path / "a", *words)
    bare, _ = drawn(capsys, bold_run, tmp_path / "b", *words, "--label", "")
    assert by_default == bare
    assert not said
