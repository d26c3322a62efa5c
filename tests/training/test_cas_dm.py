"""Cas-DM as a method of the trainer: its front is the plain run's, its runs open, resume and refuse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.cascade import Cascade, forced
from ornstein.errors import CheckpointError, ConfigError
from ornstein.models.cascade import CascadeSpec
from ornstein.networks import DiTConfig, UNetConfig
from ornstein.objectives import CascadeLoss, Denoising
from ornstein.runs import export, open_run
from ornstein.training import METHODS, Every, Optimizer, TrainConfig, read_config, to_dict, train
from ornstein.training.cas_dm import CascadeConfig

BATCH = 8
NETWORK = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8, patch=2, dropout=0.1)


def shared(out: Path, **changes) -> dict:
    return {
        "data": "critters:16",
        "out": str(out),
        "size": 16,
        "images": 6 * BATCH,
        "batch": BATCH,
        "predicts": "noise",
        "network": NETWORK,
        "optimizer": Optimizer(lr=3e-3, warmup=0, clip=0.05),
        "every": Every(log=3 * BATCH, checkpoint=3 * BATCH, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    } | changes


def cascade(out: Path, **changes) -> CascadeConfig:
    return CascadeConfig(**shared(out, objective=CascadeLoss(metric="none"), **changes))


def weights(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").iterdir()) / f"{part}.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A ddpm run told labels."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(TrainConfig(**shared(out, condition="label", objective=Denoising())), quiet=True)
    return out


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> Path:
    """The same run as a cascade, without a metric."""
    out = tmp_path_factory.mktemp("joint") / "run"
    train(cascade(out, condition="label"), quiet=True)
    return out


@pytest.fixture(scope="module")
def refined(tmp_path_factory, plain) -> Path:
    """A refiner behind the ddpm run."""
    out = tmp_path_factory.mktemp("refined") / "run"
    train(cascade(out, front=str(plain)), quiet=True)
    return out


@pytest.mark.parametrize("part", ["model", "ema"])
def test_the_front_is_the_plain_run(plain, joint, part):
    """Six steps with clipping and dropout: the front's weights are those of ddpm, bit for bit."""
    alone, both = weights(plain, part), weights(joint, part)
    for name, tensor in alone.items():
        assert torch.equal(both[name.replace("net.", "net.front.", 1)], tensor), name
    assert any(name.startswith("net.back.") for name in both)


def test_the_metric_does_not_touch_the_front(joint, tmp_path):
    config = cascade(tmp_path / "run", condition="label")
    train(replace(config, objective=CascadeLoss(metric="lite0", metric_weight=1.0)), quiet=True)
    without, with_metric = weights(joint), weights(tmp_path / "run")
    front = [name for name in without if not name.startswith("net.back.")]
    assert all(torch.equal(without[name], with_metric[name]) for name in front)
    assert not all(torch.equal(without[name], with_metric[name]) for name in without)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["terms"]) == {"denoising", "clean", "gate", "metric"}
    means = [mean for mean in lines[-1]["levels"]["watched"]["gate_mean"] if mean is not None]
    assert all(0.0 < mean < 1.0 for mean in means)


def test_a_run_opens_as_a_cascade(joint):
    run = open_run(joint)
    assert isinstance(run.spec, CascadeSpec)
    assert isinstance(run.denoiser.parameterization, Cascade)
    cond = run.cond(labels=[0, 1])
    images = orn.sample(run.denoiser, 2, steps=3, cond=cond)
    assert images.shape == (2, 3, 16, 16)
    estimate = run.denoiser.with_condition(cond)(images, 0.5)
    assert set(estimate.extras) == {"front", "back", "gate"}
    assert run.parameters == 2 * sum(p.numel() for p in run.model.net.front.parameters()) + (9 * 8 + 1) * 4
    card = export(run, joint.parent / "card")
    assert isinstance(open_run(card).spec, CascadeSpec)


def test_two_phases(plain, refined):
    given, kept = weights(plain, "ema"), weights(refined)
    for name, tensor in given.items():
        assert torch.equal(kept[name.replace("net.", "net.front.", 1)], tensor), name
    optimizer = weights(refined, "optimizer")
    assert {name.split("/")[1].split(".")[1] for name in optimizer} == {"back"}
    cond = open_run(plain).cond(labels=[0, 1])
    expected = orn.sample(orn.load(plain), 2, steps=4, sampler="heun", cond=cond)
    again = orn.sample(forced(orn.load(refined), 0.0), 2, steps=4, sampler="heun", cond=cond)
    assert torch.equal(again, expected)
    assert not torch.equal(orn.sample(orn.load(refined), 2, steps=4, sampler="heun", cond=cond), expected)
    lines = [json.loads(line) for line in (refined / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["terms"]) == {"clean", "gate"}
    assert open_run(refined).classes == open_run(plain).classes


def test_captions_and_other_backs(tmp_path):
    """The caption encoder is the front's; the back may be of another kind, see the state, and learn its residual."""
    config = cascade(
        tmp_path / "run",
        condition="text",
        path="flow",
        predicts="velocity",
        back=DiTConfig(width=32, depth=1, head_width=16),
        network=UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, patch=2),
        see_state=True,
        residual=True,
        gate="scalar",
        clip=None,
        images=3 * BATCH,
        every=Every(log=3 * BATCH, samples=3 * BATCH, seconds=0),
    )
    train(config, quiet=True)
    assert (tmp_path / "run" / "samples" / f"{3 * BATCH:012d}.png").is_file()
    run = open_run(tmp_path / "run")
    assert run.denoiser.parameterization == replace(
        run.denoiser.parameterization, clip=None, gate="scalar", see_state=True, residual=True
    )
    assert orn.sample(run.denoiser, 1, steps=2, cond=run.cond(captions=["a red one"])).isfinite().all()
    alone = TrainConfig(
        **shared(
            tmp_path / "alone",
            condition="text",
            path="flow",
            predicts="velocity",
            network=config.network,
            images=3 * BATCH,
        )
    )
    train(alone, quiet=True)
    theirs, ours = weights(tmp_path / "alone"), weights(tmp_path / "run")
    assert all(torch.equal(ours[name.replace("net.", "net.front.", 1)], tensor) for name, tensor in theirs.items())


def test_what_cannot_be_is_refused(plain, refined, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="give --size 16"):
        train(cascade(out, front=str(plain), size=32), quiet=True)
    with pytest.raises(ConfigError, match="a cascade itself"):
        train(cascade(out, front=str(refined)), quiet=True)
    with pytest.raises(CheckpointError, match="does not exist"):
        train(cascade(out, front=str(tmp_path / "none")), quiet=True)
    with pytest.raises(ConfigError, match="begun with `ornstein train ddpm`, not cas-dm"):
        train(cascade(plain, condition="label", images=10 * BATCH), quiet=True)
    with pytest.raises(ConfigError, match="--gate map, not scalar"):
        train(cascade(refined, front=str(plain), gate="scalar", images=10 * BATCH), quiet=True)
    with pytest.raises(ConfigError, match=r"back\.classes follows"):
        cascade(out, back=UNetConfig(classes=3))
    with pytest.raises(ConfigError, match="clip must be positive"):
        cascade(out, clip=-1.0)
    assert not out.exists()


def test_a_diverging_name_of_metric_leaves_no_folder(tmp_path):
    config = replace(cascade(tmp_path / "run"), objective=CascadeLoss(metric="lite1"))
    with pytest.raises(CheckpointError, match="no perceptual network 'lite1'"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_reads_back_what_it_writes(name):
    method = METHODS[name]
    needed = {"scores": "scores.csv"} if name == "rarity-classifier" else {}
    config = method.configuration(out="x", **needed)
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(config)["kind"] == method.kind
