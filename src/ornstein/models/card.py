"""The description of a trained model in its folder, config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..storage.configs import from_dict
from ..storage.reading import load_json
from .registry import spec_class
from .spec import ModelSpec

VERSION = 1


CONFIG = "config.json"


def read_document(path: Path) -> dict[str, Any]:
    """A run's config.json; `CheckpointError` if it is none."""
    found = load_json(path, CheckpointError, "restore it, or train again", must_hold=None)
    if not isinstance(found, dict) or found.get("format") != "ornstein-run":
        raise CheckpointError(f"{path} is not the configuration of an ornstein run")
    if found.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {found.get('version')!r}, this library reads {VERSION}: use the library that wrote it"
        )
    return found


def read_spec(found: dict[str, Any], path: Path) -> ModelSpec:
    """The model that a document describes; `CheckpointError` if it does not."""
    try:
        model = found.get("model")
        return from_dict(spec_class(model.get("kind") if isinstance(model, dict) else None), model, "model")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


STATE = "state.json"


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def complete(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    root = folder_of(run)
    if not root.is_dir():
        return []
    return sorted(
        (p for p in root.iterdir() if p.name.isdecimal() and (p / STATE).is_file()), key=lambda p: int(p.name)
    )
