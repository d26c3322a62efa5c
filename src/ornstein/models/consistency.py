"""Consistency models: what one is, apart from its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .. import grids
from ..denoisers import Denoiser
from ..errors import CheckpointError, GridError
from ..parameterizations import EDM, Anchored, Consistency, Net, Parameterization
from ..paths import VE
from ..paths.base import Path
from ..scalars import Time, log
from .spec import DenoiserSpec

MIDDLE = 0.53
"""Level of the second evaluation unless it was searched for: σ_420 of 640 intervals, the best of the paper's."""


def log_level(path: Path, t: Time) -> Time:
    """250·log σ̄, the time number of the published networks; on every path with α and σ."""
    return 250.0 * log(grids.affine(path).sigma_bar(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencySpec(DenoiserSpec):
    """A consistency model without its weights.

    f(x, σ_min) = x. ``predicts`` edm is the published boundary form; of another prediction the output of the network is
    anchored (`ornstein.parameterizations.Anchored`). ``middle`` are the levels of further evaluations, in their order.
    ``time_input``: the number that the network gets as its time, "log" for 250·log σ̄ or "path" for `Path.timestep_of`.
    """

    kind: ClassVar[str] = "consistencyspec"
    renamed: ClassVar[Mapping[str, str]] = {"clock": "time_input"}

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    middle: tuple[float, ...] = (MIDDLE,)
    time_input: Literal["log", "path"] = "log"

    @property
    def parameterization(self) -> Parameterization:
        """The parameterization, with its boundary."""
        inner = DenoiserSpec.parameterization.fget(self)  # type: ignore[attr-defined]
        if isinstance(inner, EDM):
            return Consistency(sigma_data=self.sigma_data, sigma_min=self.sigma_min)
        return Anchored(inner=inner, sigma_min=self.sigma_min)

    def denoiser(self, net: Net) -> Denoiser:
        """``net`` as a denoiser whose own grid has one evaluation, or climbs to the middle levels for more."""
        alone = DenoiserSpec.denoiser(self, net)
        path = alone.path
        if isinstance(path, VE):
            path = VE(sigma_min=self.sigma_min or path.sigma_min, sigma_max=self.sigma_max)
        return replace(
            alone,
            path=path,
            predicts=self.parameterization,
            timestep_of=log_level if self.time_input == "log" else None,
            grid=self.grid,
        )

    def with_sampling_config(self, found: object) -> ConsistencySpec:
        """With the middle levels that `ornstein tune-steps` found; `CheckpointError` for a file that holds none."""
        levels = found.get("middle") if isinstance(found, dict) else None
        if not isinstance(levels, list) or not all(isinstance(x, float) and self.sigma_min < x for x in levels):
            raise CheckpointError("the run's sampling.json holds no middle levels: delete it, or search them again")
        return replace(self, middle=tuple(levels))

    def grid(self, evaluations: int | None) -> grids.Grid:
        """The climbing grid of this many evaluations; by default one and each middle level that is known.

        Where fewer levels are known than asked for, each further one is half of the one before. `GridError` for less
        than one evaluation.
        """
        count = 1 + len(self.middle) if evaluations is None else evaluations
        if count < 1:
            raise GridError(f"a consistency model needs at least one evaluation, got {count}")
        known = list(self.middle)
        while len(known) < count - 1:
            known.append(0.5 * (known[-1] if known else 2.0 * MIDDLE))
        return self.multistep(*known[: max(count - 1, 0)])

    def multistep(self, *levels: float) -> grids.Grid:
        """`ornstein.grids.multistep` from this model's noisiest level."""

        def rule(path: Path) -> tuple[float, ...]:
            base = grids.affine(path)
            start = base.t_range[1]
            if base.sigma_bar(start) > self.sigma_max * (1.0 + 1e-9):
                start = base.time_of(-2.0 * math.log(self.sigma_max))
            return grids.multistep(*levels, start=start)(path)

        return grids.Grid(f"multistep({', '.join(f'{level:g}' for level in levels)})", rule)
