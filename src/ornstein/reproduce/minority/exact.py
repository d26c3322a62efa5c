"""Minority guidance where model and classifier are exact: a normal law with rare tails, and a mixture of 90 to 10.

With w = 1 and the exact class probability the guided samples have the law of the data given the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import grids
from ...denoisers import DenoiserLike
from ...guidance import NoisyClassifier
from ...lab.targets import GaussianTarget, MixtureTarget
from ...paths import VP
from ...randomness import Key, Noise
from ...samplers import DDIM, Ancestral, Sampler, run, solve

EDGE = 1.6448536269514722
"""The rare tenth of N(0, 1) lies beyond ±EDGE."""

ROOT = math.exp(-0.5 * EDGE**2) / math.sqrt(2.0 * math.pi)
TRUTH = {"mean": ROOT / 0.05, "variance": 1.0 + EDGE * ROOT / 0.05}
"""E|x| = 2.063 and E x² = 4.393 of the rare tenth."""

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": DDIM(),
    "ancestral, large variance": Ancestral(variance="large"),
    "ancestral, posterior variance": Ancestral(),
}
WEIGHTS, MEANS, STD = (0.9, 0.1), (-2.0, 2.0), 0.5
Scores = Callable[[Tensor, Tensor], Tensor]


def tails(state: Tensor, log_snr: Tensor) -> Tensor:
    """log P(|x_0| > EDGE | x_t) for x_0 ~ N(0, 1), from states of unit variance (B, 1).

    x_0 given x_t is N(α̂·u, 1 − α̂²) with α̂² = sigmoid(log-SNR).
    """
    alpha = torch.sigmoid(log_snr.double())[:, None].sqrt()
    std = torch.sigmoid(-log_snr.double())[:, None].sqrt()
    mean = alpha * state.double()
    sides = torch.stack([torch.special.log_ndtr((sign * mean - EDGE) / std) for sign in (1.0, -1.0)])
    return torch.logsumexp(sides, 0)[:, 0].to(state.dtype)


def component(target: int) -> Scores:
    """log P(component | x_t) of the mixture, from states x_t (B, 1) themselves on a variance-preserving path."""

    def scores(state: Tensor, log_snr: Tensor) -> Tensor:
        alpha2, sigma2 = torch.sigmoid(log_snr.double())[:, None], torch.sigmoid(-log_snr.double())[:, None]
        means = torch.tensor(MEANS, dtype=torch.float64)
        logs = torch.tensor(WEIGHTS, dtype=torch.float64).log() - 0.5 * (
            state.double() - alpha2.sqrt() * means
        ).square() / (alpha2 * STD**2 + sigma2)
        return torch.log_softmax(logs, 1)[:, target].to(state.dtype)

    return scores


def truncated(*, sampler: str, weight: float, steps: int, samples: int) -> Mapping[str, float]:
    """Guide N(0, 1) to its rare tenth: ``{"mean": E|x|, "variance": E x², "inside": part beyond the edge}``."""
    path = VP.table()
    model = NoisyClassifier(classifier=tails, weight=weight)(GaussianTarget([0.0], [1.0]).denoiser(path))
    x = _drawn(model, SAMPLERS[sampler], path, steps, samples)
    return {
        "mean": float(x.abs().mean()),
        "variance": float(x.square().mean()),
        "inside": float((x.abs() > EDGE).double().mean()),
    }


def mixture(*, target: int, weight: float, steps: int, samples: int) -> float:
    """The part of guided samples (DDIM) in the small component; ``target`` 0 is the large one, 1 the small one."""
    path = VP.table()
    law = MixtureTarget.of(WEIGHTS, [[mean] for mean in MEANS], stds=[STD, STD])
    model = NoisyClassifier(classifier=component(target), weight=weight, feeds="state")(law.denoiser(path))
    return float((_drawn(model, DDIM(), path, steps, samples) > 0.0).double().mean())


@dataclass(frozen=True, slots=True)
class Bulk:
    """Noise of very many small samples at once: all (n, *event) numbers of a key are one draw of one stream."""

    noise: Noise
    count: int

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """(n, *event)."""
        return self.noise.normal(key, (self.count, *event))[0]

    def uniform(self, key: Key) -> float:
        """One number."""
        return self.noise.uniform(key)

    def uniform_per_sample(self, key: Key) -> Tensor:
        """Not asked for by the samplers used here."""
        raise NotImplementedError

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """(n, *event)."""
        return self.noise.brownian_increment(key, t0, t1, (self.count, *event))[0]

    def fork(self, name: str) -> Bulk:
        """Another stream."""
        return Bulk(self.noise.fork(name), self.count)


def _drawn(model: DenoiserLike, sampler: Sampler, path: VP, steps: int, samples: int) -> Tensor:
    """(samples,) guided draws on ``steps`` uniform steps of the linear table."""
    noise = Bulk(Noise.of(0, [0], dtype=torch.float64), samples)
    times = grids.times_of(grids.uniform(steps), path)
    return run(solve(sampler, path, path.prior(noise, (1,)), times, noise), model)[:, 0]
