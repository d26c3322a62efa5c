"""What the reproductions of the accelerated samplers measure, one function a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import grids
from ...denoisers import DenoiserLike, DenoiserWrapper
from ...estimates import Estimate
from ...grids import Grid
from ...lab.assumptions import Rippled
from ...lab.extended import at_ou_time
from ...lab.laws import deterministic_tv, stochastic_tv
from ...lab.meters import aligned, gaussian_law, kl
from ...lab.rates import TARGETS, measuring_grid
from ...lab.targets import GaussianTarget, Giso
from ...lab.trajectories import coupled, flow
from ...paths import VP
from ...paths.base import AffinePath, Cond
from ...paths.vp import Linear
from ...randomness import Noise, NoiseSource
from ...samplers import ExponentialIntegrator, Query, Sampler, run, sampler, solve
from ...samplers.base import Memory, Step, Steps
from ...scalars import Time

PATH = VP()
LONG = VP(Linear(beta_max=60.0))  # as noisy as the papers' schedule asks for
TOP, LOW = 80.0, 0.02  # σ̄ of the measuring grid


@dataclass(frozen=True)
class Printed:
    """Stochastic rules as printed, in ᾱ: the plain "ddpm", and the accelerated one as two public codes have it.

    "readme" leaves the last noise outside the bracket; "cifar" besides shrinks the first one by √α.
    """

    form: str
    order: int = 1
    needs: type[Any] = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """One question."""
        del memory
        a, b = (path.alpha(time) ** 2 for time in (step.t, step.s))
        alpha, beta = a / b, 1.0 - a / b
        one, two = (noise.normal((name, step.index), x.shape[1:]) for name in ("one", "two"))
        if self.form == "ddpm":
            estimate = yield Query(x, step.t)
            return (x + beta * estimate.score + math.sqrt(beta) * one) / math.sqrt(alpha)
        half = math.sqrt(0.5 * beta)
        stirred = x + half * one * (math.sqrt(alpha) if self.form == "cifar" else 1.0)
        estimate = yield Query(stirred, step.t)
        return (stirred + beta * estimate.score) / math.sqrt(alpha) + half * two


EXTRA: Mapping[str, Callable[[], Sampler]] = {
    "score-frozen": lambda: ExponentialIntegrator("variance"),  # what the group calls DDIM
    "ddpm-printed": lambda: Printed("ddpm"),
    "readme": lambda: Printed("readme"),
    "cifar-code": lambda: Printed("cifar"),
}


def rule_of(name: str) -> Sampler:
    """A sampler of the library, or one of `EXTRA`."""
    return EXTRA[name]() if name in EXTRA else sampler(name)


@dataclass(frozen=True, slots=True)
class Stretched(DenoiserWrapper):
    """A denoiser whose score is ``factor`` times the inner one."""

    inner: DenoiserLike
    factor: float

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """One question to the inner denoiser."""
        return Estimate(x, t, self.path, noise=self.factor * self.inner(x, t).noise)

    def with_condition(self, cond: Cond) -> Stretched:
        """Bound inside."""
        return Stretched(self.inner.with_condition(cond), self.factor)


def gaussian(
    rule: str, steps: int, schedule: str = "log-snr", prior: bool = False, stretch: float = 1.0, copies: int = 0
) -> float:
    """√KL on G8, or on ``copies`` of N(.5, .3), exactly.

    ``schedule``: "log-snr" or "paper" (`ornstein.grids.li2024`); ``prior`` starts from N(0, I) in place of the exact
    law; ``stretch`` multiplies the score.
    """
    target = TARGETS["G8"]() if copies == 0 else GaussianTarget([0.5] * copies, [0.3] * copies)
    assert isinstance(target, GaussianTarget)
    path = LONG if schedule == "paper" else PATH
    times = (grids.li2024(steps) if schedule == "paper" else measuring_grid("log-snr", steps, LOW, TOP))(path)
    start = GaussianTarget(torch.zeros(target.dim), torch.ones(target.dim)) if prior else None
    wrong = None if stretch == 1.0 else Stretched(aligned(target).denoiser(path), stretch)
    found = gaussian_law(rule_of(rule), target, path, times, start=start, denoiser=wrong)
    return math.sqrt(max(kl(found, target.law(path, times[-1])), 0.0))


def line(rule: str, target: str, steps: int) -> float | None:
    """Exact total variation of a deterministic rule; None where its map folds."""
    times = measuring_grid("log-snr", steps, 0.01 if target == "M1s" else LOW, TOP)(PATH)
    found = deterministic_tv(rule_of(rule), TARGETS[target](), PATH, times, points=4001)
    return found if math.isfinite(found) else None


def in_law(rule: str, steps: int) -> float | None:
    """Exact total variation of a stochastic rule on M1, from σ̄ = 80 to .05."""
    times = measuring_grid("log-snr", steps, 0.05, TOP)(PATH)
    found = stochastic_tv(rule_of(rule), TARGETS["M1"](), PATH, times, points=1024)
    return found if math.isfinite(found) else None


@lru_cache(maxsize=4)
def _reference(first: float, last: float, rows: int) -> tuple[Tensor, Tensor]:
    target, noise = TARGETS["M2"](), Noise.of(0, range(rows), dtype=torch.float64)
    x = target.start(noise, PATH, first)
    return x, flow(target.denoiser(PATH), x, first, last, 1500)


def trajectories(rule: str, evaluations: int, schedule: str, rows: int) -> dict[str, float]:
    """Distance to the exact end of the same trajectory on M2: its median and mean over ``rows`` starts.

    ``schedule``: "log-snr", or "quadratic" in time with linear betas from t = 1 to 1e-3.
    """
    tested = rule_of(rule)
    steps = evaluations // 2 if rule in ("accelerated-ode", "heun") else evaluations
    times = (
        (*((1.0 + (math.sqrt(1e-3) - 1.0) * i / steps) ** 2 for i in range(steps)), 1e-3)
        if schedule == "quadratic"
        else measuring_grid("log-snr", steps, LOW, TOP)(PATH)
    )
    x, end = _reference(times[0], times[-1], rows)
    found = coupled(tested, TARGETS["M2"]().denoiser(PATH), x, times, Noise.of(0, range(rows)), end)
    return {"median": found.median, "mean": found.mean}


def rippled(rule: str, frequency: float, steps: int = 128) -> float:
    """Total variation on N(0, 1) under a score with ripples of slope 1 and this frequency, over a unit of τ."""
    times = tuple(at_ou_time(PATH, 1.2 - i / steps) for i in range(steps + 1))
    points, wrong = max(2048, 64 * math.ceil(15.0 * frequency / (2.0 * math.pi))), Rippled(PATH, 1.0, frequency)
    meter = stochastic_tv if rule in ("accelerated-sde", "ancestral") else deterministic_tv
    return meter(rule_of(rule), Giso(), PATH, times, points=points, denoiser=wrong)


@lru_cache(maxsize=1)
def _gallery(images: int) -> tuple[Any, Any, Any]:
    """The shipped denoiser, the feature network, and the features of the first pictures of its data."""
    from ...data import open_source, to_uint8
    from ...metrics import features
    from ...runs import open_run

    model, net = open_run("critters").denoiser, features("lite0")
    assert model.shape is not None
    source = open_source("critters:8192", size=model.shape[-1])
    rows: list[torch.Tensor] = []
    for start in range(0, images, 64):
        pictures = torch.stack([torch.as_tensor(source[i].image) for i in range(start, min(start + 64, images))])
        rows.append(net(pictures if pictures.dtype == torch.uint8 else to_uint8(pictures)))
    return model, net, torch.cat(rows)


def drawn(rule: str, evaluations: int, grid: str, seed: int, n: int, against: int) -> dict[str, float]:
    """Fréchet and kernel distance (×1000) on lite0 features: ``n`` images of the shipped network against its data.

    The start and the noise depend on the seed and the image alone, so rules are compared on the same noise. With fewer
    images than features the Fréchet distance is mostly bias; the kernel distance has none.
    """
    from ...data import to_uint8
    from ...metrics.frechet import Moments, frechet_distance
    from ...metrics.kernel import mmd2

    model, net, theirs = _gallery(against)
    path = model.path
    family: Callable[[int], Grid] = grids.power if grid == "quadratic" else grids.log_snr
    times = family(evaluations)(path)
    rows: list[torch.Tensor] = []
    for first in range(0, n, 32):
        noise = Noise.of(seed, range(first, min(first + 32, n)))
        x = path.prior(noise, model.shape, times[0])
        rows.append(net(to_uint8(run(solve(rule_of(rule), path, x, times, noise), model))))
    ours, moments = torch.cat(rows), (Moments(net.width), Moments(net.width))
    for one, features in zip(moments, (ours, theirs), strict=True):
        one.update(features)
    kernel = 1000.0 * mmd2(ours.double().numpy(), theirs.double().numpy())
    return {"FD-lite0": frechet_distance(*moments), "KID-lite0": kernel}


__all__ = ["Printed", "Stretched", "drawn", "gaussian", "in_law", "line", "rippled", "rule_of", "trajectories"]
