"""Measured orders of convergence beside the declared ones: every sampler, on targets with exact answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from ornstein.errors import ConfigError, PathError
from ornstein.grids import Grid, affine, span_log_snr
from ornstein.paths import VE, VP, Flow
from ornstein.paths.base import AffinePath, Path
from ornstein.randomness import Noise
from ornstein.samplers.base import Sampler, plan, run, solve
from ornstein.samplers.named import SAMPLERS, sampler

from . import targets as _targets
from .laws import deterministic_tv, is_one_step, stochastic_tv
from .meters import NoiseBasis, aligned, conditional_root_kl, gaussian_law, kl, w2
from .slopes import Fit, Verdict, fit
from .targets import GaussianTarget, MixtureTarget
from .trajectories import coupled, flow

GridName = Literal["log-snr", "karras"]
PathName = Literal["vp", "ve", "flow"]

PATHS: Mapping[str, Callable[[], AffinePath]] = {"vp": VP, "ve": VE, "flow": Flow}
TARGETS: Mapping[str, Callable[[], MixtureTarget]] = {
    name: getattr(_targets, name) for name in ("G8", "Giso", "Gdeg", "M1", "M1s", "M1p", "M2", "M64")
}
_STOPS = {"M1s": 0.01}  # least σ̄ of the measurement; .02 elsewhere
_TOP = 80.0
_TRAJECTORIES = 256
_DRAWS = (24, 200)  # of random times, quick and full


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Errors of one sampler on one target in one measure, and the order they show.

    ``errors[i]`` belongs to ``counts[i]`` steps and ``evaluations[i]`` calls of the denoiser; None where the meter
    does not hold there (a folded map). ``note`` says what is special about the measurement.
    """

    sampler: str
    target: str
    measure: str
    declared: float
    counts: tuple[int, ...]
    evaluations: tuple[int, ...]
    errors: tuple[float | None, ...]
    fit: Fit
    verdict: Verdict
    note: str = ""

    @property
    def passed(self) -> bool:
        """No slower than declared."""
        return self.verdict != "below"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """What could not be measured, and why."""

    sampler: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All series of one run. ``passed`` is False as soon as one measured order is below its declared one."""

    path: str
    grid: str
    quick: bool
    seconds: float
    series: tuple[Series, ...]
    skipped: tuple[Skipped, ...]

    @property
    def passed(self) -> bool:
        """Whether every sampler has at least the order it declares."""
        return all(series.passed for series in self.series)

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values."""
        return {**asdict(self), "passed": self.passed}


def measuring_grid(name: str, steps: int, low: float = 0.02, high: float = _TOP) -> Grid:
    """``steps`` steps from σ̄ = high to σ̄ = low without a jump to zero: equal in log-SNR, or in σ̄^{1/7}."""
    if name == "log-snr":
        return span_log_snr(steps, -2.0 * math.log(high), -2.0 * math.log(low))
    if name != "karras":
        raise ConfigError(f"unknown grid {name!r}: choose log-snr or karras")
    ends = high ** (1.0 / 7.0), low ** (1.0 / 7.0)

    def rule(path: Path) -> tuple[float, ...]:
        bars = ((ends[0] + (ends[1] - ends[0]) * i / steps) ** 7 for i in range(steps + 1))
        return tuple(affine(path).time_of(-2.0 * math.log(bar)) for bar in bars)

    return Grid(f"karras-span({steps})", rule)


def measure(
    samplers: Iterable[str] | None = None,
    targets: Iterable[str] = ("G8", "M1"),
    path: str = "vp",
    grid: str = "log-snr",
    counts: Sequence[int] | None = None,
    quick: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    known: Mapping[str, Callable[[], Sampler]] = SAMPLERS,
) -> Report:
    """Measure the order of every named sampler (default: all) on every target.

    Gaussian targets are measured exactly in √KL and W2; targets on the line in the exact total variation; the others
    by the median distance of coupled trajectories. ``counts`` are step counts, by default chosen by declared order.
    ``known`` is the registry of names.

    Raises:
        ConfigError: an unknown sampler, target, path or grid.
    """
    begin = time.perf_counter()
    if path not in PATHS:
        raise ConfigError(f"unknown path {path!r}: choose one of {', '.join(PATHS)}")
    measuring_grid(grid, 1)
    chosen_targets = [_known_target(name) for name in targets]
    law = PATHS[path]()
    series: list[Series] = []
    skipped: list[Skipped] = []
    for name, rule in _distinct(known if samplers is None else _chosen(samplers, known)):
        for target in chosen_targets:
            progress(f"{name} on {target}")
            try:
                series += _Bench(name, rule, target, law, grid, tuple(counts or ()), quick).series()
            except PathError as error:
                skipped.append(Skipped(sampler=name, target=target, reason=str(error)))
    seconds = round(time.perf_counter() - begin, 1)
    return Report(path=path, grid=grid, quick=quick, seconds=seconds, series=tuple(series), skipped=tuple(skipped))


def _known_target(name: str) -> str:
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}: choose one of {', '.join(TARGETS)}")
    return name


def _chosen(names: Iterable[str], known: Mapping[str, Callable[[], Sampler]]) -> Mapping[str, Callable[[], Sampler]]:
    # An unknown name gets the registry's own message, with the closest names first.
    return {name: known[name] if name in known else lambda n=name: sampler(n) for name in names}


def _distinct(known: Mapping[str, Callable[[], Sampler]]) -> list[tuple[str, Sampler]]:
    """Aliases are measured once, under their first name."""
    out: list[tuple[str, Sampler]] = []
    for name, make in known.items():
        rule = make()
        if all(rule != other for _, other in out):
            out.append((name, rule))
    return out


@lru_cache(maxsize=256)
def _calls(rule: Sampler, path: AffinePath, times: tuple[float, ...]) -> int:
    return len(plan(rule, path, times))


@dataclass(frozen=True, slots=True)
class _Bench:
    """One sampler on one target."""

    name: str
    rule: Sampler
    target: str
    path: AffinePath
    grid: str
    asked: tuple[int, ...]
    quick: bool

    def times(self, steps: int) -> tuple[float, ...]:
        return measuring_grid(self.grid, steps, _STOPS.get(self.target, 0.02))(self.path)

    def series(self) -> list[Series]:
        exact = TARGETS[self.target]()
        draws = self._draws(exact)
        if isinstance(exact, GaussianTarget):
            return self._gaussian(exact, draws)
        if draws.draws_times:
            raise PathError("a sampler that draws its times is measured on Gaussian targets only")
        if exact.dim == 1:
            return [self._line(exact, draws.stochastic)]
        if draws.stochastic:
            raise PathError("a stochastic sampler is measured in law, which is exact on Gaussians and on the line only")
        return [self._coupled(exact)]

    def _draws(self, exact: MixtureTarget) -> NoiseBasis:
        """What kinds of random numbers the sampler asks for, from a short run."""
        basis = NoiseBasis()
        x = exact.means[:1] * 0.0 + 0.5
        run(solve(self.rule, self.path, x, self.times(4), basis), exact.denoiser(self.path))
        return basis

    def _gaussian(self, exact: GaussianTarget, draws: NoiseBasis) -> list[Series]:
        counts = self.asked or self._counts(32, 256 if self.rule.order > 2 else 512)
        if draws.draws_times:
            draws_of = _DRAWS[0] if self.quick else _DRAWS[1]
            errors = [conditional_root_kl(self.rule, exact, self.path, self.times(n), draws_of) for n in counts]
            note = f"conditional on the drawn times, root mean over {draws_of} draws"
            return [self._fitted("√KL", counts, errors, floor=1e-13, ceiling=2.0, note=note)]
        kls, w2s = [], []
        for n in counts:
            times = self.times(n)
            found, law = gaussian_law(self.rule, exact, self.path, times), aligned(exact).law(self.path, times[-1])
            kls.append(math.sqrt(max(kl(found, law), 0.0)))
            w2s.append(w2(found, law))
        return [
            self._fitted("√KL", counts, kls, floor=1e-13, ceiling=2.0),
            self._fitted("W2", counts, w2s, floor=1e-13, ceiling=3.0),
        ]

    def _line(self, exact: MixtureTarget, stochastic: bool) -> Series:
        if not stochastic:
            counts = self.asked or self._counts(32 if self.rule.order > 2 else 16, 256)
            errors = [deterministic_tv(self.rule, exact, self.path, self.times(n), points=2001) for n in counts]
            return self._fitted("TV", counts, errors, floor=1e-12, ceiling=0.5)
        if not is_one_step(self.rule, exact, self.path, self.times(16)):
            raise PathError("no exact law of a stochastic sampler with memory on a mixture: see its Gaussian row")
        counts = self.asked or self._counts(8, 128)
        errors = [stochastic_tv(self.rule, exact, self.path, self.times(n)) for n in counts]
        return self._fitted("TV", counts, errors, floor=1e-9, ceiling=0.5)

    def _coupled(self, exact: MixtureTarget) -> Series:
        counts = self.asked or self._counts(16, 256)
        first, last = self.times(1)
        noise = Noise.of(0, range(_TRAJECTORIES))
        x, denoiser = exact.start(noise, self.path, first), exact.denoiser(self.path)
        reference = flow(denoiser, x, first, last, 800 if self.quick else 2000)
        errors = [coupled(self.rule, denoiser, x, self.times(n), noise, reference).median for n in counts]
        return self._fitted("median distance", counts, errors, floor=1e-9, ceiling=1.0)

    def _counts(self, low: int, high: int) -> tuple[int, ...]:
        """Doublings; a quick run drops the dear end but keeps four points."""
        out = [low]
        while out[-1] < high:
            out.append(2 * out[-1])
        return tuple(out[:4] if self.quick else out)

    def _fitted(
        self,
        measure: str,
        counts: Sequence[int],
        errors: Sequence[float],
        *,
        floor: float,
        ceiling: float,
        note: str = "",
    ) -> Series:
        found = fit(counts, errors, floor=floor, ceiling=ceiling)
        return Series(
            sampler=self.name,
            target=self.target,
            measure=measure,
            declared=self.rule.order,
            counts=tuple(counts),
            evaluations=tuple(_calls(self.rule, self.path, self.times(n)) for n in counts),
            errors=tuple(e if math.isfinite(e) else None for e in errors),
            fit=found,
            verdict=found.verdict(self.rule.order),
            note=note,
        )
