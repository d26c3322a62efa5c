"""Precision, recall, density and coverage: two sets compared through balls around their feature vectors.

The ball around a vector reaches to its k-th nearest neighbour in its own set, itself not counted. Balls are closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ornstein.metrics.vectors import Floats, meet, nearest

K_PRECISION = 3  # Kynkäänniemi et al. 2019
K_DENSITY = 5  # Naeem et al. 2020


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifold:
    """Precision and recall in [0, 1], density in [0, ∞) with expectation 1 for equal laws, coverage in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


def radii(x: npt.ArrayLike, *ks: int) -> Floats:
    """Squared distances (len(ks), n) from each vector of ``x`` to its k-th nearest other one, in exact units."""
    squared, _ = nearest(x, x, max(ks), same=True)
    return np.stack([squared[:, k - 1] for k in ks])


def manifold(
    fake: npt.ArrayLike, real: npt.ArrayLike, *, k_precision: int = K_PRECISION, k_density: int = K_DENSITY
) -> Manifold:
    """Precision, recall, density and coverage of ``fake`` (n, width) against ``real`` (m, width).

    With B(r, k) the ball around a real vector r reaching to its k-th nearest real neighbour:

    * precision: the part of the fakes in the union of all B(r, 3); recall the same with the sets exchanged –
      Kynkäänniemi et al. 2019 (arXiv 1904.06991);
    * density: Σ over fakes of the number of balls B(r, 5) they lie in, divided by 5 n; coverage: the part of the real
      vectors whose B(r, 5) holds a fake – Naeem et al. 2020 (arXiv 2002.09797). For equal laws
      E[density] = 1 and E[coverage] = 1 − Π_{i=1…k} (m − i)/(m + n − i).

    Exact, hence independent of blocks and batches. Memory: both sets of vectors and O(n + m); time O(n m width). Raises
    `UsageError` where a set has no more than k vectors.
    """
    around_real = radii(real, k_precision, k_density)
    around_fake = radii(fake, k_precision)[0]
    found = meet(fake, real, k=0, around_x=around_fake, around_y=around_real)
    return Manifold(
        precision=float((found.held[0] > 0).mean()),
        recall=float(found.inside.mean()),
        density=float(found.held[1].mean()) / k_density,
        coverage=float((found.reached <= around_real[1]).mean()),
    )


def expected_coverage(n: int, m: int, k: int = K_DENSITY) -> float:
    """Expectation of coverage for ``n`` fakes and ``m`` real vectors of one continuous law (Naeem et al. 2020).

    >>> round(expected_coverage(1000, 1000), 4)
    0.969
    """
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (m - i) / (m + n - i)
    return 1.0 - missed
