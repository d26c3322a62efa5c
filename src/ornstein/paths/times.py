"""One reading of every list of times: numbers, inside the span, and no two neighbours nearer than rounding."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

from ..errors import GridError
from .base import Path

_ROUNDING = 2.5e-7
"""Two roundings to float32, relative: lists come from tensors, arrays and schedulers in single precision."""


def is_near(t: float, s: float, path: Path) -> bool:
    """Whether t and s are the same time but for rounding, relative to the smaller one (at least `t_min`)."""
    return abs(t - s) <= _ROUNDING * max(min(abs(t), abs(s)), path.t_min)


def is_above(t: float, level: float, path: Path) -> bool:
    """Whether t is noisier than ``level`` by more than rounding."""
    return t > level and not is_near(t, level, path)


def normalised(times: Any, path: Path) -> tuple[float, ...]:
    """The times of a list, array or tensor as floats: what every grid, sampler and problem works on.

    A time that only rounding has carried out of `t_range` is its end. Neighbours that are equal but for rounding are
    one time, the first of them (or the end of `t_range`), so that a grid falls or climbs by intention only.

    Raises:
        GridError: an entry that is no number, or a time outside the span of the path.
    """
    out: list[float] = []
    for entry in _entries(times):
        t = _number(entry)
        t = next((end for end in path.t_range if is_near(t, end, path) and not _inside(t, path)), t)
        path.check(t)
        if not out or not is_near(t, out[-1], path):
            out.append(t)
        elif t in path.t_range:
            out[-1] = t
    return tuple(out)


def _inside(t: float, path: Path) -> bool:
    low, high = path.t_range
    return low <= t <= high


def _entries(times: Any) -> list[Any]:
    entries = times.tolist() if hasattr(times, "tolist") else times
    if isinstance(entries, str | bytes) or not isinstance(entries, Iterable):
        raise GridError(f"a grid is a rule or a list of times, got {times!r}: for example [1.0, 0.5, 0.0]")
    return list(entries)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _number(entry: Any) -> float:
    value = entry.item() if hasattr(entry, "item") and getattr(entry, "ndim", 1) == 0 else entry
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise GridError(f"a grid is a list of times, got {entry!r} among them: give numbers, such as [1.0, 0.5, 0.0]")
    return float(value)
