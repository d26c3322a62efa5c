"""What `ornstein.reproduce.cas_dm` measures: one arm of the comparison, trained, sampled and compared with the data.

All arms get the same computing, counted in floating-point operations of a training step, and all are sampled with the
clean estimate clipped to the range of images: the cascade clips its own, and a noise-predicting network whose
estimate is not clipped starts from noise divided by a tiny α, whatever it has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...cascade import Cascade
from ...denoisers import Denoiser
from ...guidance import Threshold
from ...metrics.perceptual import lpips
from ...models.spec import ModelSpec
from ...networks import UNetConfig
from ...objectives import CascadeLoss, Denoising, Losses, Objective, TrainBatch
from ...randomness import Noise
from ...training import Every, Optimizer, TrainConfig, train
from ...training.cas_dm import CascadeConfig

ARMS = ("ddpm", "ddpm-large", "ddpm-metric", "cas-dm", "cas-dm-metric", "clean")
STEPS = (5, 10, 50)
DATA, BATCH, SAMPLE_SEED = "critters", 32, 7
METRIC = "lite0"

SMALL = UNetConfig(width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,), head_width=32, patch=2)
LARGE = replace(SMALL, blocks=3)  # as many parameters as both networks of the cascade, within one per cent


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLoss:
    """The denoising loss plus λ times the metric of the clean image that the noise implies, in one network."""

    denoising: Denoising
    metric: Callable[[Tensor, Tensor], Tensor]
    weight: float = 1.0

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """Terms ``denoising`` and ``metric``."""
        del progress
        noisy = self.denoising.make_noisy_batch(model.path, batch, noise)
        raw = model.raw(noisy.x, noisy.t, noisy.cond)
        implied = Cascade(front=model.parameterization).start(
            model.parameterization.to_estimate(model.path, noisy.x, noisy.t, raw.float())
        )
        terms = {
            "denoising": self.denoising.error(model.parameterization, model.path, noisy, raw),
            "metric": self.weight * self.metric(implied, noisy.clean),
        }
        return Losses(terms=terms, times=noisy.t)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricConfig(TrainConfig):
    """A plain denoiser with the metric added to its loss."""

    kind: ClassVar[str] = "metricconfig"

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """See `MetricLoss`."""
        del spec, averages
        return MetricLoss(denoising=self.objective, metric=lpips(METRIC).to(device))


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images shrunk to 8 × 8 pixels as `ornstein.metrics.Features`: 192 numbers that know nothing of any network."""

    name: str = "pixels8"
    width: int = 192

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, 192)."""
        return nn.functional.adaptive_avg_pool2d(images.float() / 255.0, 8).flatten(1)


def configuration(arm: str, out: Path, seed: int, images: int, size: int) -> TrainConfig:
    """The training of one arm; all see the same images, times and noise of the seed."""
    shared: dict[str, Any] = {
        "data": DATA,
        "out": str(out),
        "size": size,
        "images": images,
        "batch": BATCH,
        "seed": seed,
        "path": "vp-table",
        "predicts": "clean" if arm == "clean" else "noise",
        "network": LARGE if arm == "ddpm-large" else SMALL,
        "optimizer": Optimizer(lr=1e-3, warmup=min(2048, images // 4)),
        "every": Every(log=max(images // 4, 1), checkpoint=10**9, seconds=120, samples=0),
        "keep": 1,
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
    }
    if arm == "ddpm-metric":
        return MetricConfig(**shared)
    if arm in {"cas-dm", "cas-dm-metric"}:
        metric = METRIC if arm == "cas-dm-metric" else "none"
        return CascadeConfig(**shared, objective=CascadeLoss(metric=metric, gate="clean"))
    return TrainConfig(**shared)


def operations(arm: str, size: int) -> float:
    """Floating-point operations of one image in a step of training, forward and backward, the metric's included."""
    from torch.utils.flop_counter import FlopCounterMode

    from ...data import open_source

    rows = (0, 1)
    config = configuration(arm, Path("unused"), 0, 512, size)
    spec = config.specify(open_source(DATA, size=size, limit=2))
    model, objective = spec.build(0), config.make_objective(spec, torch.device("cpu"), {})
    batch = TrainBatch(clean=torch.zeros(2, *spec.shape), cond={}, positions=rows)
    with FlopCounterMode(display=False) as counter:
        objective(spec.denoiser(model), batch, Noise.of(0, rows), 0.5).total.backward()
    return counter.get_total_flops() / len(rows)


def seen(arm: str, images: int, size: int) -> int:
    """How many images an arm is trained on for the computing of the plain denoiser on ``images``, in whole batches."""
    share = operations(ARMS[0], size) / operations(arm, size)
    return max(round(images * share / BATCH), 1) * BATCH


def trained(*, arm: str, seed: int, images: int, samples: int, size: int, files: Path) -> Mapping[str, Any]:
    """Train an arm and measure it: ``{"parameters", "seconds", "images", "at": {steps: {metric: value}}}``."""
    from ... import sampling
    from ...data import open_source, save_grid, to_uint8
    from ...metrics import features, measure, statistics
    from ...runs import open_run

    out, count = files / f"{arm}-{seed}-{images}-{size}", seen(arm, images, size)
    summary = train(configuration(arm, out, seed, count, size), quiet=True)
    model = Threshold(quantile=None)(open_run(out).denoiser)
    data = open_source(DATA, size=size, limit=4096)
    lite0, pixels = features("lite0"), Pixels()
    keep = ("spatial", "classes")
    reference = statistics((data[i].image for i in range(samples)), lite0, keep=keep)
    flat = statistics((data[i].image for i in range(samples)), pixels)
    at: dict[str, Any] = {}
    for steps in STEPS:
        drawn = sampling.sample(model, samples, sampler="ddim", steps=steps, seed=SAMPLE_SEED, batch=50)
        save_grid(drawn[:32], files / f"{out.name}-{steps}.png", 8)
        ours = statistics(to_uint8(drawn), lite0, keep=keep)
        numbers = dict(measure(ours, reference, ("fd", "sfd", "is", "kid")).numbers)
        at[str(steps)] = numbers | dict(measure(statistics(to_uint8(drawn), pixels), flat, ("fd",)).numbers)
    return {
        "parameters": summary.parameters,
        "seconds": summary.seconds,
        "images": count,
        "loss": summary.loss,
        "at": at,
    }
