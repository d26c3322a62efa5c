"""Classes of rarity: quantiles of the scores by rank, and the examples held out of each."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..randomness import generator

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def _groups(scores: Any, groups: Any) -> tuple[npt.NDArray[Any], Integers]:
    """The scores in their own precision, and the number of each one's group."""
    values = np.asarray(scores)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise UsageError(f"scores must be a list of numbers, got {values.dtype} of shape {values.shape}")
    own = np.zeros(len(values), np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    if own.shape != values.shape:
        raise UsageError(f"{len(values)} scores need as many groups, got {own.shape}")
    return values, own


def quantile_classes(scores: Any, count: int, groups: Any = None) -> Integers:
    """The class 0 … count − 1 of every score (N,), count − 1 the rarest: ⌊rank·L/N⌋, within each group by itself.

    The rank of a score is the number of smaller ones, so that equal scores share a class: the lowest one that a
    threshold q_j with P(l ≤ q_j) = (j + 1)/L leaves them. Ranks are whole numbers; thresholds in floating point lose
    the rarest image for 82 of the L in 2 … 1000. A score that is NaN belongs to no class, −1, and does not count.

    ``groups`` (N,) are whole numbers, such as the labels of a class-conditional model.

    Raises `UsageError` for fewer than two classes.

    >>> quantile_classes([0.3, 0.1, 0.2, 0.4], 2).tolist()
    [1, 0, 0, 1]
    >>> quantile_classes([1.0, 1.0, 1.0, 2.0], 4).tolist()
    [0, 0, 0, 3]
    """
    if count < 2:
        raise UsageError(f"at least two classes of rarity are needed, got {count}")
    values, own = _groups(scores, groups)
    classes = np.full(len(values), -1, np.int64)
    for group in np.unique(own):
        rows = np.flatnonzero((own == group) & ~np.isnan(values))
        ranks = np.searchsorted(np.sort(values[rows]), values[rows], side="left")
        classes[rows] = ranks.astype(np.int64) * count // max(len(rows), 1)
    return classes


def normal_scores(scores: Any, groups: Any = None) -> Floats:
    """Φ⁻¹((rank + ½)/N) of every score (N,), within each group: a standard normal number in the order of rarity.

    Equal scores share their mean rank; NaN stays NaN. It is what the Gaussian head of a classifier regresses.

    >>> normal_scores([0.1, 5.0, 0.2]).round(3).tolist()
    [-0.967, 0.967, 0.0]
    """
    values, own = _groups(scores, groups)
    out = np.full(len(values), np.nan)
    for group in np.unique(own):
        rows = np.flatnonzero((own == group) & ~np.isnan(values))
        ordered = np.sort(values[rows])
        ends = [np.searchsorted(ordered, values[rows], side=side) for side in ("left", "right")]
        places = (ends[0] + ends[1]) / (2.0 * max(len(rows), 1))
        out[rows] = [NormalDist().inv_cdf(place) for place in places.tolist()]
    return out


def held_out(classes: Any, part: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Which examples (N,) bool are kept for validation: ``part`` of each class, drawn by (seed, class), rounded.

    A class keeps at least one example for training. Class −1 takes part in neither.

    >>> held_out([0] * 20 + [1] * 20, 0.1).sum().item()
    4
    """
    if not 0.0 <= part < 1.0:
        raise UsageError(f"the part that is held out must lie in [0, 1), got {part}")
    own = np.asarray(classes, dtype=np.int64)
    out = np.zeros(len(own), np.bool_)
    for kind in np.unique(own[own >= 0]).tolist():
        rows = np.flatnonzero(own == kind)
        count = min(round(part * len(rows)), len(rows) - 1)
        out[generator(seed, "validation", kind).permutation(rows)[:count]] = True
    return out
