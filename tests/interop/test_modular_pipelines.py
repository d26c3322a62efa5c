"""Our loop through the denoiser blocks of modular pipelines of diffusers, beside their own loop."""

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import (
    StableDiffusionXLDenoiseStep,
    StableDiffusionXLInpaintDenoiseStep,
)
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep
from torch import Tensor

import ornstein as orn
from ornstein.errors import NotFiniteError, UsageError
from ornstein.interop import modular

from . import test_schedulers_in_pipelines as tiny
from .conftest import SD_BETAS, small_conditional

pytestmark = pytest.mark.filterwarnings("ignore")


def filled(latents: Tensor, scheduler: Any, steps: int, fields: dict[str, Any], **more: Any) -> PipelineState:
    state = PipelineState()
    for key, value in {
        "latents": latents,
        "timesteps": scheduler.timesteps,
        "num_inference_steps": steps,
        **more,
    }.items():
        state.set(key, value)
    for key, value in fields.items():
        state.set(key, value, "denoiser_input_fields")
    return state


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def xl(steps: int = 5) -> tuple[Any, Any, PipelineState]:
    unet = small_conditional(
        diffusers, 16, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    components = SimpleNamespace(unet=unet, scheduler=scheduler, guider=guider, num_channels_unet=4)
    fields = {
        "prompt_embeds": drawn(2, 5, 16), "negative_prompt_embeds": drawn(2, 5, 16, seed=2),
        "pooled_prompt_embeds": drawn(2, 12), "negative_pooled_prompt_embeds": drawn(2, 12, seed=2),
        "add_time_ids": torch.ones(2, 6), "negative_add_time_ids": torch.ones(2, 6),
    }  # fmt: skip
    latents = drawn(2, 4, 8, 8, seed=3) * scheduler.init_noise_sigma
    return StableDiffusionXLDenoiseStep(), components, filled(latents, scheduler, steps, fields)


def flux(steps: int = 5) -> tuple[Any, Any, PipelineState]:
    net = tiny.flux()[0].transformer
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    more = {
        "prompt_embeds": drawn(2, 5, 16), "pooled_prompt_embeds": drawn(2, 8), "txt_ids": torch.zeros(5, 3),
        "img_ids": torch.zeros(16, 3),
    }  # fmt: skip
    state = filled(drawn(2, 16, 4), scheduler, steps, {}, **more)
    return FluxDenoiseStep(), SimpleNamespace(transformer=net, scheduler=scheduler), state


def sd3(steps: int = 5) -> tuple[Any, Any, PipelineState]:
    net = tiny.sd3()[0].transformer
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    more = {
        "prompt_embeds": drawn(2, 5, 16), "pooled_prompt_embeds": drawn(2, 8),
        "negative_prompt_embeds": drawn(2, 5, 16, seed=2), "negative_pooled_prompt_embeds": drawn(2, 8, seed=2),
    }  # fmt: skip
    state = filled(drawn(2, 4, 8, 8), scheduler, steps, {}, **more)
    return StableDiffusion3DenoiseStep(), SimpleNamespace(transformer=net, scheduler=scheduler, guider=guider), state


def wan(steps: int = 5) -> tuple[Any, Any, PipelineState]:
    net = tiny.wan()[0].transformer
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    more = {"prompt_embeds": drawn(1, 5, 16), "negative_prompt_embeds": drawn(1, 5, 16, seed=2), "dtype": torch.float32}
    state = filled(drawn(1, 4, 2, 4, 4), scheduler, steps, {}, **more)
    return WanDenoiseStep(), SimpleNamespace(transformer=net, scheduler=scheduler, guider=guider), state


FAMILIES = {"xl": xl, "flux": flux, "sd3": sd3, "wan": wan}


def ran(block: Any, components: Any, state: PipelineState) -> Tensor:
    block.set_progress_bar_config(disable=True)
    return block(components, state)[1].get("latents")


@pytest.mark.parametrize("family", FAMILIES)
def test_ddim_is_their_own_loop(family: str) -> None:
    wanted, found = ran(*FAMILIES[family]()), None
    block, components, state = FAMILIES[family]()
    found = ran(orn.interop.modular.loop(block, sampler="ddim"), components, state)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert type(block).__call__ is not type(modular.loop(block)).__call__


def test_image_to_image_begins_where_their_blocks_say() -> None:
    wanted, found = None, None
    for ours in (False, True):
        block, components, state = xl(steps=6)
        late = components.scheduler.timesteps[3:]
        components.scheduler.set_begin_index(3)
        noise = drawn(2, 4, 8, 8, seed=4)
        state.set("latents", components.scheduler.add_noise(drawn(2, 4, 8, 8, seed=5), noise, late[:1].repeat(2)))
        state.set("timesteps", late)
        state.set("num_inference_steps", 3)
        if ours:
            found = ran(modular.loop(block, sampler="ddim"), components, state)
        else:
            wanted = ran(block, components, state)
    assert wanted is not None
    assert found is not None
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", ["heun", "accelerated-ode"])
def test_every_sampler_runs_through_the_block(family: str, sampler: str) -> None:
    block, components, state = FAMILIES[family]()
    start = state.get("latents")
    end = ran(modular.loop(block, sampler=sampler), components, state)
    assert end.shape == start.shape
    assert torch.isfinite(end).all()


def test_the_generator_of_the_pipeline_decides_the_noise() -> None:
    ends = []
    for seed in (1, 1, 2):
        block, components, state = flux()
        state.set("generator", torch.Generator().manual_seed(seed))
        ends.append(ran(modular.loop(block, sampler="ancestral"), components, state))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_sample_that_is_not_finite_is_refused() -> None:
    block, components, state = flux()
    with torch.no_grad():
        next(components.transformer.parameters()).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the sample is not finite"):
        ran(modular.loop(block), components, state)


def test_a_grid_of_ones_own_begins_at_the_first_state() -> None:
    block, components, state = flux()
    coarse, fine = (
        ran(modular.loop(block, sampler="ddim", grid=grid), components, state)
        for grid in ([1.0, 0.5, 0.0], orn.grids.uniform(40))
    )
    assert not torch.allclose(coarse, fine, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_state(family: str) -> None:
    """Universal guidance towards zero makes the sample smaller, through every family's network."""
    ends = []
    for strength in (None, 3.0):
        block, components, state = FAMILIES[family]()
        energy = lambda clean: clean.flatten(1).square().mean(1)  # noqa: E731
        guide = None if strength is None else orn.guidance.Universal(energies=energy, strength=strength)
        end = ran(modular.loop(block, sampler="ddim", guidance=guide), components, state)
        ends.append(end.square().mean().item())
    assert ends[1] < 0.98 * ends[0]


@pytest.mark.parametrize("family", ["xl", "sd3", "wan"])
def test_our_classifier_free_guidance_equals_their_guider(family: str) -> None:
    block, components, state = FAMILIES[family]()
    wanted = ran(modular.loop(block, sampler="dpmpp-2m"), components, state)
    block, components, state = FAMILIES[family]()
    ours = orn.guidance.CFG(weight=3.0, null=modular.EMPTY)
    found = ran(modular.loop(block, sampler="dpmpp-2m", guidance=ours), components, state)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("family", ["xl", "flux"])
def test_minority_guidance_runs_through_the_block(family: str) -> None:
    ends = []
    for scale in (0.0, 0.5):
        block, components, state = FAMILIES[family]()
        guide = orn.guidance.SelfMinority(scale=scale, distance="squared")
        ends.append(ran(modular.loop(block, sampler="ddim", guidance=guide), components, state))
    assert torch.isfinite(ends[1]).all()
    assert not torch.equal(*ends)


@pytest.mark.parametrize("family", ["xl", "sd3", "wan"])
@pytest.mark.parametrize("kind", ["ClassifierFree", "AdaptiveProjected", "TangentialClassifierFree"])
def test_their_guiders_are_guidances_of_ours(family: str, kind: str) -> None:
    """The guider in their loop, and in ours as a guidance of a network without one."""

    def guider() -> Any:
        return getattr(diffusers, f"{kind}Guidance")(guidance_scale=3.0, stop=0.6)

    block, components, state = FAMILIES[family]()
    components.guider = guider()
    wanted = ran(block, components, state)
    block, components, state = FAMILIES[family]()
    path = orn.interop.schedulers.from_scheduler_config(components.scheduler).path
    times = orn.interop.schedulers.times_of_pipeline(components.scheduler, path, 5)
    guide = modular.GuiderGuidance(guider=guider(), null=modular.EMPTY, times=times)
    found = ran(modular.loop(block, sampler="ddim", guidance=guide), components, state)
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize(("family", "rescale"), [("xl", 0.7), ("sd3", 0.0), ("wan", 0.7)])
def test_our_guidances_are_guiders_of_theirs(family: str, rescale: float) -> None:
    guide = orn.guidance.CFG(weight=3.0, null=modular.EMPTY, rescale=rescale)
    block, components, state = FAMILIES[family]()
    wanted = ran(modular.loop(block, sampler="ddim", guidance=guide), components, state)
    block, components, state = FAMILIES[family]()
    components.guider = modular.guider_of(guide, components.scheduler)
    found = ran(block, components, state)
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_a_guider_guides_any_denoiser() -> None:
    net = lambda x, time, label: 0.5 * x + label.reshape(-1, 1)  # noqa: E731
    model = orn.Denoiser(net, path=orn.VP(), predicts="noise", shape=(3,)).with_condition({"label": torch.ones(1)})
    null = {"label": torch.zeros(1)}
    theirs = modular.GuiderGuidance(guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0), null=null)
    ours = orn.guidance.CFG(weight=4.0, null=null)
    x = drawn(2, 3).double()
    torch.testing.assert_close(theirs(model)(x, 0.5).clean, ours(model)(x, 0.5).clean)


def test_a_whole_pipeline_keeps_its_components_and_its_own_blocks() -> None:
    from diffusers.modular_pipelines import ModularPipeline, SequentialPipelineBlocks

    block, components, state = flux()
    blocks = SequentialPipelineBlocks.from_blocks_dict({"denoise": block})
    pipe = ModularPipeline(blocks=blocks)
    pipe.update_components(transformer=components.transformer, scheduler=components.scheduler)
    ours = modular.loop(pipe, sampler="ddim")
    given = {name: state.get(name) for name in state.values}
    wanted, found = (one(**given, output="latents") for one in (pipe, ours))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert ours.transformer is pipe.transformer
    assert type(pipe.blocks.sub_blocks["denoise"]) is FluxDenoiseStep


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="takes a modular pipeline of diffusers or its blocks, got 3"):
        modular.loop(3)
    with pytest.raises(UsageError, match="no denoising loop"):
        modular.loop(xl()[0].sub_blocks["denoiser"])
    with pytest.raises(UsageError, match="unknown sampler"):
        modular.loop(xl()[0], sampler="nothing")
    _, components, state = xl()
    with pytest.raises(UsageError, match="changes its states after every step"):
        state.set("mask", torch.ones(1))
        ran(modular.loop(StableDiffusionXLInpaintDenoiseStep()), components, state)
    block, components, state = flux()
    with pytest.raises(UsageError, match="has no guider"):
        ran(modular.loop(block, guidance=orn.guidance.CFG(weight=3.0, null=modular.EMPTY)), components, state)
    block, components, state = xl()
    with pytest.raises(UsageError, match="has its conditions in its own state"):
        ran(
            modular.loop(block, guidance=orn.guidance.CFG(weight=3.0, null={"label": torch.ones(1)})), components, state
        )
    differs = modular.guider_of(orn.guidance.SelfMinority(distance="squared"), components.scheduler)
    block, components, state = xl()
    components.guider = differs
    with pytest.raises(UsageError, match="needs our loop"):
        ran(block, components, state)
    with pytest.raises(UsageError, match=r"acts on the share 0 to 0\.5 of the steps"):
        modular.GuiderGuidance(guider=diffusers.ClassifierFreeGuidance(stop=0.5), null=modular.EMPTY)
    with pytest.raises(UsageError, match="must be a guider of diffusers, got 3"):
        modular.GuiderGuidance(guider=3, null=modular.EMPTY)
    with pytest.raises(UsageError, match="knows schedulers of betas and flows, got EDMEulerScheduler"):
        modular.guider_of(orn.guidance.CFG(weight=2.0, null=modular.EMPTY), diffusers.EDMEulerScheduler())
    components.scheduler = diffusers.IPNDMScheduler()
    with pytest.raises(UsageError, match="IPNDMScheduler has no betas"):
        ran(modular.loop(xl()[0]), components, xl()[2])
