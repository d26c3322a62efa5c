"""Laws of the U-Net."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.modulation import modulated, sites
from ornstein.networks import UNetConfig, build

TINY = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16)
FULL = dataclasses.replace(TINY, classes=4, text_width=6, vector_width=5, patch=2)


def perturbed(config, seed=0, scale=0.1):
    """A network none of whose weights is zero, so that no path is closed."""
    net = build(config, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return net


def inputs(config, batch=3, size=16):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, config.channels, size, size, generator=generator)
    cond = {}
    if config.classes:
        cond["label"] = torch.arange(batch) % (config.classes + 1) - 1
    if config.text_width:
        cond["text"] = torch.randn(batch, 4, config.text_width, generator=generator)
        cond["text_mask"] = torch.arange(4)[None] < torch.arange(batch)[:, None]
    if config.vector_width:
        cond["vector"] = torch.randn(batch, config.vector_width, generator=generator)
    return x, torch.linspace(1.0, 900.0, batch), cond


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, (16, 16)),
        ({"channels": 1, "out_channels": 5}, (8, 12)),
        ({"multipliers": (1,), "attention": ()}, (5, 7)),
        ({"multipliers": (1, 2, 3), "blocks": (1, 2, 1), "attention": (0, 2)}, (12, 8)),
        ({"patch": 4, "norm": "rms"}, (24, 8)),
        ({"norm": "nonscaling", "time_features": "fourier", "time_scale": 16.0}, (8, 8)),
        ({"norm": "none", "width": 24, "head_width": 8, "dropout": 0.5}, (10, 10)),
    ],
)
def test_shapes(change, size):
    config = dataclasses.replace(TINY, **change)
    out = build(config)(torch.randn(2, config.channels, *size), torch.tensor([0.1, 0.9]))
    assert out.shape == (2, config.outputs, *size)
    assert out.is_contiguous()


def test_the_output_starts_at_exactly_zero():
    x, time, cond = inputs(FULL)
    assert torch.equal(build(FULL)(x, time, **cond), torch.zeros_like(x))


@pytest.mark.parametrize("norm", ["group", "rms", "nonscaling", "none"])
def test_gradients_reach_every_parameter(norm):
    config = dataclasses.replace(FULL, norm=norm)
    net = perturbed(config)
    x, time, cond = inputs(config, batch=6)
    net(x, time, **cond).square().sum().backward()
    unreached = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert unreached == []


def test_missing_conditions_are_the_null_ones():
    net = perturbed(FULL)
    x, time, _ = inputs(FULL)
    bare = net(x, time)
    nothing = {
        "label": torch.full((3,), -1),
        "text": torch.randn(3, 4, 6),
        "text_mask": torch.zeros(3, 4, dtype=torch.bool),
        "vector": torch.zeros(3, 5),
    }
    torch.testing.assert_close(net(x, time, **nothing), bare, rtol=0, atol=1e-5)
    assert torch.equal(net(x, time, label=nothing["label"]), bare)


@pytest.mark.parametrize("name", ["label", "text", "vector", "time"])
def test_every_condition_matters(name):
    net = perturbed(FULL)
    x, time, cond = inputs(FULL)
    cond["text_mask"][:, 0] = True  # every row has a word
    other = {**cond, "time": time}
    other[name] = other[name].roll(1, 0)
    changed = net(x, other.pop("time"), **other)
    assert (changed - net(x, time, **cond)).abs().amax(dim=(1, 2, 3)).min() > 1e-5


def test_padded_tokens_have_no_influence():
    net = perturbed(FULL)
    x, time, cond = inputs(FULL)
    before = net(x, time, **cond)
    cond["text"] = torch.where(cond["text_mask"][..., None], cond["text"], 1e3)
    torch.testing.assert_close(net(x, time, **cond), before, rtol=0, atol=1e-6)
    padded = {
        "text": torch.cat((cond["text"], torch.ones(3, 5, 6)), 1),
        "text_mask": torch.zeros(3, 9, dtype=torch.bool),
    }
    padded["text_mask"][:, :4] = cond["text_mask"]
    torch.testing.assert_close(net(x, time, **{**cond, **padded}), before, rtol=0, atol=1e-5)


def test_rows_of_a_batch_are_independent():
    net = perturbed(FULL).double()
    x, time, cond = inputs(FULL)
    x, cond = x.double(), {name: value.double() if value.is_floating_point() else value for name, value in cond.items()}
    whole = net(x, time, **cond)
    for i in range(3):
        row = {name: value[i : i + 1] for name, value in cond.items()}
        torch.testing.assert_close(net(x[i : i + 1], time[i : i + 1], **row), whole[i : i + 1], rtol=0, atol=1e-10)
    order = torch.tensor([2, 0, 1])
    permuted = net(x[order], time[order], **{name: value[order] for name, value in cond.items()})
    torch.testing.assert_close(permuted, whole[order], rtol=0, atol=1e-10)


def test_sites_are_visited_once_each_in_the_order_listed():
    config = dataclasses.replace(TINY, multipliers=(1, 2, 2), blocks=(2, 1, 2))
    net, seen = build(config), []

    def spy(feature, site, t):
        seen.append((site, feature.shape[1], t))
        return feature

    time = torch.tensor([3.0])
    with modulated(net, {"*": spy}):
        net(torch.zeros(1, 3, 16, 16), time)
    assert tuple(site for site, _, _ in seen) == sites(net)
    assert len(set(sites(net))) == len(sites(net))
    assert all(t is time for _, _, t in seen)
    channels = {site: width for site, width, _ in seen}
    assert channels["down.0.1.hidden"] == channels["up.0.0.skip"] == channels["up.0.1.backbone"] == 16
    assert channels["down.0.2.hidden"] == channels["mid.1.hidden"] == channels["up.1.0.hidden"] == 32
    assert channels["up.1.1.hidden"] == 16


def test_a_skip_is_the_encoder_feature_of_its_name():
    config = dataclasses.replace(TINY, multipliers=(1, 2), blocks=(2, 1))
    net, seen = perturbed(config), {}

    def keep(feature, site, t):
        seen[site] = feature
        return feature

    with modulated(net, {"*": keep}):
        net(torch.randn(1, 3, 8, 8), torch.tensor([3.0]))
    assert seen["up.0.0.skip"] is seen["down.0.1.hidden"]
    assert seen["up.0.1.skip"] is seen["down.0.0.hidden"]
    assert seen["up.1.0.skip"] is seen["down.1.0.hidden"]
    assert seen["up.1.0.backbone"] is seen["mid.1.hidden"]
    assert seen["up.0.1.backbone"] is seen["up.0.0.hidden"]


def test_identity_modulation_changes_no_bit_and_a_real_one_does():
    net = perturbed(FULL)
    x, time, cond = inputs(FULL)
    plain = net(x, time, **cond)
    with modulated(net, {"*": lambda feature, site, t: feature}):
        assert torch.equal(net(x, time, **cond), plain)
    for site in sites(net):
        with modulated(net, {site: lambda feature, site, t: 0.5 * feature}):
            assert not torch.equal(net(x, time, **cond), plain), site
    assert torch.equal(net(x, time, **cond), plain)


@pytest.mark.parametrize("norm", ["group", "rms", "nonscaling"])
def test_bf16_is_close_to_fp32_and_returns_fp32(norm):
    config = dataclasses.replace(FULL, norm=norm)
    net = perturbed(config, scale=0.02)
    x, time, cond = inputs(config)
    exact = net(x, time, **cond)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, time, **cond)
        rough.square().mean().backward()
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean() < 1e-3 * exact.square().mean()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("norm", ["group", "rms", "nonscaling"])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float16, 1e-2), (torch.bfloat16, 8e-2), (torch.float64, 1e-4)], ids=str
)
def test_the_network_as_a_whole_in_another_precision(dtype, error, norm):
    net = perturbed(dataclasses.replace(FULL, norm=norm))
    x, time, cond = inputs(net.config)
    exact = net(x, time, **cond)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
    rough = net.to(dtype)(x.to(dtype), time, **cast)
    assert rough.dtype == dtype
    assert (rough - exact).square().mean().sqrt() < error * exact.square().mean().sqrt()
    # Rounded frequencies would be wrong by most of a turn at late times.
    assert net.embedding.time.frequencies.dtype == torch.promote_types(dtype, torch.float32)


def test_one_batch_is_learned():
    config = dataclasses.replace(FULL, text_width=0)
    net = build(config).train()
    x, time, cond = inputs(config, batch=8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = (net(x, time, **cond) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 12}, "width=12 does not divide by 8"),
        ({"width": 0}, "width=0 is out of range"),
        ({"multipliers": ()}, "multipliers=()"),
        ({"multipliers": (1, 0)}, "multipliers=(1, 0)"),
        ({"blocks": (1, 2, 3)}, "blocks=(1, 2, 3) must be one number, or 2"),
        ({"blocks": 0}, "blocks=0"),
        ({"attention": (2,)}, "attention=(2,) names level 2: levels are 0 … 1"),
        ({"head_width": 48}, "head_width=48 does not divide the 32 channels of level 1"),
        ({"norm": "batch"}, "norm must be one of 'group', 'rms', 'nonscaling', 'none', got 'batch'"),
        ({"time_features": "learned"}, "time_features must be one of 'sinusoidal', 'fourier', got 'learned'"),
        ({"dropout": 1.0}, "dropout=1.0 is out of range"),
        ({"patch": 0}, "patch=0"),
        ({"classes": -1}, "classes=-1"),
        ({"attention": (), "text_width": 4}, "text_width=4 needs a level that attends"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(TINY, **change)
    assert message in str(error.value)


def test_bad_inputs_are_refused():
    net, time = build(dataclasses.replace(TINY, patch=2)), torch.zeros(1)
    with pytest.raises(ConfigError, match="10×16 does not divide by 4"):
        net(torch.zeros(1, 3, 10, 16), time)
    with pytest.raises(ConfigError, match=r"takes \(batch, 3, height, width\), not \(1, 1, 16, 16\)"):
        net(torch.zeros(1, 1, 16, 16), time)
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ConfigError, match="classes=0"):
        net(x, time, label=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ConfigError, match="text_width=0"):
        net(x, time, text=torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match="vector_width=0"):
        net(x, time, vector=torch.zeros(1, 2))
    with pytest.raises(ConfigError, match=r"text must be \(batch, length, 6\)"):
        build(FULL)(x, time, text=torch.zeros(1, 2, 3))


@pytest.mark.parametrize("multipliers", [(2,), (2, 1), (3, 2, 4)])
def test_the_first_level_may_be_wider_than_the_width(multipliers):
    """The stem, the last norm and the head have the channels of the first level."""
    config = UNetConfig(width=8, multipliers=multipliers, blocks=1, attention=(), head_width=8)
    net = build(config)
    assert net.stem.out_channels == net.head.in_channels == 8 * multipliers[0]
    x = torch.zeros(1, 3, 8, 8)
    assert net(x, torch.zeros(1)).shape == x.shape
