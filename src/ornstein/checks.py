"""Values in one line, and arguments of public functions: what is not what it must be is refused in one line."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, UsageError
from .typed import brief

Refusal = type[UsageError]


def cut(text: str, most: int = 200) -> str:
    """A text of at most so many characters, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 2]}…{text[-1]}"


class OneLine:
    """A dataclass or named tuple whose ``repr`` is one line of at most 200 characters.

    Tensors are shown by their shapes, modules and functions by their names, long lists by their ends.
    """

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # in the class itself, or else @dataclass would write its own
            cls.__repr__ = OneLine.__repr__

    def __repr__(self) -> str:
        shown = [item for item in dataclasses.fields(self) if item.repr]  # type: ignore[arg-type]
        return one_line(self, {item.name: getattr(self, item.name) for item in shown})


def one_line(value: object, parts: Mapping[str, object]) -> str:
    """``Class(name=part, …)`` in one line of at most 200 characters."""
    return cut(f"{type(value).__name__}({', '.join(f'{name}={brief(part)}' for name, part in parts.items())})")


def whole(name: str, value: Any, least: int | None = None, error: Refusal = UsageError) -> int:
    """A whole number, ``least`` or more; neither a bool nor a float."""
    number: int | None = None
    if not isinstance(value, bool | np.bool_):
        try:
            number = operator.index(value)
        except TypeError:
            number = None
    if number is None:
        raise error(f"{name} must be a whole number, got {brief(value)}")
    if least is not None and number < least:
        raise error(f"{name} must be at least {least}, got {brief(number)}")
    if abs(number) >= 2**63:
        raise error(f"{name} must be below 2⁶³ in size, got a number of {number.bit_length()} bits")
    return number


def real(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    error: Refusal = ConfigError,
) -> float:
    """A finite number in [least, most] and above ``above``; not a bool."""
    if isinstance(value, bool | np.bool_ | str | bytes) or not hasattr(value, "__float__"):
        raise error(f"{name} must be a number, got {brief(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise error(f"{name} must be a number, got {brief(value)}") from None
    if not (math.isfinite(number) and least <= number <= most and number > above):
        low = f"above {above:g}" if above > -math.inf else f"at least {least:g}" if least > -math.inf else "finite"
        high = "" if most == math.inf else f" and at most {most:g}"
        raise error(f"{name} must be {low}{high}, got {number:g}")
    return number


def flag(name: str, value: Any, error: Refusal = UsageError) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise error(f"{name} must be True or False, got {brief(value)}")
    return bool(value)


def instance(name: str, value: Any, kind: type[Any], example: str, error: Refusal = ConfigError) -> None:
    """An object of a kind; a class is told apart from its instances."""
    if isinstance(value, type):
        raise error(f"{name} is the class {value.__name__}, not an object: write {value.__name__}(…), or {example}")
    if not isinstance(value, kind):
        raise error(f"{name} must be {example}, got {brief(value)}")


def function(name: str, value: Any, example: str, error: Refusal = ConfigError) -> None:
    """Something that can be called, but is no class."""
    if isinstance(value, type):
        raise error(f"{name} is the class {value.__name__}, not an object: write {value.__name__}(…), or {example}")
    if not callable(value):
        raise error(f"{name} must be {example}, got {brief(value)}")


def event(value: Any, error: Refusal = UsageError) -> tuple[int, ...]:
    """The shape of one sample: a sequence of positive whole numbers."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) != 1:
        raise error(f"shape must be a sequence such as (channels, height, width), got {brief(value)}")
    return tuple(whole("every number of shape", size, 1, error) for size in value)


def numbers(name: str, value: Any, error: Refusal = UsageError) -> tuple[float, ...]:
    """A sequence of finite numbers in one dimension."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise error(f"{name} must be a sequence of numbers, got {brief(value)}")
    if isinstance(value, Tensor | np.ndarray) and value.ndim != 1:
        raise error(f"{name} must have one dimension, got {brief(value)}")
    return tuple(real(f"every number of {name}", number, error=error) for number in value)


def conditions(value: Any, error: Refusal = UsageError, name: str = "cond") -> Mapping[str, Tensor]:
    """A mapping from names of the network's keyword arguments to tensors."""
    if not isinstance(value, Mapping):
        raise error(f"{name} must be a mapping from names to tensors, got {brief(value)}")
    for key, tensor in value.items():
        if not isinstance(key, str):
            raise error(f"{name} must be a mapping from names to tensors, got the name {brief(key)}")
        if not isinstance(tensor, Tensor):
            raise error(
                f"condition {key!r} is a {type(tensor).__name__}: it must be a tensor with a row for each sample, "
                "or one row"
            )
    return value


def state(name: str, value: Any, error: Refusal = UsageError) -> None:
    """A dense tensor of finite numbers whose first dimension counts samples; complex ones serve derivatives."""
    if not isinstance(value, Tensor):
        raise error(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided or not (value.is_floating_point() or value.is_complex()):
        kind = str(value.layout if value.layout != torch.strided else value.dtype)
        raise error(f"{name} must be a dense tensor of real numbers, got {kind.removeprefix('torch.')}")
    if not value.ndim:
        raise error(f"{name} needs a first dimension that counts samples, got a single number")
    if not value.is_meta and not bool(value.isfinite().all()):
        raise error(f"{name} must be finite, and it holds nan or inf")


def precision(value: Any, error: Refusal = UsageError) -> torch.dtype:
    """A floating-point dtype of torch."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise error(f"dtype must be a floating-point dtype such as torch.float32, got {brief(value)}")
    return value


def strength(name: str, value: Any, error: Refusal = ConfigError) -> None:
    """A finite number, or a function of the log-SNR."""
    if isinstance(value, type) or not callable(value):
        real(name, value, error=error)


__all__ = [
    "OneLine",
    "brief",
    "conditions",
    "cut",
    "event",
    "flag",
    "function",
    "instance",
    "numbers",
    "one_line",
    "precision",
    "real",
    "strength",
    "whole",
]
