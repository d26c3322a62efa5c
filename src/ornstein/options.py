"""What a field of a configuration says beside its type: the range of its numbers, and its place on the command line.

    steps: Count = 20
    label_dropout: Share = 0.1

`check_fields` refuses values outside these ranges, and what is meaningful nowhere: nan, infinity, numbers beyond 2⁶³,
control characters. Configurations call it in ``__post_init__``, so a value is refused where it is defined, whether it
comes from Python, a file or the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from .typed import FieldError

T = TypeVar("T")
Layout = Mapping[str, tuple[str, ...]]
"""Headings of the help → names of fields; "" is what most people need and comes first."""

LARGEST = 2.0**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The range of a number: ``least`` ≤ value ≤ ``most``, ``above`` < value < ``below``; or one of ``others``."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    others: tuple[float, ...] = ()

    def contains(self, value: float) -> bool:
        """Whether a value lies in the range."""
        inside = self.least <= value <= self.most and self.above < value < self.below
        return inside or value in self.others

    def __str__(self) -> str:
        low, high = max(self.least, self.above), min(self.most, self.below)
        if high == math.inf:
            text = f"at least {low:g}" if self.above == -math.inf else "positive" if low == 0 else f"above {low:g}"
        else:
            text = f"in {'(['[self.above == -math.inf]}{low:g}, {high:g}{')]'[self.below == math.inf]}"
        return " or ".join([text, *(f"{value:g}" for value in self.others)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the command line needs to know of a field.

    * ``name`` and ``aliases`` instead of and beside the field's own name, ``value`` instead of its type in the help;
    * ``positional``: a word without a name; ``single``: one value each time the option is given;
    * ``hidden``: understood, and not in the help; ``absent``: no option at all;
    * ``empty``: the empty text is a value; ``spellings``: further words for its values, understood and not in the help.
    """

    name: str = ""
    aliases: tuple[str, ...] = ()
    value: str = ""
    positional: bool = False
    single: bool = False
    hidden: bool = False
    absent: bool = False
    empty: bool = False
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """The name on the command line of one class in a union of configurations."""

    name: str


HIDDEN = Option(hidden=True)
ABSENT = Option(absent=True)

Count = Annotated[int, Limits(least=1)]
Index = Annotated[int, Limits(least=0)]
Positive = Annotated[float, Limits(above=0.0)]
NotNegative = Annotated[float, Limits(least=0.0)]
Share = Annotated[float, Limits(least=0.0, most=1.0)]
Part = Annotated[float, Limits(least=0.0, below=1.0)]
Absent = Annotated[T, ABSENT]


def check_fields(config: Any) -> None:
    """Raise `FieldError` for the first field of a dataclass whose value is out of its range.

    Fields that hold a configuration are left to their own class.
    """
    limits = _limits(type(config))
    for field in dataclasses.fields(config):
        for value in _values(getattr(config, field.name)):
            complaint = _complaint(value, limits[field.name])
            if complaint:
                raise FieldError(field.name, complaint)


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _values(item)
    else:
        yield value


def _complaint(value: Any, limits: tuple[Limits, ...]) -> str:
    if isinstance(value, str | Path):
        text = str(value)
        if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in text):
            return f"has a control character or broken text: {text!a}"
        return "is blank: give a value" if text and not text.strip() else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not math.isfinite(value):
        return f"must be a finite number, got {value}"
    for limit in limits:
        if not limit.contains(value):
            return f"must be {limit}, got {shown(value)}"
    if not -LARGEST < value < LARGEST:
        return f"must be below 2⁶³ in size, got {shown(value)}"
    return ""


def shown(value: float) -> str:
    """A number in few digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < LARGEST else f"a number of {value.bit_length()} bits"


@functools.cache
def _limits(cls: type) -> Mapping[str, tuple[Limits, ...]]:
    return {name: tuple(marks(hint, Limits)) for name, hint in get_type_hints(cls, include_extras=True).items()}


def marks(hint: Any, kind: type[T]) -> Iterator[T]:
    """All annotations of a kind in a type, outermost first."""
    for item in getattr(hint, "__metadata__", ()):
        if isinstance(item, kind):
            yield item
    for part in get_args(hint)[: 1 if hasattr(hint, "__metadata__") else None]:
        yield from marks(part, kind)


__all__ = [
    "ABSENT",
    "HIDDEN",
    "Absent",
    "Choice",
    "Count",
    "FieldError",
    "Index",
    "Layout",
    "Limits",
    "NotNegative",
    "Option",
    "Part",
    "Positive",
    "Share",
    "check_fields",
    "marks",
    "shown",
]
