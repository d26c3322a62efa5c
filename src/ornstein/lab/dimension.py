"""How a sampler's error grows with the dimension d, at a fixed number of evaluations.

Copies of one law in every coordinate cannot tell: there every sampler's error is √d times that of one coordinate,
exactly. (The family "product" shows it.) So the exponent is measured on targets whose coordinates belong together:

    mixture     eight normals of random means and spectra, total variance 4 whatever d
    low-rank    eight components, each with 8 eigenvalues in [.05, .5] and the rest at 1e-4, as `M64`

The error is the median distance of coupled trajectories to the fine solution (the root mean square in the product
family, where it is exact), for several draws of the target. Least squares of log error on log d over all of them gives
the exponent and its 95 % interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import ConfigError
from ornstein.estimates import Estimate
from ornstein.paths.base import AffinePath
from ornstein.randomness import Noise, generator, mix
from ornstein.samplers.base import Sampler, plan, run, solve
from ornstein.samplers.named import sampler
from ornstein.samplers.unipc import UniPC
from ornstein.scalars import Time

from .bench import PATHS, measuring_grid
from .slopes import least_squares
from .targets import M1, MixtureTarget, OnPath
from .trajectories import distances

DIMENSIONS = (4, 16, 64, 256)
COMPARED = ("randomized-midpoint", "staggered-midpoint", "ddim", "dpmpp-2m")
FAMILIES = ("product", "mixture", "low-rank")
_FINE = 400  # steps of the reference, of order 4
_TOTAL = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Errors of one sampler at ``dimensions``, one row a draw of the target, and error ∝ d^exponent through them."""

    sampler: str
    family: str
    measure: str
    steps: int
    evaluations: int
    dimensions: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]
    exponent: float
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionReport:
    """All growths of one run."""

    path: str
    grid: str
    seconds: float
    growths: tuple[Growth, ...]

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values."""
        return {"study": "dimension", **asdict(self)}


@dataclass(frozen=True, slots=True, eq=False)
class Product(OnPath):
    """``base`` (1-D) in every coordinate, independently: a denoiser on states (B, d)."""

    base: MixtureTarget
    path: AffinePath

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """Coordinate by coordinate."""
        clean = self.base.denoiser(self.path)(x.reshape(-1, 1), t).clean
        return Estimate(x, t, self.path, clean=clean.reshape(x.shape))


def random_mixture(dim: int, draw: int = 0, components: int = 8) -> MixtureTarget:
    """Means N(0, I·2/d) and variances of exponential law with mean 2/d: a total variance of 4 for every d."""
    rng = generator("lab", "dimension", "mixture", dim, draw)
    half = 0.5 * _TOTAL / dim
    means = torch.from_numpy(rng.standard_normal((components, dim))) * math.sqrt(half)
    variances = torch.from_numpy(rng.exponential(half, (components, dim)))
    return MixtureTarget(torch.full((components,), 1.0 / components, dtype=torch.float64), means, variances)


def low_rank_mixture(dim: int, draw: int = 0, components: int = 8) -> MixtureTarget:
    """Means N(0, I), 8 eigenvalues (all if d < 8) in [.05, .5] along random axes and the others at 1e-4."""
    rng = generator("lab", "dimension", "low-rank", dim, draw)
    means = torch.from_numpy(rng.standard_normal((components, dim)))
    variances = torch.full((components, dim), 1e-4, dtype=torch.float64)
    for row in variances:
        axes = torch.from_numpy(rng.permutation(dim)[:8])
        row[axes] = torch.from_numpy(rng.uniform(0.05, 0.5, len(axes)))
    return MixtureTarget(torch.full((components,), 1.0 / components, dtype=torch.float64), means, variances)


def dimension(
    samplers: Iterable[str] | None = None,
    families: Iterable[str] = FAMILIES,
    dimensions: Sequence[int] = DIMENSIONS,
    path: str = "vp",
    grid: str = "log-snr",
    steps: int = 64,
    targets: int = 4,
    schedules: int = 8,
    trajectories: int = 128,
    progress: Callable[[str], None] = lambda _: None,
) -> DimensionReport:
    """The growth of every named sampler's error in d (default: the randomized midpoint and three to compare with).

    ``targets`` draws of every target; a sampler that draws its times is averaged over ``schedules`` of them.

    Raises:
        ConfigError: an unknown name, fewer than three dimensions, or a sampler that adds noise (it has no trajectory).
    """
    begin = time.perf_counter()
    if path not in PATHS:
        raise ConfigError(f"unknown path {path!r}: choose one of {', '.join(PATHS)}")
    if len(set(dimensions)) < 3:
        raise ConfigError(f"an exponent needs at least three dimensions, got {list(dimensions)}")
    law, names = PATHS[path](), list(samplers or COMPARED)
    rules = {name: sampler(name, import_paths=True) for name in names}
    study = _Growing(law, measuring_grid(grid, steps)(law), measuring_grid(grid, _FINE)(law), schedules, trajectories)
    for name, rule in rules.items():
        if study.stochastic(rule):
            raise ConfigError(f"{name} adds noise and has no trajectory to compare: choose a deterministic sampler")
    growths: list[Growth] = []
    for family in families:
        rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
        for draw in range(1 if family == "product" else targets):
            columns: list[list[float]] = []
            for d in dimensions:
                progress(f"{family}, d = {d}, target {draw + 1}")
                columns.append(study.errors(family, d, draw, list(rules.values())))
            for name, errors in zip(names, zip(*columns, strict=True), strict=True):
                rows[name].append(tuple(errors))
        growths += [
            _fitted(name, family, steps, len(plan(rules[name], law, study.times)), dimensions, rows[name])
            for name in names
        ]
    seconds = round(time.perf_counter() - begin, 1)
    return DimensionReport(path=path, grid=grid, seconds=seconds, growths=tuple(growths))


def _fitted(
    name: str, family: str, steps: int, evaluations: int, dimensions: Sequence[int], rows: Sequence[tuple[float, ...]]
) -> Growth:
    points = [(math.log(d), math.log(e)) for row in rows for d, e in zip(dimensions, row, strict=True)]
    exponent, half = least_squares(*zip(*points, strict=True))
    return Growth(
        sampler=name,
        family=family,
        measure="root mean square distance" if family == "product" else "median distance",
        steps=steps,
        evaluations=evaluations,
        dimensions=tuple(dimensions),
        errors=tuple(rows),
        exponent=exponent,
        half_width=half,
    )


@dataclass(frozen=True, slots=True)
class _Growing:
    """The shared settings of one run."""

    path: AffinePath
    times: tuple[float, ...]
    fine: tuple[float, ...]
    schedules: int
    trajectories: int

    def errors(self, family: str, dim: int, draw: int, rules: Sequence[Sampler]) -> list[float]:
        """One error a rule, all from the same starts and against the same fine solution."""
        denoiser, x = self._problem(family, dim, draw)
        rows = range(len(x))
        reference = run(solve(UniPC(p=3), self.path, x, self.fine, Noise.of(0, rows)), denoiser)
        out: list[float] = []
        for rule in rules:
            seeds = [mix("lab", "dimension", i) for i in range(self.schedules)] if self._draws_times(rule) else [0]
            found = 0.0
            for seed in seeds:
                gaps = distances(run(solve(rule, self.path, x, self.times, Noise.of(seed, rows)), denoiser), reference)
                found += gaps.rms if family == "product" else gaps.median
            out.append(found / len(seeds))
        return out

    def _problem(self, family: str, dim: int, draw: int) -> tuple[Any, Tensor]:
        if family == "product":
            return Product(M1(), self.path), self._product_starts(dim)
        makers = {"mixture": random_mixture, "low-rank": low_rank_mixture}
        if family not in makers:
            raise ConfigError(f"unknown family {family!r}: choose one of {', '.join(FAMILIES)}")
        target = makers[family](dim, draw)
        return target.denoiser(self.path), target.start(Noise.of(0, range(self.trajectories)), self.path, self.times[0])

    def _product_starts(self, dim: int) -> Tensor:
        """The same points of the line in every coordinate, in another order: the root mean square is exactly ∝ √d."""
        line = M1().start(Noise.of(0, range(self.trajectories)), self.path, self.times[0])[:, 0]
        orders = [generator("lab", "dimension", "order", j).permutation(len(line)) for j in range(dim)]
        return torch.stack([line[torch.from_numpy(order)] for order in orders], dim=1)

    def _draws_times(self, rule: Sampler) -> bool:
        return plan(rule, self.path, self.times, seed=1) != plan(rule, self.path, self.times, seed=2)

    def stochastic(self, rule: Sampler) -> bool:
        """Whether the rule adds noise: two seeds of the samples end apart at the same drawn times."""
        denoiser = random_mixture(2).denoiser(self.path)
        x = torch.ones(1, 2, dtype=torch.float64)
        one, two = (Noise(seeds=(seed,), shared=0) for seed in (1, 2))
        ends = [run(solve(rule, self.path, x, self.times[-3:], noise), denoiser) for noise in (one, two)]
        return bool((ends[0] != ends[1]).any())


__all__ = ["COMPARED", "DIMENSIONS", "FAMILIES", "DimensionReport", "Growth", "dimension"]
