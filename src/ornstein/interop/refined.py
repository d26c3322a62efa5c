"""SDXL's base and its refiner as one model: the refiner takes over for the last 200 of 1,000 noise levels.

    model = with_refiner(orn.load("base.safetensors"), orn.load("refiner.safetensors"))
    images = orn.sample(model, 1, steps=40, cond=model.cond(["a red fox"]))

Podell et al. 2023, sec. 2.5: the refiner is trained on those levels alone. The latent is handed over with its noise, at
a noise level and not at a share of the steps: `ornstein.Relay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import DenoiserInfo
from ..errors import UsageError
from ..estimates import Estimate
from ..grids import Grid, affine
from ..paths.base import Cond
from ..relay import Relay, join_conditions
from ..scalars import Time
from .diffusers import DiffusersModel, EmptyCondition
from .opened import Condition, OpenedModel

TRAINED = 0.2
"""The time of the last of the refiner's 200 of 1,000 levels, on the path of a table."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RefinedModel(OpenedModel):
    """A base and its refiner, opened: made by `with_refiner`. ``denoiser`` is the base's alone.

    ``cond`` and ``null`` hold what both take, ``first.…`` of the base and ``second.…`` of the refiner.
    """

    refiner: DiffusersModel
    base: DiffusersModel
    below: float

    @property
    def relay(self) -> Relay:
        """Both denoisers and the level between them."""
        return Relay(self.base.denoiser, self.refiner.denoiser, below=self.below)

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.base.name} with {self.refiner.name}"

    @property
    def condition(self) -> Condition:
        """Captions."""
        return "text"

    @property
    def info(self) -> DenoiserInfo:
        """What both know."""
        return self.relay.info

    @property
    def parameters(self) -> int:
        """Weights of both networks."""
        return self.base.parameters + self.refiner.parameters

    def grid(self, steps: int | None = None) -> Grid:
        """The times that the base's scheduler would use."""
        return self.base.grid(steps)

    def sized(self, height: int, width: int) -> RefinedModel:
        """The same for pictures of another size, in pixels."""
        return with_refiner(self.base.sized(height, width), self.refiner, below=self.below)

    def cond(
        self,
        captions: Sequence[str] | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target: tuple[int, int] | None = None,
        score: float = 6.0,
        second: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """The condition of both: see `DiffusersModel.cond`. The refiner reads the captions of the second encoder."""
        base = self.base.cond(captions, labels=labels, original=original, crop=crop, target=target, second=second)
        own = captions if second is None else second
        return join_conditions(base, self.refiner.cond(own, original=original, crop=crop, score=score))

    def null(
        self,
        rows: int = 1,
        *,
        negative: str | None = None,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        target: tuple[int, int] | None = None,
        score: float = 2.5,
        second: str | None = None,
    ) -> dict[str, Tensor]:
        """The empty condition of both: see `DiffusersModel.null`."""
        base = self.base.null(rows, negative=negative, original=original, crop=crop, target=target, second=second)
        own = negative if second is None else second
        refiner = self.refiner.null(rows, negative=own, original=original, crop=crop, score=score)
        out = EmptyCondition(join_conditions(base, refiner))
        out.shared = tuple(
            f"{side}.{name}"
            for side, null in (("first", base), ("second", refiner))
            if isinstance(null, EmptyCondition)
            for name in null.shared
        )
        return out

    def with_condition(self, cond: Cond) -> Any:
        """Both under their part of the condition."""
        return self.relay.with_condition(cond)

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate of the one whose turn it is."""
        return self.relay(x, t)

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """Estimates of one state under several conditions."""
        return self.relay.predict_conditions(x, t, conds)

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """Estimates of states at different times, by the one whose turn it is."""
        return [self.relay(part, t) for part, t in zip(x, times, strict=True)]


def with_refiner(base: Any, refiner: Any, *, below: float | None = None) -> RefinedModel:
    """A base of SDXL with its refiner.

    Args:
        base: as `ornstein.load` returns it.
        refiner: likewise; its pictures get the size of the base's.
        below: the log-SNR from which the refiner works, by default that of the last level that it was trained on, time
            199 of 1,000 (log-SNR 1.13).

    Raises:
        UsageError: two models of which one is no refiner, or whose latents or noise levels differ.
    """
    for model, wanted in ((base, 6), (refiner, 5)):
        kind = "refiner" if wanted == 5 else "base"
        if not isinstance(model, DiffusersModel) or model.kind != "text-xl":
            raise UsageError(f"{getattr(model, 'name', model)} is no model of SDXL: give its {kind}")
        if model.sizes != wanted:
            raise UsageError(
                f"{model.name} takes {model.sizes} sizes, and SDXL's {kind} takes {wanted}: give the {kind}"
            )
    mine, theirs = base.denoiser.codec, refiner.denoiser.codec
    scales = [getattr(one, "normalisation", None) for one in (mine, theirs)]
    same = mine.channels == theirs.channels and mine.factor == theirs.factor
    if not same or any(
        not torch.equal(getattr(scales[0], part), getattr(scales[1], part)) for part in ("shift", "scale")
    ):
        raise UsageError(f"{base.name} and {refiner.name} have other latents: a refiner needs those of its base")
    level = affine(base.path).log_snr(TRAINED) if below is None else below
    refiner = refiner.sized(*base.picture[1:])
    return RefinedModel(
        denoiser=base.denoiser,
        base=base,
        refiner=refiner,
        below=level,
        folder=base.folder,
        weights=base.weights,
        details=dict(base.details) | {"refiner": refiner.name, "below": level},
    )


def resized(model: OpenedModel, height: int, width: int) -> OpenedModel:
    """A model that makes pictures of another size, in pixels; `UsageError` for one of a fixed size."""
    if isinstance(model, DiffusersModel | RefinedModel):
        return model.sized(height, width)
    own = " × ".join(str(side) for side in model.picture[1:])
    raise UsageError(f"{model.name} makes pictures of {own} pixels and no others: leave the size out")


__all__ = ["TRAINED", "RefinedModel", "resized", "with_refiner"]
