"""Guiders of diffusers as guidances of ours, and ours as guiders.

A guider of diffusers mixes the outputs of a network under several conditions; it knows the number of the step, and
neither the state nor the noise level. A guidance of ours is a function of the denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .. import checks
from ..denoisers import DenoiserInfo, DenoiserLike, Guidance
from ..errors import UsageError
from ..estimates import Estimate
from ..guidance.base import Rule, null_beside
from ..paths import VP, Flow
from ..paths.base import AffinePath, Cond
from ..scalars import Time
from ..typed import typed
from .loading import diffusers_library
from .schedulers import SchedulerSpec, from_scheduler_config, time_of_number

CONDITION: Mapping[str, Tensor] = {"branch": torch.zeros(1)}
"""The prompt's branch of a modular pipeline, as a condition."""
EMPTY: Mapping[str, Tensor] = {"branch": torch.ones(1)}
"""The negative prompt's branch: ``null=`` of our guidances."""


def step_at(times: Sequence[float], t: float) -> int:
    """The number of the step that an evaluation at t belongs to."""
    begun = sum(one >= t * (1.0 - 1e-9) for one in times)
    return min(max(begun - 1, 0), len(times) - 2)


@typed(UsageError)
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GuiderGuidance(Rule):
    """A guider of diffusers as a guidance.

    It mixes what the estimates hold: noise of a network that predicts noise, velocity of a flow, else clean samples.
    A guider that keeps something between its calls (momentum) keeps it here too.

    Args:
        guider: ``ClassifierFreeGuidance``, ``AdaptiveProjectedGuidance``, …
        null: the empty condition.
        times: the falling times of the loop, for a guider that acts on a share of the steps (``start``, ``stop``).
        network: what it prepares for its further branches (skipped layers, perturbed attention).
    """

    guider: Any = field(repr=False)
    null: Cond = field(repr=False)
    times: tuple[float, ...] | None = None
    network: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not callable(getattr(self.guider, "prepare_inputs", None)):
            raise UsageError(f"guider must be a guider of diffusers, got {checks.brief(self.guider)}")
        window = (getattr(self.guider, "_start", 0.0), getattr(self.guider, "_stop", 1.0))
        if window != (0.0, 1.0) and self.times is None:
            raise UsageError(
                f"this {type(self.guider).__name__} acts on the share {window[0]:g} to {window[1]:g} of the steps: say "
                "which, times="
            )

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The guider's mixture."""
        if isinstance(t, Tensor):
            raise UsageError("a guider acts at one time for all samples")
        guider, null = self.guider, null_beside(self.null, inner)
        step, count = (0, 1) if self.times is None else (step_at(self.times, t), len(self.times) - 1)
        guider.set_state(step=step, num_inference_steps=count, timestep=torch.tensor(t))
        batches = guider.prepare_inputs({"which": (0, 1)})
        form: Literal["clean", "noise", "velocity"] | None = None
        for batch in batches:
            if self.network is not None:
                guider.prepare_models(self.network)
            found = (inner if batch.which == 0 else inner.with_condition(null))(x, t)
            if self.network is not None:
                guider.cleanup_models(self.network)
            form = _held(found) if form is None else form
            batch.noise_pred = getattr(found, form)
        mixture: dict[str, Any] = {form or "clean": guider(batches)[0]}
        return Estimate(x, t, inner.path, **mixture)


def guider_of(guidance: Guidance, scheduler: Any) -> Any:
    """A guidance of ours with ``null=EMPTY`` as a guider for the loops of diffusers.

    Its state is the network's input, which a hook sees. The guidance may mix both branches in any way, also by what it
    sees in x or at the noise level; one that evaluates the network once more, or differentiates it, needs our loop.

    >>> import diffusers, ornstein as orn
    >>> guidance = orn.guidance.CFG(weight=5.0, null=orn.interop.modular.EMPTY, rescale=0.5)
    >>> guider = orn.interop.modular.guider_of(guidance, diffusers.EulerDiscreteScheduler())
    >>> guider.num_conditions
    2

    Args:
        guidance: the guidance.
        scheduler: of the pipeline: it says what the network predicts.

    Raises:
        UsageError: a scheduler of another kind than betas and flows.
    """
    checks.function("guidance", guidance, "a guidance", UsageError)
    spec = from_scheduler_config(scheduler)
    if not isinstance(spec.path, VP | Flow):
        raise UsageError(f"guider_of knows schedulers of betas and flows, got {type(scheduler).__name__}")
    base: Any = diffusers_library().ClassifierFreeGuidance
    output: Any = diffusers_library().guiders.guider_utils.GuiderOutput

    class OrnsteinGuider(base):
        """Two branches, mixed by a guidance of ornstein."""

        def __init__(self) -> None:
            super().__init__(guidance_scale=2.0)
            self.seen: Tensor | None = None
            self.hook: Any = None

        def prepare_models(self, denoiser: Any) -> None:
            super().prepare_models(denoiser)
            self.hook = denoiser.register_forward_pre_hook(self._see, with_kwargs=True)

        def cleanup_models(self, denoiser: Any) -> None:
            super().cleanup_models(denoiser)
            self.hook.remove()

        def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            self.seen = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))

        def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> Any:
            if self.seen is None or pred_uncond is None:
                return output(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)
            x = self.seen.detach().float()
            x = x if x.shape == pred_cond.shape else x[:, : pred_cond.shape[1]]  # pictures beside the state
            t = time_of_number(spec, float(self._timestep))
            both = _Both(spec, x, t, (pred_cond.float(), pred_uncond.float()))
            found = guidance(both)(x, t)
            raw = spec.predicts.target(spec.path, found.clean, found.noise, x, t).to(pred_cond.dtype)
            return output(pred=raw, pred_cond=pred_cond, pred_uncond=pred_uncond)

    return OrnsteinGuider()


@dataclass(frozen=True, slots=True, eq=False)
class _Both:
    """A denoiser of which the outputs of both branches at one state are known."""

    spec: SchedulerSpec
    x: Tensor
    t: float
    outputs: tuple[Tensor, Tensor]
    cond: Cond = field(default_factory=lambda: CONDITION)

    @property
    def path(self) -> AffinePath:
        return self.spec.path

    @property
    def info(self) -> DenoiserInfo:
        return DenoiserInfo(shape=tuple(self.x.shape[1:]), device=self.x.device, cond=self.cond)

    def with_condition(self, cond: Cond) -> _Both:
        return _Both(self.spec, self.x, self.t, self.outputs, cond)

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        return [self.with_condition(cond)(x, t) for cond in conds]

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        if x is not self.x or t != self.t:
            raise UsageError("this guidance evaluates or differentiates the network: it needs our loop, modular.loop")
        return self.spec.predicts.to_estimate(self.path, x, t, self.outputs[int(self.cond["branch"].reshape(-1)[0])])


def _held(estimate: Estimate) -> Literal["clean", "noise", "velocity"]:
    for name in ("noise", "velocity"):
        if estimate.held(name) is not None:
            return name
    return "clean"
