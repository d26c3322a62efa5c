"""The published layouts of UDPM's checkpoints, on synthetic files with the same names and shapes."""

import math
import pickle
import zipfile

import pytest
import torch
from torch.nn import functional

import ornstein as orn
from ornstein.errors import CheckpointError
from ornstein.interop import udpm
from ornstein.networks.ncsnpp import NCSNpp, NCSNppConfig
from ornstein.parameterizations import LevelBelow
from ornstein.paths import PyramidPath

TINY = NCSNppConfig(resolution=8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3)


def tiny(seed: int = 0) -> NCSNpp:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NCSNpp(TINY).eval()


@pytest.mark.parametrize(
    ("config", "tensors", "millions"),
    [
        (NCSNppConfig(resolution=16, multipliers=(2, 2, 2), attention=(8, 4, 2), classes=10), 463, 57.74),
        (NCSNppConfig(resolution=16, multipliers=(2, 2, 2), attention=(16,), classes=10), None, 56.42),
        (NCSNppConfig(resolution=32), 622, 65.41),
        (NCSNppConfig(resolution=32, attention=(16,)), None, 62.77),
    ],
)
def test_the_published_networks_have_the_published_size(config, tensors, millions):
    with torch.device("meta"):
        net = NCSNpp(config)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=5e-3)
    assert tensors in (None, len(net.state_dict()))
    found = udpm.infer(net.state_dict())
    # Attention at a resolution that does not exist leaves no trace.
    assert found.attention == tuple(side for side in config.attention if side in dict(config.levels()))
    assert (found.resolution, found.multipliers, found.blocks) == (config.resolution, config.multipliers, config.blocks)
    assert (found.classes, found.width, found.out_channels) == (config.classes, 128, 12)


def test_the_names_are_the_published_ones():
    with torch.device("meta"):
        names = set(
            NCSNpp(NCSNppConfig(resolution=16, multipliers=(2, 2, 2), attention=(8, 4, 2), classes=10)).state_dict()
        )
    assert {
        "map_noise.freqs",
        "map_label.bias",
        "map_layer1.weight",
        "enc.16x16_conv.weight",
        "enc.8x8_down.conv0.resample_filter",
        "enc.8x8_down.skip.resample_filter",
        "enc.8x8_aux_residual.resample_filter",
        "enc.8x8_block3.qkv.weight",
        "dec.4x4_in0.proj.bias",
        "dec.16x16_up.conv0.resample_filter",
        "dec.8x8_block4.norm2.weight",
        "dec.16x16_aux_norm.weight",
        "dec.16x16_aux_conv.bias",
    } <= names


@pytest.mark.parametrize("layout", ["ema", "raw", "parallel"])
def test_both_layouts_round_trip(tmp_path, layout):
    net = tiny()
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    if layout == "parallel":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    optimizer = torch.optim.Adam(net.parameters()).state_dict()
    raw = {"model": weights, "optimizer": optimizer, "epochs": 3, "discriminator": {}, "gScaler": {"scale": 65536.0}}
    file = tmp_path / "model.pt"
    torch.save(raw if layout == "raw" else weights, file)
    model = udpm.load_denoiser(file)
    assert model.shape == (3, 16, 16)
    assert model.parameterization == LevelBelow(scaled=False, preconditioned=False)
    assert isinstance(model.path, PyramidPath)
    assert model.path.rule == "published"
    x, label = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([2, -1])
    told = model.with_condition({"label": label})
    with torch.no_grad():
        expected = functional.pixel_shuffle(net(x, torch.full((2,), 1 / 6), label), 2)
    assert torch.equal(told(x, 1.0).clean, expected)
    two = PyramidPath(alphas=(0.5, 1e-3), sigmas=(0.1, 0.3), factors=(2, 2))
    images = orn.sample(udpm.load_denoiser(file, path=two), 2, cond={"label": label})
    assert images.shape == (2, 3, 16, 16)


def test_a_half_checkpoint_runs_in_float32_and_does_not_learn(tmp_path):
    torch.save({f"net.{name}": tensor.half() for name, tensor in tiny().state_dict().items()}, tmp_path / "half.pt")
    model = udpm.load_denoiser(str(tmp_path / "half.pt"), rule="exact")
    assert model.path.rule == "exact"
    assert {value.dtype for value in model.net.state_dict().values()} == {torch.float32}
    assert not model.net.training
    assert not any(parameter.requires_grad for parameter in model.net.parameters())
    # The side of the pictures is the network's times the factor of the first level.
    path = PyramidPath(alphas=(0.5, 1e-3), sigmas=(0.1, 0.3), factors=(2, 4))
    assert udpm.load_denoiser(tmp_path / "half.pt", path=path).shape == (3, 16, 16)
    grey = NCSNppConfig(resolution=8, width=8, multipliers=(1, 2), blocks=1, attention=(), channels=1, out_channels=4)
    torch.save(NCSNpp(grey).state_dict(), tmp_path / "grey.pt")
    assert udpm.load_denoiser(tmp_path / "grey.pt").shape == (1, 16, 16)
    assert udpm.infer(udpm.read_weights(tmp_path / "grey.pt")) == grey


def test_the_network_works_at_every_size_that_divides():
    net = tiny()
    for side in (2, 4, 16):
        assert net(torch.zeros(1, 3, side, side), torch.tensor([0.5])).shape == (1, 12, side, side)


def test_resampling_filters_keep_constants_and_time_features_are_swapped():
    net = tiny()
    up, down = net.dec["8x8_up"].conv0, net.enc["4x4_down"].conv0
    for part in (up, down):
        with torch.no_grad():
            part.weight.zero_()
            part.weight[:, :, 1, 1] = torch.eye(*part.weight.shape[:2])
    ones = torch.ones(1, 8, 8, 8)
    torch.testing.assert_close(down(ones)[..., 1:-1, 1:-1], torch.ones(1, 8, 2, 2))
    torch.testing.assert_close(up(torch.ones(1, 16, 4, 4))[..., 1:-1, 1:-1], torch.ones(1, 16, 6, 6))
    features = net.map_noise(torch.tensor([0.5]))[0]
    phase = 2 * math.pi * 0.5 * net.map_noise.freqs
    torch.testing.assert_close(features, torch.cat((phase.sin(), phase.cos())))


class Trap:
    def __reduce__(self):
        return (print, ("code of the file was run",))


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    file = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="does not exist"):
        udpm.load_denoiser(file)
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged"):
        udpm.load_denoiser(file)
    file.write_bytes(pickle.dumps({"model": Trap()}))
    with pytest.raises(CheckpointError, match="is damaged, or is no file of weights alone"):
        udpm.load_denoiser(file)
    torch.save({"model": Trap()}, file)
    with pytest.raises(CheckpointError, match="is no file of weights alone"):
        udpm.load_denoiser(file)
    assert "was run" not in capsys.readouterr().out
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="no state dict"):
        udpm.load_denoiser(file)
    torch.save({"net.other.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"no NCSN\+\+ network"):
        udpm.load_denoiser(file)
    weights = {f"net.{name}": tensor for name, tensor in tiny().state_dict().items()}
    torch.save({name: tensor for name, tensor in weights.items() if "map_layer0.bias" not in name}, file)
    with pytest.raises(CheckpointError, match=r"lacks 'map_layer0\.bias'"):
        udpm.load_denoiser(file)
    torch.save(weights | {"net.more": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="holds 'more'"):
        udpm.load_denoiser(file)
    torch.save(weights | {"net.map_layer0.bias": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"'map_layer0.bias' has shape \(1,\)"):
        udpm.load_denoiser(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        udpm.load_denoiser(file)
