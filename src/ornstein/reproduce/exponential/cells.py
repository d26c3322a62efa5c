"""What the reproduction of the exponential integrator measures, one function a cell."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import grids
from ...denoisers import Denoiser
from ...lab.assumptions import Rippled, rippled_limit, rippled_tv, score_errors, start_tv
from ...lab.certificates import certify
from ...lab.extended import at_ou_time
from ...lab.laws import deterministic_tv, stochastic_tv
from ...lab.meters import gaussian_law, kl, tv_normal
from ...lab.rates import TARGETS, measuring_grid
from ...lab.targets import GaussianTarget, Giso, MixtureTarget
from ...paths import VE, VP
from ...paths.base import AffinePath
from ...paths.vp import Linear
from ...randomness import Noise, generator
from ...samplers import Ancestral, ExponentialIntegrator, Heun, UniPC, run, sampler, solve

HORIZON, DELTA = 5.0, 0.01
PATHS = {"vp": VP, "ve": partial(VE, sigma_max=200.0)}  # σ̄ at the horizon is 148


def certificate(
    target: str, rule: str, path: str, schedule: str, steps: int, rows: int = 0, seed: int = 0
) -> dict[str, Any]:
    """True total variation and both bounds; ``rows`` nodes are drawn where the target is not on the line.

    ``schedule``: "stopped" (`ornstein.grids.early_stopping`), "equal" steps in τ, or "geometric" ones in σ̄.
    """
    law, exact = PATHS[path](), TARGETS[target]()
    times = _times(law, schedule, steps)
    noise = None if exact.dim == 1 else Noise.of(seed, range(rows), dtype=torch.float64)
    points = 2001 if schedule == "stopped" or target == "M1" else 4001
    found = certify(sampler(rule), exact, law, times, noise=noise, points=points)
    return {name: getattr(found, name) for name in ("tv", "bound", "tight", "divergence", "drift", "least", "error")}


def _times(path: AffinePath, schedule: str, steps: int) -> tuple[float, ...]:
    if schedule == "stopped":
        return grids.early_stopping(steps, delta=DELTA, horizon=HORIZON)(path)
    if schedule == "equal":
        return tuple(at_ou_time(path, HORIZON + (DELTA - HORIZON) * i / steps) for i in range(steps + 1))
    ends = (math.sqrt(math.expm1(2.0 * tau)) for tau in (DELTA, HORIZON))
    return measuring_grid("log-snr", steps, *ends)(path)


def few_steps(target: str, freeze: str, steps: int, low: float) -> float | None:
    """Exact total variation over equal steps of log-SNR from σ̄ = 80 to ``low``."""
    rule = ExponentialIntegrator(freeze)  # type: ignore[arg-type]
    found = deterministic_tv(rule, TARGETS[target](), VP(), measuring_grid("log-snr", steps, low)(VP()), points=4001)
    return found if math.isfinite(found) else None


def started(path: str, level: float, mean: float, variance: float) -> dict[str, float]:
    """TV of starting from the prior at σ̄ = ``level``, and what a solver of order 4 keeps of it to σ̄ = .1."""
    law = VE(sigma_max=2.0 * level) if path == "ve" else VP(Linear(beta_max=60.0))
    target = GaussianTarget([mean], [variance])
    times = measuring_grid("log-snr", 400, 0.1, level)(law)
    prior = GaussianTarget([0.0], [law.sigma(times[0]) ** 2 if path == "ve" else 1.0])
    end, exact = gaussian_law(UniPC(p=3), target, law, times, start=prior), target.law(law, times[-1])
    kept = tv_normal(float(end.mean), float(end.variance), float(exact.mean), float(exact.variance))
    return {"start": start_tv(mean, variance, law, times[0]), "end": kept}


def rippled(height: float, frequency: float, steps: int) -> dict[str, float]:
    """N(0, 1) with a rippled score over a unit of τ: the flow (closed form, Heun) and the reverse SDE."""
    path = VP()
    wrong = Rippled(path, height, frequency)
    times = tuple(at_ou_time(path, 1.2 - i / steps) for i in range(steps + 1))
    points = max(2048, 64 * math.ceil(15.0 * frequency / (2.0 * math.pi)))
    out = {
        "score": wrong.errors.score,
        "divergence": wrong.errors.divergence,
        "flow": rippled_tv(height, frequency),
        "limit": rippled_limit(height),
        "heun": deterministic_tv(Heun(), Giso(), path, times, points=points, denoiser=wrong),
        "sde": stochastic_tv(Ancestral(), Giso(), path, times, points=points, denoiser=wrong),
        "sde exact": stochastic_tv(Ancestral(), Giso(), path, times, points=points),
    }
    return {name: value for name, value in out.items() if math.isfinite(value)}


def trained(seed: int, steps: int, tau: float = 0.1, width: int = 128) -> dict[str, float]:
    """ε_score and ε_div of a small network after denoising score matching on M2 at one level."""
    path, target = VP(), TARGETS["M2"]()
    t = at_ou_time(path, tau)
    rng = generator("reproduce", "trained", seed)
    net = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    with torch.no_grad():
        for weight in net.parameters():
            scale = 1.0 / math.sqrt(weight.shape[-1]) if weight.ndim > 1 else 0.0
            weight.copy_(scale * torch.from_numpy(rng.standard_normal(tuple(weight.shape))))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1.0 + math.cos(math.pi * i / steps))
        clean = _draws(target, rng, 512)
        z = torch.from_numpy(rng.standard_normal((512, 2)))
        x = path.alpha(t) * clean + path.sigma(t) * z
        loss = (net(x.float()) - z.float()).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def answer(x: Tensor, time: Tensor) -> Tensor:
        del time
        return net(x)

    model = Denoiser(answer, path=path)
    net.double()
    noise = Noise.of(seed, range(2000), dtype=torch.float64)
    found = score_errors(model, target, t, noise, probes=16)
    size = target.score(target.start(noise, path, t), path, t).square().sum(1).mean().sqrt()
    return {"score": found.score, "divergence": found.divergence, "norm": float(size)}


def _draws(target: MixtureTarget, rng: Any, count: int) -> Tensor:
    chosen = torch.from_numpy(rng.choice(len(target.weights), count, p=target.weights.numpy()))
    local = target.variances[chosen].sqrt() * torch.from_numpy(rng.standard_normal((count, target.dim)))
    assert target.frames is not None
    return target.means[chosen] + torch.einsum("bij,bj->bi", target.frames[chosen], local)


def product(dim: int, steps: int) -> float:
    """√KL on ``dim`` copies of one direction."""
    target, path = GaussianTarget([0.5] * dim, [0.3] * dim), VP()
    times = measuring_grid("log-snr", steps)(path)
    return math.sqrt(kl(gaussian_law(ExponentialIntegrator(), target, path, times), target.law(path, times[-1])))


def exploding_against_preserving(steps: int) -> float:
    """Largest distance in u between DDIM on a preserving and on an exploding path, relative to the data."""
    target, noise = TARGETS["M2"](), Noise.of(3, range(256), dtype=torch.float64)
    start = target.start(noise, VE(), 80.0)
    ends: list[Tensor] = []
    for path in (VE(), VP()):
        times = measuring_grid("log-snr", steps)(path)
        x = run(solve(sampler("ddim"), path, path.alpha(times[0]) * start, times, noise), target.denoiser(path))
        ends.append(x / path.alpha(times[-1]))
    return float((ends[0] - ends[1]).abs().max())


__all__ = [
    "certificate",
    "exploding_against_preserving",
    "few_steps",
    "product",
    "rippled",
    "rippled_limit",
    "started",
    "trained",
]
