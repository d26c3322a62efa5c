"""`ornstein train autoencoder`: the losses, the critic, resuming, the report and what becomes a codec."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ornstein.cli.main import main
from ornstein.data import open_source
from ornstein.errors import ConfigError, UsageError
from ornstein.metrics.reconstruction import reconstruction
from ornstein.models.autoencoder import AutoencoderSpec
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig, PatchDiscriminator
from ornstein.objectives import TrainBatch
from ornstein.objectives.reconstruction import ReconstructionLoss
from ornstein.randomness import Noise
from ornstein.runs import export, is_codec, open_codec, open_run, save_codec
from ornstein.training import Every, train

_spec = importlib.util.spec_from_file_location("latents_conftest", Path(__file__).with_name("conftest.py"))
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)
BATCH = tiny.BATCH


def newest(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    folder = max((run / "checkpoints").iterdir())
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def model(critic=True, **changes):
    spec = AutoencoderSpec(shape=(3, 16, 16), network=KLConfig(width=8))
    net = spec.build(0)
    loss = ReconstructionLoss(**{"metric": "none", "adversarial": 0.5, "adversarial_from": 0} | changes)
    return spec.denoiser(net), loss.with_parts("cpu", PatchDiscriminator(width=8) if critic else None)


def examples(n=4, first=0):
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TrainBatch(clean=images, cond={}, positions=tuple(range(first, first + n)))


def test_the_network_answers_in_its_sizes():
    for config in (
        KLConfig(),
        KLConfig(width=8, multipliers=(1, 1, 2), patch=1),
        KLConfig(latent=8, patch=4, smooth=6),
    ):
        net = KLAutoencoder(config)
        mean, logvar = net.moments(torch.zeros(2, 3, 32, 32))
        side = 32 // config.factor
        assert mean.shape == logvar.shape == (2, config.latent, side, side)
        assert net.decode(mean).shape == (2, 3, 32, 32)
        assert net(torch.zeros(1, 3, 16, 48), None)[0].shape == (1, 3, 16, 48)
    with pytest.raises(ConfigError, match="does not divide by 4"):
        KLAutoencoder(KLConfig()).moments(torch.zeros(1, 3, 30, 32))


def test_the_terms_are_what_they_say():
    denoiser, objective = model(critic=False, kl=0.1)
    batch, noise = examples(), Noise.of(0, range(4))
    losses = objective(denoiser, batch, noise, 0.0)
    z = noise.normal("latent", (4, 4, 4))
    with torch.no_grad():
        again, mean, logvar = denoiser.net(batch.clean, torch.zeros(4), noise=z)
    torch.testing.assert_close(losses.terms["pixels"], (again - batch.clean).abs().flatten(1).mean(1))
    own = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = 0.1 * torch.distributions.kl_divergence(own, unit).flatten(1).sum(1) / (3 * 16 * 16)
    torch.testing.assert_close(losses.terms["kl"], expected)
    assert losses.terms.keys() == {"pixels", "kl"}
    squared = model(critic=False, pixels="l2")[1](denoiser, batch, noise, 0.0)
    torch.testing.assert_close(squared.terms["pixels"], (again - batch.clean).square().flatten(1).mean(1))


def test_gradients_count_what_changes_between_neighbours_and_nothing_else():
    denoiser, objective = model(critic=False, gradients=2.0)
    batch, noise = examples(), Noise.of(0, range(4))
    with torch.no_grad():
        again = denoiser.net(batch.clean, torch.zeros(4), noise=noise.normal("latent", (4, 4, 4)))[0]
    step = (again - batch.clean).double()
    wide = (step[..., 1:] - step[..., :-1]).abs().flatten(1).mean(1)
    high = (step[..., 1:, :] - step[..., :-1, :]).abs().flatten(1).mean(1)
    terms = objective(denoiser, batch, noise, 0.0).terms
    torch.testing.assert_close(terms["gradients"].double(), 2.0 * (wide + high), rtol=1e-5, atol=1e-7)


def test_the_critic_and_the_model_learn_from_their_own_losses_alone():
    denoiser, objective = model()
    batch, noise = examples(), Noise.of(0, range(4))
    objective(denoiser, batch, noise, 0.0).total.backward()
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())
    assert any(parameter.grad.any() for parameter in denoiser.net.parameters())
    denoiser.net.zero_grad(set_to_none=True)
    objective.discriminator_loss(denoiser, batch, noise, 0.0).total.backward()
    assert all(parameter.grad is None for parameter in denoiser.net.parameters())
    assert all(parameter.grad is not None for parameter in objective.discriminator.parameters())


def test_the_adversarial_gradient_is_as_large_as_the_rest():
    denoiser, objective = model(kl=0.0)
    last = denoiser.net.net.auto.to_pixels.weight
    terms = objective(denoiser, examples(), Noise.of(0, range(4)), 0.0).terms
    rest, theirs = (
        torch.autograd.grad(terms[name].mean(), last, retain_graph=True)[0] for name in terms if name != "kl"
    )
    assert float(theirs.norm()) == pytest.approx(0.5 * float(rest.norm()), rel=2e-3)


def test_the_critic_begins_when_it_is_told_to():
    denoiser, objective = model(adversarial_from=100)
    for first, begun in ((0, False), (96, False), (100, True)):
        batch, noise = examples(first=first), Noise.of(0, range(4))
        assert ("adversarial" in objective(denoiser, batch, noise, 0.0).terms) == begun
        assert (objective.discriminator_loss(denoiser, batch, noise, 0.0) is not None) == begun


def test_the_loss_falls(tmp_path):
    config = tiny.autoencoder_config(
        tmp_path / "run",
        data="critters:8",
        images=60 * BATCH,
        objective=ReconstructionLoss(metric="none"),
        every=Every(log=15 * BATCH, checkpoint=10**6, seconds=0, samples=60 * BATCH),
    )
    train(config, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]
    psnr = [line["levels"]["watched"]["psnr"][-1] for line in lines]
    assert psnr[-1] > psnr[0] + 3.0
    from PIL import Image

    with Image.open(tmp_path / "run" / "samples" / f"{60 * BATCH:012d}.png") as grid:
        assert grid.size[0] > 4 * 16


def test_it_goes_on_bit_for_bit_critic_included(autoencoder, tmp_path):
    for images in (4, 8, 12):
        train(tiny.autoencoder_config(tmp_path / "run", images=images * BATCH), quiet=True)
    one, other = newest(autoencoder), newest(tmp_path / "run")
    assert one.keys() == other.keys()
    assert {"model", "ema", "discriminator"} <= one.keys()
    for part, tensors in one.items():
        assert all(torch.equal(value, other[part][name]) for name, value in tensors.items()), part

    def lines(run):
        return [
            {key: value for key, value in json.loads(line).items() if key != "time"}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]

    assert lines(autoencoder) == lines(tmp_path / "run")


def test_a_run_is_a_codec_and_no_source_of_pictures(autoencoder, tmp_path, capsys):
    codec = open_codec(autoencoder)
    assert (codec.factor, codec.channels) == (4, 4)
    ema = newest(autoencoder)["ema"]
    for name, value in codec.net.state_dict().items():
        assert torch.equal(value, ema[f"net.auto.{name}"])
    assert open_codec(max((autoencoder / "checkpoints").iterdir())).fingerprint == codec.fingerprint
    card = export(open_run(autoencoder), tmp_path / "card", half=False)
    assert open_codec(card).fingerprint == codec.fingerprint
    saved = save_codec(codec, tmp_path / "saved")
    assert open_codec(saved).fingerprint == codec.fingerprint
    assert all(is_codec(place) for place in (autoencoder, card, saved))
    assert not is_codec(tmp_path)
    with pytest.raises(UsageError, match="is an autoencoder"):
        open_run(autoencoder).denoiser(torch.zeros(1, 3, 16, 16), 0.5)
    assert main(["sample", str(autoencoder), "--n", "1", "--out", str(tmp_path / "out")]) == 2
    assert "--codec" in capsys.readouterr().err


def test_the_report(autoencoder, capsys, tmp_path):
    source = open_source("critters:16", size=16)
    found = reconstruction(open_codec(autoencoder), source, count=5, batch=2)
    again = reconstruction(open_codec(autoencoder), source, count=5, batch=5)
    assert found.psnr == pytest.approx(again.psnr, rel=1e-6)
    assert reconstruction(open_codec("identity"), source, count=3).psnr > 100.0
    assert main(["eval", str(autoencoder), "critters:16", "--n", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["psnr"] == pytest.approx(found.psnr, rel=1e-6)
    assert told["metric"] == "lite0"
    assert told["resolution"] == [16, 16]
    assert told["perceptual"] > 0.0
    assert main(["eval", str(autoencoder), "--n", "0"]) == 2
    assert main(["eval", str(autoencoder), "--size", "18"]) == 2
    assert main(["eval", str(autoencoder), "no/such/data"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "18"],
        ["--objective.kl", "-1"],
        ["--objective.metric", "no-such-metric"],
        ["--discriminator-width", "12"],
        ["--discriminator-lr", "0"],
        ["network:kl", "--network.width", "7"],
        ["--network.width", "7"],
    ],
    ids=" ".join,
)
def test_bad_options_cost_one_line(words, tmp_path, capsys):
    assert main(["train", "autoencoder", "--data", "critters:8", "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ornstein: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_runs_are_not_overwritten(autoencoder, tmp_path):
    place = shutil.copytree(autoencoder, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"--network\.width 8, not 16"):
        train(tiny.autoencoder_config(place, network=KLConfig(width=16), images=200), quiet=True)
