"""UDPM as a method of the trainer: it learns, resumes to the bit with its discriminator, opens and samples."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.cli.main import main
from ornstein.data.decode import decode_file
from ornstein.errors import CheckpointError, ConfigError, GridError
from ornstein.models.pyramid import UDPMSpec
from ornstein.networks import UNetConfig
from ornstein.networks.discriminator import DiscriminatorConfig
from ornstein.objectives.pyramid import PyramidLoss
from ornstein.parameterizations import LevelBelow
from ornstein.paths import PyramidPath
from ornstein.runs import export, open_run
from ornstein.training import Every, Optimizer, train
from ornstein.training.udpm import UDPMConfig

BATCH = 8
NETWORK = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8, patch=1, dropout=0.1)


def config(out: Path, **changes) -> UDPMConfig:
    given = {
        "data": "critters:16",
        "out": str(out),
        "size": 16,
        "images": 6 * BATCH,
        "batch": BATCH,
        "network": NETWORK,
        "discriminator": DiscriminatorConfig(width=8, dropout=0.2),
        "objective": PyramidLoss(metric="none"),
        "optimizer": Optimizer(lr=2e-3, warmup=0),
        "discriminator_optimizer": Optimizer(lr=1e-3, warmup=0),
        "every": Every(log=2 * BATCH, checkpoint=2 * BATCH, seconds=0, samples=4 * BATCH),
        "tensorboard": False,
        "workers": 0,
        "keep": 9,
    }
    return UDPMConfig(**(given | changes))


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def tensors(run: Path) -> dict[str, torch.Tensor]:
    parts = sorted(newest(run).glob("*.safetensors"))
    return {f"{part.stem}/{name}": value for part in parts for name, value in load_file(part).items()}


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("time")
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("udpm") / "run"
    train(config(out, condition="label"), quiet=True)
    return out


def test_a_run_that_was_stopped_ends_with_the_same_bits(trained, tmp_path):
    out = tmp_path / "run"

    def dying(session):
        if session.step == 3:  # between two checkpoints, in the middle of a line of the log
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config(out, condition="label"), quiet=True, after_step=dying)
    assert newest(out).name == f"{2 * BATCH:012d}"
    train(config(out, condition="label"), quiet=True)
    whole, resumed = tensors(trained), tensors(out)
    assert {name.split("/")[0] for name in whole} == {
        "model",
        "ema",
        "optimizer",
        "discriminator",
        "discriminator_optimizer",
    }
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lines(trained) == lines(out)
    last = lines(out)[-1]
    assert set(last["discriminator"]["terms"]) == {"fake", "real", "penalty"}
    assert last["discriminator"]["grad_norm"] > 0.0


def test_a_checkpoint_without_its_discriminator_is_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    state = newest(tmp_path / "run") / "state.json"
    found = json.loads(state.read_text())
    del found["files"]["discriminator.safetensors"]
    state.write_text(json.dumps(found))
    (newest(tmp_path / "run") / "discriminator.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"discriminator\.safetensors is missing"):
        train(config(tmp_path / "run", condition="label", images=8 * BATCH), quiet=True)


def test_the_discriminator_learns_and_is_not_in_the_model(trained):
    first = load_file(min((trained / "checkpoints").iterdir()) / "discriminator.safetensors")
    last = load_file(newest(trained) / "discriminator.safetensors")
    assert not all(torch.equal(first[name], last[name]) for name in first)
    card = export(open_run(trained), trained.parent / "card")
    assert sorted(path.name for path in card.iterdir()) == ["config.json", "ema.safetensors"]


def test_without_adversarial_weight_there_is_none(tmp_path):
    out = tmp_path / "run"
    train(config(out, objective=PyramidLoss(metric="none", adversarial=(0.0,)), images=2 * BATCH), quiet=True)
    assert {path.stem for path in newest(out).glob("*.safetensors")} == {"model", "ema", "optimizer"}
    line = lines(out)[-1]
    assert set(line["terms"]) == {"fidelity"}
    assert "discriminator" not in line


def test_a_run_opens_and_samples_in_three_evaluations(trained):
    run = open_run(trained)
    assert isinstance(run.spec, UDPMSpec)
    assert run.denoiser.path == PyramidPath()
    assert run.denoiser.parameterization == LevelBelow()
    assert run.spec.network.out_channels == 12
    images = orn.sample(run.denoiser, 2, cond=run.cond(labels=[0, 1]))
    assert images.shape == (2, 3, 16, 16)
    assert list(trained.glob("samples/*"))


def test_training_lowers_the_loss(tmp_path):
    out = tmp_path / "run"
    train(
        config(
            out,
            objective=PyramidLoss(metric="none", adversarial=(0.0,), draw="all"),
            network=replace(NETWORK, dropout=0.0),
            images=60 * BATCH,
            every=Every(log=10 * BATCH, checkpoint=60 * BATCH, seconds=0, samples=0),
        ),
        quiet=True,
    )
    losses = [line["loss"] for line in lines(out)]
    assert losses[-1] < 0.8 * losses[0]


def test_other_levels_train_too(tmp_path):
    path = PyramidPath(alphas=(0.5, 1e-3), sigmas=(0.1, 0.3), factors=(4, 2), kernel=(1.0, 3.0, 3.0, 1.0))
    out = tmp_path / "run"
    train(config(out, path=path, images=2 * BATCH, network=replace(NETWORK, multipliers=(1,))), quiet=True)
    run = open_run(out)
    assert run.denoiser.path == path
    assert run.spec.network.out_channels == 48
    assert orn.sample(run.denoiser, 1).shape == (1, 3, 16, 16)


def test_what_cannot_be_is_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="shrinks by 8"):
        config(out, network=replace(NETWORK, multipliers=(1, 2, 2)))
    with pytest.raises(ConfigError, match="follow from the data"):
        config(out, discriminator=DiscriminatorConfig(classes=3))
    with pytest.raises(ConfigError, match="2 values for 3 levels"):
        config(out, objective=PyramidLoss(fidelity=(1.0, 2.0)))
    assert not out.exists()


# ----------------------------------------------------------------------------------------------------- the command line


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict, str]:
    status = main(["sample", *words, "--json"])
    said = capsys.readouterr()
    return status, json.loads(said.out) if said.out else {}, said.err


def test_the_command_takes_three_evaluations_and_refuses_other_samplers(trained, tmp_path, capsys):
    status, found, _ = command(capsys, str(trained), "--n", "2", "--label", "0", "--out", str(tmp_path / "a"))
    assert status == 0
    assert (found["evaluations"], found["sampler"], found["times"]) == (3, "ancestral", [3.0, 2.0, 1.0, 0.0])
    for sampler in ("ddim", "heun", "dpmpp-2m"):
        status, _, said = command(capsys, str(trained), "--sampler", sampler, "--out", str(tmp_path / "a"))
        assert status == 2
        assert "PyramidPath does not have: use the Ancestral sampler" in said


def test_the_command_interpolates_and_varies(trained, tmp_path, capsys):
    words = (str(trained), "--label", "0", "--seed", "3", "--strict")

    def drawn(name: str, *more: str) -> tuple[dict, list[torch.Tensor]]:
        status, found, said = command(capsys, *words, *more, "--out", str(tmp_path / name))
        assert status == 0, said
        return found, [decode_file(Path(file), 16, "a") for file in found["images"]]

    _, two = drawn("plain", "--first", "5", "--n", "1")
    _, nine = drawn("other", "--first", "9", "--n", "1")
    found, frames = drawn("between", "--interpolate", "5", "9", "--n", "5", "--batch", "2")
    assert found["interpolate"] == [5, 9]
    assert torch.equal(frames[0], two[0])
    assert torch.equal(frames[-1], nine[0])
    found, varied = drawn("varied", "--resample-level", "1", "--first", "5", "--n", "3", "--keep-noise", "0.5")
    assert (found["resample_level"], found["keep_noise"]) == (1, 0.5)
    assert torch.equal(varied[0], two[0])
    found, _ = drawn("published", "--posterior", "published", "--n", "1")
    assert found["posterior"] == "published"
    for wrong, why in (
        (("--interpolate", "1", "2", "--resample-level", "1"), "not both"),
        (("--resample-level", "4"), "choose 1"),
        (("--keep-noise", "0.5"), "belongs to --resample-level"),
        (("--resample-level", "1", "--keep-noise", "2"), "--keep-noise must be in [0, 1]"),
        (("--interpolate", "1", "2", "--n", "1"), "at least 2 frames"),
        (("--resample-level", "1", "--resample", "2"), "leave --resample out"),
        (("--steps", "5"), "one step a level, 3 here, got 5"),
    ):
        status, _, said = command(capsys, *words, *wrong, "--out", str(tmp_path / "no"))
        assert status == 2, said
        assert why in said
    assert not (tmp_path / "no").exists()


def test_a_run_is_evaluated_by_its_own_sampler(trained, capsys):
    words = ["eval", str(trained), "--reference", "critters:16", "--metrics", "diversity", "--n", "4", "--json"]
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert (found["sampler"], found["steps"]) == ("ancestral", 3)
    assert main([*words, "--steps", "4"]) == 2
    assert "one step a level" in capsys.readouterr().err
    model = open_run(trained).denoiser
    assert torch.equal(orn.sample(model, 2, steps=3), orn.sample(model, 2))
    with pytest.raises(GridError, match="got 5"):
        orn.sample(model, 2, steps=5)


def test_a_run_begins_with_the_weights_and_the_discriminator_of_another(trained, tmp_path):
    start, out = tmp_path / "start", tmp_path / "run"
    still = {
        "optimizer": Optimizer(lr=1e-30, warmup=0),
        "discriminator_optimizer": Optimizer(lr=1e-30, warmup=0),
    }  # too little to move
    others = replace(config(start).objective, level_probabilities=(1.0, 1.0, 0.0))
    train(config(start, images=2 * BATCH), quiet=True)
    train(config(out, images=BATCH, init_from=str(start), objective=others, **still), quiet=True)
    given, now = tensors(start), tensors(out)

    def same(a: str, b: str) -> bool:
        return torch.allclose(now[a], given[b], rtol=0.0, atol=1e-20)  # zeros have moved, too

    assert all(same(f"model/{name}", f"ema/{name}") for name in open_run(out).model.state_dict())
    judging = [name for name in given if name.startswith("discriminator/")]
    assert judging
    assert all(same(name, name) for name in judging)
    # A card has no discriminator; another model is refused by what it differs in.
    export(open_run(start), tmp_path / "card")
    train(config(tmp_path / "fresh", images=BATCH, init_from=str(tmp_path / "card"), **still), quiet=True)
    assert not torch.equal(tensors(tmp_path / "fresh")[judging[0]], given[judging[0]])
    with pytest.raises(ConfigError, match=r"another model, with path\.alphas"):
        path = PyramidPath(alphas=(0.4, 0.2, 0.001))
        train(config(tmp_path / "other", init_from=str(start), path=path), quiet=True)
    with pytest.raises(ConfigError, match="--init-from critters-64 is no run of train udpm"):
        train(config(tmp_path / "other", init_from="critters-64"), quiet=True)
    with pytest.raises(CheckpointError, match="give the --discriminator options"):
        wider = DiscriminatorConfig(width=16, dropout=0.2)
        train(config(tmp_path / "other", init_from=str(start), discriminator=wider), quiet=True)
    with pytest.raises(CheckpointError):
        train(config(tmp_path / "other", init_from=str(tmp_path / "nowhere")), quiet=True)
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------------------------------------------------ defaults


def test_defaults_are_the_papers_but_for_rate_and_moments():
    """As published: levels, weights, Adam without clipping or decay, equal rates, levels alike, dropout .2 of D.

    Measured and kept instead (docs/methods/udpm.md): a rate of 5e-4 and moments of (0, .99), not 1e-4 and (.9, .999).
    """
    given = UDPMConfig(out="x")
    assert given.path == PyramidPath(alphas=(0.5, 0.2, 1e-3), sigmas=(0.1, 0.2, 0.3), factors=(2, 2, 2))
    assert (
        given.optimizer
        == given.discriminator_settings()
        == Optimizer(lr=5e-4, betas=(0.0, 0.99), clip=0.0, weight_decay=0.0)
    )
    assert given.discriminator == DiscriminatorConfig(width=32, blocks=0, dropout=0.2, group=4)
    assert given.objective == PyramidLoss(
        metric="lite0", distance="l1", draw="one", r1_interval=1, instance_noise=0.4, label_dropout=0.1
    )
    assert given.objective.frequencies(given.path) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (given.predicts, given.precondition, given.init_from, given.takes_latents) == (
        "level-below",
        True,
        "",
        False,
    )


def test_a_discriminator_of_another_layout_is_refused(trained, tmp_path):
    """As the one of older versions, whose tensors had other names."""
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(trained, tmp_path / "old")
    weights = newest(tmp_path / "old") / "discriminator.safetensors"
    older = {name.replace("conv_in", "first"): value for name, value in load_file(weights).items()}
    save_file(older, weights)
    with pytest.raises(CheckpointError, match=r"--init-from .*lacks the tensor .*belongs to another network"):
        train(config(tmp_path / "new", condition="label", init_from=str(tmp_path / "old")), quiet=True)
    assert not (tmp_path / "new").exists()
