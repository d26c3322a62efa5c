"""The networks of diffusers have the sites of ours, so that attention guidance and modulations work on pipelines."""

import copy
import threading

import pytest
import torch

import ornstein as orn
from ornstein.cli.main import main
from ornstein.errors import ConfigError
from ornstein.guidance import CFG, PAG, SEG, Colour, SkipLayer, Universal, add
from ornstein.interop.diffusers import from_pipeline
from ornstein.modulation import modulated, sites
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, run, solve

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
QUIET = Noise.of(0, range(2))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dit():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=7,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pipe = diffusers.DiTPipeline(transformer.eval(), vae.eval(), diffusers.DDIMScheduler(clip_sample=False))
    return from_pipeline(pipe)


@pytest.fixture
def deep(xl):
    """SDXL with transformers of two layers, on pictures that are not square."""
    pipe = from_pipeline(xl).pipe
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, transformer_layers_per_block=[2, 1])
    pipe.register_modules(unet=unet.eval())
    return from_pipeline(pipe, size=(16, 32))


@pytest.fixture(params=["pixels", "stable", "deep", "dit"])
def model(request):
    """A pipeline of each kind of network, under a condition."""
    if request.param in ("deep", "dit"):
        piped = request.getfixturevalue(request.param)
    else:
        piped = from_pipeline(request.getfixturevalue(request.param))
    return piped.denoiser.with_condition(piped.cond(labels=[1])) if piped.kind == "labels" else piped.denoiser


def test_a_pass_visits_every_site_once_and_in_their_order(model):
    seen, x = [], noise(2, *model.shape)

    def spy(feature, site, t):
        assert feature.ndim == 4
        assert t.shape == (2,)
        seen.append((site, tuple(feature.shape)))
        return feature

    plain = model(x, 0.5).clean
    with modulated(model.net, {"*": spy}):
        shown = model(x, 0.5).clean
    assert [name for name, _ in seen] == list(sites(model.net))
    assert len(set(sites(model.net))) == len(seen) > 10
    torch.testing.assert_close(shown, plain, rtol=0.0, atol=1e-5)
    square = {shape[2] / shape[3] for _, shape in seen}
    assert square == {x.shape[2] / x.shape[3]}
    for module in model.net.modules():  # nothing is left behind
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_every_site_matters(model):
    x = noise(2, *model.shape)
    plain = model(x, 0.5).clean
    for name in sites(model.net):
        with modulated(model.net, {name: lambda feature, site, t: 1.5 * feature + noise(*feature.shape)}):
            assert float((model(x, 0.5).clean - plain).abs().max()) > 1e-4, name


def test_the_names_are_those_of_our_networks(stable, dit):
    names = sites(from_pipeline(stable).net)
    assert names == (
        *("down.0.0.query", "down.0.0.value", "down.0.0.attended", "down.0.0.hidden", "down.0.1.hidden"),
        *("down.1.0.hidden", "mid.0.query", "mid.0.value", "mid.0.attended", "mid.0.hidden", "mid.1.hidden"),
        *("up.1.0.backbone", "up.1.0.skip", "up.1.0.hidden", "up.1.1.backbone", "up.1.1.skip", "up.1.1.hidden"),
        "up.1.2.hidden",
        *("up.0.0.backbone", "up.0.0.skip", "up.0.0.query", "up.0.0.value", "up.0.0.attended", "up.0.0.hidden"),
        *("up.0.1.backbone", "up.0.1.skip", "up.0.1.query", "up.0.1.value", "up.0.1.attended", "up.0.1.hidden"),
    )
    parts = ("query", "value", "attended", "hidden")
    assert sites(dit.net) == tuple(f"block.{i}.{part}" for i in range(3) for part in parts)


def test_skips_and_the_middle_are_where_control_networks_add(stable):
    """diffusers adds a control network's residuals to the skips and after the middle block."""
    piped = from_pipeline(stable)
    x, unet, text = noise(2, 4, 8, 8), piped.pipe.unet, piped.cond(["a", "b"])["text"]
    shapes = [(8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4)]
    residuals = [noise(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    middle = noise(2, 16, 4, 4, seed=9)
    with torch.no_grad():
        theirs = unet(
            x,
            499,
            encoder_hidden_states=text,
            down_block_additional_residuals=[one.clone() for one in residuals],
            mid_block_additional_residual=middle,
        ).sample
    left = list(residuals)
    changes = {
        "up.*.skip": lambda feature, site, t: feature + left.pop(),
        "mid.1.hidden": lambda feature, site, t: feature + middle,
    }
    with modulated(piped.net, changes):
        mine = piped.denoiser.with_condition({"text": text}).raw(x, 0.5)
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["stable", "xl"])
def test_perturbed_attention_is_that_of_diffusers(kind, weight, stable, xl):
    base = from_pipeline(stable if kind == "stable" else xl, dtype=torch.float64).pipe
    parts = {name: part for name, part in base.components.items() if name not in ("image_encoder", "feature_extractor")}
    parts["scheduler"] = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    if kind == "stable":
        parts |= {"feature_extractor": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPAGPipeline(**parts, pag_applied_layers="mid")
    else:
        pipe = diffusers.StableDiffusionXLPAGPipeline(**parts, pag_applied_layers="mid", add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    piped = from_pipeline(pipe)
    x = noise(2, 4, 8, 8).double()
    prompts = ["a cat", "dog dog"]
    options = {"latents": x, "num_inference_steps": 4, "output_type": "latent", "guidance_scale": weight}
    theirs = pipe(prompts, pag_scale=3.0, height=16, width=16, **options).images
    guidance = PAG(scale=3.0) if weight == 1.0 else add(CFG(weight=weight, null=piped.null()), PAG(scale=3.0))
    guided = guidance(piped.denoiser).with_condition(piped.cond(prompts))
    mine = run(solve(DDIM(), guided.path, x, piped.grid(4)(guided.path), QUIET), guided)
    plain = run(solve(DDIM(), guided.path, x, piped.grid(4)(guided.path), QUIET), piped.denoiser)
    # Their scheduler's coefficients are float32.
    scale = float(theirs.abs().max())
    assert float((mine - theirs).abs().max()) < 1e-5 * max(scale, 1.0)
    assert float((mine - plain).abs().max()) > 1e-2


def test_the_perturbed_network_is_the_one_with_identity_attention(model):
    """Restated: every self-attention answers with its values."""
    x = noise(2, *model.shape)
    other = copy.deepcopy(model.net)

    class Identity:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **more):
            shape, residual = hidden_states.shape, hidden_states
            if hidden_states.ndim == 4:
                hidden_states = hidden_states.flatten(2).transpose(1, 2)
            if attn.group_norm is not None:
                hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
            out = attn.to_out[0](attn.to_v(hidden_states))
            if len(shape) == 4:
                out = out.transpose(1, 2).reshape(shape)
            return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor

    for module in other.modules():
        if type(module).__name__ == "Attention" and not module.is_cross_attention:
            module.processor = Identity()
    strong = model(x, 0.5).clean
    again = orn.Denoiser(other, model.path, model.predicts, cond=model.cond, learned_variance=model.learned_variance)
    weak = again(x, 0.5).clean
    guided = PAG(scale=2.0, at="*")(model)(x, 0.5).clean
    torch.testing.assert_close(guided, strong + 2.0 * (strong - weak), rtol=1e-4, atol=1e-4)


def test_other_guidances_of_features(model):
    x = noise(2, *model.shape)
    plain = model(x, 0.5).clean
    for guidance in (SEG(scale=2.0, at="*"), SEG(scale=2.0, blur=1.0, at="*")):
        assert float((guidance(model)(x, 0.5).clean - plain).abs().max()) > 1e-5
    names = sites(model.net)
    before, after = (
        ("block.0.hidden", "block.1.hidden") if "block.0.hidden" in names else ("mid.0.hidden", "mid.1.hidden")
    )
    skipped = SkipLayer(scale=2.0, layers=((before, after),))
    assert float((skipped(model)(x, 0.5).clean - plain).abs().max()) > 1e-5


def test_modulations_hold_where_blocks_are_recomputed(stable):
    piped = from_pipeline(stable, bound=False)
    x = noise(2, 4, 8, 8)
    red = Colour(target=torch.tensor([[0.9, -0.9, -0.9]]))
    answers = []
    for checkpoint in (False, True):
        guided = Universal(energies=red, strength=3.0, checkpoint=checkpoint)(piped.denoiser)
        with modulated(piped.net, {"*.hidden": lambda feature, site, t: 0.7 * feature}):
            answers.append(guided(x, 0.5).clean)
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        Universal(energies=red, strength=3.0)(piped.denoiser)(x, 0.5).clean, answers[0], atol=1e-3
    )


def test_another_thread_sees_no_modulation(stable):
    piped = from_pipeline(stable)
    x, begun, done, found = noise(2, 4, 8, 8), threading.Event(), threading.Event(), []
    plain = piped(x, 0.5).clean

    def slow(feature, site, t):
        begun.set()
        assert done.wait(20)
        return 2.0 * feature

    def elsewhere():
        begun.wait(20)
        found.append(piped(x, 0.5).clean)
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with modulated(piped.net, {"mid.0.hidden": slow}):
        changed = piped(x, 0.5).clean
    thread.join()
    torch.testing.assert_close(found[0], plain, rtol=0.0, atol=1e-5)
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_the_pipeline_itself_is_left_alone(pixels):
    piped = from_pipeline(pixels)
    before = list(piped.pipe.unet.state_dict())
    with modulated(piped.net, {"*": lambda feature, site, t: 0.0 * feature}):
        assert piped(noise(1, 3, 8, 8), 0.5).clean.isfinite().all()
    assert list(piped.pipe.unet.state_dict()) == before
    assert [name.removeprefix("net.") for name in piped.net.state_dict()] == before
    again = copy.deepcopy(piped.net)
    assert sites(again) == sites(piped.net)
    x, time = noise(1, 3, 8, 8), torch.full((1,), 400.0)
    with modulated(again, {"mid.0.hidden": lambda feature, site, t: 0.0 * feature}):
        assert not torch.equal(again(x, time), piped.net(x, time))


def test_networks_without_sites_are_refused_by_name():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()
    piped = from_pipeline(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()))
    assert sites(piped.net) == ()
    with pytest.raises(ConfigError, match="UNet2DModel has no named sites"):
        PAG(scale=3.0)(piped.denoiser)(noise(1, 3, 8, 8), 0.5)


def test_the_command_guides_a_pipeline_by_its_attention(stable, tmp_path, capsys):
    words = ["sample", str(stable), "--caption", "a cat", "--n", "1", "--steps", "2"]
    for name in ("pag:3", "seg:3", "skip-layer:2,before=mid.0.hidden,after=mid.1.hidden"):
        assert main([*words, "--guidance", name, "--out", str(tmp_path / name[:3])]) == 0
    assert main([*words, "--guidance", "skip-layer:2,blocks=2", "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no site matches 'block." in said
