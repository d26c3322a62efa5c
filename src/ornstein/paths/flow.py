"""Rectified flow (Liu et al. 2023; Lipman et al. 2023), with time growing towards noise."""

from __future__ import annotations

from dataclasses import dataclass

from .. import scalars
from ..errors import ConfigError
from ..scalars import T
from ..typed import typed
from .base import AffinePath


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(AffinePath):
    """x_t = (1 − t)·x_0 + t·z, t in [0, 1]; the velocity is z − x_0 and networks are fed 1000·t."""

    t_min: float = 1e-3  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        if not 0.0 < self.t_min < 1.0:
            raise ConfigError(f"the floor of a Flow lies inside (0, 1), got {self.t_min}")

    @property
    def t_range(self) -> tuple[float, float]:
        """(0, 1)."""
        return 0.0, 1.0

    def timestep_of(self, t: T) -> T:
        """1000·t."""
        return 1000.0 * t

    def alpha(self, t: T) -> T:
        """1 − t."""
        return 1.0 - t

    def sigma(self, t: T) -> T:
        """t."""
        return t

    def time_of(self, log_snr: T) -> T:
        """1 / (1 + exp(log_snr/2))."""
        return scalars.sigmoid(-0.5 * log_snr)

    def rates(self, t: T) -> tuple[T, T]:
        """(−1, 1)."""
        return t * 0.0 - 1.0, t * 0.0 + 1.0
