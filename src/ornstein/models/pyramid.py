"""Models on a pyramid (UDPM): what one is, apart from its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..denoisers import Denoiser
from ..parameterizations import LevelBelow, Net
from ..paths import PyramidPath
from .spec import DenoiserSpec

Below = Literal["level-below"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UDPMSpec(DenoiserSpec):
    """A model of a pyramid, ``path``, without its weights; the other fields are those of `LevelBelow`.

    The network's output has 3·f² channels, f being the largest factor of a level.
    """

    kind: ClassVar[str] = "udpmspec"

    path: PyramidPath = field(default_factory=PyramidPath)  # pyright: ignore[reportIncompatibleVariableOverride]
    predicts: Below = "level-below"  # pyright: ignore[reportIncompatibleVariableOverride]
    scaled: bool = True
    precondition: bool = True

    @property
    def parameterization(self) -> LevelBelow:
        """The parameterization."""
        return LevelBelow(scaled=self.scaled, preconditioned=self.precondition, sigma_data=self.sigma_data)

    def denoiser(self, net: Net) -> Denoiser:
        """``net`` as a denoiser of the pyramid."""
        return Denoiser(net, self.path, self.parameterization, shape=self.shape)
