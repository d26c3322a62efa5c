"""The discriminator of UDPM: sheet C4 restated in plain code, the published sizes, its groups, and a golden output."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ornstein.errors import ConfigError
from ornstein.networks.discriminator import Discriminator, DiscriminatorConfig, discriminator


def images(count: int, side: int, seed: int = 0) -> Tensor:
    drawn = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2 * drawn - 1


def scattered(config: DiscriminatorConfig, smallest: int = 4, seed: int = 0) -> Discriminator:
    """In float64, with gains and biases away from one and zero."""
    net = discriminator(config, smallest, seed).double().eval()
    with torch.no_grad():
        for i, weight in enumerate(net.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            weight.add_(0.1 * noise)
    return net


def restated(weights: dict[str, Tensor], x: Tensor, time: Tensor, label: Tensor | None, group: int) -> Tensor:
    """Sheet C4, written again with sums and loops: no module, nothing of the library."""

    def conv(h: Tensor, name: str) -> Tensor:
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        edge = kernel.shape[-1] // 2
        h = functional.pad(h, (edge, edge, edge, edge))
        rows, columns = h.shape[2] - 2 * edge, h.shape[3] - 2 * edge
        out = bias[None, :, None, None].expand(len(h), -1, rows, columns)
        for i in range(2 * edge + 1):
            for j in range(2 * edge + 1):
                out = out + torch.einsum("oc,bchw->bohw", kernel[:, :, i, j], h[:, :, i : i + rows, j : j + columns])
        return out

    def normed(h: Tensor, name: str) -> Tensor:
        count = math.gcd(32, h.shape[1] // 4)
        out = []
        for part in h.chunk(count, 1):
            mean = part.mean((1, 2, 3), keepdim=True)
            out.append((part - mean) / ((part - mean).square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt())
        gain, bias = (weights[f"{name}.{end}"][None, :, None, None] for end in ("weight", "bias"))
        return torch.cat(out, 1) * gain + bias

    def halved(h: Tensor) -> Tensor:
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4

    def silu(h: Tensor) -> Tensor:
        return h / (1 + (-h).exp())

    def leaky(h: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.2 * h)

    half = weights["stem.bias"].numel() // 2
    phase = torch.stack([time * 10000.0 ** (-i / half) for i in range(half)], 1)
    told = torch.cat((phase.cos(), phase.sin()), 1)
    if label is not None:
        told = told + weights["label.weight"][label]  # −1 is the last row
    h = leaky(conv(x, "stem"))
    block = 0
    while f"blocks.{block}.conv_in.weight" in weights:
        name = f"blocks.{block}"
        inner, outer = silu(normed(h, f"{name}.norm_in")), h
        if block:
            inner, outer = halved(inner), halved(outer)
        inner = conv(inner, f"{name}.conv_in")
        modulation = told @ weights[f"{name}.modulate.weight"].T + weights[f"{name}.modulate.bias"]
        scale, shift = modulation[:, :, None, None].tensor_split(2, 1)
        inner = conv(silu(normed(inner, f"{name}.norm_out") * (1 + scale) + shift), f"{name}.conv_out")
        if f"{name}.shortcut.weight" in weights:
            outer = conv(outer, f"{name}.shortcut")
        h = leaky(inner + outer)
        block += 1
    stride = len(h) // group
    spreads = []
    for i in range(len(h)):
        rows = torch.stack([h[j] for j in range(len(h)) if j % stride == i % stride])
        assert len(rows) == group
        spreads.append(((rows - rows.mean(0)).square().mean(0) + 1e-8).sqrt().sum())
    spread = torch.stack(spreads)[:, None, None, None].expand(-1, 1, *h.shape[2:])
    h = leaky(conv(torch.cat((h, spread), 1), "last")).sum((2, 3))
    return h @ weights["logit.weight"][0] + weights["logit.bias"]


@pytest.mark.parametrize(("classes", "smallest"), [(10, 8), (0, 8), (0, 16)])
def test_the_published_sizes(classes, smallest):
    """18.95 million parameters on CIFAR-10, 23.86 million at 64 pixels."""
    net = Discriminator(DiscriminatorConfig(width=192, classes=classes), smallest)
    count = sum(weight.numel() for weight in net.parameters())
    assert round(count / 1e6, 2) == {8: 18.95, 16: 23.86}[smallest]
    assert net.config.widths(smallest) == (384, 512, 512, 512, 512)[: 4 if smallest == 8 else 5]


@pytest.mark.parametrize(("batch", "group"), [(4, 4), (6, 3), (8, 4)])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_it_is_the_published_one(batch, group, side):
    net = scattered(DiscriminatorConfig(width=16, classes=3))
    x, time = images(batch, side), torch.linspace(1 / 6, 5 / 6, batch, dtype=torch.float64)
    label = torch.arange(batch) % 4 - 1
    expected = restated(dict(net.state_dict()), x, time, label, group)
    torch.testing.assert_close(net(x, time, label), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net(x, time), restated(dict(net.state_dict()), x, time, label * 0 - 1, group))


def test_groups_of_other_sizes_and_more_blocks():
    net = scattered(DiscriminatorConfig(width=8, group=2, blocks=2), 4)
    x, time = images(6, 8), torch.full((6,), 0.5, dtype=torch.float64)
    expected = restated(dict(net.state_dict()), x, time, None, 2)
    torch.testing.assert_close(net(x, time), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="halve 4 pixels too often: at most 3"):
        discriminator(DiscriminatorConfig(width=8, blocks=4), 4)


def test_a_logit_depends_on_its_strided_group_alone():
    net, time = scattered(DiscriminatorConfig(width=8)), torch.full((8,), 0.5, dtype=torch.float64)
    x = images(8, 4)
    changed = x.clone()
    changed[1] += 0.5
    moved = (net(changed, time) - net(x, time)).abs() > 1e-12
    assert moved.nonzero().flatten().tolist() == [1, 3, 5, 7]
    alone = scattered(DiscriminatorConfig(width=8, group=1))
    moved = (alone(changed, time) - alone(x, time)).abs() > 1e-12
    assert moved.nonzero().flatten().tolist() == [1]


def test_dropout_acts_on_the_logit_too():
    """A logit is dropped with its own probability: then it is exactly zero, otherwise it is larger by 1/(1 − p)."""
    net = scattered(DiscriminatorConfig(width=8))
    net.dropout.p = 0.25  # of the logit alone: the blocks keep their zero
    x, time = images(512, 4), torch.full((512,), 0.5, dtype=torch.float64)
    exact = net(x, time)
    torch.manual_seed(0)
    found = net.train()(x, time)
    kept = found != 0.0
    assert kept.double().mean() == pytest.approx(0.75, abs=0.06)
    torch.testing.assert_close(found[kept], exact[kept] / 0.75)
    both = discriminator(DiscriminatorConfig(width=8, dropout=0.25), 4)
    assert {module.p for module in both.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_first_weights_have_the_published_spread():
    """N(0, 1 / fan-in) in the blocks, also of their last convolutions, and a third of it outside; biases are zero."""
    net = discriminator(DiscriminatorConfig(width=64), 4, seed=3)
    for name, weight in net.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.ndim > 1:
            expected = weight[0].numel() ** -0.5 * (1.0 if name.startswith("blocks") else 3.0**-0.5)
            assert weight.std().item() == pytest.approx(expected, rel=4.0 * weight.numel() ** -0.5), name


def test_golden_output():
    """Of seeded weights, in float64: every constant of the network (slope, gains, frequencies, groups) is in it."""
    net = discriminator(DiscriminatorConfig(width=8, classes=2), 4, seed=5).double().eval()
    time = torch.tensor([1 / 6, 0.5, 5 / 6, 0.5], dtype=torch.float64)
    found = net(images(4, 8, seed=7), time, torch.tensor([0, 1, -1, 1]))
    expected = [4.255709875, 4.120593298, 3.669584019, 4.153878630]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    again = discriminator(replace(net.config), 4, seed=5)
    assert all(torch.equal(a.double(), b) for a, b in zip(again.parameters(), net.parameters(), strict=True))
