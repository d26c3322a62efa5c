"""What `ornstein.reproduce.udpm` measures: UDPM with and without its losses and a diffusion model, of equal computing.

The diffusion model has the body and the parameters of UDPM's network, and sees squares of two by two pixels as
channels, so that both work on the same positions. Computing is counted in floating-point operations of a step of
training: of the network, its discriminator, the gradient penalty and the metric.
"""

from __future__ import annotations

import statistics as numbers
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import grids
from ...data.base import Source
from ...denoisers import DenoiserLike
from ...errors import OrnsteinError
from ...interpolation import Between, Varied, level_key
from ...networks import UNetConfig, build
from ...networks.discriminator import DiscriminatorConfig
from ...objectives.pyramid import Pyramid, PyramidLoss
from ...training import Optimizer, TrainConfig
from ...training.udpm import UDPMConfig, small
from .. import arms
from ..arms import SAMPLE_SEED, Json, counted, run_options

FULL, FIT, PLAIN, DIFFUSION = "udpm", "udpm-fit", "udpm-plain", "diffusion"
ARMS = (FULL, FIT, PLAIN, DIFFUSION)
THREE = "three levels"
"""The one way of sampling a pyramid."""
STEPS = (3, 5, 10, 50)
FEW = STEPS[:3]
WAYS = (*(f"ddim {steps}" for steps in STEPS), *(f"ddim {steps}, equal times" for steps in FEW), "auto 3")
"""The ways of sampling the diffusion model: in equal steps of log-SNR, which serve details, and of time, as DDIM has
them, which serve the whole picture; and what this library would choose."""
DATA, BATCH = "critters", 32
SECONDS = 120.0
"""A checkpoint at least this often, from which a run that was killed goes on."""
LAZY = 4
LEVELS = (1, 2, 3)
_PENALTY = (0.025, 0.1, 0.4)  # as published for 32 pixels
_ROUNDS = 5


def network(width: int, patch: int = 1) -> UNetConfig:
    """The U-Net of all arms; a patch of 2 brings the full size to the positions of UDPM's finest level."""
    return replace(small(), width=width, patch=patch)


def objective(arm: str) -> PyramidLoss:
    """The losses of an arm of the pyramid: each leaves one more of the published ones out."""
    full = PyramidLoss(penalty=_PENALTY, r1_interval=LAZY)
    fit = replace(full, adversarial=(0.0,))
    return {FULL: full, FIT: fit, PLAIN: replace(fit, metric="none", distance="l2")}[arm]


def configuration(arm: str, out: Path, seed: int, images: int, size: int, width: int) -> TrainConfig:
    """The training of one arm."""
    warmup = min(4096, images // 4)
    shared = run_options(data=DATA, out=out, size=size, images=images, batch=BATCH, seed=seed, logs=8, seconds=SECONDS)
    if arm == DIFFUSION:
        flat = replace(network(width, 2), time_features="sinusoidal", time_scale=1.0)
        return TrainConfig(**shared, network=flat, optimizer=Optimizer(lr=1e-3, warmup=warmup))
    # A first moment spoils a GAN, and serves the arms without a discriminator as it does the diffusion model.
    plain, adversarial = Optimizer(warmup=warmup), Optimizer(lr=5e-4, betas=(0.0, 0.99), clip=0.0, warmup=warmup)
    return UDPMConfig(
        **shared,
        network=network(width),
        objective=objective(arm),
        discriminator=DiscriminatorConfig(width=max(8, 3 * width // 4), dropout=0.2),
        optimizer=adversarial if arm == FULL else plain,
        discriminator_optimizer=adversarial,
    )


@lru_cache(maxsize=64)
def operations(arm: str, size: int, width: int) -> float:
    """Floating-point operations of one image in a step of training, in the mean over levels and lazy penalties."""
    config = configuration(arm, Path("unused"), 0, 512, size, width)
    spec = config.specify(_data(size, 2))
    losses = config.make_objective(spec, torch.device("cpu"), {})
    model = spec.denoiser(spec.build(0))
    if not isinstance(losses, Pyramid):
        return counted(lambda batch, noise: losses(model, batch, noise, 0.5), spec.shape)
    total = 0.0
    for level, share in enumerate(losses.loss.frequencies(losses.path), 1):
        alone = replace(losses.loss, level_probabilities=tuple(float(other == level) for other in LEVELS))
        one = replace(losses, loss=alone)
        total += share * counted(lambda batch, noise, one=one: one(model, batch, noise, 0.5), spec.shape)
        if losses.discriminator is None:
            continue
        for lazy, part in ((1, 1.0 / LAZY), (10**12, 1.0 - 1.0 / LAZY)):  # steps with the penalty, and those without
            one = replace(losses, loss=replace(alone, r1_interval=lazy))
            both = counted(lambda batch, noise, one=one: one.discriminator_loss(model, batch, noise, 0.5), spec.shape)
            total += share * part * both
    return total


def seen(arm: str, images: int, size: int, width: int) -> int:
    """How many images an arm is trained on for the computing of UDPM on ``images``, in whole batches."""
    share = operations(FULL, size, width) / operations(arm, size, width)
    return arms.equal_images(images, share, BATCH)


def trained(*, arm: str, seed: int, images: int, samples: int, size: int, width: int, files: Path) -> Json:
    """Train an arm and measure it.

    ``{"parameters", "images", "operations", "seconds", "diverged": why or None, "at": {way of sampling: numbers},
    "levels": …, "middle": …}``; of an arm that diverged there are no samples.
    """
    from ...guidance import Threshold
    from ...runs import open_run
    from ...training import DivergedError, train

    count = seen(arm, images, size, width)
    out = files / f"{arm}-{seed}-{images}-{size}-{width}"
    result: dict[str, Any] = {
        "parameters": None,
        "images": count,
        "operations": operations(arm, size, width),
        "seconds": None,
        "diverged": None,
        "at": {},
        "levels": None,
        "middle": None,
    }
    try:
        summary = train(configuration(arm, out, seed, count, size, width), quiet=True)
    except DivergedError as error:  # a result like any other
        return result | {"diverged": str(error).replace(str(out), "the run")}
    model = Threshold(quantile=None)(open_run(out).denoiser) if arm == DIFFUSION else open_run(out).denoiser
    result |= {"parameters": summary.parameters, "seconds": summary.seconds}
    judge = Judge(size, samples, files)
    try:
        for way in WAYS if arm == DIFFUSION else (THREE,):
            result["at"][way] = judge(model, f"{out.name}-{way.replace(',', '').replace(' ', '-')}", **_how(way))
        if arm != DIFFUSION:
            result["levels"] = varied(model, samples, files / f"{out.name}-levels.png")
            result["middle"] = between(model, judge, files / f"{out.name}-between.png")
    except OrnsteinError as error:  # pictures that are no numbers
        return result | {"diverged": str(error), "at": {}, "levels": None, "middle": None}
    return result


def _how(way: str) -> Mapping[str, Any]:
    """The words of a way of sampling, as arguments of `ornstein.sample`, by which the stored cells were measured.

    Three evaluations of auto were DDIM in equal steps of log-SNR; today they are DDIM on `grids.few`.
    """
    if way == THREE:
        return {}
    _, count, *times = way.replace(",", "").split()
    return {"sampler": "ddim", "grid": (grids.uniform if times else grids.log_snr)(int(count))}


class Judge(arms.Judge):
    """Pictures against the data; samples that are not finite are an error."""

    def __init__(self, size: int, samples: int, files: Path) -> None:
        super().__init__(_data(size), samples, files)

    def __call__(self, model: DenoiserLike, name: str, **how: Any) -> Json:
        """The numbers of one way of sampling, always from the same noise."""
        found = super().__call__(model, name, **how)
        if found is None:
            raise OrnsteinError(f"{name}: samples are not finite")
        return found


def varied(model: DenoiserLike, samples: int, file: Path) -> Json:
    """How far pictures move when the noise of one level is drawn anew: ``{level: {"all", "coarse", "metric"}}``.

    ``all`` and ``coarse`` are root mean squares over pixels, of the pictures and of these shrunk to 4 × 4; ``metric``
    is the perceptual distance. The level 0 stands for pictures of different noise at all levels.
    """
    from ... import sampling
    from ...data import save_grid
    from ...metrics.perceptual import lpips

    count, distance = max(samples // 20, 4), lpips("lite0")
    others = sampling.sample(model, count + 1, seed=SAMPLE_SEED, batch=50)
    moved = {0: [(others[:-1], others[1:])]}
    shown: list[Tensor] = []
    for level in LEVELS:
        rows = []
        for image in range(count):
            noise = Varied(image=image, key=level_key(model.path, level), seed=SAMPLE_SEED)
            drawn = sampling.sample(model, 8 if image == 0 else 2, noise=noise)
            shown += [drawn] if image == 0 else []
            rows.append((drawn[:1], drawn[1:2]))
        moved[level] = rows
    save_grid(torch.cat(shown), file, 8)
    out: dict[str, Any] = {}
    for level, rows in moved.items():
        before, after = (torch.cat(part) for part in zip(*rows, strict=True))
        out[str(level)] = _apart(before, after, distance)
    return out


def _apart(a: Tensor, b: Tensor, distance: nn.Module) -> Json:
    """Mean distances of pairs of pictures."""

    def rms(x: Tensor) -> float:
        return float(x.square().flatten(1).mean(1).sqrt().mean())

    with torch.no_grad():
        metric = float(torch.cat([distance(*pair) for pair in zip(a.split(50), b.split(50), strict=True)]).mean())
    return {"all": rms(a - b), "coarse": rms(nn.functional.adaptive_avg_pool2d(a - b, 4)), "metric": metric}


def between(model: DenoiserLike, judge: Judge, file: Path) -> Json:
    """Pictures half-way between two samples, in noise and in pixels: ``{"noise", "pixels", "smooth"}``.

    The first two are the numbers of pictures against the data. ``smooth`` is the largest of eight steps between two
    samples as a share of the way, in perceptual distance: 1/8 is even, 1 a jump.
    """
    from ... import sampling
    from ...data import save_grid
    from ...metrics.perceptual import lpips

    count, distance = max(judge.samples // 2, 8), lpips("lite0")
    ends = sampling.sample(model, 2 * count, seed=SAMPLE_SEED, batch=50)
    first, second = ends[:count], ends[count:]
    middles = [
        sampling.sample(model, 3, noise=Between(a=i, b=count + i, frames=3, seed=SAMPLE_SEED))[1] for i in range(count)
    ]
    paths = [
        sampling.sample(model, 9, noise=Between(a=i, b=count + i, frames=9, seed=SAMPLE_SEED))
        for i in range(min(count, 16))
    ]
    save_grid(torch.cat(paths[:6]), file, 9)
    with torch.no_grad():
        legs = [distance(path[:-1], path[1:]).sqrt() for path in paths]
    smooth = numbers.fmean(float(leg.max() / leg.sum().clamp_min(1e-12)) for leg in legs)
    return {
        "noise": judge.numbers(torch.stack(middles)),
        "pixels": judge.numbers(0.5 * (first + second)),
        "smooth": smooth,
    }


def cost(*, size: int, width: int, batch: int = 16) -> Json:
    """What three evaluations of a pyramid cost against one evaluation of the same network at full size.

    ``{"operations": {name: of an image}, "seconds": {name: of an image, one a round}}`` of "three" levels, of "one"
    evaluation, and of one of the trained diffusion model, which sees squares of pixels, "squares".
    """
    from torch.utils.flop_counter import FlopCounterMode

    shapes = [(size // 2**level, size // 2**level) for level in LEVELS]
    level = build(replace(network(width), out_channels=12)).eval()
    full, squares = (build(network(width, patch)).eval() for patch in (1, 2))
    times = torch.full((batch,), 0.5)

    def evaluate(net: nn.Module, sides: list[tuple[int, int]]) -> None:
        for side in sides:
            net(torch.zeros(batch, 3, *side), times)

    ways = {"three": (level, shapes), "one": (full, [(size, size)]), "squares": (squares, [(size, size)])}
    counted: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for name, way in ways.items():
            with FlopCounterMode(display=False) as counter:
                evaluate(*way)
            counted[name] = counter.get_total_flops() / batch
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                begin = time.process_time()
                evaluate(*way)
                seconds[name].append((time.process_time() - begin) / batch)
    return {"operations": counted, "seconds": seconds}


@lru_cache(maxsize=8)
def _data(size: int, limit: int | None = None) -> Source:
    from ...data import open_source

    return open_source(DATA, size=size, limit=limit)
