"""Losses by noise level, added up on the device so that no step waits for a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..objectives import Losses
from ..paths.base import AffinePath, Path

EDGES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""Borders of the noise levels, in log-SNR; a path without one is cut into equal parts of its time."""


class LossStatistics:
    """Sums since the last line of the log, by level: losses, what is watched, samples; and the gradient's norm."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.terms: dict[str, Tensor] = {}
        self.watched: dict[str, Tensor] = {}
        self.schedule: dict[str, float] = {}
        self.counts = torch.zeros(len(EDGES) + 1, dtype=torch.float64)
        self.norm = torch.zeros((), dtype=self.dtype, device=self.device)
        self.steps = 0

    def add(self, losses: Losses, norm: Tensor | None) -> None:
        """Count one step."""
        member = self._member(losses.times)
        self.counts += member.sum(1)
        member = member.to(self.device, self.dtype, non_blocking=True)
        for sums, more in ((self.terms, losses.terms), (self.watched, losses.watched)):
            for name, values in more.items():
                part = member @ values.detach().to(self.dtype)
                sums[name] = sums[name] + part if name in sums else part
        if norm is not None:
            self.norm = self.norm + norm.detach().to(self.norm)
        self.schedule = dict(losses.schedule)
        self.steps += 1

    def _member(self, t: Tensor) -> Tensor:
        """(levels, B): one where the sample's time lies in the level."""
        t = t.detach().to("cpu", torch.float64)
        if isinstance(self.path, AffinePath):
            level = torch.bucketize(self.path.log_snr(t), torch.tensor(EDGES, dtype=torch.float64))
        else:
            low, high = self.path.t_range
            level = ((t - low) / (high - low) * (len(EDGES) + 1)).long().clamp(0, len(EDGES))
        return (level == torch.arange(len(EDGES) + 1)[:, None]).to(torch.float64)

    def state(self) -> dict[str, Any]:
        """The sums as plain numbers, exact."""
        watched = {name: value.tolist() for name, value in self.watched.items()}
        return {
            "terms": {name: value.tolist() for name, value in self.terms.items()},
            **({"watched": watched} if watched else {}),
            **({"schedule": self.schedule} if self.schedule else {}),
            "counts": self.counts.tolist(),
            "norm": self.norm.item(),
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; ValueError for one that it cannot have made."""
        _require_sums(state)
        make = {"dtype": self.dtype, "device": self.device}
        self.terms = {name: torch.tensor(value, **make) for name, value in state["terms"].items()}
        self.watched = {name: torch.tensor(value, **make) for name, value in state.get("watched", {}).items()}
        self.schedule = dict(state.get("schedule", {}))
        self.counts = torch.tensor(state["counts"], dtype=torch.float64)
        self.norm = torch.tensor(state["norm"], **make)
        self.steps = state["steps"]


def _require_sums(state: dict[str, Any]) -> None:
    """Raise ValueError unless a state has the form of `LossStatistics.state`."""
    rows = [state.get("counts"), *(row for part in ("terms", "watched") for row in dict(state.get(part, {})).values())]
    for row in rows:
        if not isinstance(row, list) or len(row) != len(EDGES) + 1 or not all(_is_number(value) for value in row):
            raise ValueError("its sums since the last line of the log are damaged")
    numbers = [state.get("norm"), state.get("steps"), *dict(state.get("schedule", {})).values()]
    if not isinstance(state.get("terms"), dict) or not all(_is_number(value) for value in numbers):
        raise ValueError("its sums since the last line of the log are damaged")
    if not isinstance(state["steps"], int) or state["steps"] < 0 or min(state["counts"]) < 0:
        raise ValueError("its counts since the last line of the log are damaged")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def emptied(state: dict[str, Any]) -> dict[str, Any]:
    """A state with its sums at zero, but for the gradient's norm and the steps."""
    zeros = {
        part: {name: [0.0] * len(values) for name, values in state[part].items()}
        for part in ("terms", "watched")
        if part in state
    }
    return {**state, **zeros, "counts": [0.0] * len(state["counts"])}


def merged(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of several processes as one; the gradient's norm and the steps are common to all."""
    out = states[0]
    for other in states[1:]:
        sums = {
            part: {name: _added(values, other[part][name]) for name, values in out[part].items()}
            for part in ("terms", "watched")
            if part in out
        }
        out = {**out, **sums, "counts": _added(out["counts"], other["counts"])}
    return out


def record(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a record of the log: means over the samples."""
    counts = state["counts"]
    total = sum(counts)
    terms = {name: sum(values) / total for name, values in state["terms"].items()}
    by_level = [sum(column) for column in zip(*state["terms"].values(), strict=True)]
    watched = {name: _means(values, counts) for name, values in state.get("watched", {}).items()}
    return {
        "loss": sum(terms.values()),
        "terms": terms,
        "grad_norm": state["norm"] / state["steps"] if math.isfinite(state["norm"]) else None,
        **({"schedule": state["schedule"]} if "schedule" in state else {}),
        "levels": {
            "log_snr": list(EDGES),
            "samples": [int(count) for count in counts],
            "loss": _means(by_level, counts),
            **({"watched": watched} if watched else {}),
        },
    }


def _means(sums: Sequence[float], counts: Sequence[float]) -> list[float | None]:
    return [value / count if count else None for value, count in zip(sums, counts, strict=True)]


def _added(a: list[float], b: list[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]
