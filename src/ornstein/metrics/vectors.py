"""All feature vectors of a set, and exact distances between two sets of them.

Features are multiples of 2⁻¹⁶ (`ornstein.metrics.frechet.quantise`), so a squared distance is an integer multiple of
2⁻³²; below 2⁵³ of these a float64 matrix product holds it exactly, in any order of summation. Hence equal images are at
distance exactly 0, comparisons with a radius are exact, and no result depends on the size of a block or a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ornstein.errors import UsageError
from ornstein.metrics.frechet import QUANTUM, quantise

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_LARGEST = 2.0**51  # |x|² in units: then |x|² + |y|² + 2 |x·y| ≤ 2⁵³
TILE = 2048


class Vectors:
    """The feature vectors of a set with the numbers of their images.

    State: 4 · width bytes an image (51 MB for 10,000 images under lite0): neighbour distances are defined on all
    vectors, so this is the one thing here whose memory grows with the set.
    """

    __slots__ = ("_parts", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self._parts: list[tuple[Integers, Rows]] = []

    def __len__(self) -> int:
        return sum(len(indices) for indices, _ in self._parts)

    def add(self, indices: Sequence[int] | Integers, rows: npt.ArrayLike) -> None:
        """Take in vectors, shape (B, width), each index once."""
        kept = np.array(rows, dtype=np.float32)
        if kept.ndim != 2 or kept.shape != (len(indices), self.width):
            raise UsageError(f"vectors must have shape ({len(indices)}, {self.width}), got {kept.shape}")
        self._parts.append((np.array(indices, dtype=np.int64), kept))

    def merge(self, other: Vectors) -> None:
        """Take in all vectors of ``other``."""
        if other.width != self.width:
            raise UsageError(f"cannot merge vectors of widths {self.width} and {other.width}: use one feature network")
        self._parts.extend(other._parts)

    @property
    def indices(self) -> Integers:
        """Numbers of the images, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *(indices for indices, _ in self._parts)]))

    @property
    def rows(self) -> Rows:
        """The vectors in the order of `indices`, shape (n, width)."""
        sorted_ = self.indices
        rows = np.empty((len(sorted_), self.width), dtype=np.float32)
        for indices, part in self._parts:
            rows[np.searchsorted(sorted_, indices)] = part
        return rows


def tiles(x: npt.ArrayLike, y: npt.ArrayLike) -> Iterator[tuple[slice, slice, Floats]]:
    """All squared distances between ``x`` (n, width) and ``y`` (m, width), exact, in blocks (rows, columns, distances).

    The distances are whole numbers of 2⁻³², as float64; columns run fastest. One block is in memory at a time (34 MB).
    Raises `UsageError` for vectors longer than 724, whose squared distances would not be exact.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"distances need vectors of one width, got {x.shape} and {y.shape}")
    for top in range(0, len(x), TILE):
        rows = slice(top, min(top + TILE, len(x)))
        mine = quantise(x[rows])
        square = _squares(mine)
        for left in range(0, len(y), TILE):
            columns = slice(left, min(left + TILE, len(y)))
            theirs = quantise(y[columns])
            yield rows, columns, square[:, None] + _squares(theirs) - 2.0 * (mine @ theirs.T)


def length(squared: npt.ArrayLike) -> Floats:
    """Distances from squared ones in the units of `tiles`."""
    return np.sqrt(np.asarray(squared, dtype=np.float64)) * QUANTUM


def nearest(x: npt.ArrayLike, y: npt.ArrayLike, k: int, *, same: bool = False) -> tuple[Floats, Integers]:
    """The ``k`` nearest vectors of ``y`` (m, width) for each of ``x`` (n, width): squared distances and row numbers.

    Both have shape (n, k), nearest first, equal distances by row number; distances in the units of `tiles`. With
    ``same`` the two sets are one, and a vector is not its own neighbour. Raises `UsageError` where ``y`` has fewer
    than k vectors to offer. Memory: 16 k bytes a vector of ``x``, and one block.
    """
    n, m = len(np.asarray(x)), len(np.asarray(y))
    if k < 1 or m - same < k:
        least = k + same
        raise UsageError(f"k = {k} neighbours need at least {least} images in the set, got {m}: give more or lower k")
    squared, numbers = np.full((n, k), np.inf), np.full((n, k), -1, dtype=np.int64)
    for rows, columns, distances in tiles(x, y):
        if same:
            _without_self(distances, rows, columns)
        improve(squared[rows], numbers[rows], distances, columns.start)
    return squared, numbers


def improve(squared: Floats, numbers: Integers, distances: Floats, first: int) -> None:
    """Let the columns of ``distances``, whose numbers begin with ``first``, into the nearest so far, in place."""
    k = squared.shape[1]
    found = _smallest(distances, min(k, distances.shape[1]))
    both = np.concatenate((squared, np.take_along_axis(distances, found, 1)), 1)
    names = np.concatenate((numbers, found + first), 1)
    order = np.argsort(both, axis=1, kind="stable")[:, :k]
    squared[:], numbers[:] = np.take_along_axis(both, order, 1), np.take_along_axis(names, order, 1)


def _smallest(distances: Floats, k: int) -> Integers:
    """Columns of the k smallest entries of each row, by (value, column)."""
    if k == distances.shape[1]:
        return np.argsort(distances, axis=1, kind="stable")
    found = np.sort(np.argpartition(distances, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(distances, found, 1)
    found = np.take_along_axis(found, np.argsort(values, axis=1, kind="stable"), 1)
    tied = (distances <= values.max(1, keepdims=True)).sum(1) > k  # argpartition chooses freely among equals
    if tied.any():
        found[tied] = np.argsort(distances[tied], axis=1, kind="stable")[:, :k]
    return found


def _without_self(distances: Floats, rows: slice, columns: slice) -> None:
    first, last = max(rows.start, columns.start), min(rows.stop, columns.stop)
    if first < last:
        both = np.arange(first, last)
        distances[both - rows.start, both - columns.start] = np.inf


def _squares(units: Floats) -> Floats:
    found = (units * units).sum(1)
    if found.max(initial=0.0) > _LARGEST:
        raise UsageError(
            f"a feature vector has length {float(length(found.max())):.0f}, more than 724: "
            "scale the features by a constant"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Meeting:
    """What one pass over all pairs of ``x`` (n) and ``y`` (m) has found; squared distances in the units of `tiles`."""

    squared: Floats  # (n, k): of each x to its nearest y
    numbers: Integers  # (n, k): row numbers of these
    held: Integers  # (b, n): in how many of the balls of family b around the y's an x lies
    smallest: Floats  # (b, n): squared radius of the smallest of them, ∞ for none
    reached: Floats  # (m,): of each y to its nearest x
    inside: npt.NDArray[np.bool_]  # (m,): whether a y lies in one of the balls around the x's


def meet(x: npt.ArrayLike, y: npt.ArrayLike, *, k: int, around_x: Floats, around_y: Floats) -> Meeting:
    """One pass over all pairs of ``x`` (n, width) and ``y`` (m, width).

    ``around_x`` (n,) and ``around_y`` (b, m) are squared radii of closed balls in the units of `tiles`. Everything
    about the x's is row by row, so the pass may be cut along x. Memory: O((k + b) n + m), and one block.
    """
    n, m = len(np.asarray(x)), len(np.asarray(y))
    families = len(around_y)
    found = Meeting(
        squared=np.full((n, k), np.inf),
        numbers=np.full((n, k), -1, dtype=np.int64),
        held=np.zeros((families, n), dtype=np.int64),
        smallest=np.full((families, n), np.inf),
        reached=np.full(m, np.inf),
        inside=np.zeros(m, dtype=np.bool_),
    )
    for rows, columns, distances in tiles(x, y):
        if k:
            improve(found.squared[rows], found.numbers[rows], distances, columns.start)
        for held, smallest, radii in zip(found.held, found.smallest, around_y, strict=True):
            within = distances <= radii[columns]
            held[rows] += within.sum(1)
            least = np.where(within, radii[columns], np.inf).min(1)
            smallest[rows] = np.minimum(smallest[rows], least)
        found.reached[columns] = np.minimum(found.reached[columns], distances.min(0))
        found.inside[columns] |= (distances <= around_x[rows, None]).any(0)
    return found
