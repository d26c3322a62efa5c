"""Cascades of two networks (Cas-DM): what one is, apart from its training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ..cascade import Cascade, GateShape, Squash
from ..denoisers import Denoiser
from ..interop.fronts import PipelineFront
from ..networks import DiTConfig, UNetConfig, build
from ..networks.stages import Stages
from ..parameterizations import Net
from ..randomness import mix
from .spec import Conditioned, DenoiserSpec

if TYPE_CHECKING:
    from torch import nn


NetworkConfig = UNetConfig | DiTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSpec(DenoiserSpec):
    """A cascade without its weights: the fields of `DenoiserSpec` are its front's, ``back`` is the second network.

    ``frozen``: the front was another run's, and is not trained. ``pipeline``: it is that of a diffusers pipeline, and
    ``path``, ``predicts`` and ``network`` mean nothing. The rest is `ornstein.cascade.Cascade`'s.
    """

    kind: ClassVar[str] = "cascadespec"

    back: UNetConfig | DiTConfig
    pipeline: PipelineFront | None = None
    frozen: bool = False
    clip: float | None = 1.0
    gate: GateShape = "map"
    squash: Squash = "sigmoid"
    see_state: bool = False
    residual: bool = False

    def build(self, seed: int = 0) -> Conditioned:
        """Both networks; the front has the weights that it has without a back."""
        alone = DenoiserSpec.build(self, seed) if self.pipeline is None else Conditioned(self.pipeline.build(), None)
        stages = Stages(alone.net, build(self.back, mix(seed, "back")))
        if self.frozen:
            stages.freeze()
            if alone.text is not None:
                alone.text.requires_grad_(False)
        return Conditioned(stages, alone.text)

    def denoiser(self, net: Net) -> Denoiser:
        """``net`` as a denoiser that blends its two stages."""
        alone = DenoiserSpec.denoiser(self, net) if self.pipeline is None else self.pipeline.denoiser(net, self.shape)
        reading = Cascade(
            front=alone.parameterization,
            clip=self.clip,
            gate=self.gate,
            squash=self.squash,
            see_state=self.see_state,
            residual=self.residual,
        )
        return replace(alone, predicts=reading)

    def parts(self, model: Conditioned) -> list[list[nn.Parameter]]:
        """Front (with the caption encoder) and back: a common limit would let the metric scale the front's steps."""
        back = {id(p) for p in model.net.back.parameters()}  # pyright: ignore[reportAttributeAccessIssue]
        weights = list(model.parameters())
        return [[p for p in weights if id(p) not in back], [p for p in weights if id(p) in back]]
