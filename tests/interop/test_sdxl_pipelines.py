"""Ours and diffusers' own loops agree on SDXL: base and refiner, image to image, inpainting, odd sizes, negatives."""

import json

import pytest
import tiny_sdxl as sdxl
import torch

import ornstein as orn
from ornstein.cli.main import main
from ornstein.errors import UsageError
from ornstein.guidance import CFG
from ornstein.interop.diffusers import from_pipeline
from ornstein.interop.refined import TRAINED, with_refiner
from ornstein.samplers import DDIM, plan, run, solve

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
PRECISION = [(torch.float32, 1e-4), (torch.float64, 1e-8)]
QUIET = orn.Noise.of(0, range(1))
WORDS = {"prompt": ["a red fox"], "output_type": "latent", "guidance_scale": 4.0, "height": 16, "width": 16}


def ddim():
    return diffusers.DDIMScheduler(**sdxl.BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def opened(tmp_path, dtype, **options):
    """(the pipeline, the same opened)."""
    pipe = sdxl.pipeline(tmp_path, dtype=dtype, scheduler=ddim(), **options)
    if dtype == torch.float64:
        sdxl.double(pipe)
    return pipe, from_pipeline(pipe, size=16)


def noise(dtype, rows=1, height=8, width=8):
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(5), dtype=dtype)


def ours(model, x, times, cond):
    model = model.with_condition(cond)
    return run(solve(DDIM(), model.path, x, times, QUIET, model.info.handovers), model)


def gap(one, other):
    return float((one - other).abs().max())


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
@pytest.mark.parametrize("steps", [10, 7])
def test_base_and_refiner_are_the_two_pipelines_one_after_the_other(tmp_path, dtype, bound, steps) -> None:
    base, one = opened(tmp_path, dtype)
    refiner, two = opened(tmp_path, dtype, refiner=True)
    x = noise(dtype)
    negative = {"negative_prompt": ["fog"]}
    left = base(latents=x, num_inference_steps=steps, denoising_end=0.8, **WORDS, **negative).images
    words = {key: value for key, value in WORDS.items() if key not in ("height", "width")}
    # (their second pipeline adds no noise, and multiplies nothing: its latents are the state itself)
    right = refiner(image=left, num_inference_steps=steps, denoising_start=0.8, **words, **negative).images
    model = with_refiner(one, two)
    guided = CFG(weight=4.0, null=model.null(negative="fog"))(model)
    times = one.grid(steps)(one.path)
    split = sum(t > TRAINED for t in times[:-1])
    cut = [t for t in times[:-1] if t > TRAINED]
    mine = ours(guided, x, times, model.cond(["a red fox"]))
    assert 0 < len(cut) == split < steps
    assert gap(right, mine) < bound


@pytest.mark.parametrize(
    ("steps", "karras", "split"),
    [
        (50, False, 40),
        (40, False, 32),
        (30, False, 23),
        (25, False, 20),
        (50, True, 32),
        (40, True, 25),
        (30, True, 19),
        (25, True, 16),
    ],
)
def test_their_grids_split_as_theirs_do(tmp_path, steps, karras, split) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        **sdxl.BETAS, steps_offset=1, timestep_spacing="leading", use_karras_sigmas=karras
    )
    model = from_pipeline(sdxl.pipeline(tmp_path, scheduler=scheduler), size=16)
    relay = orn.Relay(model.denoiser, from_pipeline(model.pipe, size=16).denoiser, below=model.path.log_snr(TRAINED))
    times = plan(DDIM(), model.path, model.grid(steps)(model.path), handovers=relay.info.handovers)
    first = sum(relay.side(t) is relay.first for t in times)
    # Levels between entries of the table: theirs rounds the time to an entry, ours is a level.
    assert abs(first - split) <= karras
    assert len(times) == steps
    assert karras or first == split


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (26, 38), (10, 14)])
def test_any_size_with_negative_words_and_sizes(tmp_path, dtype, bound, height, width) -> None:
    """Latents of 13 × 19 and 5 × 7, one at a time: at a batch of two their negative sizes are wrong."""
    pipe, model = opened(tmp_path, dtype)
    pipe.check_inputs = lambda *args, **keywords: None  # it insists on eights, whatever the autoencoder
    model = model.sized(height, width)
    x = noise(dtype, 1, height // 2, width // 2)
    words = WORDS | {"height": height, "width": width}
    sizes = {"original": (1023, 511), "crop": (3, 5), "target": (257, 130)}
    theirs = pipe(
        latents=x,
        num_inference_steps=4,
        negative_prompt=["fog"],
        negative_original_size=(1023, 511),
        negative_crops_coords_top_left=(3, 5),
        negative_target_size=(257, 130),
        **words,
    ).images
    guided = CFG(weight=4.0, null=model.null(negative="fog", **sizes))(model.denoiser)
    mine = ours(guided, x, model.grid(4)(model.path), model.cond(["a red fox"]))
    assert gap(theirs, mine) < bound


def test_negative_sizes_are_the_same_at_any_batch(tmp_path) -> None:
    """diffusers pairs the rows of its sizes with other rows of its captions at a batch of two."""
    _, model = opened(tmp_path, torch.float64)
    sizes = {"original": (100, 50), "crop": (30, 5), "target": (25, 130)}
    x = noise(torch.float64, 2)
    guided = CFG(weight=4.0, null=model.null(negative="fog", **sizes))(model.denoiser)
    times = model.grid(3)(model.path)
    both = ours(guided, x, times, model.cond(["a red fox", "cat"]))
    for row, caption in enumerate(["a red fox", "cat"]):
        torch.testing.assert_close(both[row : row + 1], ours(guided, x[row : row + 1], times, model.cond([caption])))


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
def test_image_to_image(tmp_path, dtype, bound) -> None:
    pipe, model = opened(tmp_path, dtype)
    second = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    second.set_progress_bar_config(disable=True)
    start = noise(dtype)
    theirs = second(
        image=start,
        num_inference_steps=10,
        strength=0.5,
        generator=torch.Generator().manual_seed(3),
        **{key: value for key, value in WORDS.items() if key not in ("height", "width")},
    ).images
    z = torch.randn(start.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    times = model.grid(10)(model.path)[5:]
    guided = CFG(weight=4.0, null=model.null())(model.denoiser)
    x = model.path.diffuse(start, times[0], z)
    assert gap(theirs, ours(guided, x, times, model.cond(["a red fox"]))) < bound


@pytest.mark.parametrize(("dtype", "bound"), PRECISION)
def test_an_inpainting_network_of_nine_channels(tmp_path, dtype, bound) -> None:
    pipe, model = opened(tmp_path, dtype, channels=9)
    assert model.is_shown
    assert model.shape == (4, 8, 8)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16, dtype=dtype)
    mask[..., 3:12, 5:13] = 1.0
    kept = picture * (mask < 0.5)
    x = noise(dtype)
    theirs = pipe(
        image=picture,
        mask_image=mask,
        masked_image_latents=model.codec.encode(kept),
        latents=x,
        strength=1.0,
        num_inference_steps=4,
        **WORDS,
    ).images
    guided = CFG(weight=4.0, null=model.null())(model.denoiser)
    cond = model.cond(["a red fox"], picture=picture[0], mask=mask[0, 0])
    assert gap(theirs, ours(guided, x, model.grid(4)(model.path), cond)) < bound
    other = model.cond(["a red fox"])
    assert gap(ours(guided, x, model.grid(4)(model.path), other), theirs) > 1e-3
    for wrong, said in (
        ({"picture": picture}, "give both, or neither"),
        (
            {"picture": picture[..., :8], "mask": mask},
            r"picture has the shape \(1, 3, 16, 8\): it needs \(1 or 1, 3, 16, 16\)",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            model.cond(["a"], **wrong)
    _, plain = opened(tmp_path, dtype)
    with pytest.raises(UsageError, match="is no inpainting network and is shown no picture: use start= and mask="):
        plain.cond(["a"], picture=picture, mask=mask)
    assert orn.sample(guided, 2, steps=2, cond=model.cond(["a", "b"], picture=picture, mask=mask)).shape == (
        2,
        3,
        16,
        16,
    )


# ---------------------------------------------------------------------------------------------- conditions of the model


def test_what_the_layers_of_the_encoders_change(tmp_path) -> None:
    """Context comes from the last layer but one; the pooled vector from the second encoder's end."""
    pipe, model = opened(tmp_path, torch.float32)
    before = model.cond(["a b"])
    with torch.no_grad():
        for name, changed in (("text_encoder", False), ("text_encoder_2", True)):
            encoder = getattr(pipe, name)
            inner = getattr(encoder, "text_model", encoder)
            for weight in inner.encoder.layers[-1].parameters():
                weight.add_(0.1)
            after = model.cond(["a b"])
            assert torch.equal(after["text"], before["text"])
            assert torch.equal(after["pooled"], before["pooled"]) is not changed


def test_the_pooled_vector_is_that_of_the_first_end_token(tmp_path) -> None:
    """An added word has a larger number than the end; transformers with its old setting takes the largest."""
    pipe, model = opened(tmp_path, torch.float32)
    before = model.cond(["a b c"])["pooled"]
    pipe.text_encoder_2.config.eos_token_id = 2
    for part in pipe.text_encoder_2.modules():
        if hasattr(part, "eos_token_id"):
            part.eos_token_id = 2
    added = len(pipe.tokenizer_2)
    pipe.tokenizer_2.add_tokens(["<new>"])
    pipe.text_encoder_2.resize_token_embeddings(added + 1)
    torch.testing.assert_close(model.cond(["a b c"])["pooled"], before)
    with torch.no_grad():
        pipe.text_encoder_2.get_input_embeddings().weight[added] = pipe.text_encoder_2.get_input_embeddings().weight[3]
    tokens = pipe.tokenizer_2(["<new> a"]).input_ids[0]
    assert added in tokens
    letter = pipe.tokenizer_2.convert_ids_to_tokens(3).removesuffix("</w>")
    assert letter


def test_each_size_has_its_own_place(tmp_path) -> None:
    pipe, model = opened(tmp_path, torch.float32)
    heard = []
    pipe.unet.add_embedding.register_forward_pre_hook(lambda module, args: heard.append(args[0].clone()))
    options = {"original": (8, 12), "crop": (2, 3), "target": (16, 20)}
    changes = [{}, {"original": (9, 12)}, {"original": (8, 13)}, {"crop": (4, 3)}, {"crop": (2, 5)}]
    changes += [{"target": (17, 20)}, {"target": (16, 21)}]
    for change in changes:
        model.with_condition(model.cond(["a"], **(options | change)))(noise(torch.float32), 0.5)
    for place, after in enumerate(heard[1:]):
        parts = (heard[0] != after)[0, sdxl.POOLED :].reshape(6, 8).any(1)
        assert parts.tolist() == [k == place for k in range(6)]
        assert torch.equal(after[:, : sdxl.POOLED], heard[0][:, : sdxl.POOLED])


def test_a_refiner_is_told_a_score_and_takes_the_trained_levels_alone(tmp_path) -> None:
    _, base = opened(tmp_path, torch.float32)
    _, refiner = opened(tmp_path, torch.float32, refiner=True)
    model = with_refiner(base, refiner)
    assert model.relay.level == pytest.approx(TRAINED)
    cond, null = model.cond(["a"], original=(10, 20), score=7.0), model.null()
    assert cond["second.time_ids"].tolist() == [[10.0, 20, 0, 0, 7]]
    assert cond["first.time_ids"].tolist() == [[10.0, 20, 0, 0, 16, 16]]
    beside = null.beside(cond)
    assert beside["second.time_ids"].tolist() == [[10.0, 20, 0, 0, 2.5]]
    assert beside["first.time_ids"].tolist() == [[10.0, 20, 0, 0, 16, 16]]
    assert not null["first.text"].any()
    assert null["second.text"].any()  # the refiner's is the encoding of ""
    times = []
    refiner.pipe.unet.register_forward_pre_hook(
        lambda module, args, keywords: times.append(float(keywords["timestep"].max())), with_kwargs=True
    )
    guided = CFG(weight=3.0, null=null)(model)
    for name in ("dpmpp-2m", "heun", "auto"):
        assert orn.sample(guided, 2, sampler=name, steps=6, cond=model.cond(["a", "b"])).isfinite().all()
    assert max(times) < 199.5
    for one, other, said in (
        (base, base, "takes 6 sizes, and SDXL's refiner takes 5: give the refiner"),
        (refiner, refiner, "takes 5 sizes, and SDXL's base takes 6: give the base"),
        (base, orn.load("critters"), "is no model of SDXL: give its refiner"),
    ):
        with pytest.raises(UsageError, match=said):
            with_refiner(one, other)


def test_the_command_with_size_refiner_and_prompts(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("ornstein.cli.sample._MUCH", 1)
    folders = []
    for name, refiner in (("base", False), ("refiner", True)):
        sdxl.pipeline(tmp_path, refiner=refiner).save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    out = tmp_path / "out"
    words = ["--prompt", "a (red:1.3) fox", "--negative-prompt", "fog", "--size", "24x16", "--refiner", folders[1]]
    words += ["--seed", "0", "--n", "1", "--steps", "4", "--guidance-scale", "3", "--json"]
    assert main(["sample", folders[0], *words, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err.count(" GiB of weights (unet ") == 2
    told = json.loads(printed.out)
    monkeypatch.undo()
    assert (told["size"], told["refiner"], told["evaluations"]) == ("24x16", folders[1], 4)
    from PIL import Image

    with Image.open(out / "000000.png") as picture:
        assert picture.size == (24, 16)
    for wrong, said in (
        (["--size", "31x17"], "a size of 17×31 does not divide by 2, as the codec needs: take 16×32"),
        (["--size", "big"], "--size 'big' is no size: write WIDTHxHEIGHT in pixels, such as 1024x768"),
        (["--refiner", folders[0]], "takes 6 sizes, and SDXL's refiner takes 5: give the refiner"),
    ):
        assert main(["sample", folders[0], "--prompt", "a", "--out", str(tmp_path / "no"), *wrong]) == 2
        line = capsys.readouterr().err.strip()
        assert said in line
        assert "\n" not in line
    assert main(["sample", "critters", "--size", "32x32", "--out", str(tmp_path / "no")]) == 2
    assert "makes pictures of 64 × 64 pixels and no others: leave the size out" in capsys.readouterr().err
