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
from torch import Tensor

from ...cascade import Cascade
from ...denoisers import Denoiser
from ...guidance import Threshold
from ...metrics.perceptual import lpips
from ...models.spec import ModelSpec
from ...objectives import CascadeLoss, Denoising, Losses, Objective, TrainBatch
from ...randomness import Noise
from ...training import Optimizer, TrainConfig, train
from ...training.cas_dm import CascadeConfig
from .. import arms
from ..arms import SAMPLE_SEED, SMALL, Pixels, run_options

ARMS = ("ddpm", "ddpm-large", "ddpm-metric", "cas-dm", "cas-dm-metric", "clean")
STEPS = (5, 10, 50)
DATA, BATCH = "critters", 32
METRIC = "lite0"

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


def configuration(arm: str, out: Path, seed: int, images: int, size: int) -> TrainConfig:
    """The training of one arm; all see the same images, times and noise of the seed."""
    shared = run_options(data=DATA, out=out, size=size, images=images, batch=BATCH, seed=seed, logs=4) | {
        "path": "vp-table",
        "predicts": "clean" if arm == "clean" else "noise",
        "network": LARGE if arm == "ddpm-large" else SMALL,
        "optimizer": Optimizer(lr=1e-3, warmup=min(2048, images // 4)),
    }
    if arm == "ddpm-metric":
        return MetricConfig(**shared)
    if arm in {"cas-dm", "cas-dm-metric"}:
        metric = METRIC if arm == "cas-dm-metric" else "none"
        return CascadeConfig(**shared, objective=CascadeLoss(metric=metric, gate="clean"))
    return TrainConfig(**shared)


def operations(arm: str, size: int) -> float:
    """Floating-point operations of one image in a step of training, forward and backward, the metric's included."""
    from ...data import open_source

    config = configuration(arm, Path("unused"), 0, 512, size)
    return arms.operations(config, open_source(DATA, size=size, limit=2))


def seen(arm: str, images: int, size: int) -> int:
    """How many images an arm is trained on for the computing of the plain denoiser on ``images``, in whole batches."""
    share = operations(ARMS[0], size) / operations(arm, size)
    return arms.equal_images(images, share, BATCH)


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
