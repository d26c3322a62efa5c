"""Every part of the networks against its formula, in float64, with nothing symmetric."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.errors import ConfigError
from ornstein.networks import DiTConfig, TextConfig, UNetConfig, build, checks, initialise, vocabulary
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig, PatchDiscriminator
from ornstein.networks.blocks import CrossAttention, Norm, ResidualBlock, SelfAttention, attend, grow, shrink
from ornstein.networks.dit import DiTBlock, JointNorm, normalised
from ornstein.networks.embeddings import ConditionEmbedding, TimeEmbedding, positions_2d
from ornstein.networks.ncsnpp import NCSNpp, NCSNppConfig
from ornstein.networks.stages import Stages
from ornstein.networks.text import TextEncoder


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def randomised(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for number, weight in enumerate(net.double().parameters()):
            weight.copy_(drawn(number, *weight.shape))
    return net


# ------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["ordinary", "small"])  # small: the added constant shows
@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 2), (24, 2), (48, 4), (64, 16), (96, 8), (128, 32), (256, 32), (384, 32)]
)
def test_group_norm_takes_at_least_four_channels_a_group(channels, groups, scale):
    norm, x = randomised(Norm("group", channels)), scale * drawn(1, 2, channels, 3, 2)
    parts = x.reshape(2, groups, -1)
    flat = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = flat.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["ordinary", "small"])
def test_other_norms_are_their_formulas(scale):
    x = scale * drawn(1, 2, 8, 3, 3)
    rms = randomised(Norm("rms", 8))
    expected = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * rms.weight[:, None, None]
    torch.testing.assert_close(rms(x), expected)
    flat = x.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    for size, shape in ((0, (8, 1, 1)), (3, (8, 3, 3))):
        norm = randomised(Norm("nonscaling", 8, size))
        assert norm.weight is None
        assert norm.bias.numel() == math.prod(shape)
        torch.testing.assert_close(norm(x), flat.reshape(x.shape) + norm.bias.reshape(shape))
    assert torch.equal(Norm("none", 8)(x), x)
    assert list(Norm("none", 8).parameters()) == []
    assert rms.bias is None
    tokens = scale * drawn(2, 2, 5, 4)
    joint = randomised(JointNorm(4))
    flat = tokens.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(joint(tokens), flat.reshape(tokens.shape) + joint.bias)
    torch.testing.assert_close(normalised(tokens, torch.float64, joint), joint(tokens))
    alone = (tokens - tokens.mean(2, keepdim=True)) / (tokens.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normalised(tokens, torch.float64), alone)
    assert normalised(tokens, torch.float16, joint).dtype == normalised(tokens, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("kind", ["group", "rms", "nonscaling"])
def test_a_norm_begins_with_gain_one_and_no_bias(kind):
    norm = Norm(kind, 8)
    assert norm.weight is None or torch.equal(norm.weight, torch.ones(8))
    assert norm.bias is None or torch.equal(norm.bias, torch.zeros(8))


# ------------------------------------------------------------------------------------------------ sizes, attention


def test_halving_is_the_mean_of_four_and_doubling_their_repetition():
    x = drawn(0, 2, 3, 4, 6)
    four = x.reshape(2, 3, 2, 2, 3, 2)
    torch.testing.assert_close(shrink(x), four.mean((3, 5)))
    assert torch.equal(grow(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_softmax_in_each_head(masked):
    q, k, v = drawn(0, 2, 3, 6), drawn(1, 2, 5, 6), drawn(2, 2, 5, 6)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool) if masked else None
    expected = torch.zeros(2, 3, 6, dtype=torch.float64)
    for row in range(2):
        for head in range(3):
            part = slice(2 * head, 2 * head + 2)
            score = q[row, :, part] @ k[row, :, part].T / 2**0.5
            if mask is not None:
                score = score.masked_fill(~mask[row], -math.inf)
            expected[row, :, part] = score.softmax(1) @ v[row, :, part]
    torch.testing.assert_close(attend(q, k, v, 3, mask), expected)


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_a_residual_block_begins_as_its_shortcut(resample):
    block = ResidualBlock(4, 4, 8, norm="group", resample=resample).double()
    x = drawn(0, 2, 4, 4, 6)
    resized = {None: x, "down": shrink(x), "up": grow(x)}[resample]
    assert torch.equal(block(x, drawn(1, 2, 8)), resized)
    wider = ResidualBlock(4, 8, 8, norm="group", resample=resample).double()
    sides = []
    wider.conv_in.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[2]))
    torch.testing.assert_close(wider(x, drawn(1, 2, 8)), wider.shortcut(resized))
    assert sides == [{None: 4, "down": 2, "up": 4}[resample]]  # doubled after the first convolution, halved before it


CONFIG = DiTConfig(width=16, depth=1, head_width=8, patch=2, text_width=6)


def test_a_transformer_block_whose_gates_are_zero_is_the_identity():
    """adaLN-zero: however the norms are shifted and scaled. The gates have gradients there."""
    block = randomised(DiTBlock(CONFIG, "block.0"))
    with torch.no_grad():
        for chunk in (2, 5):  # of (shift, scale, gate) twice
            block.modulate.weight[16 * chunk : 16 * (chunk + 1)] = 0.0
            block.modulate.bias[16 * chunk : 16 * (chunk + 1)] = 0.0
        block.crossed.weight.zero_()
        block.crossed.bias.zero_()
    tokens, embedding = drawn(90, 2, 6, 16), drawn(91, 2, 16)
    out = block(tokens, embedding, drawn(92, 2, 3, 6), None, (2, 3), torch.zeros(2))
    assert torch.equal(out, tokens)
    out.square().sum().backward()
    gates = block.modulate.bias.grad.unflatten(0, (6, 16)).abs().sum(1)
    assert (gates > 0).tolist() == [False, False, True, False, False, True]


def test_the_halves_of_a_transformer_block_are_modulated_apart():
    """out = x + gate·attention(…) and then + gate_map·map(…): each by its own shift, scale and gate."""
    block = randomised(DiTBlock(DiTConfig(width=16, depth=1, head_width=8), "block.0"))
    x, embedding, size, time = drawn(90, 2, 6, 16), drawn(91, 2, 16), (2, 3), torch.zeros(2)
    shift, scale, gate, shift_map, scale_map, gate_map = block.modulate(embedding)[:, None].chunk(6, 2)
    h = normalised(x, torch.float64) * (1 + scale) + shift
    q, k, v = (h @ block.qkv.weight.T + block.qkv.bias).split(16, 2)
    middle = x + gate * block.attended(attend(q, k, v, 2))
    h = normalised(middle, torch.float64) * (1 + scale_map) + shift_map
    h = nn.functional.gelu(block.expand(h), approximate="tanh")
    torch.testing.assert_close(block(x, embedding, None, None, size, time), middle + gate_map * block.contract(h))


@pytest.mark.parametrize(
    "net",
    [
        lambda: build(UNetConfig(width=8, multipliers=(1,), attention=(0,), head_width=8, text_width=6)),
        lambda: build(CONFIG),
        lambda: TextEncoder(TextConfig(vocabulary=("a", "b"), width=12, layers=2)),
        lambda: KLAutoencoder(KLConfig(width=8, multipliers=(1,))),
    ],
    ids=["unet", "dit", "text", "autoencoder"],
)
def test_every_block_begins_as_nothing(net):
    """The last map of each branch is zero, weight and bias, and nothing else that has more than one dimension."""
    last = {"conv_out", "out", "crossed", "modulate", "head", "contract"}
    for name, module in net().named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            part = name.rpartition(".")[2]
            branch = part in last and not (part == "modulate" and "residual" in name)
            branch &= not (part == "contract" and name.startswith("blocks."))  # behind a gate that is zero
            assert bool(module.weight.any()) != branch, name
            assert not branch or not bool(module.bias.any()), name


# ------------------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("kind", ["unet", "dit", "ncsn++"])
def test_dropout_stands_before_the_last_map_of_a_branch_at_its_rate(kind):
    net, last = {
        "unet": lambda: (build(UNetConfig(width=16, multipliers=(1,), attention=(), dropout=0.1)), "conv_out"),
        "dit": lambda: (build(DiTConfig(width=32, depth=2, head_width=16, dropout=0.1)), "contract"),
        "ncsn++": lambda: (NCSNpp(NCSNppConfig(resolution=8, width=16, multipliers=(1,), dropout=0.1)), "conv1"),
    }[kind]()
    seen = []
    for name, module in net.named_modules():
        if name.rpartition(".")[2] == last:
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    x, time = torch.randn(4, 3, 16, 16), torch.ones(4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.train()(x, time)
    assert seen
    for inputs in seen:
        # 4 standard deviations of the mean of independent draws.
        assert (inputs == 0).double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / inputs.numel()) ** 0.5)
    dropped, count = seen[0], len(seen)
    net.eval()(x, time)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], seen[count][kept] / 0.9)


# ------------------------------------------------------------------------------------------------- times and positions


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_time_features_are_those_of_diffusers(scale):
    from diffusers.models.embeddings import get_timestep_embedding

    time = torch.tensor([0.0, 1.5, 999.0])
    theirs = get_timestep_embedding(time, 32, flip_sin_to_cos=True, downscale_freq_shift=0, scale=scale)
    # Phases reach 3500, whose float32 neighbours are 2e-4 apart.
    torch.testing.assert_close(TimeEmbedding(32, scale=scale)(time), theirs, rtol=0, atol=5e-4)
    assert TimeEmbedding(32).state_dict() == {}
    for dtype in (torch.float64, torch.float16, torch.int64):
        assert TimeEmbedding(32)(time.to(dtype)).dtype == torch.float32


def test_fourier_features_are_of_stored_frequencies():
    net = TimeEmbedding(8, "fourier", 16.0)
    phase = torch.tensor([0.25, -0.1])[:, None] * net.frequencies
    torch.testing.assert_close(net(torch.tensor([0.25, -0.1])), torch.cat((phase.cos(), phase.sin()), 1))
    assert list(net.state_dict()) == ["frequencies"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = TimeEmbedding(8192, "fourier", 16.0).frequencies
    assert wide.std().item() == pytest.approx(32 * math.pi, rel=0.05)
    small = build(DiTConfig(width=32, depth=1, head_width=16, time_features="fourier", time_scale=16.0))
    frequencies = small.embedding.time.frequencies
    assert frequencies.std().item() == pytest.approx(32 * math.pi, rel=0.5)  # 32 numbers
    other = build(DiTConfig(width=32, depth=1, head_width=16, time_features="fourier", time_scale=2.0))
    torch.testing.assert_close(other.embedding.time.frequencies, frequencies / 8)


def test_positions_are_sines_of_row_then_column():
    height, width, channels = 3, 5, 12
    found = positions_2d(height, width, channels, torch.zeros((), dtype=torch.float64))
    assert found.dtype == torch.float64
    for row in range(height):
        for column in range(width):
            expected = []
            for place in (row, column):
                phases = [place * 10000.0 ** (-i / 3) for i in range(3)]
                expected += [*map(math.sin, phases), *map(math.cos, phases)]
            assert found[row * width + column].tolist() == pytest.approx(expected, abs=1e-6), (row, column)


# ------------------------------------------------------------------------------------------------------------- others


def test_the_published_network_has_its_norms_and_first_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NCSNpp(NCSNppConfig(resolution=4, width=160, multipliers=(1,), blocks=1, attention=()))
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32}
    assert {norm.eps for norm in norms} == {1e-6}
    narrow = NCSNpp(NCSNppConfig(resolution=4, width=16, multipliers=(1,), blocks=1, attention=()))
    assert {m.num_groups for m in narrow.modules() if isinstance(m, nn.GroupNorm)} == {4, 8}
    assert net.map_noise.freqs.std().item() == pytest.approx(16.0, rel=0.2)  # 160 numbers
    convolution = net.dec["4x4_block0"].conv0
    assert convolution.weight.std().item() == pytest.approx((320 * 9) ** -0.5, rel=0.01)
    assert not convolution.bias.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 12}, "12 cannot be halved 3 times"),
        ({"multipliers": ()}, "cannot be halved"),
        ({"width": 18}, "divides by 4"),
        ({"blocks": 0}, "at least a block"),
    ],
)
def test_the_published_network_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        NCSNppConfig(**{"resolution": 32} | change)


def test_log_variances_are_bounded():
    net = KLAutoencoder(KLConfig(width=8, multipliers=(1,)))
    with torch.no_grad():
        net.to_latent.weight.zero_()
        net.to_latent.bias.copy_(torch.tensor([50.0, 60.0, -70.0, 0.0, 50.0, -70.0, 3.0, -29.0]))
    mean, logvar = net.moments(torch.zeros(1, 3, 4, 4))
    assert mean[0, :, 0, 0].tolist() == [50.0, 60.0, -70.0, 0.0]
    assert logvar[0, :, 0, 0].tolist() == [20.0, -30.0, 3.0, -29.0]


class Conditioning(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones((), dtype=dtype)), []

    def forward(self, x, time, **cond):
        self.seen.append((x.dtype, sorted(cond)))
        return self.weight * x * (1.0 + sum(value.sum() for value in cond.values()))


def test_two_stages_are_one_module():
    net = Stages(Conditioning(torch.float32), Conditioning(torch.float64), back_conditions=["label"])
    label, words = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    x, time = torch.ones(2), torch.zeros(2)
    net(x, time, stage="front", label=label, words=words).sum().backward()
    assert net.front.seen == [(torch.float32, ["label", "words"])]
    assert label.grad is not None
    label.grad = None
    net(x, time, stage="back", label=label, words=words).sum().backward()
    assert net.back.seen == [(torch.float64, ["label"])]  # in the precision of its own weights, and told its part
    assert label.grad is None
    Stages(nn.Identity(), told := Conditioning(torch.float32))(x, time, stage="back", label=label, words=words)
    assert told.seen == [(torch.float32, ["label", "words"])]
    assert net.train().front.training
    assert net.freeze() is net
    assert not net.front.training
    net.train()
    assert (net.training, net.front.training, net.back.training) == (True, False, True)
    assert [p.requires_grad for p in net.parameters()] == [False, True]
    call = Stages(lambda x, time, **cond: 2 * x, Conditioning(torch.float32)).freeze().train()
    assert torch.equal(call(x, time, stage="front"), 2 * x)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Norm, {"size": 0}),
        (ResidualBlock, {"dropout": 0.0, "resample": None, "sizes": (0, 0)}),
        (attend, {"mask": None}),
        (SelfAttention, {"site": "attention", "size": 0}),
        (CrossAttention, {"size": 0}),
        (TimeEmbedding, {"kind": "sinusoidal", "scale": 1.0}),
        (ConditionEmbedding, {"kind": "sinusoidal", "scale": 1.0, "classes": 0, "vector_width": 0}),
        (normalised, {"joint": None}),
        (build, {"seed": 0}),
        (initialise, {"seed": 0}),
        (TextEncoder, {"seed": 0}),
        (vocabulary, {"limit": 4096}),
        (Stages, {"back_conditions": None}),
    ],
)
def test_defaults_of_the_parts(part, expected):
    given = inspect.signature(part).parameters.values()
    assert {one.name: one.default for one in given if one.default is not one.empty} == expected


def test_a_critic_refuses():
    for change, message in (
        ({"width": 0}, "width=0 is out of range"),
        ({"layers": 0}, "layers=0 is out of range"),
        ({"width": 12}, "width=12 does not divide by 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            PatchDiscriminator(**change)


# ------------------------------------------------------------------------------------------------------------- checks


def refused(check, *args, **values) -> str:
    with pytest.raises(ConfigError) as error:
        check(*args, **values)
    return str(error.value)


def test_checks_stand_at_their_edges():
    checks.positive(a=1, b=2)
    checks.not_negative(a=0.0, b=1)
    checks.multiple(8, "why", a=8, b=0, c=24)
    checks.dropout_rate(0.0)
    checks.dropout_rate(0.999)
    checks.input_fits(torch.zeros(1, 2, 4, 6), 2, 2)
    checks.text_fits(None, 0)
    checks.text_fits(torch.zeros(1, 2, 3), 3)
    assert refused(checks.positive, a=1, b=0).startswith("b=0 is out of range: it must be at least 1")
    assert refused(checks.not_negative, a=0, b=-1).startswith("b=-1 is out of range: it must be at least 0")
    assert refused(checks.multiple, 8, "why", a=8, b=21) == "b=21 does not divide by 8 (why): take 16"
    assert refused(checks.multiple, 8, "why", b=3) == "b=3 does not divide by 8 (why): take 8"
    assert "choose among x, y" in refused(checks.choice, ("x", "y"), a="z")
    for rate in (1.0, -1e-9, math.nan):
        assert "[0, 1)" in refused(checks.dropout_rate, rate)
    for shape in ((1, 2, 4, 5), (1, 2, 5, 4)):
        assert "does not divide by 2" in refused(checks.input_fits, torch.zeros(shape), 2, 2)
    for shape in ((1, 3, 4, 4), (2, 4, 4)):
        assert "(batch, 2, height, width)" in refused(checks.input_fits, torch.zeros(shape), 2, 2)
    assert "text_width=0" in refused(checks.text_fits, torch.zeros(1, 2, 3), 0)
    for shape in ((1, 2, 4), (2, 3)):
        assert "(batch, length, 3)" in refused(checks.text_fits, torch.zeros(shape), 3)


NUMBERS = {
    UNetConfig: ("channels", "out_channels", "width", "head_width", "patch"),
    DiTConfig: ("channels", "out_channels", "width", "depth", "head_width", "expansion", "patch"),
    KLConfig: ("channels", "latent", "width", "blocks", "patch"),
}
COUNTS = {
    UNetConfig: ("classes", "text_width", "vector_width", "norm_size"),
    DiTConfig: ("classes", "text_width", "vector_width"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_configurations_refuse_by_name(kind):
    for name in NUMBERS[kind]:
        assert refused(kind, **{name: 0}).startswith(f"{name}=0 is out of range: it must be at least 1")
    for name in COUNTS.get(kind, ()):
        assert refused(kind, **{name: -1}).startswith(f"{name}=-1 is out of range: it must be at least 0")
    norms = "'token', 'nonscaling'" if kind is DiTConfig else "'group', 'rms', 'nonscaling', 'none'"
    assert refused(kind, norm="batch") == f"norm must be one of {norms}, got 'batch'"
    if kind is not KLConfig:
        message = "time_features must be one of 'sinusoidal', 'fourier', got 'learned'"
        assert refused(kind, time_features="learned") == message
    if kind is KLConfig:
        for change in ({"multipliers": ()}, {"multipliers": (1, 0)}):
            assert "must be at least 1" in refused(kind, **change)
        assert "width=12 does not divide by 8" in refused(kind, width=12)
    elif kind is UNetConfig:
        assert "norm_size=6 does not divide by 4" in refused(kind, norm="nonscaling", norm_size=6)
        assert "norm_size=8 is for norm='nonscaling'" in refused(kind, norm_size=8)
        assert "names level -1" in refused(kind, attention=(-1,))
