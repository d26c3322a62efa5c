"""What a pipeline's configuration says about conditions, sizes, precision and parts, each in its own words."""

import dataclasses
import json
import logging
import shutil
import warnings

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.interop.diffusers import from_pipeline, is_pipeline
from ornstein.interop.fronts import PipelineFront, open_front
from ornstein.interop.loading import diffusers_library, silenced
from ornstein.interop.schedulers import Bounded
from ornstein.latents import Normalisation
from ornstein.runs import open_codec, save_codec

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unet(**changes):
    torch.manual_seed(0)
    options = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
    }
    return diffusers.UNet2DModel(**options | changes).eval()


# ---------------------------------------------------------------------------------------------------------- conditions


def test_the_empty_caption_of_xl_without_forced_zeros_is_its_encoding(xl):
    """``force_zeros_for_empty_prompt=False``: what ``encode_prompt("")`` says, with the sizes of the picture."""
    piped = from_pipeline(xl)
    piped.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    text, _, pooled, _ = piped.pipe.encode_prompt(
        prompt=[""], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    null = piped.null(rows=3)
    for key, value in (("text", text), ("pooled", pooled)):
        assert value.any()
        # One caption and three through a float32 encoder with normalisations: rounding of about 1e-5.
        torch.testing.assert_close(null[key], value.expand(3, *value.shape[1:]), rtol=1e-4, atol=1e-4)
    assert null["time_ids"].tolist() == [[16.0, 16, 0, 0, 16, 16]] * 3
    again = from_pipeline(piped.pipe)
    torch.testing.assert_close(again.denoiser.cond["pooled"], again.null()["pooled"], rtol=1e-4, atol=1e-4)


def test_null_conditions_have_as_many_rows_as_asked(stable, xl):
    for folder, keys in ((stable, {"text"}), (xl, {"text", "pooled", "time_ids"})):
        piped = from_pipeline(folder)
        for rows in (1, 4):
            null = piped.null(rows)
            assert null.keys() == keys
            assert {len(value) for value in null.values()} == {rows}
        fog = piped.null(2, negative="fog")
        caption = piped.cond(["fog", "fog"])
        torch.testing.assert_close(fog, caption, rtol=1e-4, atol=1e-4)
        assert piped.denoiser.cond.keys() == keys
        torch.testing.assert_close(dict(piped.denoiser.cond), piped.null(), rtol=1e-4, atol=1e-4)


def test_xl_is_told_height_before_width_and_original_before_crop_before_target(xl):
    piped = from_pipeline(xl, size=(32, 16))
    assert piped.picture == (3, 32, 16)
    assert piped.denoiser.shape == (4, 16, 8)
    assert piped.cond(["x"])["time_ids"].tolist() == [[32.0, 16, 0, 0, 32, 16]]
    told = piped.cond(["x", "y"], original=(5, 6), crop=(1, 2), target=(7, 8))["time_ids"]
    assert told.tolist() == [[5.0, 6, 1, 2, 7, 8]] * 2
    assert piped.null()["time_ids"].tolist() == [[32.0, 16, 0, 0, 32, 16]]


def test_conditions_are_given_once_and_in_words_that_fit(pixels, stable):
    plain, text = from_pipeline(pixels), from_pipeline(stable)
    assert (plain.condition, text.condition) == ("none", "text")
    for piped in (plain, text):
        for wrong in ({}, {"captions": ["a"], "labels": [1]}):
            with pytest.raises(UsageError, match="give either captions or labels"):
                piped.cond(**wrong)
    with pytest.raises(UsageError, match="at least one caption is needed"):
        text.cond([])
    with pytest.raises(UsageError, match=r"takes no captions \(its condition is none\)"):
        plain.cond(["a"])


def test_a_network_of_labels_is_told_them():
    """A class-conditional network of pixels: labels by number, and no empty one to guide away from."""
    net = unet(num_class_embeds=5)
    piped = from_pipeline(diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(clip_sample=False)))
    assert piped.condition == "label"
    assert piped.classes == ()
    x, cond = noise(2, 3, 8, 8), piped.cond(labels=[3, "1"])
    assert cond["label"].tolist() == [3, 1]
    raw = piped.denoiser.with_condition(cond).raw(x, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(raw, net(x, 499, class_labels=torch.tensor([3, 1])).sample)
        assert not torch.allclose(raw, net(x, 499, class_labels=torch.tensor([1, 3])).sample)
    with pytest.raises(UsageError, match=r"is class-conditional: bind .* with_condition\(\)"):
        piped.denoiser(x, 0.5)
    with pytest.raises(UsageError, match="knows no empty label"):
        piped.null()
    with pytest.raises(UsageError, match=r"unknown label 'fox' of 5 classes: choose 0 … 4$"):
        piped.cond(labels=["fox"])
    with pytest.raises(UsageError, match=r"takes no captions \(its condition is label\)"):
        piped.cond(["fox"])


def dit(**labels):
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
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
    return diffusers.DiTPipeline(transformer.eval(), vae, diffusers.DDIMScheduler(clip_sample=False), **labels)


def test_names_of_labels_are_the_first_of_several_and_gaps_are_numbers():
    pipe = dit(id2label={"0": "ant, emmet", "1": "bee", "3": "cat, puss"})
    piped = from_pipeline(pipe)
    assert piped.classes == ("ant", "bee", "2", "cat")
    assert piped.cond(labels=["cat", 0, "2", "bee", "6"])["label"].tolist() == [3, 0, 2, 1, 6]
    with pytest.raises(UsageError, match=r"unknown label 'dog' of 7 classes: choose 0 … 6 or a name$"):
        piped.cond(labels=["dog"])
    assert from_pipeline(dit()).classes == ()


def test_the_null_label_is_the_one_after_the_last():
    """And the network's answer is its transformer's, whose second half is a variance."""
    piped = from_pipeline(dit())
    assert piped.null(3)["label"].tolist() == [7, 7, 7]
    assert (piped.condition, piped.kind, piped.picture) == ("label", "labels", (3, 16, 16))
    x = noise(2, 4, 8, 8)
    estimate = piped.denoiser.with_condition(piped.cond(labels=[5, 2]))(x, 0.3)
    with torch.no_grad():
        raw = piped.pipe.transformer(x, timestep=torch.full((2,), 299), class_labels=torch.tensor([5, 2])).sample
    torch.testing.assert_close(estimate.noise, raw[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(estimate.extras["variance"], raw[:, 4:], rtol=1e-4, atol=1e-5)


def test_a_text_network_hears_its_caption_pool_and_sizes(stable, xl):
    """Each input changes the answer, and the answer is the network's own."""
    piped = from_pipeline(xl)
    x, cond = noise(2, 4, 8, 8), piped.cond(["a red fox", "b"], original=(8, 12), crop=(2, 3))
    raw = piped.denoiser.with_condition(cond).raw(x, 0.7)
    added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
    with torch.no_grad():
        theirs = piped.pipe.unet(x, 699, encoder_hidden_states=cond["text"], added_cond_kwargs=added).sample
    torch.testing.assert_close(raw, theirs, rtol=1e-4, atol=1e-5)
    for key in cond:
        other = piped.denoiser.with_condition(cond | {key: cond[key] + 0.5}).raw(x, 0.7)
        assert not torch.allclose(other, raw), key
        with pytest.raises(UsageError, match=r"takes captions: bind .* with_condition\(\)"):
            piped.denoiser.net(x, torch.full((2,), 699.0), **{k: v for k, v in cond.items() if k != key})
    double = {key: value.double() for key, value in cond.items()}  # the network's precision decides
    torch.testing.assert_close(piped.denoiser.with_condition(double).raw(x, 0.7), raw, rtol=1e-4, atol=1e-5)
    text = from_pipeline(stable)
    cond = text.cond(["a", "b"])
    with torch.no_grad():
        theirs = text.pipe.unet(x, 699, encoder_hidden_states=cond["text"]).sample
    alone = text.denoiser.with_condition(cond).raw(x, 0.7)
    torch.testing.assert_close(alone, theirs, rtol=1e-4, atol=1e-5)
    # What only the larger kind is told leaves the smaller one as it is.
    time, other = torch.full((2,), 699.0), torch.ones(2, 12)
    for extra in ({"pooled": other}, {"time_ids": other[:, :6]}, {"pooled": other, "time_ids": other[:, :6]}):
        torch.testing.assert_close(text.denoiser.net(x, time, **cond, **extra), alone, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- sizes, kinds


def test_sizes_come_from_the_network_or_the_caller(stable):
    def shape(net, **options):
        return from_pipeline(diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()), **options).denoiser.shape

    assert shape(unet()) == (3, 8, 8)
    assert shape(unet(sample_size=(8, 12))) == (3, 8, 12)
    assert shape(unet(sample_size=(8, 12)), size=4) == (3, 4, 4)
    assert shape(unet(sample_size=None), size=(4, 6)) == (3, 4, 6)
    assert shape(unet(in_channels=1, out_channels=1), size=(4, 6)) == (1, 4, 6)
    with pytest.raises(UsageError, match="for which size it was trained: give size="):
        shape(unet(sample_size=None))
    with pytest.raises(UsageError, match="a size of 0×8 does not divide by 1"):
        shape(unet(), size=(0, 8))
    for wrong in ((32, 15), (15, 32)):
        with pytest.raises(UsageError, match=f"a size of {wrong[0]}×{wrong[1]} does not divide by 2"):
            from_pipeline(stable, size=wrong)
    assert from_pipeline(stable, size=20).denoiser.shape == (4, 10, 10)


def test_what_a_pipeline_says_of_itself(pixels, stable):
    piped = from_pipeline(str(stable))
    assert (piped.folder, piped.weights, piped.name) == (stable, stable, f"StableDiffusionPipeline {stable}")
    assert piped.details == {"pipeline": "StableDiffusionPipeline", "scheduler": "DDIMScheduler"}
    assert piped.parameters == sum(p.numel() for p in piped.pipe.unet.parameters())
    assert (piped.images, piped.kind) == (0, "text")
    assert piped.codec is piped.denoiser.codec
    assert piped.codec.about == {"kind": "diffusers", "where": str(stable)}
    assert piped.grid(5).name == "DDIMScheduler(5)"
    loaded = from_pipeline(piped.pipe)
    assert (str(loaded.folder), loaded.name) == ("StableDiffusionPipeline", "StableDiffusionPipeline")
    assert loaded.pipe is piped.pipe
    plain = from_pipeline(pixels)
    assert (plain.codec, plain.picture, plain.kind, plain.classes) == (None, (3, 8, 8), "pixels", ())
    learning = from_pipeline(diffusers.DDPMPipeline(unet().train(), diffusers.DDPMScheduler())).denoiser.net.net
    assert not any(module.training for module in learning.modules())
    assert not any(p.requires_grad for p in learning.parameters())
    shapeless = dataclasses.replace(plain, denoiser=dataclasses.replace(plain.denoiser, shape=None))
    assert shapeless.picture == (3, 0, 0)
    assert is_pipeline(pixels)
    assert is_pipeline(str(pixels))
    assert not is_pipeline(pixels / "unet")


def test_bounds_are_left_out_on_request(pixels):
    assert isinstance(from_pipeline(pixels).denoiser.parameterization, Bounded)
    free = from_pipeline(pixels, bound=False).denoiser
    assert not isinstance(free.parameterization, Bounded)
    x = 3.0 * noise(1, 3, 8, 8)
    assert free(x, 0.1).clean.abs().max() > 1.0
    assert from_pipeline(pixels).denoiser(x, 0.1).clean.abs().max() <= 1.0


def test_a_folder_is_loaded_in_float32_and_a_pipeline_stays_as_it_is(xl, stable):
    assert next(from_pipeline(stable).pipe.unet.parameters()).dtype == torch.float32
    double = from_pipeline(stable, dtype=torch.float64)
    assert {next(part.parameters()).dtype for part in (double.pipe.unet, double.pipe.vae)} == {torch.float64}
    assert next(from_pipeline(double.pipe).pipe.unet.parameters()).dtype == torch.float64
    assert next(from_pipeline(double.pipe, dtype=torch.float32).pipe.unet.parameters()).dtype == torch.float32
    # An autoencoder that overflows in half precision stays in single; one that does not, does not.
    half = from_pipeline(xl, dtype=torch.float16)
    assert (next(half.pipe.unet.parameters()).dtype, half.codec.dtype) == (torch.float16, torch.float32)
    fine = from_pipeline(xl, dtype=torch.float16)
    fine.pipe.vae.register_to_config(force_upcast=False)
    assert from_pipeline(fine.pipe, dtype=torch.float16).codec.dtype == torch.float16
    assert from_pipeline(xl, dtype=torch.bfloat16).codec.dtype == torch.bfloat16


def test_a_safety_checker_is_not_loaded(stable, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(stable, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))  # its weights are not even there
    piped = from_pipeline(folder)
    assert piped.pipe.safety_checker is None
    assert not piped.pipe.config.requires_safety_checker


def test_networks_with_other_inputs_are_named(stable, xl):
    def refused(folder, message, **changes):
        pipe = from_pipeline(folder).pipe
        for key, value in changes.items():
            pipe.unet.register_to_config(**{key: value})
        with pytest.raises(UsageError, match=message):
            from_pipeline(pipe)

    refused(stable, "needs text_image_proj: not supported", encoder_hid_dim_type="text_image_proj")
    refused(stable, "has addition_embed_type 'text_time': not supported", addition_embed_type="text_time")
    refused(xl, "has addition_embed_type 'image': not supported", addition_embed_type="image")
    refused(xl, "has addition_embed_type None: not supported", addition_embed_type=None)
    pipe = from_pipeline(stable).pipe
    pipe.unet.register_to_config(encoder_hid_dim_type="text_proj")
    assert from_pipeline(pipe).condition == "text"


def test_without_tokenizers_nothing_is_bound(stable):
    pipe = from_pipeline(stable).pipe
    pipe.register_modules(tokenizer=None, text_encoder=None)
    piped = from_pipeline(pipe)
    assert piped.denoiser.cond == {}
    assert piped.condition == "text"


def test_only_safetensors_are_read_and_names_are_looked_up(pixels, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pixels, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(from_pipeline(pixels).pipe.unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UsageError, match=r"the pipeline .*copy cannot be loaded: ") as caught:
        from_pipeline(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"the pipeline no-such/pipeline cannot be loaded: ") as caught:
        from_pipeline("no-such/pipeline")
    assert "\n" not in str(caught.value)


def test_the_autoencoder_of_a_pipeline_is_a_codec_by_itself(stable, tmp_path):
    codec = from_pipeline(stable).codec
    alone = open_codec(stable)
    assert alone.fingerprint == codec.fingerprint
    assert alone.about == {"kind": "diffusers", "where": str(stable.resolve())}
    assert open_codec(stable, dtype=torch.float16).dtype == torch.float32  # it overflows there
    assert open_codec(stable, dtype=torch.bfloat16).dtype == torch.bfloat16
    # Named by where it lies: in half precision the weights are others, and are taken as they are.
    folder = save_codec(alone.normalised(Normalisation.of(shift=0.3)), tmp_path / "codec")
    assert open_codec(folder).fingerprint == alone.normalised(Normalisation.of(shift=0.3)).fingerprint
    half = open_codec(folder, dtype=torch.bfloat16)
    assert (half.dtype, half.normalisation.shift.item()) == (torch.bfloat16, pytest.approx(0.3))
    assert open_codec(folder, device="cpu").device == torch.device("cpu")


def test_damaged_indices_are_one_line(pixels, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pixels, folder)
    for content, message in (
        ("[1]", r"model_index\.json does not describe a pipeline: copy it again$"),
        ("{", r"model_index\.json cannot be read \(not JSON: .*\): copy it again$"),
        ("{}", r"copy is a None, which from_pipeline does not know"),
    ):
        (folder / "model_index.json").write_text(content)
        with pytest.raises(UsageError, match=message):
            from_pipeline(folder)
    with pytest.raises(UsageError, match=r"is no diffusers pipeline: it has no model_index\.json$"):
        from_pipeline(pixels / "unet")
    with pytest.raises(UsageError, match="list is a list, which from_pipeline does not know"):
        from_pipeline([])


# -------------------------------------------------------------------------------------------------------------- fronts


def test_a_front_is_a_description_that_builds_the_same_network(pixels):
    front, piped = open_front(pixels)
    network, scheduler = json.loads(front.network), json.loads(front.scheduler)
    assert (network["_class_name"], scheduler["_class_name"]) == ("UNet2DModel", "DDPMScheduler")
    assert network["block_out_channels"] == [8, 16]
    assert not [key for key in (*network, *scheduler) if key.startswith("_") and key != "_class_name"]
    assert list(network) == sorted(network)
    state = torch.random.get_rng_state()
    net = front.build()
    assert torch.equal(torch.random.get_rng_state(), state)
    net.load_state_dict(piped.denoiser.net.state_dict())
    assert not any(module.training for module in net.net.modules())
    model = front.denoiser(net, (3, 8, 8))
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x, 0.37).clean, piped.denoiser(x, 0.37).clean, rtol=0.0, atol=1e-4)
    assert model.shape == (3, 8, 8)
    assert front.spec() == PipelineFront(network=front.network, scheduler=front.scheduler).spec()
    assert isinstance(front.spec().predicts, Bounded)


def test_a_front_keeps_arrays_and_every_option_of_its_scheduler():
    betas = np.linspace(0.01, 0.3, 20)
    scheduler = diffusers.DDIMScheduler(
        trained_betas=betas, num_train_timesteps=20, prediction_type="v_prediction", clip_sample_range=0.6
    )
    piped = from_pipeline(diffusers.DDIMPipeline(unet(), scheduler))
    front = PipelineFront.of(piped, "x")
    assert json.loads(front.scheduler)["trained_betas"] == pytest.approx(betas.tolist())
    x = 2.0 * noise(1, 3, 8, 8)
    model = front.denoiser(front.build(), (3, 8, 8))
    model.net.load_state_dict(piped.denoiser.net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(x, 0.55).clean, piped.denoiser(x, 0.55).clean, rtol=0.0, atol=1e-4)
        assert model(x, 0.55).clean.abs().max() == pytest.approx(0.6)


def test_a_front_with_a_clock_of_its_own():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=250)
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipe.scheduler = scheduler
    front = PipelineFront.of(from_pipeline(pipe), "x")
    seen = []

    def net(x, time):
        seen.append(time)
        return x

    front.denoiser(net, (3, 8, 8))(noise(1, 3, 8, 8), 0.5)
    assert float(seen[0]) == pytest.approx(125.0)


def test_what_is_no_front(stable, pixels):
    for piped in (from_pipeline(stable), from_pipeline(dit())):
        with pytest.raises(ConfigError, match=r"--front here is a \w+ whose condition is \w+: give a pipeline"):
            PipelineFront.of(piped, "here")
    labelled = from_pipeline(diffusers.DDPMPipeline(unet(num_class_embeds=3), diffusers.DDPMScheduler()))
    with pytest.raises(ConfigError, match="whose condition is label"):
        PipelineFront.of(labelled, "here")
    front, _ = open_front(pixels)
    for text in ("{", "[1]", ""):
        with pytest.raises(CheckpointError, match=r"in config\.json cannot be read: restore it"):
            PipelineFront(network=text, scheduler=front.scheduler).build()
    odd = json.dumps({"_class_name": "NoSuchScheduler"})
    with pytest.raises(CheckpointError, match="diffusers has no scheduler 'NoSuchScheduler'"):
        PipelineFront(network=front.network, scheduler=odd).spec()


# ------------------------------------------------------------------------------------------------------------- silence


def test_silence_ends_where_it_began():
    from diffusers.utils import logging as theirs
    from transformers.utils import logging as others

    assert diffusers_library() is diffusers
    before = [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in (theirs, others)]
    try:
        for level, bars in ((logging.INFO, True), (logging.CRITICAL, False)):
            for one in (theirs, others):
                one.set_verbosity(level)
                (one.enable_progress_bar if bars else one.disable_progress_bar)()
            with pytest.raises(RuntimeError, match="comes through"), silenced():
                warnings.warn("not heard", stacklevel=1)
                for one in (theirs, others):
                    assert (one.get_verbosity(), one.is_progress_bar_enabled()) == (logging.ERROR, False)
                raise RuntimeError("comes through")
            for one in (theirs, others):
                assert (one.get_verbosity(), one.is_progress_bar_enabled()) == (level, bars)
    finally:
        for one, (level, bars) in zip((theirs, others), before, strict=True):
            one.set_verbosity(level)
            (one.enable_progress_bar if bars else one.disable_progress_bar)()


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"diffusers cannot be imported .*pip install 'ornstein\[diffusers\]'"):
        diffusers_library()


def test_the_same_pipeline_is_the_same_sampler_by_name_or_loaded(pixels):
    one, two = from_pipeline(pixels), from_pipeline(diffusers.DDPMPipeline.from_pretrained(pixels))
    images = [orn.sample(piped.denoiser, 2, steps=3, seed=4) for piped in (one, two)]
    torch.testing.assert_close(*images, rtol=0.0, atol=1e-3)  # weights elsewhere in memory may round otherwise
