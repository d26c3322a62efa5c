"""The networks of metrics by their outputs: goldens in float64, shapes known from papers, formulas written out."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ornstein import metrics
from ornstein.errors import CheckpointError, ConfigError
from ornstein.metrics import lpipsnets, perceptual
from ornstein.metrics.features import NetworkFeatures, resized
from ornstein.metrics.inceptionv3 import FILES, STANDARD, STANDARD_SHA256, Inception, find_weights
from ornstein.storage import hub as hubfiles

KINDS = ("alex", "vgg", "squeeze")


def seeded(make, seed=0):
    """A module with reproducible weights in float64, biases and running statistics among them."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = make().double().eval()
        for name, value in net.state_dict().items():
            draw = torch.rand(value.shape, dtype=torch.float64) if value.is_floating_point() else value
            if "running_var" in name or name.endswith("bn.weight"):
                value.copy_(0.5 + draw)
            elif value.ndim > 1:  # of unit gain, so that no layer fades
                value.copy_((draw - 0.5) * (12.0 * 2.0 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                value.copy_(0.2 * (draw - 0.5))
    return net


def waves(*shape):
    """A picture without symmetry, of a formula."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.37).cumsum(0).sin().reshape(shape)


def summary(x):
    """Mean, deviation, and two projections that see every place."""
    flat = x.flatten().double()
    way = torch.linspace(-1.0, 1.0, flat.numel(), dtype=torch.float64)
    return [float(v) for v in (flat.mean(), flat.std(), (flat * way).mean(), (flat * torch.cos(40.0 * way)).mean())]


# ------------------------------------------------------------------------------------------------------------ inception


def test_inception_is_the_graph_of_2015():
    net = seeded(Inception)
    with torch.inference_mode():
        found = net.heads(waves(1, 3, 139, 107))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "pooled": (1, 2048),
        "spatial": (1, 7 * 7 * 5),
        "classes": (1, 1008),
    }
    for name, value in found.items():
        assert summary(value) == pytest.approx(INCEPTION[name], rel=1e-7), name


INCEPTION = {
    "pooled": [3.6637546097244638, 4.698476954940909, 0.13960593062325094, 0.15922669978767226],
    "spatial": [3.815607015754383, 5.764725572566987, -0.6647936656829346, -0.10098823270550565],
    "classes": [0.03868042679080491, 8.26887164505319, 0.019112107744716986, 0.04356840355301618],
}


def test_the_published_weights_are_named():
    assert STANDARD == "inception-2015-12-05"
    assert STANDARD_SHA256 == "6726825d"
    assert FILES == ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")


def test_weights_are_looked_for_under_both_names_in_both_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    own, usual = tmp_path / "hub" / "checkpoints", tmp_path / "home" / ".cache" / "torch" / "hub" / "checkpoints"
    for folder, name in ((usual, FILES[1]), (usual, FILES[0]), (own, FILES[1]), (own, FILES[0])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        assert find_weights() == folder / name
    (tmp_path / "home" / "w.pth").touch()
    assert find_weights("~/w.pth") == tmp_path / "home" / "w.pth"
    usual.joinpath("alexnet-owt-7be5be79.safetensors").touch()
    with pytest.raises(CheckpointError, match="damaged, or cannot be read"):  # found, and refused for what it holds
        perceptual.lpips("alex", heads=tmp_path / "home" / "w.pth")


# ---------------------------------------------------------------------------------------------------------------- lpips


def test_trunks_have_the_sizes_of_the_papers():
    """Sides of the compared features at 224 pixels: strides, paddings and pools of torchvision's networks."""
    sides = {
        "alex": [55, 27, 13, 13, 13],
        "vgg": [224, 112, 56, 28, 14],
        "squeeze": [111, 55, 27, 13, 13, 13, 13],
    }
    odd = {"alex": [16, 7, 3, 3, 3], "vgg": [67, 33, 16, 8, 4], "squeeze": [33, 16, 8, 4, 4, 4, 4]}
    for kind in KINDS:
        with torch.device("meta"):
            net = lpipsnets.Trunk(kind)
            assert [tap.shape[-1] for tap in net(torch.zeros(1, 3, 224, 224))] == sides[kind]
            assert [tap.shape[-1] for tap in net(torch.zeros(1, 3, 67, 67))] == odd[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_trunks_by_their_outputs(kind):
    net = seeded(lambda: lpipsnets.Trunk(kind))
    with torch.inference_mode():
        taps = net(waves(1, 3, 40, 35))
    assert [tap.shape[1] for tap in taps] == list(lpipsnets.KINDS[kind].widths)
    assert all(bool((tap >= 0).all()) for tap in taps)
    found = [summary(tap)[i % 4] for i, tap in enumerate(taps)]
    assert found == pytest.approx(TRUNKS[kind], rel=1e-7)


TRUNKS = {
    "alex": [0.39058569626834155, 0.8080817349739613, 0.015188497241511644, -0.00478696608807622, 0.04330599446433031],
    "vgg": [0.3159789389529321, 0.5348260861762774, 0.014059611021137028, 9.676285695590093e-05, 0.1518031256961595],
    "squeeze": [
        *(0.40330642791059557, 0.847560520630329, -0.003450904907203942, -0.007324477292039625),
        *(0.8435054419802883, 1.3884188904105612, -0.07939770033760243),
    ],
}


def test_published_files_are_known_by_their_digests():
    names = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
    taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
    for kind, known in lpipsnets.KINDS.items():
        assert (known.trunk, known.taps) == (names[kind], taps[kind])
        assert known.digest == names[kind][-12:-4]
    theirs = importlib.util.find_spec("torchmetrics")
    if theirs is None or theirs.origin is None:
        pytest.skip("torchmetrics has the heads of version 0.1")
    for kind, known in lpipsnets.KINDS.items():
        data = (Path(theirs.origin).parent / "functional" / "image" / "lpips_models" / f"{kind}.pth").read_bytes()
        assert hashlib.sha256(data).hexdigest() == known.heads


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random weights of AlexNet and its heads."""
    home = tmp_path_factory.mktemp("lpips")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.save(lpipsnets.Trunk("alex").state_dict(), home / "trunk.pth")
        widths = lpipsnets.KINDS["alex"].widths
        torch.save({f"lin{k}.model.1.weight": torch.rand(1, w, 1, 1) for k, w in enumerate(widths)}, home / "alex.pth")
        torch.save({f"lins.{k}.weight": torch.full((1, w), k + 1.0) for k, w in enumerate(widths)}, home / "heads.pth")
    return home


def test_only_both_published_files_together_are_lpips(files, monkeypatch):
    known = lpipsnets.KINDS["alex"]
    sums = [hashlib.sha256((files / name).read_bytes()).hexdigest() for name in ("trunk.pth", "alex.pth")]
    other = hashlib.sha256("".join(sums).encode()).hexdigest()[:8]
    published = {"trunk": f"alexnet-owt-{sums[0][:8]}.pth", "heads": sums[1]}
    for changes, name in (
        (published, "lpips-alex"),
        ({"trunk": published["trunk"]}, f"lpips-alex-{other}"),
        ({"heads": published["heads"]}, f"lpips-alex-{other}"),
    ):
        monkeypatch.setitem(lpipsnets.KINDS, "alex", replace(known, **changes))
        assert perceptual.lpips("alex", trunk=files / "trunk.pth", heads=files / "alex.pth").name == name


def test_heads_are_read_in_the_order_of_their_numbers(files, tmp_path):
    known = lpipsnets.KINDS["alex"]
    heads = lpipsnets.read_heads(files / "heads.pth", known)
    assert [(head.numel(), float(head.unique())) for head in heads] == [
        (w, k + 1.0) for k, w in enumerate(known.widths)
    ]
    state = torch.load(files / "heads.pth", weights_only=True)
    torch.save(
        dict(reversed(state.items())) | {"lins.0.bias": torch.ones(3), "scale": torch.ones(2)}, tmp_path / "h.pth"
    )
    assert [float(head[0]) for head in lpipsnets.read_heads(tmp_path / "h.pth", known)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    # Of a folder or of a file, with the heads that lie beside it.
    torch.save(torch.load(files / "trunk.pth", weights_only=True), tmp_path / known.trunk)
    torch.save({f"lins.{k}.weight": torch.full((w,), 7.0) for k, w in enumerate(known.widths)}, tmp_path / "alex.pth")
    for where in (tmp_path, str(tmp_path), tmp_path / known.trunk):
        assert float(perceptual.lpips(where).heads[0][0]) == 7.0
    assert float(perceptual.lpips(tmp_path, heads=files / "heads.pth").heads[0][0]) == 1.0
    with pytest.raises(CheckpointError, match="holds none of alexnet-owt-7be5be79"):
        perceptual.lpips(tmp_path / ".." / tmp_path.name / "..")
    with pytest.raises(CheckpointError, match="no weights at"):
        perceptual.lpips("alex", trunk=tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"no weights at .* give the path of alex\.pth"):
        perceptual.lpips("alex", trunk=tmp_path / known.trunk, heads=tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="unknown LPIPS network 'resnet': choose one of alex, vgg, squeeze"):
        lpipsnets.load_trunk("resnet", None, None)


# ---------------------------------------------------------------------------------------------------------------- lite0


@pytest.fixture(scope="module")
def lite0():
    return metrics.lite0()


def pictures(n, side=40):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def walked(net, x):
    """Outputs of all blocks of the package's network, by hooks."""
    seen = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out.clone())) for block in net._blocks]
    with torch.inference_mode():
        net.extract_features(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_lite0s_outputs_are_its_fifth_block_and_its_classifier(lite0):
    x = (resized(pictures(2), 128) - 127.0) / 128.0
    found = lite0.outputs(pictures(2))
    blocks = walked(lite0.module, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found["spatial"], blocks[4][:, :7].flatten(1), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(found["classes"], lite0.module._fc(found["pooled"]))


def test_the_distance_on_lite0_is_its_formula(lite0):
    """Five features, the last at each resolution; images (RGB·255 − 127)/128; all channels and features alike."""
    distance = perceptual.lpips()
    a, b = (torch.rand(2, 3, 70, 80, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    ours, theirs = ([walked(lite0.module, (127.5 * (x + 1) - 127) / 128)[i] for i in (0, 2, 4, 10, 15)] for x in (a, b))
    expected = torch.zeros(2, dtype=torch.float64)
    for f, g in zip(ours, theirs, strict=True):
        f, g = (z.double() / (z.double().square().sum(1, keepdim=True) + 1e-8).sqrt() for z in (f, g))
        expected += (f - g).square().sum(1).mean((1, 2)) / 5.0
    torch.testing.assert_close(distance(a, b).double(), expected, rtol=1e-4, atol=1e-6)
    assert (distance.name, distance.side, distance.scales) == ("lite0", 64, 1)
    # ((x + 1)·127.5 − 127)/128 = (x − shift)/scale
    for buffer, value in ((distance.shift, -0.5 / 127.5), (distance.scale, 128 / 127.5)):
        torch.testing.assert_close(buffer.flatten(), torch.full((3,), value), rtol=1e-6, atol=0)
    # Smaller than 64 pixels: enlarged to them.
    a, b = a[..., :30, :40], b[..., :30, :40]
    big = [nn.functional.interpolate(x, size=(64, 85), mode="bilinear", align_corners=False) for x in (a, b)]
    torch.testing.assert_close(distance(a, b), distance(*big), rtol=1e-4, atol=1e-6)


def test_unit_length_is_smooth_at_zero():
    """f/√(|f|² + 10⁻⁸): features of size 10⁻⁴ are not yet of unit length."""
    body = nn.Conv2d(3, 2, 1, bias=False)
    distance = perceptual.matching(body, name="tiny", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), normalise=True, side=1)
    with torch.no_grad():
        body.weight.copy_(torch.tensor([[1e-4, 0.0, 0.0], [0.0, 2e-4, 0.0]]).reshape(2, 3, 1, 1))
        a, b = (torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
        unit = []
        for x in (a, b):
            f = x[:, :2].double() * torch.tensor([1e-4, 2e-4], dtype=torch.float64).reshape(1, 2, 1, 1)
            unit.append(f / (f.square().sum(1, keepdim=True) + 1e-8).sqrt())
        expected = (unit[0] - unit[1]).square().sum(1).mean((1, 2))
        torch.testing.assert_close(distance(a, b).double(), expected, rtol=1e-4, atol=0)


def test_defaults_of_matching():
    features = importlib.import_module("ornstein.metrics.features")
    assert perceptual.IMAGENET_MEAN == features.IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert perceptual.IMAGENET_STD == features.IMAGENET_STD == (0.229, 0.224, 0.225)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    a, b = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    plain = perceptual.matching(body, ["0", "2"], name="x")(a, b)
    named = perceptual.matching(
        body, ["0", "2"], name="x", weights=[0.5, 0.5], normalise=False, side=64, scales=1, mean=(0.485, 0.456, 0.406)
    )
    torch.testing.assert_close(plain, named(a, b))
    assert not torch.allclose(plain, perceptual.matching(body, ["0", "2"], name="x", side=16)(a, b), rtol=1e-3)
    for wrong in ({"side": 0}, {"scales": 0}):
        with pytest.raises(ConfigError, match="side and scales must be at least 1"):
            perceptual.matching(body, name="x", **wrong)
    with pytest.raises(ConfigError, match="layer 'spare' is not visited"):
        body.add_module("spare", nn.Identity())
        body.forward = lambda x: body[0](x)  # type: ignore[method-assign]
        perceptual.matching(body, ["spare"], name="x")(a, b)
    with pytest.raises(ConfigError, match=r"no layer 'conv3': did you mean 'conv'\?"):
        named = nn.Sequential()
        named.add_module("conv", nn.Conv2d(3, 3, 1))
        perceptual.matching(named, ["conv3"], name="x")


# ------------------------------------------------------------------------------------------------------------- features


def test_a_feature_network_shifts_and_scales_by_channel():
    seen = []

    def body(x):
        seen.append(x)
        return {"pooled": x.mean((2, 3))}

    net = NetworkFeatures("n", 3, body, module=nn.Identity(), side=16, shift=[1.0, 2.0, 3.0], scale=[4.0, 5.0, 6.0])
    found = net(pictures(2))
    expected = (resized(pictures(2), 16) - torch.tensor([1.0, 2, 3]).reshape(3, 1, 1)) / torch.tensor(
        [4.0, 5, 6]
    ).reshape(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(found, expected.mean((2, 3)))
    assert (net.heads, net.width, net.name) == (("pooled",), 3, "n")
    flat = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    flat[..., 10:] = 0
    assert float(resized(flat, 33).max()) == 255.0  # clipped to the range, which bicubic filters leave
    assert float(resized(flat, 33).min()) == 0.0


def test_names_of_features_lead_to_their_networks(tmp_path, monkeypatch):
    for name in ("inception", "inception-2015-12-05", "inception-0badcafe"):
        with pytest.raises(CheckpointError, match="no Inception weights at"):
            metrics.features(name, weights=tmp_path / "absent")
    for name in ("dinov2", "dinov2-1024-p14-0badcafe"):
        with pytest.raises(CheckpointError, match="no DINOv2 network at"):
            metrics.features(name, weights=tmp_path / "absent")
    for name in ("inceptions", "dinov3", "lite1", ""):
        with pytest.raises(ConfigError, match="unknown features"):
            metrics.features(name)


def test_a_digest_of_weights_is_that_of_all_files_in_order(tmp_path):
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert [path.name for path in hubfiles.weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    assert hubfiles.digest_of(tmp_path) == hashlib.sha256(b"onetwo").hexdigest()[:8]
    with pytest.raises(CheckpointError, match=r"no net at 'a/b', .*: `hf download a/b` once, or give the path"):
        hubfiles.find_folder("a/b", "net")
    for wrong in ("a/b/c", "a"):
        with pytest.raises(CheckpointError, match=rf"no net at '{wrong}', .* cache: give the path of its folder$"):
            hubfiles.find_folder(wrong, "net")
    assert hubfiles.find_folder(str(tmp_path), "net") == tmp_path
