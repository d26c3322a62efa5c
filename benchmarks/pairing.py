"""Optimal pairs of noise and samples: what two solvers cost in processor time, and how much nearer the pairs are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data import open_source
from ornstein.data.loader import read
from ornstein.objectives.couplings import assignment, costs, transport
from ornstein.randomness import Noise
from report import arguments, write

SIDE = 32


def milliseconds(what: Callable[[], Any], repeat: int = 5) -> float:
    """Processor time of one call, the best of a few, after a first one."""
    what()
    times: list[float] = []
    for _ in range(repeat):
        began = time.process_time()
        what()
        times.append(time.process_time() - began)
    return round(1e3 * min(times), 2)


def measure(name: str, clean: Tensor) -> dict[str, Any]:
    """One batch paired with white noise by both solvers."""
    batch = len(clean)
    white = Noise.of(0, range(batch)).white("noise", clean.shape[1:])
    cost = costs(clean, white)
    one, two = assignment(cost), transport(cost)
    return {
        "samples": name,
        "batch": batch,
        "numbers": clean[0].numel(),
        "agree": bool((one == two).all()),
        "cost_ratio": round(float(cost[np.arange(batch), one].sum() / np.trace(cost)), 4),
        "costs_ms": milliseconds(lambda: costs(clean, white)),
        "assignment_ms": milliseconds(lambda: assignment(cost)),
        "pot_ms": milliseconds(lambda: transport(cost)),
    }


def main() -> None:
    options = arguments(__doc__ or "", "pairing")
    torch.set_num_threads(1)
    sizes = (8,) if options.quick else (32, 128, 512)
    source = open_source("critters", size=SIDE)
    drawings = torch.stack([read(source, i)[0].image for i in range(max(sizes))]).float() / 127.5 - 1.0
    gaussian = 0.5 * Noise.of(1, range(max(sizes))).white("clean", (3, SIDE, SIDE))
    rows = [measure(name, x[:n]) for n in sizes for name, x in (("gaussian", gaussian), ("critters", drawings))]
    for row in rows:
        print(
            f"{row['samples']:8} batch {row['batch']:3}: assignment {row['assignment_ms']} ms, POT {row['pot_ms']} ms, "
            f"costs {row['costs_ms']} ms; cost {row['cost_ratio']} of independent pairs, agree {row['agree']}"
        )
    write(options.out, "pairing", 0, {"results": rows}, options.quick)


if __name__ == "__main__":
    main()
