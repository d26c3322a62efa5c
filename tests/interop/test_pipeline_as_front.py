"""A diffusers pipeline where a run is expected: `open_run`, `ornstein sample`, and the first stage of a cascade."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.cascade import forced
from ornstein.cli.main import main
from ornstein.errors import ConfigError, UsageError
from ornstein.interop.diffusers import DiffusersModel, from_pipeline
from ornstein.models.spec import DenoiserSpec
from ornstein.networks import DiTConfig, UNetConfig
from ornstein.objectives import CascadeLoss
from ornstein.runs import export, is_run, open_run
from ornstein.training import Every, Optimizer, train
from ornstein.training.cas_dm import CascadeConfig

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def cascade(out, front, **changes) -> CascadeConfig:
    options = {
        "data": "critters:8",
        "out": str(out),
        "front": str(front),
        "size": 8,
        "images": 16,
        "batch": 4,
        "network": UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8),
        "objective": CascadeLoss(metric="none"),
        "optimizer": Optimizer(lr=3e-3, warmup=0),
        "every": Every(log=8, checkpoint=8, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    }
    return CascadeConfig(**options | changes)


@pytest.fixture(scope="module")
def refined(tmp_path_factory, pixels):
    out = tmp_path_factory.mktemp("refined") / "run"
    train(cascade(out, pixels), quiet=True)
    return out


def test_a_refiner_trains_behind_a_pipeline_that_stays_as_it_is(refined, pixels):
    weights = load_file(max((refined / "checkpoints").iterdir()) / "model.safetensors")
    theirs = from_pipeline(pixels).denoiser.net.state_dict()
    for name, value in theirs.items():
        assert torch.equal(weights[f"net.front.{name}"], value), name
    run = open_run(refined)
    with torch.no_grad():
        alone = orn.sample(from_pipeline(pixels).denoiser, 2, steps=4, sampler="ddim")
        both = orn.sample(forced(run.denoiser, 0.0), 2, steps=4, sampler="ddim")
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)
    assert orn.sample(run.denoiser, 2, steps=4).shape == (2, 3, 8, 8)
    lines = [json.loads(line) for line in (refined / "metrics.jsonl").read_text().splitlines()]
    assert "denoising" not in lines[-1]["terms"]


def test_it_goes_on_bit_for_bit(refined, tmp_path, pixels):
    train(cascade(tmp_path / "run", pixels, images=8), quiet=True)
    train(cascade(tmp_path / "run", pixels), quiet=True)
    for part in ("model", "ema", "optimizer"):
        one, other = (
            load_file(max((run / "checkpoints").iterdir()) / f"{part}.safetensors")
            for run in (refined, tmp_path / "run")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_front_with_a_learned_variance_stays_as_it_is(tmp_path, pixels):
    """An Improved-DDPM pipeline, whose network returns twice the channels."""
    config = diffusers.UNet2DModel.load_config(pixels / "unet")
    unet = diffusers.UNet2DModel.from_config(config, out_channels=6)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    piped = from_pipeline(tmp_path / "pipe")
    x, states = torch.randn(2, 3, 8, 8), {}
    for sampler in ("ddim", "ancestral-learned"):
        states[sampler] = orn.sample(piped, 2, steps=3, sampler=sampler)
    assert set(piped.denoiser(x, 0.5).extras) == {"variance"}
    train(cascade(tmp_path / "run", tmp_path / "pipe", images=8), quiet=True)
    run = open_run(tmp_path / "run")
    assert run.denoiser(x, 0.5).extras.keys() == {"variance", "front", "back", "gate"}
    for sampler, wanted in states.items():
        assert orn.sample(run, 2, steps=3, sampler=sampler).isfinite().all()
        found = orn.sample(forced(run.denoiser, 0.0), 2, steps=3, sampler=sampler)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        UNetConfig(out_channels=6, width=8, blocks=1, multipliers=(1,), attention=(), head_width=8),
        DiTConfig(out_channels=6, width=16, depth=1, head_width=8, patch=2),
    ],
)
def test_a_network_of_ours_with_twice_the_channels_has_a_learned_variance(network):
    spec = DenoiserSpec(shape=(3, 8, 8), path="vp-table", predicts="noise", network=network)
    model = spec.denoiser(spec.build())
    assert model(torch.ones(2, 3, 8, 8), 0.5).extras["variance"].shape == (2, 3, 8, 8)
    assert orn.sample(model, 2, steps=2, sampler="ancestral-learned").isfinite().all()
    plain = replace(spec, network=replace(network, out_channels=None))
    assert not plain.denoiser(plain.build())(torch.ones(2, 3, 8, 8), 0.5).extras


@pytest.mark.parametrize(
    ("changes", "message"), [({"size": 16}, "give --size 8"), ({"condition": "label"}, "takes no condition")]
)
def test_fronts_that_do_not_fit(tmp_path, pixels, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(cascade(tmp_path / "run", pixels, **changes), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_text_pipeline_is_no_front(tmp_path, stable):
    with pytest.raises(ConfigError, match="pipeline of pixels without conditions"):
        train(cascade(tmp_path / "run", stable, size=16), quiet=True)


def test_open_run_takes_a_pipeline(pixels, stable, tmp_path):
    assert is_run(pixels)
    run = open_run(stable)
    assert isinstance(run, DiffusersModel)
    assert (run.condition, run.picture) == ("text", (3, 16, 16))
    assert torch.equal(orn.load(pixels).net.net.conv_in.weight, from_pipeline(pixels).pipe.unet.conv_in.weight)
    with pytest.raises(UsageError, match="no run of ours"):
        export(run, tmp_path / "card")


def test_sample_from_a_folder(pixels, stable, tmp_path, capsys):
    assert main(["sample", str(pixels), "--n", "2", "--steps", "2", "--out", str(tmp_path / "a"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 2
    words = ["--caption", "a cat", "--guidance-scale", "3", "--n", "2", "--steps", "2"]
    assert main(["sample", str(stable), *words, "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    from PIL import Image

    with Image.open(tmp_path / "b" / "000000.png") as picture:
        assert picture.size == (16, 16)
    assert (tmp_path / "b" / "000000.png").read_bytes() != (tmp_path / "b" / "000001.png").read_bytes()
    assert main(["sample", str(stable), "--label", "3", "--n", "1", "--out", str(tmp_path / "c")]) == 2
    assert "takes no labels" in capsys.readouterr().err
