"""Pipelines of diffusers, tiny and with random weights, on samplers of this library: their states are our loop's."""

import functools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.interop.schedulers import from_scheduler_config
from ornstein.interop.seeds import noise_of
from ornstein.samplers import run, solve

pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLERS = ["dpmpp-2m", "accelerated-ode", "accelerated-sde", "randomized-midpoint"]


def on(pipe: Any, name: str) -> Any:
    """The pipeline on a sampler, and its own scheduler."""
    source = pipe.scheduler
    pipe.scheduler = orn.schedulers.from_sampler(name, source.config)
    pipe.set_progress_bar_config(disable=True)
    return source


def latents_of(out: Any) -> Tensor:
    found = out[0] if isinstance(out, tuple) else next(iter(out.values()))
    return found if isinstance(found, Tensor) else torch.stack(list(found))


def check(pipe: Any, name: str, blends: bool = False, **call: Any) -> list[float]:
    """Run the pipeline; with what its network returned, our own loop passes through the same states and ends there.

    Returns the times of the evaluations.
    """
    source, seen, made = on(pipe, name), [], type(pipe.scheduler).step
    scheduler = pipe.scheduler

    @functools.wraps(made)
    def step(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **more: Any) -> Any:
        generator = more.get("generator")
        rows = sample.shape[0]
        place = (scheduler.begin_index or 0) + len(seen)
        noise = noise_of(generator, rows, sample.device, torch.float32) if not seen else None
        found = made(scheduler, output, timestep, sample, *args, **more)
        seen.append((place, sample.clone(), output.clone(), noise, found[0]))
        return found

    step.__wrapped__ = functools.partial(made, scheduler)  # pipelines look at the signature
    scheduler.step = step
    try:
        torch.manual_seed(0)
        pipe(output_type="latent", return_dict=False, **call)
    finally:
        del scheduler.step
        pipe.scheduler = source
    spec = from_scheduler_config(source)
    first, x, _, noise, _ = seen[0]
    if call.get("generator") is None:
        torch.manual_seed(0)
    times = list(scheduler.times)
    begun = scheduler.evaluations[first]
    rest = times if first == 0 else [begun, *(t for t in times if t < begun)]
    steps = solve(scheduler.sampler, spec.path, x.float(), rest, noise)
    query = next(steps)
    if not torch.equal(query.x, x):
        seen = seen[1:]  # the first evaluation of a sampler that stirs before it asks is not used
    ends: list[Tensor] = []
    for _, sample, output, _, _ in seen:
        scale = max(1.0, sample.abs().max().item())
        assert blends or torch.allclose(query.x, sample.float(), atol=1e-5 * scale)
        estimate = spec.predicts.to_estimate(spec.path, query.x, query.t, output.float())
        try:
            query = steps.send(estimate)
        except StopIteration as stop:
            ends.append(stop.value)
    if not blends:
        assert len(ends) == 1
        assert torch.allclose(ends[0], seen[-1][-1].float(), atol=1e-5 * max(1.0, ends[0].abs().max().item()))
    return [scheduler.evaluations[place] for place, *_ in seen]


@pytest.mark.parametrize("name", SAMPLERS)
def test_stable_diffusion_equals_our_own_loop_and_network(stable: Path, name: str) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(stable)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(5)
    piped = orn.from_pipeline(pipe)
    source = on(pipe, name)
    found = pipe(["a", "b"], latents=x, num_inference_steps=6, guidance_scale=4.0, generator=generator,
                 output_type="latent").images  # fmt: skip
    guided = orn.guidance.CFG(weight=4.0, null=piped.null())(piped.denoiser.with_condition(piped.cond(["a", "b"])))
    noise = noise_of(generator, 2, x.device, x.dtype)
    wanted = run(solve(pipe.scheduler.sampler, piped.denoiser.path, x, pipe.scheduler.times, noise), guided)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    pipe.scheduler = source


@pytest.mark.parametrize("name", ["heun", "accelerated-ode-memory"])
def test_sdxl_equals_our_own_loop_and_network(xl: Path, name: str) -> None:
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(xl)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    piped = orn.from_pipeline(pipe)
    on(pipe, name)
    found = pipe("a", latents=x, num_inference_steps=5, guidance_scale=3.0, output_type="latent").images
    guided = orn.guidance.CFG(weight=3.0, null=piped.null())(piped.denoiser.with_condition(piped.cond(["a"])))
    noise = noise_of(None, 1, x.device, x.dtype)
    wanted = run(solve(pipe.scheduler.sampler, piped.denoiser.path, x, pipe.scheduler.times, noise), guided)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("family", "name"),
    [("stable", "ddim"), ("xl", "dpmpp-2m"), ("stable", "heun"), ("xl", "heun"), ("stable", "unipc-3")],
)
def test_image_to_image_begins_at_its_strength(request: pytest.FixtureRequest, family: str, name: str) -> None:
    folder = request.getfixturevalue(family)
    kind = "StableDiffusionXLImg2ImgPipeline" if family == "xl" else "StableDiffusionImg2ImgPipeline"
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    blends = name in ("heun", "unipc-3")  # begun inside, they take the first step otherwise
    times = check(pipe, name, blends, prompt="a", image=image, strength=0.5, num_inference_steps=8, guidance_scale=2.0)
    assert times[0] == pytest.approx(0.502, abs=0.13)
    assert len(times) == {"ddim": 4, "dpmpp-2m": 4, "heun": 8 - (family == "xl"), "unipc-3": 6}[name]


@pytest.mark.parametrize("family", ["stable", "xl"])
def test_inpainting_blends_every_state(request: pytest.FixtureRequest, family: str) -> None:
    folder = request.getfixturevalue(family)
    kind = "StableDiffusionXLInpaintPipeline" if family == "xl" else "StableDiffusionInpaintPipeline"
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    on(pipe, "dpmpp-2m")
    out = pipe(prompt="a", image=image, mask_image=mask, height=16, width=16, strength=0.9, num_inference_steps=6,
               generator=torch.Generator().manual_seed(3), output_type="latent").images  # fmt: skip
    known = pipe._encode_vae_image(image, torch.Generator().manual_seed(3))
    assert torch.allclose(out[..., :4], known[..., :4], atol=0.2 * known.abs().max().item())
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["ddim", "accelerated-ode-history"])
def test_base_and_refiner_share_the_levels(xl: Path, name: str) -> None:
    """One network on both sides of the cut is one run, for samplers that remember nothing."""
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(xl)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    for pipe in (base, refiner):
        on(pipe, name)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"prompt": "a", "num_inference_steps": 7, "guidance_scale": 2.0, "output_type": "latent"}
    whole = base(latents=x, **call).images
    half = base(latents=x, denoising_end=0.7, **call).images
    both = refiner(image=half, denoising_start=0.7, **call).images
    tolerance = 1e-6 if name != "accelerated-ode-history" else 0.2  # it forgets the score of the step before
    assert (both - whole).abs().max() <= tolerance * whole.abs().max()


def test_controlnet(xl: Path) -> None:
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(xl)
    control = diffusers.ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8))
    pipe = diffusers.StableDiffusionXLControlNetPipeline(**base.components, controlnet=control, add_watermarker=False)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    check(pipe, "dpmpp-2m", prompt="a", image=image, num_inference_steps=4, height=16, width=16)


def test_dit() -> None:
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )  # fmt: skip
    from .conftest import small_vae

    pipe = diffusers.DiTPipeline(net.eval(), small_vae(diffusers), diffusers.DDIMScheduler(clip_sample=False))
    on(pipe, "unipc")
    first = pipe([1, 2], num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="np").images
    second = pipe([1, 2], num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="np").images
    assert first.shape == (2, 16, 16, 3)
    assert np.array_equal(first, second)


def flux() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=False, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(scheduler, None, None, None, None, None, net)
    words = {"prompt_embeds": torch.randn(1, 5, 16), "pooled_prompt_embeds": torch.randn(1, 8)}
    return pipe, {**words, "height": 64, "width": 64, "max_sequence_length": 5}


def sd3() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(net, scheduler, None, None, None, None, None, None, None)
    words = {"prompt_embeds": torch.randn(1, 5, 16), "pooled_prompt_embeds": torch.randn(1, 8)}
    words |= {f"negative_{key}": torch.zeros_like(value) for key, value in words.items()}
    return pipe, {**words, "height": 64, "width": 64}


def ltx() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipe = diffusers.LTXPipeline(scheduler, None, None, None, net)
    words = {"prompt_embeds": torch.randn(1, 5, 16), "prompt_attention_mask": torch.ones(1, 5)}
    words |= {f"negative_{key}": value for key, value in words.items()}
    return pipe, {**words, "height": 64, "width": 64, "num_frames": 9}


def wan() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    pipe = diffusers.WanPipeline(None, None, None, scheduler, net)
    words = {"prompt_embeds": torch.randn(1, 5, 16), "negative_prompt_embeds": torch.zeros(1, 5, 16)}
    return pipe, {**words, "height": 32, "width": 32, "num_frames": 5}


FLOWS = {"flux": flux, "sd3": sd3, "ltx": ltx, "wan": wan}


@pytest.mark.parametrize("name", ["dpmpp-2m", "heun", "accelerated-ode", "randomized-midpoint"])
@pytest.mark.parametrize("family", FLOWS)
def test_flows_of_pictures_and_videos(family: str, name: str) -> None:
    pipe, call = FLOWS[family]()
    times = check(pipe, name, num_inference_steps=5, **call)
    assert times[0] == pytest.approx(1.0, abs=1e-5)


def test_the_pipelines_own_levels_are_kept() -> None:
    """Their scheduler is Euler on the flow, which is our DDIM there: the same pictures."""
    for family in ("flux", "sd3", "ltx"):
        pipe, call = FLOWS[family]()
        pipe.set_progress_bar_config(disable=True)
        ends = []
        for ours in (False, True):
            if ours:
                pipe.scheduler = orn.schedulers.DDIM.from_config(pipe.scheduler.config)
            generator = torch.Generator().manual_seed(1)
            ends.append(latents_of(pipe(num_inference_steps=5, generator=generator, output_type="latent",
                                        return_dict=False, **call)))  # fmt: skip
        assert (ends[0] - ends[1]).abs().max() <= 1e-5 * ends[0].abs().max(), family


def test_a_pipeline_is_saved_and_loaded_with_its_sampler(stable: Path, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(stable)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = orn.schedulers.AcceleratedODE.from_config(pipe.scheduler.config, form="memory")
    pipe.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.sampler == orn.samplers.AcceleratedODE("memory")
    ends = [one("a", num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="latent").images
            for one in (pipe, again)]  # fmt: skip
    assert torch.equal(*ends)


def test_explicit_timesteps_reach_the_network(stable: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(stable)
    on(pipe, "dpmpp-2m")
    seen: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda net, args: seen.append(float(args[1])))
    pipe("a", timesteps=[900, 333, 7], output_type="latent")
    assert seen == [900.0, 333.0, 7.0]
    with pytest.raises(UsageError, match="must fall"):
        pipe("a", timesteps=[7, 900], output_type="latent")
