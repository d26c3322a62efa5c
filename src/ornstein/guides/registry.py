"""What a guide is called, what it takes, which networks can stand behind it, and how one is asked for in words.

    KIND:ARGUMENT[:WEIGHT]        segmentation:mask.png:400      text:"a green critter":10      colour:#3366cc

The weight is a number and may be left out. An argument that contains a colon stands in double quotes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import ConfigError, UsageError

SourceName = Literal["own", "package", "standard"]
SOURCES: tuple[SourceName, ...] = ("own", "package", "standard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
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
class Job:
    """What the maker of a guide is told.

    ``arg`` as written, ``weight`` asked for; ``shape`` (C, H, W) of the pictures, and ``device`` they are on; the
    ``network`` that its `Source` loaded (None for kinds without), and that source's name.
    """

    arg: str
    weight: float
    shape: tuple[int, int, int]
    device: torch.device
    network: Any = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of guide.

    ``make(job)`` answers with an energy, which joins all others in one `Universal` guidance with the weight of the
    job; or, if it ``yields`` "guidance", with a guidance (denoiser → denoiser) that has applied the weight itself.
    ``sources`` are in order of preference: by default the first is taken that this machine has.
    """

    name: str
    takes: str
    what: str
    weight: float
    make: Callable[[Job], Any] = field(repr=False)
    sources: tuple[Source, ...] = ()
    yields: Literal["energy", "guidance"] = "energy"
    example: str = ""

    def weight_with(self, source: Source | None) -> float:
        """The default weight with a network of that source."""
        return self.weight if source is None or source.weight is None else source.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A guide as it was asked for; ``weight`` None stands for the kind's own. ``str`` writes it as it is read.

    >>> str(Wish.read("colour:#3366cc:20"))
    'colour:#3366cc:20'
    >>> Wish.read('text:"left: a cat":5').arg
    'left: a cat'
    """

    kind: str
    arg: str
    weight: float | None = None

    @classmethod
    def read(cls, text: str) -> Wish:
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
class Choice:
    """Which network stands behind a kind: KIND=SOURCE[:WEIGHTS]."""

    kind: str
    source: str
    weights: str | None = None

    @classmethod
    def read(cls, text: str) -> Choice:
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


def kinds() -> dict[str, Kind]:
    """All kinds of guides by name, in the order of the documentation."""
    from . import pictures, rarity, semantic

    return {kind.name: kind for kind in (*semantic.KINDS, *pictures.KINDS, *rarity.KINDS)}


def kind_named(name: str) -> Kind:
    """The kind of that name. Raises `UsageError` that suggests the nearest."""
    known = kinds()
    if name not in known:
        raise UsageError(f"unknown guide {name!r}: {suggestion(name, tuple(known))}")
    return known[name]


def source_of(kind: Kind, choice: Choice | None = None) -> Source | None:
    """The source that was chosen, or the first that this machine has; None for kinds without a network.

    Raises `ConfigError` where there is no such source.
    """
    names = [source.name for source in kind.sources]
    if choice is not None:
        if choice.source not in names:
            has = f"choose {' or '.join(names)}" if names else "it needs none"
            raise ConfigError(f"the guide {kind.name} has no source {choice.source!r}: {has}")
        return kind.sources[names.index(choice.source)]  # type: ignore[arg-type]
    ready = (source for source in kind.sources if source.missing() is None)
    return next(ready, kind.sources[0]) if kind.sources else None


class Networks:
    """Loads each network once, however many guides use it.

    Raises `UsageError` at once for choices of kinds that there are not, or two of one kind.
    """

    def __init__(self, choices: Sequence[Choice] = (), device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._chosen: dict[str, Choice] = {}
        self._loaded: dict[tuple[int, str | None], Any] = {}
        for choice in choices:
            source_of(kind_named(choice.kind), choice)
            if choice.kind in self._chosen:
                raise UsageError(f"the source of {choice.kind} is chosen twice: choose once")
            self._chosen[choice.kind] = choice

    def of(self, kind: Kind) -> tuple[Source | None, Any]:
        """(the source of a kind, its network), loaded if need be."""
        choice = self._chosen.get(kind.name)
        source = source_of(kind, choice)
        if source is None:
            return None, None
        key = (id(source.load), choice.weights if choice else None)
        if key not in self._loaded:
            self._loaded[key] = source.load(key[1], self.device)
        return source, self._loaded[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guides:
    """Guides that are ready: weighted energies, guidances beside them, and what was asked for, as plain values."""

    energies: tuple[tuple[float, Any], ...]
    guidances: tuple[Callable[[Any], Any], ...]
    records: tuple[Mapping[str, Any], ...]


def make(
    wishes: Sequence[Wish | str],
    *,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    choices: Sequence[Choice | str] = (),
) -> Guides:
    """Read targets, load networks and make the guides for pictures of ``shape`` (C, H, W). Those of weight 0 are left
    out, after their arguments were checked.

    Raises `UsageError` (one line) for whatever cannot be done.
    """
    asked = [Wish.read(wish) if isinstance(wish, str) else wish for wish in wishes]
    found = [kind_named(wish.kind) for wish in asked]
    chosen = [Choice.read(c) if isinstance(c, str) else c for c in choices]
    networks = Networks(chosen, device)
    for choice in chosen:
        if choice.kind not in {kind.name for kind in found}:
            raise UsageError(
                f"a source is chosen for {choice.kind}, but no guide of that kind is asked for: leave it out"
            )
    if len(shape) != 3 or (asked and shape[0] != 3):
        raise UsageError(f"guides of pictures need models of three channels (colour), got {tuple(shape)}")
    energies: list[tuple[float, Any]] = []
    guidances: list[Callable[[Any], Any]] = []
    records: list[Mapping[str, Any]] = []
    for wish, kind in zip(asked, found, strict=True):
        source, network = networks.of(kind)
        weight = kind.weight_with(source) if wish.weight is None else wish.weight
        name = None if source is None else source.name
        made = kind.make(
            Job(
                arg=wish.arg,
                weight=weight,
                shape=(shape[0], shape[1], shape[2]),
                device=torch.device(device),
                network=network,
                source=name,
            )
        )
        records.append({"kind": kind.name, "argument": wish.arg, "weight": weight, "source": name})
        if weight != 0.0 and kind.yields == "energy":
            energies.append((weight, made))
        elif weight != 0.0:
            guidances.append(made)
    return Guides(energies=tuple(energies), guidances=tuple(guidances), records=tuple(records))


def suggestion(name: str, known: Sequence[str], *, shown: int = 24) -> str:
    """The end of a message about an unknown name."""
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:shown]) + (f", … ({len(known)} in all)" if len(known) > shown else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {listed}"


__all__ = [
    "SOURCES",
    "Choice",
    "Guides",
    "Job",
    "Kind",
    "Networks",
    "Source",
    "Wish",
    "kind_named",
    "kinds",
    "make",
    "source_of",
    "suggestion",
]
