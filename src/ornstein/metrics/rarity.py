"""How unusual single images are among the images of a reference set: three numbers for each.

The neighbour search is this package's own, because it is exact and works in blocks (`ornstein.metrics.vectors`); what
remains of the local outlier factor is a few lines, which the tests hold against scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ornstein.errors import UsageError
from ornstein.metrics.vectors import Floats, Integers, length, meet, nearest

K_AVERAGE = 5  # as in studies of low-density sampling, e.g. Sehwag et al. 2022
K_OUTLIER = 20  # scikit-learn's default
K_RARITY = 3  # Han et al. 2022


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rarity:
    """Three numbers for each of n images; larger is rarer. ``score`` is NaN where it is undefined."""

    average: Floats  # (n,) average distance to the k nearest reference images
    outlier: Floats  # (n,) local outlier factor
    score: Floats  # (n,) rarity score

    @property
    def undefined(self) -> float:
        """The part of the images that lie in no ball of the reference: off its manifold, so without a rarity score."""
        return float(np.isnan(self.score).mean())

    @property
    def mean_score(self) -> float | None:
        """Mean rarity score over the images that have one; None if none has."""
        defined = self.score[~np.isnan(self.score)]
        return float(defined.mean()) if len(defined) else None


def rarity(
    images: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    k_average: int = K_AVERAGE,
    k_outlier: int = K_OUTLIER,
    k_rarity: int = K_RARITY,
) -> Rarity:
    """The rarity of each of ``images`` (n, width) among ``reference`` (m, width), by three definitions.

    * average: mean distance to the k nearest reference vectors (AvgkNN). It scales with the features.
    * outlier: mean of lrd(o) / lrd(x) over the k nearest reference vectors o, where 1 / lrd(x) is the mean over them of
      the reachability distance max(distance of o to its k-th neighbour, |x − o|) – Breunig et al. 2000, def. 5–7. About
      1 inside the reference, larger outside; scikit-learn reports the negative. As there, 10⁻¹⁰ is added to the mean
      reachability, so that copies divide by something.
    * score: the smallest radius of the balls B(r, k) that hold x, B reaching from r to its k-th reference neighbour –
      Han et al. 2022 (arXiv 2206.08549); undefined outside all balls.

    An image that is itself in the reference counts as a neighbour of itself at distance 0. Memory: both sets of vectors
    and O(k (n + m)); time O(m (n + m) width). Raises `UsageError` where the reference has no more than k vectors.
    """
    k = max(k_average, k_outlier)
    if min(k_average, k_outlier, k_rarity) < 1 or len(np.asarray(reference)) <= max(k, k_rarity):
        raise UsageError(
            f"k = {max(k, k_rarity)} neighbours need at least {max(k, k_rarity) + 1} images in the reference, "
            f"got {len(np.asarray(reference))}: give more or lower k"
        )
    own, neighbours = nearest(reference, reference, max(k_outlier, k_rarity), same=True)
    balls = own[:, k_rarity - 1]
    found = meet(images, reference, k=k, around_x=np.zeros(len(np.asarray(images))), around_y=balls[None])
    reach = own[:, k_outlier - 1]
    inner = _density(own[:, :k_outlier], neighbours[:, :k_outlier], reach)
    outer_neighbours = found.numbers[:, :k_outlier]
    outer = _density(found.squared[:, :k_outlier], outer_neighbours, reach)
    smallest = found.smallest[0]
    return Rarity(
        average=length(found.squared[:, :k_average]).mean(1),
        outlier=inner[outer_neighbours].mean(1) / outer,
        score=np.where(np.isinf(smallest), np.nan, length(smallest)),
    )


def _density(squared: Floats, neighbours: Integers, reach: Floats) -> Floats:
    """Local reachability density (n,) from squared distances and numbers of the neighbours, and their k-distances."""
    return 1.0 / (length(np.maximum(squared, reach[neighbours])).mean(1) + 1e-10)
