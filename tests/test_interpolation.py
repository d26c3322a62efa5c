"""Images between images: exact ends, white mixtures, continuity, and the levels of a pyramid."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein import samplers
from ornstein.errors import PathError, UsageError
from ornstein.interpolation import Between, Mixed, Square, Varied, arc, level_key
from ornstein.parameterizations import LevelBelow
from ornstein.paths import VP, PyramidPath
from ornstein.randomness import Noise

SHAPE = (3, 16, 16)


def wavy(x, time):
    """A smooth network without weights: a pure function of each row."""
    large = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
    return torch.tanh(3.0 * large + 0.3 * large.roll(1, 2))


def pyramid(**options) -> orn.Denoiser:
    return orn.Denoiser(wavy, PyramidPath(**options), LevelBelow(scaled=False, preconditioned=False), shape=SHAPE)


def flat() -> orn.Denoiser:
    return orn.Denoiser(lambda x, time: torch.tanh(x), VP(), "clean", shape=SHAPE)


MODELS = pytest.mark.parametrize("model", [pyramid(), flat()], ids=["pyramid", "vp"])


@MODELS
@pytest.mark.parametrize("batch", [None, 3])
def test_the_ends_are_the_two_images(model, batch):
    # The same bits beside other images are what strict=True promises.
    frames = orn.sample(model, 5, batch=batch, steps=3, noise=Between(a=4, b=9, frames=5, seed=7), strict=True)
    assert torch.equal(frames[0], orn.sample(model, 1, steps=3, first=4, seed=7, strict=True)[0])
    assert torch.equal(frames[-1], orn.sample(model, 1, steps=3, first=9, seed=7, strict=True)[0])
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(frames))


@MODELS
def test_the_path_between_them_is_continuous(model):
    gaps = [
        (frames[1:] - frames[:-1]).abs().max().item()
        for frames in (orn.sample(model, n, steps=3, noise=Between(a=0, b=1, frames=n)) for n in (9, 33, 129))
    ]
    assert gaps[1] < 0.4 * gaps[0]
    assert gaps[2] < 0.4 * gaps[1]


@MODELS
def test_the_corners_of_a_square_are_the_four_images(model):
    images = orn.sample(model, 16, steps=3, noise=Square(corners=(3, 1, 4, 5), side=4), strict=True)
    alone = [orn.sample(model, 1, steps=3, first=i, strict=True)[0] for i in (3, 1, 4, 5)]
    assert all(torch.equal(images[at], image) for at, image in zip((0, 3, 12, 15), alone, strict=True))


def test_mixtures_stay_white():
    shares = arc(6)
    assert shares[0] == (1.0, 0.0)
    assert shares[-1] == (0.0, 1.0)
    assert all(cosine**2 + sine**2 == pytest.approx(1.0) for cosine, sine in shares)
    source = Between(a=0, b=1, frames=6)(range(6), torch.device("cpu"), torch.float32)
    noise = source.normal("prior", (3, 64, 64))
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(6), rtol=0.02, atol=0)
    forked = source.fork("other").normal("prior", (3, 64, 64))
    assert not torch.equal(forked, noise)
    assert torch.equal(forked[0], Noise.of(0, [0]).fork("other").normal("prior", (3, 64, 64))[0])
    steps = source.brownian_increment("w", 0.0, 0.25, (64, 64))
    torch.testing.assert_close(steps.flatten(1).std(1), torch.full((6,), 0.5), rtol=0.05, atol=0)
    assert source.uniform("u") == Noise.of(0, [0]).uniform("u")


def test_a_variation_of_a_level_leaves_the_others_noise_alone():
    path = PyramidPath()
    assert [level_key(path, level) for level in (1, 2, 3)] == [1, 0, "prior"]
    device, dtype = torch.device("cpu"), torch.float32
    for level in (1, 2, 3):
        source = Varied(image=5, key=level_key(path, level), keep=0.6)(range(3), device, dtype)
        own = Noise.of(0, [5] * 3)
        for key in ("prior", 0, 1):
            noise, before = source.normal(key, (4, 4)), own.normal(key, (4, 4))
            assert torch.equal(noise[0], before[0])
            changed = key == level_key(path, level)
            assert torch.equal(noise[1:], before[1:]) != changed
            assert not changed or not torch.equal(noise[1], noise[2])
    for keep, same in ((1.0, True), (0.0, False)):
        images = orn.sample(pyramid(), 3, noise=Varied(image=5, key="prior", keep=keep), strict=True)
        assert torch.equal(images[0], orn.sample(pyramid(), 1, first=5, strict=True)[0])
        assert torch.equal(images[1], images[0]) == same


def test_details_change_less_than_what_is_seen():
    # Of a network that adds up what it is shown: the smallest level is seen in every pixel's surroundings.
    model = pyramid(alphas=(0.5, 0.5, 0.5), sigmas=(0.1, 0.1, 0.1))
    images = {
        level: orn.sample(model, 5, noise=Varied(image=0, key=level_key(model.path, level))) for level in (1, 2, 3)
    }
    coarse = {
        level: torch.nn.functional.avg_pool2d(x[1:] - x[:1], 8).square().mean().item() for level, x in images.items()
    }
    assert coarse[1] < coarse[3]


def test_the_default_sampler_suits_the_path_and_costs_three_evaluations():
    assert samplers.default_for(PyramidPath()) == "ancestral"
    assert samplers.default_for(VP()) == "dpmpp-2m"
    asked: list[int] = []

    def counted(x, time):
        asked.append(x.shape[-1])
        return wavy(x, time)

    model = orn.Denoiser(counted, PyramidPath(), LevelBelow(scaled=False, preconditioned=False), shape=SHAPE)
    images = orn.sample(model, 2)
    assert images.shape == (2, *SHAPE)
    assert asked == [2, 4, 8]
    assert torch.equal(images, orn.sample(model, 2, sampler="ancestral", evaluations=3))
    assert torch.equal(images, orn.sample(model, 2, sampler="auto", evaluations=5))
    with pytest.raises(PathError, match=r"DDIM needs mean.*PyramidPath does not have: use the Ancestral"):
        orn.sample(model, 1, sampler="ddim")
    with pytest.raises(PathError, match=r"DPMSolver needs alpha\(t\), sigma\(t\) and log_snr\(t\)"):
        orn.sample(model, 1, sampler="dpmpp-2m")


def test_the_rules_differ_by_one_percent_at_most():
    exact, published = (orn.sample(pyramid(rule=rule), 4) for rule in ("exact", "published"))
    assert not torch.equal(exact, published)
    assert (exact - published).abs().max() < 0.05


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="at least 2 frames"):
        Between(a=0, b=1, frames=1)
    with pytest.raises(UsageError, match="VP has no levels"):
        level_key(VP(), 1)
    for level in (0, 4):
        with pytest.raises(UsageError, match="choose 1"):
            level_key(PyramidPath(), level)
    with pytest.raises(UsageError, match="keep must lie"):
        Varied(image=0, key=1, keep=math.nan)
    assert Mixed(first=Noise.of(0, [0]), second=Noise.of(0, [1]), shares=((1.0, 0.0),)).uniform_per_sample(
        "u"
    ).shape == (1,)
