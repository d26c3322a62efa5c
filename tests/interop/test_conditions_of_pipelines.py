"""Captions of any length, sizes in every precision and in both halves of guidance, labels, and guidance weights."""

import itertools
import math

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.guidance import APG, CFG, Colour, Universal, add
from ornstein.interop.diffusers import from_pipeline
from ornstein.interop.networks import guidance_embedding

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"  # a token each; these encoders read 14


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Heard:
    """What a network is given by name, pass by pass."""

    def __init__(self, module, name=None):
        self.calls = []
        module.register_forward_pre_hook(self.hook if name is None else self.named, with_kwargs=True)
        self.name = name

    def hook(self, module, args, keywords):
        self.calls.append(args[0])

    def named(self, module, args, keywords):
        self.calls.append(keywords["added_cond_kwargs"][self.name])


# ---------------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("words", [14, 15, 26])
def test_long_captions_are_joined_from_pieces(stable, xl, words):
    caption = " ".join(LETTERS.split()[:words])
    first, second = caption[: 2 * 14 - 1], caption[2 * 14 :]
    for folder in (stable, xl):
        piped = from_pipeline(folder)
        alone = [piped.cond([part]) for part in (first, second)]
        found = piped.cond([caption, "a cat"])
        expected = [one["text"] for one in alone[: 1 + (words > 14)]]
        # A batch of two and a row alone through a float32 encoder with normalisations: rounding of about 1e-5.
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(found["text"][:1], torch.cat(expected, dim=1), **close)
        short = [piped.cond(["a cat"])["text"], *([piped.cond([""])["text"]] * (words > 14))]
        torch.testing.assert_close(found["text"][1:], torch.cat(short, dim=1), **close)
        if "pooled" in found:
            torch.testing.assert_close(found["pooled"][:1], alone[0]["pooled"], **close)


def test_the_last_word_of_a_long_caption_changes_the_picture(stable):
    piped = from_pipeline(stable)
    guided = CFG(weight=3.0, null=piped.null())(piped.denoiser)
    x = noise(2, 4, 8, 8)
    one, other = (guided.with_condition(piped.cond([f"{LETTERS} {end}"]))(x, 0.6).clean for end in "ax")
    assert float((one - other).abs().max()) > 1e-3
    assert orn.sample(guided, 1, steps=2, cond=piped.cond([LETTERS]), strict=True).isfinite().all()


def test_an_encoder_of_another_kind_names_the_words_it_would_lose(stable):
    pipe = from_pipeline(stable).pipe
    pipe.text_encoder.__class__ = type("OtherEncoder", (type(pipe.text_encoder),), {})
    piped = from_pipeline(pipe)
    assert piped.cond(["a b c"])["text"].shape == (1, 16, 16)
    with pytest.raises(UsageError, match=r"OtherEncoder reads 14 tokens .* would lose 'o ?p ?q ?': shorten it$"):
        piped.cond([" ".join(LETTERS.split()[:17])])


def test_captions_that_are_none(stable, pixels):
    piped = from_pipeline(stable)
    for wrong in (["a", 3], [None], torch.zeros(2)):
        with pytest.raises(UsageError, match="a caption is text, got"):
            piped.cond(wrong)
    with pytest.raises(UsageError, match=r"condition 'text' has 3 rows: it needs 2"):
        orn.sample(piped.denoiser, 2, steps=2, cond=piped.cond(["a", "b", "c"]))
    piped.pipe.register_modules(text_encoder=None)
    with pytest.raises(UsageError, match="has no text encoder"):
        piped.cond(["a"])
    for part, said in (("scheduler", "scheduler"), ("vae", "autoencoder"), ("unet", "network")):
        pipe = from_pipeline(stable).pipe
        pipe.register_modules(**{part: None})
        with pytest.raises(UsageError, match=f"was loaded without its {said}: load it"):
            from_pipeline(pipe)


def test_a_tiny_autoencoder_is_a_codec(stable):
    pipe = from_pipeline(stable).pipe
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
    tiny = diffusers.AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    pipe.register_modules(vae=tiny)
    piped = from_pipeline(pipe)
    assert orn.sample(piped, 1, steps=2).shape == (1, 3, 16, 16)
    image = noise(1, 3, 16, 16)
    code = piped.codec.encode(image)
    torch.testing.assert_close(code, tiny.encode(image).latents, rtol=1e-5, atol=1e-5)
    assert len(repr(piped)) < 120


# -------------------------------------------------------------------------------------------------------------- sizes

ODD = {"original": (1023, 1366), "crop": (1, 3), "target": (1025, 257)}
NUMBERS = [1023.0, 1366, 1, 3, 1025, 257]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sizes_are_exact_in_every_precision(xl, dtype):
    piped = from_pipeline(xl, dtype=dtype)
    cond = piped.cond(["a"], **ODD)
    assert cond["time_ids"].tolist() == [NUMBERS]
    embedded = Heard(piped.pipe.unet.add_embedding)
    piped.denoiser.with_condition(cond)(noise(1, 4, 8, 8), 0.5)
    (fed,) = embedded.calls
    half = piped.pipe.unet.config.addition_time_embed_dim // 2
    rates = np.exp(-math.log(10000.0) * np.arange(half) / half)
    angles = np.array(NUMBERS)[:, None] * rates
    sinusoids = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).ravel()
    assert fed.dtype == dtype
    found = fed[0, -len(sinusoids) :].double().numpy()
    # float32 rounds an angle of 1366 by 6e-5 and a few roundings more; then the network's own precision.
    assert np.abs(found - sinusoids).max() < 4e-4 + torch.finfo(dtype).eps


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("rule", [CFG, APG])
def test_both_halves_of_guidance_have_the_same_sizes(xl, rule, strict):
    piped = from_pipeline(xl)
    sizes = Heard(piped.pipe.unet, "time_ids")
    guided = rule(weight=3.0, null=piped.null())(piped.denoiser)
    for caption in ("a", LETTERS):  # in one batch, and apart
        orn.sample(guided, 2, steps=1, cond=piped.cond([caption], **ODD), strict=strict)
        assert {tuple(row) for call in sizes.calls for row in call.tolist()} == {tuple(NUMBERS)}
        assert sum(len(call) for call in sizes.calls) == 4
        sizes.calls.clear()
    guided = rule(weight=3.0, null=piped.null(original=(8, 9), crop=(0, 0)))(piped.denoiser)
    orn.sample(guided, 2, steps=1, cond=piped.cond(["a"], **ODD), strict=strict)
    told = {tuple(row) for call in sizes.calls for row in call.tolist()}
    assert told == {tuple(NUMBERS), (8.0, 9.0, 0.0, 0.0, 16.0, 16.0)}


def test_a_gradient_under_the_empty_condition_has_the_same_sizes(xl):
    piped = from_pipeline(xl, bound=False)
    sizes = Heard(piped.pipe.unet, "time_ids")
    red = Colour(target=torch.tensor([[0.9, -0.9, -0.9]]))
    for chunk in (None, 1):
        guided = add(Universal(energies=red, strength=1.0, at=piped.null(), chunk=chunk))(piped.denoiser)
        guided.with_condition(piped.cond(["a", "b"], **ODD))(noise(2, 4, 8, 8), 0.5)
    assert {tuple(row) for call in sizes.calls for row in call.tolist()} == {tuple(NUMBERS)}


def test_a_refiner_takes_a_score_instead_of_the_target(xl):
    pipe = from_pipeline(xl).pipe
    unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, projection_class_embeddings_input_dim=12 + 40)
    parts = {**pipe.components, "unet": unet}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    piped = from_pipeline(refiner)
    assert piped.cond(["a"], original=(5, 6), crop=(1, 2))["time_ids"].tolist() == [[5.0, 6, 1, 2, 6]]
    sizes = Heard(unet, "time_ids")
    CFG(weight=2.0, null=piped.null())(piped.denoiser).with_condition(piped.cond(["a"], crop=(1, 2), score=7.0))(
        noise(1, 4, 8, 8), 0.5
    )
    assert sizes.calls[0].tolist() == [[16.0, 16, 1, 2, 7], [16, 16, 1, 2, 2.5]]
    with pytest.raises(UsageError, match=r"takes 5 sizes .* and is given 6"):
        from_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False))


# ------------------------------------------------------------------------------------------------------------- labels


def labelled(count=10):
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=count,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    return diffusers.DiTPipeline(transformer.eval(), vae.eval(), diffusers.DDIMScheduler(clip_sample=False))


def test_labels_are_numbers_of_classes_and_nothing_else():
    piped = from_pipeline(labelled())
    good = [0, 9, np.int64(3), torch.tensor(4), "5"]
    assert piped.cond(labels=good)["label"].tolist() == [0, 9, 3, 4, 5]
    assert piped.cond(labels=torch.tensor([1, 2]))["label"].tolist() == [1, 2]
    for wrong in (10, 11, -1, 2.7, 2.0, True, None, "", "10", "-1", "ten", [1]):
        with pytest.raises(UsageError, match=r"unknown label .* of 10 classes: choose 0 … 9$"):
            piped.cond(labels=[wrong])
    for wrong in ("3", 3):
        with pytest.raises(UsageError, match="labels are a list"):
            piped.cond(labels=wrong)
    with pytest.raises(UsageError, match="at least one label"):
        piped.cond(labels=[])
    assert piped.null()["label"].tolist() == [10]


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [None, 3.0])
def test_a_distilled_network_takes_its_guidance_weight(stable, dtype, given):
    pipe = from_pipeline(stable).pipe
    unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval()
    torch.manual_seed(4)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"} | {"unet": unet}
    parts["scheduler"] = diffusers.LCMScheduler()
    lcm = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    lcm.set_progress_bar_config(disable=True)
    piped = from_pipeline(lcm, dtype=dtype)
    cond = piped.cond(["a cat", "b"], guidance=given)
    assert cond["guidance"].tolist() == [8.5 if given is None else given] * 2
    found = guidance_embedding(cond["guidance"], 8)[0]
    angles = 1000.0 * (float(cond["guidance"][0]) - 1.0) * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 3)
    torch.testing.assert_close(found.double(), torch.cat((angles.sin(), angles.cos())), rtol=0.0, atol=1e-3)
    if dtype == torch.bfloat16:
        assert piped.denoiser.with_condition(cond)(noise(2, 4, 8, 8), 1.0).clean.isfinite().all()
        return
    x = noise(2, 4, 8, 8)
    options = {"latents": x, "num_inference_steps": 1, "output_type": "latent"}
    theirs = lcm(["a cat", "b"], guidance_scale=8.5 if given is None else given, **options).images
    mine = piped.denoiser.with_condition(cond)(x, 1.0).clean
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="takes no guidance weight as an input"):
        from_pipeline(stable).cond(["a"], guidance=2.0)


def test_every_text_network_has_the_null_of_its_own_size(stable, xl):
    for folder, rows in itertools.product((stable, xl), (1, 2)):
        piped = from_pipeline(folder)
        null = piped.null(rows)
        assert dict(null).keys() == piped.cond(["a"]).keys()
        assert piped.denoiser.with_condition(null)(noise(2, 4, 8, 8), 0.5).clean.isfinite().all()
