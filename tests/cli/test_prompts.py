"""Prompts of `ornstein sample`: several are cycled like labels, a file holds one a line, and what is lost is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ornstein.cli.main import main

SHORT = ("--steps", "1", "--device", "cpu")


def drawn(capsys: pytest.CaptureFixture[str], run: Path, out: Path, *words: str) -> tuple[list[bytes], str]:
    """The PNGs of a call, and what it said beside them."""
    assert main(["sample", str(run), "--out", str(out), "--strict", *SHORT, *words]) == 0
    return [path.read_bytes() for path in sorted(out.glob("0*.png"))], capsys.readouterr().err


def test_prompts_are_cycled_over_the_stream_and_may_come_from_a_file(
    capsys: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffan orange critter\n\n  a green critter  \n", "utf-8")
    one, two = "an orange critter", "a green critter"
    both, _ = drawn(capsys, text_run, tmp_path / "a", "--n", "4", "--prompt", one, "--caption", two)
    lines, _ = drawn(capsys, text_run, tmp_path / "b", "--n", "4", "--prompts", str(file))
    later, _ = drawn(capsys, text_run, tmp_path / "c", "--n", "2", "--first", "1", "--prompt", one, "--prompt", two)
    first, _ = drawn(capsys, text_run, tmp_path / "d", "--n", "4", "--prompt", one)
    second, _ = drawn(capsys, text_run, tmp_path / "e", "--n", "4", "--prompt", two)
    assert both == lines == [first[0], second[1], first[2], second[3]]
    assert later == both[1:3]


def test_what_a_prompt_cannot_say_is_one_warning(
    capsys: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path
) -> None:
    words = ("--n", "2", "--prompt", "a zebra, an orange critter on stilts", "--prompt", "a zebra")
    _, said = drawn(capsys, text_run, tmp_path / "a", *words)
    warnings = [line for line in said.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "zebra" in warnings[0]
    assert "stilts" in warnings[0]
    assert "orange" not in warnings[0]
    _, said = drawn(capsys, text_run, tmp_path / "b", "--n", "1", "--prompt", "", "--guidance-scale", "2")
    assert [line[:24] for line in said.splitlines() if line.startswith("warning:")] == ["warning: an empty prompt"]
    _, said = drawn(capsys, text_run, tmp_path / "c", "--n", "1", "--prompt", "")
    assert "warning" not in said


def test_a_negative_prompt_is_what_guidance_leads_away_from(
    capsys: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path
) -> None:
    words = ("--n", "1", "--prompt", "an orange critter", "--guidance-scale", "2")
    plain, _ = drawn(capsys, text_run, tmp_path / "a", *words)
    empty, _ = drawn(capsys, text_run, tmp_path / "b", *words, "--negative-prompt", "")
    same, _ = drawn(capsys, text_run, tmp_path / "c", *words, "--negative-prompt", "an orange critter")
    alone, _ = drawn(capsys, text_run, tmp_path / "d", "--n", "1", "--prompt", "an orange critter")
    assert plain == empty
    assert same == alone  # guidance from a condition to itself is none


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompts", "FOLDER"), "is no file: name a text file with a prompt on each line"),
        (("--prompts", "EMPTY"), "holds no prompt: write one on each line"),
        (("--prompts", "BYTES"), "is no text in UTF-8"),
        (("--prompts", "EMPTY", "--prompt", "a"), "give --prompt or --prompts, not both"),
        (("--label", "1", "--prompt", "a"), "give --label or --prompt, not both"),
    ],
)
def test_prompts_that_cannot_be_read_cost_one_line(
    capsys: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "FOLDER").mkdir()
    named = [str(tmp_path / word) if word.isupper() else word for word in words]
    assert main(["sample", str(text_run), *named, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_record_names_the_prompts(capsys: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path) -> None:
    words = ["--n", "1", *SHORT, "--out", str(tmp_path / "x"), "--prompt", "a critter", "--json"]
    assert main(["sample", str(text_run), *words]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == ["a critter"]
