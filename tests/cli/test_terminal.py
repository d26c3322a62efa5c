"""What a person sees on a terminal of 80 columns: errors are one plain line there too, help fits, lists fit."""

from __future__ import annotations

import importlib
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ornstein.cli.main import COMMANDS, main
from ornstein.cli.parameters import Parameter, parameters
from ornstein.training.methods import METHODS

# One process for all calls: what costs time is the start. Its standard error is the terminal of each call.
SCRIPT = textwrap.dedent(
    """
    import json, sys
    from ornstein.cli.main import main
    for words in json.loads(sys.argv[1]):
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        sys.stderr.write(f"\\x00{status}\\n")
        sys.stderr.flush()
    """
)
BAD = [
    ["--frobnicate"],
    ["--json=yes"],
    ["one", "two", "three\x1b[31m", "four"],
    ["--out", ""],
    ["--n", "many"],
    ["--device"],
]
CALLS = [
    *([name, *words] for name in COMMANDS if name != "train" for words in BAD),
    *(["train", name, *words] for name in METHODS for words in (["--frobnicate"], ["x"], ["--out", ""], ["--batch"])),
    ["train", "nothing"],
    ["nothing\x1b[2J"],
    ["sample", "critters", "--sampler", "dpmp"],
]


def on_a_terminal(calls: list[list[str]]) -> str:
    """Everything that the calls write to a terminal of 80 columns."""
    import fcntl
    import json
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUNBUFFERED": "1"}
    environment = {k: v for k, v in environment.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        close_fds=True,
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        found += part
    os.close(ours)
    assert process.wait() == 0, found.decode()
    return found.decode().replace("\r\n", "\n")


def test_every_error_of_every_command_is_one_plain_line_on_a_terminal() -> None:
    shown = on_a_terminal(CALLS).split("\x00")
    answers = [re.sub(r"^\d+\n", "", text) for text in shown]
    statuses = [int(text.split("\n")[0]) for text in shown[1:]]
    assert len(statuses) == len(CALLS)
    for words, answer, status in zip(CALLS, answers, statuses, strict=False):
        assert status == 2, (words, answer)
        assert re.fullmatch(r"ornstein: [^\x00-\x1f\x7f]+\n", answer), (words, answer)
        assert "usage" not in answer


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """The lines of a help on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


HELPS = [[name] for name in COMMANDS] + [["train", name] for name in METHODS]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_is_plain_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    lines = shown(capsys, monkeypatch, *words)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("None", "{", "default: True", "leave it out", "(required)", "STR", "\x1b"):
        assert word not in text
    found = [one for one in known(words) if not one.option.hidden]
    assert not [one.flag for one in found if not one.text]  # each has a sentence
    assert {one.flag for one in found} <= {line.split()[0] for line in lines if line.startswith("  ")}


def known(words: list[str]) -> list[Parameter]:
    """The options of a command."""
    if words[0] == "train":
        return list(parameters(METHODS[words[1]].configuration)) if words[1:] else []
    module, kind, *_ = COMMANDS[words[0]]
    return list(parameters(getattr(importlib.import_module(f"ornstein.cli.{module}"), kind)))


TEN = [
    "--n", "--steps", "--sampler", "--seed", "--label", "--prompt", "--guidance-scale", "--guide", "--out", "--device",
]  # fmt: skip


def first_screen(lines: list[str]) -> list[str]:
    """The lines above the first heading of further options."""
    return lines[: next(i for i, line in enumerate(lines) if re.fullmatch(r"\S.*:", line) and i > 6) - 1]


def test_sample_begins_with_what_everybody_uses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(capsys, monkeypatch, "sample")
    top = first_screen(lines)
    assert [line.split()[0] for line in top if line.startswith("  --")] == TEN
    assert top[0] == "usage: ornstein sample MODEL [options]"
    assert len(top) <= 30
    headings = [line for line in lines if re.fullmatch(r"\S.*:", line)]
    for word in ("few-step", "guide", "noise", "output"):
        assert any(word in line.lower() for line in headings), word


@pytest.mark.parametrize("name", METHODS)
def test_train_begins_with_what_most_people_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    top = first_screen(shown(capsys, monkeypatch, "train", name))
    assert len(top) <= 40
    assert {"--data", "--out", "--size", "--images", "--batch"} <= {w for line in top for w in line.split()[:1]}


@pytest.mark.parametrize("words", ["--help", "methods", "guides"])
def test_lists_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if len(line) > 80]


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, contextlib\nfrom ornstein.cli.main import COMMANDS, main\n"
        "for name in COMMANDS:\n    with contextlib.suppress(SystemExit):\n"
        "        name == 'train' or main([name, '--help'])\n"
        "main(['methods'])\nassert 'torch' not in sys.modules, 'torch'\nassert 'numpy' not in sys.modules, 'numpy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parent)
