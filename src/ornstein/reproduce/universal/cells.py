"""What `ornstein.reproduce.universal` measures where the posterior is known: a Gaussian and mixtures.

A mixture seen through y = A·x_0 + std·z has a mixture as its posterior, with Kalman's update of every component and
weights by the evidence. Guided samples are compared with exact draws from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ... import grids
from ... import guidance as guide
from ...denoisers import Guidance
from ...errors import UsageError
from ...guidance.energies import Measured
from ...lab import targets as lab
from ...lab.meters import propagate
from ...lab.targets import GaussianTarget, MixtureTarget
from ...paths import VP, Path
from ...randomness import Key, Noise, generator
from ...samplers import DDIM, Ancestral, Sampler, run, solve


def recurring(grid: grids.Grid, times: int) -> grids.Grid:
    """Every step ``times`` times, but the one to the clean end once, as the stored cells were measured.

    The paper and `grids.resample` repeat that step too.
    """

    def rule(path: Path) -> tuple[float, ...]:
        *nodes, end = grid(path)
        return (*grids.resample(nodes, times)(path), end)

    return grids.Grid(f"recurring({times})", rule)


# ------------------------------------------------------------------------------------------------------ a Gaussian

MEAN, VARIANCE, SEEN, STD = 0.7, 1.5, 2.0, 0.5
POSTERIOR = (MEAN + VARIANCE / (VARIANCE + STD**2) * (SEEN - MEAN), VARIANCE * STD**2 / (VARIANCE + STD**2))
"""Mean 1.814 and variance 0.214 of x_0 given y."""

SAMPLERS: Mapping[str, Sampler] = {"ddim": DDIM(), "ancestral": Ancestral()}


def gaussian(*, method: str, sampler: str, steps: int, recur: int) -> Mapping[str, float]:
    """Exact moments of what a guided sampler gives on N(0.7, 1.5) seen with std 0.5, ``steps`` of the linear table.

    ``method``: paper (strength 1), corrected, posterior (`LinearPosterior`). ``{"mean", "variance", "w2"}``.
    """
    path, seen = VP.table(), _seen(torch.eye(1, dtype=torch.float64), torch.tensor([[SEEN]], dtype=torch.float64), STD)
    methods: Mapping[str, Guidance] = {
        "paper": guide.Universal(energies=seen),
        "corrected": guide.Universal(energies=seen, strength=guide.corrected(STD, variance=VARIANCE)),
        "posterior": guide.LinearPosterior(measured=seen, iterations=1),
    }
    times = grids.times_of(recurring(grids.uniform(steps), recur), path)
    root = torch.full((1, 1), path.std(times[0]), dtype=torch.float64)
    model = methods[method](GaussianTarget([MEAN], [VARIANCE]).denoiser(path))
    found = propagate(SAMPLERS[sampler], model, times, torch.zeros(1, dtype=torch.float64), root)
    return _told(float(found.mean), float(found.variance))


def gaussian_dps(*, scale: float, sampler: str, steps: int, samples: int) -> Mapping[str, float]:
    """The same of diffusion posterior sampling, which is not affine: moments of ``samples`` draws."""
    path, seen = VP.table(), _seen(torch.eye(1, dtype=torch.float64), torch.tensor([[SEEN]], dtype=torch.float64), STD)
    grid = grids.uniform(steps)
    dps = guide.DPS(misfit=guide.misfit_of(seen), scale=scale, grid=grid, eta=float(sampler == "ancestral"))
    noise = Draws(seed=0, rows=samples)
    model = dps(GaussianTarget([MEAN], [VARIANCE]).denoiser(path))
    times = grids.times_of(grid, path)
    x = run(solve(SAMPLERS[sampler], path, path.prior(noise, (1,)), times, noise), model)
    return _told(float(x.mean()), float(x.var()))


def _told(mean: float, variance: float) -> Mapping[str, float]:
    distance = math.hypot(mean - POSTERIOR[0], math.sqrt(variance) - math.sqrt(POSTERIOR[1]))
    return {"mean": mean, "variance": variance, "w2": distance}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """A `NoiseSource` of very many small samples: one generator a key, where `Noise` has one a sample and key."""

    seed: int
    rows: int
    name: str = ""

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """(rows, *event), float64."""
        return torch.from_numpy(self._generator("white", key).standard_normal((self.rows, *event)))

    def uniform(self, key: Key) -> float:
        """One number for all."""
        return float(self._generator("uniform", key).random())

    def uniform_per_sample(self, key: Key) -> Tensor:
        """One number a sample."""
        return torch.from_numpy(self._generator("uniforms", key).random(self.rows))

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """Brownian paths need more than one generator a key."""
        raise UsageError(f"no Brownian path here ({key!r}, {t0} to {t1}, {tuple(event)}): use Noise")

    def fork(self, name: str) -> Draws:
        """Independent draws."""
        return Draws(seed=self.seed, rows=self.rows, name=f"{self.name}/{name}")

    def _generator(self, kind: str, key: Key) -> np.random.Generator:
        parts = key if isinstance(key, tuple) else (key,)
        return generator("reproduce", self.seed, self.name, kind, *parts)


def _seen(matrix: Tensor, y: Tensor, std: float) -> Measured:
    return Measured(operator=lambda x: x @ matrix.T, target=y, std=std)


# -------------------------------------------------------------------------------------------------------- mixtures


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseProblem:
    """A mixture and how it is seen: its first ``seen`` coordinates, with noise ``std``."""

    target: MixtureTarget
    seen: int
    std: float

    @property
    def matrix(self) -> Tensor:
        """A, (seen, d)."""
        return torch.eye(self.target.dim, dtype=torch.float64)[: self.seen]

    def observed(self, seed: int) -> Tensor:
        """y (1, seen) of a fresh draw."""
        noise = Noise.of(seed, range(1), dtype=torch.float64)
        return self.target.sample(noise, "truth") @ self.matrix.T + self.std * noise.normal("y", (self.seen,))

    @property
    def prior_variance(self) -> float:
        """Of A·x_0, the mean over its coordinates."""
        mean = self.target.weights @ self.target.means
        inside = torch.einsum("k,kij->ij", self.target.weights, _covariances(self.target))
        offsets = self.target.means - mean
        whole = inside + torch.einsum("k,ki,kj->ij", self.target.weights, offsets, offsets)
        return float((self.matrix @ whole @ self.matrix.T).diagonal().mean())


def problem(name: str) -> InverseProblem:
    """M1 seen as it is, M2 in its first coordinate, M16 in its first four."""
    if name == "M1":
        return InverseProblem(target=lab.M1(), seen=1, std=0.5)
    if name == "M2":
        return InverseProblem(target=lab.M2(), seen=1, std=0.3)
    return InverseProblem(target=lab.M64(16), seen=4, std=0.3)


def posterior(target: MixtureTarget, matrix: Tensor, y: Tensor, std: float) -> MixtureTarget:
    """The law of x_0 given y = A·x_0 + std·z; components without weight are left out.

    >>> one = posterior(GaussianTarget([0.7], [1.5]), torch.eye(1).double(), torch.tensor([[2.0]]).double(), 0.5)
    >>> round(one.means.item(), 3), round(one.variances.item(), 3)
    (1.814, 0.214)
    """
    covariances = _covariances(target)
    cross = covariances @ matrix.T  # (K, d, m)
    inner = matrix @ cross + std**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(inner, cross.mT).mT
    residual = y - target.means @ matrix.T
    means = target.means + torch.einsum("kdm,km->kd", gain, residual)
    spread = covariances - gain @ cross.mT
    square = torch.einsum("km,km->k", residual, torch.linalg.solve(inner, residual))
    logs = target.weights.log() - 0.5 * (square + torch.logdet(inner))
    weights = torch.softmax(logs, 0)
    kept = weights > 1e-12
    return MixtureTarget.of(weights[kept], means[kept], covariances=0.5 * (spread + spread.mT)[kept])


def _covariances(target: MixtureTarget) -> Tensor:
    """(K, d, d)."""
    if target.frames is None:
        return torch.diag_embed(target.variances)
    return torch.einsum("kij,kj,klj->kil", target.frames, target.variances, target.frames)


def mixture(
    *, target: str, method: str, steps: int, recur: int, scale: float, seed: int, samples: int
) -> Mapping[str, float]:
    """How far ``samples`` guided draws (DDIM) lie from the exact posterior of one observation.

    ``{"sw2", "energy", "spread", "evaluations"}``: sliced Wasserstein-2 and energy distance to exact draws, and the
    variance of A·x in parts of the posterior's. ``method`` "exact" draws from the posterior itself: the floor.
    """
    given = problem(target)
    y = given.observed(seed)
    law = posterior(given.target, given.matrix, y, given.std)
    truth = law.sample(Draws(seed=seed, rows=samples), "exact")
    evaluations = 0
    if method == "exact":
        found = law.sample(Draws(seed=seed, rows=samples), "again")
    else:
        path = VP()
        grid = grids.log_snr(steps)
        times = grids.times_of(recurring(grid, recur), path)
        noise = Draws(seed=seed, rows=samples)
        model = _guided(method, given, _seen(given.matrix, y, given.std), scale, grid)(given.target.denoiser(path))
        found = run(solve(DDIM(), path, path.prior(noise, (given.target.dim,)), times, noise), model)
        evaluations = sum(t > s for t, s in itertools.pairwise(times))
    ours, theirs = (x @ given.matrix.T for x in (found, truth))
    return {
        "sw2": sliced(found, truth),
        "energy": energy_distance(found[:3000], truth[:3000]),
        "spread": float(ours.var(0).sum() / theirs.var(0).sum()),
        "evaluations": evaluations,
    }


def _guided(method: str, given: InverseProblem, seen: Measured, scale: float, grid: grids.Grid) -> Guidance:
    backward = guide.Backward(steps=5, rate=0.5 * given.std**2)
    paper = guide.Backward(steps=5, rate=0.5 * given.std**2, centre="plain")
    methods: Mapping[str, Guidance] = {
        "plain": lambda model: model,
        "forward": guide.Universal(energies=seen, strength=scale),
        "backward": guide.Universal(energies=seen, strength=0.0, backward=backward),
        "both": guide.Universal(energies=seen, strength=scale, backward=backward),
        "paper": guide.Universal(energies=seen, strength=scale, backward=paper),
        "corrected": guide.Universal(
            energies=seen, strength=guide.corrected(given.std, variance=given.prior_variance, weight=scale)
        ),
        "posterior": guide.LinearPosterior(measured=seen, iterations=given.seen),
        "dps": guide.DPS(misfit=guide.misfit_of(seen), scale=scale, grid=grid, eta=0.0),
    }
    return methods[method]


def sliced(x: Tensor, y: Tensor, directions: int = 64) -> float:
    """Sliced Wasserstein-2 distance of two samples (n, d) of one size; on the line the distance itself."""
    axes = torch.ones(1, 1, dtype=x.dtype)
    if x.shape[1] > 1:
        axes = torch.from_numpy(generator("reproduce", "sliced", x.shape[1]).standard_normal((directions, x.shape[1])))
        axes = axes / axes.norm(dim=1, keepdim=True)
    ours, theirs = ((v @ axes.T).sort(0).values for v in (x, y))
    return float((ours - theirs).square().mean().sqrt())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2·E|X − Y| − E|X − X'| − E|Y − Y'|, without bias."""

    def within(v: Tensor) -> float:
        return float(torch.cdist(v, v).sum()) / (len(v) * (len(v) - 1))

    return 2.0 * float(torch.cdist(x, y).mean()) - within(x) - within(y)
