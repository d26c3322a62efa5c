"""`auto` beside DPM-Solver++ 2M at counts from 1 to 100, on data of several smoothnesses, sizes and scales.

    OMP_NUM_THREADS=1 python benchmarks/practice_sweep.py             # results/practice-sweep.json; minutes, one thread
    python benchmarks/practice_sweep.py --markdown                    # the table of docs/practice.md

Targets are random points, narrow clusters, mixtures of three wide components and of two broad ones, in 1, 2 and 8
dimensions, of standard deviation 0.1, 1 and 10 (`auto` is told which), on the library's VP, VE and flow paths. 2M runs
on the grid of `auto` and on its usual ones, equal steps of log-SNR and Karras'. The error of a class (a kind of target
in a number of dimensions) is the mean distance to the exact end of the probability-flow ODE from the same start, over
scale·√d. Two errors are compared by

    ratio = (auto + FLOOR)/(2M + FLOOR)

since a single start of some hundred that ends at another point moves the mean by more than all others together. Every
path and scale is kept in the JSON as soon as it is measured, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein import grids
from ornstein.estimates import Estimate
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DPMSolver, Sampler, auto, run, solve
from report import RESULTS, write

KINDS = {"points": (10, 0.0), "clusters": (8, 0.05), "smooth": (3, 0.5), "broad": (2, 0.9)}
"""Components, and the standard deviation of each where that of all together is 1."""
DIMS = (1, 2, 8)
SCALES = (0.1, 1.0, 10.0)
PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
USUAL = {"log-SNR": grids.log_snr, "Karras": grids.karras}
FLOOR = 0.01
LOWEST, STEPS = 1e-6, 400  # of the reference: its last level, and its steps of the classical Runge–Kutta rule
COUNTS = (*range(1, 11), 12, 13, 15, 17, 20, 30, 50)
Errors = dict[tuple[str, int], float]  # by kind and number of dimensions


@dataclass(frozen=True, eq=False)
class Stack:
    """Many targets of scale one as one denoiser: rows of a batch belong to targets, and dimensions are filled up.

    Args:
        seeds: targets of each kind in each number of dimensions.
        rows: starts of each target.
    """

    seeds: int = 3
    rows: int = 32
    dims: tuple[int, ...] = DIMS
    kinds: tuple[str, ...] = tuple(KINDS)
    labels: list[tuple[str, int]] = field(init=False)
    means: Tensor = field(init=False)
    absent: Tensor = field(init=False)
    variances: Tensor = field(init=False)
    clean_draw: Tensor = field(init=False)
    noise: Tensor = field(init=False)

    def __post_init__(self) -> None:
        labels = [(kind, dim) for kind in self.kinds for dim in self.dims for _ in range(self.seeds)]
        most, wide = max(count for count, _ in KINDS.values()), max(self.dims)
        means = torch.zeros(len(labels), most, wide, dtype=torch.float64)
        absent = torch.full((len(labels), most), -math.inf, dtype=torch.float64)
        draws = torch.zeros(2, len(labels), self.rows, wide, dtype=torch.float64)
        stds = torch.tensor([KINDS[kind][1] for kind, _ in labels], dtype=torch.float64)[:, None, None]
        for i, (kind, dim) in enumerate(labels):
            count, std = KINDS[kind]
            draw = Noise.of(11, [i], dtype=torch.float64)
            found = draw.normal("means", (count, dim))[0]
            found = found - found.mean(0)
            means[i, :count, :dim] = found * math.sqrt(1.0 - std**2) / found.square().mean().sqrt()
            absent[i, :count] = 0.0
            own = Noise.of(12, range(i * self.rows, (i + 1) * self.rows), dtype=torch.float64)
            chosen = (own.normal("component", (count,))).argmax(1)
            draws[0, i, :, :dim] = own.normal("noise", (dim,))
            draws[1, i, :, :dim] = means[i, chosen, :dim] + std * own.normal("clean", (dim,))
        made = {"labels": labels, "means": means, "absent": absent, "variances": stds.square()}
        for name, value in {**made, "noise": draws[0], "clean_draw": draws[1]}.items():
            object.__setattr__(self, name, value)

    def clean(self, u: Tensor, bar: float) -> Tensor:
        """E[x_0 | x_0 + bar·z = u], (targets·rows, dims)."""
        x, v = u.reshape(self.noise.shape), self.variances + bar**2
        logits = (torch.bmm(x, self.means.mT) - 0.5 * self.means.square().sum(-1)[:, None]) / v + self.absent[:, None]
        mean = torch.bmm(torch.softmax(logits, -1), self.means)
        return (mean + self.variances / v * (x - mean)).reshape(u.shape)

    def classes(self, distances: Tensor) -> Errors:
        """The mean over the targets of a class, over √d."""
        means = distances.reshape(len(self.labels), -1).mean(1).tolist()
        out: dict[tuple[str, int], list[float]] = {}
        for label, mean in zip(self.labels, means, strict=True):
            out.setdefault(label, []).append(mean / math.sqrt(label[1]))
        return {label: sum(values) / len(values) for label, values in out.items()}


@dataclass(eq=False)
class Problem:
    """The targets times a scale on a path: a denoiser, its starts and their exact ends."""

    stack: Stack
    path: AffinePath
    scale: float

    def __post_init__(self) -> None:
        path, top = self.path, self.path.t_range[1]
        clean, noise = (draw.flatten(0, 1) for draw in (self.stack.clean_draw, self.stack.noise))
        self.start = path.alpha(top) * self.scale * clean + path.sigma(top) * noise
        bar = path.sigma_bar(top) / self.scale
        u = 1e5 * noise if math.isinf(bar) else clean + bar * noise
        self.exact = self._solved(u, min(bar, 1e5))

    def _solved(self, u: Tensor, top: float) -> Tensor:
        bars = np.geomspace(top, LOWEST, 2 * STEPS + 1).tolist()
        h = math.log(bars[0] / bars[2])

        def slope(u: Tensor, bar: float) -> Tensor:  # du/d(−log σ̄) = D − u
            return self.stack.clean(u, bar) - u

        for i in range(STEPS):
            begin, middle, end = bars[2 * i : 2 * i + 3]
            k1 = slope(u, begin)
            k2 = slope(u + 0.5 * h * k1, middle)
            k3 = slope(u + 0.5 * h * k2, middle)
            u = u + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + slope(u + h * k3, end))
        return self.stack.clean(u, LOWEST)

    def __call__(self, x: Tensor, t: Any) -> Estimate:
        """The exact estimate."""
        alpha, bar = self.path.alpha(t), self.path.sigma_bar(t) / self.scale
        scaled = torch.zeros_like(x) if alpha == 0.0 else self.stack.clean(x / (alpha * self.scale), bar)
        return Estimate(x, t, self.path, clean=self.scale * scaled)

    def errors(self, rule: Sampler, times: Sequence[float]) -> Errors:
        """Those of the classes."""
        quiet = Noise.of(0, range(len(self.start)), dtype=torch.float64)
        with torch.no_grad():
            found = run(solve(rule, self.path, self.start, times, quiet), self)
        return self.stack.classes((found / self.scale - self.exact).norm(dim=1))

    def compared(self, count: int, usual: bool = True) -> dict[str, Errors]:
        """`auto`, 2M on its grid and, with ``usual``, on each of its usual ones."""
        rule, grid = auto(self.path, count, 1, self.scale)
        times, two = grid(self.path), DPMSolver(points=2)
        out = {"auto": self.errors(rule, times), "2M, the grid of auto": self.errors(two, times)}
        for name, family in USUAL.items() if usual else ():
            out[f"2M, {name}"] = self.errors(two, family(count)(self.path))
        return out


def problems(stack: Stack, paths: Iterable[str] = PATHS, scales: Iterable[float] = SCALES) -> Iterator[Problem]:
    """On each path with each scale."""
    for name in paths:
        for scale in scales:
            yield Problem(stack, PATHS[name], scale)


def ratio(ours: float, theirs: float) -> float:
    """See the module."""
    return (ours + FLOOR) / (theirs + FLOOR)


def case(stack: Stack, path: str, scale: float, counts: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Rule → class → errors at all counts."""
    (problem,) = problems(stack, [path], [scale])
    rows: dict[str, dict[str, list[float]]] = {}
    for count in counts:
        for rule, errors in problem.compared(count).items():
            for (kind, dim), error in errors.items():
                rows.setdefault(rule, {}).setdefault(f"{kind} {dim}", []).append(float(f"{error:.3g}"))
    return rows


def page(document: dict[str, Any]) -> str:
    """Markdown: for every kind the geometric mean error and the worst ratios, a column for each count."""
    columns = range(len(document["counts"]))
    lines: list[list[str]] = []
    for kind in KINDS:
        rows = [
            (cell["auto"][name], *(cell[rule][name] for rule in cell if rule != "auto"))
            for cell in document["results"].values()
            for name in cell["auto"]
            if name.split()[0] == kind
        ]
        for title, place in (("`auto`", 0), ("2M, the grid of `auto`", 1)):
            means = [math.exp(sum(math.log(row[place][i] + 1e-6) for row in rows) / len(rows)) for i in columns]
            lines.append([f"{kind}: {title}", *(f"{mean:.2g}" for mean in means)])
        for title, places in (("its grid", (1,)), ("any of three", (1, 2, 3))):
            worst = [max(ratio(row[0][i], min(row[p][i] for p in places)) for row in rows) for i in columns]
            lines.append([f"worst ratio to 2M, {title}", *(f"{value:.2f}" for value in worst)])
    head = ["error, or ratio", *map(str, document["counts"])]
    rule = ["---", *("---:" for _ in columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few counts and targets: shows that it runs")
    parser.add_argument("--paths", nargs="*", default=list(PATHS), choices=list(PATHS), help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS / "practice-sweep.json")
    parser.add_argument("--markdown", action="store_true", help="print the table for the page; measure nothing")
    args = parser.parse_args()
    document: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    if not args.markdown:
        stack = Stack(seeds=1, rows=4) if args.quick else Stack()
        counts = [1, 5, 13] if args.quick else list(COUNTS)
        same = (document.get("counts"), document.get("seeds"), document.get("rows")) == (
            counts,
            stack.seeds,
            stack.rows,
        )
        results = document["results"] if same else {}
        for path, scale in ((path, scale) for path in args.paths for scale in SCALES):
            if f"{path}, scale {scale:g}" not in results:
                results[f"{path}, scale {scale:g}"] = case(stack, path, scale, counts)
                document = {"counts": counts, "seeds": stack.seeds, "rows": stack.rows, "results": results}
                write(args.out, "practice_sweep", 11, document, args.quick)
    print(page(document))


if __name__ == "__main__":
    main()
