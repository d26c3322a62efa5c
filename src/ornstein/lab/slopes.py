"""The order of a sampler from its errors, or the answer that these errors show none.

With errors e_k at step counts N_k, the local slopes are p_k = log(e_k/e_{k+1}) / log(N_{k+1}/N_k). The fit takes the
longest suffix over which neighbouring local slopes agree within .15, at least three points of it; least squares of
log e on log N gives the order with a 95 % interval of Student's t. Where no such suffix exists there is no number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["agrees", "higher", "exact", "below", "open"]

_JUMP = 0.15  # most that neighbouring local slopes may differ inside the asymptotic range
_ABOVE_FLOOR = 50.0  # an error counts while it is this many times above the floor
_ABOVE_NOISE = 4.0  # the same for sampling noise
_EXACT = 1e-11  # errors that are nothing but rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A measured order.

    ``order`` is positive for errors that fall; ``half_width`` is half of its 95 % interval; both are None when the
    errors are "not asymptotic". ``local`` holds all local slopes of the usable errors, ``last`` the last of them;
    ``used`` counts the points of the fit and ``counts`` the usable ones.
    """

    order: float | None
    half_width: float | None
    last: float | None
    local: tuple[float, ...]
    counts: tuple[int, ...]
    used: int
    exact: bool = False

    @property
    def asymptotic(self) -> bool:
        """Whether there is a number."""
        return self.order is not None

    def verdict(self, declared: float) -> Verdict:
        """Beside a declared order p: the interval must meet [p − .1, p + .1] and the last pair lie within .15 of p.

        "below" is a sampler slower than it claims, "higher" one that is faster on this target, "exact" one without
        any error here, "open" errors that are not asymptotic yet, whose last slope is as claimed or still rises to it,
        or of which fewer than three can be used.
        """
        if self.exact:
            return "exact"
        if self.last is None or len(self.local) < 2:
            return "open"  # two points prove nothing, least of all where noise has taken the others
        if self.order is None or self.half_width is None:
            rising = len(self.local) > 1 and self.local[-1] > self.local[-2] and self.last >= declared - 0.5
            return "open" if rising or self.last >= declared - _JUMP else "below"
        meets = abs(self.order - declared) <= self.half_width + 0.1
        if meets and abs(self.last - declared) <= _JUMP:
            return "agrees"
        # Still bending towards the claim from one side: the last pair decides which.
        return "higher" if self.last >= declared - _JUMP and self.order + self.half_width >= declared - 0.1 else "below"


def fit(
    counts: Sequence[int],
    errors: Sequence[float],
    *,
    floor: float = 0.0,
    ceiling: float = math.inf,
    noise: Sequence[float] = (),
    log_over: bool = False,
) -> Fit:
    """The order of ``errors`` at increasing ``counts``.

    Errors from the first one below 50·``floor`` on are dropped, and leading ones above ``ceiling`` (.5 for a total
    variation, the data's scale for a distance) or not finite. ``noise`` is the sampling noise of each error: those
    below four times their own are dropped as well. ``log_over`` regresses on T/log T, for schedules whose step is
    log T/T. Errors must decrease: a run that crosses zero shows a dip, and what lies before it is dropped.

    >>> fit([32, 64, 128, 256], [1 / 32**2, 1 / 64**2, 1 / 128**2, 1 / 256**2]).order
    2.0
    """
    if errors and max((e for e in errors if math.isfinite(e)), default=math.inf) < _EXACT:
        return Fit(order=None, half_width=None, last=None, local=(), counts=(), used=0, exact=True)
    floors = [max(_ABOVE_FLOOR * floor, _ABOVE_NOISE * one) for one in noise] or [_ABOVE_FLOOR * floor] * len(errors)
    points = _usable(counts, errors, floors, ceiling)
    axis = [math.log(n / math.log(n)) if log_over else math.log(n) for n, _ in points]
    logs = [math.log(e) for _, e in points]
    local = tuple((logs[i] - logs[i + 1]) / (axis[i + 1] - axis[i]) for i in range(len(points) - 1))
    first = len(local) - 1
    while first > 0 and abs(local[first - 1] - local[first]) <= _JUMP:
        first -= 1
    used = len(local) - first + 1 if local else 0
    kept = tuple(n for n, _ in points)
    last = local[-1] if local else None
    if used < 3:
        return Fit(order=None, half_width=None, last=last, local=local, counts=kept, used=0)
    slope, half = least_squares(axis[-used:], logs[-used:])
    return Fit(order=-slope, half_width=half, last=last, local=local, counts=kept, used=used)


def _usable(
    counts: Sequence[int], errors: Sequence[float], floors: Sequence[float], ceiling: float
) -> list[tuple[int, float]]:
    out: list[tuple[int, float]] = []
    for n, e, floor in zip(counts, errors, floors, strict=True):
        if not math.isfinite(e) or e > ceiling:
            out.clear()
            continue
        if e <= 0.0 or e < floor:
            break
        if out and e >= out[-1][1]:
            out.clear()
        out.append((n, e))
    return out


def least_squares(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(slope of y over x, half of its 95 % interval by Student's t), from three points on."""
    from scipy.stats import t as student

    n = len(x)
    mx, my = math.fsum(x) / n, math.fsum(y) / n
    sxx = math.fsum((a - mx) ** 2 for a in x)
    slope = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sxx
    rest = math.fsum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, float(student.ppf(0.975, n - 2)) * math.sqrt(rest / (n - 2) / sxx)
