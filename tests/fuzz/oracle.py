"""Random right calls of `orn.sample` and its kin on a Gaussian, whose every answer is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import cast

import torch
from isolation import WrongError
from reach import allowed, off
from torch import Tensor

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.samplers import SAMPLERS, BlendedAdams, Sampler
from ornstein.sampling_plan import resolve

STOCHASTIC = {
    name
    for name in SAMPLERS
    if any(part in name for part in ("ancestral", "ddpm", "sde", "eta1", "randomized", "sa-solver"))
}
PREDICTIONS = ("noise", "clean", "v")


class Exact:
    """The exact network of N(mean, std²) on a path with α and σ, which counts how often it is evaluated."""

    def __init__(self, path: orn.AffinePath, predicts: str, mean: float, std: float) -> None:
        self.path, self.predicts, self.mean, self.std, self.count = path, predicts, mean, std, 0
        self.timestep_of = path.timestep_of

    def denoiser(self) -> orn.Denoiser:
        return orn.Denoiser(self, path=self.path, predicts=self.predicts, shape=(3,), timestep_of=lambda path, t: t)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.count += 1
        alpha, sigma = (
            x.new_tensor([f(float(each)) for each in t])[:, None] for f in (self.path.alpha, self.path.sigma)
        )
        clean = self.mean + alpha * self.std**2 * (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        if self.predicts == "clean":
            return clean
        noise = sigma * (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return noise if self.predicts == "noise" else alpha * noise - sigma * clean


def random_path(random: Random) -> orn.AffinePath:
    kind = random.choice(["vp", "ve", "flow", "cosine", "table"])
    if kind == "ve":
        return orn.VE()
    if kind == "flow":
        return orn.Flow()
    if kind == "table":
        return orn.VP.from_betas(
            torch.linspace(1e-4, random.choice([0.02, 0.05]), random.choice([50, 200, 1000]), dtype=torch.float64)
        )
    return orn.VP.cosine() if kind == "cosine" and hasattr(orn.VP, "cosine") else orn.VP()


def random_times(random: Random, path: orn.AffinePath) -> tuple[dict[str, object], str]:
    """The arguments that choose the times, and their description."""
    g, steps = orn.grids, random.choice([1, 2, 3, 4, 5, 7, 10, 20, 50])
    low, high = sorted(random.uniform(0.02, 0.95) for _ in range(2))
    span = path.t_range[1] if hasattr(path, "t_range") else 1.0
    base: Callable[[], object] = lambda: g.default(path, steps)  # noqa: E731
    choices: dict[str, Callable[[], dict[str, object]]] = {
        "steps": lambda: {"steps": steps},
        "evaluations": lambda: {"evaluations": steps},
        "uniform": lambda: {"grid": g.uniform(steps)},
        "karras": lambda: {"grid": g.karras(steps)},
        "log_snr": lambda: {"grid": g.log_snr(steps)},
        "power": lambda: {"grid": g.power(steps)},
        "partial": lambda: {"grid": g.partial(g.uniform(steps), round(high, 2) * span)},
        "skip": lambda: {"grid": g.skip(base(), min(1, steps - 1))},
        "churn": lambda: {"grid": g.churn(base())},
        "resample": lambda: {"grid": g.resample(base(), 2)},
        "restart": lambda: {"grid": g.restart(base(), low=low * span, high=high * span)},
        "list": lambda: {
            "grid": [*sorted({random.uniform(0.001, 1.0) * span for _ in range(steps)}, reverse=True), 0.0]
        },
    }
    name = random.choice(list(choices))
    return choices[name](), f"{name} {steps} ({low:.3f}, {high:.3f})"


def cases(random: Random, places: object = None) -> tuple[str, Callable[[], object]]:
    """One random call, and its check."""
    del places
    path = random_path(random)
    predicts = random.choice(PREDICTIONS)
    mean, std = random.uniform(-0.5, 0.5), 10.0 ** random.uniform(-1.5, 0.5)
    rule = random.choice([*SAMPLERS, "auto"])
    seed, first, n = random.randrange(1 << 40), random.choice([0, 3, 10**6]), random.choice([2, 3, 5])
    split = random.randrange(1, n)
    state = random.getstate()
    described = f"{type(path).__name__} {predicts} N({mean:.3f}, {std:.4f}²) {rule} seed {seed} first {first} n {n}"
    times = ""
    try:
        times = random_times(random, path)[1]
    except UsageError:
        times = "refused times"

    def check() -> None:
        random.setstate(state)
        options, _ = random_times(random, path)
        network = Exact(path, predicts, mean, std)
        options |= {"sampler": rule, "seed": seed, "dtype": torch.float64}
        x = orn.sample(network.denoiser(), n, first=first, **options)
        spent = network.count
        if not x.isfinite().all():
            raise WrongError(f"not finite: {x.flatten()[:4].tolist()}")
        plan = resolve(
            network.denoiser(), rule, options.get("steps"), options.get("evaluations"), options.get("grid"), None
        )
        bound = allowed(rule, plan.sampler, path, plan.times, mean, std)
        if not isinstance(plan.sampler, BlendedAdams):  # which is affine in no state
            check_law(plan.sampler, network.denoiser(), plan.times, mean, std, bound)
        if rule not in STOCHASTIC and all(s < t for t, s in itertools.pairwise(plan.times)):
            start = path.prior(orn.Noise.of(seed, range(first, first + n), dtype=torch.float64), (3,), plan.times[0])
            off = (x - exact_end(path, start, plan.times[0], mean, std)).abs()
            worst = float((off / (1.0 + (start / path.sigma(plan.times[0])).abs())).max())
            if worst > bound:
                raise WrongError(f"a sample is {worst:.3g} from the exact end, where {bound:.3g} is in reach")
        if (limit := options.get("evaluations")) is not None and spent > limit:
            raise WrongError(f"{spent} evaluations where {limit} were asked for")
        parts = [
            orn.sample(network.denoiser(), split, first=first, **options),
            orn.sample(network.denoiser(), n - split, first=first + split, **options),
        ]
        near(torch.cat(parts), x, "two calls give others than one")
        near(orn.sample(network.denoiser(), n, first=first, batch=1, **options), x, "batch=1 gives others")
        events = list(orn.stream(network.denoiser(), n, first=first, **options))
        near(events[-1].x, x, "stream ends elsewhere than sample")

    return f"{described}, {times}", check


def near(a: Tensor, b: Tensor, what: str) -> None:
    """Equal but for rounding, which a step may enlarge."""
    scale = max(1.0, float(b.abs().max()))
    worst = float((a - b).abs().max())
    if not worst <= 1e-7 * scale:
        raise WrongError(f"{what}: they differ by {worst:.3g}")


def exact_end(path: orn.AffinePath, start: Tensor, t: float, mean: float, std: float) -> Tensor:
    """Where the probability flow takes a state at t."""
    spread = math.hypot(path.alpha(t) * std, path.sigma(t))
    return mean + std * (start - path.alpha(t) * mean) / spread


def check_law(
    rule: Sampler, model: orn.Denoiser, times: Sequence[float], mean: float, std: float, bound: float
) -> None:
    """The law at the end, of samples that begin in the exact law."""
    far = off(rule, model, cast("orn.AffinePath", model.path), times, mean, std)
    if not far <= bound:
        raise WrongError(f"the law is {far:.3g} from that of the data, where {bound:.3g} is in reach")
