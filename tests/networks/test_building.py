"""First weights are a pure function of (seed, name); presets keep their size; weights survive a file."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from ornstein.errors import ConfigError
from ornstein.networks import NETWORKS, DiTConfig, UNetConfig, build

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


@pytest.mark.parametrize(
    ("config", "least", "most"), [(UNetConfig.small(), 2.2e6, 4.5e6), (DiTConfig.small(), 2.2e6, 4.5e6)]
)
def test_presets_keep_their_size(config, least, most):
    net = build(config)
    assert least <= sum(p.numel() for p in net.parameters()) <= most
    assert net(torch.zeros(1, 3, 64, 64), torch.zeros(1)).shape == (1, 3, 64, 64)


def test_the_registry_builds_its_own_defaults():
    for kind, network in NETWORKS.values():
        assert isinstance(build(kind()), network)


def test_something_else_is_refused():
    with pytest.raises(ConfigError, match="dict is not the configuration of a network"):
        build({})
