"""`ornstein demo`: train a little, sample a lot, and show it on one page.

The stages are separate functions so that each panel of the page names the command that repeats it.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo_args import EVALUATIONS, FINE, SAMPLERS, Cell, DemoArgs
from .output import emit_json, make_folder, note, refuse_file, say
from .prompts import cond_in_turn

if TYPE_CHECKING:
    from torch import Tensor

    from ..runs import TrainedModel


def demo(args: DemoArgs) -> int:
    """Run every stage and write the page."""
    from ..runs import open_own
    from ..storage.files import write_text
    from . import demo_few, demo_guides
    from .demo_few import few
    from .demo_page import page

    refuse_file(args.out)
    started = time.perf_counter()
    run = open_own(args.model)
    make_folder(args.out)
    leading = demo_guides.best(args)
    live = _train(args) if args.images else None
    note(f"sampling {args.model}: {len(SAMPLERS)} samplers at {', '.join(map(str, EVALUATIONS))} evaluations")
    fine = reference(run, args.n, args.seed)
    cells, pictures = compare(run, fine, args.n, args.seed)
    shown = few(args)
    guided = demo_guides.led(args, demo_guides.GUIDES, "guided")
    rare = demo_guides.led(args, demo_guides.RARE, "rare")
    opening = (
        demo_guides.first(args, leading),
        demo_few.section(args, shown),
        demo_guides.guided(args, guided),
        demo_guides.rare(args, rare),
    )
    result: dict[str, Any] = {
        "model": args.model,
        "seed": args.seed,
        "n": args.n,
        "cells": [asdict(cell) for cell in cells],
        "few": [one.record() for one in shown],
        "live": None if live is None else str(live),
        "seconds": time.perf_counter() - started,
    }
    html = page(args, run, cells, pictures, fine, opening, live)
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
    from dataclasses import replace

    from ..networks import UNetConfig
    from ..training import TrainConfig, train
    from ..training.config import Every

    out = args.out / "live"
    note(f"training live on {args.images} images of critters")
    train(
        TrainConfig(
            data="critters",
            out=str(out),
            images=args.images,
            seed=1,
            batch=8,
            network=replace(UNetConfig.small(), patch=4, smooth=8),
            every=Every(samples=0),
            tensorboard=False,
        )
    )
    return out


def reference(run: TrainedModel, n: int, seed: int) -> Tensor:
    """The model's own solution of its probability-flow ODE, so fine that its error is far below every cell's."""
    from .. import grids
    from ..sampling import sample

    note(f"the model's fine solution, {FINE} evaluations")
    cond = cond_in_turn(run, range(n))
    return sample(run.denoiser, n, sampler="unipc-3", grid=grids.log_snr(FINE), seed=seed, cond=cond)


def compare(run: TrainedModel, fine: Tensor, n: int, seed: int) -> tuple[list[Cell], dict[tuple[str, int], Tensor]]:
    """Every sampler at every number of evaluations, from the same noise."""
    from ..sampling import sample

    cells: list[Cell] = []
    pictures: dict[tuple[str, int], Tensor] = {}
    cond = cond_in_turn(run, range(n))
    for name in SAMPLERS:
        for evaluations in EVALUATIONS:
            begin = time.perf_counter()
            images = sample(run.denoiser, n, sampler=name, evaluations=evaluations, seed=seed, cond=cond)
            seconds = (time.perf_counter() - begin) / n
            # A stochastic sampler follows no single trajectory: it has no distance to the ODE's solution.
            distance = None if name == "ddpm" else float((images - fine).square().mean().sqrt())
            cells.append(Cell(sampler=name, evaluations=evaluations, seconds_per_image=seconds, distance=distance))
            pictures[name, evaluations] = images
    return cells, pictures
