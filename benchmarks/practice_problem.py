"""What `practice.py` solves: exact targets on a path, coupled starts, and converged reference solutions."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import practice_theirs as theirs
from ornstein.lab import targets as lab
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import Sampler, run, solve

SAMPLES = 512
SEED = 3
TARGETS = ("M1", "M2", "M64", "M1s", "G8")
PATHS = ("linear", "scaled-linear", "cosine", "ve", "flow")
LOWEST = 1e-5  # σ/α at which the reference jumps to the clean end


@functools.cache
def path_of(name: str) -> AffinePath:
    """The path with exactly the scheduler's α's, whose products are float32."""
    if name == "ve":
        return VE()
    if name == "flow":
        return Flow()
    setting = theirs.Setting("DDIM", "DDIMScheduler", ())
    products = np.concatenate([[1.0], setting.build(name).alphas_cumprod.double().numpy()])
    return VP.from_betas((1.0 - products[1:] / products[:-1]).tolist())


@functools.cache
def target_of(name: str) -> lab.MixtureTarget:
    """A target of the lab."""
    return getattr(lab, name)()


@dataclass(frozen=True)
class Coupled:
    """A target on a path, its starts at the noisy end (unit noise, as a pipeline draws it) and their exact ends."""

    target: lab.MixtureTarget
    path: AffinePath
    noise: Tensor
    exact: Tensor

    def errors(self, found: Tensor) -> dict[str, float]:
        """Mean and median distance to the exact ends."""
        gap = (found.to(torch.float64) - self.exact).norm(dim=1)
        return {"mean": float(gap.mean()), "median": float(gap.median())}

    def ours(self, sampler: Sampler, times: Sequence[float]) -> tuple[Tensor, int]:
        """(ends, calls) of one of our samplers."""
        counted = Counted(self.target.denoiser(self.path))
        x = self.noise * self.path.sigma(times[0]) if isinstance(self.path, VE) else self.noise
        noise = Noise.of(SEED, range(len(x)), dtype=torch.float64)
        return run(solve(sampler, self.path, x, times, noise), counted), counted.calls

    def theirs(self, setting: theirs.Setting, table: str, evaluations: int) -> tuple[Tensor, int]:
        """(ends, calls) of a diffusers scheduler."""
        scheduler, steps = setting.build(table), setting.steps(evaluations)
        if table == "flow":
            return theirs.drive_flow(scheduler, steps, self.noise, self._velocity)
        noise = self.noise
        if table == "ve":  # they start at √(σ² + 1); the start is the same for everybody
            scheduler.set_timesteps(steps)
            noise = noise * (self.path.t_range[1] / float(scheduler.init_noise_sigma))
        return theirs.drive(scheduler, steps, noise, self._noise)

    def _noise(self, x: Tensor, bar: float) -> Tensor:
        gain = 1.0 / math.sqrt(1.0 + bar**2)
        return (x - gain * self.target.clean(x, gain, gain * bar)) / (gain * bar)

    def _velocity(self, x: Tensor, t: float) -> Tensor:
        return (x - self.target.clean(x, 1.0 - t, t)) / t


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.path, self.calls = inner, inner.path, 0

    def __call__(self, x: Tensor, t: Any) -> Any:
        self.calls += 1
        return self.inner(x, t)


def coupled(target: str, path: str, cache: FilePath | None, samples: int = SAMPLES, steps: int = 1600) -> Coupled:
    """The problem, its reference read from ``cache`` or computed and kept there."""
    law, way = target_of(target), path_of(path)
    noise = Noise.of(SEED, range(samples), dtype=torch.float64).normal("practice", (law.dim,))
    file = None if cache is None else cache / f"reference-{path}-{target}-{samples}-{steps}.safetensors"
    if file is not None and file.exists():
        return Coupled(law, way, noise, load_file(file)["exact"])
    exact = solution(law, way, noise, steps)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"exact": exact}, file)
    return Coupled(law, way, noise, exact)


def solution(target: lab.MixtureTarget, path: AffinePath, noise: Tensor, steps: int) -> Tensor:
    """The probability-flow ODE by the classical Runge–Kutta rule in λ = −log σ̄, from the noisy end to the clean one.

    A start of pure noise (flow) is placed at σ̄ = 10⁵ first, where u = mean + σ̄·z within 10⁻⁵ standard deviations.
    """
    top = path.sigma_bar(path.t_range[1])
    if math.isinf(top):
        top = 1e5
        mean = (target.weights[:, None] * target.means).sum(0)
        u = mean + top * noise
    else:
        u = top * noise if isinstance(path, VE) else noise / path.alpha(path.t_range[1])
    bars = np.exp(np.linspace(math.log(top), math.log(LOWEST), 2 * steps + 1)).tolist()
    h = math.log(bars[0] / bars[2])

    def slope(u: Tensor, bar: float) -> Tensor:  # du/dλ = −σ̄·z = D − u, with the state scaled so that D sees it well
        gain = 1.0 / math.sqrt(1.0 + bar**2)
        return target.clean(gain * u, gain, gain * bar) - u

    for i in range(steps):
        begin, middle, end = bars[2 * i : 2 * i + 3]
        k1 = slope(u, begin)
        k2 = slope(u + 0.5 * h * k1, middle)
        k3 = slope(u + 0.5 * h * k2, middle)
        k4 = slope(u + h * k3, end)
        u = u + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
    return u + slope(u, bars[-1])


def versions() -> dict[str, str]:
    """What was compared with."""
    return {"diffusers": importlib.import_module("diffusers").__version__}
