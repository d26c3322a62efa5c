"""Cas-DM: a cascade of two networks as a method of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch

from ..cascade import GateShape, Squash
from ..denoisers import Denoiser
from ..errors import ConfigError
from ..interop.diffusers import is_pipeline
from ..interop.fronts import PipelineFront, open_front
from ..models.cascade import CascadeSpec
from ..models.spec import Conditioned, DenoiserSpec, ModelSpec, Prediction
from ..networks import NetworkChoice
from ..objectives import CascadeLoss, Objective
from ..options import Choice, Layout, Positive
from ..typed import typed
from .conditions import require_known
from .config import Condition, TrainConfig, require_fit

if TYPE_CHECKING:
    from ..data.base import Source


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeConfig(TrainConfig):
    """Train a cascade of two networks: a denoiser, and a refiner of its clean images with a perceptual metric.

    Example: ornstein train cas-dm --data critters --out runs/cascade --images 500000 --objective.metric lite0

    With --front RUN the first network is that run's, kept as it is, and only the refiner is trained: path, predicts,
    network and condition are then those of RUN, which may be a diffusers pipeline of pixels. The same command continues
    a run that was stopped.
    """

    kind: ClassVar[str] = "cascadeconfig"

    coarser: ClassVar[bool] = False
    layout: ClassVar[Layout] = {**TrainConfig.layout, "": (*TrainConfig.layout[""], "front")}

    takes_latents: ClassVar[bool] = False  # its metric compares pictures

    predicts: Prediction = "noise"
    """What the first network's output means; the second predicts the clean image."""
    front: str = ""
    """A run, checkpoint, card, shipped model or folder of a diffusers pipeline to be the first network, frozen; by
    default both are trained."""
    back: NetworkChoice | Annotated[None, Choice("same")] = None
    """The second network; by default like the first."""
    clip: Positive | None = 1.0
    """Bound of clean images between the stages and after them; none leaves them unbounded."""
    gate: GateShape = "map"
    """The weight of the refined image: a map, one for every pixel, or a scalar, one for the image."""
    squash: Squash = "sigmoid"
    """Range of the weight: sigmoid keeps it in (0, 1), none lets it extrapolate."""
    see_state: bool = False
    """Show the refiner the noisy image too."""
    residual: bool = False
    """Let the refiner predict the change of the image instead of the image."""
    objective: CascadeLoss = field(default_factory=CascadeLoss)
    """The losses."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.back is not None:
            require_fit(self.back, "back", self.size)

    def natural_condition(self, source: Source) -> Condition:
        """Labels, if the data has them; with a front, its conditions."""
        return "none" if self.front else TrainConfig.natural_condition(self, source)

    def specify(self, source: Source) -> CascadeSpec:
        """The first network as `TrainConfig` says, or as the run in ``front`` is; then the second.

        Raises `ConfigError` for a front of another image size, with other labels than the data, or a cascade itself.
        """
        front = self._pipeline() if self.front and is_pipeline(self.front) else None
        alone = self._front(source) if self.front and front is None else self.plain(source)
        if front is not None:
            alone = replace(alone, text=None, classes=())
        like = self.back or alone.network
        return CascadeSpec(
            shape=alone.shape,
            path=alone.path,
            predicts=alone.predicts,
            sigma_data=alone.sigma_data,
            network=alone.network,
            text=alone.text,
            classes=alone.classes,
            back=replace(
                like,
                channels=alone.shape[0] * (2 if self.see_state else 1),
                out_channels=alone.shape[0] + 1,
                classes=len(alone.classes),
                text_width=0 if alone.text is None else alone.text.width,
            ),
            pipeline=front,
            frozen=bool(self.front),
            clip=self.clip,
            gate=self.gate,
            squash=self.squash,
            see_state=self.see_state,
            residual=self.residual,
        )

    def _pipeline(self) -> PipelineFront:
        front, piped = open_front(self.front)
        if piped.picture != (3, self.size, self.size):
            side = piped.picture[-1]
            raise ConfigError(f"--front {self.front} makes images of {side} pixels: give --size {side}")
        if self.condition != "none":
            raise ConfigError(
                f"--condition {self.condition}: the pipeline {self.front} takes no condition: leave it out"
            )
        return front

    def _front(self, source: Source) -> DenoiserSpec:
        from ..runs import open_own

        spec = open_own(self.front).spec
        if not isinstance(spec, DenoiserSpec):
            raise ConfigError(f"--front {self.front} makes no pictures itself: give a run of ornstein train ddpm")
        if isinstance(spec, CascadeSpec):
            raise ConfigError(f"--front {self.front} is a cascade itself: give a run of ornstein train ddpm")
        if spec.shape[1:] != (self.size, self.size):
            raise ConfigError(
                f"--front {self.front} makes images of {spec.shape[-1]} pixels: give --size {spec.shape[-1]}"
            )
        require_known(spec, source, f"--front {self.front}")
        return spec

    def prepare(self, model: Conditioned) -> None:
        """The average weights of the run in ``front``, if there is one."""
        if not self.front:
            return
        if is_pipeline(self.front):
            net = open_front(self.front)[1].denoiser.net
            model.net.front.load_state_dict(net.state_dict())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
            return
        from ..runs import open_own

        given = open_own(self.front).model
        model.net.front.load_state_dict(given.net.state_dict())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        if model.text is not None and given.text is not None:
            model.text.load_state_dict(given.text.state_dict())

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The losses with their metric."""
        del spec, averages
        return self.objective.with_metric(device)
