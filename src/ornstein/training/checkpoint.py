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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, StorageError
from ..models.card import STATE, complete, folder_of
from ..storage.reading import load_json, open_regular, reason_of, room_for, unreadable
from ..storage.weights import Tensors, not_finite

VERSION = 1
PARTS = ("model", "ema", "optimizer")
_HIDDEN = ".writing-"
_ASIDE = ".diverged"
_FIELDS = {"images": int, "step": int, "logged": int, "seconds": float, "tally": dict, "skipped": dict, "files": dict}


def sweep(run: Path) -> None:
    """Remove what a killed run left half-written or half-deleted."""
    root = folder_of(run)
    for path in list(root.iterdir()) if root.is_dir() else []:
        if path.name.startswith(_HIDDEN):
            shutil.rmtree(path, ignore_errors=True)


def save(
    run: Path, images: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], keep: int | None = None
) -> Path:
    """Write the checkpoint of ``images`` seen images, and `prune` to ``keep`` unless that is None; returns its folder.

    Raises `StorageError` where the disk cannot hold it; nothing of it is left then.
    """
    root = folder_of(run)
    final, hidden = root / f"{images:012d}", root / f"{_HIDDEN}{images:012d}"
    if final.exists():
        return final
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        _write(hidden, images, tensors, state)
        hidden.rename(final)
        _sync(root)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        found = complete(run)
        kept = f"the newest checkpoint is {found[-1]}" if found else "there was no checkpoint yet"
        raise StorageError(
            f"the checkpoint of {images} images cannot be written to {root} ({reason_of(error)}); {kept}: "
            f"{room_for(error)}, and the same command goes on from there"
        ) from error
    if keep is not None:
        prune(run, keep)
    return final


def _write(hidden: Path, images: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    from safetensors.torch import save as packed

    files: dict[str, dict[str, int]] = {}
    for part, named in tensors.items():
        path = hidden / f"{part}.safetensors"
        # Not by the library's own writer, whose memory map ends the process where the disk is full.
        data = packed({key: value.detach().cpu().contiguous() for key, value in named.items()}, {"images": str(images)})
        path.write_bytes(data)
        _sync(path)
        files[path.name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    document = {"format": "ornstein-checkpoint", "version": VERSION, "images": images, **state, "files": files}
    (hidden / STATE).write_text(json.dumps(document, indent=1), "utf-8")
    _sync(hidden / STATE)
    _sync(hidden)


def prune(run: Path, keep: int) -> None:
    """Drop all but the newest ``keep`` checkpoints, and what was set aside before the newest."""
    root, found = folder_of(run), complete(run)
    aside = [path for path in root.glob(f"*{_ASIDE}") if found and path.stem < found[-1].name]
    for old in (*found[:-keep], *aside):
        gone = root / f"{_HIDDEN}{old.name}"
        old.rename(gone)  # first renamed, so that a kill in the middle leaves no torn checkpoint
        shutil.rmtree(gone, ignore_errors=True)


def set_aside(folder: Path) -> None:
    """Rename a checkpoint after which no loss was finite, so that no run goes on from it."""
    aside = folder.with_name(folder.name + _ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def read_state(folder: Path, parts: Collection[str] | None = None) -> dict[str, Any]:
    """The state of a checkpoint, after checking that each file is the one that was written.

    Args:
        folder: the checkpoint.
        parts: the safetensors files that it must hold, no more and no less; None for those that lie there.

    Raises:
        CheckpointError: a number or file that is missing, damaged, unknown or impossible, by its name.
    """
    path = folder / STATE
    remedy = f"delete {folder} to go on from the checkpoint before it"
    state = load_json(path, CheckpointError, remedy, must_hold=None)
    if not isinstance(state, dict) or state.get("format") != "ornstein-checkpoint":
        raise CheckpointError(f"{path} is not the state of an ornstein checkpoint: {remedy}")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {state.get('version')!r}, this library reads {VERSION}: use the library that wrote it"
        )
    for key, kind in _FIELDS.items():
        value = state.get(key)
        impossible = isinstance(value, bool) or (isinstance(value, int | float) and not 0 <= value < 2**62)
        if impossible or not isinstance(value, kind):
            raise CheckpointError(f"{path} lacks a valid {key!r}: {remedy}")
    if not all(isinstance(reason, str) for reason in state["skipped"].values()):
        raise CheckpointError(f"{path} lacks a valid 'skipped': {remedy}")
    if folder.name.isdecimal() and state["images"] != int(folder.name):
        raise CheckpointError(f"{path} is of {state['images']} images, its folder of {int(folder.name)}: {remedy}")
    try:
        files = {name: (seen["bytes"], seen["crc32"]) for name, seen in state["files"].items()}
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} lists its files without their sizes: {remedy}") from None
    wanted = {f"{part}.safetensors" for part in parts} if parts is not None else set(files)
    lying = {file.name for file in folder.glob("*.safetensors")}
    for name in sorted(wanted | files.keys()):
        if name not in lying or Path(name).name != name:
            raise CheckpointError(f"{folder / name} is missing: {remedy}")
    for name in sorted(wanted | files.keys() | lying):
        if name not in files:
            raise CheckpointError(f"{path} holds no checksum of {name}: {remedy}")
        if name not in wanted:
            raise CheckpointError(f"{folder / name} belongs to no part of this run: {remedy}")
        _check(folder / name, *files[name], remedy)
    return state


def _check(file: Path, size: Any, crc: Any, remedy: str) -> None:
    try:
        found, sum_ = _measured(file)
    except (OSError, ValueError) as error:
        raise unreadable(file, error, CheckpointError, remedy) from None
    if (found, sum_) != (size, crc):
        raise CheckpointError(f"{file} differs from what was written ({found} of {size} bytes): {remedy}")


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> Tensors:
    """The state of an optimizer as named tensors: ``exp_avg/WEIGHT``, ``step/WEIGHT``, …"""
    out: Tensors = {}
    for parameter, state in optimizer.state.items():
        out |= {f"{key}/{names[parameter]}": value for key, value in state.items()}
    return out


def unmoved(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> list[str]:
    """The weights for which an optimizer has no state, because it never saw a gradient of theirs."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return sorted(names[p] for p in held if not optimizer.state.get(p))


_SLOTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW and RAdam


def _compare_slots(
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    parameters: Mapping[str, Tensor],
    path: Path,
    without: Collection[str] | None,
) -> None:
    """Raise `CheckpointError` unless every weight has every slot, finite, of its own shape and type, and no other.

    ``without`` are the weights that have none (`unmoved`); None, in files older than this list, for any.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for full, value in tensors.items():
        slot, _, name = full.partition("/")
        if name not in parameters or id(parameters[name]) not in held:
            raise CheckpointError(f"{path} holds {full!r}, which belongs to no weight of this network")
        if slot not in _SLOTS:
            raise CheckpointError(f"{path} holds {full!r}, and the optimizer knows no {slot!r}")
        shape, dtype = ((), torch.float32) if slot == "step" else (parameters[name].shape, parameters[name].dtype)
        if tuple(value.shape) != tuple(shape):
            raise CheckpointError(f"{path}: {full!r} has shape {tuple(value.shape)}, not {tuple(shape)}")
        if value.dtype != dtype:
            raise CheckpointError(f"{path}: {full!r} is of type {value.dtype}, not {dtype}")
        if not_finite(value):
            raise CheckpointError(f"{path}: {full!r} holds values that are not finite")
        if slot != "exp_avg" and bool((value < 0).any()):
            raise CheckpointError(f"{path}: {full!r} holds negative values")
    for name, parameter in parameters.items():
        lacks = [slot for slot in _SLOTS if f"{slot}/{name}" not in tensors]
        free = len(lacks) == len(_SLOTS) and (name in without if without is not None else bool(tensors))
        if id(parameter) in held and lacks and not free:
            raise CheckpointError(f"{path} lacks {lacks[0]}/{name}")


@torch.no_grad()
def fill_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    names: Mapping[Tensor, str],
    path: Path,
    without: Collection[str] | None = None,
) -> None:
    """The inverse of `optimizer_tensors`; ``without`` are the weights that had no state (`unmoved`).

    Raises `CheckpointError` for a slot that is missing, unknown, not finite, or of another shape or type.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    _compare_slots(optimizer, tensors, parameters, path, without)
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        parameter = parameters[name]
        if key == "step":
            # As the optimizer makes it: on the host unless the fused kernel reads it on the device.
            device = parameter.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[parameter][key] = value.to(device)
            continue
        own = torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format)
        optimizer.state[parameter][key] = own.copy_(value)


def _measured(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a regular file."""
    size = total = 0
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            size, total = size + len(block), zlib.crc32(block, total)
    return size, total


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
