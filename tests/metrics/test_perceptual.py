"""Perceptual distances: their formula, their gradients, and that nothing but the images matters."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ornstein.errors import CheckpointError, ConfigError, UsageError
from ornstein.metrics import lpipsnets, perceptual
from ornstein.randomness import Noise


def images(key: str, n: int = 3, side: int = 32) -> torch.Tensor:
    return Noise.of(5, range(n)).normal(key, (3, side, side)).mul(0.4).clamp(-1, 1)


def toy(**options) -> perceptual.PerceptualDistance:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2), nn.SiLU())
    return perceptual.matching(body, ["1", "3"], name="toy", **{"side": 16} | options)


@pytest.fixture(scope="module")
def lite0() -> perceptual.PerceptualDistance:
    return perceptual.lpips()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """Random weights of the three networks, in the published layout."""
    home = tmp_path_factory.mktemp("lpips")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for kind, facts in lpipsnets.KINDS.items():
            state = lpipsnets.Trunk(kind).state_dict()
            state["classifier.1.weight"] = torch.zeros(4, 4)
            torch.save(state, home / facts.trunk)
            heads = {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(facts.widths)}
            if kind == "squeeze":
                save_file(heads, home / "squeeze.safetensors")
            else:
                torch.save(heads, home / f"{kind}.pth")
    return home


DISTANCES = ["lite0", "alex", "vgg", "squeeze", "matching", "scales"]


@pytest.fixture(scope="module")
def distance(request, files, lite0):
    if request.param == "lite0":
        return lite0
    if request.param == "matching":
        return toy()
    if request.param == "scales":
        return toy(scales=3, normalise=True)
    return perceptual.lpips(files / lpipsnets.KINDS[request.param].trunk)


@pytest.mark.parametrize("distance", DISTANCES, indirect=True)
def test_a_distance(distance):
    a, b = images("a"), images("b")
    with torch.no_grad():
        there, back = distance(a, b), distance(b, a)
        assert torch.equal(distance(a, a), torch.zeros(3))
        torch.testing.assert_close(there, back)
        assert there.shape == (3,)
        assert there.dtype == torch.float32
        assert bool((there > 0).all())
        alone = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(there, alone, rtol=1e-4, atol=1e-7)
        # Nearer images are nearer.
        assert bool((distance(a, a + 0.1 * (b - a)) < there).all())


@pytest.mark.parametrize("distance", DISTANCES, indirect=True)
def test_gradients_reach_the_images_alone(distance):
    a, b = images("a", 2).requires_grad_(), images("b", 2)
    distance.train()(a, b).sum().backward()
    assert bool(a.grad.abs().sum() > 0)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert not any(module.training for module in distance.modules())


@pytest.mark.parametrize("distance", ["lite0", "vgg", "matching", "scales"], indirect=True)
def test_gradients_are_slopes(distance):
    a, b = images("a", 1, 24).requires_grad_(), images("b", 1, 24)
    (gradient,) = torch.autograd.grad(distance(a, b).sum(), a)
    # Along the gradient and with a middle step: rectifiers have kinks, float32 has noise.
    direction = gradient / gradient.norm()
    step = 3e-2
    with torch.no_grad():
        slope = (distance(a + step * direction, b) - distance(a - step * direction, b)).item() / (2 * step)
    assert slope == pytest.approx(gradient.norm().item(), rel=0.05)


def test_gradients_are_those_of_the_formula_in_double():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())
    wide = copy.deepcopy(body).double()
    distance = perceptual.matching(body, name="body", side=6, normalise=True)
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (perceptual.IMAGENET_MEAN, perceptual.IMAGENET_STD))

    def formula(a, b):
        f, g = (wide((x / 2 + 0.5 - mean) / std) for x in (a, b))
        f, g = (z / (z.square().sum(1, keepdim=True) + 1e-8).sqrt() for z in (f, g))
        return (f - g).square().sum(1).mean((1, 2))

    a, b = (images(key, 1, 6).double().requires_grad_() for key in "ab")
    assert torch.autograd.gradcheck(formula, (a, b))
    ours, theirs = (torch.autograd.grad(one(a, b).sum(), (a, b)) for one in (distance, formula))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("distance", ["lite0", "matching"], indirect=True)
def test_autocast_changes_nothing(distance):
    a, b = images("a"), images("b")
    with torch.no_grad():
        plain = distance(a, b)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(distance(a, b), plain)
        half = distance(a.bfloat16(), b)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=1e-3)


def test_small_images_are_enlarged_and_others_left():
    small = images("a", 2, 20)[..., :16]
    large = perceptual.enlarged(small, 64)
    assert large.shape == (2, 3, 80, 64)
    assert torch.equal(perceptual.enlarged(large, 64), large)
    one, two = toy(side=32), toy(side=1)
    a, b = images("a", 2, 16), images("b", 2, 16)
    torch.testing.assert_close(one(a, b), two(perceptual.enlarged(a, 32), perceptual.enlarged(b, 32)))


def test_scales_average_halved_images():
    a, b = images("a"), images("b")
    plain = toy(side=1)
    halves = [(a, b)]
    for _ in range(2):
        halves.append(tuple(nn.functional.avg_pool2d(x, 2) for x in halves[-1]))
    torch.testing.assert_close(toy(side=1, scales=3)(a, b), torch.stack([plain(*pair) for pair in halves]).mean(0))


@pytest.mark.parametrize("kind", ["alex", "vgg", "squeeze"])
def test_lpips_is_its_formula(kind, files):
    """Written out again, and with layers applied by name: unit vectors, heads as 1 × 1 convolutions, spatial means."""
    distance = perceptual.lpips(files / lpipsnets.KINDS[kind].trunk)
    assert distance.name.startswith(f"lpips-{kind}-")  # not the published weights: not their name
    facts = lpipsnets.KINDS[kind]
    a, b = images("a", 2, 70), images("b", 2, 70)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = (a - shift) / scale, (b - shift) / scale
    heads = iter(distance.heads)
    expected = torch.zeros(2)
    for index, layer in enumerate(distance.module.features):
        x, y = layer(x), layer(y)
        if index in facts.taps:
            one, two = (z / z.pow(2).sum(1, keepdim=True).add(1e-8).sqrt() for z in (x, y))
            lin = nn.functional.conv2d((one - two) ** 2, next(heads)[None, :, None, None])
            expected = expected + lin.mean([2, 3])[:, 0]
    torch.testing.assert_close(distance(a, b), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["alex", "vgg", "squeeze"])
def test_lpips_agrees_with_torchmetrics(kind, files, monkeypatch):
    """The same weights in the widely used implementation; its networks come from torchvision, here from ours."""
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    heads = Path(theirs.__file__).parent / "lpips_models" / f"{kind}.pth"
    ours = perceptual.lpips(kind, trunk=files / lpipsnets.KINDS[kind].trunk, heads=heads)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: ours.module.features)
    reference = theirs._LPIPS(net=kind, pretrained=True, eval_mode=True)
    a, b = images("a", 2, 80), images("b", 2, 80)
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), reference(a, b).flatten(), rtol=1e-4, atol=1e-7)


def test_networks_have_the_published_sizes():
    """Parameters of the convolutions of torchvision's networks (AlexNet, VGG-16, SqueezeNet 1.1)."""
    sizes = {"alex": 2_469_696, "vgg": 14_714_688, "squeeze": 722_496}
    for kind, size in sizes.items():
        with torch.device("meta"):
            net = lpipsnets.Trunk(kind)
        assert sum(p.numel() for p in net.parameters()) == size
        with torch.device("meta"):
            taps = net(torch.zeros(1, 3, 64, 64))
        assert tuple(tap.shape[1] for tap in taps) == lpipsnets.KINDS[kind].widths


def test_weights_are_found_and_refused(files, tmp_path, monkeypatch):
    assert perceptual.lpips(files).name.startswith("lpips-alex-")  # a folder: the first network in it
    assert perceptual.lpips("squeeze", trunk=files / "squeezenet1_1-b8a52dc0.pth", heads=files / "squeeze.safetensors")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no weights vgg16-397923af\.pth: looked in"):
        perceptual.lpips("vgg")
    with pytest.raises(CheckpointError, match="no perceptual network 'vgg19'"):
        perceptual.lpips("vgg19")
    with pytest.raises(CheckpointError, match="holds heads of"):
        perceptual.lpips("vgg", trunk=files / "vgg16-397923af.pth", heads=files / "alex.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights of vgg"):
        perceptual.lpips("vgg", trunk=files / "alexnet-owt-7be5be79.pth", heads=files / "vgg.pth")
    (tmp_path / "torn.pth").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        perceptual.lpips(tmp_path / "torn.pth")
    with pytest.raises(ConfigError, match="its own weights"):
        perceptual.lpips("lite0", trunk=files / "vgg16-397923af.pth")


def test_matching_reads_layers_and_returned_features():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
    a, b = images("a"), images("b")
    whole = perceptual.matching(body, name="whole", side=1)(a, b)
    named = perceptual.matching(body, ["2"], name="named", side=1)(a, b)
    torch.testing.assert_close(whole, named)
    # A rectifier that writes over the feature before it does not change that feature.
    before = perceptual.matching(body, ["0"], name="before", side=1)(a, b)
    shift = torch.tensor(perceptual.IMAGENET_MEAN).view(1, 3, 1, 1)
    scale = torch.tensor(perceptual.IMAGENET_STD).view(1, 3, 1, 1)
    f, g = (body[0]((x / 2 + 0.5 - shift) / scale) for x in (a, b))
    torch.testing.assert_close(before, (f - g).square().mean((1, 2, 3)))
    two = perceptual.matching(body, ["0", "2"], name="two", side=1, weights=[3.0, 0.5])(a, b)
    torch.testing.assert_close(two, 3.0 * before + 0.5 * named)


class Listed(nn.Module):
    """As timm's networks with features_only=True."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, x):
        x = self.a(x)
        return [x, self.b(x), x.mean((2, 3))]


def test_lists_of_features():
    """Maps and vectors: the mean over channels of each, and over pixels where there are any; together their mean."""
    a, b = images("a"), images("b")
    net = Listed()
    found = perceptual.matching(net, name="listed", side=1)(a, b)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (perceptual.IMAGENET_MEAN, perceptual.IMAGENET_STD))
    with torch.no_grad():
        ours, theirs = (net((x / 2 + 0.5 - mean) / std) for x in (a, b))
        errors = [(f - g).square().flatten(1).mean(1) for f, g in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(found, sum(errors) / 3, rtol=1e-4, atol=1e-7)
    directions = perceptual.matching(net, name="listed", side=1, normalise=True, weights=[0.0, 0.0, 1.0])(a, b)
    f, g = (x[2] / (x[2].square().sum(1, keepdim=True) + 1e-8).sqrt() for x in (ours, theirs))
    torch.testing.assert_close(directions, (f - g).square().sum(1), rtol=1e-4, atol=1e-7)


def test_heads_weigh_channels_and_weights_features():
    """Heads are of the channels of a feature; the features count fully then, and as 1/K without."""

    def distance(**options):
        still = {"module": nn.Identity(), "shift": (0.0,) * 3, "scale": (1.0,) * 3, "side": 1}
        return perceptual.PerceptualDistance("two", lambda x: [x, 2.0 * x[:, :2]], **still, **options)

    a, b = images("a"), images("b")
    f, g = a.double(), b.double()
    apart = [(x - y).square() for x, y in ((f, g), (2 * f[:, :2], 2 * g[:, :2]))]
    plain = [x.mean((1, 2, 3)) for x in apart]
    torch.testing.assert_close(distance(normalise=False)(a, b).double(), sum(plain) / 2, rtol=1e-5, atol=0)
    weighed = distance(normalise=False, weights=[3.0, 0.5])(a, b).double()
    torch.testing.assert_close(weighed, 3 * plain[0] + 0.5 * plain[1], rtol=1e-5, atol=0)
    heads = [torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.5, 4.0])]
    rows = [(x * head.double().view(1, -1, 1, 1)).mean((1, 2, 3)) for x, head in zip(apart, heads, strict=True)]
    torch.testing.assert_close(distance(normalise=False, heads=heads)(a, b).double(), sum(rows), rtol=1e-5, atol=0)
    for wrong, message in (
        ({"heads": [torch.tensor([1.0, -1.0, 0.0]), torch.ones(2)]}, "must not be negative"),
        ({"weights": [1.0, -1e-9]}, "must not be negative"),
        ({"heads": [torch.ones(3)]}, "two has 2 features but 1 heads"),
        ({"weights": [1.0] * 3}, "two has 2 features but 3 weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            distance(**wrong)(a, b)
    assert distance().state_dict() == {}


def test_images_are_halved_down_to_single_pixels():
    a, b = images("a")[..., :2, :2], images("b")[..., :2, :2]
    assert toy(scales=2)(a, b).shape == (3,)
    with pytest.raises(UsageError, match=r"images of \(1, 1\) pixels cannot be halved"):
        toy(scales=3)(a, b)
    with pytest.raises(UsageError, match=r"images of \(2, 1\) pixels cannot be halved"):
        toy(scales=2)(a[..., :1], b[..., :1])


def test_bad_input_is_refused():
    a = images("a")
    distance = toy()
    with pytest.raises(UsageError, match="floating-point images"):
        distance((a * 100).to(torch.uint8), a)
    with pytest.raises(UsageError, match="differ in shape"):
        distance(a, a[:2])
    with pytest.raises(UsageError, match="cannot be halved"):
        toy(scales=7)(a, a)
    with pytest.raises(ConfigError, match="no layer '9'"):
        perceptual.matching(nn.Sequential(nn.Conv2d(3, 4, 3)), ["9"], name="x")
    with pytest.raises(ConfigError, match="1 weights"):
        perceptual.matching(Listed(), name="x", weights=[1.0])(a, a)
    with pytest.raises(ConfigError, match="negative"):
        toy(weights=[1.0, -1.0])
