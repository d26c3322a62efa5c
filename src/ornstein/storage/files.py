"""Files: written whole or not at all, JSON documents, digests of content, and the folder of the cache.

Everything is written to a temporary file first and then moved into place, so a reader sees a whole file or none, and
any number of processes may write the same file at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from .reading import TABLE, parse_json, read_bytes, require_regular


def cache_folder() -> Path:
    """``$ORNSTEIN_CACHE``, or ``ornstein`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    named = os.environ.get("ORNSTEIN_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ornstein"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under ``path`` whole, or not at all if the block fails."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp's 0600 would hide the file from the user's group
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The document of a file that can be made again, or None if there is none or it cannot be read."""
    try:
        return parse_json(read_bytes(path, TABLE))
    except (OSError, ValueError):
        return None


def write_json(path: Path, document: object, *, indent: int | None = None) -> None:
    """Write the document atomically; OSError where the folder cannot be written."""
    text = json.dumps(document, indent=indent, separators=None if indent else (",", ":"))
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically, undecodable bytes of file names as they are; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def map_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """The array of an .npy file, memory-mapped; None if there is none of this shape and type."""
    try:
        require_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, OverflowError, SyntaxError, MemoryError, RecursionError):
        return None
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits else None


def digest(*parts: object) -> str:
    """A short digest of the parts' texts, stable across runs, machines and versions of Python."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = str(part).encode("utf-8", "surrogateescape")
        state.update(b"%d:" % len(text) + text)
    return state.hexdigest()


def digest_files(files: Iterable[tuple[str, Path]]) -> str:
    """Digest of names, sizes and modification times; a file that cannot be examined counts as absent."""
    state = hashlib.blake2b(digest_size=16)
    for name, path in files:
        try:
            found = path.stat()
            seen = f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n"
        except OSError:
            seen = f"{name}\0absent\n"
        state.update(seen.encode("utf-8", "surrogateescape"))
    return state.hexdigest()
