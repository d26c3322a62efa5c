"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all.

    OUT/checkpoints/000000065536/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json

A checkpoint is written to a hidden folder, flushed to the disk and renamed. What a killed run left half-written is
therefore never mistaken for one, and is removed by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..models.card import STATE, complete, folder_of
from ..storage.weights import Tensors

VERSION = 1
PARTS = ("model", "ema", "optimizer")
_HIDDEN = ".writing-"
_FIELDS = {"images": int, "step": int, "logged": int, "seconds": float, "tally": dict, "skipped": dict, "files": dict}


def sweep(run: Path) -> None:
    """Remove what a killed run left half-written or half-deleted."""
    root = folder_of(run)
    for path in list(root.iterdir()) if root.is_dir() else []:
        if path.name.startswith(_HIDDEN):
            shutil.rmtree(path, ignore_errors=True)


def save(run: Path, images: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of ``images`` seen images and drop all but the newest ``keep``; returns its folder."""
    root = folder_of(run)
    final, hidden = root / f"{images:012d}", root / f"{_HIDDEN}{images:012d}"
    if final.exists():
        return final
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    files: dict[str, dict[str, int]] = {}
    for part, named in tensors.items():
        path = hidden / f"{part}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in named.items()}, path, {"images": str(images)})
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "crc32": _crc(path)}
    document = {"format": "ornstein-checkpoint", "version": VERSION, "images": images, **state, "files": files}
    (hidden / STATE).write_text(json.dumps(document, indent=1), "utf-8")
    _sync(hidden / STATE)
    _sync(hidden)
    hidden.rename(final)
    _sync(root)
    for old in complete(run)[:-keep]:
        gone = root / f"{_HIDDEN}{old.name}"
        old.rename(gone)  # first renamed, so that a kill in the middle leaves no torn checkpoint
        shutil.rmtree(gone, ignore_errors=True)
    return final


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, after checking that each file is the one that was written.

    Raises `CheckpointError` naming the file.
    """
    path = folder / STATE
    remedy = f"delete {folder} to go on from the checkpoint before it"
    try:
        state = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}): {remedy}") from None
    if not isinstance(state, dict) or state.get("format") != "ornstein-checkpoint":
        raise CheckpointError(f"{path} is not the state of an ornstein checkpoint: {remedy}")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {state.get('version')!r}, this library reads {VERSION}: use the library that wrote it"
        )
    for key, kind in _FIELDS.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path} lacks a valid {key!r}: {remedy}")
    try:
        files = [(folder / name, seen["bytes"], seen["crc32"]) for name, seen in state["files"].items()]
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} lists its files without their sizes: {remedy}") from None
    for file, size, crc in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {remedy}")
        if file.stat().st_size != size or _crc(file) != crc:
            raise CheckpointError(
                f"{file} differs from what was written ({file.stat().st_size} of {size} bytes): {remedy}"
            )
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> Tensors:
    """The state of an optimizer as named tensors: ``exp_avg/WEIGHT``, ``step/WEIGHT``, …"""
    out: Tensors = {}
    for parameter, state in optimizer.state.items():
        out |= {f"{key}/{names[parameter]}": value for key, value in state.items()}
    return out


@torch.no_grad()
def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, names: Mapping[Tensor, str], path: Path) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = {name: parameter for parameter, name in names.items()}
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if name not in parameters:
            raise CheckpointError(f"{path} holds {full!r}, which belongs to no weight of this network")
        parameter = parameters[name]
        if key == "step":
            # As the optimizer makes it: on the host unless the fused kernel reads it on the device.
            device = parameter.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[parameter][key] = value.to(device)
            continue
        if value.shape != parameter.shape:
            raise CheckpointError(f"{path}: {full!r} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        own = torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format)
        optimizer.state[parameter][key] = own.copy_(value)


def _crc(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk (a folder cannot be opened everywhere)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
