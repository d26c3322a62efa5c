"""The network that reads rarity: its pooling by hand, its clock, what it is shown, and outputs that are kept."""

import math
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.metrics.features import lite0
from ornstein.models.rarity_network import AttentionPool, Encoder, Lite0Features, RarityNet, RunFeatures, timestep_of
from ornstein.models.spec import DenoiserSpec
from ornstein.modulation import modulated
from ornstein.networks import UNetConfig
from ornstein.networks.embeddings import positions_2d
from ornstein.randomness import Noise
from ornstein.rarity import RarityClassifier

F64 = torch.float64


def filled(net: nn.Module, seed: int = 1) -> nn.Module:
    """Every weight a function of its name."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = 0.3 if parameter.ndim < 2 else 1.0 / math.sqrt(parameter[0].numel())
            parameter.copy_(scale * Noise.of(seed, [0], dtype=F64).normal(name, parameter.shape)[0])
    return net.eval()


def test_the_clock_falls_with_the_log_snr():
    levels = torch.tensor([-30.0, -20.0, -10.0, 0.0, 5.0, 20.0, 25.0], dtype=F64)
    assert timestep_of(levels).tolist() == [1000.0, 1000.0, 750.0, 500.0, 375.0, 0.0, 0.0]


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 1)])
def test_the_pooling_is_attention_of_the_mean(height, width):
    """softmax(q·k/√d) over the mean itself and all pixels with their positions, in heads, then a linear map."""
    pool = filled(AttentionPool(8, 4).double())
    x = Noise.of(0, range(3), dtype=F64).normal("x", (8, height, width))
    tokens = x.reshape(3, 8, height * width).transpose(1, 2)
    mean = tokens.mean(1)
    places = positions_2d(height, width, 8, x)
    seen = torch.cat([mean[:, None], tokens + places], 1)
    query = mean @ pool.query.weight.T + pool.query.bias
    both = seen @ pool.keys.weight.T + pool.keys.bias
    keys, values = both[..., :8], both[..., 8:]
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        score = torch.softmax((keys[..., part] * query[:, None, part]).sum(2) / 2.0, 1)
        heads.append((score[..., None] * values[..., part]).sum(1))
    wanted = torch.cat(heads, 1) @ pool.out.weight.T + pool.out.bias
    torch.testing.assert_close(pool(x), wanted, rtol=1e-10, atol=1e-10)


CONFIG = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8, patch=2, classes=3)
# Mean, and some of the numbers themselves, of a network in float64 whose last layer alone is in float32.
KEPT: dict[str, list[float]] = {
    "labels": [
        0.37059313, 0.49019414, 1.042339, -0.53522205, 0.67406088,
        0.3915416, 0.49870735, 1.0259851, -0.53414154, 0.67745799,
    ],
    "deep": [
        0.33007383, 0.48424715, 0.84621847, -0.52273178, 0.71943033,
        0.36751798, 0.49462286, 0.87511206, -0.536107, 0.74507874,
    ],
    "wide at once": [
        0.21672057, 0.23126751, 1.353291, -0.56250536, 0.47784063,
        0.20744759, 0.22185257, 1.3439147, -0.58059776, 0.47894451,
    ],
}  # fmt: skip


def answer(config: UNetConfig, label: Tensor | None) -> list[float]:
    net = filled(Encoder(config, 5).double())
    net.head.float()
    x = Noise.of(2, range(2), dtype=F64).normal("x", (3, 8, 16))
    found = net(x, torch.tensor([120.0, 730.0], dtype=F64), label=label)
    assert found.shape == (2, 5)
    assert found.dtype == torch.float32
    return found.double().flatten().tolist()


CASES = {
    "labels": (CONFIG, torch.tensor([2, -1])),
    "deep": (
        UNetConfig(width=8, multipliers=(1, 2, 2), blocks=(1, 2, 1), attention=(1, 2), head_width=4, patch=1),
        None,
    ),
    "wide at once": (UNetConfig(width=8, multipliers=(2,), blocks=2, attention=(), head_width=8, classes=2), None),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_that_are_kept(name):
    assert answer(*CASES[name]) == pytest.approx(KEPT[name], rel=1e-5, abs=1e-6)


def test_the_encoder_has_the_sites_of_a_unet_and_begins_at_zero():
    net = Encoder(CONFIG, 5)
    assert not net(torch.ones(1, 3, 8, 8), torch.tensor([5.0])).any()
    seen = []
    look = lambda feature, site, t: seen.append((site, tuple(feature.shape[1:]))) or feature  # noqa: E731
    with modulated(net, {"*.hidden": look}):
        net(torch.ones(1, 3, 8, 16), torch.tensor([5.0]))
    assert seen == [
        ("down.0.0.hidden", (8, 4, 8)),
        ("down.0.1.hidden", (16, 2, 4)),
        ("down.1.0.hidden", (16, 2, 4)),
        ("mid.0.hidden", (16, 2, 4)),
        ("mid.1.hidden", (16, 2, 4)),
    ]
    with pytest.raises(ConfigError, match="must divide by head_width=5"):
        Encoder(UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=5), 2)


class Watched(nn.Module):
    """Remembers what it was shown."""

    def forward(self, x: Tensor, time: Tensor, *, label: Tensor | None = None) -> Tensor:
        self.seen = (x, time, label)
        return x


def test_the_whole_network_has_a_clock_and_may_look_through_features():
    watched, x, label = Watched(), torch.ones(2, 3, 4, 4), torch.tensor([1, 2])
    levels = torch.tensor([0.0, 10.0])
    RarityNet(watched, None)(x, levels, label=label)  # type: ignore[arg-type]
    assert watched.seen[0] is x
    assert watched.seen[1].tolist() == [500.0, 250.0]
    assert watched.seen[2] is label
    told = []
    features = type("F", (nn.Module,), {"forward": lambda self, x, s: told.append(s) or 2.0 * x})()
    RarityNet(watched, features)(x, levels)  # type: ignore[arg-type]
    assert torch.equal(watched.seen[0], 2.0 * x)
    assert told[0] is levels, "features are told the log-SNR itself"
    assert watched.seen[2] is None


@pytest.mark.parametrize(("name", "low"), [("flow", -10.0), ("vp-cosine", None), ("ve", None)])
def test_features_of_several_sites_at_levels_within_the_path(name, low):
    """Brought to the size of the smallest and joined in the order asked for; levels beyond the path are its ends."""
    network = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8)
    spec = DenoiserSpec(shape=(3, 8, 8), path=name, predicts="v", network=network)
    net = filled(spec.build().net)
    at = ["mid.0.hidden", "down.0.0.hidden"]
    features = RunFeatures(spec, net, at)
    path = spec.denoiser(net).path
    ends = (path.log_snr(path.t_range[1]) if low is None else low, path.log_snr(path.t_min))
    x = Noise.of(0, range(2)).normal("x", (3, 8, 8))
    assert features(x, torch.tensor([0.0, 1.0])).shape == (2, 24, 4, 4)
    beyond = features(x, torch.tensor([ends[0] - 5.0, ends[1] + 5.0]))
    torch.testing.assert_close(beyond, features(x, torch.tensor(ends, dtype=F64)), rtol=1e-4, atol=1e-4)
    coarse, fine = (RunFeatures(spec, net, [site])(x, torch.tensor([0.0, 1.0])) for site in at)
    both = features(x, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(both[:, :16], coarse, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[:, 16:], nn.functional.avg_pool2d(fine, 2), rtol=1e-5, atol=1e-6)
    features.train()
    assert not features.training
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(ConfigError, match="no site 'nowhere'"):
        RunFeatures(spec, net, ["nowhere"])


def test_features_of_lite0_are_the_last_of_their_strides():
    """The last features at an eighth and at a sixteenth of the size; small pictures are enlarged to 64 pixels."""
    features, x = Lite0Features(), Noise.of(0, range(2)).normal("x", (3, 64, 64)).clamp(-1, 1)
    assert features.state_dict() == {}
    assert features.channels == 152
    net, maps = lite0().module, []
    hooks = [block.register_forward_hook(lambda module, args, out: maps.append(out)) for block in net._blocks]
    try:
        with torch.no_grad():
            net.extract_features(x)
    finally:
        for hook in hooks:
            hook.remove()
    eighth = [m for m in maps if m.shape[-1] == 8][-1]
    sixteenth = [m for m in maps if m.shape[-1] == 4][-1]
    assert (eighth.shape[1], sixteenth.shape[1]) == (40, 112)
    found = features(x, torch.zeros(2))
    wanted = torch.cat([nn.functional.avg_pool2d(eighth, 2), sixteenth], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    small = nn.functional.avg_pool2d(x, 2)
    large = nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features(small, torch.zeros(2)), features(large, torch.zeros(2)), rtol=1e-4, atol=1e-4)


def test_a_classifier_of_rarity_by_hand():
    raw = torch.tensor([[0.3, -0.2, 1.1, 0.0], [-1.0, 0.4, 0.2, 2.0]])
    seen = []

    def net(state: Tensor, log_snr: Tensor, **told: Tensor) -> Tensor:
        seen.append((state.dtype, log_snr.dtype, told))
        return raw

    spec = SimpleNamespace(head="classes", rarities=4, classes=("a",))
    classifier = RarityClassifier(net=net, spec=spec)  # type: ignore[arg-type]
    state, level, label = torch.zeros(2, 3, 4, 4, dtype=F64), torch.zeros(2, dtype=F64), torch.tensor([0, 0])
    for target in range(4):
        found = classifier.log_likelihood(state, level, target, label)
        torch.testing.assert_close(found, torch.log_softmax(raw, 1)[:, target])
    assert seen[0] == (torch.float32, torch.float32, {"label": label})
    classifier(state, level)
    assert seen[-1][2] == {}
    deaf = RarityClassifier(net=net, spec=SimpleNamespace(head="classes", rarities=4, classes=()))  # type: ignore[arg-type]
    deaf(state, level, label)
    assert seen[-1][2] == {}
    assert [classifier.number(k) for k in (-4, -1, 0, 3)] == [0, 3, 0, 3]
    for wrong in (-5, 4):
        with pytest.raises(ValueError, match="none of 0 … 3"):
            classifier.number(wrong)
    gauss = RarityClassifier(  # type: ignore[arg-type]
        net=lambda state, log_snr: raw[:, :2], spec=SimpleNamespace(head="gaussian", rarities=4, classes=())
    )
    goal = NormalDist().inv_cdf(2.5 / 4)
    wanted = -0.5 * ((goal - raw[:, 0]) / raw[:, 1].exp()) ** 2 - raw[:, 1]
    torch.testing.assert_close(gauss.log_likelihood(state, level, 2), wanted)
    assert (classifier.rarities, classifier.labels, dict(classifier.details)) == (4, ("a",), {})
