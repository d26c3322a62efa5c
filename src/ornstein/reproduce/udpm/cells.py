"""What `ornstein.reproduce.udpm` measures: UDPM with and without its losses, a diffusion and a consistency model.

All get equal computing and equal tuning. The diffusion and the consistency model have the body and the parameters of
UDPM's network, and see squares of two by two pixels as channels, so that all work on the same positions. Computing is
counted in floating-point operations of a step of training: of the network, its discriminator, the gradient penalty
and the metric.
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
from ...storage.files import digest
from ...training import Optimizer, TrainConfig
from ...training.slct import RAdam, SLCTConfig
from ...training.udpm import UDPMConfig, small
from .. import arms
from ..arms import KID, SAMPLE_SEED, Json, counted, run_options
from ..slct import world as slct
from ..tuning import Candidates, Choice

FULL, FIT, PLAIN, DIFFUSION, CONSISTENCY = "udpm", "udpm-fit", "udpm-plain", "diffusion", "consistency"
PYRAMIDS = (FULL, FIT, PLAIN)
ARMS = (*PYRAMIDS, DIFFUSION, CONSISTENCY)
THREE = "three levels"
"""The one way of sampling a pyramid."""
STEPS = (3, 5, 10, 50)
FEW = STEPS[:3]
WAYS = (*(f"ddim {steps}" for steps in STEPS), *(f"ddim {steps}, equal times" for steps in FEW), "auto 3")
"""The ways of sampling the diffusion model: in equal steps of log-SNR, which serve details, and of time, as DDIM has
them, which serve the whole picture; and what this library would choose."""
ONE = "one evaluation"
"""The one way of sampling a consistency model."""
JUDGED = {**dict.fromkeys(PYRAMIDS, THREE), DIFFUSION: "ddim 10", CONSISTENCY: ONE}
"""By which way of sampling an arm is tuned, and its convergence tested."""
DATA, BATCH = "critters", 32
SECONDS = 120.0
"""A checkpoint at least this often, from which a run that was killed goes on."""
LAZY = 4
LEVELS = (1, 2, 3)
_EVEN, _FINE = [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]  # odds of the levels, from the finest on
_LEVELS = tuple({"lr": lr, "odds": odds} for lr in (5e-4, 1e-3) for odds in (_EVEN, _FINE))
CANDIDATES: Candidates = {
    **dict.fromkeys(PYRAMIDS, _LEVELS),
    DIFFUSION: tuple({"lr": lr, "odds": []} for lr in (3e-4, 5e-4, 1e-3, 2e-3)),
    CONSISTENCY: tuple({"lr": lr, "odds": []} for lr in (2e-4, 5e-4, 1e-3, 2e-3)),
}
"""What each arm is tuned over: the rate, and of pyramids how often each level is drawn."""
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


def configuration(
    arm: str, out: Path, seed: int, images: int, size: int, width: int, choice: Choice | None = None
) -> TrainConfig:
    """The training of one arm, with the first of its candidates unless another is chosen."""
    choice = CANDIDATES[arm][0] if choice is None else choice
    lr, warmup = choice["lr"], min(4096, images // 4)
    shared = run_options(data=DATA, out=out, size=size, images=images, batch=BATCH, seed=seed, logs=8, seconds=SECONDS)
    if arm == DIFFUSION:
        flat = replace(network(width, 2), time_features="sinusoidal", time_scale=1.0)
        return TrainConfig(**shared, network=flat, optimizer=Optimizer(lr=lr, warmup=warmup))
    if arm == CONSISTENCY:
        loss = slct.objective("ict", slct.finest(images // BATCH))
        flat = replace(network(width, 2), time_features="sinusoidal", time_scale=1.0)
        return SLCTConfig(
            **shared, path="ve", predicts="edm", network=flat, objective=loss, optimizer=RAdam(lr=lr, warmup=warmup)
        )
    # A first moment spoils a GAN, and serves the arms without a discriminator as it does the diffusion model.
    plain = Optimizer(lr=lr, warmup=warmup)
    adversarial = replace(plain, betas=(0.0, 0.99), clip=0.0)
    return UDPMConfig(
        **shared,
        network=network(width),
        objective=replace(objective(arm), level_probabilities=tuple(choice["odds"])),
        discriminator=DiscriminatorConfig(width=max(8, 3 * width // 4), dropout=0.2),
        optimizer=adversarial if arm == FULL else plain,
        discriminator_optimizer=adversarial,
    )


def operations(arm: str, size: int, width: int, choice: Choice | None = None) -> float:
    """Floating-point operations of one image in a step of training, in the mean over levels and lazy penalties."""
    odds = CANDIDATES[arm][0]["odds"] if choice is None else choice["odds"]
    return _operations(arm, size, width, tuple(odds))


@lru_cache(maxsize=64)
def _operations(arm: str, size: int, width: int, odds: tuple[float, ...]) -> float:
    config = configuration(arm, Path("unused"), 0, 512, size, width, {"lr": 1e-3, "odds": odds})
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


def seen(arm: str, images: int, size: int, width: int, choice: Choice | None = None) -> int:
    """How many images an arm is trained on for the computing of UDPM on ``images`` (with odds of 1:1:1), in whole
    batches.
    """
    share = operations(FULL, size, width) / operations(arm, size, width, choice)
    return arms.equal_images(images, share, BATCH)


def tried(
    *, arm: str, seed: int, choice: Choice, images: int, samples: int, size: int, width: int, files: Path
) -> float | None:
    """The kernel distance of a candidate's training in the arm's judged way; None if it diverged."""
    from ...training import DivergedError

    out = files / f"{_name(arm, seed, images, size, width, choice)}-tried"
    config = configuration(arm, out, seed, seen(arm, images, size, width, choice), size, width, choice)
    try:
        arms.train_arm(config)
        return _distance(arm, out, Judge(size, samples, files), out.name)
    except (DivergedError, OrnsteinError):
        return None


def _distance(arm: str, where: Path, judge: Judge, name: str) -> float:
    way = JUDGED[arm]
    return judge(_model(arm, where), f"{name}-{way.replace(' ', '-')}", **_how(way))[KID]


def _model(arm: str, where: Path) -> DenoiserLike:
    from ...guidance import Threshold
    from ...runs import open_run

    denoiser = open_run(where).denoiser
    return Threshold(quantile=None)(denoiser) if arm in {DIFFUSION, CONSISTENCY} else denoiser


def _name(arm: str, seed: int, images: int, size: int, width: int, choice: Choice) -> str:
    return f"{arm}-{seed}-{images}-{size}-{width}-{digest(sorted(choice.items()))[:6]}"


def trained(
    *, arm: str, seed: int, choice: Choice, images: int, samples: int, size: int, width: int, files: Path
) -> Json:
    """Train an arm and measure it.

    ``{"parameters", "images", "operations", "seconds", "diverged": why or None, "at": {way of sampling: numbers},
    "early": kernel distance after two thirds or None, "levels": …, "middle": …}``; of an arm that diverged there are no
    samples.
    """
    from ...training import DivergedError

    count = seen(arm, images, size, width, choice)
    out = files / _name(arm, seed, images, size, width, choice)
    result: dict[str, Any] = {
        "parameters": None,
        "images": count,
        "operations": operations(arm, size, width, choice),
        "seconds": None,
        "diverged": None,
        "at": {},
        "early": None,
        "levels": None,
        "middle": None,
    }
    try:
        summary, kept = arms.train_arm(configuration(arm, out, seed, count, size, width, choice))
    except DivergedError as error:  # a result like any other
        return result | {"diverged": str(error).replace(str(out), "the run")}
    model = _model(arm, out)
    result |= {"parameters": summary.parameters, "seconds": summary.seconds}
    judge = Judge(size, samples, files)
    try:
        for way in {DIFFUSION: WAYS, CONSISTENCY: (ONE,)}.get(arm, (THREE,)):
            result["at"][way] = judge(model, f"{out.name}-{way.replace(',', '').replace(' ', '-')}", **_how(way))
        result["early"] = None if kept is None else _distance(arm, kept, judge, f"{out.name}-early")
        if arm in PYRAMIDS:
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
    if way == ONE:
        return {"sampler": "ddim", "steps": 1}
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
