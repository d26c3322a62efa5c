"""Optimal pairs of noise and samples: what two solvers cost in processor time, and how near they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data import open_source
from ornstein.data.loader import read_example
from ornstein.objectives.couplings import assignment, costs, transport
from ornstein.randomness import Noise
from ornstein.runs import open_own
from report import arguments, write

SIDE = 32
DIRECTIONS, SHARE = 4, 10
"""The strongest principal directions in which pairs are correlated, and those whose share of the variance is told."""


def drawings(n: int, side: int) -> Tensor:
    """The first critters, in [−1, 1]."""
    source = open_source("critters", size=side)
    return torch.stack([read_example(source, i)[0].image for i in range(n)]).float() / 127.5 - 1.0


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
    noise = Noise.of(0, range(batch)).normal("noise", clean.shape[1:])
    cost = costs(clean, noise)
    one, two = assignment(cost), transport(cost)
    return {
        "samples": name,
        "batch": batch,
        "numbers": clean[0].numel(),
        "agree": bool((one == two).all()),
        "cost_ratio": round(float(cost[np.arange(batch), one].sum() / np.trace(cost)), 4),
        "costs_ms": milliseconds(lambda: costs(clean, noise)),
        "assignment_ms": milliseconds(lambda: assignment(cost)),
        "pot_ms": milliseconds(lambda: transport(cost)),
    }


def strong(clean: Tensor, batch: int) -> dict[str, Any]:
    """How far from isotropic the data are, and the correlation of noise and sample, paired in batches, by direction."""
    rows = len(clean) // batch * batch
    x, noise = clean[:rows], Noise.of(0, range(rows)).normal("noise", clean.shape[1:])
    paired = [
        z[torch.from_numpy(assignment(costs(c, z)))] for c, z in zip(x.split(batch), noise.split(batch), strict=True)
    ]
    centred = x.flatten(1) - x.flatten(1).mean(0)
    _, deviations, directions = torch.linalg.svd(centred, full_matrices=False)
    along = torch.stack([y.flatten(1) @ directions[:DIRECTIONS].T for y in (x, torch.cat(paired))])
    both = [float(torch.corrcoef(along[:, :, k])[0, 1]) for k in range(DIRECTIONS)]
    power = deviations.square()
    return {"correlations": [round(r, 2) for r in both], "share": round(float(power[:SHARE].sum() / power.sum()), 3)}


def main() -> None:
    options = arguments(__doc__ or "", "pairing")
    torch.set_num_threads(1)
    sizes = (8,) if options.quick else (32, 64, 128, 512)
    largest = 8 if options.quick else 2048
    gaussian = 0.5 * Noise.of(1, range(largest)).normal("clean", (3, SIDE, SIDE))
    codec = open_own("critters-64").denoiser.codec
    with torch.no_grad():
        latents = torch.cat([codec.encode(part) for part in drawings(largest, 2 * SIDE).split(64)])
    sets = {"gaussian": gaussian, "critters": drawings(largest, SIDE), "latents": latents}
    rows = [measure(name, x[:n]) | strong(x, n) for n in sizes for name, x in sets.items()]
    for row in rows:
        print(
            f"{row['samples']:8} batch {row['batch']:3}: assignment {row['assignment_ms']} ms, POT {row['pot_ms']} ms, "
            f"costs {row['costs_ms']} ms; cost {row['cost_ratio']} of independent pairs, agree {row['agree']}; "
            f"correlations {row['correlations']}, share of {SHARE} directions {row['share']}"
        )
    write(options.out, "pairing", 0, {"results": rows}, options.quick)


if __name__ == "__main__":
    main()
