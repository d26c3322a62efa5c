"""The losses of a cascade: the front learns to denoise, the back to refine, the gate to choose, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import scalars
from ..cascade import Cascade, Heads
from ..denoisers import Denoiser
from ..errors import ConfigError, PathError, UsageError
from ..paths.base import AffinePath, Path
from ..paths.vp import VP, Table
from ..randomness import Noise
from ..scalars import Time
from ..typed import typed
from .base import Losses, TrainBatch
from .denoising import Denoising

Metric = Callable[[Tensor, Tensor], Tensor]
GateSpace = Literal["posterior", "clean"]
MetricSchedule = Literal["none", "signal"]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeLoss(Denoising):
    """The loss of `Denoising` for the front, the squared error of the refined image, the gate's loss and a metric.

    With x̂* the front's clean image (stopped, clipped), x' the refined one and x̄ = r·x' + (1 − r)·x̂*:

        L = L_front + |x_0 − x'|² + k(t)²·|x_0 − x̄|² + λ·M(x', x_0)

    all of them means over pixels. The third trains the gate r alone: x' is stopped in it as well. k(t) is the
    coefficient of x_0 in the mean of the posterior of one step of training, or 1.
    """

    kind: ClassVar[str] = "cascadeloss"
    renamed: ClassVar[Mapping[str, str]] = {"fade": "metric_schedule"}

    metric: str = "lite0"
    """The perceptual metric of refined images: none, lite0, vgg, alex, squeeze, or the path of LPIPS weights."""
    metric_weight: float = 1.0
    """Its weight λ."""
    metric_schedule: MetricSchedule = "none"
    """Weight of the metric over noise levels: none, or signal, α²/(α² + σ²), for an image that noise hides has no
    details to compare."""
    gate: GateSpace = "posterior"
    """Where the gate's error is measured: posterior, the mean of one step, as published, which nearly ignores high
    noise; or clean, the image itself."""

    def __post_init__(self) -> None:
        Denoising.__post_init__(self)
        if not 0.0 <= self.metric_weight < float("inf"):
            raise ConfigError(f"objective.metric_weight must not be negative, got {self.metric_weight}")
        if not self.metric:
            raise ConfigError("objective.metric is empty: name a perceptual metric, or none")

    def with_metric(self, device: torch.device | str = "cpu") -> Cascading:
        """The objective with its metric loaded."""
        if self.metric == "none" or self.metric_weight == 0.0:
            return Cascading(loss=self)
        from ..metrics.perceptual import lpips

        distance = lpips(self.metric).to(device)
        return Cascading(loss=self, metrics={"metric": (self.metric_weight, distance)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascading:
    """The objective of `ornstein.cascade.Cascade` denoisers: see `CascadeLoss` for its formula.

    ``metrics`` are named (weight, metric), a metric mapping two batches of images in [−1, 1] to distances (B,): see
    `ornstein.metrics.perceptual`. Terms: ``denoising`` (left out when the front is frozen), ``clean``, ``gate`` and one
    a metric; ``gate_mean`` is watched, the mean of r.

    Who learns from what: the front from ``denoising`` alone; the back's image from ``clean`` and the metrics; the gate,
    and with it the layers that it shares with the image, from ``gate``.

    Raises `UsageError` for a denoiser that is no cascade, `PathError` for a path without α and σ where they are needed.
    """

    loss: CascadeLoss = field(default_factory=CascadeLoss)
    metrics: Mapping[str, tuple[float, Metric]] = field(default_factory=dict)

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """The losses of one batch."""
        del progress
        reading, path, loss = model.parameterization, model.path, self.loss
        if not isinstance(reading, Cascade):
            raise UsageError(f"the objective of a cascade needs one, and this denoiser reads {type(reading).__name__}")
        noisy = loss.make_noisy_batch(path, batch, noise)
        net = model.bound(noisy.x, noisy.t, noisy.cond)
        raw = net(reading.precondition(path, noisy.x, noisy.t), stage="front")
        # Here the gradient stops: nothing that follows reaches the front.
        front = reading.front.to_estimate(path, noisy.x, noisy.t, raw.detach().float())
        start = reading.start(front)
        answer = net(reading.hint(start, path, noisy.x, noisy.t), stage="back").float()
        heads = reading.heads(front, start, answer)
        terms: dict[str, Tensor] = {}
        if raw.requires_grad or not torch.is_grad_enabled():
            terms["denoising"] = loss.error(reading.front, path, noisy, _prediction(raw, noisy.x))
        terms["clean"] = _mean_square(heads.back - noisy.clean)
        terms["gate"] = self.gate(heads, path, noisy.clean, noisy.t)
        for name, (weight, metric) in self.metrics.items():
            distance = weight * metric(heads.back, noisy.clean)
            terms[name] = distance * scheduled(loss.metric_schedule, path, noisy.t).to(distance)
        return Losses(terms=terms, times=noisy.t, watched={"gate_mean": heads.gate.flatten(1).mean(1)})

    def gate(self, heads: Heads, path: Path, clean: Tensor, t: Tensor) -> Tensor:
        """k(t)²·mean((x_0 − x̄)²), (B,), with both images stopped; k = 1 in clean space."""
        blend = heads._replace(back=heads.back.detach(), start=heads.start.detach()).blend()
        error = _mean_square(blend - clean)
        return error if self.loss.gate == "clean" else error * torch.as_tensor(posterior_weight(path, t)).to(error) ** 2


def posterior_weight(path: Path, t: Time, steps: int | None = None) -> Time:
    """k(t), the coefficient of x_0 in the mean of x_s given x_t and x_0, for s one of ``steps`` equal steps below t.

    k = α_s·(1 − SNR_t/SNR_s); √ᾱ_{t−1}·β_t/(1 − ᾱ_t) on a table of betas, whose length is the default of ``steps``
    (elsewhere 1000). k = 1 on the last step, the one to the clean image.
    """
    if not isinstance(path, AffinePath):
        raise PathError(
            f"the gate's loss in posterior space needs an AffinePath, got {type(path).__name__}: use 'clean'"
        )
    if steps is None:
        steps = len(path.schedule.betas) if isinstance(path, VP) and isinstance(path.schedule, Table) else 1000
    low, high = path.t_range
    s = t - (high - low) / steps
    last = s < path.t_min * (1.0 - 1e-6)
    if isinstance(s, Tensor):
        inner = torch.where(torch.as_tensor(last), torch.full_like(s, path.t_min), s)
        k = -path.alpha(inner) * torch.expm1(path.log_snr(t) - path.log_snr(inner))
        return torch.where(torch.as_tensor(last), torch.full_like(k, path.alpha(low)), k)
    if last:
        return path.alpha(low)
    return -path.alpha(s) * scalars.expm1(path.log_snr(t) - path.log_snr(s))


def scheduled(name: MetricSchedule, path: Path, t: Tensor) -> Tensor:
    """The metric's weight at the times t (B,)."""
    if name == "none":
        return torch.ones_like(t)
    if not isinstance(path, AffinePath):
        raise PathError(f"metric_schedule {name!r} needs an AffinePath, got {type(path).__name__}: use 'none'")
    alpha, sigma = path.alpha(t), path.sigma(t)
    return alpha**2 / (alpha**2 + sigma**2)


def _mean_square(error: Tensor) -> Tensor:
    return error.float().square().flatten(1).mean(1)


def _prediction(raw: Tensor, x: Tensor) -> Tensor:
    """Without the half of a learned variance, which no loss here trains."""
    return raw[:, : x.shape[1]]
