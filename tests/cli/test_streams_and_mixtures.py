"""Closed and full streams, terminals that know ASCII alone, names that are too long; and folders that mix samples."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ornstein.cli.main import main


def command(shell: str, **environment: str) -> tuple[int, str, str]:
    """The status, output and errors of a shell line in which ``ornstein`` is the command."""
    line = shell.replace("ornstein", f"{sys.executable} -m ornstein.cli.main", 1)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_closed_and_full_streams_are_one_line_or_silence() -> None:
    status, out, err = command("ornstein methods >&-")
    assert (status, out) == (1, "")
    assert err.startswith("ornstein: standard output cannot be written (it is closed")
    assert err.count("\n") == 1
    assert command("ornstein nonsense 2>&-") == (2, "", "")
    if Path("/dev/full").exists():
        said = "ornstein: standard output cannot be written (no space left on device)\n"
        assert command("ornstein methods >/dev/full") == (1, "", said)


def test_a_terminal_that_knows_ascii_alone_gets_every_line() -> None:
    status, out, err = command("ornstein nowhere-é", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (status, out) == (2, "")
    assert err.isascii()
    assert err.count("\n") == 1
    status, out, _ = command("ornstein methods --json", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (status, out.isascii()) == (0, True)
    assert json.loads(out)


@pytest.mark.parametrize(
    "words", [["sample", "x" * 5000], ["eval", "y" * 300], ["score", "z" * 5000]], ids=lambda w: w[0]
)
def test_a_name_that_no_file_can_have_is_the_fault_of_the_input(words, capsys) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 1000


def test_json_on_a_stream_without_unicode_is_still_json(monkeypatch) -> None:
    from ornstein.cli.output import emit_json

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    emit_json({"name": "é\x1b"})
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"name": "é\x1b"}


def drawn(out: Path, *more: str) -> None:
    assert main(["sample", "critters", "--steps", "1", "--sampler", "ddim", "--out", str(out), *more]) == 0


def test_a_folder_that_mixes_samples_says_so(tmp_path, capsys) -> None:
    from ornstein.cli.written import mixture

    out = tmp_path / "samples"
    drawn(out, "--n", "2", "--seed", "1")
    drawn(out, "--n", "1", "--seed", "1", "--first", "2")  # a part of the same call
    assert "still holds" not in capsys.readouterr().err
    assert mixture(str(out)) is None
    drawn(out, "--n", "1", "--seed", "2")
    assert f"{out} still holds 2 pictures of other calls" in capsys.readouterr().err
    assert "mixes the samples of 2 calls (seeds 1, 2)" in str(mixture(str(out)))
    drawn(out, "--n", "3", "--seed", "2")  # replaces them all
    assert "still holds" not in capsys.readouterr().err
    assert mixture(str(out)) is None
    (out / "000009.png").write_bytes((out / "000000.png").read_bytes())
    assert "and 1 pictures of no known call" in str(mixture(str(out)))
    for junk in ("{", "[]", '{"calls": 3}', '{"calls": [{"settings": 1}]}'):
        (out / "samples.json").write_text(junk)
        assert mixture(str(out)) is None
