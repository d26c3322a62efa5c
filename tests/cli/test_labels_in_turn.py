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


@pytest.mark.parametrize("words", [("--guidance-scale", "2"), ("--guidance", "apg:3")], ids=" ".join)
def test_guidance_without_a_label_leads_to_the_classes_in_turn(
    capsys: pytest.CaptureFixture[str], bold_run: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    names = open_own(bold_run).classes
    by_default, said = drawn(capsys, bold_run, tmp_path / "a", "--n", "3", *words)
    named, _ = drawn(capsys, bold_run, tmp_path / "b", "--n", "3", *words, "--label", *names)
    unguided, _ = drawn(capsys, bold_run, tmp_path / "c", "--n", "3")
    assert by_default == named
    assert not set(by_default) & set(unguided)
    assert len(said) == 1


def test_guidance_without_any_condition_names_the_remedy(
    capsys: pytest.CaptureFixture[str], bold_run: Path, tmp_path: Path
) -> None:
    """Between two images there is one condition for all, which must be given; a model may have none."""
    cases = [
        (str(bold_run), ("--interpolate", "0", "1"), "--label"),
        ("critters", (), "critters has none (train it with --condition label or text)"),
    ]
    for run, more, remedy in cases:
        words = ["sample", run, "--n", "3", "--steps", "1", "--out", str(tmp_path / "o"), "--guidance-scale", "2"]
        assert main([*words, *more]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "--guidance-scale 2 needs a condition to guide toward" in line
        assert line.rstrip().endswith(remedy)
    assert not (tmp_path / "o").exists()
