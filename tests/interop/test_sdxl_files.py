"""SDXL from every layout on disk: the same picture to the bit, and one line for each file that is something else."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import tiny_sdxl as sdxl
import torch
from safetensors.torch import load_file, save_file

import ornstein as orn
from ornstein.errors import CheckpointError, OrnsteinError, UsageError
from ornstein.interop.diffusers import from_pipeline
from ornstein.interop.memory import weights_in
from ornstein.interop.sdxl_names import UNetLayout, clip_place, gather, openclip_place, places_of, scatter, vae_place
from ornstein.interop.single_file import open_single_file, original_state
from ornstein.reproduce.sdxl.networks import build, digest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")

# ------------------------------------------------------------------------------------ the published names and shapes


@pytest.mark.parametrize(
    ("name", "attentive", "numbers", "tensors", "own", "original", "blocks"),
    [
        ("base", (True, True, False), 2567463684, 1680, "9556a38d644b6b53", "d8427731b1d2b4b6", 70),
        ("refiner", (False, True, True, False), 2259526660, 1220, "33876647fb4e4a93", "0c310acaa15e1fd2", 44),
    ],
    ids=["base", "refiner"],
)
def test_names_and_shapes_of_the_networks_are_the_published_ones(
    name, attentive, numbers, tensors, own, original, blocks
) -> None:
    net = build(name)
    state = net.state_dict()
    assert (sum(tensor.numel() for tensor in state.values()), len(state)) == (numbers, tensors)
    assert digest(state) == own
    assert digest(scatter(places_of(state, "", UNetLayout(layers=2, attentive=attentive).original), state)) == original
    parts = [part for part in net.modules() if type(part).__name__ == "BasicTransformerBlock"]
    assert len(parts) == blocks
    assert not any("down_blocks.0.attentions" in name for name in state)


def test_names_and_shapes_of_the_other_parts() -> None:
    vae, first, second = (build(part) for part in ("autoencoder", "clip-l", "clip-g"))
    assert (digest(vae.state_dict()), len(vae.state_dict())) == ("600696bc94ffc80f", 248)
    for part, count, tensors, places, original in (
        (first, 123_060_480, 196, clip_place, 196),
        (second, 694_659_840, 517, openclip_place, 389),
    ):
        state = part.state_dict()
        assert (sum(tensor.numel() for tensor in state.values()), len(state)) == (count, tensors)
        assert len(scatter(places_of(state, "", places), state)) == original


def test_original_and_back_is_the_identity(tmp_path) -> None:
    for refiner in (False, True):
        pipe = sdxl.pipeline(tmp_path, refiner=refiner)
        levels = len(pipe.vae.config.block_out_channels)
        kinds = tuple("CrossAttn" in kind for kind in pipe.unet.config.up_block_types)
        layout = UNetLayout(layers=1, attentive=kinds)
        for module, place in (
            (pipe.unet, layout.original),
            (pipe.vae, lambda name, levels=levels: vae_place(name, levels)),
            (pipe.text_encoder_2, openclip_place),
        ):
            state = module.state_dict()
            places = places_of(state, "x.", place)
            there = scatter(places, state)
            back = gather(places, there.__getitem__)
            assert list(back) == list(state)
            assert all(torch.equal(back[name], state[name]) for name in state)
            again = scatter(places, back)
            assert sorted(again) == sorted(there)
            assert all(torch.equal(again[name], there[name]) for name in there)
        projection = pipe.text_encoder_2.text_projection.weight
        stored = original_state(pipe)[f"conditioner.embedders.{0 if refiner else 1}.model.text_projection"]
        assert torch.equal(stored, projection.t())


# ------------------------------------------------------------------------------------------------------- every layout


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Folders and files of one base and one refiner, by name."""
    out = {}
    for name, refiner in (("base", False), ("refiner", True)):
        folder = tmp_path_factory.mktemp(name)
        pipe = sdxl.pipeline(folder, refiner=refiner)
        pipe.save_pretrained(folder / "plain")
        pipe.save_pretrained(folder / "variant", variant="fp16")
        pipe.save_pretrained(folder / "sharded", max_shard_size="300KB")
        state = original_state(pipe)
        extra = f"conditioner.embedders.{0 if refiner else 1}.model.logit_scale"
        save_file(state, folder / "one.safetensors")
        save_file(state | {extra: torch.zeros(()), "denoiser.sigmas": torch.zeros(3)}, folder / "more.safetensors")
        torch.save({"state_dict": state, "global_step": 7}, folder / "one.ckpt")
        names = ("plain", "variant", "sharded", "one.safetensors", "more.safetensors", "one.ckpt")
        out[name] = (pipe, [folder / one for one in names])
    return out


@pytest.mark.parametrize("which", ["base", "refiner"])
def test_every_layout_is_the_same_model(layouts, which) -> None:
    pipe, places = layouts[which]
    options = {"size": sdxl.SIDE}
    wanted = from_pipeline(pipe, **options)
    cond = wanted.cond(["a b c"])
    picture = orn.sample(wanted, 1, steps=1, cond=cond, decode=False)
    for place in places:
        found = orn.from_pipeline(place, **options)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            module, mine = getattr(pipe, name), getattr(found.pipe, name)
            assert (module is None) == (mine is None)
            state = {} if module is None else module.state_dict()
            assert all(torch.equal(mine.state_dict()[key], value) for key, value in state.items()), (place, name)
        # Mapped weights lie at other addresses, where kernels may round otherwise: float32 through an evaluation.
        close = {"rtol": 1e-4, "atol": 1e-4}
        again = found.cond(["a b c"])
        for name in cond:
            torch.testing.assert_close(again[name], cond[name], **close)
        torch.testing.assert_close(orn.sample(found, 1, steps=1, cond=cond, decode=False), picture, **close)
        assert found.null().keys() == wanted.null().keys()
        for name, value in wanted.null().items():
            torch.testing.assert_close(found.null()[name], value, **close)
        assert not any(parameter.is_meta for parameter in found.pipe.text_encoder_2.parameters())


def test_precision_markers_progress_and_the_front_door(layouts, tmp_path) -> None:
    pipe, places = layouts["base"]
    single = places[3]
    seen = []
    found = from_pipeline(single, dtype=torch.bfloat16, progress=lambda done, whole: seen.append((done, whole)))
    assert {p.dtype for p in found.pipe.unet.parameters()} == {torch.bfloat16}
    assert seen[-1][0] <= seen[-1][1]
    assert len(seen) > 200
    assert orn.load(single).shape == (4, 128, 128)
    assert orn.load(places[0]).shape == (4, sdxl.SIDE // 2, sdxl.SIDE // 2)
    state = original_state(pipe)
    save_file(state | {"v_pred": torch.zeros(0)}, tmp_path / "v.safetensors")
    sdxl.vocabulary(tmp_path)
    assert "V" in type(from_pipeline(tmp_path / "v.safetensors").parameterization).__name__
    told = open_single_file(single, predicts="v_prediction")
    assert told.scheduler.config.prediction_type == "v_prediction"
    save_file(state | {"surplus": torch.zeros(1)}, tmp_path / "s.safetensors")
    with pytest.warns(UserWarning, match=r"holds 'surplus', which no network of SDXL has: left out$"):
        from_pipeline(tmp_path / "s.safetensors")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the memory map is read from /proc")
def test_weights_are_mapped_and_not_copied(layouts) -> None:
    """What is read is the file's own memory: a copy would need the model's size twice."""
    _, places = layouts["base"]
    pipe = open_single_file(places[3])
    address = pipe.unet.conv_in.weight.data_ptr()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(places[3]) in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    assert any(low <= address < high for low, high in spans)


def test_the_memory_of_weights_is_known_beforehand(layouts) -> None:
    pipe, places = layouts["base"]
    sizes = {
        name: sum(tensor.numel() for tensor in getattr(pipe, name).state_dict().values())
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    for place in places[:3]:
        assert weights_in(place) == {name: 4 * size for name, size in sizes.items()}
        assert weights_in(place, dtype=torch.bfloat16)["unet"] == 2 * sizes["unet"]
    text = sizes["text_encoder"] + sizes["text_encoder_2"]
    assert weights_in(places[3]) == {"unet": 4 * sizes["unet"], "vae": 4 * sizes["vae"], "text encoders": 4 * text}


# ------------------------------------------------------------------------------------------------------------ refused


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path(self.where),))


def refused(place, match, **options):
    with pytest.raises(OrnsteinError, match=match) as found:
        from_pipeline(place, **options)
    assert "\n" not in str(found.value)
    return found.value


def test_files_that_are_something_else_are_refused_in_one_line(layouts, tmp_path) -> None:
    pipe, places = layouts["base"]
    state = original_state(pipe)
    data = places[3].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    refused(
        tmp_path / "cut.safetensors", r"cut\.safetensors is not a readable safetensors file \(.*\): give a single file"
    )
    (tmp_path / "head.safetensors").write_bytes(data[:40])
    refused(tmp_path / "head.safetensors", "not a readable safetensors file")
    refused(tmp_path / "none.safetensors", "none.safetensors is missing")
    lacking = {name: value for name, value in state.items() if "output_blocks.0.0" not in name}
    save_file(lacking, tmp_path / "lacking.safetensors")
    refused(
        tmp_path / "lacking.safetensors",
        r"lacks the tensors 'model\.diffusion_model\.output_blocks\.0\.0\..*' and 9 more of a UNet2DConditionModel",
    )
    more = {"model.diffusion_model.adapter.weight": torch.zeros(2)}
    save_file(state | more, tmp_path / "more.safetensors")
    refused(
        tmp_path / "more.safetensors", r"holds the tensor 'model\.diffusion_model\.adapter\.weight', which a UNet2D"
    )
    wide = {"first_stage_model.decoder.conv_out.weight": torch.zeros(5, 32, 3, 3)}
    save_file(state | wide, tmp_path / "wide.safetensors")
    refused(
        tmp_path / "wide.safetensors",
        r"tensor 'first_stage_model\.decoder\.conv_out\.weight' has shape \(5, 32, 3, 3\)",
    )
    for name, tensors, said in (
        ("old", {"cond_stage_model.a": torch.zeros(1)}, "is a single file of Stable Diffusion 1 or 2"),
        ("lora", {"lora_unet_mid.lora_up.weight": torch.zeros(1)}, "is a LoRA"),
        ("part", {"down_blocks.0.a": torch.zeros(1)}, "is one network of a diffusers pipeline alone"),
        ("else", {"a": torch.zeros(1)}, "is no model of SDXL"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        refused(tmp_path / f"{name}.safetensors", said)


def test_a_pickle_with_a_payload_runs_nothing(tmp_path) -> None:
    payload = Payload()
    payload.where = str(tmp_path / "ran")
    with (tmp_path / "evil.ckpt").open("wb") as file:
        pickle.dump({"state_dict": payload}, file)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": payload}, tmp_path / "torch.ckpt")
    for name in ("evil.ckpt", "torch.ckpt"):
        refused(tmp_path / name, "is damaged, or is no file of weights alone")
    torch.save([1, 2], tmp_path / "list.ckpt")
    refused(tmp_path / "list.ckpt", "holds no state dict of tensors")
    assert not (tmp_path / "ran").exists()


def test_damaged_folders_are_refused_by_name(layouts, tmp_path) -> None:
    import shutil

    _, places = layouts["base"]
    folder = tmp_path / "pipe"
    shutil.copytree(places[0], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    gone = state.pop("conv_in.weight")
    save_file(state, weights)
    refused(folder, r"lacks the tensor 'conv_in\.weight' of a UNet2DConditionModel")
    save_file(state | {"conv_in.weight": gone, "conv_out_2.weight": torch.zeros(1)}, weights)
    refused(folder, r"holds the tensor 'conv_out_2\.weight', which a UNet2DConditionModel does not have")
    save_file(state | {"conv_in.weight": gone}, weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, "not a readable safetensors file")


def test_old_names_of_attention_are_read(layouts, tmp_path) -> None:
    import shutil

    pipe, places = layouts["base"]
    folder = tmp_path / "pipe"
    shutil.copytree(places[0], folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(weights)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any("proj_attn" in key for key in state)
    save_file(state, weights)
    found = from_pipeline(folder).pipe.vae.state_dict()
    assert all(torch.equal(found[name], value) for name, value in pipe.vae.state_dict().items())


# --------------------------------------------------------------------------------------------------- missing encoders


def test_missing_encoders_are_zeros_and_a_line_says_so(layouts, tmp_path) -> None:
    import shutil

    pipe, places = layouts["base"]
    whole = from_pipeline(places[0]).cond(["a b"])
    for name, kept in (("text_encoder", slice(64, 128)), ("text_encoder_2", slice(0, 64))):
        folder = tmp_path / name
        shutil.copytree(places[0], folder, ignore=shutil.ignore_patterns(name))
        with pytest.warns(UserWarning, match=f"has no {name}: prompts are read without it|numbers of a token"):
            piped = from_pipeline(folder)
        with pytest.warns(UserWarning, match=r"without its \w+ text encoder 64 of the 128 numbers"):
            cond = piped.cond(["a b"])
        assert torch.equal(cond["text"][..., kept], whole["text"][..., kept])
        assert int((cond["text"] == 0).all(dim=(0, 1)).sum()) == 64
        assert bool((cond["pooled"] == 0).all()) == (name == "text_encoder_2")
        with pytest.warns(UserWarning, match="numbers of a token"):
            again = from_pipeline(places[0], without=[name]).cond(["a b"])
        assert torch.equal(again["text"], cond["text"])
    both = from_pipeline(places[0], without=["text_encoder", "text_encoder_2"])
    with pytest.raises(UsageError, match="has no text encoder: load one, or bind encoded captions"):
        both.cond(["a"])
    assert orn.sample(both, 1, steps=2, cond=whole).isfinite().all()
    refused(
        places[0], "without='vae' is no text encoder of this pipeline: text_encoder, text_encoder_2", without=["vae"]
    )
    single = {n: v for n, v in original_state(pipe).items() if not n.startswith("conditioner.embedders.0.")}
    save_file(single, tmp_path / "one.safetensors")
    sdxl.vocabulary(tmp_path)
    with pytest.warns(UserWarning, match="without its first text encoder"):
        found = from_pipeline(tmp_path / "one.safetensors").cond(["a b"])
    assert torch.equal(found["text"][..., 64:], whole["text"][..., 64:])


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is not None, reason="a vocabulary is installed")
def test_a_single_file_without_a_vocabulary_takes_encoded_captions(layouts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ornstein.interop.clip_vocabulary.offline", lambda: True)
    pipe, places = layouts["base"]
    save_file(original_state(pipe), tmp_path / "one.safetensors")
    with pytest.warns(UserWarning, match="holds no vocabulary and none was found, so no prompt can be read"):
        alone = from_pipeline(tmp_path / "one.safetensors", size=sdxl.SIDE)
    with pytest.raises(UsageError, match="has no vocabulary for its text encoder"):
        alone.cond(["a"])
    cond = from_pipeline(places[0]).cond(["a"])
    assert orn.sample(alone, 1, steps=1, cond=cond).isfinite().all()
    given = from_pipeline(tmp_path / "one.safetensors", vocabulary=sdxl.vocabulary(tmp_path / "words"))
    assert torch.equal(given.cond(["a"])["text"], cond["text"])
    refused(tmp_path / "one.safetensors", "no vocabulary of CLIP", vocabulary=tmp_path / "nothing")
    (tmp_path / "junk.txt").write_bytes(b"\x1f\x8bjunk")
    refused(tmp_path / "one.safetensors", "is no vocabulary of CLIP", vocabulary=tmp_path / "junk.txt")
    assert isinstance(CheckpointError("x"), OrnsteinError)
