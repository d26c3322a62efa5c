"""Denoisers: (x, t) → Estimate, with conditions bound beforehand so that samplers never see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from . import checks
from .denoiser_info import CPU, DenoiserInfo, Family, info_of
from .errors import ConfigError, OrnsteinError, UsageError
from .estimates import Estimate
from .networks.sites import bindings
from .parameterizations import Net, Parameterization, parameterization, refuse_noise_without_signal, timestep_tensor
from .paths.base import Cond, Path
from .scalars import Time
from .typed import check_type

if TYPE_CHECKING:
    from .latents import Codec

TimestepOf = Callable[[Path, Time], Time]


def _decodes(codec: object) -> bool:
    """Whether an object can decode latents; bytes have another method of this name."""
    return not isinstance(codec, str | bytes) and callable(getattr(codec, "decode", None))


class DenoiserLike(Protocol):
    """What samplers and guidance work on; a guidance maps one of these to another.

    One that knows more about itself than its path also has ``info``, a `DenoiserInfo`; see `info_of`.
    """

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


@runtime_checkable
class MayRemember(Protocol):
    """A denoiser that remembers estimates, or stands around one that may."""

    def uncached(self) -> DenoiserLike:
        """The same denoiser without a memory."""
        ...


def uncached(denoiser: DenoiserLike) -> DenoiserLike:
    """The same denoiser without a memory, for many evaluations at different states, which should not be kept."""
    return denoiser.uncached() if isinstance(denoiser, MayRemember) else denoiser


Guidance = Callable[[DenoiserLike], DenoiserLike]


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """Any network as a denoiser.

    ``net(x, time, **cond)`` returns a tensor, or an object with a ``sample`` tensor (diffusers). It may work in place
    and reuse its output: it gets copies, and its output is copied. What it returns must have the shape of x and, in
    `ornstein.sample`, be finite.

    Args:
        net: a module or a function. A module gets its input in the precision of its parameters, and its output is cast
            back to that of the state.
        path: the forward law that it was trained on.
        predicts: "clean", "noise", "v", "velocity", "edm", "consistency" or a `Parameterization`.
        shape: the clean event (C, H, W), which `ornstein.sample` needs.
        timestep_of: maps (path, t) to the time input that the network was trained with; by default the path's own.
        time_name: the network's keyword for the time; by default the time is its second argument.
        integer_time: round the time input to whole numbers (int64): an ``nn.Embedding`` of time needs them.
        learned_variance: the network returns 2·C channels, whose second half is the variance (Nichol & Dhariwal 2021).
        cond: the condition: keyword arguments, each a tensor of B rows or of one row that is repeated.
        grid: the grids that suit this network, such as the climbing ones of a consistency model; by default the path's.
        codec: what turns its samples into pictures, if they are latents: `ornstein.sample` decodes with it, and
            guidance by energies of pictures looks through it.
        data_std: standard deviation of the clean data around their mean, √ of its mean square over the numbers of a
            sample; None where nobody knows it. The sampler "auto" multiplies its noise levels by it.

    Raises:
        ConfigError: an argument that is not of its kind; the message names it.

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
    time_name: str | None = field(default=None, kw_only=True)
    integer_time: bool = field(default=False, kw_only=True)
    learned_variance: bool = field(default=False, kw_only=True)
    cond: Cond = field(default_factory=dict[str, Tensor], kw_only=True)
    grid: Family | None = field(default=None, kw_only=True)
    codec: Codec | None = field(default=None, kw_only=True, repr=False)
    data_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        checks.function("net", self.net, "a module or a function (x, time, **cond) → tensor")
        checks.instance("path", self.path, Path, "a forward path such as ornstein.VP()")
        if self.shape is not None:
            object.__setattr__(self, "shape", checks.event(self.shape, ConfigError))
        if self.timestep_of is not None:
            checks.function("timestep_of", self.timestep_of, "a function (path, t) → number")
        if self.time_name is not None and not (isinstance(self.time_name, str) and self.time_name.isidentifier()):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"time_name must be the name of an argument, got {checks.brief(self.time_name)}")
        if self.grid is not None:
            checks.function("grid", self.grid, "a function from a number of evaluations to a grid")
        if self.codec is not None and (isinstance(self.codec, type) or not _decodes(self.codec)):
            raise ConfigError(f"codec must be an object with a method decode, got {checks.brief(self.codec)}")
        if self.data_std is not None:
            checks.real("data_std", self.data_std, above=0.0)
        for name in ("integer_time", "learned_variance"):
            checks.flag(name, getattr(self, name), ConfigError)
        object.__setattr__(self, "cond", dict(checks.conditions(self.cond, ConfigError)))
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
        time, own = self._time(x, t), self.cond if cond is None else cond

        def net(fed: Tensor, **keywords: object) -> Tensor:
            return self._evaluate(fed, time, own, **keywords).to(x.dtype)

        return net

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t (host float, or (B,) in training)."""
        return self._estimate(self.path, x, t, self.raw(x, t))

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
            self._estimate(self.path.with_condition(cond), x, t, part)
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
        raw = self._evaluate(fed, time, cond).to(x.dtype).tensor_split(count)
        return [self._estimate(self.path, part, t, out) for part, t, out in zip(x, times, raw, strict=True)]

    @property
    def device(self) -> torch.device:
        """Where the network lives (the CPU for a function without parameters)."""
        parameter = self._parameter()
        return CPU if parameter is None else parameter.device

    @property
    def info(self) -> DenoiserInfo:
        """What wrappers pass on."""
        parameter = self._parameter()
        return DenoiserInfo(
            shape=self.shape,
            device=CPU if parameter is None else parameter.device,
            dtype=None if parameter is None else parameter.dtype,
            codec=self.codec,
            data_std=self.data_std,
            grid=self.grid,
            cond=self.cond,
            network=self.net,
            time_name=self.time_name,
            times_together=self._staged() is None,
        )

    def __repr__(self) -> str:
        what = self.predicts if isinstance(self.predicts, str) else type(self.predicts).__name__
        net = type(self.net).__name__ if isinstance(self.net, nn.Module) else _name(self.net)
        cond = f", cond={{{', '.join(self.cond)}}}" if self.cond else ""
        return checks.cut(f"Denoiser({net}, {checks.brief(self.path)}, {what}, shape={self.shape}{cond})")

    def _time(self, x: Tensor, t: Time) -> Tensor:
        """The time number of each row of x, (B,) float32."""
        if self.timestep_of is None:
            return timestep_tensor(self.path.timestep_of(t), x)
        time = self.timestep_of(self.path, t)
        check_type("what timestep_of returns", time, Time, UsageError)
        return timestep_tensor(time, x)

    def _staged(self) -> Callable[[Net, Path, Tensor, Time], Tensor] | None:
        """How a `Staged` parameterization calls its network; by name, for isinstance costs ten times as much."""
        return getattr(self.parameterization, "ask", None)

    def _estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        estimate = self.parameterization.to_estimate(path, x, t, raw)
        if "variance" in estimate.extras and not self.learned_variance:
            raise UsageError(
                f"the network returned {tuple(raw.shape)} for a state of {tuple(x.shape)}: twice the channels are a "
                "learned variance, which is declared by Denoiser(…, learned_variance=True)"
            )
        return estimate

    def _evaluate(self, fed: Tensor, time: Tensor, cond: Cond, **keywords: object) -> Tensor:
        """The network's output on rows that are ready for it: a copy, of a copy of them."""
        parameter = self._parameter()
        cast = fed.dtype if parameter is None or not parameter.is_floating_point() else parameter.dtype
        fed = fed.to(cast, copy=True)
        if self.integer_time:
            time = time.round().to(torch.int64)
        rows = _rows(cond, fed.shape[0])
        before = [_version(value) for value in cond.values()]
        try:
            answer: object = (
                self.net(fed, time, **rows, **keywords)
                if self.time_name is None
                else self.net(fed, **{self.time_name: time}, **rows, **keywords)
            )
        except OrnsteinError:
            raise
        except Exception as error:
            given = f"given x {_brief(fed)}, time {_brief(time)}" + "".join(
                f", {k} {_brief(v)}" for k, v in rows.items()
            )
            remedy = self._remedy(error)
            if remedy is not None:
                raise UsageError(
                    f"the network was {given}, and torch says {str(error).strip()[:80]!r}: {remedy}"
                ) from error
            if not hasattr(error, "__notes__"):  # one of an inner denoiser says it already
                error.add_note(f"ornstein: the network was {given}")
            raise
        if [_version(value) for value in cond.values()] != before:
            raise UsageError(
                f"the network changes its condition ({', '.join(cond)}) in place: let it work on a clone, for the next "
                "evaluation needs it unchanged"
            )
        return _output(answer, fed)

    def _remedy(self, error: Exception) -> str | None:
        """What helps against the two errors of an ``nn.Embedding`` of time; None for all others."""
        text = str(error)
        if not self.integer_time and "'indices'" in text and "Long" in text:
            return "an nn.Embedding of time takes whole numbers: Denoiser(…, integer_time=True)"
        if isinstance(error, IndexError) and text == "index out of range in self":
            return (
                "an nn.Embedding of N rows takes 0 … N − 1; the times of VP.table() are those of its N steps, and "
                "timestep_of= makes others"
            )
        return None

    def _parameter(self) -> Tensor | None:
        return next(self.net.parameters(), None) if isinstance(self.net, nn.Module) else None


def _output(answer: object, fed: Tensor) -> Tensor:
    """A copy of the tensor that a network returned, for its memory may be reused at the next evaluation."""
    out = getattr(answer, "sample", answer)
    if not isinstance(out, Tensor):
        raise UsageError(
            f"a network must return a tensor, or an object with a 'sample' tensor, got {type(answer).__name__}"
        )
    if not out.is_floating_point():
        raise UsageError(f"a network must return floating-point numbers, got {out.dtype}")
    if out.layout is not torch.strided:
        raise UsageError(f"a network must return a dense tensor, got one of layout {out.layout}: call to_dense()")
    if out.ndim == 0 or out.shape[0] != fed.shape[0]:
        raise UsageError(
            f"the network returned {tuple(out.shape)} for an input of {tuple(fed.shape)}: it must return a row for "
            "each row of its input"
        )
    if out.device != fed.device:
        raise UsageError(f"the network returned a tensor on {out.device} for an input on {fed.device}: move it there")
    return out.clone()


def _brief(value: Tensor) -> str:
    """Shape, type and range of a tensor."""
    text = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if value.ndim > 1 or not value.numel() or value.device.type != "cpu":
        return text
    low, high = value.min().item(), value.max().item()
    return f"{text} = {low:g}" if low == high else f"{text} in {low:g} … {high:g}"


def _version(value: Tensor) -> int | None:
    """How often a tensor was changed in place; None where torch does not count."""
    return None if value.is_inference() else value._version


def _name(function: object) -> str:
    name: object = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


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


class DenoiserWrapper(ABC):
    """A denoiser that changes the estimates of ``inner``, and passes on its path and what it knows about itself."""

    __slots__ = ()
    inner: DenoiserLike

    @property
    def path(self) -> Path:
        """The inner path."""
        return self.inner.path

    @property
    def info(self) -> DenoiserInfo:
        """What the inner denoiser knows about itself."""
        return info_of(self.inner)

    @abstractmethod
    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t."""

    @abstractmethod
    def with_condition(self, cond: Cond) -> DenoiserLike:
        """The same around the bound denoiser."""

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """One estimate for each condition."""
        return [self.with_condition(cond)(x, t) for cond in conds]


class CachedDenoiser(DenoiserWrapper):
    """A denoiser that remembers its last estimate, so that two guidances on top of it share one evaluation.

    The state is recognised by identity, so it must not be changed in place between two calls. Under other
    modulations of the network (`ornstein.modulation.modulated`) the network is evaluated anew.
    """

    __slots__ = ("_last", "inner")

    def __init__(self, inner: DenoiserLike) -> None:
        self.inner = inner
        self._last: tuple[Tensor, Time, tuple[bool, object], Estimate] | None = None

    def __repr__(self) -> str:
        return checks.cut(f"CachedDenoiser({self.inner!r})")

    def uncached(self) -> DenoiserLike:
        """The inner denoiser."""
        return uncached(self.inner)

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
        return predict_times(self.inner, x, times)


@runtime_checkable
class PredictsTimes(Protocol):
    """A denoiser with `predict_times` of its own: estimates at several times from one batch."""

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """See `Denoiser.predict_times`."""
        ...


def predict_times(denoiser: DenoiserLike, x: Tensor, times: Sequence[float]) -> list[Estimate]:
    """`Denoiser.predict_times` of any denoiser: one batch where it can (`PredictsTimes`), else one call for each."""
    if isinstance(denoiser, PredictsTimes):
        return denoiser.predict_times(x, times)
    _check_times(x, times)
    return [denoiser(part, t) for part, t in zip(x, times, strict=True)]


@runtime_checkable
class Opened(Protocol):
    """An opened model (`ornstein.load`), which holds a denoiser."""

    @property
    def denoiser(self) -> Denoiser:
        """What it evaluates."""
        ...


def denoiser_of(model: object) -> Denoiser | None:
    """The `Denoiser` that a model is, or that one opened by `ornstein.load` holds; None of a guidance, say."""
    if isinstance(model, Denoiser):
        return model
    return model.denoiser if isinstance(model, Opened) else None


def _check_times(x: Tensor, times: Sequence[float]) -> None:
    if not times or len(times) != x.shape[0]:
        raise UsageError(f"states (N, B, *event) at N times are needed, got {tuple(x.shape)} and {len(times)} times")


def _same(a: Time, b: Time) -> bool:
    """Tensors by identity, for comparing them would make the host wait; floats by value."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b
