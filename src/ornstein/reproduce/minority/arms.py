"""What `ornstein.reproduce.minority` compares: ways to draw samples that are rare in the data, at equal evaluations.

An evaluation is a pass for one image, forward or backward, through the model or through the classifier. So a step with
the classifier's gradient costs 3, a step with a self-guided gradient 3 (two looks and one way back), one with the
gradient of an energy 2, a plain one 1. Of three times as many plain samples the rarest third costs three chains.
Cells name their arm: one more changes none of the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from ... import grids, sampling
from ... import guidance as guide
from ...data import to_uint8
from ...denoisers import DenoiserLike, Guidance
from ...rarity import RarityClassifier
from ...storage.files import atomic, digest
from ...storage.reading import parse_json
from ...storage.weights import read_with_metadata
from ..universal.images import Counted
from .cells import RARITIES, Json, Setting, classifier, model
from .measures import held, measured, references

COMMON, MIDDLE, RAREST = 0, RARITIES // 2, RARITIES - 1
WINDOWS = {
    "high noise": (-math.inf, -0.32),
    "mid noise": (-0.32, 3.41),
    "low noise": (3.41, math.inf),
    "high noise, same SNR": (-math.inf, -4.48),
    "mid noise, same SNR": (-4.48, -0.75),
    "low noise, same SNR": (-0.75, math.inf),
}
"""Thirds of the linear table's steps, parted at 333 and 667, which is log-SNR −4.48 and −0.75; and at the noise level
where a picture of 32 pixels is as hard to see as one of 256: those plus 2·log(256/32)."""

EVERY, SCALE = 5, 0.4  # self-guided sampling, as published for CelebA
BOOST, START = 4.0, -7.9  # Boost-and-Skip, as published for CelebA: γ, and the log-SNR of step 247 of 250 (cosine)


AWAY, CHAINS = (10.0, 30.0, 100.0), 3
CLEAN = 8.0
"""The log-SNR that stands for a clean image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to draw. ``full`` arms spend all evaluations; the others take the steps of a guided chain."""

    name: str
    method: str = "plain"  # plain, noisy, self, boost, away, selected
    weight: float = 0.0
    target: int = RAREST
    window: str = ""
    sampler: str = "ancestral"
    full: bool = True


_NOISY = "classifier, w = {:g}"
ARMS: Mapping[str, Arm] = {
    "plain": Arm(name="plain"),
    "plain-short": Arm(name="plain, steps of the guided chain", full=False),
    "noisy-1": Arm(name=_NOISY.format(1), method="noisy", weight=1.0),
    "noisy-3": Arm(name=_NOISY.format(3), method="noisy", weight=3.0),
    "noisy-8": Arm(name=_NOISY.format(8), method="noisy", weight=8.0),
    "noisy-3-middle": Arm(name="… toward the middle class", method="noisy", weight=3.0, target=MIDDLE),
    "noisy-3-common": Arm(name="… toward the commonest class", method="noisy", weight=3.0, target=COMMON),
    "noisy-3-high": Arm(name="… at high noise alone", method="noisy", weight=3.0, window="high noise", full=False),
    "noisy-3-mid": Arm(name="… at mid noise alone", method="noisy", weight=3.0, window="mid noise", full=False),
    "noisy-3-low": Arm(name="… at low noise alone", method="noisy", weight=3.0, window="low noise", full=False),
    **{
        f"noisy-3-{name}-snr": Arm(
            name=f"… at {name} noise, same SNR",
            method="noisy",
            weight=3.0,
            window=f"{name} noise, same SNR",
            full=False,
        )
        for name in ("high", "mid", "low")
    },
    "self": Arm(name="self-guided", method="self", weight=SCALE),
    "boost": Arm(name="Boost-and-Skip", method="boost", weight=BOOST),
    "selected": Arm(name="rarest third of three times as many", method="selected"),
    **{f"away-{w:g}": Arm(name=f"away from the mean, w = {w:g}", method="away", weight=w) for w in AWAY},
    "plain-ddim": Arm(name="plain, DDIM", sampler="ddim"),
    "noisy-3-ddim": Arm(name="classifier, w = 3, DDIM", method="noisy", weight=3.0, sampler="ddim"),
    "boost-ddim": Arm(name="Boost-and-Skip, DDIM", method="boost", weight=BOOST, sampler="ddim"),
}
REAL = "real"
"""The arm of held-out pictures in the proportions of the data: what a perfect model would give."""


def steps_of(arm: Arm, evaluations: int) -> int:
    """The most steps that ``evaluations`` passes buy an arm; what is not ``full`` takes those of a guided chain.

    >>> [steps_of(ARMS[name], 48) for name in ("plain", "plain-short", "noisy-1", "self", "away-10", "selected")]
    [48, 16, 16, 34, 24, 15]
    """
    if arm.method == "away":
        return max(evaluations // 2, 1)
    if arm.method == "selected":
        return max((evaluations - CHAINS) // CHAINS, 1)  # and a look of the classifier at each
    if arm.method == "noisy" or not arm.full:
        return max(evaluations // 3, 1)
    if arm.method == "self":
        return max(n for n in range(1, evaluations + 1) if n == 1 or n + 2 * math.ceil(n / EVERY) <= evaluations)
    return evaluations


@dataclass(slots=True)
class CountedClassifier:
    """A rarity classifier that counts its evaluations, images times passes, forward and backward."""

    inner: RarityClassifier
    passes: int = field(default=0)

    @property
    def labels(self) -> tuple[str, ...]:
        """The inner ones."""
        return self.inner.labels

    def number(self, target: int) -> int:
        """The inner answer."""
        return self.inner.number(target)

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        """The inner answer; its gradient is always computed."""
        self.passes += 2 * len(state)
        return self.inner.log_likelihood(state, log_snr, target, label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearness:
    """How near a picture is to the mean of the data, in standard deviations of its 8 × 8 pixels: guidance that lowers
    the log-density of a Gaussian has this energy with a negative sign (Sehwag et al. 2022, without their classes).
    """

    mean: Tensor  # (192,)
    whitening: Tensor  # (192, 192)

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        flat = functional.adaptive_avg_pool2d(0.5 * (clean + 1.0), 8).flatten(1)
        return -0.5 * ((flat - self.mean) @ self.whitening).square().mean(1)


def nearness(pixels: npt.NDArray[np.float64]) -> Nearness:
    """Of the data's 8 × 8 pixels (n, 192), with a little of the mean variance added to all directions."""
    rows = torch.from_numpy(pixels)
    covariance = torch.cov(rows.T) + 0.01 * rows.var(0).mean() * torch.eye(rows.shape[1], dtype=rows.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    return Nearness(mean=rows.mean(0).float(), whitening=(vectors * values.rsqrt()).float())


def guided(
    arm: Arm,
    grid: grids.Grid,
    rare: Callable[[], RarityClassifier],
    away: Callable[[], Nearness] | None = None,
) -> tuple[Guidance, CountedClassifier | None]:
    """The guidance of an arm, and the classifier that counts, if it has one."""
    if arm.method == "away":
        assert away is not None
        return guide.Universal(energies=away(), strength=arm.weight), None
    if arm.method == "self":
        return guide.SelfMinority(scale=arm.weight, distance="squared", every=EVERY, grid=grid), None
    if arm.method != "noisy":
        return lambda plain: plain, None
    classifier = CountedClassifier(rare())
    rule: Guidance = guide.Minority(classifier, target=arm.target, weight=arm.weight)
    return guide.interval(rule, log_snr=WINDOWS[arm.window]) if arm.window else rule, classifier


def pictures(
    arm: Arm,
    plain: DenoiserLike,
    rare: Any,
    seed: int,
    samples: int,
    evaluations: int,
    away: Callable[[], Nearness] | None = None,
) -> tuple[Tensor, Json]:
    """``samples`` images uint8 of an arm, and the evaluations spent on each: model, classifier, steps."""
    steps = steps_of(arm, evaluations)
    grid = grids.default(plain.path, steps)
    skip = 0
    if arm.method == "boost":
        path = grids.affine(plain.path)
        times = grids.times_of(grid, path)
        skip = sum(path.log_snr(t) < START for t in times[:-1])
        # The steps left out are spent on a finer grid.
        grid = grids.default(path, round(steps * steps / (steps - skip))) if skip < steps else grid
        times = grids.times_of(grid, path)
        skip = max(len(times) - 1 - steps, 1)
    counted = Counted(plain)
    rule, classifier = guided(arm, grid, rare, away)
    boost = arm.weight if arm.method == "boost" else 1.0
    chains = CHAINS if arm.method == "selected" else 1
    batch = min(samples * chains, 64)
    found = sampling.sample(
        rule(counted),
        samples * chains,
        sampler=arm.sampler,
        grid=grid,
        seed=1000 + seed,
        batch=batch,
        prior_scale=boost,
        skip_steps=skip,
    )
    batches = math.ceil(samples * chains / batch)
    looks = classifier.passes / samples if classifier is not None else 0.0
    if arm.method == "selected":
        found, looks = _rarest(found, rare(), samples), float(chains)
    spent = {
        "steps": steps,
        "model": chains * (counted.evaluations + counted.gradients) / batches,
        "classifier": looks,
    }
    return to_uint8(found), spent


@torch.no_grad()
def _rarest(found: Tensor, rare: RarityClassifier, count: int) -> Tensor:
    """Of the samples those that the classifier holds for the rarest, by the probability of the last class."""
    level = torch.full((len(found),), CLEAN)
    target = rare.number(RAREST)
    parts = zip(found.split(64), level.split(64), strict=True)
    likely = torch.cat([rare.log_likelihood(part, at, target) for part, at in parts])
    return found[likely.topk(count).indices.sort().values]


def drawn(*, arm: str, samples: int, evaluations: int, reference: int, files: Path, **row: Any) -> Json:
    """Draw an arm, compare it with the data (`ornstein.reproduce.minority.measures.measured`), and say what it cost.

    The images are kept in ``files``, so that they can be measured otherwise.
    """
    setting = Setting.of(row)
    known = (setting.data, setting.size, reference, files)
    if arm == REAL:
        return measured(held(setting.data, setting.size, samples), *known) | {
            "steps": 0,
            "model": 0.0,
            "classifier": 0.0,
        }
    kept = files / f"samples-{arm}-{digest(setting, samples, evaluations)[:12]}.safetensors"
    if not kept.is_file():
        plain = model(setting, files).denoiser
        images, spent = pictures(
            ARMS[arm],
            plain,
            lambda: classifier(setting, files),
            setting.seed,
            samples,
            evaluations,
            lambda: nearness(references(*known).pixels),
        )
        with atomic(kept) as file:
            file.write(save({"images": images}, {"spent": json.dumps(spent)}))
    tensors, about = read_with_metadata(kept)
    return measured(tensors["images"], *known) | parse_json(about["spent"])
