"""Several networks in one descent: one denoises down to a noise level, the next takes over there.

    relay = orn.Relay(base, refiner, below=path.log_snr(0.2))
    images = orn.sample(relay, n=4, sampler="dpmpp-2m", steps=40)

This is SDXL's refiner (Podell et al. 2023, sec. 2.5, in the form of Balaji et al. 2022, eDiff-I) and every other set of
experts by noise level. The hand-over is a noise *level*, so that it lies at the same σ/α on every grid. A sampler stops
there and begins anew with the second network: what it remembers of the first is not mixed into the steps of the second,
and all evaluations of one step come from one network. Each half then has the order of the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from . import checks
from .denoiser_info import DenoiserInfo, info_of
from .denoisers import DenoiserLike, uncached
from .errors import ConfigError, GridError, UsageError
from .estimates import Estimate
from .grids import Grid, GridLike, affine, times_of
from .paths.base import Cond, Path
from .paths.times import is_above, is_near
from .scalars import StepTime, Time
from .typed import typed

_PREFIXES = ("first.", "second.")
_PLACES = 9  # points at which two paths are compared


@dataclass(frozen=True, slots=True, eq=False)
class Relay:
    """A denoiser that hands over at a noise level: ``first`` above it, ``second`` from there down.

    A step belongs to the network in whose range it begins. `ornstein.sample` puts the level on the grid as one of its
    times, without another step, so that the first network's last step ends exactly there; a ``grid=`` of your own is
    used as it is. With the steps in your own hands, give ``relay.info.handovers`` to `ornstein.solve`.

    Conditions named ``first.NAME`` and ``second.NAME`` belong to one of the two; any other name belongs to both. A
    guidance may stand around each of the two, or around the relay.

    Args:
        first: the denoiser of the noisier part.
        second: that of the cleaner part, on the same path and with samples of the same shape.
        below: the log-SNR, log(α²/σ²), at which the second takes over. `ornstein.paths` have ``log_snr(t)``.

    Raises:
        ConfigError: something that is no denoiser, a level that is no number or outside the path's range, or two
            denoisers whose paths, shapes or devices differ.

    >>> import torch, ornstein as orn
    >>> one = orn.Denoiser(lambda x, time: 0 * x + 1, path=orn.Flow(), predicts="clean", shape=(1,))
    >>> two = orn.Denoiser(lambda x, time: 0 * x + 2, path=orn.Flow(), predicts="clean", shape=(1,))
    >>> relay = Relay(one, two, below=0.0)
    >>> relay.info.handovers, orn.sample(relay, steps=4, sampler="ddim").item()
    ((0.5,), 2.0)
    """

    first: DenoiserLike
    second: DenoiserLike
    below: float

    def __post_init__(self) -> None:
        for name, side in (("first", self.first), ("second", self.second)):
            if isinstance(side, type) or not callable(side) or not isinstance(getattr(side, "path", None), Path):
                raise ConfigError(f"{name} must be a denoiser, such as ornstein.Denoiser, got {checks.brief(side)}")
        checks.real("below", self.below)
        _check_paths(self.first.path, self.second.path)
        path, low, high = affine(self.path), *self.path.t_range
        noisy, clean = path.log_snr(high), path.log_snr(low)
        if not noisy < self.below < clean or not low < self.level < high:
            raise ConfigError(
                f"below must be a log-SNR inside the path's range, {noisy:.4g} to {clean:.4g}, got {self.below:g}"
            )
        one, other = info_of(self.first), info_of(self.second)
        for what in ("shape", "device"):
            mine, theirs = getattr(one, what), getattr(other, what)
            if mine is not None and theirs is not None and mine != theirs:
                raise ConfigError(f"the two denoisers of a Relay have the {what}s {mine} and {theirs}: give equal ones")

    def __repr__(self) -> str:
        return checks.cut(f"Relay({self.first!r} → {self.second!r}, below={self.below:g})")

    @property
    def path(self) -> Path:
        """The first one's path, which is also the second one's."""
        return self.first.path

    @property
    def level(self) -> float:
        """The time of the hand-over."""
        return affine(self.path).time_of(self.below)

    @property
    def info(self) -> DenoiserInfo:
        """What both know: nothing of networks, but the shape, the codec and the conditions of both."""
        one, other = info_of(self.first), info_of(self.second)
        own = () if self.first is self.second else (self.level,)
        return replace(
            one,
            shape=one.shape or other.shape,
            codec=one.codec or other.codec,
            cond=None if one.cond is None or other.cond is None else join_conditions(one.cond, other.cond),
            network=None,
            time_name=None,
            times_together=False,
            handovers=tuple(sorted({*one.handovers, *other.handovers, *own}, reverse=True)),
        )

    def side(self, t: Time) -> DenoiserLike:
        """The one that evaluates at t, or in the step that began where t says (`ornstein.scalars.StepTime`)."""
        return self.first if self._is_first(t) else self.second

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate of the one whose turn it is."""
        return self.side(t)(x, t)

    def with_condition(self, cond: Cond) -> Relay:
        """Both under their part of the condition."""
        return replace(
            self,
            first=self.first.with_condition(_part(cond, "first.")),
            second=self.second.with_condition(_part(cond, "second.")),
        )

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Estimates of one state under several conditions, by the one whose turn it is."""
        first = self._is_first(t)
        parts = [_part(cond, "first." if first else "second.") for cond in conds]
        return (self.first if first else self.second).predict_conditions(x, t, parts)

    def uncached(self) -> Relay:
        """Both without a memory."""
        return replace(self, first=uncached(self.first), second=uncached(self.second))

    def _is_first(self, t: Time) -> bool:
        if isinstance(t, Tensor):
            if t.numel() != 1:
                raise UsageError("a Relay evaluates one time for the whole batch: evaluate its two parts by themselves")
            t = float(t)
        return is_above(t.began if isinstance(t, StepTime) else t, self.level, self.path)


@typed(GridError)
def through(family: Callable[[int], GridLike], steps: int, nodes: Sequence[float]) -> Grid:
    """The grid of a family with ``nodes`` among its times: as many steps as asked for, of which none is over a node.

    A node outside the grid, or at one of its times, costs nothing; each other one takes the place of a step.

    Raises:
        GridError: fewer steps than parts between the nodes, when the grid meets a path.

    >>> from ornstein.grids import uniform
    >>> from ornstein.paths import Flow
    >>> through(uniform, 4, [0.3])(Flow())
    (1.0, 0.6666666666666667, 0.33333333333333337, 0.3, 0.0)
    """

    def merged(count: int, path: Path) -> tuple[float, ...]:
        times = times_of(family(count), path)
        inside = [node for node in nodes if min(times) < node < max(times)]
        kept = [t for t in times if not any(is_near(t, node, path) for node in inside)]
        return tuple(sorted({*kept, *inside}, reverse=True))

    def rule(path: Path) -> tuple[float, ...]:
        for count in range(steps, max(0, steps - len(nodes) - 1), -1):
            times = merged(count, path)
            if len(times) - 1 <= steps:
                return times
        raise GridError(f"{steps} step{'s' * (steps > 1)} cannot end at every hand-over: give {len(nodes) + 1} or more")

    return Grid(f"through({steps})", rule)


def _part(cond: Cond, prefix: str) -> dict[str, Tensor]:
    """What of a condition belongs to one of the two."""
    shared = {name: value for name, value in cond.items() if not name.startswith(_PREFIXES)}
    return shared | {name.removeprefix(prefix): value for name, value in cond.items() if name.startswith(prefix)}


def join_conditions(first: Cond, second: Cond) -> dict[str, Tensor]:
    """The condition of a `Relay` whose two have these: what both hold is shared, all else has its prefix."""
    shared = {name for name, value in first.items() if second.get(name) is value}
    out: dict[str, Tensor] = {name: first[name] for name in shared}
    for prefix, cond in zip(_PREFIXES, (first, second), strict=True):
        out |= {prefix + name: value for name, value in cond.items() if name not in shared}
    return out


def _check_paths(first: Any, second: Any) -> None:
    """Refuse two paths that are not the same at a few times; paths of tables are equal only by their values."""
    if first.t_range != second.t_range or type(affine(first)) is not type(affine(second)):
        raise ConfigError(f"the two denoisers of a Relay have the paths {first} and {second}: give equal ones")
    one, other, (low, high) = affine(first), affine(second), first.t_range
    for k in range(1, _PLACES):
        t = low + (high - low) * k / _PLACES
        mine, theirs = one.log_snr(t), other.log_snr(t)
        if abs(mine - theirs) > 1e-6 * max(1.0, abs(mine)):
            raise ConfigError(
                f"the two denoisers of a Relay have other noise levels: at t = {t:.3g} log-SNRs {mine:.6g} and "
                f"{theirs:.6g}; give networks that were trained on one path"
            )
