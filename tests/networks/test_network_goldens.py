"""Golden outputs of every seeded network, in float64 on a picture that is not square, with no weight left at zero."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ornstein.networks import DiTConfig, TextConfig, TextEncoder, UNetConfig, build
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig, PatchDiscriminator
from ornstein.networks.building import initialise
from ornstein.networks.ncsnpp import NCSNpp, NCSNppConfig

UNET = UNetConfig(
    channels=2,
    out_channels=3,
    width=16,
    multipliers=(1, 2, 3),
    blocks=(1, 2, 1),
    attention=(0, 2),
    head_width=8,
    patch=2,
    classes=4,
    text_width=6,
    vector_width=5,
)
ALIKE = dataclasses.replace(UNET, multipliers=(1, 1), blocks=2, attention=(1,), patch=1)
UNETS = {
    "unet": (UNET, (16, 24)),
    "unet rms fourier": (dataclasses.replace(ALIKE, norm="rms", time_features="fourier", time_scale=3.0), (8, 12)),
    "unet nonscaling": (dataclasses.replace(ALIKE, norm="nonscaling", classes=0), (8, 12)),
    "unet nonscaling sized": (dataclasses.replace(UNET, norm="nonscaling", norm_size=16), (16, 16)),
    "unet none": (dataclasses.replace(ALIKE, norm="none", width=8, vector_width=0), (8, 12)),
}
DIT = DiTConfig(
    channels=2, out_channels=3, width=32, depth=2, head_width=8, expansion=3, patch=2, classes=4, text_width=6,
    vector_width=5,
)  # fmt: skip
DITS = {
    "dit": (DIT, (8, 16)),
    "dit joint": (dataclasses.replace(DIT, norm="nonscaling", qk_norm=True, patch=1), (6, 4)),
    "dit bare": (dataclasses.replace(DIT, text_width=0, classes=0, time_features="fourier", time_scale=3.0), (8, 16)),
}
NCSN = NCSNppConfig(
    resolution=16, channels=2, out_channels=5, width=16, multipliers=(1, 2, 2), blocks=2, attention=(8, 4), classes=3
)
NCSNS = {"ncsn++": NCSN, "ncsn++ no labels": dataclasses.replace(NCSN, classes=0, blocks=1, attention=(16,), width=8)}
KL = KLConfig(channels=2, latent=3, width=8, multipliers=(1, 2, 1), blocks=2, patch=2)
KLS = {"kl": KL, "kl rms": dataclasses.replace(KL, norm="rms", patch=1, blocks=1, multipliers=(1, 2))}

# fmt: off
GOLDEN: dict[str, list[float]] = {
    "unet": [
        1.26233108, -0.320548313, -0.475532435, -0.850899633, -0.43168767,
        1.1639092, -0.0208166111, 0.598113636, -0.603428619, -1.27985109,
    ],
    "unet rms fourier": [
        1.77987228, 0.384146264, 0.0943233813, 0.0148659767, -0.136962602,
        1.79022008, 0.824308897, 0.316615848, -0.24056597, 0.0546476436,
    ],
    "unet nonscaling": [
        1.21714229, -0.132658131, -0.0718535659, -0.00914147445, 0.803741916,
        1.17735228, 0.0250848205, -0.21235408, -0.00292906339, 0.871560238,
    ],
    "unet nonscaling sized": [
        1.41480839, 0.0734175408, -0.28460233, 0.588795655, -0.0347401172,
        1.6108433, -0.0719961853, 0.265221187, 0.575152196, -0.196799275,
    ],
    "unet none": [
        78225.197, 0.628981729, 0.131486132, -0.151339835, 0.20983177,
        137372.339, -0.237707455, 0.00749133087, -0.0861788368, 0.100422293,
    ],
    "dit": [
        2.24472007, 0.0175186709, 0.188566595, -0.910871138, -1.07942088,
        1.71310824, -0.307146148, -0.115537532, -2.27228793, -0.261476,
    ],
    "dit joint": [
        2.90059306, 0.782202928, -0.134963652, 0.472455999, -0.0586481597,
        2.57130326, 0.762008619, -0.3690791, 0.594705366, -0.644492507,
    ],
    "dit bare": [
        2.30720963, -0.385396932, 0.0908608263, -0.323093325, 0.74390478,
        1.79965863, -0.440993881, 0.269153911, -1.0049573, -0.74796596,
    ],
    "ncsn++": [
        1.92548385, 0.0699343473, -0.559390494, 0.334132145, 0.39666367,
        1.92441209, 0.0567668527, -0.56958835, 0.334318233, 0.436842669,
    ],
    "ncsn++ no labels": [
        1.35317859, 0.271268994, -0.0370210264, 0.356772837, 0.10146961,
    ],
    "kl": [
        0.855201924, -0.154759537, -0.309530344, 0.0884059563, 2.19009539,
        1.04406335, 0.735348483, -0.00745623833, 0.114047574, -0.515512706,
        1.21044018, -0.318980766, 0.643333998, -0.957112873, -0.137526968,
    ],
    "kl rms": [
        1.09458907, -0.156062753, 0.720485558, -0.0857080863, 1.06617872,
        1.13716881, -0.245333591, 0.927596017, 0.383036991, 0.560347114,
        1.28133513, 0.248338664, -0.180276108, -0.586386428, -1.18103204,
    ],
    "critic 1": [
        2.55768358, -0.135488677, 0.0999971672, -1.57880386, -0.650261686,
    ],
    "critic 3": [
        2.32585106, 0.829331361, -0.258906546, -1.4482137, 0.076770857,
    ],
    "critic 5": [
        0.758554848, 0.902193914, -1.26752868, -0.904335431, 0.20038513,
    ],
    "text": [
        1.0569557, 0.0357016354, 0.204831222, -0.254131328, 0.848761463,
    ],
}
# fmt: on


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers that no processor rounds in its own way."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def opened(net: torch.nn.Module) -> torch.nn.Module:
    """The network in float64 and evaluation mode, with every weight moved, so that no path is closed."""
    net = net.double().eval()
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight += 0.2 * drawn(1000 + number, *weight.shape)
    return net


def numbers(*outputs: torch.Tensor) -> list[float]:
    """A few projections of the outputs: none is left unchanged by two elements that change places."""
    found = []
    for output in outputs:
        assert output.dtype == torch.float64
        flat = output.detach().flatten()
        place = torch.arange(len(flat), dtype=torch.float64)
        size = flat.square().mean().sqrt()
        found += [size.item(), *((flat * torch.cos(k * place + k)).sum() / size / len(flat) ** 0.5 for k in (0.7, 2.9))]
        found += [(flat[len(flat) // 3] / size), (flat[-2] / size)]
    return [float(value) for value in found]


def assert_golden(name: str, *outputs: torch.Tensor) -> None:
    # Times and positions are made into features in float32, whose last digits are the processor's: 1e-5 is a hundred
    # times what they come to here.
    assert numbers(*outputs) == pytest.approx(GOLDEN[name], rel=1e-5, abs=1e-5)


def conditions(config: UNetConfig | DiTConfig) -> dict[str, torch.Tensor]:
    cond = {}
    if config.classes:
        cond["label"] = torch.tensor([2, -1, 0])
    if config.text_width:
        cond["text"] = drawn(3, 3, 4, config.text_width)
        cond["text_mask"] = torch.arange(4)[None] < torch.tensor([[3], [0], [1]])
    if config.vector_width:
        cond["vector"] = drawn(4, 3, config.vector_width)
    return cond


TIMES = torch.tensor([0.3, 4.0, 11.0])


@pytest.mark.parametrize("name", [*UNETS, *DITS])
def test_denoising_networks(name):
    config, size = (UNETS | DITS)[name]
    net = opened(build(config, seed=5))
    x = drawn(1, 3, config.channels, *size)
    assert_golden(name, net(x, TIMES, **conditions(config)), net(x, TIMES))


@pytest.mark.parametrize("name", NCSNS)
def test_ncsnpp(name):
    with torch.random.fork_rng(devices=[]):
        net = NCSNpp(NCSNS[name]).double().eval()
    for number, value in enumerate([*net.parameters(), net.map_noise.freqs]):
        fan = value[0].numel() if value.ndim > 1 else 4.0
        value.data = fan**-0.5 * drawn(number, *value.shape) + (value.ndim == 1)
    x = drawn(1, 3, 2, 16, 24)
    labels = (None, torch.tensor([2, -1, 0])) if NCSNS[name].classes else (None,)
    assert_golden(name, *(net(x, TIMES / 4, label) for label in labels))


@pytest.mark.parametrize("name", KLS)
def test_autoencoder(name):
    config = KLS[name]
    with torch.random.fork_rng(devices=[]):
        net = opened(initialise(KLAutoencoder(config), seed=5))
    image = drawn(1, 2, 2, 16, 24)
    mean, logvar = net.moments(image)
    shape = (2, 3, 16 // config.factor, 24 // config.factor)
    assert mean.shape == logvar.shape == shape
    again, *same = net(image, drawn(2, *shape))
    assert torch.equal(mean, same[0])
    assert torch.equal(logvar, same[1])
    torch.testing.assert_close(net(image)[0], net.decode(mean))
    torch.testing.assert_close(again, net.decode(mean + (0.5 * logvar).exp() * drawn(2, *shape)))
    assert_golden(name, mean, logvar, net.decode(drawn(3, *shape)))


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_critic(layers):
    """One verdict for each square of 2^layers pixels; channels double up to eight times the first."""
    with torch.random.fork_rng(devices=[]):
        net = opened(initialise(PatchDiscriminator(channels=2, width=8, layers=layers), seed=5))
    found = net(drawn(1, 2, 2, 32, 64))
    assert found.shape == (2, 1, 32 >> layers, 64 >> layers)
    assert_golden(f"critic {layers}", found)


def test_caption_encoder():
    config = TextConfig(vocabulary=tuple("abcdefg"), length=6, width=24, layers=2, heads=3)
    net = opened(TextEncoder(config, seed=5))
    text, mask = net(["a b z g", "", "c d e f g a b", "a"])
    assert mask.sum(1).tolist() == [4, 0, 6, 1]
    assert_golden("text", text)
