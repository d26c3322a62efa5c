"""The options of every method as published or chosen, what they are refused for, and the models that follow."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch

from ornstein.data import open_source
from ornstein.data.base import captions_of
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.models.cascade import CascadeSpec
from ornstein.models.consistency import ConsistencySpec
from ornstein.models.registry import MODELS, spec_class
from ornstein.models.spec import Conditioned, DenoiserSpec
from ornstein.networks import DiTConfig, TextConfig, UNetConfig
from ornstein.networks.autoencoder import KLConfig, PatchDiscriminator
from ornstein.objectives import CascadeLoss, ConsistencyLoss, Denoising
from ornstein.objectives.reconstruction import ReconstructionLoss
from ornstein.parameterizations import EDM, Clean, NoisePrediction, V, Velocity
from ornstein.paths import VE, VP, Flow
from ornstein.storage.configs import flat
from ornstein.training import METHODS, Every, Optimizer, Text, TrainConfig, to_dict
from ornstein.training.conditions import conditioning_of
from ornstein.training.config import Averaging, LatentOptions, shape_of
from ornstein.training.divergence import DivergenceConfig
from ornstein.training.methods import config_class, method_of
from ornstein.training.rarity import LinearDecayAdamW, RarityLoss
from ornstein.training.slct import Averages, CMConfig, ECTConfig, ICTConfig, RAdam, SLCTConfig

CPU = torch.device("cpu")
COMMON = {
    "data": "", "out": "x", "size": 64, "images": 1_000_000, "minutes": 0.0, "codec": "",
    "latents.statistics": "element", "latents.std": 0.5, "latents.draw": True,
    "batch": 32, "seed": 0, "flip": False, "condition": "none",
    "path": "vp-cosine", "predicts": "clean", "sigma_data": 0.5, "text.words": 4096, "text.length": 24,
    "text.width": 96, "text.layers": 1, "optimizer.lr": 1e-3, "optimizer.betas": [0.9, 0.99], "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0, "optimizer.warmup": None, "optimizer.decay": 0, "optimizer.clip": 1.0,
    "ema.sigma_rel": 0.1, "precision": "no", "every.log": None, "every.checkpoint": None, "every.seconds": 600.0,
    "every.samples": None, "keep": 2, "workers": None, "device": "auto", "strict": False, "tensorboard": True,
}  # fmt: skip
# Dao et al. 2025 and their code: RAdam of 1e-4 with coupled decay of 1e-4 and no clipping, batches of 128, levels from
# .002 to 80 (Song et al. 2023).
CONSISTENCY = {
    "batch": 128, "path": "ve", "predicts": "edm", "optimizer.lr": 1e-4, "optimizer.betas": [0.9, 0.999],
    "optimizer.weight_decay": 1e-4, "optimizer.warmup": 0, "optimizer.clip": 0.0, "optimizer.rule": "radam",
    "ema.also": [], "init_from": "", "sigma_min": 0.002, "sigma_max": 80.0, "curriculum": 1_000_000,
    "watch.outlier": 0.0, "watch.output": 10.0, "watch.surge": 100.0,
}  # fmt: skip
DEFAULTS = {
    "ddpm": {},
    "autoencoder": {"batch": 16, "path": "flow", "discriminator_width": 32, "discriminator_lr": 2e-4},
    # Um et al. 2024: AdamW of 3e-4 falling linearly to 0, decay .05, 60,000 steps of 256, 100 classes, crops and flips.
    "rarity-classifier": {
        "images": 60_000 * 256, "batch": 256, "flip": True, "path": "vp-linear", "predicts": "noise",
        "optimizer.lr": 3e-4, "optimizer.betas": [0.9, 0.999], "optimizer.weight_decay": 0.05, "optimizer.warmup": 0,
        "optimizer.over": 60_000 * 256, "every.samples": 0, "scores": "s", "classes": 100, "head": "classes",
        "features": "", "sites": ["mid.1.hidden"], "validation_fraction": 0.05, "validate": 16_384,
    },
    # Cas-DM: a map of weights in (0, 1), clean images within [−1, 1], the refiner is not shown the state.
    "cas-dm": {
        "predicts": "noise", "front": "", "back": None, "clip": 1.0, "gate": "map", "squash": "sigmoid",
        "see_state": False, "residual": False,
    },
    "slct": CONSISTENCY,
    "ict": CONSISTENCY,
    "cm": CONSISTENCY,
    "ect": CONSISTENCY | {"sigma_min": 0.0},
}  # fmt: skip
SMALL = UNetConfig.small()
PARTS = {
    "ddpm": (SMALL, Denoising()),
    "autoencoder": (KLConfig(smooth=16), ReconstructionLoss(gradients=1.0)),
    "rarity-classifier": (SMALL, RarityLoss()),
    "cas-dm": (SMALL, CascadeLoss()),
    "slct": (replace(SMALL, norm="nonscaling"), ConsistencyLoss()),
    # iCT (Song & Dhariwal 2023): pseudo-Huber of the summed distance with c = .00054·√d, 10 → 1280 intervals.
    "ict": (
        SMALL,
        ConsistencyLoss(
            distance="pseudo-huber", reduce="sum", scale="constant", base=0.00054, weight="gap", spacing="grid",
            curriculum="doubling", start=10, end=1280, rho=7.0, times="log-normal", mean=-1.1, std=2.0,
            coupling="none", diffusion=0.0, target=0.0,
        ),
    ),
    # CM (Song et al. 2023): squared distance, uniform levels, 2 → 150 intervals by the root, a target of decay .9.
    "cm": (
        SMALL,
        ConsistencyLoss(
            distance="l2", reduce="mean", scale="constant", weight="none", spacing="grid", curriculum="root", start=2,
            end=150, rho=7.0, times="uniform", coupling="none", diffusion=0.0, target=0.9,
        ),
    ),
    # ECT (Geng et al. 2024): the ratio of the levels closes from 1/2 to 1/256, c = 1e-6·√d.
    "ect": (
        SMALL,
        ConsistencyLoss(
            distance="pseudo-huber", reduce="sum", scale="constant", base=1e-6, weight="gap", spacing="ratio",
            curriculum="doubling", start=2, end=256, times="log-normal", mean=-1.1, std=2.0, coupling="none",
            diffusion=0.0, target=0.0,
        ),
    ),
}  # fmt: skip


def made(name: str, **changes) -> TrainConfig:
    needed = {"scores": "s"} if name == "rarity-classifier" else {}
    return METHODS[name].configuration(out="x", **needed, **changes)


@pytest.mark.parametrize("name", DEFAULTS)
def test_options_of_a_method(name):
    config = made(name)
    found = {
        key: value
        for key, value in flat(to_dict(config)).items()
        if not key.startswith(("network.", "objective.")) and key.rpartition(".")[2] != "kind"
    }
    assert found == COMMON | DEFAULTS[name]
    assert (config.network, config.objective) == PARTS[name]
    assert type(config).takes_latents == (name in {"ddpm", "slct", "ict", "cm", "ect"})


def test_the_loss_of_rarity():
    assert asdict(RarityLoss()) == {
        "times": "uniform", "mean": None, "std": None, "stratified": True, "label_dropout": 0.1, "crop": 0.8,
    }  # fmt: skip
    given = RarityLoss(times="log-normal", mean=0.5, std=0.25, stratified=False, label_dropout=0.75)
    assert given.posing() == Denoising(times="log-normal", mean=0.5, std=0.25, stratified=False, label_dropout=0.75)
    assert RarityLoss(crop=1.0)
    for crop in (0.0, 1.1):
        with pytest.raises(ConfigError, match=r"objective\.crop must lie in \(0, 1\]"):
            RarityLoss(crop=crop)
    with pytest.raises(ConfigError):
        RarityLoss(label_dropout=1.5)
    seen = made("rarity-classifier", features="critters").network
    assert seen == UNetConfig(width=128, multipliers=(1,), blocks=2, attention=(0,), head_width=64)


def test_methods_and_their_kinds():
    assert next(iter(METHODS)) == "ddpm"
    assert set(METHODS) >= set(DEFAULTS) | {"udpm"} == {
        "ddpm", "autoencoder", "rarity-classifier", "cas-dm", "slct", "ict", "cm", "ect", "udpm",
    }  # fmt: skip
    for name, method in METHODS.items():
        assert method_of({"kind": method.kind}) == name
        assert config_class(method.kind) is method.configuration
        assert method_of(made(name)) == name
    assert config_class(None) is config_class("nonsense") is TrainConfig
    assert spec_class(None) is spec_class("nonsense") is DenoiserSpec
    with pytest.raises(ConfigError, match="no training method has a configuration of kind 'x'"):
        method_of({"kind": "x"})


REFUSED = [
    (Optimizer, {"warmup": -1}, "optimizer.warmup must be at least 0, got -1"),
    (Optimizer, {"decay": -1}, "optimizer.decay must be at least 0, got -1"),
    (Optimizer, {"clip": -0.1}, "optimizer.clip must be at least 0, got -0.1"),
    (Optimizer, {"weight_decay": -0.1}, "optimizer.weight_decay must be at least 0, got -0.1"),
    (Optimizer, {"clip": math.nan}, "clip must be a finite number, got nan"),
    (Optimizer, {"lr": 0.0}, "optimizer.lr and optimizer.eps must be positive numbers, got 0.0 and 1e-08"),
    (Optimizer, {"eps": 0.0}, "optimizer.lr and optimizer.eps must be positive numbers, got 0.001 and 0.0"),
    (Optimizer, {"lr": math.inf}, "optimizer.lr and optimizer.eps"),
    (Optimizer, {"eps": math.inf}, "optimizer.lr and optimizer.eps"),
    (Optimizer, {"betas": (1.0, 0.9)}, "optimizer.betas must lie in [0, 1)"),
    (Optimizer, {"betas": (0.9, -0.1)}, "optimizer.betas must lie in [0, 1)"),
    (Averaging, {"sigma_rel": 0.0}, "ema.sigma_rel must lie in (0, 0.28), got 0.0"),
    (Averaging, {"sigma_rel": 0.28}, "ema.sigma_rel must lie in (0, 0.28), got 0.28"),
    (Averages, {"sigma_rel": 0.28}, "ema.sigma_rel must lie in (0, 0.28), got 0.28"),
    (Averages, {"also": (0.1, 0.4)}, "ema.also holds widths"),
    (Every, {"log": 0}, "every.log must be at least 1, got 0"),
    (Every, {"checkpoint": 0}, "every.checkpoint must be at least 1, got 0"),
    (Every, {"seconds": -1.0}, "every.seconds must be at least 0, got -1"),
    (Every, {"samples": -1}, "every.samples must be at least 0, got -1"),
    (Text, {"words": 0}, "text.words must be at least 1, got 0"),
    (Text, {"length": 0}, "text.length must be at least 1, got 0"),
    (Text, {"layers": 0}, "text.layers must be at least 1, got 0"),
    (Text, {"width": 0}, "text.width must be a multiple of 32, got 0"),
    (Text, {"width": 48}, "text.width must be a multiple of 32, got 48"),
    (LatentOptions, {"std": 0.0}, "latents.std must be positive, got 0.0"),
    (LatentOptions, {"std": math.inf}, "latents.std must be positive, got inf"),
    ("ddpm", {"size": 0}, "size must be at least 1, got 0"),
    ("ddpm", {"images": 0}, "images must be at least 1, got 0"),
    ("ddpm", {"batch": 0}, "batch must be at least 1, got 0"),
    ("ddpm", {"keep": 0}, "keep must be at least 1, got 0"),
    ("ddpm", {"codec": "c", "flip": True}, "--flip mirrors pictures, and the latents of mirrored pictures"),
    ("ddpm", {"network": DiTConfig(channels=4)}, "network.channels and network.out_channels follow from the data"),
    ("ddpm", {"network": DiTConfig(out_channels=3)}, "network.channels and network.out_channels follow from the data"),
    ("ddpm", {"network": DiTConfig(text_width=3)}, "network.text_width follows from --condition and the data"),
    ("ddpm", {"network": DiTConfig(vector_width=3)}, "network.vector_width follows from --condition and the data"),
    ("ddpm", {"path": "ve", "predicts": "clean"}, "path ve with predicts clean"),
    ("autoencoder", {"discriminator_width": 0}, "discriminator_width must be a multiple of 8, got 0"),
    ("autoencoder", {"discriminator_width": 12}, "discriminator_width must be a multiple of 8, got 12"),
    ("autoencoder", {"discriminator_lr": 0.0}, "discriminator_lr must be positive, got 0.0"),
    ("autoencoder", {"discriminator_lr": math.inf}, "discriminator_lr must be a finite number, got inf"),
    ("autoencoder", {"codec": "c"}, "--codec c: this method works on pictures"),
    ("autoencoder", {"size": 66}, "size 66 does not divide by 4"),
    ("cas-dm", {"clip": 0.0}, "clip must be positive, got 0"),
    ("cas-dm", {"clip": -0.1}, "clip must be positive, got -0.1"),
    ("cas-dm", {"clip": math.nan}, "clip must be a finite number, got nan"),
    ("cas-dm", {"back": DiTConfig(patch=5)}, "size 64 does not divide by 5"),
    ("slct", {"sigma_min": 0.0}, "sigma_min 0 has no place on a grid"),
    ("slct", {"sigma_min": -0.1}, "need 0 ≤ sigma_min < sigma_max, got -0.1 and 80"),
    ("slct", {"sigma_max": 0.002}, "need 0 ≤ sigma_min < sigma_max, got 0.002 and 0.002"),
    ("slct", {"sigma_max": math.inf}, "sigma_max must be a finite number, got inf"),
    ("slct", {"curriculum": -1}, "curriculum must not be negative, got -1"),
    ("slct", {"precision": "fp16"}, "precision fp16 cannot hold the weights"),
    ("rarity-classifier", {"every": Every(samples=1)}, "a rarity classifier draws no samples"),
    ("rarity-classifier", {"classes": 1}, "classes must be at least 2, got 1"),
    (
        "rarity-classifier",
        {"validation_fraction": -0.1},
        "validation_fraction must lie in [0, 1) and validate be at least 1, got -0.1, 16384",
    ),
    ("rarity-classifier", {"validation_fraction": 1.0}, "validation_fraction must lie in [0, 1)"),
    (
        "rarity-classifier",
        {"validate": 0},
        "validation_fraction must lie in [0, 1) and validate be at least 1, got 0.05, 0",
    ),
    ("rarity-classifier", {"condition": "text"}, "a rarity classifier takes labels or nothing"),
]


@pytest.mark.parametrize(("kind", "change", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_values_out_of_range(kind, change, message):
    with pytest.raises(ConfigError) as error:
        made(kind, **change) if isinstance(kind, str) else kind(**change)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_models_are_built_from_seed_zero():
    for kind in MODELS:
        assert inspect.signature(spec_class(kind).build).parameters["seed"].default == 0


def test_values_at_the_edges_are_taken():
    assert Optimizer(warmup=0, decay=0, clip=0.0, weight_decay=0.0, betas=(0.0, 0.0))
    assert Every(log=1, checkpoint=1, seconds=0.0, samples=0)
    assert Text(words=1, length=1, layers=1, width=32)
    assert LatentOptions(std=1e-6)
    assert made("ddpm", size=4, images=1, batch=1, keep=1, workers=0, network=DiTConfig())
    assert made("ddpm", codec="c", size=66)  # latents have a size of their own
    assert made("cas-dm", clip=None)
    assert made("rarity-classifier", classes=2, validation_fraction=0.0, validate=1)
    assert made("autoencoder", discriminator_width=8)
    assert made("slct", sigma_min=0.0, objective=ConsistencyLoss(spacing="ratio"))


def test_rates():
    both = Optimizer(lr=2.0, warmup=1000, decay=250)
    assert both.rate(0) == pytest.approx(2.0 / 1000)
    assert both.rate(499) == pytest.approx(2.0 / (499 / 250) ** 0.5 * 0.5)
    assert both.rate(999) == pytest.approx(2.0 / (999 / 250) ** 0.5)
    assert both.rate(4000) == pytest.approx(0.5)
    assert Optimizer(lr=2.0, warmup=0).rate(0) == Optimizer(lr=2.0, warmup=0).rate(10**9) == 2.0
    falling = LinearDecayAdamW(lr=2.0, warmup=100, over=400)
    assert [falling.rate(k) for k in (0, 49, 100, 300, 400, 500)] == pytest.approx(
        [0.02, 0.5 * 2 * (1 - 49 / 400), 1.5, 0.5, 0.0, 0.0]
    )
    assert LinearDecayAdamW(lr=2.0, over=-1).rate(10**9) == 2.0
    assert LinearDecayAdamW(lr=2.0, over=1).rate(1) == 0.0
    assert made("rarity-classifier", images=512, optimizer=LinearDecayAdamW(over=99)).optimizer.over == 99
    assert made("rarity-classifier", images=512, optimizer=LinearDecayAdamW(over=-1)).optimizer.over == -1


# --------------------------------------------------------------------------------------------------- models that follow


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vp-linear", VP()), ("vp-cosine", VP.cosine()), ("vp-scaled-linear", VP.scaled_linear()),
        ("vp-table", VP.table()), ("ve", VE()), ("flow", Flow()),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("predicts", "reading"),
    [
        ("noise", NoisePrediction()), ("clean", Clean()), ("v", V()), ("velocity", Velocity()),
        ("edm", EDM(sigma_data=0.25)),
    ],
)  # fmt: skip
def test_names_of_paths_and_predictions(path, expected, predicts, reading):
    spec = DenoiserSpec(shape=(3, 8, 4), path=path, predicts=predicts, sigma_data=0.25, network=DiTConfig())
    if (path, predicts) == ("flow", "noise"):  # its noisiest time has no signal
        with pytest.raises(ConfigError, match="predicts='noise' on Flow"):
            spec.denoiser(torch.nn.Identity())
        return
    found = spec.denoiser(torch.nn.Identity())
    assert (found.parameterization, found.shape) == (reading, (3, 8, 4))
    for t in (0.3, 0.7):
        assert found.path.alpha(t) == pytest.approx(expected.alpha(t), rel=1e-12)
        assert found.path.sigma(t) == pytest.approx(expected.sigma(t), rel=1e-12)


def source_of(count: int, texts: list[str] | None = None, classes: tuple[str, ...] = ()):
    """Data of nothing but captions and labels."""

    class Data:
        name, size, fingerprint = "data", 16, "f"

        def __len__(self):
            return count

        def __getitem__(self, index):
            image = torch.zeros(3, 16, 16, dtype=torch.uint8)
            return SimpleNamespace(image=image, caption=texts[index] if texts else "", label=-1, name=str(index))

    data = Data()
    data.classes = classes
    return data


def told_of(config, data):
    return conditioning_of(config.condition, config.text, data)


def test_what_a_network_is_told_follows_from_the_data():
    texts = [f"w{i} all" for i in range(10)]
    data = source_of(10, texts, ("cat", "dog", "cow"))
    assert told_of(made("ddpm"), data).options() == {"classes": 0, "text_width": 0}
    label = told_of(made("ddpm", condition="label"), data)
    assert (label.classes, label.text, label.options()) == (
        ("cat", "dog", "cow"),
        None,
        {"classes": 3, "text_width": 0},
    )
    asked = Text(words=4, length=7, width=160, layers=2)
    text = told_of(made("ddpm", condition="text", text=asked), data)
    assert text.text == TextConfig(vocabulary=("all", "w0", "w1", "w2"), length=7, width=160, layers=2, heads=5)
    assert text.options() == {"classes": 0, "text_width": 160}
    assert captions_of(data) == texts
    for condition, bare in (("label", source_of(3)), ("text", source_of(3))):
        with pytest.raises(ConfigError, match=f"--condition {condition}: data has no"):
            told_of(made("ddpm", condition=condition), bare)


def test_a_model_of_this_data():
    data = source_of(3, ["a"] * 3, ("cat", "dog"))
    spec = made("ddpm", size=16, condition="label", path="flow", predicts="velocity", sigma_data=0.25).specify(data)
    assert spec == DenoiserSpec(
        shape=(3, 16, 16), path="flow", predicts="velocity", sigma_data=0.25, network=replace(SMALL, classes=2),
        classes=("cat", "dog"),
    )  # fmt: skip
    assert shape_of(data) == (3, 16, 16)
    latent = source_of(3)
    latent.shape = (4, 16, 8)
    assert shape_of(latent) == (4, 16, 8)
    found = made("ddpm", codec="c", size=64).specify(latent)
    assert (found.shape, found.network) == ((4, 16, 8), replace(SMALL, channels=4))
    with pytest.raises(ConfigError, match="size 8 does not divide by 16"):
        made("ddpm", codec="c", network=DiTConfig(patch=16)).specify(latent)
    text = Text(width=32)
    spec = made("ddpm", size=16, condition="text", text=text, network=DiTConfig(width=32, head_width=16)).specify(data)
    labels, words = torch.tensor([1, 0]), ["a", "b a"]
    assert spec.conditions(labels, words).keys() == {"words"}
    assert torch.equal(spec.conditions(labels, words)["words"], spec.text.encode(words))
    assert replace(spec, text=None).conditions(labels, words) == {}
    labelled = replace(spec, text=None, classes=("cat", "dog")).conditions(labels, words)
    assert labelled == {"label": labels}
    model = spec.build(3)
    assert spec.parts(model) == [list(model.parameters())]
    assert spec.with_sampling_config({"anything": 1}) is spec
    again = spec.build(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = spec.build(4)
    assert not torch.equal(model.text.word.weight, other.text.word.weight)
    assert not torch.equal(model.net.stem.weight, other.net.stem.weight)


def test_a_conditioned_network_is_told_one_thing():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, time, **cond):
            seen.append(cond)
            return x

    spec = TextConfig(vocabulary=("a", "b"), width=32, heads=1)
    from ornstein.networks import TextEncoder

    model = Conditioned(Net(), TextEncoder(spec))
    x, words = torch.zeros(2, 3, 4, 4), spec.encode(["a", ""])
    model(x, x, label=torch.ones(2))
    model(x, x, words=words, stage="front")
    model(x, x, more=1)
    Conditioned(Net(), None)(x, x, words=words)
    assert [sorted(cond) for cond in seen] == [["label"], ["stage", "text", "text_mask"], ["more"], []]
    assert seen[1]["text_mask"].tolist() == [[True] + [False] * 23, [False] * 24]


def test_a_cascade_of_this_data():
    data = open_source("critters:4", size=16)
    given = {"size": 16, "condition": "label", "path": "flow", "predicts": "v", "sigma_data": 0.25}
    spec = made("cas-dm", **given).specify(data)
    alone = made("ddpm", **given).specify(data)
    back = replace(SMALL, channels=3, out_channels=4, classes=len(data.classes))
    assert spec == CascadeSpec(**{f.name: getattr(alone, f.name) for f in fields(alone)}, back=back)
    assert (spec.clip, spec.gate, spec.squash, spec.see_state, spec.residual, spec.frozen) == (
        1.0, "map", "sigmoid", False, False, False,
    )  # fmt: skip
    other = {"clip": None, "gate": "scalar", "squash": "none", "see_state": True, "residual": True}
    small = DiTConfig(width=32, depth=1, head_width=16)
    changed = made("cas-dm", **given, **other, back=small).specify(data)
    assert changed.back == replace(small, channels=6, out_channels=4, classes=len(data.classes))
    reading = changed.denoiser(torch.nn.Identity()).parameterization
    assert (reading.clip, reading.gate, reading.squash, reading.see_state, reading.residual, reading.front) == (
        None, "scalar", "none", True, True, V(),
    )  # fmt: skip
    model = spec.build(5)
    plain = alone.build(5)
    assert all(torch.equal(a, b) for a, b in zip(model.net.front.parameters(), plain.net.parameters(), strict=True))
    front, second = spec.parts(model)
    assert [id(p) for p in second] == [id(p) for p in model.net.back.parameters()]
    assert [id(p) for p in front] == [id(p) for p in model.net.front.parameters()]
    assert not torch.equal(model.net.back.stem.weight, model.net.front.stem.weight)
    frozen = replace(spec, frozen=True).build(5)
    assert {p.requires_grad for p in frozen.net.front.parameters()} == {False}
    assert {p.requires_grad for p in frozen.net.back.parameters()} == {True}
    captioned = made("cas-dm", size=16, condition="text", text=Text(width=32)).specify(data)
    assert (captioned.back.text_width, captioned.back.classes) == (32, 0)
    both = replace(captioned, frozen=True).build(5)
    assert {p.requires_grad for p in both.text.parameters()} == {False}
    parts = captioned.parts(captioned.build(5))
    assert sum(map(len, parts)) == len(list(captioned.build(5).parameters()))
    assert len(parts[0]) > len(front)  # the caption encoder is the front's


def test_an_autoencoder_of_this_data():
    config = made("autoencoder", size=16, network=KLConfig(width=8), seed=7)
    spec = config.specify(source_of(3))
    assert (spec.shape, spec.network) == ((3, 16, 16), KLConfig(width=8))
    model = spec.build(2)
    same = spec.build(2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert model.net.latent_shape((3, 16, 24)) == (4, 4, 6)
    images = torch.rand(6, 3, 16, 16) * 4 - 2
    shown = spec.show(model, images)
    again = model.net(images, torch.zeros(6))[0].clamp(-1, 1)
    assert again.abs().max() > 0.0
    # Rows of four, each above its reconstructions.
    expected = torch.cat((images[:4], again[:4], images[4:], again[4:]))
    assert torch.equal(shown, expected)
    assert not shown.requires_grad
    with torch.no_grad():
        model.net.auto.to_pixels.bias.fill_(3.0)
    assert spec.show(model, images)[4:8].max() == 1.0  # what is shown lies within the range
    assert isinstance(spec.denoiser(model.net).path, Flow)
    for ask in (
        lambda reading: reading.precondition(Flow(), images, 0.5),
        lambda reading: reading.to_estimate(Flow(), images, 0.5, images),
        lambda reading: reading.target(Flow(), images, images, images, 0.5),
    ):
        with pytest.raises(UsageError, match="an autoencoder, which makes no pictures"):
            ask(spec.denoiser(model.net).parameterization)
    assert config.discriminator_settings() == Optimizer(lr=2e-4, betas=(0.5, 0.9), warmup=0)
    assert replace(config, discriminator_lr=1e-3).discriminator_settings().lr == 1e-3
    plain = ReconstructionLoss(metric="none")
    assert replace(config, objective=plain).make_objective(None, CPU, {}).discriminator is None
    judged = replace(config, objective=replace(plain, adversarial=1e-9), discriminator_width=16)
    critic = judged.make_objective(None, CPU, {}).discriminator
    assert isinstance(critic, PatchDiscriminator)
    assert critic.body[0].out_channels == 16
    twin, third = (
        judged.make_objective(None, CPU, {}).discriminator,
        replace(judged, seed=8).make_objective(None, CPU, {}).discriminator,
    )
    assert torch.equal(twin.body[0].weight, critic.body[0].weight)
    assert not torch.equal(third.body[0].weight, critic.body[0].weight)


def test_a_consistency_model_of_this_data():
    data = source_of(3)
    spec = made("slct", size=16).specify(data)
    assert (spec.sigma_min, spec.sigma_max, spec.middle, spec.time_input) == (0.002, 80.0, (0.53,), "log")
    assert spec.network == replace(SMALL, norm="nonscaling")
    path = spec.denoiser(torch.nn.Identity()).path
    assert (path.sigma_min, path.sigma_max) == (0.002, 80.0)
    own = made("slct", size=16, sigma_min=0.01, sigma_max=50.0).specify(data).denoiser(torch.nn.Identity()).path
    assert (own.sigma_min, own.sigma_max) == (0.01, 50.0)
    tuned = made("ect", size=16).specify(data)
    assert tuned.sigma_min == 0.0
    assert tuned.denoiser(torch.nn.Identity()).path.sigma_min == VE().sigma_min
    config = made("slct", images=1000, batch=128)
    assert (config.curriculum, config.steps) == (1000, 7)
    assert made("slct", images=5, batch=128).steps == 1
    longer = made("slct", images=2000, curriculum=1000, batch=100)
    loss = longer.make_objective(None, CPU, {})
    assert (longer.steps, loss.steps, loss.of, loss.sigma_max) == (10, 10, 20.0, 80.0)
    assert loss.loss == longer.objective
    watching = made("slct", watch=DivergenceConfig(outlier=7.0)).monitor()
    assert watching.watch == DivergenceConfig(outlier=7.0)
    assert made("ddpm").monitor() is None
    averages = made("cm", ema=Averages(also=(0.05, 0.9))).averages()
    assert list(averages) == ["ema-0.05", "ema-0.9", "target"]
    assert averages["ema-0.9"](1000) == 0.9
    assert made("slct").averages() == {}
    for kind in (ICTConfig, CMConfig, ECTConfig):
        assert issubclass(kind, SLCTConfig)
    assert made("slct", optimizer=RAdam(rule="adamw")).optimizer.rule == "adamw"
    settled = ConsistencySpec(shape=(3, 8, 8), path="ve", predicts="edm", network=SMALL)
    assert settled.with_sampling_config({"middle": [0.8, 0.3]}).middle == (0.8, 0.3)
    for found in (None, {"middle": [0.002]}, {"middle": [1]}, {"middle": 0.5}):
        with pytest.raises(CheckpointError, match="holds no middle levels"):
            settled.with_sampling_config(found)
