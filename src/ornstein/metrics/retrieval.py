"""Whether pictures show their captions, without a text network: how near each is to a real picture of its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ornstein.errors import UsageError

TOP = 5
"""The k of the share of pictures whose caption is among their k nearest."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Ranks of the pictures: 1 where a picture of the same caption is the nearest of all.

    ``first`` and ``top`` are the shares of pictures of rank 1 and of rank k or less; ``chance`` is what pictures that
    do not depend on their caption reach in ``top``.
    """

    ranks: npt.NDArray[np.int64]
    first: float
    top: float
    chance: float
    captions: int

    @property
    def median(self) -> float:
        """The median rank."""
        return float(np.median(self.ranks))


def retrieval(
    rows: Floats, captions: Sequence[str], others: Floats, their_captions: Sequence[str], *, k: int = TOP
) -> Retrieval:
    """The rank of each picture's own caption among the captions of a captioned set, by the distance of features.

        rank_i = |{c : min_{j: c_j = c} ‖f_i − g_j‖ < min_{j: c_j = c_i} ‖f_i − g_j‖}| + 1

    Args:
        rows: features f (N, D) of the pictures; ``captions`` what each was made from.
        others: features g (M, D) of the captioned set, and its captions.
        k: how many captions count as near.

    Raises:
        UsageError: a caption that the set lacks, fewer than two captions in it, or k out of range.
    """
    names = list(dict.fromkeys(their_captions))
    if len(names) < 2 or not 1 <= k < len(names):
        raise UsageError(f"retrieval needs more than k = {k} captions to choose from, got {len(names)}: give more data")
    place = {name: i for i, name in enumerate(names)}
    missing = next((caption for caption in captions if caption not in place), None)
    if missing is not None:
        raise UsageError(f"no picture of the data has the caption {missing!r}: name the data that the captions are of")
    own = np.array([place[caption] for caption in captions])
    theirs = np.array([place[caption] for caption in their_captions])
    order = np.argsort(theirs, kind="stable")
    starts = np.searchsorted(theirs[order], np.arange(len(names)))
    g = np.asarray(others, np.float64)[order]
    ranks = np.empty(len(own), np.int64)
    for i, row in enumerate(np.asarray(rows, np.float64)):
        nearest = np.minimum.reduceat(((g - row) ** 2).sum(1), starts)
        ranks[i] = (nearest < nearest[own[i]]).sum() + 1
    return Retrieval(
        ranks=ranks,
        first=float((ranks == 1).mean()),
        top=float((ranks <= k).mean()),
        chance=k / len(names),
        captions=len(names),
    )


__all__ = ["TOP", "Retrieval", "retrieval"]
