"""Laws of the transformer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.modulation import modulated, sites
from ornstein.networks import DiTConfig, build
from ornstein.networks.embeddings import positions_2d

CONFIG = DiTConfig(width=32, depth=2, head_width=16, patch=2, classes=3, text_width=6, vector_width=5)


def perturbed():
    net = build(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def inputs(height=8, width=8):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 3, height, width, generator=generator)
    text, mask = torch.randn(3, 4, 6, generator=generator), torch.arange(4)[None] < torch.arange(3)[:, None]
    vector = torch.randn(3, 5, generator=generator)
    label = torch.tensor([-1, 0, 2])
    return x, torch.tensor([1.0, 50.0, 900.0]), {"label": label, "text": text, "text_mask": mask, "vector": vector}


@pytest.mark.parametrize("size", [(8, 8), (12, 6), (2, 2), (32, 16)])
def test_any_size_that_divides_by_the_patch(size):
    x, time, cond = inputs(*size)
    out = perturbed()(x, time, **cond)
    assert out.shape == x.shape
    assert bool(out.isfinite().all())


def test_the_output_starts_at_exactly_zero_and_follows_out_channels():
    x, time, cond = inputs()
    net = build(dataclasses.replace(CONFIG, out_channels=6))
    assert torch.equal(net(x, time, **cond), torch.zeros(3, 6, 8, 8))


def test_gradients_reach_every_parameter():
    x, time, cond = inputs()
    net = perturbed()
    net(x, time, **cond).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_rows_are_independent_and_padding_is_ignored():
    x, time, cond = inputs()
    net = perturbed()
    whole = net(x, time, **cond)
    for i in range(3):
        row = {name: value[i : i + 1] for name, value in cond.items()}
        torch.testing.assert_close(net(x[i : i + 1], time[i : i + 1], **row), whole[i : i + 1], rtol=0, atol=1e-5)
    cond["text"] = torch.where(cond["text_mask"][..., None], cond["text"], 1e3)
    torch.testing.assert_close(net(x, time, **cond), whole, rtol=0, atol=1e-6)


def test_missing_conditions_are_the_null_ones():
    x, time, cond = inputs()
    net = perturbed()
    nothing = {
        "label": torch.full((3,), -1),
        "text": cond["text"],
        "text_mask": torch.zeros(3, 4, dtype=torch.bool),
        "vector": torch.zeros(3, 5),
    }
    torch.testing.assert_close(net(x, time, **nothing), net(x, time), rtol=0, atol=1e-6)


def test_every_pixel_reads_every_pixel():
    x, time, _ = inputs()
    x.requires_grad_()
    perturbed()(x, time)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert bool((x.grad[0].abs().sum(0) > 0).all())
    assert bool((x.grad[1:] == 0).all())


def test_sites_see_maps_once_each_in_order():
    x, time, cond = inputs(8, 4)
    net, seen = perturbed(), []

    def spy(feature, site, t):
        seen.append((site, tuple(feature.shape)))
        return feature

    plain = net(x, time, **cond)
    with modulated(net, {"*": spy}):
        assert torch.equal(net(x, time, **cond), plain)
    parts = ("query", "value", "attended", "hidden")
    assert seen == [(f"block.{i}.{part}", (3, 32, 4, 2)) for i in (0, 1) for part in parts]
    assert tuple(site for site, _ in seen) == sites(net)


def test_positions_tell_every_place_apart_and_extend():
    small, large = positions_2d(4, 6, 16, torch.zeros(())), positions_2d(8, 9, 16, torch.zeros(()))
    distance = torch.cdist(small, small) + torch.eye(24)
    assert distance.min() > 0.1
    torch.testing.assert_close(small.reshape(4, 6, 16), large.reshape(8, 9, 16)[:4, :6], rtol=0.0, atol=1e-6)


def test_bf16_is_close_to_fp32():
    x, time, cond = inputs()
    net = perturbed()
    exact = net(x, time, **cond)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, time, **cond)
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean() < 1e-3 * exact.square().mean()


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float16, 1e-2), (torch.bfloat16, 8e-2), (torch.float64, 1e-4)], ids=str
)
def test_the_network_as_a_whole_in_another_precision(dtype, error):
    x, time, cond = inputs()
    net = perturbed()
    exact = net(x, time, **cond)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
    rough = net.to(dtype)(x.to(dtype), time, **cast)
    assert rough.dtype == dtype
    assert (rough - exact).square().mean().sqrt() < error * exact.square().mean().sqrt()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width=30 does not divide by 4"),
        ({"head_width": 24}, "head_width=24 does not divide width=32"),
        ({"depth": 0}, "depth=0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(CONFIG, **change)
    assert message in str(error.value)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="9×8 does not divide by 2"):
        build(CONFIG)(torch.zeros(1, 3, 9, 8), torch.zeros(1))
