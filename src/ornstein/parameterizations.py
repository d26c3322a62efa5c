"""What a network's raw output means: a parameterization turns it into an `Estimate`, and back into a training target.

Every class has three functions: the network's input (`precondition`), the estimate from its output (`to_estimate`), and
the output that training aims at (`target`). For every (x_0, z, t):  to_estimate(x_t, target(x_0, z, x_t)).clean = x_0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from . import checks, scalars
from .errors import ConfigError, PathError, UsageError
from .estimates import Estimate
from .paths.base import AffinePath, Path
from .paths.pyramid import PyramidPath
from .scalars import Time, expand, to_device

Net = Callable[..., Tensor]


class Parameterization(Protocol):
    """raw network output ⇄ Estimate of the clean sample."""

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """The network's input made of the state, same shape as x."""
        ...

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """The estimate that a raw output stands for."""
        ...

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """The raw output of a network that knows x_0 and z."""
        ...


@runtime_checkable
class _Complete(Protocol):
    """The three functions of a `Parameterization`, for a check."""

    precondition: Any
    to_estimate: Any
    target: Any


@runtime_checkable
class NeedsSignal(Protocol):
    """A parameterization that knows whether its clean sample is a quotient by α, which is 0/0 in pure noise."""

    @property
    def needs_signal(self) -> bool:
        """Whether it is."""
        ...


def needs_signal(reading: Parameterization) -> bool:
    """Whether the clean sample of a parameterization is a quotient by α, as far as it says so."""
    return isinstance(reading, NeedsSignal) and reading.needs_signal


class WrappedParameterization:
    """Base of a parameterization that changes the estimate of another one, ``inner``, and nothing else of it."""

    __slots__ = ()

    inner: Parameterization

    @property
    def needs_signal(self) -> bool:
        """As the inner one."""
        return needs_signal(self.inner)

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """The inner one's."""
        return self.inner.precondition(path, x, t)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """The inner one's."""
        return self.inner.target(path, clean, noise, x, t)


class Staged(Protocol):
    """A parameterization that calls its network more than once: `Denoiser.raw` leaves the calls to it.

    `ornstein.cascade.Cascade` is one: the input of its second network depends on the output of the first.
    """

    def ask(self, net: Net, path: Path, x: Tensor, t: Time) -> Tensor:
        """The whole raw output; ``net(fed, **keywords)`` is the network with its time and conditions bound."""
        ...


def _affine(path: Path, who: str) -> AffinePath:
    if not isinstance(path, AffinePath):
        raise PathError(f"predicts={who!r} needs an AffinePath (alpha, sigma), got {type(path).__name__}: use 'clean'")
    return path


def _split(raw: Tensor, x: Tensor, path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """A learned-variance network has twice the channels: the second half goes to ``extras["variance"]``.

    Raises:
        UsageError: an output of another shape than the state, which would be broadcast over it.
    """
    if raw.shape == x.shape or isinstance(path, PyramidPath):
        return raw, {}
    if raw.ndim > 1 and raw.ndim == x.ndim and raw.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        prediction, variance = raw.chunk(2, dim=1)
        return prediction, {"variance": variance}
    raise UsageError(
        f"the network returned {tuple(raw.shape)} for a state of {tuple(x.shape)}: it must return the shape of its "
        "input (or twice its channels, with learned_variance=True)"
    )


@dataclass(frozen=True, slots=True)
class Clean:
    """The network predicts x_0. Works on every path, including those whose state changes shape."""

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """x itself."""
        del path, t
        return x

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """clean = raw."""
        prediction, extras = _split(raw, x, path)
        return Estimate(x, t, path, clean=prediction, extras=extras)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """x_0."""
        del path, noise, x, t
        return clean


@dataclass(frozen=True, slots=True)
class NoisePrediction:
    """The network predicts z (Ho et al. 2020)."""

    needs_signal: ClassVar[bool] = True

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """x itself."""
        del path, t
        return x

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """noise = raw."""
        prediction, extras = _split(raw, x, path)
        return Estimate(x, t, _affine(path, "noise"), noise=prediction, extras=extras)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """z."""
        del path, clean, x, t
        return noise


@dataclass(frozen=True, slots=True)
class V:
    """The network predicts v = α·z − σ·x_0 (Salimans & Ho 2022, app. D); meant for variance-preserving paths.

    On any affine path  x_0 = (α·x − σ·v)/(α² + σ²).
    """

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """x itself."""
        del path, t
        return x

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """clean from v."""
        affine = _affine(path, "v")
        prediction, extras = _split(raw, x, path)
        alpha, sigma = affine.alpha(t), affine.sigma(t)
        norm = alpha**2 + sigma**2
        clean = expand(alpha / norm, x) * x - expand(sigma / norm, x) * prediction
        return Estimate(x, t, affine, clean=clean, extras=extras)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """α·z − σ·x_0."""
        del x
        affine = _affine(path, "v")
        return expand(affine.alpha(t), clean) * noise - expand(affine.sigma(t), clean) * clean


@dataclass(frozen=True, slots=True)
class Velocity:
    """The network predicts dx/dt = α'·x_0 + σ'·z (flow matching, Lipman et al. 2023); z − x_0 on `Flow`."""

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """x itself."""
        del path, t
        return x

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """velocity = raw."""
        prediction, extras = _split(raw, x, path)
        return Estimate(x, t, _affine(path, "velocity"), velocity=prediction, extras=extras)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """α'·x_0 + σ'·z."""
        del x
        d_alpha, d_sigma = _affine(path, "velocity").rates(t)
        return expand(d_alpha, clean) * clean + expand(d_sigma, clean) * noise


class _Preconditioned(ABC):
    """x̂_0 = c_skip·x + c_out·F(c_in·x), with coefficients that depend on the time."""

    __slots__ = ()

    @abstractmethod
    def _scales(self, path: Path, t: Time) -> tuple[Time, Time, Time]:
        """(c_in, c_skip, c_out), all with respect to x rather than u = x/α."""

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """c_in·x, of unit variance."""
        return expand(self._scales(path, t)[0], x) * x

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """c_skip·x + c_out·F."""
        prediction, extras = _split(raw, x, path)
        _, skip, out = self._scales(path, t)
        return Estimate(x, t, path, clean=expand(skip, x) * x + expand(out, x) * prediction, extras=extras)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """(x_0 − c_skip·x)/c_out; infinite where x̂_0 does not depend on F."""
        del noise
        _, skip, out = self._scales(path, t)
        return (clean - expand(skip, x) * x) / expand(out, x)


@dataclass(frozen=True, slots=True, kw_only=True)
class EDM(_Preconditioned):
    """Karras et al. 2022, eq. 7 and table 1: with u = x/α, σ̄ = σ/α and s = sigma_data,

        x̂_0 = s²/(σ̄² + s²)·u + σ̄s/√(σ̄² + s²)·F(u/√(σ̄² + s²)).

    In x this reads  αs²/(σ² + α²s²)·x + σs/√(σ² + α²s²)·F(x/√(σ² + α²s²)), regular at pure noise (α = 0) too. On a
    variance-preserving path with s = 1 this is v-prediction up to sign.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < math.inf:
            raise ConfigError(f"sigma_data must be positive, got {self.sigma_data}")

    def _scales(self, path: Path, t: Time) -> tuple[Time, Time, Time]:
        affine = _affine(path, "edm")
        alpha, sigma = affine.alpha(t), affine.sigma(t)
        total = sigma**2 + (alpha * self.sigma_data) ** 2
        root = scalars.sqrt(total)
        return 1.0 / root, alpha * self.sigma_data**2 / total, sigma * self.sigma_data / root


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency(_Preconditioned):
    """The boundary of consistency models (Song et al. 2023, eq. 5 and app. C): x̂_0 = x exactly at σ̄ = sigma_min.

    c_skip = s²/((σ̄ − σ_min)² + s²),   c_out = s·(σ̄ − σ_min)/√(σ̄² + s²),   input u/√(σ̄² + s²).
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        if not (0.0 < self.sigma_data < math.inf and 0.0 <= self.sigma_min < math.inf):
            raise ConfigError(f"need sigma_data > 0 and sigma_min ≥ 0, got {self.sigma_data} and {self.sigma_min}")

    def _scales(self, path: Path, t: Time) -> tuple[Time, Time, Time]:
        affine = _affine(path, "consistency")
        alpha, sigma = affine.alpha(t), affine.sigma(t)
        above = sigma - alpha * self.sigma_min  # times α, as all of these: regular at pure noise
        power = (alpha * self.sigma_data) ** 2
        root = scalars.sqrt(sigma**2 + power)
        return 1.0 / root, alpha * self.sigma_data**2 / (above**2 + power), self.sigma_data * above / root


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored(WrappedParameterization):
    """Any parameterization with the boundary of consistency models: x̂_0 = u = x/α exactly at σ̄ = sigma_min.

    x̂_0 = w·u + (1 − w)·inner,   w = s²/((σ̄ − σ_min)² + s²) with s = ``width``.

    Above a few widths it is the inner one, so that a trained denoiser is left as it is where its estimate differs from
    u.
    """

    inner: Parameterization
    sigma_min: float = 0.002
    width: float = 0.01

    def __post_init__(self) -> None:
        if not (0.0 <= self.sigma_min < math.inf and 0.0 < self.width < math.inf):
            raise ConfigError(f"need sigma_min ≥ 0 and width > 0, got {self.sigma_min} and {self.width}")

    def _scales(self, path: Path, t: Time) -> tuple[Time, Time]:
        """(w/α, 1 − w), finite at pure noise too."""
        affine = _affine(path, "anchored")
        alpha, sigma = affine.alpha(t), affine.sigma(t)
        above = (sigma - alpha * self.sigma_min) ** 2  # times α², as the next
        power = (alpha * self.width) ** 2
        total = above + power
        return alpha * self.width**2 / total, above / total

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """w·u + (1 − w)·inner."""
        inner = self.inner.to_estimate(path, x, t, raw)
        anchor, rest = self._scales(path, t)
        return inner.replace(clean=expand(anchor, x) * x + expand(rest, x) * inner.clean)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """The inner output for the clean sample (x_0 − w·u)/(1 − w); infinite at the boundary itself."""
        del noise
        anchor, rest = self._scales(path, t)
        wanted = (clean - expand(anchor, x) * x) / expand(rest, x)
        affine = _affine(path, "anchored")
        implied = (x - expand(affine.alpha(t), x) * wanted) / expand(affine.sigma(t), x)
        return self.inner.target(path, wanted, implied, x, t)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelBelow:
    """The network at level l of a `PyramidPath` predicts the image one level below, H^{l−1}x_0 (UDPM).

    Its output is (B, C·f², h, w), of which each pixel becomes f × f (pixel shuffle; further channels, which a level
    with a larger f needs, are left out), or (B, C, f·h, f·w) as it is. ``scaled``: an image in the range of x_0, which
    is multiplied by k_{l−1}, the gain of H^{l−1} on a constant image (2^{l−1} for the box); the published networks
    predict H^{l−1}x_0 itself.

    ``preconditioned``: the input is the state at unit variance, v = (ᾱ_l·k_l·s)² + σ̃_l² with s = ``sigma_data``, and
    the output is added to the best multiple of the state, enlarged:

        H^{l−1}x̂_0/k_{l−1} = (ᾱ_l·k_l·s²/v)·nearest_f(x_l) + raw(x_l/√v)

    The published networks have neither.
    """

    scaled: bool = True
    preconditioned: bool = True
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < math.inf:
            raise ConfigError(f"sigma_data must be positive, got {self.sigma_data}")

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """x/√v, or x itself."""
        levels, level = _pyramid(path), _level(t)
        return x / math.sqrt(self._power(levels, level)) if self.preconditioned else x

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """The estimate stands at level l − 1."""
        levels, level = _pyramid(path), _level(t)
        clean = self._spread(raw, x, levels.factors[level - 1])
        if self.preconditioned:
            clean = clean + self._skipped(levels, x, level)
        return Estimate(x, t, path, clean=clean * self._unit(levels, level))

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """(B, C, f·h, f·w)."""
        del noise
        levels, level = _pyramid(path), _level(t)
        target = levels.down(clean, 0, level - 1) / self._unit(levels, level)
        return target - self._skipped(levels, x, level) if self.preconditioned else target

    def _power(self, path: PyramidPath, level: int) -> float:
        """v."""
        return (path.gains[level] * path.scale(level) * self.sigma_data) ** 2 + path.stds[level] ** 2

    def _unit(self, path: PyramidPath, level: int) -> float:
        """H^{l−1}x_0 in units of the output."""
        return path.scale(level - 1) if self.scaled else 1.0

    def _skipped(self, path: PyramidPath, x: Tensor, level: int) -> Tensor:
        """What is added to the output."""
        factor, image = path.factors[level - 1], path.gains[level] * path.scale(level) * self.sigma_data**2
        weight = image / self._power(path, level) * path.scale(level - 1) / self._unit(path, level)
        large = functional.interpolate(x, scale_factor=float(factor), mode="nearest") if factor > 1 else x
        return weight * large

    def _spread(self, raw: Tensor, x: Tensor, factor: int) -> Tensor:
        channels = x.shape[1]
        if raw.shape[-2:] == x.shape[-2:] and raw.shape[1] >= channels * factor**2:
            return functional.pixel_shuffle(raw[:, : channels * factor**2], factor)
        if raw.shape[1:] != (channels, factor * x.shape[-2], factor * x.shape[-1]):
            raise PathError(
                f"a network at a level of {tuple(x.shape[1:])} that shrinks by {factor} must return "
                f"{channels * factor**2} channels or with {factor} times the size, got {tuple(raw.shape[1:])}"
            )
        return raw


def _pyramid(path: Path) -> PyramidPath:
    if not isinstance(path, PyramidPath):
        raise PathError(f"predicts='level-below' needs a PyramidPath, got {type(path).__name__}")
    return path


def _level(t: Time) -> int:
    """The level that a time stands for, the same for the whole batch."""
    return int(float(t.flatten()[0]) if isinstance(t, Tensor) else t)


SPELLINGS: Mapping[str, str] = {
    "epsilon": "noise",
    "eps": "noise",
    "x0": "clean",
    "sample": "clean",
    "v_prediction": "v",
    "flow": "velocity",
    "flow_prediction": "velocity",
}
"""Other names of the field for a prediction → the name here."""


def parameterization(predicts: str | Parameterization) -> Parameterization:
    """The parameterization with this name: clean, noise, v, velocity, edm, consistency or level-below.

    Those of `SPELLINGS` are understood too.

    Raises:
        ConfigError: the name is none of these.
    """
    if not isinstance(predicts, str):
        checks.instance("predicts", predicts, _Complete, "a name such as 'noise', or a Parameterization")
        return predicts
    named: dict[str, Callable[[], Parameterization]] = {
        "clean": Clean,
        "noise": NoisePrediction,
        "v": V,
        "velocity": Velocity,
        "edm": EDM,
        "consistency": Consistency,
        "level-below": LevelBelow,
    }
    predicts = SPELLINGS.get(predicts, predicts)
    if predicts not in named:
        raise ConfigError(f"unknown parameterization {predicts!r}: choose one of {', '.join(named)}")
    return named[predicts]()


def refuse_noise_without_signal(reading: Parameterization, path: Path) -> None:
    """Raise `ConfigError` for a prediction of the noise on a path whose noisiest time has no signal left (α = 0).

    There x = z for every clean sample, so that the noise says nothing about it, and x̂_0 = (x − σ·ẑ)/α is 0/0.
    """
    if needs_signal(reading) and isinstance(path, AffinePath) and path.alpha(path.t_range[1]) == 0.0:
        raise ConfigError(
            f"predicts='noise' on {type(path).__name__}, whose noisiest time has no signal (α = 0): the clean sample "
            "cannot be told from noise there; train and sample with predicts='v', 'clean' or 'velocity'"
        )


def timestep_tensor(value: Time, x: Tensor) -> Tensor:
    """The network's time input, shape (B,) float32: the only tensor ever made of a time."""
    if isinstance(value, Tensor):
        return to_device(value, x.device, torch.float32).expand(x.shape[0]).clone()
    return torch.full((x.shape[0],), value, dtype=torch.float32, device=x.device)
