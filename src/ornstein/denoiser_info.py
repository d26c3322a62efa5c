"""What a denoiser knows about itself beside its estimates."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import nn

from . import checks
from .errors import UsageError
from .grids import Grid
from .parameterizations import Net
from .paths.base import Cond

if TYPE_CHECKING:
    from .latents import Codec

Family = Callable[[int | None], Grid]
"""Grids by their number of evaluations; None asks for the usual one."""

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenoiserInfo(checks.OneLine):
    """What a denoiser knows about itself beside its estimates; every wrapper passes it on.

    Attributes:
        shape: of one clean sample, (C, H, W).
        device: where the network lives.
        dtype: of the network's parameters; None for a function without parameters.
        codec: what turns its samples into pictures, if they are latents.
        data_std: standard deviation of the clean data, if it is known: the ``scale`` of `ornstein.samplers.auto`.
        grid: the grids that suit the network, by number of evaluations.
        cond: the condition that is bound; None where nobody knows.
        network: what is evaluated: a module or a function.
        time_name: the network's keyword for the time, if it has one.
        times_together: whether states at several times are one evaluation of the network (`Denoiser.predict_times`).
        handovers: falling times at which another network takes over (`ornstein.Relay`); samplers begin anew there.
    """

    shape: tuple[int, ...] | None = None
    device: torch.device = CPU
    dtype: torch.dtype | None = None
    codec: Codec | None = None
    data_std: float | None = None
    grid: Family | None = None
    cond: Cond | None = None
    network: Net | None = None
    time_name: str | None = None
    times_together: bool = False
    handovers: tuple[float, ...] = ()

    @property
    def module(self) -> nn.Module | None:
        """The network, if it is a module."""
        return self.network if isinstance(self.network, nn.Module) else None

    @property
    def conditions(self) -> tuple[str, ...] | None:
        """Names of the conditions that the network takes; None where it takes any, or nobody knows."""
        arguments = self._arguments()
        if arguments is None or any(a.kind == a.VAR_KEYWORD for a in arguments):
            return None
        return tuple(a.name for a in self._named(arguments))

    def check_conditions(self) -> None:
        """Compare the bound condition with the network's own arguments, without evaluating it.

        Raises:
            UsageError: a name that the network does not take, one that it needs, or no second argument for the time.
        """
        arguments = self._arguments()
        if arguments is None:
            return
        plain = [a for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)]
        rest = any(a.kind == a.VAR_POSITIONAL for a in arguments)
        if self.time_name is None and len(plain) < 2 and not rest:
            names = [a.name for a in arguments if a.kind == a.KEYWORD_ONLY]
            hint = f"name it with Denoiser(…, time_name={names[0]!r})" if names else "give it one"
            raise UsageError(f"the network takes no time as its second argument: {hint}")
        bound, names = self.cond or {}, self.conditions
        unknown = [] if names is None else [name for name in bound if name not in names]
        if unknown:
            have = f"choose among {', '.join(names)}" if names else "it takes none"
            raise UsageError(f"the network does not know the condition {unknown[0]!r}: {have}")
        missing = [a.name for a in self._named(arguments) if a.default is a.empty and a.name not in bound]
        if missing and self.cond is not None:
            raise UsageError(f"the network needs the condition {missing[0]!r}: pass cond={{{missing[0]!r}: …}}")

    def _arguments(self) -> list[inspect.Parameter] | None:
        """The network's arguments; None where they cannot be read, or are keywords of a staged parameterization."""
        if self.network is None or not self.times_together:
            return None
        try:
            return list(inspect.signature(self.module.forward if self.module else self.network).parameters.values())
        except (TypeError, ValueError):
            return None

    def _named(self, arguments: list[inspect.Parameter]) -> list[inspect.Parameter]:
        """Those beside the state and the time."""
        plain = [a.name for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)]
        first = {*plain[: 2 if self.time_name is None else 1], self.time_name}
        return [a for a in arguments if a.name not in first and a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]


@runtime_checkable
class KnowsItself(Protocol):
    """A denoiser with ``info``."""

    @property
    def info(self) -> DenoiserInfo:
        """What it knows about itself, and of what it wraps."""
        ...


def info_of(denoiser: object) -> DenoiserInfo:
    """What a denoiser knows about itself: its ``info``, or nothing where a stranger's class has none."""
    return denoiser.info if isinstance(denoiser, KnowsItself) else DenoiserInfo()
