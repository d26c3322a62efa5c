"""The parallel randomized midpoint beside its sequential form, on the shipped network: depth, wall time, deviation.

A sweep asks at all points of a round in one batch. The depth (questions one after another) falls; the number of
evaluations rises. Where a batch costs its size, as on a processor, that loses time; ``--device cuda`` shows where it
does not. Both forms answer the same question: the deviation is the root mean square of the difference of the pictures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ornstein as orn
from ornstein.denoisers import Denoiser
from ornstein.randomness import Noise
from ornstein.samplers import RandomizedMidpoint, picard, run, solve, staged
from report import RESULTS, spread, table, write

RULE = RandomizedMidpoint("clean")
CASES = ((64, 4), (128, 8))  # cells, rounds
SWEEPS = (4, 6)


def seconds(f: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of a call, the device's work included."""
    begun = time.perf_counter()
    found = f()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun, found


def measure(model: Denoiser, batch: int, cells: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """One size: the sequential form and the parallel one take turns on the same noise."""
    times = staged(cells, rounds)(model.path)
    noise = Noise.of(0, range(batch), device=model.device)
    x = model.path.prior(noise, model.shape or ())
    once, reference = seconds(lambda: run(solve(RULE, model.path, x, times, noise), model), model.device)
    rows: list[dict[str, Any]] = []
    for sweeps in SWEEPS:
        walls: list[list[float]] = [[once], []]  # the first run counts too: the least of several is used
        for _ in range(repeats):
            walls[0].append(seconds(lambda: run(solve(RULE, model.path, x, times, noise), model), model.device)[0])
            wall, found = seconds(lambda s=sweeps: picard(RULE, model, x, times, noise, s), model.device)
            walls[1].append(wall)
        rows.append(
            {
                "batch": batch,
                "cells": cells,
                "rounds": rounds,
                "sweeps": sweeps,
                "threads": torch.get_num_threads(),
                "depth_sequential": cells + 1,
                "depth": found.rounds,
                "evaluations": found.evaluations,
                "seconds_sequential": spread(walls[0], 3),
                "seconds": spread(walls[1], 3),
                "times_as_fast": round(min(walls[0]) / min(walls[1]), 3),
                "deviation": float((found.x - reference).square().mean().sqrt()),
                "deviation_of_the_last_sweep": found.deviation,
            }
        )
    return rows


def batches(model: Denoiser, sizes: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """What a call costs for each batch: the most that asking together can gain."""
    rows: list[dict[str, float]] = []
    for size in sizes:
        x = torch.zeros(size, *(model.shape or ()), device=model.device)
        with torch.no_grad():
            walls = [seconds(lambda x=x: model(x, 0.5), model.device)[0] for _ in range(repeats + 3)]
        least = min(walls[1:])
        rows.append({"batch": size, "threads": torch.get_num_threads(), "ms": round(1e3 * least, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, no more")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: results/parallel_midpoint.json)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    if options.out is None and not options.quick:
        name = "parallel_midpoint" if options.device == "cpu" else f"parallel_midpoint_{options.device}"
        options.out = RESULTS / f"{name}.json"
    model = orn.load("critters", device=options.device)
    quick, gpu = options.quick, options.device != "cpu"
    repeats = 10 if gpu else 1
    cases = ((8, 2),) if quick else (*CASES, (512, 16)) if gpu else CASES
    rows, calls = [], []
    for threads in (1,) if quick or gpu else (1, 2):
        torch.set_num_threads(threads)
        calls += batches(model, (1, 4) if quick else (1, 4, 16, 64) if gpu else (1, 4, 16), repeats)
        for batch in (1,) if quick or not gpu else (1, 4):
            for cells, rounds in cases:
                rows += measure(model, batch, cells, rounds, repeats)
    head = ("case", "threads", "depth", "of", "evaluations", "seconds", "sequential", "deviation")
    print(
        table(
            head,
            [
                (
                    f"batch {r['batch']}, {r['cells']} cells, {r['rounds']} rounds, {r['sweeps']} sweeps",
                    *(r[k] for k in ("threads", "depth", "depth_sequential", "evaluations")),
                    r["seconds"]["min"],
                    r["seconds_sequential"]["min"],
                    f"{r['deviation']:.2g}",
                )
                for r in rows
            ],
        )
    )
    print(table(("batch of one call", "threads", "ms"), [(r["batch"], r["threads"], r["ms"]) for r in calls]))
    torch.set_num_threads(1)
    result = {"device": _device(options.device), "calls": calls, "results": rows}
    write(options.out, "parallel_midpoint", 0, result, quick)


def _device(name: str) -> str:
    return torch.cuda.get_device_name() if name.startswith("cuda") else name


if __name__ == "__main__":
    main()
