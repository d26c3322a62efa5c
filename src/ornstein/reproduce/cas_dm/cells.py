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
from ...storage.files import digest
from ...training import Optimizer, TrainConfig
from ...training.cas_dm import CascadeConfig
from .. import arms
from ..arms import KID, SAMPLE_SEED, SMALL, Pixels, run_options
from ..tuning import Candidates, Choice

ARMS = ("ddpm", "ddpm-large", "ddpm-metric", "cas-dm", "cas-dm-metric", "clean")
STEPS = (5, 10, 50)
DATA, BATCH = "critters", 32
METRIC = "lite0"
_KEPT = ("spatial", "classes")

TRIED_STEPS = 10
"""Steps of DDIM by which an arm is tuned, and its convergence tested."""
CANDIDATES: Candidates = dict.fromkeys(ARMS, tuple({"lr": lr} for lr in (1e-3, 3e-4, 3e-3)))

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


def configuration(arm: str, out: Path, seed: int, images: int, size: int, choice: Choice | None = None) -> TrainConfig:
    """The training of one arm, with the first of its candidates unless another is chosen; all see the same images,
    times and noise of the seed.
    """
    lr = (CANDIDATES[arm][0] if choice is None else choice)["lr"]
    shared = run_options(data=DATA, out=out, size=size, images=images, batch=BATCH, seed=seed, logs=4) | {
        "path": "vp-table",
        "predicts": "clean" if arm == "clean" else "noise",
        "network": LARGE if arm == "ddpm-large" else SMALL,
        "optimizer": Optimizer(lr=lr, warmup=min(2048, images // 4)),
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


def tried(*, arm: str, seed: int, choice: Choice, images: int, samples: int, size: int, files: Path) -> float | None:
    """The kernel distance of a candidate's training at `TRIED_STEPS`; None if it diverged."""
    from ...errors import NotFiniteError
    from ...training import DivergedError

    out = files / f"{_name(arm, seed, images, size, choice)}-tried"
    try:
        arms.train_arm(configuration(arm, out, seed, seen(arm, images, size), size, choice))
        return _Measured(samples, size).numbers(out, TRIED_STEPS)[KID]
    except (DivergedError, NotFiniteError):
        return None


def trained(
    *, arm: str, seed: int, choice: Choice, images: int, samples: int, size: int, files: Path
) -> Mapping[str, Any]:
    """Train an arm and measure it: ``{"parameters", "seconds", "images", "loss", "at": {steps: {metric: value}},
    "early": kernel distance after two thirds at `TRIED_STEPS`, or None}``.
    """
    out, count = files / _name(arm, seed, images, size, choice), seen(arm, images, size)
    summary, kept = arms.train_arm(configuration(arm, out, seed, count, size, choice))
    measured = _Measured(samples, size)
    return {
        "parameters": summary.parameters,
        "seconds": summary.seconds,
        "images": count,
        "loss": summary.loss,
        "at": {str(steps): measured.numbers(out, steps, files / f"{out.name}-{steps}.png") for steps in STEPS},
        "early": None if kept is None else measured.numbers(kept, TRIED_STEPS)[KID],
    }


def _name(arm: str, seed: int, images: int, size: int, choice: Choice) -> str:
    return f"{arm}-{seed}-{images}-{size}-{digest(sorted(choice.items()))[:6]}"


class _Measured:
    """Samples of a run against as many pictures of the data."""

    def __init__(self, samples: int, size: int) -> None:
        from ...data import open_source
        from ...metrics import features, statistics

        self.samples, self.lite0, self.pixels = samples, features("lite0"), Pixels()
        data = open_source(DATA, size=size, limit=4096)
        self.reference = statistics((data[i].image for i in range(samples)), self.lite0, keep=_KEPT)
        self.flat = statistics((data[i].image for i in range(samples)), self.pixels)

    def numbers(self, where: Path, steps: int, grid: Path | None = None) -> dict[str, Any]:
        """The numbers of this many steps of DDIM of a run or checkpoint; its first samples go to the file ``grid``."""
        from ... import sampling
        from ...data import save_grid, to_uint8
        from ...metrics import measure, statistics
        from ...runs import open_run

        model = Threshold(quantile=None)(open_run(where).denoiser)
        drawn = sampling.sample(model, self.samples, sampler="ddim", steps=steps, seed=SAMPLE_SEED, batch=50)
        if grid is not None:
            save_grid(drawn[:32], grid, 8)
        ours = statistics(to_uint8(drawn), self.lite0, keep=_KEPT)
        found = dict(measure(ours, self.reference, ("fd", "sfd", "is", "kid")).numbers)
        return found | dict(measure(statistics(to_uint8(drawn), self.pixels), self.flat, ("fd",)).numbers)
