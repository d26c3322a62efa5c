"""Bounded reading of files from anywhere: regular files only, of at most the size that their kind can have.

Every reader of the library goes through this module. A FIFO or a device is refused without waiting for it, a file is
measured before it is read, and JSON is bounded in size, depth and the length of its numbers. `Refused` says why in a
few words, without the file's name: the caller knows the name, the exception of its kind, and the remedy.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import OrnsteinError, StorageError

MIB = 1 << 20
DOCUMENT = 16 * MIB
"""Largest JSON document: a configuration, a state, an index."""
TABLE = 1024 * MIB
"""Largest table: scores, captions, the log of a run, the index of a shard."""
PICTURE = 256 * MIB
"""Largest file of one picture."""
LINE = MIB
"""Longest line of JSON lines, in characters."""
DEPTH = 64
"""Deepest JSON: lists and dictionaries inside each other."""
DIGITS = 20
"""Most digits of a whole number in JSON, as many as 64 bits hold."""

_LONG = re.compile(rf"\d{{{DIGITS + 1}}}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Refused(ValueError):  # noqa: N818 - it says why a file is not read; callers turn it into an error with its name
    """Why a file is not read, in a few words."""


def open_regular(path: str | Path, limit: int | None = None) -> IO[bytes]:
    """A regular file of at most ``limit`` bytes, open for reading.

    Raises `Refused` for anything else, at once even for a FIFO that nobody writes to, and OSError as `open` does.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    found = os.fstat(handle)
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "is a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
    elif limit is not None and found.st_size > limit:
        why = f"{found.st_size} bytes, more than the {limit} that such a file may have"
    if why is not None:
        os.close(handle)
        raise Refused(why)
    return os.fdopen(handle, "rb")


def require_regular(path: str | Path) -> int:
    """The size of a regular file, for libraries that open it themselves; raises as `open_regular` does."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; raises as `open_regular` does."""
    with open_regular(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it has grown since it was measured
        raise Refused(f"more than the {limit} bytes that such a file may have")
    return data


def text_of(data: bytes) -> str:
    """UTF-8 text, without a byte-order mark; `Refused` for other encodings."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refused("UTF-16, not UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"not UTF-8 text (byte {error.start})") from None


def read_text(path: str | Path, limit: int = DOCUMENT) -> str:
    """The text of a regular file in UTF-8; raises as `open_regular` and `text_of` do."""
    return text_of(read_bytes(path, limit))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; `Refused` for other texts, one deeper than `DEPTH`, or numbers longer than `DIGITS`."""
    text = text_of(text) if isinstance(text, bytes) else text
    whole = _whole_number if _LONG.search(text) else None  # the hook slows every number down
    try:
        found = json.loads(text, parse_int=whole)
    except RecursionError:
        raise Refused(f"nested more than {DEPTH} deep") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise Refused(f"not JSON: {error.msg.lower()} at {where}") from None
    if text.count("[") + text.count("{") > DEPTH and isinstance(found, dict | list) and _deeper(found, DEPTH):
        raise Refused(f"nested more than {DEPTH} deep")
    return found


def load_json(
    path: Path, error: type[OrnsteinError], remedy: str, *, limit: int = DOCUMENT, must_hold: type | None = dict
) -> Any:
    """The JSON document in ``path``, which must be a dictionary unless ``must_hold`` names another type (or None).

    Raises ``error`` in one line, with the reason and the ``remedy``, and `StorageError` without permission.
    """
    try:
        found = parse_json(read_bytes(path, limit))
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem, error, remedy) from None
    if must_hold is not None and not isinstance(found, must_hold):
        raise error(f"{path} holds {_kind(found)} where a document is expected: {remedy}")
    return found


def lines_of(path: Path, limit: int = TABLE) -> Iterator[tuple[int, str]]:
    r"""The lines of a text of JSON lines with their numbers from 1, blank ones left out.

    Lines end at \n (a \r before it is dropped), never at U+2028 and its like, which are valid inside a JSON string.
    Raises `Refused` for text that is not UTF-8, or a line above `LINE`, and as `open_regular` does.
    """
    with open_regular(path, limit) as file:
        number = 0
        while data := file.readline(4 * LINE + 1):
            number += 1
            if len(data) > 4 * LINE:
                raise Refused(f"line {number} has more than {LINE} characters")
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise Refused(f"line {number} is not UTF-8 text (byte {error.start})") from None
            if line.strip():
                yield number, line.rstrip("\r\n")


def load_lines(path: Path, error: type[OrnsteinError], remedy: str) -> list[dict[str, Any]]:
    """The dictionaries in a file of JSON lines.

    Raises ``error`` in one line, with the number of the line, the reason and the ``remedy``; FileNotFoundError where
    there is no such file, and `StorageError` without permission.
    """
    try:
        return [_record(number, line) for number, line in lines_of(path)]
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem, error, remedy) from None


def fault_of_text(text: str) -> str | None:
    """Why a text from a file can be no name and no caption: it holds NUL, or half of a surrogate pair; else None."""
    if "\0" in text:
        return "holds the character NUL"
    if _SURROGATE.search(text):
        return "holds half of a surrogate pair (\\ud800 … \\udfff)"
    return None


def reason_of(error: BaseException) -> str:
    """An error as a few words for a message: the system's own for an OSError, the text of a `Refused`."""
    if isinstance(error, OSError) and not isinstance(error, StorageError):
        return (error.strerror or type(error).__name__).lower()
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__


def denied(path: str | Path) -> StorageError:
    """A file or folder that this user may not open: the machine is at fault, not what the file holds."""
    return StorageError(f"{path}: permission denied: change its permissions, or name another place")


def room_for(error: OSError) -> str:
    """The remedy where a file could not be written."""
    return "change its permissions" if isinstance(error, PermissionError) else "free some space"


def unreadable(
    path: str | Path, problem: Exception, error: type[OrnsteinError], remedy: str, what: str = "cannot be read"
) -> OrnsteinError:
    """What to raise where ``path`` could not be read: `denied` without permission, else ``error`` with the remedy."""
    if isinstance(problem, PermissionError):
        return denied(path)
    return error(f"{path} {what} ({reason_of(problem)}): {remedy}")


class Clamped(io.RawIOBase):
    """A file whose reads ask for no more than it still holds, for libraries that believe the sizes in a header."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.length = file, os.fstat(file.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most what is left."""
        left = max(self.length - self.file.tell(), 0)
        return self.file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of the file, but not beyond 2⁶³."""
        return self.file.seek(min(offset, 2**62), whence)

    def tell(self) -> int:
        """Of the file."""
        return self.file.tell()


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise Refused(f"a whole number of {len(digits.lstrip('-'))} digits")
    return int(digits)


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        nested = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in nested if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _record(number: int, line: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except Refused as why:
        raise Refused(f"line {number}: {why}") from None
    if not isinstance(value, dict):
        raise Refused(f"line {number}: {_kind(value)} where a record is expected")
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "nothing")
