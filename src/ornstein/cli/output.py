"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import StorageError, UsageError, printable
from ..storage.console import tell
from ..storage.reading import reason_of, unreadable


class OutputError(StorageError):
    """Standard output is closed or full."""


def say(text: str = "") -> None:
    """Lines of result, on standard output; what would act on a terminal is escaped."""
    _write("\n".join(printable(line) for line in text.split("\n")) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({reason_of(error)})") from error


def flush() -> None:
    """Write what standard output still holds."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({reason_of(error)})") from error


def note(text: str) -> None:
    """One line of progress, on standard error."""
    tell(text)


def emit_json(value: Any) -> None:
    """The one JSON document of a ``--json`` call, in ASCII unless the stream takes UTF-8."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    _write(json.dumps(value, indent=2, ensure_ascii=plain, allow_nan=False) + "\n")


def prepare_streams() -> None:
    """Make standard streams safe: none closed, none that a character can break.

    What an encoding lacks is escaped. A closed standard error swallows its lines; a closed standard output is an
    OSError at the first line, as a full disk is.
    """
    for number in (0, 1, 2):  # or the next file that is opened would become the stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Let what standard output still holds go nowhere: it cannot be written, and nobody is left to tell at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Closed(io.TextIOBase):
    def write(self, text: str, /) -> int:
        raise OSError(errno.EBADF, f"it is closed, and {len(text)} characters are lost")


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
        remedy = "name a folder that can be written"
        raise unreadable(f"--out {out}", error, UsageError, remedy, "cannot be made") from None
