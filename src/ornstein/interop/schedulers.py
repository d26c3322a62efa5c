"""The forward law that a diffusers scheduler stands for, read from its configuration."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import scalars
from ..denoisers import Family, TimestepOf
from ..errors import ConfigError, UsageError
from ..estimates import Estimate
from ..parameterizations import EDM, Consistency, Parameterization, V, WrappedParameterization, parameterization
from ..paths import VE, VP, Flow
from ..paths.base import AffinePath, Path
from ..paths.times import is_near, normalised
from ..scalars import Time
from .consistency import LatentConsistency, few_step_grids

_PREDICTIONS = {"epsilon": "noise", "sample": "clean", "v_prediction": "v"}
_RESPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSpec:
    """Path, meaning of the network's output, its time input (None: the path's own), and grids of few-step models."""

    path: AffinePath
    predicts: Parameterization
    timestep_of: TimestepOf | None = None
    grid: Family | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded(WrappedParameterization):
    """A parameterization whose clean sample is kept in the range of pictures, as ``clip_sample`` says.

    With a ``quantile`` the bound is that of |x̂_0| of each sample, between 1 and ``most``, and the sample is divided by
    it (``thresholding``). An estimate that lies in the range is left as it is.
    """

    inner: Parameterization
    bound: float = 1.0
    quantile: float | None = None
    most: float = 1.0

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """The inner estimate, bounded."""
        answer = self.inner.to_estimate(path, x, t, raw)
        if self.quantile is None:
            return answer.replace(clean=answer.clean.clamp(-self.bound, self.bound))
        sizes = answer.clean.detach().abs().flatten(1)
        at = torch.quantile(sizes.float(), self.quantile, dim=1).to(answer.clean).clamp(1.0, max(self.most, 1.0))
        bound = at.reshape(-1, *(1,) * (x.ndim - 1))
        return answer.replace(clean=torch.minimum(torch.maximum(answer.clean, -bound), bound) / bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Negated(WrappedParameterization):
    """A parameterization of the negative of the network's output."""

    inner: Parameterization

    def to_estimate(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """Of −raw."""
        return self.inner.to_estimate(path, x, t, -raw)

    def target(self, path: Path, clean: Tensor, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """The negative of the inner one's."""
        return -self.inner.target(path, clean, noise, x, t)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The time input N·t of a network that was trained on N steps of a `Flow`."""

    steps: float

    def __call__(self, path: Path, t: Time) -> Time:
        """N·t."""
        del path
        return self.steps * t


@dataclass(frozen=True, slots=True)
class LogNoise:
    """The time input 250·log σ of consistency models (Song et al. 2023)."""

    def __call__(self, path: Path, t: Time) -> Time:
        """1000·¼·log σ."""
        del path
        return 250.0 * scalars.log(t)


def from_scheduler_config(scheduler: Any, *, bound: bool = True) -> SchedulerSpec:
    """The law of a loaded diffusers scheduler.

    * Schedulers of betas (DDPM, DDIM, PNDM, Euler, Heun, LMS, DPM-Solver, DEIS, UniPC, …): the `VP` path of exactly
      their ``alphas_cumprod``, terminal SNR of zero included; ``prediction_type`` epsilon, sample or v_prediction;
      the network's time input is the index of the step.
    * Flow matching (FlowMatch…, or ``use_flow_sigmas``): `Flow`, velocity, N·t. The shift belongs to the grid.
    * EDMEuler and EDMDPMSolverMultistep: `VE` with EDM's preconditioning.
    * CMStochasticIterative: `VE` with the boundary of consistency models.
    * LCM: the path of its betas, with the boundary of latent consistency models.

    CMStochasticIterative, LCM, FlowMatchLCM and TCD belong to few-step models and bring ``grid``, the times at which
    they evaluate the network (`ornstein.interop.consistency.few_step_grids`).

    ``bound=False`` leaves ``clip_sample``, ``clip_denoised`` and ``thresholding`` out: a clipped estimate has no
    gradient where it is clipped, which guidance may want.

    Raises `UsageError` for any other scheduler.
    """
    name, config = type(scheduler).__name__, dict(scheduler.config)
    spec = _spec(scheduler, name, config)
    reading = _bounded(spec.predicts, config) if bound else spec.predicts
    if name == "LCMScheduler":
        reading = LatentConsistency(inner=reading, scaling=float(config.get("timestep_scaling", 10.0)))
    grid = few_step_grids(scheduler, spec.path)
    return SchedulerSpec(path=spec.path, predicts=reading, timestep_of=spec.timestep_of, grid=grid)


def times_of_pipeline(scheduler: Any, path: AffinePath, steps: int, **given: Any) -> tuple[float, ...]:
    """The times that the pipeline itself would use for so many steps, on the path of `from_scheduler_config`, its end
    included: ``steps`` different falling times, and the end.

    Schedulers that keep a first step of noise (``set_alpha_to_one=False``, Stable Diffusion's) end there, not at 0, and
    those with ``final_sigmas_type="sigma_min"`` at that level. Where they begin their last step there already, it moves
    nothing, and there is a time less. Schedulers of
    two stages (Heun, KDPM2) and of Runge–Kutta starts (PNDM) list their inner points too, which are left out.

    ``given`` is passed to the scheduler's ``set_timesteps`` as well: a pipeline's ``sigmas`` and ``mu``.

    Raises:
        UsageError: the scheduler cannot make so many steps, lists the same level twice, or climbs.
    """
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise UsageError(f"steps must be a whole number from 1 up, got {steps}")
    own, name = copy.deepcopy(scheduler), type(scheduler).__name__
    try:
        own.set_timesteps(steps, **given)
    except (ValueError, TypeError, IndexError, KeyError, ArithmeticError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{name} cannot make {steps} step{'s' * (steps > 1)}: {reason}") from None
    return listed_times(own, path, int(steps))


def listed_times(own: Any, path: AffinePath, steps: int) -> tuple[float, ...]:
    """The times of a scheduler that has listed its steps already (``set_timesteps``): see `times_of_pipeline`.

    Raises:
        UsageError: it lists the same level twice, or climbs.
    """
    name = type(own).__name__
    sigmas = None if getattr(own, "sigmas", None) is None else np.array([float(sigma) for sigma in own.sigmas])
    keeps = dict(own.config).get("set_alpha_to_one", True) is False and not name.startswith("PNDM")
    still = keeps or dict(own.config).get("final_sigmas_type") == "sigma_min"
    if isinstance(path, VP):
        times, end = _indexed(own, path, sigmas)
    elif sigmas is not None:
        times, end = sigmas[:-1].tolist(), float(sigmas[-1])
    else:
        raise UsageError(f"{name} lists no noise levels: give a grid of your own")
    if times and end > 0.0 and is_near(min(times), end, path) and not still:
        end = path.t_range[0]  # their list ends with its last level twice
    found = normalised([*(t for t in times if t > end and not is_near(t, end, path)), end], path)
    fewest = steps - 1 if still else steps
    if not fewest <= len(found) - 1 <= steps or any(t <= s for t, s in pairwise(found)) or len(found) < 2:
        raise UsageError(
            f"{name} lists {len(found) - 1} falling noise levels for {steps} steps: take another number of steps, or a "
            "grid of your own (grid=)"
        )
    return found


def number_of(spec: SchedulerSpec, t: float) -> float:
    """The time input of the network at t; whole where it is whole but for rounding."""
    number = float(spec.path.timestep_of(t) if spec.timestep_of is None else spec.timestep_of(spec.path, t))
    near = round(number)
    return float(near) if abs(number - near) < 1e-6 * max(1.0, abs(number)) else number


def time_of_number(spec: SchedulerSpec, number: Any) -> Any:
    """The inverse of `number_of`, for floats and for tensors."""
    if isinstance(spec.path, VP):
        return (number + 1.0) / (spec.path.timestep_of(1.0) + 1.0)
    if isinstance(spec.path, VE):
        return torch.exp(4.0 * number) if isinstance(number, Tensor) else math.exp(4.0 * number)
    return number / (spec.timestep_of.steps if isinstance(spec.timestep_of, Counted) else 1000.0)


def _indexed(own: Any, path: VP, sigmas: Any) -> tuple[list[float], float]:
    """The times of a scheduler of betas, and their end."""
    config, table = dict(own.config), len(own.alphas_cumprod)
    if sigmas is not None and any(config.get(key) for key in _RESPACED):
        levels = [path.time_of(-2.0 * float(np.log(sigma))) for sigma in sigmas if sigma > 0.0]
        return (levels, 0.0) if sigmas[-1] == 0.0 else (levels[:-1], levels[-1])
    known = own.timesteps
    if type(own).__name__.startswith("PNDM"):
        known = sorted({int(k) for k in own._timesteps}, reverse=True)
    elif len(known) == 2 * int(own.num_inference_steps) - 1:  # two stages a step: every other one is an inner point
        known = known[::2]
    times = [(float(k) + 1.0) / table for k in known]
    kept = config.get("set_alpha_to_one", True) is False if sigmas is None else sigmas[-1] != 0.0
    return times, 1.0 / table if kept else 0.0


def _spec(scheduler: Any, name: str, config: Mapping[str, Any]) -> SchedulerSpec:
    kind = str(config.get("prediction_type", "epsilon"))
    steps = int(config.get("num_train_timesteps", 1000))
    if "FlowMatch" in name or config.get("use_flow_sigmas") or kind == "flow_prediction":
        timestep_of = None if steps == 1000 else Counted(steps=float(steps))
        return SchedulerSpec(
            path=Flow(t_min=1.0 / steps), predicts=parameterization("velocity"), timestep_of=timestep_of
        )
    if name.startswith("EDM"):
        noise = VE(sigma_min=float(config["sigma_min"]), sigma_max=float(config["sigma_max"]))
        reading = EDM(sigma_data=float(config.get("sigma_data", 0.5)))
        if kind not in ("epsilon", "v_prediction"):
            raise _unknown(name, kind)
        return SchedulerSpec(path=noise, predicts=reading if kind == "epsilon" else Negated(inner=reading))
    if name == "CMStochasticIterativeScheduler":
        if float(config.get("s_noise", 1.0)) != 1.0:
            raise UsageError(f"{name} has s_noise {config['s_noise']}, another amount of noise: only 1 is supported")
        low = float(config["sigma_min"])
        reading = Consistency(sigma_data=float(config.get("sigma_data", 0.5)), sigma_min=low)
        return SchedulerSpec(
            path=VE(sigma_min=low, sigma_max=float(config["sigma_max"])), predicts=reading, timestep_of=LogNoise()
        )
    products = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(products, Tensor) or config.get("timestep_type") == "continuous":
        raise UsageError(
            f"the scheduler {name} has no betas that a path could be made of: known are those with alphas_cumprod, "
            "FlowMatch…, EDM… and CMStochasticIterativeScheduler"
        )
    if kind not in _PREDICTIONS:
        raise _unknown(name, kind)
    if config.get("rescale_betas_zero_snr") and len(products) > 1 and products[-1] >= products[-2]:
        products = torch.cat([products[:-1], torch.zeros_like(products[-1:])])  # theirs is 2⁻²⁴ in place of 0
    return SchedulerSpec(path=path_of_products(products), predicts=V() if kind == "v_prediction" else _reading(kind))


def path_of_products(products: Tensor) -> VP:
    """The `VP` path with exactly these α², (N,), decreasing; the last may be 0."""
    kept = np.concatenate([[1.0], products.detach().cpu().double().numpy()])
    with np.errstate(invalid="ignore", divide="ignore"):  # after a 0: not a number, which is refused below
        betas = 1.0 - kept[1:] / kept[:-1]
    try:
        return VP.from_betas(betas.tolist())
    except ConfigError as error:
        raise UsageError(f"the scheduler's alphas_cumprod do not fall from below 1 to 0 or above: {error}") from None


def _reading(kind: str) -> Parameterization:
    return parameterization(_PREDICTIONS[kind])


def _bounded(reading: Parameterization, config: Mapping[str, Any]) -> Parameterization:
    if config.get("thresholding"):
        quantile, most = float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
        return Bounded(inner=reading, quantile=quantile, most=most)
    if config.get("clip_sample") or config.get("clip_denoised"):
        return Bounded(inner=reading, bound=float(config.get("clip_sample_range", 1.0)))
    return reading


def _unknown(name: str, kind: str) -> UsageError:
    return UsageError(f"{name} has prediction_type {kind!r}: known are epsilon, sample, v_prediction, flow_prediction")
