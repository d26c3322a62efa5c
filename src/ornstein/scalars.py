"""Elementary functions that take a host float (sampling) or a tensor (training), so that each formula is written once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T", float, Tensor)
Time = float | Tensor


def exp(x: T) -> T:
    """eˣ."""
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def expm1(x: T) -> T:
    """eˣ − 1, accurate near zero."""
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def log(x: T) -> T:
    """Natural logarithm, with log 0 = −∞ on the host as on a tensor."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0.0 else -math.inf


def log1p(x: T) -> T:
    """log(1 + x), with log1p(−1) = −∞."""
    if isinstance(x, Tensor):
        return torch.log1p(x)
    return math.log1p(x) if x > -1.0 else -math.inf


def sqrt(x: T) -> T:
    """Square root."""
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


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


def interp(x: T, xs: Sequence[float], ys: Sequence[float]) -> T:
    """Piecewise linear interpolation through the nodes (xs, ys), xs increasing; constant outside."""
    if isinstance(x, Tensor):
        values = np.interp(x.detach().to("cpu", torch.float64).numpy(), xs, ys)
        return torch.from_numpy(values).to(x)
    return float(np.interp(x, xs, ys))


def expand(c: Time, like: Tensor) -> Time:
    """A coefficient ready to multiply ``like``: floats pass, a (B,) tensor becomes (B, 1, …, 1) in like's dtype."""
    if isinstance(c, Tensor):
        return c.to(like).reshape(-1, *(1,) * (like.ndim - 1)) if c.ndim else c.to(like)
    return c
