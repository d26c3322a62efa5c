"""Flux and Stable Diffusion 3 as denoisers: equal to their own loops, with any text encoder missing."""

import pytest
import tiny_sdxl as sdxl
import torch

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.guidance import CFG
from ornstein.interop.clip_vocabulary import clip_tokenizers
from ornstein.interop.diffusers import from_pipeline
from ornstein.samplers import Euler, run, solve

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
WIDTH = 128  # of T5 and of the transformers' text
BOUND = 1e-5  # the schedulers work on float32 noise levels


def t5(folder):
    """A tokenizer of whole words and a tiny T5."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "fox": 5}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    torch.manual_seed(7)
    config = transformers.T5Config(
        vocab_size=8, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return tokenizer, transformers.T5EncoderModel(config).eval()


def autoencoder():
    vae = sdxl.autoencoder()
    vae.register_to_config(shift_factor=0.1, scaling_factor=0.4, force_upcast=False)
    return vae


def flux(folder, *, distilled=True):
    first, tower = clip_tokenizers(sdxl.vocabulary(folder))[0], sdxl.encoder(1, projected=False)
    second, reader = t5(folder)
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=64,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(scheduler, autoencoder(), tower, first, reader, second, net)


def sd3(folder):
    tokenizers = clip_tokenizers(sdxl.vocabulary(folder))
    reader, third = t5(folder)
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * sdxl.POOLED,
        out_channels=4,
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    towers = [sdxl.encoder(seed, projected=True) for seed in (1, 2)]
    return diffusers.StableDiffusion3Pipeline(
        net, scheduler, autoencoder(), towers[0], tokenizers[0], towers[1], tokenizers[1], third, reader
    )


def opened(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.float64)
    return from_pipeline(pipe, size=16)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ours(model, x, times, cond):
    model = model.with_condition(cond)
    return run(solve(Euler(), model.path, x, times, orn.Noise.of(0, range(len(x)))), model)


def packed(x):
    return diffusers.FluxPipeline._pack_latents(x, *x.shape)


@pytest.mark.parametrize("distilled", [True, False])
def test_flux_is_its_own_loop(tmp_path, distilled) -> None:
    pipe = flux(tmp_path, distilled=distilled)
    pipe.vae_scale_factor = 2
    model = opened(pipe)
    assert (model.condition, model.shape, model.picture) == ("text", (4, 8, 8), (3, 16, 16))
    x = noise(2, 4, 8, 8)
    theirs = pipe(
        ["a red fox", "a"],
        latents=packed(x),
        height=16,
        width=16,
        num_inference_steps=5,
        guidance_scale=2.5,
        output_type="latent",
    ).images
    cond = model.cond(["a red fox", "a"], **({"guidance": 2.5} if distilled else {}))
    mine = ours(model, x, model.grid(5)(model.path), cond)
    assert float((packed(mine) - theirs).abs().max()) < BOUND
    assert cond.keys() == {"text", "pooled"} | ({"guidance"} if distilled else set())
    guided = CFG(weight=2.0, null=model.null(negative="fog"))(model)
    for name in ("dpmpp-2m", "auto", "heun"):
        assert orn.sample(guided, 1, sampler=name, steps=3, cond=model.cond(["a"])).shape == (1, 3, 16, 16)
    with pytest.raises(UsageError, match=r"a size of 16×18 does not divide by 4, as the codec needs: take 16×16"):
        model.sized(16, 18)
    if not distilled:
        with pytest.raises(UsageError, match="takes no guidance weight as an input"):
            model.cond(["a"], guidance=3.0)


def test_stable_diffusion_3_is_its_own_loop(tmp_path) -> None:
    pipe = sd3(tmp_path)
    pipe.vae_scale_factor = 2
    model = opened(pipe)
    assert (model.condition, model.shape) == ("text", (4, 8, 8))
    x = noise(1, 4, 8, 8)
    theirs = pipe(
        "a red fox",
        negative_prompt="fog",
        latents=x,
        height=16,
        width=16,
        num_inference_steps=5,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    guided = CFG(weight=4.0, null=model.null(negative="fog"))(model)
    mine = ours(guided, x, model.grid(5)(model.path), model.cond(["a red fox"]))
    assert float((mine - theirs).abs().max()) < BOUND
    start = torch.zeros(3, 16, 16)
    mask = torch.zeros(16, 16)
    mask[:8] = 1.0
    kept = orn.sample(guided, 1, steps=2, cond=model.cond(["a"]), start=start, mask=mask)
    assert torch.equal(kept[0, :, 8:], start[:, 8:])


@pytest.mark.parametrize("make", [flux, sd3])
def test_each_text_encoder_may_be_missing(tmp_path, make) -> None:
    pipe = make(tmp_path)
    names = [name for name in pipe.components if name.startswith("text_encoder")]
    whole = from_pipeline(pipe, size=16).cond(["a red"])
    parts = {name: getattr(pipe, name) for name in names}
    for name in names:
        pipe.register_modules(**parts | {name: None})
        with pytest.warns(UserWarning, match=f"without {name} a part of what prompts say is zero"):
            model = from_pipeline(pipe, size=16)
        with pytest.warns(UserWarning, match=f"without {name} a part"):
            cond = model.cond(["a red"])
        assert {key: value.shape for key, value in cond.items()} == {key: value.shape for key, value in whole.items()}
        same = [torch.equal(value, whole[key]) for key, value in cond.items()]
        assert not all(same)
        for key, value in cond.items():  # what is not zero is as it was
            kept = value != 0
            assert torch.equal(value[kept], whole[key][kept])
        assert orn.sample(model, 1, steps=1, cond=cond, decode=False).isfinite().all()
    pipe.register_modules(**dict.fromkeys(names))
    with pytest.raises(UsageError, match="has no text encoder: load one, or bind encoded captions"):
        from_pipeline(pipe, size=16).cond(["a"])


def test_words_that_would_be_lost_are_named(tmp_path) -> None:
    model = from_pipeline(sd3(tmp_path), size=16)
    assert model.cond(["a " * 255])["text"].shape[1] == 77 + 256
    with pytest.raises(UsageError, match=r"read 255 tokens of a caption, and would lose 'red fox': shorten it"):
        model.cond(["a " * 255 + "red fox"])
    with pytest.raises(UsageError, match=r"weights such as \(word:1\.2\) are for Stable Diffusion 1, 2 and XL"):
        model.cond(["a (red:1.3) fox"])
    for wrong in ([3], [None]):
        with pytest.raises(UsageError, match="a caption is text, got"):
            model.cond(wrong)


def test_a_folder_of_flux(tmp_path) -> None:
    pipe = flux(tmp_path)
    pipe.save_pretrained(tmp_path / "pipe")
    wanted = from_pipeline(pipe, size=16)
    model = orn.load(tmp_path / "pipe")
    assert model.condition == "text"
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(model.pipe.transformer.state_dict()[name], value)
    torch.testing.assert_close(model.cond(["a"])["text"], wanted.cond(["a"])["text"])
    with pytest.warns(UserWarning, match="without text_encoder_2"):
        orn.from_pipeline(tmp_path / "pipe", without=["text_encoder_2"], size=16)
