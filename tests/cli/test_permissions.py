"""Files and folders that may not be read or written: one line, the exit status of the machine or of the input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMITED = ["setpriv", "--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"]

# Cases of one process: (folder, what is closed, mode, words of a command or the import path of a reader).
CHILD = """
import contextlib, importlib, io, json, os, pathlib, sys
from ornstein.cli.main import main
from ornstein.errors import StorageError

def command(words):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return [status, err.getvalue()]

def reader(name, path):
    module, *rest = name.split(":")
    read = importlib.import_module(module)
    for part in rest[0].split("."):
        read = getattr(read, part)
    try:
        found = read(pathlib.Path(path), *(StorageError, "copy it") if rest[0].startswith("load_") else ())
    except StorageError as error:
        return [1, "ornstein: " + str(error)]
    return [0, repr(found)]

for folder, closed, mode, words in json.load(sys.stdin):
    os.chdir(folder)
    kept = os.stat(closed).st_mode
    os.chmod(closed, mode)
    try:
        found = reader(words, closed) if isinstance(words, str) else command(words)
    finally:
        os.chmod(closed, kept)
    print(json.dumps(found), flush=True)
"""
SAMPLE = ["sample", "run", "--n", "1", "--steps", "1", "--out", "out"]
OPTIONS = (
    "--data critters:64 --size 16 --images 128 --batch 16 --condition label --every.log 32 --every.samples 0 "
    "--no-tensorboard --network.width 8 --network.multipliers 1 2 --network.blocks 1 --network.attention "
    "--network.patch 2 --workers 0"
)
TRAIN = ["train", "ddpm", "--out", "run", *OPTIONS.split()]
LAST = "run/checkpoints/000000000064"

COMMANDS = [
    ("run/config.json", 0o000, SAMPLE),
    ("run", 0o000, SAMPLE),
    ("run/checkpoints", 0o000, SAMPLE),
    (LAST, 0o000, SAMPLE),
    (f"{LAST}/ema.safetensors", 0o000, SAMPLE),
    ("home", 0o555, ["sample", "critters", "--n", "1", "--steps", "1", "--out", "home/out"]),
    ("run", 0o555, TRAIN),
    ("run/checkpoints", 0o000, TRAIN),
    (f"{LAST}/optimizer.safetensors", 0o000, TRAIN),
    (f"{LAST}/state.json", 0o000, TRAIN),
    ("photos", 0o000, ["train", "ddpm", "--data", "photos", "--out", "new", "--images", "8"]),
    ("run", 0o000, ["score", "run", "--data", "critters:16", "--out", "scores.csv"]),
]
READERS = [
    "ornstein.storage.reading:load_json",
    "ornstein.storage.reading:load_lines",
    "ornstein.storage.weights:read_tensors",
    "ornstein.storage.weights:read_header",
    "ornstein.storage.statedicts:read_state",
    "ornstein.rarity.table:Table.read",
    "ornstein.metrics.sets:Statistics.load",
]


def without_privileges() -> list[str]:
    """Words before a command for which permissions count: root needs some."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs permissions of files")
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None or subprocess.run([*LIMITED, "true"], check=False).returncode:
        pytest.skip("root reads everything here")
    return LIMITED


def answers(cases: list[tuple[str, str, int, Any]]) -> list[tuple[int, str]]:
    """Exit status and standard error of each case."""
    command = [*without_privileges(), sys.executable, "-c", CHILD]
    found = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False, timeout=300)
    lines = found.stdout.splitlines()
    assert len(lines) == len(cases), found.stderr
    return [tuple(json.loads(line)) for line in lines]


def check(closed: str, status: int, said: str) -> None:
    last = said.splitlines()[-1]
    assert status == 1, (closed, said)  # the machine's, not the input's
    assert last.startswith("ornstein: "), (closed, said)
    assert "permission denied" in last, (closed, said)
    assert Path(closed).name in last, (closed, said)
    assert "Errno" not in said, (closed, said)
    assert "Traceback" not in said, (closed, said)
    for wrong in ("copy it", "delete", "free some space", "is no run", "train again"):
        assert wrong not in last, (closed, said)


def test_no_permission_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, str, int, Any]] = []
    for number, (closed, mode, words) in enumerate(COMMANDS):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_run, folder / "run")
        (folder / "photos").mkdir()
        (folder / "home").mkdir()
        cases.append((str(folder), closed, mode, words))
    for (_, closed, _, _), (status, said) in zip(cases, answers(cases), strict=True):
        check(closed, status, said)


def test_no_permission_is_the_fault_of_the_machine_for_every_reader(tmp_path: Path) -> None:
    names = [f"{number}{'.csv' if 'rarity' in name else '.safetensors'}" for number, name in enumerate(READERS)]
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    cases: list[tuple[str, str, int, Any]] = [
        (str(tmp_path), name, 0o000, reader) for name, reader in zip(names, READERS, strict=True)
    ]
    for name, (status, said) in zip(names, answers(cases), strict=True):
        check(name, status, said)


def test_a_checkpoint_that_may_not_be_written_leaves_the_run_as_it_was(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "run/checkpoints").rglob("*"))
    [(status, said)] = answers([(str(tmp_path), "run/checkpoints", 0o555, TRAIN)])
    check("run/checkpoints", status, said)
    assert "change its permissions, and the same command goes on from there" in said
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "run/checkpoints").rglob("*")) == before
