"""The rarity classifier as a method of the trainer: learns, resumes, opens, guides; features and labels (H8, H10)."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein import guidance, rarity
from ornstein.cli.main import main
from ornstein.errors import CheckpointError, ConfigError, DataError, UsageError
from ornstein.models.rarity import RaritySpec
from ornstein.models.rarity_network import RunFeatures
from ornstein.models.spec import DenoiserSpec
from ornstein.modulation import modulated
from ornstein.networks import UNetConfig
from ornstein.randomness import Noise
from ornstein.runs import export, open_run
from ornstein.training import Every, TrainConfig, read_config, to_dict, train
from ornstein.training.rarity import LinearDecayAdamW, RarityConfig, RarityLoss, classify

BATCH = 16
NETWORK = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8, patch=2)


def config(out: Path, scores: Path, **changes) -> RarityConfig:
    given = {
        "data": "critters:96",
        "scores": str(scores),
        "out": str(out),
        "size": 16,
        "images": 6 * BATCH,
        "batch": BATCH,
        "classes": 3,
        "validation_fraction": 0.2,
        "validate": 3 * BATCH,
        "network": NETWORK,
        "every": Every(log=3 * BATCH, checkpoint=3 * BATCH, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    }
    return RarityConfig(**given | changes)


@pytest.fixture(scope="module")
def model_run(tmp_path_factory) -> Path:
    """A tiny labelled run that makes images."""
    out = tmp_path_factory.mktemp("model") / "run"
    train(
        TrainConfig(
            data="critters:96",
            out=str(out),
            size=16,
            images=32,
            batch=16,
            condition="label",
            network=NETWORK,
            every=Every(log=32, samples=0),
            tensorboard=False,
        ),
        quiet=True,
    )
    return out


@pytest.fixture(scope="module")
def learned(tmp_path_factory, brightness) -> Path:
    """A classifier that has learned something: ten seconds."""
    out = tmp_path_factory.mktemp("learned") / "run"
    train(
        config(
            out,
            brightness,
            images=150 * 32,
            batch=32,
            network=replace(NETWORK, width=16, head_width=16),
            optimizer=LinearDecayAdamW(lr=5e-3),
            objective=RarityLoss(crop=1.0),
            validate=2400,
            every=Every(log=2400, checkpoint=9600, seconds=0, samples=0),
        ),
        quiet=True,
    )
    return out


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_knows_less_in_more_noise(learned):
    """H10, on examples that were held out, and at pure noise."""
    last = log_of(learned)[-1]["validation"]
    assert last["examples"] == 18
    low, high = np.mean(last["accuracy"][:2]), np.mean(last["accuracy"][-3:])
    assert high > 0.6, last
    assert high > low + 0.1, last
    assert last["loss"][0] > last["loss"][-1]
    classifier = rarity.load(learned)
    x = Noise.of(0, range(64)).normal("x", (3, 16, 16))
    spread = torch.softmax(classifier(x, torch.full((64,), -10.0)), 1).std(0).max()
    assert float(spread) < 0.1


def test_its_guidance_moves_samples(learned, model_run):
    """Dark images are rare here: guided samples are darker, and classes are in order."""
    model, classifier = orn.load(model_run), rarity.load(learned)
    means = [
        float(orn.sample(guidance.Minority(classifier, target, 60.0)(model), 8, sampler="ddim", steps=8).mean())
        for target in (0, -1)
    ]
    plain = float(orn.sample(model, 8, sampler="ddim", steps=8).mean())
    assert means[1] < plain < means[0]


def test_a_run_is_a_classifier_and_no_model(learned, model_run, brightness, tmp_path):
    run = open_run(learned)
    assert isinstance(run.spec, RaritySpec)
    classifier = rarity.load(export(run, tmp_path / "card"))
    assert (classifier.rarities, classifier.labels) == (3, ())
    assert [classifier.number(k) for k in (-1, 0, 2)] == [2, 0, 2]
    with pytest.raises(UsageError, match="rarity class 3"):
        guidance.Minority(classifier, 3)
    with pytest.raises(UsageError, match="makes no images"):
        orn.sample(run.denoiser, 1)
    with pytest.raises(UsageError, match="no rarity classifier"):
        rarity.load(model_run)
    with pytest.raises(ConfigError, match="needs a rarity classifier"):
        guidance.Minority(torch.nn.Identity())
    found = read_config(json.loads((learned / "config.json").read_text())["train"])
    assert to_dict(found) == json.loads((learned / "config.json").read_text())["train"]


@pytest.mark.parametrize("head", ["classes", "gaussian"])
def test_the_gradient_is_that_of_the_logarithm(learned, head):
    """H8: by finite differences; a sample's gradient does not depend on its neighbours."""
    spec = replace(open_run(learned).spec, head=head)
    net = spec.build(3).net
    with torch.no_grad():
        for name, weight in net.named_parameters():  # what begins at zero would hide everything behind it
            if weight.ndim > 1 and not weight.any():
                weight.copy_(0.2 * Noise.of(5, [0]).normal(name, weight.shape)[0])
    classifier = rarity.RarityClassifier(net=net, spec=spec)
    x = Noise.of(0, range(3)).normal("x", (3, 16, 16)).requires_grad_()
    level = torch.tensor([-3.0, 0.0, 3.0])
    (gradient,) = torch.autograd.grad(classifier.log_likelihood(x, level, 1).sum(), x)
    way = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        ends = [classifier.log_likelihood(x + h * way, level, 1) for h in (3e-2, -3e-2)]
    torch.testing.assert_close((gradient * way).flatten(1).sum(1), (ends[0] - ends[1]) / 6e-2, rtol=5e-3, atol=1e-4)
    alone = x[1:2].detach().requires_grad_()
    (single,) = torch.autograd.grad(classifier.log_likelihood(alone, level[1:2], 1).sum(), alone)
    torch.testing.assert_close(single, gradient[1:2], rtol=1e-4, atol=1e-6)


def test_a_stopped_training_goes_on_bit_for_bit(brightness, tmp_path):
    """The same weights and the same log, validation included."""
    from safetensors.torch import load_file

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    optimizer = LinearDecayAdamW(over=6 * BATCH)
    train(config(whole, brightness, optimizer=optimizer), quiet=True)
    train(config(parts, brightness, optimizer=optimizer, images=3 * BATCH), quiet=True)
    train(config(parts, brightness, optimizer=optimizer), quiet=True)
    one, two = (load_file(max((run / "checkpoints").iterdir()) / "ema.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [[{k: v for k, v in line.items() if k != "time"} for line in log_of(run)] for run in (whole, parts)]
    assert logs[0] == logs[1]
    assert all("validation" in line for line in logs[0])
    with pytest.raises(ConfigError, match="optimizer"):
        train(config(parts, brightness, images=12 * BATCH), quiet=True)


def test_the_rate_falls_to_zero(brightness, tmp_path):
    rate = config(tmp_path, brightness, images=1000).optimizer.rate
    assert [rate(k) for k in (0, 500, 1000)] == pytest.approx([3e-4, 1.5e-4, 0.0])
    assert LinearDecayAdamW(over=-1).rate(10**9) == 3e-4


def test_defaults_are_those_of_the_paper():
    found = RarityConfig(scores="s.csv", out="x")
    assert (found.classes, found.batch, found.images) == (100, 256, 60_000 * 256)
    assert (found.optimizer.lr, found.optimizer.weight_decay, found.validation_fraction) == (3e-4, 0.05, 0.05)
    cascade = RarityConfig(scores="s.csv", out="x", features="critters").network
    assert (cascade.width, cascade.multipliers, cascade.blocks) == (128, (1,), 2)


@pytest.mark.parametrize("features", ["run", "lite0"])
def test_a_cascade_looks_through_a_frozen_network(brightness, model_run, tmp_path, features):
    where = str(model_run) if features == "run" else features
    network = UNetConfig(width=16, multipliers=(1,), blocks=1, attention=(0,), head_width=16)
    asked = config(
        tmp_path / "run", brightness, features=where, sites=("mid.1.hidden", "down.0.0.hidden"), network=network
    )
    train(asked, quiet=True)
    classifier = rarity.load(tmp_path / "run")
    x = Noise.of(0, range(2)).normal("x", (3, 16, 16))
    assert classifier(x, torch.zeros(2)).shape == (2, 3)
    names = [name for name, _ in classifier.net.named_parameters()]
    assert any(name.startswith("features.") for name in names) == (features == "run")
    if features == "run":
        given = open_run(model_run).model.net.state_dict()
        kept = classifier.net.features.net.state_dict()
        assert all(torch.equal(kept[name], given[name]) for name in given), "the run's average, not trained"
        model_path = orn.load(model_run).path
        seen = classifier.net.features(x, torch.tensor([0.0, 2.0]))
        assert seen.shape == (2, 24, 4, 4)
        lower = classifier.net.features(x[1:], torch.tensor([2.0]))
        torch.testing.assert_close(seen[1:], lower, rtol=1e-4, atol=1e-5)
        assert model_path.log_snr(model_path.t_range[1]) < 0
    guided = guidance.Minority(classifier, -1, 2.0)(orn.load(model_run))
    assert orn.sample(guided, 2, steps=3).isfinite().all()


@pytest.mark.parametrize("name", ["vp-cosine", "ve", "flow"])
def test_what_the_networks_are_shown_on_every_path(name):
    """A feature network its own path's state at the level asked for; the classifier the state of unit variance."""
    spec = DenoiserSpec(shape=(3, 16, 16), path=name, predicts="v", network=NETWORK)
    net, level, site = spec.build().net, torch.tensor([-1.5, 2.0], dtype=torch.float64), "mid.1.hidden"
    model, noise = spec.denoiser(net), Noise.of(0, range(2))
    path, seen, shown = model.path, [], []
    t = path.time_of(level)
    x = path.diffuse(0.5 * noise.normal("x", spec.shape), t, noise.normal("z", spec.shape))
    unit = x / (path.alpha(t) ** 2 + path.sigma(t) ** 2).sqrt().float()[:, None, None, None]
    with torch.no_grad():
        features = RunFeatures(spec, net, [site])(unit, level)
        with modulated(net, {site: lambda feature, site, t: seen.append(feature) or feature}):
            model.raw(x, t)
    torch.testing.assert_close(features, seen[0], rtol=1e-4, atol=1e-5)
    classify(replace(model, net=lambda *fed: shown.append(fed) or fed[0]), x, t, {})
    torch.testing.assert_close(shown[0][0], unit, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shown[0][1].double(), level, rtol=1e-5, atol=1e-5)


def test_the_gaussian_head_aims_at_the_middle_of_its_class():
    """log N(Φ⁻¹((k + ½)/L); μ, s) up to a constant; the classes' middles are symmetric about the median."""
    from statistics import NormalDist
    from types import SimpleNamespace

    raw = torch.tensor([[0.3, -0.2], [-1.0, 0.4]])
    spec = SimpleNamespace(head="gaussian", rarities=4, classes=())
    classifier = rarity.RarityClassifier(net=lambda state, log_snr: raw, spec=spec)
    for target in range(4):
        goal = NormalDist().inv_cdf((2 * target + 1) / 8)
        law = torch.distributions.Normal(raw[:, 0], raw[:, 1].exp())
        found = classifier.log_likelihood(torch.zeros(2, 3, 4, 4), torch.zeros(2), target)
        torch.testing.assert_close(found - 0.5 * math.log(2 * math.pi), law.log_prob(torch.tensor(goal)))


def test_held_out_images_are_not_trained_on(brightness, source, tmp_path):
    asked = config(tmp_path / "run", brightness)
    trained, validation = asked.select(source, torch.device("cpu"))
    held = validation.rows
    assert len(held) == 18, "a fifth of three classes of 32, rounded"
    assert sorted((*held, *trained.rows)) == list(range(96))


def test_a_classifier_that_is_told_labels(brightness, model_run, tmp_path):
    train(config(tmp_path / "run", brightness, condition="label", head="gaussian"), quiet=True)
    classifier = rarity.load(tmp_path / "run")
    run = open_run(model_run)
    assert classifier.labels == run.classes
    with torch.no_grad():
        classifier.net.encoder.embedding.label.weight.mul_(30.0)
        classifier.net.encoder.head.weight.copy_(torch.ones(2, 16) * torch.tensor([[0.5], [0.1]]))
    model = guidance.Minority(classifier, -1, 5.0)(run.denoiser)
    one, two, none = (
        orn.sample(model, 2, steps=3, cond=run.cond(labels=[k] * 2))
        - orn.sample(run.denoiser, 2, steps=3, cond=run.cond(labels=[k] * 2))
        for k in (0, 5, -1)
    )
    assert not torch.allclose(one, two, atol=1e-6)
    assert not torch.allclose(one, none, atol=1e-6)


def test_what_is_refused(brightness, model_run, learned, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(DataError, match="other data"):
        train(config(out, brightness, data="critters:80"), quiet=True)
    with pytest.raises(ConfigError, match="draws no samples"):
        config(out, brightness, every=Every(samples=5))
    with pytest.raises(ConfigError, match="labels or nothing"):
        config(out, brightness, condition="text")
    with pytest.raises(ConfigError, match="at least 2"):
        config(out, brightness, classes=1)
    with pytest.raises(ConfigError, match="no site"):
        train(config(out, brightness, features=str(model_run), sites=("nowhere",)), quiet=True)
    with pytest.raises(ConfigError, match="classifier itself"):
        train(config(out, brightness, features=str(learned)), quiet=True)
    with pytest.raises(ConfigError, match="makes images of 64 pixels"):
        train(config(out, brightness, features="critters"), quiet=True)
    with pytest.raises(CheckpointError):
        train(config(out, brightness, features="nothing"), quiet=True)
    assert not out.exists(), "a run that cannot begin leaves no folder"


def test_a_classifier_that_does_not_fit_the_model_is_refused_before_anything_is_drawn(learned, model_run, monkeypatch):
    from ornstein.cli.guides import read_guides

    run, classifier = open_run(model_run), rarity.load(learned)
    words = {
        "sources": (),
        "differentiate_through": "network",
        "backward": None,
        "window": None,
        "placement": "joint",
        "resample": 1,
    }
    monkeypatch.setattr("ornstein.runs.rarity.load", lambda where, device: found)

    found = classifier
    assert read_guides(run, guide=["rarity:x"], **words).guides.guidances
    with pytest.raises(UsageError, match="descends on energies"):
        read_guides(run, guide=["rarity:x"], **words | {"backward": "3"})
    with pytest.raises(UsageError, match="takes none"):
        read_guides(run, guide=["rare-token:3"], **words)

    found = replace(classifier, spec=replace(classifier.spec, classes=run.classes))
    assert read_guides(run, guide=["rarity:x"], **words).guides.guidances
    found = replace(classifier, spec=replace(classifier.spec, classes=run.classes[::-1]))
    with pytest.raises(UsageError, match="other labels"):
        read_guides(run, guide=["rarity:x"], **words)

    class Halving:
        factor, channels = 2, 3

        def decode(self, latent):
            return torch.nn.functional.interpolate(latent, scale_factor=2.0)

    found = classifier
    latents = replace(run, denoiser=replace(run.denoiser, shape=(3, 8, 8), codec=Halving()))
    with pytest.raises(UsageError, match="model of latents"):
        read_guides(latents, guide=["rarity:x"], **words)


def test_more_classes_than_images_are_refused(brightness, tmp_path, capsys):
    """Most of them would be empty; equal numbers are possible."""
    words = f"train rarity-classifier --scores {brightness} --data critters:96 --out {tmp_path / 'run'} --size 16"
    assert main([*words.split(), "--classes", "1000"]) == 2
    err = capsys.readouterr().err
    assert err == "ornstein: --classes 1000 needs as many images with a score, got 96: ask for fewer\n"
    assert not (tmp_path / "run").exists()


def test_the_command_trains(brightness, tmp_path, capsys):
    words = f"train rarity-classifier --scores {brightness} --data critters:96 --out {tmp_path / 'run'} --size 16"
    more = "--images 32 --batch 16 --classes 3 --no-tensorboard --network unet --network.width 8 --network.head-width 8"
    shape = "--network.multipliers 1 2 --network.attention --network.patch 2"
    status = main([*words.split(), *more.split(), *shape.split()])
    assert status == 0, capsys.readouterr().err
    assert rarity.load(tmp_path / "run").rarities == 3
    assert main(["sample", str(tmp_path / "run"), "--n", "1", "--out", str(tmp_path / "x")]) == 2
    assert "makes no images" in capsys.readouterr().err
