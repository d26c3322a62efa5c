"""Kinds of guides, a guide as it is written (KIND:ARGUMENT[:WEIGHT]), and the networks that can stand behind a kind."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import UsageError

SourceName = Literal["own", "package", "standard"]


SOURCES: tuple[SourceName, ...] = ("own", "package", "standard")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSource:
    """A network that can stand behind a guide.

    * ``name``: "own" comes with the library, "package" with a Python package, "standard" is the published network, of
      which the user has the weights.
    * ``load(weights, device)``: the network; ``weights`` is a path, or None for where they usually are.
    * ``missing()``: what this machine lacks to load it without a path, in words; None if nothing.
    * ``weight``: the default weight with this network, where it is not the kind's.
    """

    name: SourceName
    what: str
    load: Callable[[str | None, torch.device], Any] = field(repr=False)
    missing: Callable[[], str | None] = field(repr=False, default=lambda: None)
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideContext:
    """The arguments of `GuideType.make`.

    ``arg`` as written, and the ``weight``; ``shape`` (C, H, W) of the pictures, and ``device`` they are on; the
    ``network`` that its `NetworkSource` loaded (None for kinds without), and that source's name.
    """

    arg: str
    weight: float
    shape: tuple[int, int, int]
    device: torch.device
    network: Any = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideType:
    """A kind of guide.

    ``make(context)`` returns an energy, which joins all others in one `Universal` guidance with the weight of the
    `GuideContext`; or, if it ``yields`` "guidance", a guidance (denoiser → denoiser) that applies the weight itself.
    ``sources`` are in order of preference: by default the first is taken that this machine has.
    """

    name: str
    takes: str
    what: str
    weight: float
    make: Callable[[GuideContext], Any] = field(repr=False)
    sources: tuple[NetworkSource, ...] = ()
    yields: Literal["energy", "guidance"] = "energy"
    example: str = ""

    def weight_with(self, source: NetworkSource | None) -> float:
        """The default weight with a network of that source."""
        return self.weight if source is None or source.weight is None else source.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideSpec:
    """A guide as it is written, KIND:ARGUMENT[:WEIGHT]; ``weight`` None is the kind's own. ``str`` gives that text.

    >>> str(GuideSpec.read("colour:#3366cc:20"))
    'colour:#3366cc:20'
    >>> GuideSpec.read('text:"left: a cat":5').arg
    'left: a cat'
    """

    kind: str
    arg: str
    weight: float | None = None

    @classmethod
    def read(cls, text: str) -> GuideSpec:
        """From KIND:ARGUMENT[:WEIGHT]. Raises `UsageError` for a weight that is no number, or a missing part."""
        kind, colon, rest = text.partition(":")
        if not colon or not kind or not rest:
            raise UsageError(f"a guide reads KIND:ARGUMENT[:WEIGHT], got {text!r}: for example colour:#3366cc:20")
        if rest.startswith('"') and rest.rfind('"') > 0:
            arg, tail = rest[1 : rest.rfind('"')], rest[rest.rfind('"') + 1 :]
            if tail and not tail.startswith(":"):
                raise UsageError(f"nothing but :WEIGHT may follow the closing quote in {text!r}")
            number = tail[1:]
        else:
            arg, colon, number = rest.rpartition(":")
            arg, number = (arg, number) if colon else (number, "")
        if not arg:
            raise UsageError(f"{text!r} lacks its argument: a guide reads KIND:ARGUMENT[:WEIGHT]")
        return cls(kind=kind, arg=arg, weight=_number(number, text) if number else None)

    def __str__(self) -> str:
        quoted = f'"{self.arg}"' if ":" in self.arg or self.arg.startswith('"') else self.arg
        return f"{self.kind}:{quoted}" + ("" if self.weight is None else f":{self.weight:.17g}")


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(
            f"the weight {text!r} of the guide {whole!r} is not a number; put an argument with a colon into "
            "double quotes"
        ) from None
    if not math.isfinite(value):
        raise UsageError(f"the weight {text!r} of the guide {whole!r} must be finite")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """Which network stands behind a kind: KIND=SOURCE[:WEIGHTS]."""

    kind: str
    source: str
    weights: str | None = None

    @classmethod
    def read(cls, text: str) -> NetworkChoice:
        """From words. Raises `UsageError` for others."""
        kind, equals, rest = text.partition("=")
        source, _, weights = rest.partition(":")
        if not equals or not kind or not source:
            raise UsageError(
                f"a source reads KIND=SOURCE[:WEIGHTS], got {text!r}: for example text=standard:/models/clip"
            )
        return cls(kind=kind, source=source, weights=weights or None)

    def __str__(self) -> str:
        return f"{self.kind}={self.source}" + (f":{self.weights}" if self.weights else "")


def suggestion(name: str, known: Sequence[str], *, shown: int = 24) -> str:
    """The end of a message about an unknown name."""
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:shown]) + (f", … ({len(known)} in all)" if len(known) > shown else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {listed}"
