"""One case of a fuzz run in a process of its own, so that a hang, a crash or a switch left on hurts no other case."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable

from ornstein.errors import OrnsteinError

SECONDS = 10
"""Processor seconds that a case may take."""
WALL = 40.0
"""Seconds on the clock: a case that sleeps hangs too; a busy machine is no hang."""
MEMORY = 2 << 30
"""Bytes by which a case may grow."""
LONGEST = 1000
"""Characters of an error message."""


class WrongError(Exception):
    """A result that an oracle contradicts."""


def outcome(case: Callable[[], object]) -> str:
    """What was wrong with ``case``, or an empty text: it may return, or raise a typed error of one line.

    Run in a forked child with bounded processor time, time on the clock, and memory.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()  # what it starts ends with it
        _work(case, writer)
    os.close(writer)
    try:
        said = _answer(reader)
    finally:
        os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        if said is None:
            os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if said is None:
        return f"hangs: no end after {WALL:.0f} s"
    if os.WIFSIGNALED(status) and not said:
        number = os.WTERMSIG(status)
        return (
            f"hangs: more than {SECONDS} processor seconds" if number == signal.SIGXCPU else f"died of signal {number}"
        )
    grown = used.ru_maxrss * 1024 - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if grown > MEMORY:
        return f"took {grown >> 20} MiB"
    return pickle.loads(said) if said else "ended without an answer"


def _answer(reader: int) -> bytes | None:
    """All that the child writes; None where it does not end in time."""
    parts: list[bytes] = []
    end = time.monotonic() + WALL
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _work(case: Callable[[], object], writer: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS + 1, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        said = verdict(case)
    except BaseException:  # whatever it is: the parent must hear of it
        said = traceback.format_exc()
    try:
        os.write(writer, pickle.dumps(said[-8000:]))
    finally:
        os._exit(0)


def verdict(case: Callable[[], object]) -> str:
    """What was wrong with ``case`` in this process, or an empty text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case()
        except OrnsteinError as error:
            text = str(error)
            if not text.strip() or "\n" in text or len(text) > LONGEST:
                return f"an error of {len(text)} characters and {text.count(chr(10)) + 1} lines: {text[:200]!r}"
        except WrongError as wrong:
            return f"wrong: {wrong}"
        except Exception:
            return traceback.format_exc()
    return ""
