"""Denoisers: (x, t) → Estimate, with conditions bound beforehand so that samplers never see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import ConfigError, UsageError
from .estimates import Estimate
from .grids import Grid
from .networks.sites import bindings
from .parameterizations import Net, Parameterization, clock_tensor, parameterization, refuse_noise_without_signal
from .paths.base import Cond, Path
from .scalars import Time

if TYPE_CHECKING:
    from .latents import Codec

TimestepOf = Callable[[Path, Time], Time]
Family = Callable[[int | None], Grid]
"""Grids by their number of evaluations; None asks for the usual one."""


class DenoiserLike(Protocol):
    """What samplers and guidance work on; a guidance maps one of these to another."""

    @property
    def path(self) -> Path:
        """The forward law, with the condition bound where it depends on it."""
        ...

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at (x, t)."""
        ...

    def with_condition(self, cond: Cond) -> DenoiserLike:
        """The same denoiser under a condition."""
        ...

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Estimates of one state under several conditions."""
        ...


Guidance = Callable[[DenoiserLike], DenoiserLike]


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """Any network as a denoiser.

    ``net(x, time, **cond)`` returns a tensor, or an object with a ``sample`` tensor (diffusers). A module gets
    its input in the precision of its parameters, and its output is cast back to that of the state. ``predicts`` is
    "clean", "noise", "v", "velocity", "edm", "consistency" or a `Parameterization`. ``timestep_of`` maps (path, t) to
    the time input that the network was trained with; by default the path's own. ``shape`` is the clean event (C, H,
    W), which `ornstein.sample` needs. ``codec`` is what turns its samples into pictures, if they are latents:
    `ornstein.sample` decodes with it, and guidance by energies of pictures looks through it.

    ``grid`` are the grids that suit this network, such as the climbing ones of a consistency model; by default the
    path's.

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
    timestep_of: TimestepOf | None = field(default=None, kw_only=True)
    cond: Cond = field(default_factory=dict[str, Tensor], kw_only=True)
    grid: Family | None = field(default=None, kw_only=True)
    codec: Codec | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"path must be a forward path such as ornstein.VP(), got {self.path!r}")
        object.__setattr__(self, "cond", dict(self.cond))
        reading = parameterization(self.predicts)
        refuse_noise_without_signal(reading, self.path)
        object.__setattr__(self, "predicts", reading)

    @property
    def parameterization(self) -> Parameterization:
        """The parameterization object."""
        return parameterization(self.predicts)

    def with_condition(self, cond: Cond) -> Denoiser:
        """The same network under a condition (replacing the previous one); the path is bound as well."""
        return replace(self, cond=cond, path=self.path.with_condition(cond))

    def raw(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The network's own output at (x, t): what training compares with `Parameterization.target`."""
        net, ask = self.bound(x, t, cond), self._staged()
        return net(self.parameterization.precondition(self.path, x, t)) if ask is None else ask(net, self.path, x, t)

    def bound(self, x: Tensor, t: Time, cond: Cond | None = None) -> Net:
        """The network at time t under a condition, as a function of its preconditioned input alone.

        ``bound(x, t)(fed, **keywords)`` answers in the dtype of x; the keywords are passed on to the network.
        """
        time, told = self._time(x, t), self.cond if cond is None else cond

        def net(fed: Tensor, **keywords: object) -> Tensor:
            return self._asked(fed, time, told, **keywords).to(x.dtype)

        return net

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t (host float, or (B,) in training)."""
        return self.parameterization.to_estimate(self.path, x, t, self.raw(x, t))

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Estimates of the same state under several conditions, in one batch of len(conds)·B rows.

        Raises:
            UsageError: no condition at all, or conditions that do not have the same keys (pad or mask them beforehand).
        """
        if not conds:
            raise UsageError("predict_conditions needs at least one condition; an empty mapping is one")
        if len(conds) == 1:
            return [self.with_condition(conds[0])(x, t)]
        keys = set(conds[0])
        if any(set(cond) != keys for cond in conds):
            raise UsageError(f"conditions of one batch need the same keys, got {[sorted(c) for c in conds]}")
        rows = x.shape[0]
        repeated = [_rows(cond, rows) for cond in conds]
        stacked = {key: torch.cat([cond[key] for cond in repeated]) for key in conds[0]}
        times = t.repeat(len(conds)) if isinstance(t, Tensor) and t.ndim else t
        raw = self.raw(x.repeat(len(conds), *(1,) * (x.ndim - 1)), times, stacked)
        return [
            self.parameterization.to_estimate(self.path.with_condition(cond), x, t, part)
            for cond, part in zip(conds, raw.tensor_split(len(conds)), strict=True)
        ]

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """Estimates of states at different times, by one call of the network on N·B rows: x (N, B, *event), N times.

        Every row is computed as in a call of its own, but for the rounding of the network at another batch size.
        The condition, of B rows or of one, is the same at every time.

        Raises:
            UsageError: another number of times than of states.
        """
        _check_times(x, times)
        if self._staged() is not None:  # a later stage's input depends on the time and the first one's output
            return [self(part, t) for part, t in zip(x, times, strict=True)]
        count = len(times)
        fed = torch.cat(
            [self.parameterization.precondition(self.path, part, t) for part, t in zip(x, times, strict=True)]
        )
        time = torch.cat([self._time(part, t) for part, t in zip(x, times, strict=True)])
        cond = {key: torch.cat([value] * count) for key, value in _rows(self.cond, x.shape[1]).items()}
        raw = self._asked(fed, time, cond).to(x.dtype).tensor_split(count)
        return [
            self.parameterization.to_estimate(self.path, part, t, out)
            for part, t, out in zip(x, times, raw, strict=True)
        ]

    @property
    def device(self) -> torch.device:
        """Where the network lives (the CPU for a function without parameters)."""
        parameter = self._parameter()
        return torch.device("cpu") if parameter is None else parameter.device

    def _time(self, x: Tensor, t: Time) -> Tensor:
        """The time number of each row of x, (B,) float32."""
        return clock_tensor(self.path.timestep_of(t) if self.timestep_of is None else self.timestep_of(self.path, t), x)

    def _staged(self) -> Callable[[Net, Path, Tensor, Time], Tensor] | None:
        """How a `Staged` parameterization calls its network; by name, for isinstance costs ten times as much."""
        return getattr(self.parameterization, "ask", None)

    def _asked(self, fed: Tensor, time: Tensor, cond: Cond, **keywords: object) -> Tensor:
        """The network's output on rows that are ready for it."""
        parameter = self._parameter()
        if parameter is not None and parameter.is_floating_point():
            fed = fed.to(parameter.dtype)
        answer: object = self.net(fed, time, **_rows(cond, fed.shape[0]), **keywords)
        out = getattr(answer, "sample", answer)
        if not isinstance(out, Tensor):
            raise UsageError(f"a network must return a tensor, or an object with a 'sample' tensor, got {type(answer)}")
        return out

    def _parameter(self) -> Tensor | None:
        return next(self.net.parameters(), None) if isinstance(self.net, nn.Module) else None


def _rows(cond: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Repeat one-row conditions to the batch."""
    out: dict[str, Tensor] = {}
    for key, value in cond.items():
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
            raise UsageError(
                f"condition {key!r} is a {type(value).__name__}: it must be a tensor of {rows} rows, or one"
            )
        if value.ndim == 0 or value.shape[0] not in (1, rows):
            raise UsageError(f"condition {key!r} of shape {tuple(value.shape)} needs {rows} rows, or one to repeat")
        out[key] = value if value.shape[0] == rows else value.expand(rows, *value.shape[1:])
    return out


class CachedDenoiser:
    """A denoiser that remembers its last estimate, so that two guidances on top of it share one evaluation.

    The state is recognised by identity, so it must not be changed in place between two calls. Under other
    modulations of the network (`ornstein.modulation.modulated`) the network is evaluated anew.
    """

    __slots__ = ("_last", "inner")

    def __init__(self, inner: DenoiserLike) -> None:
        self.inner = inner
        self._last: tuple[Tensor, Time, tuple[bool, object], Estimate] | None = None

    @property
    def path(self) -> Path:
        """The inner denoiser's path."""
        return self.inner.path

    def with_condition(self, cond: Cond) -> CachedDenoiser:
        """A fresh cache around the bound denoiser."""
        return CachedDenoiser(self.inner.with_condition(cond))

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The inner estimate, evaluated once for the same tensor and time, both with or both without gradients."""
        now, last = (torch.is_grad_enabled(), bindings()), self._last
        if last is not None and last[0] is x and _same(last[1], t) and last[2][0] == now[0] and last[2][1] is now[1]:
            return last[3]
        answer = self.inner(x, t)
        self._last = (x, t, now, answer)
        return answer

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Passed on."""
        return self.inner.predict_conditions(x, t, conds)

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """Passed on, without remembering."""
        return at_times(self.inner, x, times)


@runtime_checkable
class AsksTogether(Protocol):
    """A denoiser that answers at many times in one batch, as `Denoiser` does and a guidance may."""

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """See `Denoiser.predict_times`."""
        ...


def at_times(denoiser: DenoiserLike, x: Tensor, times: Sequence[float]) -> list[Estimate]:
    """`Denoiser.predict_times` of any denoiser: one batch where it can (`AsksTogether`), else one call for each."""
    if isinstance(denoiser, AsksTogether):
        return denoiser.predict_times(x, times)
    _check_times(x, times)
    return [denoiser(part, t) for part, t in zip(x, times, strict=True)]


def asks_together(denoiser: DenoiserLike) -> bool:
    """Whether `predict_times` is one call of the network: not for a `Staged` parameterization, nor a cache of one."""
    denoiser = cast("DenoiserLike", denoiser_of(denoiser))
    if isinstance(denoiser, CachedDenoiser):
        return asks_together(denoiser.inner)
    if isinstance(denoiser, Denoiser):
        return denoiser._staged() is None  # pyright: ignore[reportPrivateUsage]
    return isinstance(denoiser, AsksTogether)


def codec_of(denoiser: object) -> Codec | None:
    """What decodes the samples of a denoiser, or of the one inside it; None if they are pictures already."""
    while denoiser is not None:
        codec: Codec | None = getattr(denoiser, "codec", None)
        if codec is not None:
            return codec
        denoiser = getattr(denoiser, "inner", None)
    return None


def grid_of(denoiser: object) -> Family | None:
    """The grids of a denoiser, or of the one inside it; None if it has none of its own."""
    denoiser = denoiser_of(denoiser)
    while denoiser is not None:
        family: Family | None = getattr(denoiser, "grid", None)
        if family is not None:
            return family
        denoiser = denoiser_of(getattr(denoiser, "inner", None))
    return None


def denoiser_of(model: object) -> object:
    """The `Denoiser` in an opened model (`ornstein.load`); anything else as it is."""
    return getattr(model, "denoiser", model)


def _check_times(x: Tensor, times: Sequence[float]) -> None:
    if not times or len(times) != x.shape[0]:
        raise UsageError(f"states (N, B, *event) at N times are needed, got {tuple(x.shape)} and {len(times)} times")


def _same(a: Time, b: Time) -> bool:
    """Tensors by identity, for comparing them would make the host wait; floats by value."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b
