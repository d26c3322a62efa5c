"""How finely a consistency loss cuts the noise levels, as training goes on: S intervals at step k of K.

S counts intervals, N = S + 1 the points of the grid: published tables give one or the other.
"""

from __future__ import annotations

import math
from typing import Literal

CurriculumName = Literal["doubling", "root", "constant"]


def intervals(name: CurriculumName, step: int, steps: int, start: int, end: int) -> int:
    """S at step ``step`` of a curriculum of ``steps`` steps.

    * ``doubling``: S = min(start·2^⌊k/K'⌋, end) with K' = ⌊K/(log₂⌊end/start⌋ + 1)⌋ (Song & Dhariwal 2024, eq. 6).
    * ``root``: S = ⌈√(k/K·((end + 1)² − start²) + start²) − 1⌉ (Song et al. 2023, app. C), whose start and end count
      points: 2 and 150 begin with one interval.
    * ``constant``: S = end.

    >>> [intervals("doubling", k, 70, 10, 640) + 1 for k in (0, 9, 10, 59, 60, 69, 1000)]
    [11, 11, 21, 321, 641, 641, 641]
    """
    if name == "constant":
        return end
    if name == "root":
        part = min(step / steps, 1.0)
        return max(math.ceil(math.sqrt(part * ((end + 1) ** 2 - start**2) + start**2) - 1.0), 1)
    length = max(math.floor(steps / (math.log2(end // start) + 1.0)), 1)
    return min(start * 2 ** min(step // length, 60), end)


def target_decay(decay: float, count: int, start: int) -> float:
    """μ = exp(start·log μ_0/N), how slowly the target follows at N = count + 1 points (Song et al. 2023, app. C)."""
    return math.exp(start * math.log(decay) / (count + 1)) if decay > 0.0 else 0.0
