"""The adapter and the pipeline itself: the same network, path and noise give the same pictures."""

import json
import shutil

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.errors import ConfigError, UsageError
from ornstein.guidance import CFG
from ornstein.interop.diffusers import KNOWN, DiffusersModel, from_pipeline
from ornstein.interop.schedulers import from_scheduler_config, path_of_products, times_of_pipeline
from ornstein.parameterizations import EDM, Consistency
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, Ancestral, DPMSolver, Heun, run, solve

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
QUIET = Noise.of(0, range(2))
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PRECISION = [(torch.float32, 1e-4), (torch.float64, 1e-8)]


class Injected:
    """The numbers that a pipeline draws from this generator, in the same order."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.generator, self.dtype = generator, dtype

    def normal(self, key, event):
        return torch.randn(2, *event, generator=self.generator, dtype=self.dtype)


def doubled(pipe) -> None:
    """Give the scheduler coefficients in double precision, which its configuration does not."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "alphas", "betas", "one"):
        if isinstance(value := getattr(pipe.scheduler, name, None), torch.Tensor):
            setattr(pipe.scheduler, name, value.double())


class RowByRow(torch.nn.Module):
    """A sinusoidal embedding in which no row's rounding depends on its place: diffusers makes it in float32."""

    def __init__(self, embed) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, times):
        return torch.cat([self.embed(time[None]) for time in times])


def opened(folder, dtype, scheduler=None, **options) -> DiffusersModel:
    piped = from_pipeline(folder, dtype=dtype, **options)
    piped.pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        piped.pipe.scheduler = scheduler
        piped = from_pipeline(piped.pipe)
    if dtype == torch.float64:
        doubled(piped.pipe)
        for name in ("time_proj", "add_time_proj"):
            if (embed := getattr(piped.pipe.unet, name, None)) is not None:
                setattr(piped.pipe.unet, name, RowByRow(embed))
    return piped


def latents(piped, dtype) -> torch.Tensor:
    return torch.randn(2, *piped.denoiser.shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def ours(piped, method, x, steps, model=None, cond=None):
    model = piped.denoiser if model is None else model
    model = model if cond is None else model.with_condition(cond)
    return run(solve(method, model.path, x, piped.grid(steps)(model.path), QUIET), model)


def gap(one, other) -> float:
    return float((torch.as_tensor(np.asarray(one)) - other).abs().max())


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_pipeline(pixels, dtype, bound, clip):
    piped = opened(pixels, dtype, diffusers.DDPMScheduler(clip_sample=clip))
    theirs = piped.pipe(
        batch_size=2, num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(3)
    ).images
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype)
    model = piped.denoiser
    mine = run(solve(Ancestral(), model.path, x, piped.grid(5)(model.path), Injected(generator, dtype)), model)
    assert mine.dtype == dtype
    assert gap(theirs.transpose(0, 3, 1, 2), (mine / 2 + 0.5).clamp(0, 1)) < bound


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
@pytest.mark.parametrize(
    "config",
    [
        {"clip_sample": True},
        {"clip_sample": False, "set_alpha_to_one": False},
        {"clip_sample": False, "prediction_type": "v_prediction"},
        {"clip_sample": False, "prediction_type": "sample"},
        {
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=str,
)
def test_ddim_pipeline(pixels, dtype, bound, config):
    scheduler = diffusers.DDIMScheduler(**config)
    piped = opened(pixels, dtype)
    pipe = diffusers.DDIMPipeline(piped.pipe.unet, scheduler)
    piped = from_pipeline(pipe)
    if dtype == torch.float64:
        doubled(pipe)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        batch_size=2,
        num_inference_steps=5,
        output_type="np",
        use_clipped_model_output=True,
        generator=torch.Generator().manual_seed(3),
    ).images
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=dtype)
    mine = ours(piped, DDIM(), x, 5)
    assert gap(theirs.transpose(0, 3, 1, 2), (mine / 2 + 0.5).clamp(0, 1)) < bound


def test_a_zero_terminal_snr_is_a_path(pixels):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    path = from_scheduler_config(scheduler).path
    assert isinstance(path, VP)
    assert path.alpha(1.0) == 0.0
    assert path.sigma(1.0) == 1.0
    assert path.log_snr(1.0) == -np.inf
    for t in (0.3, 0.999, 0.99925, 0.9999999):
        assert path.time_of(path.log_snr(t)) == pytest.approx(t, abs=1e-9)
        step = 1e-7
        slope = (path.alpha(t) - path.alpha(t - step)) / step  # of the segment that ends there
        assert path.rates(t)[0] == pytest.approx(slope, rel=1e-3, abs=1e-6)
    tensor = torch.tensor([0.3, 0.999, 0.9995, 1.0], dtype=torch.float64)
    assert path.alpha(tensor).tolist() == pytest.approx([path.alpha(t) for t in tensor.tolist()], abs=1e-14)
    assert path.time_of(path.log_snr(tensor)).tolist() == pytest.approx(tensor.tolist(), abs=1e-9)
    model = orn.Denoiser(lambda x, time: 0.3 * x, path, "v", shape=(1, 4, 4))
    for sampler in ("ddim", "dpmpp-2m", "ancestral", "heun", "unipc"):
        assert orn.sample(model, 2, sampler=sampler, steps=6).isfinite().all(), sampler
    with pytest.raises(ConfigError, match="at most 1"):
        VP.from_betas([0.1, 1.5])
    with pytest.raises(ConfigError, match="inside"):
        VP.from_betas([1.0, 0.5])


# ---------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_stable_diffusion(stable, dtype, bound, weight):
    piped = opened(stable, dtype)
    x = latents(piped, dtype)
    prompts = ["a cat", "dog dog"]
    theirs = piped.pipe(
        prompts, latents=x, guidance_scale=weight, num_inference_steps=5, output_type="latent", eta=0.0
    ).images
    guided = CFG(weight=weight, null=piped.null())(piped.denoiser)
    mine = ours(piped, DDIM(), x, 5, guided, piped.cond(prompts))
    assert gap(theirs, mine) < bound
    pictures = piped.pipe(
        prompts, latents=x, guidance_scale=weight, num_inference_steps=5, output_type="pt", eta=0.0
    ).images
    assert gap(pictures, (piped.codec.decode(mine) / 2 + 0.5).clamp(0, 1)) < bound


def test_a_negative_caption(stable):
    piped = opened(stable, torch.float32)
    x = latents(piped, torch.float32)
    options = {"latents": x, "num_inference_steps": 3, "output_type": "latent", "guidance_scale": 3.0}
    theirs = piped.pipe(["a cat"] * 2, negative_prompt=["fog"] * 2, **options).images
    guided = CFG(weight=3.0, null=piped.null(negative="fog"))(piped.denoiser)
    mine = ours(piped, DDIM(), x, 3, guided, piped.cond(["a cat"]))
    assert gap(theirs, mine) < 1e-4
    assert gap(piped.pipe(["a cat"] * 2, **options).images, mine) > 1e-3


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_stable_diffusion_with_dpm(stable, spacing):
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD_BETAS, steps_offset=1, timestep_spacing=spacing)
    # In float64, for the latents are of size 30; what is left is the scheduler's float32.
    piped = opened(stable, torch.float64, scheduler)
    x = latents(piped, torch.float64)
    theirs = piped.pipe(
        ["a cat", "b"], latents=x, guidance_scale=3.0, num_inference_steps=6, output_type="latent"
    ).images
    guided = CFG(weight=3.0, null=piped.null())(piped.denoiser)
    mine = ours(piped, DPMSolver(points=2), x, 6, guided, piped.cond(["a cat", "b"]))
    assert gap(theirs, mine) < 1e-4


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_stable_diffusion_xl(xl, weight):
    # Its scheduler works on x/α, so the state is brought to our scale at both ends.
    piped = opened(xl, torch.float64)
    x = latents(piped, torch.float64)
    options = {"latents": x, "guidance_scale": weight, "num_inference_steps": 5, "height": 16, "width": 16}
    prompts = ["a red fox", "b"]
    theirs = piped.pipe(prompts, output_type="latent", **options).images
    guided = CFG(weight=weight, null=piped.null())(piped.denoiser)
    path, times = piped.denoiser.path, piped.grid(5)(piped.denoiser.path)
    scale = float(piped.pipe.scheduler.init_noise_sigma) * path.alpha(times[0])
    mine = ours(piped, DDIM(), x * scale, 5, guided, piped.cond(prompts))
    assert gap(theirs, mine) < 1e-4
    pictures = piped.pipe(prompts, output_type="pt", **options).images
    assert gap(pictures, (piped.codec.decode(mine) / 2 + 0.5).clamp(0, 1)) < 1e-4


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
def test_stable_diffusion_xl_with_ddim(xl, dtype, bound):
    scheduler = diffusers.DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    piped = opened(xl, dtype, scheduler)
    x = latents(piped, dtype)
    sizes = {"original_size": (8, 12), "crops_coords_top_left": (2, 3), "target_size": (16, 16)}
    told = {"original": (8, 12), "crop": (2, 3), "target": (16, 16)}
    theirs = piped.pipe(
        ["a red fox", "b"],
        latents=x,
        guidance_scale=4.0,
        num_inference_steps=5,
        output_type="latent",
        height=16,
        width=16,
        **sizes,
    ).images
    null = piped.null() | {"time_ids": piped.cond([""], **told)["time_ids"]}
    guided = CFG(weight=4.0, null=null)(piped.denoiser)
    mine = ours(piped, DDIM(), x, 5, guided, piped.cond(["a red fox", "b"], **told))
    assert gap(theirs, mine) < bound


def test_the_empty_caption_of_xl_is_zero_unless_a_negative_one_is_given(xl):
    piped = from_pipeline(xl)
    assert not piped.null()["text"].any()
    assert not piped.null()["pooled"].any()
    assert piped.null(negative="")["text"].any()
    assert torch.equal(piped.null()["time_ids"], torch.tensor([[16.0, 16, 0, 0, 16, 16]]))
    assert torch.equal(piped.cond(["x"], crop=(1, 2))["time_ids"], torch.tensor([[16.0, 16, 1, 2, 16, 16]]))


# -------------------------------------------------------------------------------------------------------------- others


def test_a_dit_pipeline(tmp_path):
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    ).eval()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    labels = {str(i): f"class {i}, another name" for i in range(1000)}
    pipe = diffusers.DiTPipeline(transformer, vae, scheduler, id2label=labels)
    pipe.set_progress_bar_config(disable=True)
    piped = from_pipeline(pipe)
    assert piped.condition == "label"
    theirs = pipe(
        [3, 7], guidance_scale=2.0, num_inference_steps=4, output_type="pt", generator=torch.Generator().manual_seed(1)
    ).images
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    guided = CFG(weight=2.0, null=piped.null())(piped.denoiser)
    mine = ours(piped, DDIM(), x, 4, guided, piped.cond(labels=[3, "class 7"]))
    assert gap(theirs, (piped.codec.decode(mine) / 2 + 0.5).clamp(0, 1)) < 1e-4


def test_a_consistency_pipeline_is_a_consistency_model():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    pipe = diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler())
    pipe.set_progress_bar_config(disable=True)
    piped = from_pipeline(pipe)
    theirs = pipe(
        batch_size=2, num_inference_steps=1, output_type="pt", generator=torch.Generator().manual_seed(1)
    ).images
    x = 80.0 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mine = run(solve(DDIM(), piped.denoiser.path, x, [80.0, 0.0], QUIET), piped.denoiser)
    assert gap(theirs, (mine / 2 + 0.5).clamp(0, 1)) < 1e-4


@pytest.mark.parametrize(
    ("scheduler", "path", "reading"),
    [
        ("EDMEulerScheduler", VE(sigma_min=0.002, sigma_max=80.0), EDM(sigma_data=0.5)),
        ("CMStochasticIterativeScheduler", VE(sigma_min=0.002, sigma_max=80.0), Consistency(sigma_data=0.5)),
        ("FlowMatchEulerDiscreteScheduler", Flow(t_min=1e-3), None),
    ],
)
def test_other_laws(scheduler, path, reading):
    law = from_scheduler_config(getattr(diffusers, scheduler)(), bound=False)
    assert law.path == path
    assert reading is None or law.predicts == reading


def test_edm_scheduler_steps_as_heun_and_euler():
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(6)
    law = from_scheduler_config(scheduler)

    def net(x, time):
        return torch.tanh(x) * torch.cos(time).reshape(-1, 1, 1, 1)

    x = start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        raw = net(scheduler.scale_model_input(x, t), t.reshape(1))
        x = scheduler.step(raw, t, x).prev_sample
    model = orn.Denoiser(net, law.path, law.predicts, timestep_of=law.timestep_of)
    times = [float(s) for s in scheduler.sigmas]
    # Their first state has the size √(σ² + 1).
    assert gap(x, run(solve(DDIM(), law.path, start, times, QUIET), model)) < 1e-4
    assert Heun().order == 2


def test_flow_matching(stable):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    piped = opened(stable, torch.float32, scheduler)
    assert piped.denoiser.path == Flow(t_min=1e-3)
    x = latents(piped, torch.float32)
    scheduler.set_timesteps(5)
    told = piped.cond(["a", "b"])["text"]
    mine = ours(piped, DDIM(), x, 5, cond={"text": told})
    for t in scheduler.timesteps:
        with torch.no_grad():
            raw = piped.pipe.unet(x, t, encoder_hidden_states=told).sample
        x = scheduler.step(raw, t, x).prev_sample
    assert gap(x, mine) < 1e-4


@pytest.mark.parametrize("config", [{}, {"beta_schedule": "scaled_linear"}, {"beta_schedule": "squaredcos_cap_v2"}])
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_the_path_has_the_schedulers_own_products(name, config):
    scheduler = getattr(diffusers, name)(**config)
    path = from_scheduler_config(scheduler).path
    products = scheduler.alphas_cumprod.double()
    for k in (0, 1, 10, 499, 998, 999):
        assert path.alpha((k + 1) / 1000) ** 2 == pytest.approx(float(products[k]), rel=1e-11)
        assert path.timestep_of((k + 1) / 1000) == pytest.approx(k, abs=1e-9)


def test_karras_times_follow_the_noise_levels():
    scheduler = diffusers.EulerDiscreteScheduler(**SD_BETAS, use_karras_sigmas=True)
    path = from_scheduler_config(scheduler).path
    times = times_of_pipeline(scheduler, path, 6)
    scheduler.set_timesteps(6)
    assert [path.sigma_bar(t) for t in times[:-1]] == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
    assert times[-1] == 0.0


def test_gradients_reach_the_picture_through_the_network_and_the_codec(stable):
    piped = from_pipeline(stable)
    x = latents(piped, torch.float32).requires_grad_()
    with torch.enable_grad():
        piped.codec.decode(piped.denoiser(x, 0.5).clean).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()
    assert all(not p.requires_grad for p in piped.denoiser.net.parameters())


# ------------------------------------------------------------------------------------------------------------ refusals


def test_other_pipelines_are_refused_before_they_are_loaded(pixels, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(pixels, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "AuraFlowPipeline"}))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"is a AuraFlowPipeline, which .* takes DDPMPipeline"):
        from_pipeline(folder)
    assert "StableDiffusionXLPipeline" in KNOWN


@pytest.mark.parametrize("damage", ["index", "weights", "missing", "empty"])
def test_damaged_folders_cost_one_line(pixels, tmp_path, damage):
    folder = tmp_path / "copy"
    if damage != "missing":
        shutil.copytree(pixels, folder)
    if damage == "index":
        (folder / "model_index.json").write_text("{")
    if damage == "weights":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    if damage == "empty":
        (folder / "model_index.json").unlink()
    with pytest.raises(UsageError) as error:
        from_pipeline(folder)
    assert str(error.value).count("\n") == 0


def test_what_a_pipeline_is_not_told(pixels, stable):
    plain, text = from_pipeline(pixels), from_pipeline(stable)
    assert plain.null() == {}
    with pytest.raises(UsageError, match="takes no captions"):
        plain.cond(["a cat"])
    with pytest.raises(UsageError, match="takes no labels"):
        plain.cond(labels=[1])
    with pytest.raises(UsageError, match="takes no labels"):
        text.cond(labels=[1])
    with pytest.raises(UsageError, match="are a list"):
        text.cond("a cat")
    with pytest.raises(UsageError, match="takes captions: bind"):
        text.denoiser.with_condition({})(torch.zeros(1, 4, 8, 8), 0.5)
    with pytest.raises(UsageError, match="does not divide by 2"):
        from_pipeline(stable, size=15)
    assert from_pipeline(stable, size=(32, 16)).denoiser.shape == (4, 16, 8)


def test_networks_with_further_inputs_are_refused(stable):
    piped = from_pipeline(stable)
    config = piped.pipe.unet.config
    unet = diffusers.UNet2DConditionModel.from_config(config, in_channels=8)
    piped.pipe.register_modules(unet=unet)
    with pytest.raises(UsageError, match="8 channels"):
        from_pipeline(piped.pipe)
    for changes, said in (
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8},
            "class_embed_type 'projection'",
        ),
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "addition_embed_type 'text'"),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, "needs image_proj"),
    ):
        unet = diffusers.UNet2DConditionModel.from_config(config, in_channels=4, **changes)
        piped.pipe.register_modules(unet=unet)
        with pytest.raises(UsageError, match=f"{said}.*not supported$"):
            from_pipeline(piped.pipe)
    piped.pipe.register_modules(unet=None)
    with pytest.raises(UsageError, match="was loaded without its network"):
        from_pipeline(piped.pipe)


def test_schedulers_without_betas_are_refused():
    with pytest.raises(UsageError, match="has no betas"):
        from_scheduler_config(diffusers.VQDiffusionScheduler(10))
    with pytest.raises(UsageError, match="do not fall"):
        path_of_products(torch.tensor([0.9, 0.95]))
