"""What `ornstein.reproduce.slct` trains: the rungs of the ladder from iCT to sLCT and a diffusion model, on latents.

All arms get the same computing, counted in floating-point operations of a training step with the target's forward pass,
and see the latents, levels and noise of a seed in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...metrics import Features, Statistics
from ...objectives import TrainBatch
from ...randomness import Noise
from ...runs import TrainedModel
from ...storage.files import digest as digest_of
from .world import DIFFUSION, LADDER, SAMPLE_SEED, SHOWN, World, clean, configuration, data_of, opened, pictures

ARMS = (*LADDER, DIFFUSION)
EVALUATIONS, STEPS, SAMPLERS = (1, 2), (2, 5, 10, 50), ("ddim", "auto")
SEARCHED, MIDDLES = ("ict", "slct"), (0.1, 0.25, 0.53, 1.1, 2.3, 5.0)
"""The arms whose middle level is searched, and the levels that are tried."""
KID, FD, PIXELS, RECALL, COVERAGE = "KID-lite0", "FD-lite0", "FD-pixels8", "recall-lite0", "coverage-lite0"

Json = Mapping[str, Any]


@lru_cache(maxsize=64)
def operations(world: World, arm: str) -> float:
    """Floating-point operations of one image in a step of training: forward, backward, and the target's forward."""
    from torch.utils.flop_counter import FlopCounterMode

    from ...training.latents import encoded

    rows = (0, 1)
    config = configuration(world, arm, Path("unused"), 0, 512)
    _, source = encoded(config, data_of(world.data.split("+")[0].split(":")[0], world.size, 2), torch.device("cpu"))
    spec = config.specify(source)
    model, losses = spec.build(0), config.make_objective(spec, torch.device("cpu"), {})
    batch = TrainBatch(clean=torch.zeros(2, *spec.shape), cond={}, positions=rows)
    with FlopCounterMode(display=False) as counter:
        losses(spec.denoiser(model), batch, Noise.of(0, rows), 0.5).total.backward()
    return counter.get_total_flops() / len(rows)


def seen(world: World, arm: str, images: int) -> int:
    """How many images an arm is trained on for the computing of iCT on ``images``, in whole batches."""
    share = operations(world, LADDER[0]) / operations(world, arm)
    return max(round(images * share / world.batch), 1) * world.batch


def trained(*, arm: str, seed: int, images: int, world: Json, files: Path) -> Json:
    """Train an arm and measure it.

    ``{"parameters", "seconds", "images", "left_out", "diverged": why or None, "middle", "at": {way of sampling:
    numbers}, "shares"}``; of an arm that diverged there are no samples.
    """
    from ...runs import open_own
    from ...training import DivergedError, train
    from .outliers import shares

    here = World(**world)
    count = seen(here, arm, images)
    out = files / f"{arm}-{seed}-{images}-{here.key}"
    config = configuration(here, arm, out, seed, count)
    result: dict[str, Any] = {"images": count, "diverged": None, "middle": None, "at": {}, "shares": None}
    try:
        summary = train(config, quiet=True)
    except DivergedError as error:  # a result like any other
        why = str(error).replace(str(out), "the run")
        return result | {"diverged": why, "parameters": None, "seconds": None, "left_out": left_out(out)}
    run = open_own(out)
    result |= {"parameters": summary.parameters, "seconds": summary.seconds, "left_out": left_out(out)}
    judge = Judge(here, files)
    if arm == DIFFUSION:
        for name in SAMPLERS:
            for steps in STEPS:
                result["at"][f"{name} {steps}"] = judge(
                    run, f"{out.name}-{name}-{steps}", sampler=name, evaluations=steps
                )
    else:
        for steps in EVALUATIONS:
            result["at"][str(steps)] = judge(run, f"{out.name}-{steps}", sampler="ddim", steps=steps)
        if arm in SEARCHED:
            level = judge.middle(run)
            grid = run.spec.multistep(level)  # type: ignore[attr-defined]
            result["at"]["searched"] = judge(run, f"{out.name}-searched", sampler="ddim", grid=grid)
            result["middle"] = level
        result["shares"] = shares(run, config, clean(here, out, 512))
    broken = [way for way, numbers in result["at"].items() if numbers is None]
    return result | ({"diverged": f"samples are not finite: {', '.join(broken)}", "at": {}} if broken else {})


def left_out(out: Path) -> float:
    """Which part of the batches of a run was left out, by its log."""
    try:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return 0.0
    parts, before = 0.0, 0
    for line in lines:
        parts += sum(line.get("left_out", {}).values()) * (line["step"] - before)
        before = line["step"]
    return parts / max(before, 1)


class Judge:
    """Samples of a run against the data: kernel and Fréchet distances, recall and coverage; and a grid for the eye."""

    def __init__(self, world: World, files: Path) -> None:
        from ...metrics import features
        from ..cas_dm.cells import Pixels

        self.world, self.files = world, files
        self.lite0: Features = features("lite0")
        self.pixels: Features = Pixels()

    def __call__(self, run: TrainedModel, name: str, **how: Any) -> Json | None:
        """The numbers of one way of sampling; None for samples that are not finite."""
        from ...data import save_grid

        drawn = self.drawn(run, self.world.samples, **how)
        if not bool(drawn.isfinite().all()):
            return None
        save_grid(drawn[:SHOWN], self.files / f"{name}.png", 8)
        return self.numbers(drawn)

    def drawn(self, run: TrainedModel, count: int, **how: Any) -> Tensor:
        """Decoded samples, always of the same noise."""
        from ...sampling import sample

        return sample(run.denoiser, count, seed=SAMPLE_SEED, batch=50, **how)

    def numbers(self, pictures: Tensor) -> Json:
        """Of pictures in [−1, 1] against the first ones of the data."""
        from ...data import to_uint8
        from ...metrics import measure, statistics

        stack, count = to_uint8(pictures), self.world.samples
        ours, flat = statistics(stack, self.lite0, keep=("vectors",)), statistics(stack, self.pixels)
        found = dict(measure(ours, self.reference(self.lite0, 0, count), ("fd", "kid", "prdc")).numbers)
        found |= measure(flat, self.reference(self.pixels, 0, count), ("fd",)).numbers
        return {name: found[name] for name in (KID, FD, PIXELS, RECALL, COVERAGE)}

    def middle(self, run: TrainedModel) -> float:
        """Of `MIDDLES` the level of the second evaluation whose samples are nearest to pictures kept for this."""
        from ...data import to_uint8
        from ...metrics import measure, statistics

        count = max(self.world.samples // 4, 16)
        kept = self.reference(self.lite0, self.world.samples, count)

        def far(level: float) -> float:
            grid = run.spec.multistep(level)  # type: ignore[attr-defined]
            drawn = self.drawn(run, count, sampler="ddim", grid=grid).nan_to_num()
            found = measure(statistics(to_uint8(drawn), self.lite0), kept, ("kid",)).numbers[KID]
            return math.inf if found is None else float(found)

        return min(MIDDLES, key=far)

    def reference(self, net: Features, first: int, count: int) -> Statistics:
        """The statistics of these pictures of the data, kept in a file for the other cells."""
        from ...errors import DataError
        from ...metrics import Statistics, statistics

        data = data_of(self.world.data, self.world.size)
        name = digest_of(data.fingerprint, data.size, net.name, first, count)[:12]
        path = self.files / f"reference-{name}.safetensors"
        if path.is_file():
            try:
                return Statistics.load(path)
            except DataError:
                path.unlink(missing_ok=True)
        keep = ("vectors",) if net.name == self.lite0.name else ()
        found = statistics((image for image in pictures(data, first, count)), net, keep=keep)
        found.save(path)
        return found


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
