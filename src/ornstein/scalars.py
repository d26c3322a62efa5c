"""Elementary functions of a host float (sampling) or a tensor (training), so that each formula is written once.

On the host they answer at the ends as a tensor would – ∞ or NaN, never an exception.
"""

# pyright: reportReturnType=false
# (A branch on isinstance narrows a constrained type variable, but pyright does not accept the branch's plain type.)

from __future__ import annotations

import math
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Time = float | Tensor
T = TypeVar("T", float, Tensor, float | Tensor)


class StepTime(float):
    """A host time at which a step evaluates the denoiser, and the time ``began`` at which that step began.

    It is the same number. A denoiser of several networks (`ornstein.Relay`) takes all evaluations of a step by one.
    """

    __slots__ = ("began",)

    def __new__(cls, time: float, began: float) -> Self:
        """The time, with where its step began."""
        self = super().__new__(cls, time)
        self.began = began
        return self

    def __getnewargs__(self) -> tuple[float, float]:
        return float(self), self.began

    began: float


_LARGEST = 709.0  # e⁷⁰⁹ is the last whole power of e below the largest double


def exp(x: T) -> T:
    """eˣ."""
    if isinstance(x, Tensor):
        return torch.exp(x)
    return math.exp(x) if x < _LARGEST else x * math.inf


def expm1(x: T) -> T:
    """eˣ − 1, accurate near zero."""
    if isinstance(x, Tensor):
        return torch.expm1(x)
    return math.expm1(x) if x < _LARGEST else x * math.inf


def log(x: T) -> T:
    """Natural logarithm, with log 0 = −∞."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0.0 else -math.inf if x == 0.0 else math.nan


def log1p(x: T) -> T:
    """log(1 + x), with log1p(−1) = −∞."""
    if isinstance(x, Tensor):
        return torch.log1p(x)
    return math.log1p(x) if x > -1.0 else -math.inf if x == -1.0 else math.nan


def sqrt(x: T) -> T:
    """Square root."""
    if isinstance(x, Tensor):
        return torch.sqrt(x)
    return math.sqrt(x) if x >= 0.0 else math.nan


def divide(x: T, y: T) -> T:
    """x / y, with x/0 = ±∞ and 0/0 = NaN."""
    if isinstance(x, Tensor) or isinstance(y, Tensor) or y != 0.0:
        return x / y
    return math.copysign(math.inf, x) * math.copysign(1.0, y) if x != 0.0 else math.nan


def clip(x: T, low: float, high: float) -> T:
    """x within [low, high]; NaN stays NaN."""
    if isinstance(x, Tensor):
        return x.clamp(low, min(high, torch.finfo(x.dtype).max))
    return max(min(x, high), low)


def cbrt(x: T) -> T:
    """Real cube root of a non-negative number."""
    return x ** (1.0 / 3.0)


def sin(x: T) -> T:
    """Sine."""
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def cos(x: T) -> T:
    """Cosine."""
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def tan(x: T) -> T:
    """Tangent."""
    return torch.tan(x) if isinstance(x, Tensor) else math.tan(x)


def acos(x: T) -> T:
    """Inverse cosine, in [0, π]."""
    return torch.acos(x) if isinstance(x, Tensor) else math.acos(x)


def softplus(x: T) -> T:
    """log(1 + eˣ) without overflow, and without the cut-off that makes torch's own inexact."""
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: T) -> T:
    """1 / (1 + e⁻ˣ), accurate in both tails."""
    return exp(-softplus(-x))


def interp(x: T, xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]) -> T:
    """Piecewise linear interpolation through the nodes (xs, ys), xs increasing; constant outside."""
    if isinstance(x, Tensor):
        values = np.interp(x.detach().to("cpu", torch.float64).numpy(), xs, ys)
        return torch.as_tensor(values).to(x)
    # The same arithmetic as np.interp, whose checks cost four times as much as the search, at every step of a sampler.
    place = int(xs.searchsorted(x, "right")) - 1
    if place < 0 or math.isnan(x):
        return x if math.isnan(x) else ys.item(0)
    if place == len(xs) - 1:
        return ys.item(place)
    low, high, start, end = xs.item(place), xs.item(place + 1), ys.item(place), ys.item(place + 1)
    return (end - start) / (high - low) * (x - low) + start


def expand(c: Time, like: Tensor) -> Time:
    """A coefficient ready to multiply ``like``: floats pass, a (B,) tensor becomes (B, 1, …, 1) in like's dtype."""
    if isinstance(c, Tensor):
        moved = to_device(c, like.device, like.dtype)
        return moved.reshape(-1, *(1,) * (like.ndim - 1)) if c.ndim else moved
    return c


def widened(x: Tensor) -> Tensor:
    """x in float32 if it is narrower, for a quotient that may leave the range of float16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """x cast where it is and then moved, because some devices have no float64; a host tensor goes without a wait."""
    return x.to(dtype).to(device, non_blocking=device.type == "cuda" and x.device.type == "cpu")
