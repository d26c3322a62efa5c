"""Right files, damaged at random, and read by everything that reads such files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from commands import run
from isolation import WrongError

import ornstein as orn
from ornstein.data import open_source

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    10**18,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "../../etc/passwd",
    "/dev/zero",
    [],
    {},
    [[]],
    ["x"],
    {"kind": "x"},
    "\ud800",
    "\x00",
    "a" * 10_000,
    [1] * 10_000,
    {"kind": "os.system"},
    "owner/name",
    [10**9] * 3,
    [-1, 0, 0],
)


def damaged(random: Random, file: Path) -> str:
    """Damage a file in one random way, and say which."""
    kinds = ["truncate", "flip", "insert", "empty", "delete", "fifo", "folder", "loop", "zeros"]
    if file.suffix == ".json":
        kinds += ["leaf"] * 12 + ["deep", "key", "number"]
    kind = random.choice(kinds)
    data = bytearray(file.read_bytes())
    if kind == "truncate":
        file.write_bytes(bytes(data[: random.randrange(max(1, len(data)))]))
    elif kind == "flip" and data:
        for _ in range(random.choice([1, 4, 64])):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        file.write_bytes(bytes(data))
    elif kind == "insert":
        at = random.randrange(len(data) + 1)
        file.write_bytes(bytes(data[:at]) + random.randbytes(random.choice([1, 8, 4096])) + bytes(data[at:]))
    elif kind == "zeros":
        file.write_bytes(bytes(len(data)))
    elif kind == "deep":
        file.write_text("[" * 100_000)
    elif kind == "number":
        file.write_text('{"format": "ornstein-run", "version": ' + "9" * 5000 + "}")
    elif kind in {"leaf", "key"}:
        return _leaf(random, file, kind)
    else:
        file.unlink()
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        elif kind == "loop":
            file.symlink_to(file.name)
        elif kind == "empty":
            file.touch()
    return f"{kind} {file.name}"


def _leaf(random: Random, file: Path, kind: str) -> str:
    document = json.loads(file.read_text())
    said = spoiled(random, document, kind)
    file.write_text(json.dumps(document))
    return f"{file.name}: {said}"


def spoiled(random: Random, document: Any, kind: str) -> str:
    """Change one entry of a document ("leaf") or the name of one ("key"), and say which."""
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(document, dict | list):
        walk(document)
    if not spots:
        return "nothing"
    node, key = random.choice(spots)
    if kind == "key":
        value = node.pop(key)
        if isinstance(node, dict):
            node[f"{key}x"] = value
        return f"{key!r} renamed"
    node[key] = random.choice(VALUES)
    return f"{key!r} = {str(node[key])[:40]!r}"


def cases(random: Random, places: Path) -> tuple[str, Callable[[], object]]:
    """One random damage and its reader."""
    what = random.choice(["RUN", "RUN", "CARD", "CARD", "FOLDER", "SHARD"])
    state = random.getstate()
    files = sorted(file.relative_to(places) for file in (places / what).rglob("*") if file.is_file())
    named = random.choice(files)

    def case() -> None:
        random.setstate(state)
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / what
            shutil.copytree(places / what, here)
            chosen = Path(folder) / random.choice(files)
            said = damaged(random, chosen)
            os.chdir(folder)
            try:
                _read(random, what, here)
            except WrongError as wrong:
                raise WrongError(f"{said}: {wrong}") from None
            except Exception as error:
                error.add_note(f"after {said}")
                raise
            finally:
                os.chdir("/")

    return f"{named} damaged", case


def _read(random: Random, what: str, here: Path) -> None:
    if what == "FOLDER":
        source = open_source(str(here), size=8)
        for number in range(len(source)):
            example = source[number]
            if not torch.as_tensor(example.image).float().isfinite().all():
                raise WrongError("a picture that is not finite")
    elif what == "SHARD":
        source = open_source(str(here / "x.tar"), size=8)
        [source[number] for number in range(len(source))]
    elif what == "RUN" and random.random() < 0.6:
        run(["train", "ddpm", *_TRAIN, "--out", "RUN"])
    elif random.random() < 0.5:
        run(["sample", str(here), "--n", "1", "--steps", "1", "--out", "pictures"])
    else:
        model = orn.load(str(here))
        if not orn.sample(model.denoiser if hasattr(model, "denoiser") else model, 1, steps=1).isfinite().all():
            raise WrongError("samples are not finite, and nothing says so")


_TRAIN = [
    "--data",
    "critters:16",
    "--size",
    "8",
    "--images",
    "24",
    "--batch",
    "8",
    "--condition",
    "label",
    "--network.width",
    "8",
    "--network.multipliers",
    "1",
    "--network.blocks",
    "1",
    "--network.attention",
]
