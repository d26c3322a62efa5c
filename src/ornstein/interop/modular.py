"""Our loop in the place of the denoising loop of a *modular* pipeline of diffusers.

    pipe = orn.interop.modular.loop(pipe, sampler="dpmpp-2m", guidance=orn.guidance.Universal(…))
    image = pipe(prompt="a red fox", output="images")

The loops of modular pipelines are made of blocks: before the network, the network (``denoiser``), and the step after.
Ours runs the first two for every estimate, guider included, and leaves out the last. Of a family it needs to know the
forward law alone, which the pipeline's scheduler says.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import checks
from ..denoisers import DenoiserInfo, DenoiserLike, Guidance
from ..errors import NotFiniteError, UsageError
from ..estimates import Estimate
from ..grids import GridLike, times_of
from ..paths import VP
from ..paths.base import AffinePath, Cond
from ..samplers import Sampler, named, plan, run, solve
from ..scalars import Time
from .guiders import CONDITION, EMPTY, GuiderGuidance, guider_of, step_at
from .loading import diffusers_library
from .schedulers import SchedulerSpec, from_scheduler_config, listed_times, number_of
from .seeds import Generators, noise_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockDenoiser:
    """The denoiser block of a modular pipeline, with its state and components, as a denoiser.

    Bound to nothing, the prediction is that of the pipeline's guider; to `CONDITION` or `EMPTY`, that of one branch.
    """

    blocks: tuple[Any, ...]
    components: Any
    state: Any
    spec: SchedulerSpec
    times: tuple[float, ...]
    whole: bool
    cond: Cond | None = None

    @property
    def path(self) -> AffinePath:
        """That of the pipeline's scheduler."""
        return self.spec.path

    @property
    def info(self) -> DenoiserInfo:
        """Shape, device and network."""
        x, nets = self.state.latents, self._networks()
        return DenoiserInfo(shape=tuple(x.shape[1:]), device=x.device, dtype=x.dtype, cond=self.cond, network=nets)

    def with_condition(self, cond: Cond) -> BlockDenoiser:
        """One branch: `CONDITION` or `EMPTY`.

        Raises:
            UsageError: another condition, or a pipeline without a guider, whose network has one branch alone.
        """
        if set(cond) != {"branch"}:
            raise UsageError(
                "a modular pipeline has its conditions in its own state: bind modular.CONDITION or modular.EMPTY"
            )
        if not self._guiders():
            raise UsageError("this pipeline has no guider, so that its network has no empty branch: leave CFG out")
        return replace(self, cond=cond)

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """One estimate for each branch."""
        return [self.with_condition(cond)(x, t) for cond in conds]

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t; gradients reach x."""
        if isinstance(t, Tensor):
            raise UsageError("a modular pipeline is evaluated at one time for all samples")
        number = number_of(self.spec, t)
        kind = torch.int64 if self.whole and number.is_integer() else torch.float32
        timestep = torch.tensor(number, dtype=kind, device=x.device)
        step = step_at(self.times, t)
        state = copy.copy(self.state)
        state.latents = self.spec.predicts.precondition(self.path, x, t).to(self.state.latents.dtype)
        over: dict[str, Any] = {"scheduler": _Unscaled(self.components.scheduler)}
        if self.cond is not None:
            branch = int(self.cond["branch"].reshape(-1)[0])
            over.update({name: _one_branch(branch) for name in self._guiders()})
        components = _View(self.components, over)
        for block in self.blocks:
            call: Any = inspect.unwrap(type(block).__call__)  # theirs is wrapped in no_grad
            components, state = call(block, components, state, i=step, t=timestep)
        raw = state.noise_pred
        return self.spec.predicts.to_estimate(self.path, x, t, raw.to(x.dtype))

    def _guiders(self) -> list[str]:
        return [name for name in self._names() if name.startswith("guider")]

    def _names(self) -> list[str]:
        return list(dict.fromkeys(one.name for block in self.blocks for one in block.expected_components))

    def _networks(self) -> nn.Module | None:
        parts = [getattr(self.components, name, None) for name in self._names()]
        return next((part for part in parts if isinstance(part, nn.Module)), None)


def loop(
    pipeline: Any,
    *,
    sampler: str | Sampler = "dpmpp-2m",
    guidance: Guidance | None = None,
    guider: bool | None = None,
    grid: GridLike | None = None,
) -> Any:
    """A modular pipeline, or blocks of one, whose denoising loops are ours.

    The first state, the noise levels and the strength of image-to-image are those that the pipeline's blocks prepare;
    the components are shared. The pipeline that is given stays as it is.

    Args:
        pipeline: a ``ModularPipeline``, or ``ModularPipelineBlocks``.
        sampler: a name or a sampler.
        guidance: ours, around the pipeline's own denoiser. For classifier-free kinds ``null=modular.EMPTY``.
        guider: whether the pipeline's guider acts; by default unless ``guidance`` has an empty condition of its own.
        grid: instead of the scheduler's levels; its times above the start are left out.

    Raises:
        UsageError: no modular pipeline, or one without a denoising loop. While it runs: a scheduler that no path is
            known for, a loop that blends its states (inpainting), or a sample that is not finite (`NotFiniteError`).
    """
    library = diffusers_library()
    rule = named.sampler(sampler, import_paths=True)
    if guidance is not None:
        checks.function("guidance", guidance, "a guidance", UsageError)
    keep = not hasattr(guidance, "null") if guider is None else checks.flag("guider", guider)
    options = _Options(sampler=rule, guidance=guidance, guider=keep, grid=grid)
    whole = isinstance(pipeline, library.ModularPipeline)
    if not whole and not isinstance(pipeline, library.ModularPipelineBlocks):
        raise UsageError(f"loop takes a modular pipeline of diffusers or its blocks, got {checks.brief(pipeline)}")
    blocks = pipeline.blocks if whole else copy.deepcopy(pipeline)
    changed, count = _changed(blocks, options)
    if not count:
        raise UsageError(f"{type(pipeline).__name__} has no denoising loop with a block named denoiser")
    if not whole:
        return changed
    made = copy.copy(pipeline)
    made._blocks = changed
    return made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Options:
    sampler: Sampler
    guidance: Guidance | None
    guider: bool
    grid: GridLike | None


def _changed(block: Any, options: _Options) -> tuple[Any, int]:
    """The tree of blocks with our loops, and how many."""
    if isinstance(block, diffusers_library().LoopSequentialPipelineBlocks):
        if "denoiser" not in block.sub_blocks:
            return block, 0
        kind = type(block)
        block.__class__ = type(kind.__name__, (kind,), {"__call__": _call, "__module__": kind.__module__})
        block.ornstein = options
        return block, 1
    total = 0
    for name, one in list((getattr(block, "sub_blocks", None) or {}).items()):
        block.sub_blocks[name], count = _changed(one, options)
        total += count
    return block, total


def _call(self: Any, components: Any, state: Any) -> tuple[Any, Any]:
    """The denoising loop."""
    block_state = self.get_block_state(state)
    with torch.no_grad():
        block_state.latents = _denoised(self, components, block_state, state.get("generator"))
    self.set_block_state(state, block_state)
    return components, state


def _denoised(loop_block: Any, components: Any, state: Any, generator: Generators) -> Tensor:
    options: _Options = loop_block.ornstein
    _check_blocks(loop_block)
    scheduler = copy.deepcopy(components.scheduler)
    spec = from_scheduler_config(scheduler)
    if spec.grid is not None:
        raise UsageError(f"{type(scheduler).__name__} belongs to a few-step model: keep the pipeline's own loop")
    x, scale = _unscaled(scheduler, spec, state)
    times = _times(scheduler, spec, state, options)
    names = list(loop_block.sub_blocks)
    blocks = tuple(loop_block.sub_blocks[name] for name in names[: names.index("denoiser") + 1])
    denoiser: DenoiserLike = BlockDenoiser(
        blocks=blocks,
        components=components,
        state=state,
        spec=spec,
        times=times,
        whole=not state.timesteps.is_floating_point(),
        cond=None if options.guider else CONDITION,
    )
    guided = denoiser if options.guidance is None else options.guidance(denoiser)
    noise = noise_of(generator, x.shape[0], x.device, torch.float32)
    steps = solve(options.sampler, spec.path, x.float(), times, noise)
    with loop_block.progress_bar(total=len(plan(options.sampler, spec.path, times))) as bar:

        def shown(x: Tensor, t: Time) -> Estimate:
            answer = guided(x, t)
            bar.update()
            return answer

        end = run(steps, cast("DenoiserLike", shown))
    if end.device.type != "meta" and not bool(torch.isfinite(end).all()):
        raise NotFiniteError("the sample is not finite: weaken the guidance, take more steps, or look at the weights")
    if scale and isinstance(spec.path, VP):
        end = end / spec.path.alpha(times[-1])
    return end.to(state.latents.dtype)


def _unscaled(scheduler: Any, spec: SchedulerSpec, state: Any) -> tuple[Tensor, bool]:
    """The first state on the path, and whether the scheduler's own states are divided by α, as Euler's are."""
    latents = state.latents
    if not isinstance(spec.path, VP):
        return latents, False
    x = scheduler.scale_model_input(latents.clone(), state.timesteps[0])
    return x, not torch.equal(x, latents)


def _times(scheduler: Any, spec: SchedulerSpec, state: Any, options: _Options) -> tuple[float, ...]:
    """The times from the first state on: the scheduler's, or those of the call below it."""
    rest, every = len(state.timesteps), len(scheduler.timesteps)
    listed = listed_times(scheduler, spec.path, int(scheduler.num_inference_steps))
    count = rest if every == len(listed) - 1 else -(-rest * (len(listed) - 1) // every)
    own = listed[len(listed) - 1 - count :]
    if options.grid is None:
        return own
    return (own[0], *(t for t in times_of(options.grid, spec.path) if t < own[0]))


def _check_blocks(loop_block: Any) -> None:
    """Refuse loops that do more after a step than the step."""
    names = list(loop_block.sub_blocks)
    after = {name: type(loop_block.sub_blocks[name]).__name__ for name in names[names.index("denoiser") + 1 :]}
    more = [kind for name, kind in after.items() if name != "after_denoiser" or "Inpaint" in kind]
    if more:
        raise UsageError(
            f"{type(loop_block).__name__} changes its states after every step ({more[0]}), which our loop would leave "
            "out: keep the loop, and take the sampler as a scheduler, ornstein.schedulers"
        )


class _View:
    """The components of a pipeline, some of them replaced."""

    def __init__(self, components: Any, over: Mapping[str, Any]) -> None:
        self._components, self._over = components, over

    def __getattr__(self, name: str) -> Any:
        return self._over[name] if name in self._over else getattr(self._components, name)


class _Unscaled:
    """A scheduler whose ``scale_model_input`` changes nothing: the state is scaled already."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def scale_model_input(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        """The sample."""
        return sample

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


def _one_branch(branch: int) -> Any:
    """A guider that evaluates one branch alone."""
    kind: Callable[..., Any] = diffusers_library().ClassifierFreeGuidance
    made: Any = kind(guidance_scale=1.0)
    batch, from_state = type(made)._prepare_batch, type(made)._prepare_batch_from_block_state
    made.prepare_inputs = lambda data: [batch(data, branch, "pred_cond")]
    made.prepare_inputs_from_block_state = lambda data, fields: [from_state(fields, data, branch, "pred_cond")]
    return made


__all__ = ["CONDITION", "EMPTY", "BlockDenoiser", "GuiderGuidance", "guider_of", "loop"]
