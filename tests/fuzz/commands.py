"""Random wrong command lines: right ones in which a word is changed, lost, doubled or strange."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from isolation import WrongError

from ornstein.cli.main import COMMANDS, main

for _module, *_ in COMMANDS.values():  # once in the parent process, not in every case
    importlib.import_module(f"ornstein.cli.{_module}")
for _name in ("sampling", "runs", "guides", "rarity", "data"):
    importlib.import_module(f"ornstein.{_name}")

RIGHT = (
    "sample RUN --n 2 --steps 2 --out pictures",
    "sample RUN --n 2 --steps 2 --label 3 --guidance-scale 2 --out pictures",
    "sample RUN --n 2 --evaluations 3 --sampler auto --seed 4 --first 2 --batch 1 --out pictures",
    "sample RUN --n 1 --steps 2 --sampler ddim --guidance cfg:2 --label 1 --out pictures",
    "sample RUN --n 2 --steps 2 --guide colour:red --out pictures",
    "sample RUN --n 3 --steps 2 --interpolate 0 1 --out pictures",
    "sample TEXT --n 1 --steps 2 --prompt fox --out pictures",
    "train ddpm --data FOLDER --out run --size 8 --images 16 --batch 8 --network.width 8 --network.multipliers 1",
    "train slct --data FOLDER --out run --size 8 --images 16 --batch 8 --network.width 8 --network.multipliers 1",
    "train udpm --data FOLDER --out run --size 8 --images 8 --batch 8 --network.width 8 --network.multipliers 1",
    "train autoencoder --data FOLDER --out run --size 8 --images 8 --batch 8 --network.width 8 --objective.metric none",
    "eval FOLDER OTHER --metrics kid --features pixels",
    "score OTHER --model RUN --out scores.csv",
    "guides",
    "methods",
    "rates --samplers heun --jobs 0",
    "reproduce nothing",
    "train-guide classifier --images 8 --out guide",
)
WORDS = (
    "",
    " ",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e39",
    "1e-320",
    "10000000000000000000000000000000",
    "None",
    "True",
    "auto",
    "é",
    "\x1b[31m",
    "a\nb",
    "\x00",
    "..",
    "/",
    "/dev/null",
    "~nobody/x",
    "nowhere",
    "FOLDER",
    "RUN",
    "OTHER",
    "TEXT",
    "FIFO",
    "EMPTY",
    "LOOP",
    "JUNK",
    "x" * 300,
    "x" * 5000,
    "a:b",
    ":",
    ",",
    "=",
    "a=b",
    "--",
    "-",
    "[]",
    "{}",
    "1 2",
    "3",
    "red",
    "cfg:x",
    "pag",
    "os:system",
    "owner/name",
    "https://nowhere.invalid/x.tar",
    "\ud800",
)
LONG = re.compile(
    r"--(images|n|batch|size|steps|evaluations|minutes|blocks|jobs)\b|\.(width|blocks|layers|multipliers)$"
)
"""Options whose large values ask for long work, which is no fault."""


def options_of(command: str) -> list[str]:
    """The options that the help of a command shows."""
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        main([*command.split(), "--help"])
    return sorted({*re.findall(r"(?<![\w-])--[a-z][\w.-]*", said.getvalue())} - {"--help"})


_OPTIONS: dict[str, list[str]] = {}


def cases(random: Random, places: Path) -> tuple[str, Callable[[], object]]:
    """One random command line, run in a folder of its own with ``places`` beside it."""
    words = random.choice(RIGHT).split()
    for _ in range(random.choice([1, 1, 1, 2])):
        words = _changed(random, words)
    if words[:1] == ["reproduce"] and "nothing" not in words:
        words.append("nothing")  # without a name it reproduces everything, which takes hours

    def case() -> None:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            for place in places.iterdir():  # a command may write into what it was given
                if place.is_dir() and not place.is_symlink():
                    shutil.copytree(place, here / place.name, symlinks=True)
                elif not place.is_fifo():
                    shutil.copy(place, here / place.name, follow_symlinks=False)
            os.mkfifo(here / "FIFO")
            os.chdir(here)
            try:
                run(words)
            finally:
                os.chdir("/")

    return "ornstein " + " ".join(repr(word)[:60] for word in words), case


def _changed(random: Random, words: list[str]) -> list[str]:
    words = list(words)
    at = random.randrange(len(words))
    kind = random.choice(["replace", "replace", "replace", "drop", "double", "insert", "option", "option", "letter"])
    if kind == "replace":
        values = [i for i in range(1, len(words)) if not words[i].startswith("--")]
        if values:
            at = random.choice(values)
            words[at] = _word(random, words[at - 1])
    elif kind == "drop":
        del words[at]
    elif kind == "double":
        words.insert(at, words[at])
    elif kind == "insert":
        words.insert(at + 1, _word(random, words[at]))
    elif kind == "letter" and len(words[at]) > 2:
        spot = random.randrange(2, len(words[at]))
        words[at] = words[at][:spot] + random.choice("abcxyz-.:") + words[at][spot + 1 :]
    elif words and words[0] in COMMANDS:
        command = " ".join(words[:2]) if words[0] == "train" else words[0]
        if command not in _OPTIONS:
            _OPTIONS[command] = options_of(command)
        if _OPTIONS[command]:
            option = random.choice(_OPTIONS[command])
            words += [option, _word(random, option)]
    return words


def _word(random: Random, option: str) -> str:
    while True:
        word = random.choice(WORDS)
        long = r"[\d.e]+|inf" if option == "--minutes" else r"\d{3,}|1e39|inf"
        if not (LONG.search(option) and re.fullmatch(long, word)):
            return word


def run(words: list[str]) -> None:
    """Run a command line in this process; `WrongError` unless it ends as the house promises."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code
    said = err.getvalue()
    complaints = [line for line in said.split("\n") if line.startswith("ornstein: ")]
    if "Traceback" in said + out.getvalue():
        raise WrongError(f"a traceback: {said[-1500:]}")
    if "\x1b" in said + out.getvalue():
        raise WrongError(f"a raw escape character: {said[-300:]!r}")
    if status not in (0, 1, 2):
        raise WrongError(f"exit status {status}: {said[-300:]}")
    if status == 2 and len(complaints) != 1 and words:  # without a word it shows what there is
        raise WrongError(f"exit status 2 with {len(complaints)} lines of complaint: {said[-600:]!r}")
    if status == 1 and not complaints:
        raise WrongError(f"exit status 1 without a word: {said[-300:]!r}")
    if any(len(line) > 1000 for line in complaints):
        raise WrongError(f"a complaint of {max(map(len, complaints))} characters")
    sys.stdout.flush()
