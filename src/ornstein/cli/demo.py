"""`ornstein demo`: train a little, sample a lot, and show it on one page.

The stages are separate functions so that each panel of the page names the command that repeats it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import emit_json, make_folder, note, refuse_file, say, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from ..runs import Run

SAMPLERS = ("ddpm", "ddim", "heun", "dpmpp-2m", "unipc")
EVALUATIONS = (5, 10, 20, 50)
FINE = 200  # evaluations of the reference solution, of order 3 and more


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """The main job on the embedded data: a short live training, then the shipped models under several samplers.

    Example: ornstein demo --out demo
    """

    out: Path = Path("demo")
    """Folder for the page and everything it shows."""
    model: str = "critters"
    """What to sample: the shipped model, or a run of yours."""
    images: int = 4096
    """Length of the live training, in images (0: none)."""
    n: int = 6
    """Images a sampler."""
    seed: int = 0
    """Stream of samples."""
    json: bool = False
    """Print one JSON document about the page instead of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One sampler at one number of evaluations."""

    sampler: str
    evaluations: int
    seconds_per_image: float
    distance: float | None


def demo(args: DemoArgs) -> int:
    """Run every stage and write the page."""
    from ..errors import UsageError
    from ..runs import open_own
    from .demo_few import few
    from .demo_page import page

    if args.n < 1 or args.images < 0:
        raise UsageError(f"--n must be at least 1 and --images at least 0, got {args.n} and {args.images}")
    refuse_file(args.out)
    started = time.perf_counter()
    run = open_own(args.model)
    make_folder(args.out)
    live = _train(args) if args.images else None
    note(f"sampling {args.model}: {len(SAMPLERS)} samplers at {', '.join(map(str, EVALUATIONS))} evaluations")
    fine = reference(run, args.n, args.seed)
    cells, pictures = compare(run, fine, args.n, args.seed)
    shown = few(args)
    result: dict[str, Any] = {
        "model": args.model,
        "seed": args.seed,
        "n": args.n,
        "cells": [asdict(cell) for cell in cells],
        "few": [one.told() for one in shown],
        "live": None if live is None else str(live),
        "seconds": time.perf_counter() - started,
    }
    html = page(args, run, cells, pictures, fine, shown, live)
    target = args.out / "index.html"
    write_text(target, html)
    result["page"] = str(target)
    if args.json:
        emit_json(result)
    else:
        say(f"the page is {target.resolve()}")
    return 0


def _train(args: DemoArgs) -> Path:
    """The live run; a second demo in the same folder finds it finished."""
    from ..training import TrainConfig, train
    from ..training.config import Every, Optimizer

    out = args.out / "live"
    note(f"training live on {args.images} images of critters")
    train(
        TrainConfig(
            data="critters",
            out=str(out),
            images=args.images,
            seed=1,
            optimizer=Optimizer(warmup=1024),
            every=Every(log=512, checkpoint=65_536, samples=0),
            tensorboard=False,
        )
    )
    return out


def live_command(args: DemoArgs) -> str:
    """The command that repeats the live training."""
    return (
        f"ornstein train ddpm --data critters --out {args.out}/live --images {args.images} --seed 1 "
        "--optimizer.warmup 1024 --every.log 512 --every.checkpoint 65536 --every.samples 0 --no-tensorboard"
    )


def reference(run: Run, n: int, seed: int) -> Tensor:
    """The model's own solution of its probability-flow ODE, so fine that its error is far below every cell's."""
    from .. import grids
    from ..sampling import sample

    note(f"the model's fine solution, {FINE} evaluations")
    return sample(run.denoiser, n, sampler="unipc-3", grid=grids.log_snr(FINE), seed=seed)


def compare(run: Run, fine: Tensor, n: int, seed: int) -> tuple[list[Cell], dict[tuple[str, int], Tensor]]:
    """Every sampler at every number of evaluations, from the same noise."""
    from ..sampling import sample

    cells: list[Cell] = []
    pictures: dict[tuple[str, int], Tensor] = {}
    for name in SAMPLERS:
        for evaluations in EVALUATIONS:
            begin = time.perf_counter()
            images = sample(run.denoiser, n, sampler=name, evaluations=evaluations, seed=seed)
            seconds = (time.perf_counter() - begin) / n
            # A stochastic sampler follows no single trajectory: it has no distance to the ODE's solution.
            distance = None if name == "ddpm" else float((images - fine).square().mean().sqrt())
            cells.append(Cell(sampler=name, evaluations=evaluations, seconds_per_image=seconds, distance=distance))
            pictures[name, evaluations] = images
    return cells, pictures
