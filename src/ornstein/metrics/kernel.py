"""The kernel distance (KID): an unbiased estimate of how far apart two sets of feature vectors are.

MMD² with k(x, y) = (x·y / width + 1)³ – Bińkowski et al. 2018 (arXiv 1801.01401), eq. 4 – averaged over blocks of a
uniform sample of bounded size, so memory does not grow with the number of images. The sample is the vectors whose
index has the smallest hash ("bottom-k"): a function of the set of indices alone, hence the same for any order, any
batches and any number of processes, and fair for data sorted by class.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ornstein.errors import UsageError
from ornstein.randomness import mix

CAPACITY = 5000
BLOCK = 1000
_LEAST_BLOCKS = 4  # so that there is a standard error to report

Rows = npt.NDArray[np.float32]


class Sample:
    """At most ``capacity`` of the vectors shown, chosen uniformly and without replacement by the hash of their index.

    State: capacity · width numbers of 4 bytes (26 MB for 5000 × 1280). With no more vectors than ``capacity`` all
    are kept. `merge` of disjoint parts equals having seen everything, bit for bit.
    """

    __slots__ = ("_heap", "capacity")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._heap: list[tuple[int, int, Rows]] = []  # (−hash, −index, row): the largest hash is on top

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, index: int, row: npt.ArrayLike) -> None:
        """Show the vector with this index; each index once."""
        self._push((-mix("metrics/kernel", index), -index, np.array(row, dtype=np.float32)))

    def merge(self, other: Sample) -> None:
        """Show every vector that ``other`` kept."""
        if other.capacity != self.capacity:
            raise UsageError(f"cannot merge samples of {self.capacity} and {other.capacity} vectors: use one size")
        for item in other._heap:
            self._push(item)

    def _push(self, item: tuple[int, int, Rows]) -> None:
        if len(self._heap) < self.capacity:
            heapq.heappush(self._heap, item)
        elif self.capacity:
            heapq.heappushpop(self._heap, item)

    def _sorted(self) -> list[tuple[int, int, Rows]]:
        return sorted(self._heap, key=lambda item: (-item[0], -item[1]))

    @property
    def indices(self) -> list[int]:
        """Indices of the kept vectors, in the order of `rows`."""
        return [-index for _, index, _ in self._sorted()]

    def rows(self, width: int) -> Rows:
        """The kept vectors in the order of their hashes – a random order –, shape (n, width)."""
        kept = [row for _, _, row in self._sorted()]
        return np.stack(kept) if kept else np.zeros((0, width), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDistance:
    """MMD² averaged over ``blocks`` disjoint blocks, and its standard error (None for a single block)."""

    value: float
    error: float | None
    blocks: int


def kernel_distance(x: npt.ArrayLike, y: npt.ArrayLike, blocks: int | None = None) -> KernelDistance:
    """The mean over blocks of `mmd2` between vectors ``x`` (n, width) and ``y`` (m, width) in random order.

    Each side is cut into ``blocks`` disjoint blocks. By default a block has at most 1000 vectors and there are as many
    as the smaller side fills, but at least four if it has eight vectors. Blocks are paired with an offset of one, so
    that in sets of equal size images made from the same seeds, or an image and its own corrupted copy, do not meet:
    the estimate assumes independent sets. Expectation 0 for equal laws, so single values may be negative.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"the kernel distance needs vectors of one width, got {x.shape} and {y.shape}")
    least = min(len(x), len(y))
    if least < 2:
        raise UsageError(f"the kernel distance needs at least 2 images on each side, got {least}: give more")
    most = None
    if blocks is None:
        most = BLOCK
        blocks = max(math.ceil(least / BLOCK), _LEAST_BLOCKS if least >= 2 * _LEAST_BLOCKS else 1)
    if not 1 <= blocks <= least // 2:
        raise UsageError(f"cannot cut {least} vectors into {blocks} blocks of two or more: ask for fewer blocks")
    theirs = list(_blocks(y, blocks, most))
    values = np.array([mmd2(mine, theirs[(i + 1) % blocks]) for i, mine in enumerate(_blocks(x, blocks, most))])
    error = float(values.std(ddof=1) / math.sqrt(blocks)) if blocks > 1 else None
    return KernelDistance(value=float(values.mean()), error=error, blocks=blocks)


def _blocks(x: npt.NDArray[np.generic], blocks: int, most: int | None) -> Iterator[npt.NDArray[np.generic]]:
    size = min(len(x) // blocks, most or len(x))
    return (x[i * size : (i + 1) * size] for i in range(blocks))


def mmd2(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Unbiased MMD² of all of ``x`` (n, width) against all of ``y`` (m, width), in float64.

    Σ_{i≠j} k(xᵢ, xⱼ) / n(n−1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m−1) − 2 Σᵢⱼ k(xᵢ, yⱼ) / nm   (Gretton et al. 2012, eq. 3).
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return _within(x) + _within(y) - 2.0 * float(_kernel(x, y).mean())


def _within(x: npt.NDArray[np.float64]) -> float:
    k, n = _kernel(x, x), len(x)
    return float((k.sum() - k.trace()) / (n * (n - 1)))


def _kernel(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (x @ y.T / x.shape[1] + 1.0) ** 3
