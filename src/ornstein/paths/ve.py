"""The variance-exploding path in EDM's coordinates (Karras et al. 2022): time is the noise level itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .. import scalars
from ..errors import ConfigError
from ..scalars import T, Time
from ..typed import typed
from .base import AffinePath


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class VE(AffinePath):
    """x_t = x_0 + t·z, t in [0, sigma_max]; networks work from ``sigma_min`` up; their time input is log(σ)/4."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def t_range(self) -> tuple[float, float]:
        """(0, sigma_max)."""
        return 0.0, self.sigma_max

    @property
    def t_min(self) -> float:
        """sigma_min."""
        return self.sigma_min

    def timestep_of(self, t: T) -> T:
        """log(σ)/4."""
        return 0.25 * scalars.log(t)

    def alpha(self, t: T) -> T:
        """1."""
        return t * 0.0 + 1.0

    def sigma(self, t: T) -> T:
        """t."""
        return t

    def log_snr(self, t: T) -> T:
        """−2·log σ."""
        return -2.0 * scalars.log(t)

    def time_of(self, log_snr: T) -> T:
        """exp(−log_snr/2)."""
        return scalars.exp(-0.5 * log_snr)

    def rates(self, t: T) -> tuple[T, T]:
        """(0, 1)."""
        return t * 0.0, t * 0.0 + 1.0

    def mean(self, clean: Tensor, t: Time) -> Tensor:
        """x_0, untouched."""
        del t
        return clean
