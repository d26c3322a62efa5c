"""What `ornstein.reproduce.slct` trains: the rungs of the ladder from iCT to sLCT and a diffusion model, on latents.

All arms get the same computing, counted in floating-point operations of a training step with the target's forward pass,
and see the latents, levels and noise of a seed in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ... import grids
from ...errors import CheckpointError, NotFiniteError
from ...runs import TrainedModel
from ...samplers.auto import tuned
from ...storage.reading import load_lines
from .. import arms
from ..arms import KID, SHOWN, Json, pictures
from .world import DIFFUSION, LADDER, World, clean, configuration, data_of, opened

ARMS = (*LADDER, DIFFUSION)
EVALUATIONS, STEPS, SAMPLERS = (1, 2), (2, 5, 10, 50), ("ddim", "auto")
ONE_STEP: Mapping[str, Any] = {"sampler": "ddim", "steps": 1}
SEARCHED, MIDDLES = ("ict", "slct"), (0.1, 0.25, 0.53, 1.1, 2.3, 5.0)
"""The arms whose middle level is searched, and the levels that are tried."""


@lru_cache(maxsize=64)
def operations(world: World, arm: str) -> float:
    """Floating-point operations of one image in a step of training: forward, backward, and the target's forward."""
    from ...training.latents import encoded

    config = configuration(world, arm, Path("unused"), 0, 512)
    _, source = encoded(config, data_of(world.data.split("+")[0].split(":")[0], world.size, 2), torch.device("cpu"))
    return arms.operations(config, source)


def seen(world: World, arm: str, images: int) -> int:
    """How many images an arm is trained on for the computing of iCT on ``images``, in whole batches."""
    share = operations(world, LADDER[0]) / operations(world, arm)
    return arms.equal_images(images, share, world.batch)


def trained(*, arm: str, seed: int, images: int, world: Json, files: Path) -> Json:
    """Train an arm and measure it.

    ``{"parameters", "seconds", "images", "left_out", "diverged": why or None, "middle", "at": {way of sampling:
    numbers}, "early": kernel distance after two thirds in the way of `judged_way`, "shares", "activations"}``; of an
    arm that diverged there are no samples.
    """
    from ...runs import open_own
    from ...training import DivergedError
    from .outliers import activations, shares

    here = World(**world)
    count = seen(here, arm, images)
    out = files / f"{arm}-{seed}-{images}-{here.key}"
    config = configuration(here, arm, out, seed, count)
    result: dict[str, Any] = {"images": count, "diverged": None, "middle": None, "at": {}}
    result |= {"early": None, "shares": None, "activations": None}
    try:
        summary, kept = arms.train_arm(config)
    except DivergedError as error:  # a result like any other
        why = str(error).replace(str(out), "the run")
        return result | {"diverged": why, "parameters": None, "seconds": None, "left_out": left_out(out)}
    run = open_own(out)
    result |= {"parameters": summary.parameters, "seconds": summary.seconds, "left_out": left_out(out)}
    judge = Judge(here, files)
    if arm == DIFFUSION:
        for name in SAMPLERS:
            for steps in STEPS:
                how = way(name, steps, math.prod(run.shape or ()))
                result["at"][f"{name} {steps}"] = judge(run.denoiser, f"{out.name}-{name}-{steps}", **how)
    else:
        for steps in EVALUATIONS:
            result["at"][str(steps)] = judge(run.denoiser, f"{out.name}-{steps}", sampler="ddim", steps=steps)
        if arm in SEARCHED:
            level = judge.middle(run)
            grid = run.spec.multistep(level)  # type: ignore[attr-defined]
            result["at"]["searched"] = judge(run.denoiser, f"{out.name}-searched", sampler="ddim", grid=grid)
            result["middle"] = level
        latents = clean(here, out, 512)
        result |= {"shares": shares(run, config, latents), "activations": activations(run, latents)}
    if kept is not None:
        how = way("ddim", 10, math.prod(run.shape or ())) if arm == DIFFUSION else ONE_STEP
        early = judge(open_own(kept).denoiser, f"{out.name}-early", **how)
        result["early"] = None if early is None else early[KID]
    broken = [way for way, numbers in result["at"].items() if numbers is None]
    return result | ({"diverged": f"samples are not finite: {', '.join(broken)}", "at": {}} if broken else {})


def judged_way(arm: str) -> str:
    """By which way of sampling an arm's convergence is tested."""
    return "ddim 10" if arm == DIFFUSION else "1"


def way(name: str, evaluations: int, size: int) -> Mapping[str, Any]:
    """How the diffusion model is sampled, as arguments of `ornstein.sample`; ``size`` numbers in a sample.

    DDIM takes Karras' grid, and auto its tuned rule, at every count; the stored cells of auto are of an older one. In
    two evaluations `ornstein.sample` takes `grids.few` for both.
    """
    if name == "ddim":
        return {"sampler": name, "grid": grids.karras(evaluations)}
    rule, grid = tuned(evaluations, size)
    return {"sampler": rule, "grid": grid}


def left_out(out: Path) -> float:
    """Which part of the batches of a run was left out, by its log."""
    try:
        lines = load_lines(out / "metrics.jsonl", CheckpointError, f"delete {out} to train this arm again")
    except FileNotFoundError:
        return 0.0
    parts, before = 0.0, 0
    for line in lines:
        parts += sum(line.get("left_out", {}).values()) * (line["step"] - before)
        before = line["step"]
    return parts / max(before, 1)


class Judge(arms.Judge):
    """Samples against the data of a world."""

    def __init__(self, world: World, files: Path) -> None:
        super().__init__(data_of(world.data, world.size), world.samples, files)

    def middle(self, run: TrainedModel) -> float:
        """Of `MIDDLES` the level of the second evaluation whose samples are nearest to pictures kept for this."""
        from ...data import to_uint8
        from ...metrics import measure, statistics

        count = max(self.samples // 4, 16)
        kept = self.reference(self.lite0, self.samples, count)

        def far(level: float) -> float:
            grid = run.spec.multistep(level)  # type: ignore[attr-defined]
            try:
                drawn = self.drawn(run.denoiser, count, sampler="ddim", grid=grid)
            except NotFiniteError:
                return math.inf
            found = measure(statistics(to_uint8(drawn), self.lite0), kept, ("kid",)).numbers[KID]
            return math.inf if found is None else float(found)

        return min(MIDDLES, key=far)


def floor(*, world: Json, files: Path) -> Json:
    """The best that can be had: other pictures of the data against the data, as they are and reconstructed."""
    from ...data import save_grid

    here, judge = World(**world), Judge(World(**world), files)
    others = torch.stack(pictures(data_of(here.data, here.size), here.samples, here.samples))
    images = others.float().div_(127.5).sub_(1.0)
    codec = opened(here.codec)
    again = torch.cat([codec.decode(codec.encode(part)) for part in images.split(50)])
    both = torch.cat([images[: SHOWN // 2], again[: SHOWN // 2]])
    save_grid(both, files / f"reconstructions-{here.key}.png", 8)
    return {"data": judge.numbers(images), "reconstructions": judge.numbers(again)}
