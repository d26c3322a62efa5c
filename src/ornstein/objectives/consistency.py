"""Consistency training: the same estimate at two neighbouring noise levels of one sample, down to the sample itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .. import grids
from ..denoisers import Denoiser
from ..errors import ConfigError, UsageError
from ..options import check_fields
from ..parameterizations import Anchored, Consistency
from ..paths.base import AffinePath
from ..paths.ve import VE
from ..randomness import Noise
from ..scalars import expand
from ..typed import typed
from . import curricula, levels
from .base import Losses, TrainBatch, quantiles, without
from .couplings import CouplingName, pairing
from .curricula import CurriculumName
from .distances import DistanceName, Reduce, distance, square
from .levels import LevelLaw, SpacingName

_PUBLISHED_SIZE = 4096  # values in the latents that the published adaptive scale is of

Weight = Literal["gap", "none"]
Scale = Literal["adaptive", "constant"]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyLoss:
    """weight · ρ_c(|f(x_t, t) − sg f⁻(x_t', t')|²) and a denoising loss at low noise; by default that of sLCT.

    x_t and x_t' are made of one sample and one noise, at neighbouring levels t > t'.
    """

    kind: ClassVar[str] = "consistencyloss"
    renamed: ClassVar[Mapping[str, str]] = {
        "within": "same_class_only",
        "quarter": "low_noise_fraction",
        "drop": "label_dropout",
    }

    distance: DistanceName = "cauchy"
    """The distance ρ: cauchy, pseudo-huber, geman-mcclure or l2."""
    reduce: Reduce = "mean"
    """What it is of: the mean of squared differences over the image, or their sum; c is √d larger for the sum."""
    scale: Scale = "adaptive"
    """Its scale c: adaptive shrinks it with the intervals S after the first stage, √(d/4096)·exp(−slope·log S −
    offset), which at the authors' d of 4,096 values is the published one; constant keeps base·√d throughout."""
    base: float = 0.00054
    """c/√d of the first stage, and of all if the scale is constant; d is the number of values in an image."""
    slope: float = 1.15
    """Slope of the adaptive scale."""
    offset: float = 0.85
    """Offset of the adaptive scale."""
    weight: Weight = "gap"
    """Weight of a pair: gap, 1/(t − t'), or none."""
    spacing: SpacingName = "grid"
    """The pairs of levels: neighbours on a grid, or a ratio of each level that closes (ECT)."""
    curriculum: CurriculumName = "doubling"
    """How the number S of intervals grows: doubling, root (as √images) or constant (end from the beginning)."""
    start: int = 10
    """Intervals at the beginning."""
    end: int = 640
    """Intervals at the end."""
    rho: float = 7.0
    """Exponent of the grid."""
    times: LevelLaw = "log-normal"
    """Law of the levels: log-normal, or uniform over the intervals."""
    mean: float = -1.1
    """Mean of log σ in the log-normal law."""
    std: float = 2.0
    """Its standard deviation."""
    stratified: bool = True
    """Spread the levels of successive samples evenly; --objective.no-stratified draws each by itself."""
    coupling: CouplingName = "assignment"
    """Pairing of noise and samples in a batch: none, or of least squared distance by assignment (scipy) or pot."""
    same_class_only: bool = True
    """Of conditional models, pair noise within equal labels only, and not at all for captions, so that the condition
    tells nothing about the noise; --objective.no-same-class-only exchanges noise across labels and captions."""
    diffusion: float = 5.0
    """Weight of the denoising loss at low noise; 0 leaves it out."""
    low_noise_fraction: float = 0.75
    """Where low noise begins, as a part of the grid counted from the noisiest level."""
    target: float = 0.0
    """Decay μ_0 of the moving average that gives the target (CM); 0 takes the network itself."""
    label_dropout: float = 0.1
    """Part of the samples trained without their condition, as classifier-free guidance needs."""

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.end:
            raise ConfigError(f"need 1 ≤ objective.start ≤ objective.end, got {self.start} and {self.end}")
        for name in ("base", "std", "rho"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"objective.{name} must be positive, got {getattr(self, name)}")
        for name in ("low_noise_fraction", "label_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"objective.{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0.0 <= self.diffusion < math.inf:
            raise ConfigError(f"objective.diffusion must not be negative, got {self.diffusion}")
        for name in ("mean", "slope", "offset"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"objective.{name} must be a finite number, got {getattr(self, name)}")
        bound = 35.0  # c² must be a number in float32
        if self.scale == "adaptive" and abs(self.slope) * math.log(self.end) + abs(self.offset) > bound:
            raise ConfigError(
                f"objective.slope {self.slope:g} and objective.offset {self.offset:g} make the scale c at {self.end} "
                "intervals too small or too large for float32: 1.15 and 0.85 are usual"
            )
        if not 0.0 <= self.target < 1.0:
            raise ConfigError(f"objective.target must lie in [0, 1), got {self.target}; 0 takes the network itself")
        check_fields(self)

    def intervals(self, step: int, steps: int) -> int:
        """S at step ``step`` of ``steps``."""
        return curricula.intervals(self.curriculum, step, steps, self.start, self.end)

    def scale_at(self, count: int, size: int) -> float:
        """c at S = ``count`` intervals, for images of ``size`` values d: base·√d, and after the first stage of an
        adaptive scale √(d/4096)·exp(−slope·log S − offset).

        The published constants of the adaptive scale are those of latents of 4,096 values. As they stand c would grow
        after the first stage where there are fewer, for base·√d is then smaller; with √d in both it shrinks at every
        size.

        >>> [round(ConsistencyLoss().scale_at(S, 4096), 6) for S in (10, 20, 640)]
        [0.03456, 0.013635, 0.000253]
        """
        first = self.base * math.sqrt(size)
        if self.scale == "constant":
            return first
        c = first
        if count > self.start:
            c = math.sqrt(size / _PUBLISHED_SIZE) * math.exp(-self.slope * math.log(count) - self.offset)
        return c * math.sqrt(size) if self.reduce == "sum" else c


class Pair(NamedTuple):
    """The two noisy batches of one step: states (B, *event) at times (B,), and the levels σ̄ > σ̄' (B,), on the host.

    ``quiet`` (B,) marks the samples of low noise.
    """

    noise: Tensor
    x: Tensor
    t: Tensor
    x_next: Tensor
    t_next: Tensor
    upper: Tensor
    lower: Tensor
    quiet: Tensor
    cond: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyTraining:
    """The objective of consistency models: see `ConsistencyLoss` for its formula.

    ``steps`` is the length of the curriculum, and ``of`` how many steps a progress of 1 stands for. ``teacher`` gives
    the target; None is the model itself. The model's parameterization must have the boundary f(x, σ_min) = x
    (`ornstein.parameterizations.Consistency` or `Anchored`), and its path α and σ; levels are σ̄ = σ/α.

    Terms: ``consistency``, and ``diffusion`` with a weight. Watched: ``jump``, the root of the mean squared difference
    of the two estimates, and ``output``, the root mean square of an estimate. Schedule: ``intervals`` and ``c``.

    Both answers are asked for under one mask of dropout, drawn from ``noise.fork("dropout")``. The loss is computed in
    float32 whatever the network's precision is: its weights reach 2·10⁵.

    Raises `UsageError` for a parameterization without the boundary.
    """

    loss: ConsistencyLoss = field(default_factory=ConsistencyLoss)
    steps: int = 1000
    of: float = 1000.0
    sigma_max: float = 80.0
    teacher: Denoiser | None = None

    def __call__(self, model: Denoiser, batch: TrainBatch, noise: Noise, progress: float) -> Losses:
        """The losses of one batch."""
        loss, clean = self.loss, batch.clean
        count = loss.intervals(round(progress * self.of), self.steps)
        c = loss.scale_at(count, clean[0].numel())
        pair = self.make_noisy_batch(model, batch, noise, count)
        seed = int(noise.fork("dropout").uniform_per_sample("mask")[0] * 2.0**53)
        with torch.no_grad(), _seeded(seed, clean.device):
            target = self.target(self.teacher or model, clean, pair)
        with _seeded(seed, clean.device):
            answer = _answer(model, pair.x, pair.t, pair.cond)
        error = distance(loss.distance, square(answer - target, loss.reduce), c)
        if loss.weight == "gap":
            error = error * (1.0 / (pair.upper - pair.lower)).to(error)
        terms = {"consistency": error}
        if loss.diffusion > 0.0:
            terms["diffusion"] = loss.diffusion * denoising(answer, clean, pair, _sigma_data(model))
        seen = answer.detach()
        watched = {"jump": square(seen - target).sqrt(), "output": square(seen).sqrt()}
        return Losses(terms=terms, times=pair.t, watched=watched, schedule={"intervals": float(count), "c": c})

    def make_noisy_batch(self, model: Denoiser, batch: TrainBatch, noise: Noise, count: int) -> Pair:
        """Two levels and paired noise for every sample at ``count`` intervals, and for some no condition."""
        loss, path, low = self.loss, grids.affine(model.path), sigma_min(model)
        upper, lower, quiet = self.levels(path, low, batch.positions, noise, count)
        z = noise.normal("noise", batch.clean.shape[1:]).to(batch.clean, non_blocking=True)
        cond = batch.cond
        if cond and loss.label_dropout > 0.0:
            cond = without(cond, noise.uniform_per_sample("drop") < loss.label_dropout)
        if loss.coupling != "none":
            groups = _groups(cond) if loss.same_class_only else None
            z = z[pairing(batch.clean, z, loss.coupling, groups).to(z.device)]
        t, t_next = _times(path, upper), _times(path, lower)
        return Pair(
            noise=z,
            x=path.diffuse(batch.clean, t, z),
            t=t,
            x_next=path.diffuse(batch.clean, t_next, z),
            t_next=t_next,
            upper=torch.tensor(upper, dtype=torch.float64),
            lower=torch.tensor(lower, dtype=torch.float64),
            quiet=torch.tensor(quiet),
            cond=cond,
        )

    def levels(
        self, path: AffinePath, low: float, positions: tuple[int, ...], noise: Noise, count: int
    ) -> tuple[list[float], list[float], list[bool]]:
        """Upper and lower levels of the samples, and which of them are of low noise."""
        loss, high = self.loss, min(self.sigma_max, path.sigma_bar(path.t_range[1]))
        us = quantiles("time", positions, noise, loss.stratified)
        law = (loss.times, loss.mean, loss.std)
        if loss.spacing == "ratio":
            bottom = max(low, path.sigma_bar(path.t_min))
            upper = [levels.level(u, bottom * (1.0 + 1e-3), high, *law) for u in us]
            fine = levels.grid(loss.end, bottom, high, loss.rho)
            bound = fine[min(math.floor(loss.low_noise_fraction * len(fine)), loss.end)]
            return upper, [levels.lower(level, count, low) for level in upper], [level <= bound for level in upper]
        nodes = levels.grid(count, low, high, loss.rho)
        places = levels.places(us, nodes, *law)
        first = math.floor(loss.low_noise_fraction * len(nodes))
        return [nodes[i] for i in places], [nodes[i + 1] for i in places], [i >= first for i in places]

    def target(self, teacher: Denoiser, clean: Tensor, pair: Pair) -> Tensor:
        """The estimate of the teacher at the lower level; at σ_min the state itself."""
        found = _answer(teacher, pair.x_next, pair.t_next, pair.cond)
        bottom = pair.lower <= sigma_min(teacher)
        state = clean + expand(pair.lower, clean) * pair.noise
        rows = bottom.to(clean.device, non_blocking=True).reshape(-1, *(1,) * (clean.ndim - 1))
        return torch.where(rows, state, found).detach()


def denoising(answer: Tensor, clean: Tensor, pair: Pair, sigma_data: float) -> Tensor:
    """(1/σ̄² + 1/s²)·mean((x̂_0 − x_0)²) of the samples of low noise, (B,), zero for the others.

    Scaled so that its mean over the batch is the mean over those samples; a batch without any has no such loss.
    """
    weight = 1.0 / pair.upper**2 + 1.0 / sigma_data**2
    share = pair.quiet.double() * (len(pair.quiet) / max(int(pair.quiet.sum()), 1))
    return square(answer - clean) * (weight * share).to(clean.device, torch.float32)


def sigma_min(model: Denoiser) -> float:
    """The noise level at which the model returns its state; `UsageError` if it has none."""
    reading = model.parameterization
    if not isinstance(reading, Consistency | Anchored):
        raise UsageError(
            f"a consistency loss needs the boundary f(x, σ_min) = x, and this denoiser reads {type(reading).__name__}: "
            "use predicts='consistency', or wrap its parameterization in Anchored"
        )
    return reading.sigma_min


def _sigma_data(model: Denoiser) -> float:
    reading = model.parameterization
    inner = reading.inner if isinstance(reading, Anchored) else reading
    return getattr(inner, "sigma_data", 0.5)


def _answer(model: Denoiser, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """f(x, t) in float32."""
    raw = model.raw(x, t, cond).float()
    return model.parameterization.to_estimate(model.path, x, t, raw).clean.float()


def _times(path: AffinePath, values: list[float]) -> Tensor:
    """The times of the levels, (B,) float64 on the host, not below the path's `t_min`; one by one, as bits demand."""
    low, high = path.t_min, path.t_range[1]
    if isinstance(path, VE):
        return torch.tensor([min(max(value, low), high) for value in values], dtype=torch.float64)
    times = [path.time_of(-2.0 * math.log(value)) if value > 0.0 else low for value in values]
    return torch.tensor([min(max(t, low), high) for t in times], dtype=torch.float64)


def _groups(cond: Mapping[str, Tensor]) -> Tensor | None:
    """Within which rows noise may be exchanged: equal labels; rows without a caption; all, if there is no condition."""
    if not cond:
        return None
    if "label" in cond:
        return cond["label"]
    conditioned = torch.stack([value.flatten(1).any(1) for value in cond.values()]).any(0).cpu()
    return torch.where(conditioned, torch.arange(len(conditioned)), -1)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Layers that draw for themselves draw from this seed; the global generators are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
