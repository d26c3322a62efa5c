"""First weights are a pure function of (seed, name); presets keep their size; weights survive a file."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from ornstein.errors import ConfigError
from ornstein.networks import NETWORKS, DiTConfig, TextConfig, UNetConfig, build
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig, PatchDiscriminator
from ornstein.networks.ncsnpp import NCSNppConfig

SMALL = [
    UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, classes=3, text_width=4),
    DiTConfig(width=32, depth=2, head_width=16, patch=2, time_features="fourier"),
]


@pytest.mark.parametrize("config", SMALL, ids=["unet", "dit"])
def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(config):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = build(config, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    two, other = build(config, seed=3).state_dict(), build(config, seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = [name for name in one if one[name].any() and not torch.all(one[name] == 1)]
    assert len(drawn) > 5
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_weights_of_one_shape_differ():
    weights = {}
    for name, value in build(SMALL[0]).named_parameters():
        if value.ndim > 1 and bool(value.any()):
            weights.setdefault(value.shape, []).append((name, value))
    assert max(map(len, weights.values())) > 3
    for same in weights.values():
        assert len({value.sum().item() for _, value in same}) == len(same)


def test_adding_a_condition_leaves_the_other_weights():
    plain, more = build(dataclasses.replace(SMALL[0], classes=0)), build(SMALL[0])
    theirs = more.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain.state_dict().items())


def test_weights_have_the_spread_of_their_fan_in():
    weight = build(UNetConfig.small()).get_parameter("down.1.0.residual.conv_in.weight")
    assert math.isclose(weight.std().item(), weight[0].numel() ** -0.5, rel_tol=0.02)


@pytest.mark.parametrize("config", SMALL, ids=["unet", "dit"])
def test_weights_survive_a_safetensors_file(config, tmp_path):
    net, twin = build(config, seed=1), build(config, seed=2)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x, time = torch.randn(1, 3, 16, 16), torch.ones(1)
    with torch.no_grad():
        net.head.bias += 1.0
        twin.head.bias += 1.0
    assert torch.equal(net(x, time), twin(x, time))


@pytest.mark.parametrize(("config", "count"), [(UNetConfig.small(), 2_661_932), (DiTConfig.small(), 4_165_488)])
def test_presets_keep_their_size(config, count):
    net = build(config)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net(torch.zeros(1, 3, 64, 64), torch.zeros(1)).shape == (1, 3, 64, 64)


COMMON = {"channels": 3, "out_channels": None, "classes": 0, "text_width": 0, "vector_width": 0, "dropout": 0.0}
TIMES = {"time_features": "sinusoidal", "time_scale": 1.0}
DEFAULTS = {
    UNetConfig: COMMON | TIMES | {"width": 64, "multipliers": (1, 2, 3), "blocks": 2, "attention": (2,),
                                  "head_width": 64, "patch": 1, "norm": "group", "norm_size": 0,
                                  "smooth": 0},
    DiTConfig: COMMON | TIMES | {"width": 192, "depth": 6, "head_width": 64, "expansion": 4, "patch": 4,
                                 "norm": "token", "qk_norm": False},
    KLConfig: {"channels": 3, "latent": 4, "width": 32, "multipliers": (1, 2), "blocks": 1, "patch": 2,
               "norm": "group", "smooth": 0},
    # EDM's DDPM++ and NCSN++ of CIFAR-10, with 12 channels out for UDPM's doubling.
    NCSNppConfig: {"resolution": 32, "channels": 3, "out_channels": 12, "width": 128, "multipliers": (1, 2, 2, 2),
                   "blocks": 4, "attention": (16, 8, 4), "classes": 0, "dropout": 0.0},
    TextConfig: {"vocabulary": ("a",), "length": 24, "width": 96, "layers": 1, "heads": 3},
}  # fmt: skip
REQUIRED = {NCSNppConfig: {"resolution": 32}, TextConfig: {"vocabulary": ("a",)}}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_defaults(kind):
    assert dataclasses.asdict(kind(**REQUIRED.get(kind, {}))) == DEFAULTS[kind]


def test_small_presets_pass_on_what_they_are_told():
    told = {"channels": 4, "classes": 5, "text_width": 6, "vector_width": 7, "dropout": 0.25}
    small = DEFAULTS[UNetConfig] | {"width": 32, "multipliers": (1, 2, 4), "blocks": 1, "head_width": 32, "patch": 2}
    assert dataclasses.asdict(UNetConfig.small()) == small
    assert dataclasses.asdict(UNetConfig.small(**told)) == small | told
    assert DiTConfig.small() == DiTConfig()
    assert dataclasses.asdict(DiTConfig.small(**told)) == DEFAULTS[DiTConfig] | told
    assert {f.name: f.default for f in inspect.signature(PatchDiscriminator).parameters.values()} == {
        "channels": 3, "width": 32, "layers": 3,
    }  # fmt: skip


def test_what_follows_from_a_configuration():
    unet = UNetConfig(width=8, multipliers=(1, 2, 4), blocks=(1, 2, 3), head_width=8, patch=2, norm="nonscaling",
                      norm_size=48)  # fmt: skip
    assert (unet.factor, unet.widths, unet.depths, unet.outputs) == (8, (8, 16, 32), (1, 2, 3), 3)
    assert [unet.side(level) for level in range(3)] == [24, 12, 6]
    assert dataclasses.replace(unet, blocks=2).depths == (2, 2, 2)
    assert dataclasses.replace(unet, out_channels=7).outputs == 7
    dit = DiTConfig(patch=8, channels=2)
    assert (dit.factor, dit.outputs, dataclasses.replace(dit, out_channels=5).outputs) == (8, 2, 5)
    auto = KLConfig(width=8, multipliers=(1, 3, 2), patch=4)
    assert (auto.factor, auto.widths) == (16, (8, 24, 16))
    ncsn = NCSNppConfig(resolution=32, width=8, multipliers=(1, 2, 3))
    assert list(ncsn.levels()) == [(32, 8), (16, 16), (8, 24)]


@pytest.mark.parametrize("kind", ["unet", "autoencoder"])
def test_networks_run_in_channels_last(kind):
    """Four to seven times as fast where pixels are pooled, and the answer is in the usual order again."""
    if kind == "unet":
        net, more = build(UNetConfig(width=8, multipliers=(1,), attention=())), torch.zeros(2)
        stems = [net.stem]
    else:
        net, more = KLAutoencoder(KLConfig(width=8)), torch.zeros(2, 4, 2, 2)
        stems = [net.encoder[0], net.decoder[0]]
    seen = []
    for stem in stems:
        stem.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    out = net(torch.zeros(2, 3, 8, 8), more)
    assert seen == [True] * len(stems)
    assert (out if kind == "unet" else out[0]).is_contiguous()


def test_the_registry_builds_its_own_defaults():
    for kind, network in NETWORKS.values():
        assert isinstance(build(kind()), network)


def test_something_else_is_refused():
    with pytest.raises(ConfigError, match="dict is not the configuration of a network"):
        build({})
