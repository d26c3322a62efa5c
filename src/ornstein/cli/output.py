"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError


def say(text: str = "") -> None:
    """One line of result, on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line of progress, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def emit_json(value: Any) -> None:
    """The one JSON document of a ``--json`` call."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def refuse_file(out: Path) -> None:
    """Raise `UsageError` if ``--out`` names a file."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder")


def refuse_target(option: str, path: Path) -> None:
    """Raise `UsageError` where no file can be made at ``path``: before the work whose result it is to hold."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file")
    home = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if home is None or not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path} cannot be written ({home} is no folder for it): name another place")


def make_folder(out: Path) -> None:
    """Make the folder of ``--out``; `UsageError` where that is impossible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise UsageError(f"--out {out} cannot be made ({reason}): name a folder that can be written") from None


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: beside its place first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
