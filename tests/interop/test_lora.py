"""LoRA files in every naming: laid on, scaled, taken off to the bit, or refused in one line."""

import pytest
import tiny_sdxl as sdxl
import torch
from safetensors.torch import save_file

import ornstein as orn
from ornstein.cli.main import main
from ornstein.errors import CheckpointError, UsageError
from ornstein.interop.diffusers import from_pipeline
from ornstein.interop.lora import load_lora
from ornstein.interop.sdxl_names import UNetLayout

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
LAYOUT = UNetLayout(layers=1, attentive=(True, True, False))
RANK, ALPHA = 3, 1.5
CHANGED = {  # of the U-Net, inside its blocks and outside
    "conv_in": (4, 32, 3),
    "time_embedding.linear_1": (32, 128, 0),
    "add_embedding.linear_2": (128, 128, 0),
    "down_blocks.0.resnets.0.conv1": (32, 32, 3),
    "down_blocks.0.resnets.0.time_emb_proj": (128, 32, 0),
    "down_blocks.0.downsamplers.0.conv": (32, 32, 3),
    "down_blocks.1.attentions.0.proj_in": (64, 64, 0),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (128, 64, 0),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": (64, 64, 0),
    "up_blocks.0.resnets.1.conv_shortcut": (128, 64, 1),
    "conv_out": (32, 4, 3),
}
TEXT = {"text_encoder": "encoder.layers.1.self_attn.q_proj", "text_encoder_2": "encoder.layers.0.mlp.fc1"}


def pair(inputs, outputs, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator) * 0.2 for shape in ((RANK, inputs), (outputs, RANK)))
    if kernel:
        down = torch.randn(RANK, inputs, kernel, kernel, generator=generator) * 0.2
        up = up[..., None, None]
    return down, up


def tensors(naming):
    """The same LoRA under the names of diffusers ("peft"), of older diffusers, or of kohya in either form."""
    out = {}
    layers = [("unet", name, shape) for name, shape in CHANGED.items()]
    layers += [(part, f"text_model.{name}", (64, 64 if "q_proj" in name else 128, 0)) for part, name in TEXT.items()]
    for seed, (part, name, shape) in enumerate(layers):
        down, up = pair(*shape, seed)
        if naming.startswith("kohya"):
            own = (
                LAYOUT.original(f"{name}.weight").name.removesuffix(".weight")
                if "original" in naming and part == "unet"
                else name
            )
            first = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[part]
            key, ends = f"{first}_{own.replace('.', '_')}", ("lora_down.weight", "lora_up.weight")
        else:
            key, ends = (
                f"{part}.{name}",
                ("lora_A.weight", "lora_B.weight") if naming == "peft" else ("lora.down.weight", "lora.up.weight"),
            )
        out |= {f"{key}.{ends[0]}": down, f"{key}.{ends[1]}": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return {name: value.contiguous() for name, value in out.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return from_pipeline(sdxl.pipeline(tmp_path_factory.mktemp("xl")), size=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    namings = ("peft", "older", "kohya-original", "kohya-diffusers")
    for naming in namings:
        save_file(tensors(naming), folder / f"{naming}.safetensors")
    return {naming: folder / f"{naming}.safetensors" for naming in namings}


def drawn(model):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = model.cond(["a b"])
    return cond["text"], model.with_condition(cond)(x, 0.6).clean


def test_it_is_the_model_with_merged_weights(files, tmp_path) -> None:
    pipe = sdxl.pipeline(tmp_path, dtype=torch.float64)
    model = from_pipeline(pipe, size=16)
    with load_lora(model, files["peft"], scale=0.7) as lora:
        assert lora.layers == len(CHANGED) + 2
        found = drawn(model)
    with torch.no_grad():
        for part, name, *_ in [("unet", name) for name in CHANGED] + list(TEXT.items()):
            module = getattr(pipe, part)
            layer = (
                getattr(module, "text_model", module).get_submodule(name)
                if part != "unet"
                else module.get_submodule(name)
            )
            key = f"{part}.{name}" if part == "unet" else f"{part}.text_model.{name}"
            state = tensors("peft")
            down, up = (state[f"{key}.{end}.weight"].double() for end in ("lora_A", "lora_B"))
            layer.weight += 0.7 * ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    for one, other in zip(found, drawn(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_every_naming_is_the_same_and_it_comes_off_to_the_bit(model, files) -> None:
    before, seen = drawn(model), []
    for where in files.values():
        lora = load_lora(model, where)
        seen.append(drawn(model))
        lora.scale = 0.0
        assert all(torch.equal(a, b) for a, b in zip(drawn(model), before, strict=True))
        lora.scale = 1.0
        assert all(torch.equal(a, b) for a, b in zip(drawn(model), seen[-1], strict=True))
        lora.unload()
        lora.unload()
        assert all(torch.equal(a, b) for a, b in zip(drawn(model), before, strict=True))
    for text, clean in seen:
        assert float((text - before[0]).abs().max()) > 1e-3
        assert float((clean - before[1]).abs().max()) > 1e-3
        torch.testing.assert_close(text, seen[0][0])
        torch.testing.assert_close(clean, seen[0][1])


def test_several_add_up_in_half_precision_and_with_gradients(files, tmp_path) -> None:
    model = from_pipeline(sdxl.pipeline(tmp_path).to(torch.bfloat16), size=16)
    one, two = load_lora(model, files["peft"], scale=0.5), load_lora(model, files["older"], scale=0.5)
    assert drawn(model)[1].isfinite().all()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model.with_condition(model.cond(["a"]))(x, 0.6).clean.sum().backward()
    assert float(x.grad.abs().max()) > 0
    one.unload()
    two.unload()


def test_what_does_not_fit_is_refused_in_one_line(model, files, tmp_path) -> None:
    good = tensors("peft")
    key = "unet.conv_in.lora_A.weight"
    cases = {
        "shape": (
            good | {key: torch.zeros(RANK, 9, 3, 3)},
            r"conv_in has the shapes \(3, 9, 3, 3\) and .* layer of \(32, 4, 3, 3\): it was made for another model",
        ),
        "layer": (
            {"unet.nowhere.lora_A.weight": good[key], "unet.nowhere.lora_B.weight": good[key] + 1},
            "changes the layer 'nowhere' of the unet, which this model does not have: it was made for another",
        ),
        "part": (
            {"transformer.x.lora_A.weight": good[key], "transformer.x.lora_B.weight": good[key] + 1},
            "changes the transformer, which this model does not have",
        ),
        "half": ({key: good[key]}, r"holds only a part of the layer 'conv_in' \(down\)"),
        "other": ({"lora_unet_conv_in.hada_w1_a": good[key]}, "of another method than LoRA"),
        "dora": (good | {"unet.conv_in.dora_scale": torch.ones(1)}, "of another method than LoRA"),
        "none": ({"a": torch.zeros(1)}, "holds 'a', which names no layer of a LoRA"),
    }
    before = drawn(model)
    for name, (state, said) in cases.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError, match=said) as found:
            load_lora(model, tmp_path / f"{name}.safetensors")
        assert "\n" not in str(found.value)
    assert all(torch.equal(a, b) for a, b in zip(drawn(model), before, strict=True))
    with pytest.raises(CheckpointError, match="is missing"):
        load_lora(model, tmp_path / "no.safetensors")
    with pytest.raises(UsageError, match="is no diffusers pipeline, and a LoRA lies on one of these"):
        load_lora(orn.load("critters"), files["peft"])
    with pytest.raises(UsageError, match="scale must be"):
        load_lora(model, files["peft"], scale=float("nan"))


def test_the_command(files, tmp_path, capsys) -> None:
    pipe = sdxl.pipeline(tmp_path)
    pipe.save_pretrained(tmp_path / "pipe")
    words = ["sample", str(tmp_path / "pipe"), "--n", "1", "--steps", "1", "--prompt", "a"]
    found = []
    for number, scale in enumerate([None, "0", "0.9"]):
        out = tmp_path / f"out{number}"
        lora = [] if scale is None else ["--lora", f"{files['peft']}:{scale}"]
        assert main([*words, *lora, "--out", str(out)]) == 0
        found.append((out / "000000.png").read_bytes())
    assert found[0] == found[1] != found[2]
    assert main([*words, "--lora", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "x")]) == 2
    assert "is missing" in capsys.readouterr().err
