"""Guides by name: their arguments, the networks behind them, and how they are written.

    KIND:ARGUMENT[:WEIGHT]        segmentation:mask.png:400      text:"a green critter":10      colour:#3366cc

The weight is a number and may be left out. An argument that contains a colon stands in double quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError, UsageError
from .types import GuideContext, GuideSpec, GuideType, NetworkChoice, NetworkSource, suggestion


def kinds() -> dict[str, GuideType]:
    """All kinds of guides by name, in the order of the documentation."""
    from . import pictures, rarity, semantic

    return {kind.name: kind for kind in (*semantic.KINDS, *pictures.KINDS, *rarity.KINDS)}


def kind_named(name: str) -> GuideType:
    """The kind of that name. Raises `UsageError` that suggests the nearest."""
    known = kinds()
    if name not in known:
        raise UsageError(f"unknown guide {name!r}: {suggestion(name, tuple(known))}")
    return known[name]


def source_of(kind: GuideType, choice: NetworkChoice | None = None) -> NetworkSource | None:
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

    def __init__(self, choices: Sequence[NetworkChoice] = (), device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._chosen: dict[str, NetworkChoice] = {}
        self._loaded: dict[tuple[int, str | None], Any] = {}
        for choice in choices:
            source_of(kind_named(choice.kind), choice)
            if choice.kind in self._chosen:
                raise UsageError(f"the source of {choice.kind} is chosen twice: choose once")
            self._chosen[choice.kind] = choice

    def of(self, kind: GuideType) -> tuple[NetworkSource | None, Any]:
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
    """Guides that are ready: weighted energies, guidances beside them, and what was read for, as plain values."""

    energies: tuple[tuple[float, Any], ...]
    guidances: tuple[Callable[[Any], Any], ...]
    records: tuple[Mapping[str, Any], ...]


def make(
    specs: Sequence[GuideSpec | str],
    *,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    choices: Sequence[NetworkChoice | str] = (),
) -> Guides:
    """Read targets, load networks and make the guides for pictures of ``shape`` (C, H, W). Those of weight 0 are left
    out, after their arguments were checked.

    Raises `UsageError` (one line) for whatever cannot be done.
    """
    read = [GuideSpec.read(spec) if isinstance(spec, str) else spec for spec in specs]
    found = [kind_named(spec.kind) for spec in read]
    chosen = [NetworkChoice.read(c) if isinstance(c, str) else c for c in choices]
    networks = Networks(chosen, device)
    for choice in chosen:
        if choice.kind not in {kind.name for kind in found}:
            raise UsageError(
                f"a source is chosen for {choice.kind}, but no guide of that kind is read for: leave it out"
            )
    if len(shape) != 3 or (read and shape[0] != 3):
        raise UsageError(f"guides of pictures need models of three channels (colour), got {tuple(shape)}")
    energies: list[tuple[float, Any]] = []
    guidances: list[Callable[[Any], Any]] = []
    records: list[Mapping[str, Any]] = []
    for spec, kind in zip(read, found, strict=True):
        source, network = networks.of(kind)
        weight = kind.weight_with(source) if spec.weight is None else spec.weight
        name = None if source is None else source.name
        made = kind.make(
            GuideContext(
                arg=spec.arg,
                weight=weight,
                shape=(shape[0], shape[1], shape[2]),
                device=torch.device(device),
                network=network,
                source=name,
            )
        )
        records.append({"kind": kind.name, "argument": spec.arg, "weight": weight, "source": name})
        if weight != 0.0 and kind.yields == "energy":
            energies.append((weight, made))
        elif weight != 0.0:
            guidances.append(made)
    return Guides(energies=tuple(energies), guidances=tuple(guidances), records=tuple(records))
