"""Denoisers: (x, t) → Estimate, with conditions bound beforehand so that samplers never see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import UsageError
from .estimates import Estimate
from .parameterizations import Net, Parameterization, clock_tensor, parameterization
from .paths.base import Cond, Path
from .scalars import Time

Clock = Callable[[Path, Time], Time]
_NO_COND: Cond = MappingProxyType({})


class DenoiserLike(Protocol):
    """What samplers and guidance work on; a guidance maps one of these to another."""

    @property
    def path(self) -> Path: ...
    def __call__(self, x: Tensor, t: Time) -> Estimate: ...
    def given(self, cond: Cond) -> DenoiserLike: ...
    def many(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]: ...


Guidance = Callable[[DenoiserLike], DenoiserLike]


@dataclass(frozen=True, slots=True)
class Denoiser:
    """Any network as a denoiser.

    ``net(x, time, **cond)`` returns a tensor, or an object with a ``sample`` tensor (diffusers). ``predicts`` is
    "clean", "noise", "v", "velocity", "edm", "consistency" or a `Parameterization`. ``clock`` maps (path, t) to the
    time number that the network was trained with; by default the path's own. ``shape`` is the clean event (C, H, W),
    which `ornstein.sample` needs.

    A condition is a mapping of keyword arguments, each a tensor of B rows or of one row that is repeated.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: 0.0 * x, path=orn.VP(), predicts="noise")
    >>> model(torch.ones(2, 3, 8, 8), 0.5).noise.shape
    torch.Size([2, 3, 8, 8])
    """

    net: Net
    path: Path
    predicts: str | Parameterization = "noise"
    shape: tuple[int, ...] | None = field(default=None, kw_only=True)
    clock: Clock | None = field(default=None, kw_only=True)
    cond: Cond = field(default_factory=lambda: _NO_COND, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "predicts", parameterization(self.predicts))

    @property
    def reading(self) -> Parameterization:
        """The parameterization object."""
        return parameterization(self.predicts)

    def given(self, cond: Cond) -> Denoiser:
        """The same network under a condition (replacing the previous one); the path is bound as well."""
        return replace(self, cond=MappingProxyType(dict(cond)), path=self.path.given(cond))

    def raw(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The network's own output at (x, t): what training compares with `Parameterization.target`."""
        cond = self.cond if cond is None else cond
        clock = self.path.clock(t) if self.clock is None else self.clock(self.path, t)
        out = self.net(self.reading.feed(self.path, x, t), clock_tensor(clock, x), **_rows(cond, x.shape[0]))
        out = getattr(out, "sample", out)
        # Networks run in their own precision; the state keeps its own.
        return out.to(x.dtype)

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t (host float, or (B,) in training)."""
        return self.reading.read(self.path, x, t, self.raw(x, t))

    def many(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Estimates of the same state under several conditions, in one batch of len(conds)·B rows.

        Raises:
            UsageError: the conditions do not have the same keys (pad or mask them beforehand).
        """
        if len(conds) == 1:
            return [self.given(conds[0])(x, t)]
        keys = set(conds[0])
        if any(set(cond) != keys for cond in conds):
            raise UsageError(f"conditions of one batch need the same keys, got {[sorted(c) for c in conds]}")
        rows = x.shape[0]
        stacked = {key: torch.cat([_rows(cond, rows)[key] for cond in conds]) for key in keys}
        times = t.repeat(len(conds)) if isinstance(t, Tensor) and t.ndim else t
        raw = self.raw(x.repeat(len(conds), *(1,) * (x.ndim - 1)), times, stacked)
        return [
            self.reading.read(self.path.given(cond), x, t, part)
            for cond, part in zip(conds, raw.chunk(len(conds)), strict=True)
        ]

    @property
    def device(self) -> torch.device:
        """Where the network lives (the CPU for a function without parameters)."""
        if isinstance(self.net, nn.Module):
            for parameter in self.net.parameters():
                return parameter.device
        return torch.device("cpu")


def _rows(cond: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Repeat one-row conditions to the batch."""
    out: dict[str, Tensor] = {}
    for key, value in cond.items():
        if value.ndim == 0 or value.shape[0] not in (1, rows):
            raise UsageError(f"condition {key!r} has shape {tuple(value.shape)}: it needs {rows} rows, or one to repeat")
        out[key] = value if value.shape[0] == rows else value.expand(rows, *value.shape[1:])
    return out


class Memo:
    """A denoiser that remembers its last answer, so that two guidances on top of it share one network call."""

    __slots__ = ("_answer", "_question", "inner")

    def __init__(self, inner: DenoiserLike) -> None:
        self.inner = inner
        self._question: tuple[Tensor, Time] | None = None
        self._answer: Estimate | None = None

    @property
    def path(self) -> Path:
        """The inner denoiser's path."""
        return self.inner.path

    def given(self, cond: Cond) -> Memo:
        """A fresh memo around the bound denoiser."""
        return Memo(self.inner.given(cond))

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The inner answer; the same tensor object at the same time is asked only once."""
        if self._question is None or self._answer is None or self._question[0] is not x or self._question[1] != t:
            self._question, self._answer = (x, t), self.inner(x, t)
        return self._answer

    def many(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Passed on."""
        return self.inner.many(x, t, conds)
