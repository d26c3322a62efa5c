"""Two networks in a row: the first denoises, the second refines its clean image, and a learned weight blends the two.

An et al. 2024, "Bring Metric Functions into Diffusion Models" (Cas-DM, arXiv 2401.02414); the blend and its loss are
those of its parent method, Benny & Wolf 2022 (arXiv 2203.04304). With x̂* the front's clean image and (x', g) the back's
answer to it,

    x̂_0 = r·x' + (1 − r)·x̂*,        r = sigmoid(g) at every pixel.

Blending clean images is blending posterior means, for those are affine in x_0: so the cascade is a parameterization
like any other, and every sampler runs on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .denoisers import Denoiser, Opened, denoiser_of
from .errors import ConfigError, UsageError
from .estimates import Estimate
from .networks.stages import Stages
from .parameterizations import Net, NoisePrediction, Parameterization, needs_signal
from .paths.base import Path
from .scalars import Time

GateShape = Literal["map", "scalar"]
Squash = Literal["sigmoid", "none"]


class Heads(NamedTuple):
    """The estimates of a cascade at (x, t), before they are blended; images (B, C, H, W)."""

    front: Estimate  # of the first network alone
    start: Tensor  # x̂*, its clean image as the back sees it: clipped
    back: Tensor  # x', the refined clean image
    gate: Tensor  # r, (B, 1, H, W) or (B, 1, 1, 1)

    def blend(self) -> Tensor:
        """r·x' + (1 − r)·x̂*."""
        return self.gate * self.back + (1.0 - self.gate) * self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """The parameterization of a `Stages` network; its raw output is [front | x' | g] along the channels.

    * ``front``: what the first network's output means; whatever it is, it stays what it was.
    * ``clip``: bound of clean images, of x̂* before the back sees it and of the blend; None leaves them as they are. At
      high noise x̂* = (x − σẑ)/α amplifies the network's error by σ/α, up to thousands.
    * ``gate``: ``map``, a weight for every pixel, or ``scalar``, one for the image, from the spatial mean of g.
    * ``squash``: r = sigmoid(g), or ``none``: r = g, which may leave [0, 1].
    * ``see_state``: the back is also fed the front's input (2·C channels), for the clip loses part of it.
    * ``residual``: the back predicts x' − x̂* instead of x'.
    * ``forced``: r is this number instead. 0 is the front alone and does not evaluate the back, bit for bit.

    The estimate's ``extras`` hold ``front`` (x̂*), ``back`` (x') and ``gate`` (r).
    """

    front: Parameterization = field(default_factory=NoisePrediction)
    clip: float | None = 1.0
    gate: GateShape = "map"
    squash: Squash = "sigmoid"
    see_state: bool = False
    residual: bool = False
    forced: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.front, Cascade):
            raise ConfigError("the front of a cascade is a cascade itself: give a plain denoiser")
        if self.clip is not None and not self.clip > 0.0:
            raise ConfigError(f"clip must be positive or None, got {self.clip}")

    @property
    def needs_signal(self) -> bool:
        """As the front."""
        return needs_signal(self.front)

    def precondition(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """The front's input."""
        return self.front.precondition(path, x, t)

    def ask(self, net: Net, path: Path, x: Tensor, t: Time) -> Tensor:
        """Front, then back; (B, 2·C + 1, H, W), or the front's output alone where r is forced to 0."""
        raw = net(self.precondition(path, x, t), stage="front")
        if self.forced == 0.0:
            return raw
        start = self.start(self.front.to_estimate(path, x, t, raw))
        answer = net(self.hint(start, path, x, t), stage="back")
        _require_gate(answer, start)
        return torch.cat((raw, answer), dim=1)

    def start(self, front: Estimate) -> Tensor:
        """x̂*: the front's clean image, clipped."""
        return self._clipped(front.clean)

    def hint(self, start: Tensor, path: Path, x: Tensor, t: Time) -> Tensor:
        """The back's input, (B, C, H, W), or (B, 2·C, H, W) with the state."""
        return torch.cat((start, self.precondition(path, x, t)), dim=1) if self.see_state else start

    def heads(self, front: Estimate, start: Tensor, answer: Tensor) -> Heads:
        """The output of the back (B, C + 1, H, W) beside the front's estimate."""
        _require_gate(answer, start)
        back, g = answer[:, :-1], answer[:, -1:]
        if self.gate == "scalar":
            g = g.flatten(1).mean(1).reshape(-1, *(1,) * (answer.ndim - 1))
        r = g if self.squash == "none" else torch.sigmoid(g)
        if self.forced is not None:
            r = torch.full_like(r, self.forced)
        return Heads(front, start, start + back if self.residual else back, r)

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """The blend; where r is forced to 0, the front's own estimate."""
        channels = x.shape[1]
        lone = self.forced == 0.0 and raw.shape[1] in (channels, 2 * channels)
        own = raw if lone else raw[:, : -(channels + 1)]
        front = self.front.to_estimate(path, x, t, own)
        if lone or self.forced == 0.0:
            return front
        heads = self.heads(front, self.start(front), raw[:, -(channels + 1) :])
        extras = {**front.extras, "front": heads.start, "back": heads.back, "gate": heads.gate}
        return Estimate(x, t, path, clean=self._clipped(heads.blend()), extras=extras)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """[the front's target | x_0 | 0]: every gate blends right images into the right one."""
        own = self.front.target(path, clean, noise, x, t)
        back = clean - self.start(self.front.to_estimate(path, x, t, own)) if self.residual else clean
        return torch.cat((own, back, torch.zeros_like(clean[:, :1])), dim=1)

    def _clipped(self, clean: Tensor) -> Tensor:
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)


def _require_gate(answer: Tensor, start: Tensor) -> None:
    if answer.shape[1] != start.shape[1] + 1:
        raise UsageError(
            f"the back of a cascade returns {answer.shape[1]} channels, not the {start.shape[1] + 1} of an image "
            "and a gate: set its out_channels"
        )


def cascaded(
    front: Denoiser | Opened,
    back: nn.Module,
    *,
    freeze: bool = True,
    back_conditions: Sequence[str] | None = None,
    clip: float | None = 1.0,
    gate: GateShape = "map",
    squash: Squash = "sigmoid",
    see_state: bool = False,
    residual: bool = False,
) -> Denoiser:
    """``front`` – any denoiser, whatever its network, path and parameterization – with a refiner behind it.

    ``back(hint, time, **cond)`` takes the front's clean image (B, C, H, W), twice the channels with ``see_state``, and
    returns C + 1 channels. ``freeze`` keeps the front's weights; ``back_conditions`` names the conditions that the
    back takes (all by default). The rest is `Cascade`'s. Train it with `ornstein.objectives.Cascading`.

    >>> import ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: 0 * x, orn.VP(), "noise", shape=(3, 8, 8))
    >>> refined = cascaded(model, nn.Module())
    >>> bool((orn.sample(forced(refined, 0.0), 2, steps=3) == orn.sample(model, 2, steps=3)).all())
    True
    """
    first = denoiser_of(front)
    if first is None:
        raise ConfigError(f"the front must be an ornstein.Denoiser, got {type(front).__name__}: put guidance around it")
    reading = Cascade(
        front=first.parameterization, clip=clip, gate=gate, squash=squash, see_state=see_state, residual=residual
    )
    stages = Stages(first.net, back, back_conditions=back_conditions)
    return replace(first, net=stages.freeze() if freeze else stages, predicts=reading)


def forced(model: Denoiser | Opened, gate: float | None) -> Denoiser:
    """The same cascade with its weight r forced to a number: 0 is the front alone, 1 the back alone; None learned.

    Raises `UsageError` for a denoiser that is no cascade.
    """
    inner = denoiser_of(model)
    reading = None if inner is None else inner.parameterization
    if inner is None or not isinstance(reading, Cascade):
        what = type(model if inner is None else reading).__name__
        raise UsageError(f"only a cascade has a gate, and this is a {what}: make one with ornstein.cascade.cascaded")
    return replace(inner, predicts=replace(reading, forced=gate))
