"""What an order does not say: the effect of a wrong score, and of numbers in single precision, on every sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike, DenoiserWrapper
from ornstein.errors import ConfigError, PathError
from ornstein.estimates import Estimate
from ornstein.paths.base import AffinePath, Cond
from ornstein.randomness import Noise
from ornstein.samplers.base import Sampler, run, solve
from ornstein.samplers.named import SAMPLERS
from ornstein.scalars import Time

from .bench import PATHS, TARGETS, measuring_grid
from .laws import deterministic_tv, is_one_step, stochastic_tv
from .meters import NoiseBasis, aligned, gaussian_law, kl
from .over_times import over_times
from .perturbed import ScoreError
from .rates import Skipped, chosen, distinct
from .targets import GaussianTarget, MixtureTarget
from .trajectories import distances

_CONVERGED = 0.05  # a last step by less than this part of the error is a plateau


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One sampler on one target at several numbers of steps: ``exact`` and ``changed`` errors, in order of counts.

    ``with_sampling_config`` says whether the changed error has stopped moving: then the last of them is the plateau.
    """

    sampler: str
    target: str
    measure: str
    counts: tuple[int, ...]
    exact: tuple[float | None, ...]
    changed: tuple[float | None, ...]
    converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All effects of one change. ``change`` says in words what was changed."""

    study: str
    change: str
    path: str
    grid: str
    counts: tuple[int, ...]
    effects: tuple[Effect, ...]
    skipped: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values."""
        return asdict(self)


def score_error(
    error: ScoreError,
    samplers: Iterable[str] | None = None,
    targets: Iterable[str] = ("G8", "M1"),
    path: str = "vp",
    grid: str = "log-snr",
    counts: Sequence[int] = (32, 128, 512),
    progress: Callable[[str], None] = lambda _: None,
    known: Mapping[str, Callable[[], Sampler]] = SAMPLERS,
) -> Study:
    """Every sampler with the exact score and with ``error`` in it, in law.

    √KL on Gaussians and total variation on the line. With a wrong score the error of n steps no longer falls to zero
    but to a plateau, where the discretisation has nothing left to say. The plateau may be approached from below: the
    two errors can have different signs.

    Raises:
        ConfigError: an unknown sampler, target, path or grid.
    """
    law, names = _path(path), list(targets)
    for name in names:
        if name not in TARGETS:
            raise ConfigError(f"unknown target {name!r}: choose one of {', '.join(TARGETS)}")
    effects: list[Effect] = []
    skipped: list[Skipped] = []
    for name, rule in distinct(known if samplers is None else chosen(samplers, known)):
        for target in names:
            progress(f"{name} on {target}")
            try:
                measure, meter = _meter(rule, TARGETS[target](), law, measuring_grid(grid, 16)(law), error)
            except PathError as problem:
                skipped.append(Skipped(sampler=name, target=target, reason=str(problem)))
                continue
            pairs = [meter(measuring_grid(grid, n)(law)) for n in counts]
            effects.append(_effect(name, target, measure, counts, pairs))
    return Study(
        study="score-error",
        change=str(error),
        path=path,
        grid=grid,
        counts=tuple(counts),
        effects=tuple(effects),
        skipped=tuple(skipped),
    )


def _effect(
    name: str, target: str, measure: str, counts: Sequence[int], pairs: Sequence[tuple[float, float]]
) -> Effect:
    exact, changed = zip(*pairs, strict=True)
    converged = len(changed) > 1 and abs(changed[-1] - changed[-2]) <= _CONVERGED * abs(changed[-1])
    return Effect(
        sampler=name,
        target=target,
        measure=measure,
        counts=tuple(counts),
        exact=tuple(e if math.isfinite(e) else None for e in exact),
        changed=tuple(e if math.isfinite(e) else None for e in changed),
        converged=converged,
    )


Meter = Callable[[Sequence[float]], tuple[float, float]]


def _meter(
    rule: Sampler, exact: MixtureTarget, path: AffinePath, short: Sequence[float], error: ScoreError
) -> tuple[str, Meter]:
    """(measure, times → (error with the exact score, error with the wrong one)); `PathError` where there is none."""
    basis = NoiseBasis()
    run(solve(rule, path, exact.means[:1] * 0.0 + 0.5, short, basis), exact.denoiser(path))
    both = exact.denoiser(path), error(exact.denoiser(path))
    if isinstance(exact, GaussianTarget):
        if not error.linear:
            raise PathError("a wave in the score is not affine: a Gaussian target is no longer exact, take M1")
        if basis.draws_times:

            def over(times: Sequence[float]) -> tuple[float, float]:
                plain, wrong = (over_times(rule, exact, path, times, through=through) for through in (_same, error))
                return plain.root_kl, wrong.root_kl

            return "√KL, law", over
        own = aligned(exact)
        turned = own.denoiser(path), error(own.denoiser(path))

        def gaussian(times: Sequence[float]) -> tuple[float, float]:
            law = own.law(path, times[-1])
            plain, wrong = (kl(gaussian_law(rule, own, path, times, denoiser=model), law) for model in turned)
            return math.sqrt(max(plain, 0.0)), math.sqrt(max(wrong, 0.0))

        return "√KL", gaussian
    if exact.dim != 1:
        raise PathError("the effect of a wrong score is measured in law, on Gaussians and on the line")
    if not basis.stochastic:
        what = "TV, times given" if basis.draws_times else "TV"

        def maps(times: Sequence[float]) -> tuple[float, float]:
            plain, wrong = (deterministic_tv(rule, exact, path, times, points=1001, denoiser=model) for model in both)
            return plain, wrong

        return what, maps
    if not is_one_step(rule, exact, path, short):
        raise PathError("no exact law of a stochastic sampler with memory on a mixture")

    def density(times: Sequence[float]) -> tuple[float, float]:
        plain, wrong = (stochastic_tv(rule, exact, path, times, points=1024, nodes=5, denoiser=model) for model in both)
        return plain, wrong

    return "TV", density


def _same(denoiser: DenoiserLike) -> DenoiserLike:
    return denoiser


def precision(
    samplers: Iterable[str] | None = None,
    target: str = "M2",
    path: str = "vp",
    grid: str = "log-snr",
    counts: Sequence[int] = (64, 256, 1024),
    trajectories: int = 256,
    progress: Callable[[str], None] = lambda _: None,
    known: Mapping[str, Callable[[], Sampler]] = SAMPLERS,
) -> Study:
    """What single precision costs: the median distance between the same run in float32 and in float64.

    ``changed`` is the whole state in float32, ``exact`` a state in float64 with a network that answers in float32. An
    order can be read off errors well above the first, if the state is kept in float32. Starts, noise and drawn times
    are shared, so stochastic samplers have a floor as well.

    Raises:
        ConfigError: an unknown sampler, target, path or grid.
    """
    if target not in TARGETS:
        raise ConfigError(f"unknown target {target!r}: choose one of {', '.join(TARGETS)}")
    law, noise = _path(path), Noise.of(0, range(trajectories))
    double, exact = Noise.of(0, range(trajectories), dtype=torch.float64), TARGETS[target]()
    effects: list[Effect] = []
    skipped: list[Skipped] = []
    for name, rule in distinct(known if samplers is None else chosen(samplers, known)):
        progress(f"{name} on {target}")
        pairs: list[tuple[float, float]] = []
        try:
            for n in counts:
                times = measuring_grid(grid, n)(law)
                model, x = exact.denoiser(law), exact.start(double, law, times[0]).to(torch.float32)
                fine = run(solve(rule, law, x.double(), times, double), model)
                rounded = run(solve(rule, law, x.double(), times, double), _Rounded(model))
                single = run(solve(rule, law, x, times, noise), model)
                pairs.append((distances(rounded, fine).median, distances(single.double(), fine).median))
        except PathError as problem:
            skipped.append(Skipped(sampler=name, target=target, reason=str(problem)))
            continue
        effects.append(_effect(name, target, "median distance", counts, pairs))
    return Study(
        study="precision",
        change="float32 in place of float64",
        path=path,
        grid=grid,
        counts=tuple(counts),
        effects=tuple(effects),
        skipped=tuple(skipped),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Rounded(DenoiserWrapper):
    """A denoiser whose answers passed through float32, as a network's do."""

    inner: DenoiserLike

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        return Estimate(x, t, self.path, clean=self.inner(x, t).clean.to(torch.float32).to(x.dtype))

    def with_condition(self, cond: Cond) -> _Rounded:
        return _Rounded(self.inner.with_condition(cond))


def _path(name: str) -> AffinePath:
    if name not in PATHS:
        raise ConfigError(f"unknown path {name!r}: choose one of {', '.join(PATHS)}")
    return PATHS[name]()


__all__ = ["Effect", "Study", "precision", "score_error"]
