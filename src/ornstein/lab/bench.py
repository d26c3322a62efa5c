"""One sampler on one exact target: which error to measure there, at which step counts, and the order it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from ornstein.errors import ConfigError, PathError
from ornstein.grids import Grid, affine, span_log_snr
from ornstein.paths import VE, VP, Flow
from ornstein.paths.base import AffinePath, Path
from ornstein.randomness import Noise, mix
from ornstein.samplers.accelerated import AcceleratedODE, AcceleratedSDE, MidpointSDE
from ornstein.samplers.base import Sampler, plan, run, solve
from ornstein.samplers.midpoint import RandomizedMidpoint

from . import targets as _targets
from .backward import BLUR, blurred_w1
from .laws import deterministic_tv, is_one_step, stochastic_tv
from .meters import NoiseBasis, aligned, gaussian_law, kl, w2
from .over_times import over_times
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


@dataclass(frozen=True, slots=True)
class _Effort:
    """How much of everything a run spends."""

    counts: int | None  # at most so many step counts
    line: int  # points on the line for maps,
    cells: int  # and for densities
    nodes: int  # of the noise inside a step
    schedules: int  # drawn times, where no exact average exists
    samples: int  # where the law of a sampler with memory is simulated
    reference: int  # steps of the fine solution


_QUICK = _Effort(counts=4, line=1001, cells=1024, nodes=5, schedules=8, samples=8_000, reference=600)
_FULL = _Effort(counts=None, line=2001, cells=2048, nodes=9, schedules=60, samples=100_000, reference=2000)


def claimed(rule: Sampler, *, gaussian: bool = False, all_draws: bool = False) -> float:
    """The order a sampler declares for one kind of measurement.

    `Sampler.order` is the order on every target and, of a rule that draws its times, given them. Some are better
    than that where the score is linear (``gaussian``) or in the law over all draws of the times.
    """
    if all_draws and isinstance(rule, RandomizedMidpoint):
        return 2
    if gaussian and isinstance(rule, AcceleratedSDE):
        return 2
    if gaussian and isinstance(rule, MidpointSDE):
        return 3
    return rule.order


def _bends(rule: Sampler) -> bool:
    """Whether a rule shows its order late: the extrapolated score of the paper's accelerated ODE, and the slope of the
    exponential midpoint SDE, which dips between 64 and 128 steps.
    """
    if isinstance(rule, MidpointSDE):
        return rule.form == "exponential"
    return isinstance(rule, AcceleratedODE) and rule.form != "memory"


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


@dataclass(frozen=True, slots=True)
class Bench:
    """One sampler on one target. ``asked`` are the step counts, by default chosen by the declared order."""

    name: str
    rule: Sampler
    target: str
    path: AffinePath
    grid: str = "log-snr"
    asked: tuple[int, ...] = ()
    quick: bool = False

    @property
    def effort(self) -> _Effort:
        """What quick leaves out."""
        return _QUICK if self.quick else _FULL

    def times(self, steps: int) -> tuple[float, ...]:
        """The grid of so many steps."""
        return measuring_grid(self.grid, steps, _STOPS.get(self.target, 0.02))(self.path)

    def series(self) -> list[Series]:
        """All measurements there are for this pair.

        Raises:
            PathError: there is none; the message says why.
        """
        exact = TARGETS[self.target]()
        draws = self._draws(exact)
        if isinstance(exact, GaussianTarget):
            return self._over_times(exact) if draws.draws_times else self._gaussian(exact)
        if draws.draws_times:
            return [self._given_times(exact)]
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

    def _gaussian(self, exact: GaussianTarget) -> list[Series]:
        low = 64 if _bends(self.rule) else 32
        counts = self.asked or self._counts(low, 256 if self.rule.order > 2 else 16 * low)
        kls, w2s = [], []
        for n in counts:
            times = self.times(n)
            found, law = gaussian_law(self.rule, exact, self.path, times), aligned(exact).law(self.path, times[-1])
            kls.append(math.sqrt(max(kl(found, law), 0.0)))
            w2s.append(w2(found, law))
        order = claimed(self.rule, gaussian=True)
        return [
            self._fitted("√KL", counts, kls, declared=order, floor=1e-13, ceiling=2.0),
            self._fitted("W2", counts, w2s, declared=order, floor=1e-13, ceiling=3.0),
        ]

    def _over_times(self, exact: GaussianTarget) -> list[Series]:
        """Both errors of a sampler that draws its times, exactly."""
        counts = self.asked or self._counts(32, 512)
        nodes = 5 if self.quick else 8  # the smallest counts differ by 1e-10 of the error
        found = [over_times(self.rule, exact, self.path, self.times(n), nodes=nodes) for n in counts]
        given = [law.conditional_root_kl for law in found]
        law = [law.root_kl for law in found]
        over = claimed(self.rule, gaussian=True, all_draws=True)
        return [
            self._fitted(
                "√KL, times given", counts, given, floor=1e-9, note="root mean KL over all drawn times, exact"
            ),
            self._fitted("√KL, law", counts, law, declared=over, floor=1e-9, note="of the law over all drawn times"),
        ]

    def _given_times(self, exact: MixtureTarget) -> Series:
        """On a mixture: the error given the times, averaged over some draws of them."""
        counts = self.asked or self._counts(16, 128)
        seeds = [mix("lab", "times", i) for i in range(self.effort.schedules)]
        note = f"given the drawn times, mean over {len(seeds)} draws"
        if exact.dim == 1:

            def total_variation(n: int, seed: int) -> float:
                return deterministic_tv(self.rule, exact, self.path, self.times(n), points=801, seed=seed)

            errors = [sum(total_variation(n, seed) for seed in seeds) / len(seeds) for n in counts]
            return self._fitted("TV, times given", counts, errors, floor=1e-12, ceiling=0.5, note=note)
        errors = self._distances(exact, counts, seeds)
        return self._fitted("median distance, times given", counts, errors, floor=1e-9, ceiling=1.0, note=note)

    def _line(self, exact: MixtureTarget, stochastic: bool) -> Series:
        if not stochastic:
            costly = len(plan(self.rule, self.path, self.times(8))) > 24
            low = 64 if _bends(self.rule) else 32 if self.rule.order > 2 and not (self.quick and costly) else 16
            counts = self.asked or self._counts(low, max(256, 8 * low))
            points = self.effort.line
            errors = [deterministic_tv(self.rule, exact, self.path, self.times(n), points=points) for n in counts]
            return self._fitted("TV", counts, errors, floor=1e-12, ceiling=0.5)
        counts = self.asked or (self._counts(32, 256) if _bends(self.rule) else self._counts(8, 128))
        if not is_one_step(self.rule, exact, self.path, self.times(16)):
            return self._simulated(exact, counts)
        cells, nodes = self.effort.cells, self.effort.nodes
        errors = [stochastic_tv(self.rule, exact, self.path, self.times(n), points=cells, nodes=nodes) for n in counts]
        return self._fitted("TV", counts, errors, floor=1e-9, ceiling=0.5)

    def _simulated(self, exact: MixtureTarget, counts: Sequence[int]) -> Series:
        """Stochastic with memory: its law from the local errors along simulated runs."""
        found = [blurred_w1(self.rule, exact, self.path, self.times(n), samples=self.effort.samples) for n in counts]
        noise = [one.noise for one in found]
        note = f"both laws blurred by {BLUR:g}; sampling noise " + ", ".join(f"{value:.0e}" for value in noise)
        return self._fitted("W1", counts, [one.w1 for one in found], noise=noise, ceiling=1.0, note=note)

    def _coupled(self, exact: MixtureTarget) -> Series:
        low = 64 if _bends(self.rule) else 16
        counts = self.asked or self._counts(low, max(256, 8 * low))
        return self._fitted("median distance", counts, self._distances(exact, counts, [0]), floor=1e-9, ceiling=1.0)

    def _distances(self, exact: MixtureTarget, counts: Sequence[int], seeds: Sequence[int]) -> list[float]:
        """Median distances to the fine solution from the same starts, mean over the drawn times of ``seeds``."""
        first, last = self.times(1)
        rows = range(_TRAJECTORIES)
        x, denoiser = exact.start(Noise.of(0, rows), self.path, first), exact.denoiser(self.path)
        reference = _reference(self.target, self.path, first, last, self.effort.reference)

        def distance(n: int, seed: int) -> float:
            return coupled(self.rule, denoiser, x, self.times(n), Noise.of(seed, rows), reference).median

        return [sum(distance(n, seed) for seed in seeds) / len(seeds) for n in counts]

    def _counts(self, low: int, high: int) -> tuple[int, ...]:
        """Doublings; a quick run drops the dear end but keeps four points."""
        out = [low]
        while out[-1] < high:
            out.append(2 * out[-1])
        return tuple(out[: self.effort.counts])

    def _fitted(
        self,
        measure: str,
        counts: Sequence[int],
        errors: Sequence[float],
        *,
        declared: float | None = None,
        floor: float = 0.0,
        noise: Sequence[float] = (),
        ceiling: float = 2.0,
        note: str = "",
    ) -> Series:
        found = fit(counts, errors, floor=floor, ceiling=ceiling, noise=noise)
        order = self.rule.order if declared is None else declared
        return Series(
            sampler=self.name,
            target=self.target,
            measure=measure,
            declared=order,
            counts=tuple(counts),
            evaluations=tuple(_calls(self.rule, self.path, self.times(n)) for n in counts),
            errors=tuple(e if math.isfinite(e) else None for e in errors),
            fit=found,
            verdict=found.verdict(order),
            note=note,
        )


@lru_cache(maxsize=8)
def _reference(target: str, path: AffinePath, first: float, last: float, steps: int) -> Tensor:
    """The fine solution, shared by all samplers."""
    exact = TARGETS[target]()
    return flow(exact.denoiser(path), exact.start(Noise.of(0, range(_TRAJECTORIES)), path, first), first, last, steps)


@lru_cache(maxsize=256)
def _calls(rule: Sampler, path: AffinePath, times: tuple[float, ...]) -> int:
    """Evaluations of a descent. Rules cost the same in every later step, so two short dry runs tell a long one.

    The short ones are the long one's first steps: a last step down to its end would be wide, and cost a jump.
    """
    if len(times) <= 25:
        return len(plan(rule, path, times))
    few, more = (len(plan(rule, path, times[:n])) for n in (12, 13))
    return few + (len(times) - 12) * (more - few)
