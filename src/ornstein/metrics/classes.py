"""The inception score: how sure a classifier is of each image, and how many classes it is sure of over all images.

Like the moments, its sums are exact integers (multiples of 2⁻⁴⁰), so that batches and processes leave no trace.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ornstein.errors import UsageError
from ornstein.randomness import mix

SPLITS = 10
_UNITS = 2.0**40
MOST = 2**20  # images of a part: their entropies, at most log 2980 each, add up to less than 2⁶³


@dataclass(frozen=True, slots=True, kw_only=True)
class InceptionScore:
    """Mean over ``splits`` disjoint random parts, and the standard deviation between them (0 for one part)."""

    value: float
    deviation: float
    splits: int


class InceptionScoreSums:
    """Sums from which the inception score follows: exp E KL(p(y|x) ‖ p(y)) = exp(E Σ p log p − Σ p̄ log p̄).

    Salimans et al. 2016 (arXiv 1606.03498), §4; mean and deviation over 10 parts, as the published numbers are. The
    range is 1 to the number of classes. An image belongs to a part by a hash of its index, and the parts' sizes differ
    by at most one.

    State: splits · (classes + 1) integers of 8 bytes – 80 kB – whatever the number of images. `update` and `merge` are
    exact: the same images give the same bits in any order, any batches and from any number of processes.

    >>> score = InceptionScoreSums(splits=1)
    >>> score.update([0, 1], [[1000.0, 0.0], [0.0, 1000.0]])
    >>> score.score().value
    2.0
    """

    __slots__ = ("counts", "entropies", "splits", "totals")

    def __init__(self, splits: int = SPLITS) -> None:
        if splits < 1:
            raise UsageError(f"an inception score needs at least one part, got {splits}")
        self.splits = splits
        self.counts: npt.NDArray[np.int64] = np.zeros(splits, dtype=np.int64)
        self.entropies: npt.NDArray[np.int64] = np.zeros(splits, dtype=np.int64)
        self.totals: npt.NDArray[np.int64] = np.zeros((splits, 0), dtype=np.int64)

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    def update(self, indices: Sequence[int], logits: Tensor | npt.ArrayLike) -> None:
        """Take in the classifier's logits (B, classes) of the images with these numbers."""
        x = logits.detach().cpu().numpy() if isinstance(logits, Tensor) else logits
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or len(x) != len(indices):
            raise UsageError(f"logits must have shape (B, classes) with B = {len(indices)}, got {x.shape}")
        if not np.isfinite(x).all():
            raise UsageError("a logit is not finite: the classifier is broken for this image")
        x = x - x.max(1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        p = np.exp(log_p)
        self._widen(p.shape[1])
        entropies = np.rint((p * log_p).sum(1) * _UNITS).astype(np.int64)
        for index, row, entropy in zip(indices, np.rint(p * _UNITS).astype(np.int64), entropies, strict=True):
            part = _part(index // self.splits, self.splits)[index % self.splits]
            self.counts[part] += 1
            self.entropies[part] += entropy
            self.totals[part] += row
        self._require_room()

    def merge(self, other: InceptionScoreSums) -> None:
        """Take in all images that ``other`` has seen."""
        if other.splits != self.splits:
            raise UsageError(f"cannot merge scores over {self.splits} and {other.splits} parts")
        if other.totals.shape[1]:
            self._widen(other.totals.shape[1])
            self.totals += other.totals
        self.counts += other.counts
        self.entropies += other.entropies
        self._require_room()

    def score(self) -> InceptionScore:
        """The inception score. Needs as many images as parts."""
        if not self.counts.all():
            raise UsageError(
                f"the inception score over {self.splits} parts needs {self.splits} images, got {self.count}"
            )
        values = np.array([self._one(part) for part in range(self.splits)])
        return InceptionScore(value=float(values.mean()), deviation=float(values.std()), splits=self.splits)

    def _require_room(self) -> None:
        if self.counts.max() > MOST:
            raise UsageError(f"{self.count} images overflow exact sums: score at most a million for each part")

    def _one(self, part: int) -> float:
        n = int(self.counts[part])
        mean = self.totals[part] / (n * _UNITS)
        marginal = float((mean[mean > 0] * np.log(mean[mean > 0])).sum())
        return math.exp(int(self.entropies[part]) / (n * _UNITS) - marginal)

    def _widen(self, classes: int) -> None:
        if not self.totals.shape[1]:
            self.totals = np.zeros((self.splits, classes), dtype=np.int64)
        elif self.totals.shape[1] != classes:
            raise UsageError(f"logits of {classes} classes after some of {self.totals.shape[1]}: use one classifier")


@functools.lru_cache(maxsize=64)
def _part(group: int, splits: int) -> tuple[int, ...]:
    """The parts of ``splits`` consecutive images: a permutation drawn by the hashes of their numbers."""
    first = group * splits
    order = sorted(range(splits), key=lambda i: mix("metrics/classes", first + i))
    return tuple(order.index(i) for i in range(splits))
