"""The numbers in `ornstein.samplers.auto`: grid and sampler tuned on random mixtures and points, count by count.

    OMP_NUM_THREADS=1 python benchmarks/practice_tune.py

A few minutes on one thread; prints a line a count. The family has six kinds of laws, in 1 to 48 dimensions, with seeded
random weights, means, covariances and frames; none of them is a target of the laboratory. The score is the mean over
the kinds of the mean log of the mean distance to the exact ends, the kinds in many dimensions weighted up, for pictures
are such. Nelder and Mead's search over the four numbers of the grid and the two of the sampler.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ornstein import grids
from ornstein.estimates import Estimate
from ornstein.paths import VE
from ornstein.randomness import Noise
from ornstein.samplers import TrigFlowAdams, run, solve

TOP, FLOOR, SEED = 157.4, 0.01, 21
PATH = VE(sigma_min=FLOOR, sigma_max=TOP)
# laws, components, dimensions, least and largest std, directions that have one, spread of the means, samples, weight
KINDS: tuple[tuple[int, int, int, float, float, int | None, tuple[float, float], int, float], ...] = (
    (4, 4, 1, 0.1, 0.5, None, (0.6, 1.2), 160, 0.7),
    (5, 5, 2, 0.04, 0.4, None, (0.6, 1.2), 160, 0.7),
    (3, 5, 6, 0.04, 0.5, None, (0.6, 1.2), 96, 1.0),
    (4, 6, 24, 0.15, 0.7, 6, (0.6, 1.2), 96, 2.0),
    (4, 8, 48, 0.2, 0.7, 7, (0.7, 1.2), 128, 3.0),
    (2, 24, 16, 0.0, 0.0, None, (0.6, 1.2), 96, 0.2),  # points: what a network that memorises has learnt
)
NEGLIGIBLE = 3e-4  # added to the errors on points, which vanish exponentially
# Where the search begins, from wider searches with other seeds: corrector, (first, last, centre, width, scale, offset).
BEGIN: dict[int, tuple[bool, tuple[float, ...]]] = {
    2: (False, (4.16, 0.156, -0.262, 3.42, 1.84, 0.76)),
    3: (False, (2.0, 0.2, 0.5, 2.0, 2.7, 0.6)),
    4: (False, (4.0, 0.12, 0.3, 2.3, 2.5, 0.7)),
    5: (False, (5.5, 0.046, 0.86, 2.75, 1.26, 0.25)),
    8: (False, (17.5, 0.025, 0.2, 2.75, 2.08, 0.08)),
    10: (False, (15.0, 0.021, -0.1, 3.8, 2.7, 0.07)),
    12: (False, (16.4, 0.018, 0.02, 3.7, 2.1, 0.055)),
    15: (True, (11.0, 0.018, 0.05, 2.0, 0.43, 0.25)),
    20: (True, (17.5, 0.014, 0.09, 2.08, 0.43, 0.162)),
    30: (True, (28.0, 0.0103, 0.3, 1.85, 0.6, 0.1)),
    50: (True, (48.0, 0.0102, 0.0, 1.855, 0.6, 0.1)),
}
POINTS = 3


@dataclass(eq=False)
class Laws:
    """Several mixtures of one shape at once, a denoiser on states (laws, samples, d)."""

    logits: Tensor  # (laws, K)
    means: Tensor  # (laws, K, d)
    variances: Tensor  # (laws, K, d)
    frames: Tensor | None  # (laws, K, d, d)
    samples: int
    weight: float
    seed: int
    path: VE = PATH
    start: Tensor = field(init=False)
    exact: Tensor = field(init=False)

    def __post_init__(self) -> None:
        noise = torch.Generator().manual_seed(self.seed)
        shape = (len(self.means), self.samples, self.means.shape[-1])
        self.start = torch.randn(shape, generator=noise, dtype=torch.float64) * math.hypot(1.0, TOP)
        self.exact = self._solution(self.start)

    def clean(self, u: Tensor, bar: float) -> Tensor:
        """E[x_0 | x_0 + bar·z = u]."""
        local = u[:, None] - self.means[:, :, None]
        local = local if self.frames is None else local @ self.frames
        c = self.variances + bar * bar
        joint = (local.square() / c[:, :, None]).sum(-1) + c.log().sum(-1)[:, :, None]
        shares = torch.softmax(self.logits[:, :, None] - 0.5 * joint, 1)
        shift = local * (self.variances / c)[:, :, None]
        shift = shift if self.frames is None else shift @ self.frames.mT
        return (shares[..., None] * (shift + self.means[:, :, None])).sum(1)

    def __call__(self, x: Tensor, t: Any) -> Estimate:
        return Estimate(x, t, self.path, clean=self.clean(x, t))

    def _solution(self, u: Tensor, steps: int = 700, low: float = 1e-5) -> Tensor:
        bars = np.exp(np.linspace(math.log(TOP), math.log(low), 2 * steps + 1)).tolist()
        h = math.log(bars[0] / bars[2])
        for begin, middle, end in zip(bars[:-2:2], bars[1:-1:2], bars[2::2], strict=True):
            k1 = self.clean(u, begin) - u
            k2 = self.clean(u + 0.5 * h * k1, middle) - u - 0.5 * h * k1
            k3 = self.clean(u + 0.5 * h * k2, middle) - u - 0.5 * h * k2
            k4 = self.clean(u + h * k3, end) - u - h * k3
            u = u + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
        return self.clean(u, low)

    def error(self, sampler: TrigFlowAdams, times: Sequence[float]) -> float:
        """Mean over the laws of the log of the mean distance."""
        found = run(solve(sampler, self.path, self.start, times, Noise.of(0, range(1))), self)  # type: ignore[arg-type]
        least = 0.0 if self.frames is not None or self.means.shape[-1] == 1 else NEGLIGIBLE
        return float(((found - self.exact).norm(dim=-1).mean(1) + least).log().mean())


def family(seed: int = SEED) -> list[Laws]:
    """The six kinds."""
    rng = np.random.default_rng(seed)

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float64))

    out: list[Laws] = []
    for number, (laws, k, d, low, high, active, spread, samples, weight) in enumerate(KINDS):
        weights = rng.dirichlet(np.full(k, 3.0), laws)
        scale = np.exp(rng.uniform(*np.log(spread), laws))
        means = rng.standard_normal((laws, k, d)) * scale[:, None, None]
        stds = np.exp(rng.uniform(math.log(low), math.log(high), (laws, k, d))) if low else np.full((laws, k, d), 1e-5)
        if active is not None:
            stds[:, :, active:] = np.exp(rng.uniform(math.log(0.005), math.log(0.03), (laws, 1, 1)))
        frames = None
        if d > 1 and low:
            frames = tensor(np.linalg.qr(rng.standard_normal((laws, k, d, d)))[0])
        found = (tensor(weights).log(), tensor(means), tensor(stds**2), frames)
        out.append(Laws(*found, samples=samples, weight=weight, seed=number + 1))
    return out


def score(laws: Sequence[Laws], count: int, numbers: Sequence[float], corrector: bool) -> float:
    """What is minimised; ``numbers`` are first, last, centre, width, scale and offset."""
    first, last, centre, width, scale, offset = numbers
    times = grids.cauchy(count, first=first, last=last, centre=centre, width=width)(PATH)
    sampler = TrigFlowAdams(points=POINTS, corrector=corrector, scale=scale, offset=offset)
    total = sum(law.weight * law.error(sampler, times) for law in laws)
    return total / sum(law.weight for law in laws)


def tuned(laws: Sequence[Laws], count: int, trials: int) -> tuple[float, list[float]]:
    """(score, numbers) of the best grid and sampler."""
    corrector, start = BEGIN[count]

    def numbers(v: Sequence[float]) -> list[float]:
        return [v[2] if i == 2 else math.exp(v[i]) for i in range(6)]

    def loss(v: Sequence[float]) -> float:
        first, last, *_ = numbers(v)
        return score(laws, count, numbers(v), corrector) if FLOOR <= last < 0.8 * first < 96.0 else 50.0

    begin = [value if i == 2 else math.log(value) for i, value in enumerate(start)]
    simplex = [begin] + [[b + (0.2 if i == j else 0.0) for j, b in enumerate(begin)] for i in range(6)]
    found = minimize(loss, begin, method="Nelder-Mead", options={"maxfev": trials, "initial_simplex": simplex})
    return float(found.fun), numbers(found.x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", type=int, default=list(BEGIN))
    parser.add_argument("--trials", type=int, default=40, help="evaluations of the score in each search")
    args = parser.parse_args()
    laws = family()
    for count in args.counts:
        began = time.process_time()
        value, numbers = tuned(laws, count, args.trials)
        shown = ", ".join(f"{number:.3g}" for number in numbers)
        print(f"{count:>3}: {value:.3f} ({shown}) {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
