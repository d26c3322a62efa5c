"""Variance-preserving paths: α² + σ² = 1, given by the log of the signal gain.

Continuous times run over [0, 1]. A path made from a table of N betas interpolates log α linearly between the nodes
t = k/N (the "discrete" schedule of DPM-Solver), so a pretrained 1000-step network can be evaluated at any time; its
timestep is the table's index N·t − 1, which is what such networks were fed.

References: Ho et al. 2020 (linear betas); Song et al. 2021, eq. 32 (continuous linear); Nichol & Dhariwal 2021, eq. 17
(cosine); Rombach et al. 2022 (scaled linear).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import checks, scalars
from ..errors import ConfigError
from ..randomness import NoiseSource
from ..scalars import T, Time, expand, widened
from ..typed import typed
from .base import AffinePath

BetaKind = Literal["linear", "scaled-linear", "cosine", "scaled_linear", "squaredcos_cap_v2"]
_SPELLINGS: dict[str, BetaKind] = {"scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
_NO_SIGNAL = 1e36
"""∫β from which on it is taken for infinite."""


class Schedule(Protocol):
    """log α as a function of time, its slope and its inverse."""

    @property
    def t_range(self) -> tuple[float, float]:
        """(clean, prior)."""
        ...

    @property
    def t_min(self) -> float:
        """The least noisy time at which a network is evaluated."""
        ...

    def log_alpha(self, t: T) -> T:
        """log α(t), 0 at the clean end and decreasing."""
        ...

    def rate(self, t: T) -> T:
        """d log α / dt."""
        ...

    def time_of(self, log_alpha: T) -> T:
        """Inverse of `log_alpha`."""
        ...

    def timestep_of(self, t: T) -> T:
        """The number that a network takes as its time input."""
        ...


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """β(t) = β_min + t·(β_max − β_min), log α = −½∫β."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_range: tuple[float, float] = (0.0, 1.0)
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min < self.beta_max < math.inf:
            raise ConfigError(f"need 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}")

    def log_alpha(self, t: T) -> T:
        """−½·(β_min·t + ½(β_max − β_min)·t²)."""
        return -0.5 * t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def rate(self, t: T) -> T:
        """−½·β(t)."""
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def time_of(self, log_alpha: T) -> T:
        """The root of the quadratic, without cancellation near zero; far beyond the span where nothing is left."""
        area = scalars.clip(-2.0 * log_alpha, 0.0, _NO_SIGNAL)
        slope = self.beta_max - self.beta_min
        return 2.0 * area / (self.beta_min + scalars.sqrt(self.beta_min**2 + 2.0 * slope * area))

    def timestep_of(self, t: T) -> T:
        """1000·t."""
        return 1000.0 * t


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledLinear:
    """√β(t) linear between √β_min and √β_max (latent diffusion's schedule, in continuous time)."""

    beta_min: float = 0.85
    beta_max: float = 12.0
    t_range: tuple[float, float] = (0.0, 1.0)
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min < self.beta_max < math.inf:
            raise ConfigError(f"need 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}")

    def _ends(self) -> tuple[float, float]:
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max)

    def log_alpha(self, t: T) -> T:
        """−½∫β."""
        a, b = self._ends()
        # ∫β = t·(a² + a·d·t + d²t²/3) with d = b − a: no cancellation near t = 0.
        return -0.5 * t * (a * a + (b - a) * t * (a + (b - a) * t / 3.0))

    def rate(self, t: T) -> T:
        """−½·β(t)."""
        a, b = self._ends()
        return -0.5 * (a + (b - a) * t) ** 2

    def time_of(self, log_alpha: T) -> T:
        """From √β(t) = (a³ + 3(b − a)∫β)^{1/3}."""
        a, b = self._ends()
        return (scalars.cbrt(a**3 - 6.0 * (b - a) * log_alpha) - a) / (b - a)

    def timestep_of(self, t: T) -> T:
        """1000·t."""
        return 1000.0 * t


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """α(t) = cos θ(t) / cos θ(0), θ(t) = (t + offset)/(1 + offset)·π/2; cut before α vanishes."""

    offset: float = 0.008
    t_range: tuple[float, float] = (0.0, 0.999)
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.offset > 0.0 and self.t_range[1] < 1.0):
            raise ConfigError(f"need offset > 0 and a span that ends before 1, got {self.offset} and {self.t_range}")

    def _theta(self, t: T) -> T:
        return (t + self.offset) * (0.5 * math.pi / (1.0 + self.offset))

    def log_alpha(self, t: T) -> T:
        """log cos θ(t) − log cos θ(0)."""
        start, theta = self._theta(0.0), self._theta(t)
        # cos θ − cos θ₀ as a product keeps the digits of a small t.
        drop = -2.0 * scalars.sin(0.5 * (theta + start)) * scalars.sin(0.5 * (theta - start))
        return scalars.log1p(drop / math.cos(start))

    def rate(self, t: T) -> T:
        """−θ'·tan θ(t)."""
        return -scalars.tan(self._theta(t)) * (0.5 * math.pi / (1.0 + self.offset))

    def time_of(self, log_alpha: T) -> T:
        """From θ = acos(α·cos θ(0))."""
        theta = scalars.acos(math.cos(self._theta(0.0)) * scalars.exp(log_alpha))
        return scalars.clip(theta / (0.5 * math.pi / (1.0 + self.offset)) - self.offset, 0.0, 1.0)

    def timestep_of(self, t: T) -> T:
        """1000·t."""
        return 1000.0 * t


@typed()
@dataclass(frozen=True, kw_only=True)
class Table(checks.OneLine):
    """log α interpolated linearly between t = k/N, k = 0 … N, for N betas: α_k² = ∏_{j≤k} (1 − β_j).

    The last beta may be 1, a terminal signal-to-noise ratio of zero (Lin et al. 2024): there, log α ends at −∞, and α
    itself is linear between the last two nodes.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.betas or not all(0.0 < b < 1.0 for b in (*self.betas[:-1], min(self.betas[-1], 0.5))):
            raise ConfigError(
                f"a table needs betas inside (0, 1), the last one may be 1, got {len(self.betas)} of them: "
                "check their range"
            )
        if self.betas[-1] > 1.0:
            raise ConfigError(f"the last beta of a table may be at most 1, got {self.betas[-1]}: check its range")

    @property
    def t_range(self) -> tuple[float, float]:
        """(0, 1)."""
        return 0.0, 1.0

    @property
    def t_min(self) -> float:
        """1/N, the first trained step."""
        return 1.0 / len(self.betas)

    @property
    def ends_in_noise(self) -> bool:
        """Whether α(1) = 0."""
        return self.betas[-1] == 1.0

    @cached_property
    def _nodes(self) -> npt.NDArray[np.float64]:
        return np.arange(len(self.betas) + 1) / len(self.betas)  # not linspace: (k + 1)/N is a node exactly

    @cached_property
    def _values(self) -> npt.NDArray[np.float64]:
        """log α at the nodes; the last is repeated where it would be −∞, for it is never interpolated to."""
        betas = np.asarray(self.betas, dtype=np.float64)
        values = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-(betas[:-1] if self.ends_in_noise else betas)))])
        return np.concatenate([values, values[-1:]]) if self.ends_in_noise else values

    @cached_property
    def _slopes(self) -> npt.NDArray[np.float64]:
        return np.diff(self._values) * len(self.betas)

    @cached_property
    def _host(self) -> tuple[list[float], list[float]]:
        """Values and slopes as Python numbers: a sampler looks them up several times a step."""
        return self._values.tolist(), self._slopes.tolist()

    def log_alpha(self, t: T) -> T:
        """Linear between the nodes."""
        count = len(self.betas)
        if isinstance(t, Tensor):
            times = t.detach().to("cpu", torch.float64).numpy().clip(0.0, 1.0)
            places = (times * count + 1e-9).astype(np.int64).clip(0, count - 1)
            found = self._values[places] + self._slopes[places] * (times - places / count)
            if self.ends_in_noise:
                beyond = (times * count - (count - 1)).clip(0.0, 1.0)
                with np.errstate(divide="ignore"):
                    found = found + np.log1p(-beyond)
            return torch.as_tensor(found).to(t)
        values, slopes = self._host
        time = min(max(t, 0.0), 1.0)
        place = min(int(time * count + 1e-9), count - 1)  # a hair below a node counts as the node
        found = values[place] + slopes[place] * (time - place / count)
        if self.ends_in_noise and place == count - 1:
            found += scalars.log1p(-min(max(time * count - place, 0.0), 1.0))
        return found  # pyright: ignore[reportReturnType]

    def rate(self, t: T) -> T:
        """Slope of the segment that ends at or after t; huge but finite where log α ends at −∞."""
        # A hair below a node counts as the node: t = (k + 1)/N times N may round to either side.
        count = len(self.betas)
        if isinstance(t, Tensor):
            times = t.detach().to("cpu", torch.float64)
            index = (times * count - 1e-9).ceil().long()
            found = torch.as_tensor(self._slopes[index.clamp(1, count).numpy() - 1])
            if self.ends_in_noise:
                left = (count * (1.0 - times)).clamp(1e-12, 1.0)
                found = torch.where(index >= count, -count / left, found)
            return found.to(t)
        index = min(max(math.ceil(t * count - 1e-9), 1), count)
        if self.ends_in_noise and index == count:
            return -count / min(max(count * (1.0 - t), 1e-12), 1.0)  # pyright: ignore[reportReturnType]
        return float(self._slopes[index - 1])  # pyright: ignore[reportReturnType]

    def time_of(self, log_alpha: T) -> T:
        """Linear between the nodes."""
        if not self.ends_in_noise:
            return scalars.interp(log_alpha, self._values[::-1], self._nodes[::-1])
        count, last = len(self.betas), float(self._values[-1])
        found = scalars.interp(log_alpha, self._values[-2::-1], self._nodes[-2::-1])
        if isinstance(log_alpha, Tensor):
            return found - torch.expm1((log_alpha - last).clamp_max(0.0)) / count
        return found - scalars.expm1(min(log_alpha - last, 0.0)) / count

    def last_stretch(self) -> tuple[float, float] | None:
        """Where α begins to be linear, and α' from there on: the last step of a table that ends in noise."""
        if not self.ends_in_noise:
            return None
        count = len(self.betas)
        return (count - 1 + 1e-9) / count, -count * math.exp(float(self._values[-1]))

    def timestep_of(self, t: T) -> T:
        """N·t − 1, the index of the step."""
        return float(len(self.betas)) * t - 1.0


@typed()
@dataclass(frozen=True, slots=True)
class VP(AffinePath):
    """x_t = α(t)·x_0 + √(1 − α²)·z.

    >>> VP()  # continuous, linear betas
    VP(schedule=Linear(beta_min=0.1, beta_max=20.0, t_range=(0.0, 1.0), t_min=0.001))
    >>> path = VP.table("scaled-linear")  # the 1000 steps of latent diffusion
    >>> path.timestep_of(1.0)
    999.0
    """

    schedule: Schedule = Linear()

    @classmethod
    def cosine(cls) -> VP:
        """Continuous cosine schedule."""
        return cls(Cosine())

    @classmethod
    def scaled_linear(cls) -> VP:
        """Continuous scaled-linear schedule."""
        return cls(ScaledLinear())

    @classmethod
    def from_betas(cls, betas: Sequence[float]) -> VP:
        """A discrete table, such as a pretrained model's."""
        return cls(Table(betas=checks.numbers("betas", betas, ConfigError)))

    @classmethod
    @typed()
    def table(
        cls, kind: BetaKind = "linear", steps: int = 1000, start: float | None = None, end: float | None = None
    ) -> VP:
        """The usual tables: linear 1e-4…0.02, scaled-linear 0.00085…0.012, cosine with betas capped at 0.999.

        Diffusers' names ``scaled_linear`` and ``squaredcos_cap_v2`` are understood too.
        """
        kind = _SPELLINGS.get(kind, kind)
        if steps < 1:
            raise ConfigError(f"a table needs at least one step, got {steps}")
        if kind == "linear":
            betas = np.linspace(1e-4 if start is None else start, 0.02 if end is None else end, steps)
        elif kind == "scaled-linear":
            low, high = 0.00085 if start is None else start, 0.012 if end is None else end
            betas = np.linspace(math.sqrt(low), math.sqrt(high), steps) ** 2
        elif kind == "cosine":
            nodes = [2.0 * Cosine().log_alpha(k / steps) for k in range(steps + 1)]
            betas = np.minimum(-np.expm1(np.diff(nodes)), 0.999)
        else:
            raise ConfigError(f"unknown beta schedule {kind!r}: choose linear, scaled-linear or cosine")
        return cls.from_betas(betas.tolist())

    @property
    def t_range(self) -> tuple[float, float]:
        """(0, end of the schedule)."""
        return self.schedule.t_range

    @property
    def t_min(self) -> float:
        """The schedule's least noisy trained time."""
        return self.schedule.t_min

    def timestep_of(self, t: T) -> T:
        """1000·t for a continuous schedule, the table's index otherwise."""
        return self.schedule.timestep_of(t)

    def alpha(self, t: T) -> T:
        """exp of the schedule's log α."""
        return scalars.exp(self.schedule.log_alpha(t))

    def sigma(self, t: T) -> T:
        """√(1 − α²), through expm1 so that small t keeps its digits."""
        return scalars.sqrt(0.0 - scalars.expm1(2.0 * self.schedule.log_alpha(t)))  # 0 − 0: no negative zero

    def log_snr(self, t: T) -> T:
        """2·log α − log(1 − α²)."""
        log_alpha = self.schedule.log_alpha(t)
        return 2.0 * log_alpha - scalars.log(-scalars.expm1(2.0 * log_alpha))

    def time_of(self, log_snr: T) -> T:
        """α² is the logistic function of the log-SNR."""
        return self.schedule.time_of(-0.5 * scalars.softplus(-log_snr))

    def rates(self, t: T) -> tuple[T, T]:
        """α' = α·(log α)' and σ' = −α·α'/σ; where α = 0 the limits from below, a finite α' and 0."""
        alpha = self.alpha(t)
        slope = self._alpha_rate(t, alpha)
        return slope, scalars.divide(-alpha * slope, self.sigma(t))

    def _alpha_rate(self, t: T, alpha: T) -> T:
        """α', without 0·∞ in the last stretch of a table that ends in noise, where α itself is linear."""
        usual = alpha * self.schedule.rate(t)
        linear = self.schedule.last_stretch() if isinstance(self.schedule, Table) else None
        if linear is None:
            return usual
        start, slope = linear
        if isinstance(t, Tensor):
            return torch.where(t > start, slope, usual)  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType]
        return slope if t > start else usual  # pyright: ignore[reportReturnType]

    def from_velocity(self, x: Tensor, velocity: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """x_0 = α·x + (σ²/α')·v and z = σ·x − (ασ/α')·v: regular at both ends, because α' is not 0 at either."""
        x, velocity = widened(x), widened(velocity)
        alpha, sigma = self.alpha(t), self.sigma(t)
        part = sigma / self._alpha_rate(t, alpha)
        clean = expand(alpha, x) * x + expand(sigma * part, x) * velocity
        return clean, expand(sigma, x) * x - expand(alpha * part, x) * velocity

    def prior(self, noise: NoiseSource, shape: Sequence[int], t: float | None = None) -> Tensor:
        """Unit normal at every time: data of unit variance keeps the variance of the state."""
        del t
        return noise.normal("prior", shape)
