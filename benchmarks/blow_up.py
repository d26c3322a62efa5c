"""How large samples become at few steps: every registered sampler on exact targets, at 1 to 20 steps.

    OMP_NUM_THREADS=1 python benchmarks/blow_up.py

A cell is the root mean square of the samples at the end over that of the data, the largest over the targets: Gaussians
with standard deviation .5 and 2 (data of scale one: at most 2 either way) and a mixture of three in 2-D. A sampler that
exceeds `BOUND` somewhere is named in docs/reference/samplers.md with its worst factor and the steps from which it stays
below. `--grid half` takes one step to the middle of the path and the default grid from there on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ornstein import grids
from ornstein.lab.targets import MixtureTarget
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import SAMPLERS, run, sampler, solve
from report import arguments, write

BOUND = 3.0
PATHS: Mapping[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
TARGETS: Mapping[str, MixtureTarget] = {
    "gaussian .5": MixtureTarget.of([1.0], [[0.0, 0.0]], stds=[0.5]),
    "gaussian 2": MixtureTarget.of([1.0], [[0.0, 0.0]], stds=[2.0]),
    "mixture": MixtureTarget.of([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 1.0], [0.2, -1.1]], stds=[0.3, 0.2, 0.4]),
}


def times_of(path: AffinePath, steps: int, grid: str) -> tuple[float, ...]:
    """The default grid, or one that begins with a step to half of the path's span."""
    if grid == "default" or steps == 1:
        return grids.default(path, steps)(path)
    top, low = path.t_range[1], path.t_min
    middle = 0.5 * (top + path.t_range[0])
    inner = [middle * (low / middle) ** (i / max(steps - 2, 1)) for i in range(steps - 1)]
    return (top, *inner, path.t_range[0])


def factor(name: str, path: AffinePath, steps: int, grid: str = "default", samples: int = 64) -> float:
    """The largest ratio of sizes over the targets."""
    found = 0.0
    for target in TARGETS.values():
        times, noise = times_of(path, steps, grid), Noise.of(0, range(samples), dtype=torch.float64)
        x = path.prior(noise, (target.dim,), times[0])
        end = run(solve(sampler(name), path, x, times, noise), target.denoiser(path))
        data = target.sample(Noise.of(1, range(samples), dtype=torch.float64))
        ratio = float(end.square().mean().sqrt() / data.square().mean().sqrt())
        found = max(found, ratio if math.isfinite(ratio) else math.inf)
    return found


def main() -> None:
    options = arguments(__doc__ or "", "blow_up")
    torch.set_num_threads(1)
    counts = (1, 2, 3, 5, 20) if options.quick else tuple(range(1, 21))
    rows = []
    for grid in ("default", "half"):
        for name in SAMPLERS:
            if name == "ancestral-learned":
                continue  # it needs a network with a second head
            for path in PATHS:
                factors = [factor(name, PATHS[path], n, grid) for n in counts]
                above = [n for n, value in zip(counts, factors, strict=True) if value > BOUND]
                rows.append(
                    {
                        "sampler": name,
                        "path": path,
                        "grid": grid,
                        "factors": {str(n): round(value, 2) for n, value in zip(counts, factors, strict=True)},
                        "worst": round(max(factors), 2),
                        "above_bound_at": above,
                    }
                )
                if above:
                    print(f"{name} on {path}, {grid} grid: up to {max(factors):.1f}, above {BOUND} at {above}")
    write(options.out, "blow_up", 0, {"bound": BOUND, "results": rows}, options.quick)


if __name__ == "__main__":
    main()
