"""Orders of convergence as findings want them: a number, its 95 % interval, and a few words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..lab.slopes import fit
from .record import Interval
from .verdicts import Judged

PLUS_MINUS = (
    "± after an order is the 95 % interval of the fitted slope, which says how straight the line is: exact "
    "computations have no seeds."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A fitted order with its interval, both None where errors are not asymptotic; ``last`` is of the last two."""

    value: float | None
    interval: Interval | None
    last: float | None

    def near(self, claimed: float, slack: float = 0.1) -> bool:
        """Whether the interval meets claimed ± ``slack`` and the last pair lies within .15 of it."""
        if self.value is None or self.interval is None or self.last is None:
            return False
        low, high = self.interval
        return low <= claimed + slack and high >= claimed - slack and abs(self.last - claimed) <= 0.15

    def __str__(self) -> str:
        if self.value is None or self.interval is None:
            return "not asymptotic" if self.last is None else f"not asymptotic, {self.last:.2f} at the end"
        half = 0.5 * (self.interval[1] - self.interval[0])
        return f"{self.value:.2f} ± {half:.2f}"


def order_of(
    counts: Sequence[int], errors: Sequence[float | None], *, ceiling: float = math.inf, log_over: bool = False
) -> Order:
    """The order of errors at these counts (`ornstein.lab.slopes.fit`); ``log_over`` regresses on T/log T."""
    found = fit(counts, [math.nan if e is None else e for e in errors], ceiling=ceiling, log_over=log_over)
    if found.order is None or found.half_width is None:
        return Order(value=None, interval=None, last=found.last)
    half = found.half_width
    return Order(value=found.order, interval=(found.order - half, found.order + half), last=found.last)


def listed(orders: Mapping[str, Order]) -> str:
    """One phrase: M1 1.00 ± 0.01, M1s 0.99 ± 0.02."""
    return ", ".join(f"{name} {order}" for name, order in orders.items())


def verdict(good: bool, why: str, orders: Iterable[Order] = ()) -> Judged:
    """Reproduced, or not and why; inconclusive where one of the ``orders`` that it rests on shows no number."""
    if good:
        return {"verdict": "reproduced", "reason": ""}
    if any(order.value is None for order in orders):
        return {"verdict": "inconclusive", "reason": "the errors are not asymptotic at these counts"}
    return {"verdict": "not reproduced", "reason": why}


__all__ = ["PLUS_MINUS", "Order", "listed", "order_of", "verdict"]
