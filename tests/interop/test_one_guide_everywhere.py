"""One guide object, unchanged, on pixels, latents, a consistency model, and a diffusers pipeline."""

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein import grids
from ornstein.denoisers import info_of
from ornstein.guidance import CFG, Backward, Colour, SelfMinority, Universal, add, compose, interval
from ornstein.interop.diffusers import from_pipeline
from ornstein.latents import KLCodec, Normalisation
from ornstein.paths import VE, VP
from ornstein.randomness import Noise

RED = Colour(target=torch.tensor([[0.9, -0.9, -0.9]]))
GUIDES = {
    "forward": Universal(energies=RED, strength=3.0, limit=0.5),
    "backward": Universal(energies=RED, strength=0.0, backward=Backward(steps=3, rate=5.0)),
    "both": Universal(energies=RED, strength=1.0, limit=0.5, backward=Backward(steps=2, rate=5.0), checkpoint=True),
    "in pictures": Universal(energies=RED, strength=0.0, backward=Backward(steps=2, rate=20.0, space="image")),
    "estimate": Universal(energies=RED, strength=3.0, limit=0.5, differentiate_through="estimate"),
}


class Doubling(nn.Module):
    """Latents are pictures at half the size, with a fourth channel that nobody looks at."""

    def moments(self, image):
        half = nn.functional.avg_pool2d(image, 2)
        mean = torch.cat((half, half[:, :1]), dim=1)
        return mean, torch.full_like(mean, -10.0)

    def decode(self, latent):
        return nn.functional.interpolate(latent[:, :3], scale_factor=2.0, mode="nearest")


def small_net(channels):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x, time):
            return 0.5 * x + 0.1 * self.body(x)

    return Net().eval().requires_grad_(False)


def pixels():
    return orn.Denoiser(small_net(3), VP(), "clean", shape=(3, 16, 16)), None


def latents():
    codec = KLCodec(net=Doubling(), factor=2, channels=4, normalisation=Normalisation.of(shift=0.1, scale=2.0))
    return orn.Denoiser(small_net(4), VP(), "clean", shape=(4, 8, 8), codec=codec), None


def consistency():
    model = orn.Denoiser(small_net(3), VE(), "consistency", shape=(3, 16, 16))
    return model, grids.Grid("two", lambda path: (80.0, 0.0, 0.8, 0.0))


@pytest.fixture(params=["pixels", "latents", "consistency", "ddpm", "stable"])
def model(request):
    """(denoiser, grid)."""
    if request.param in ("ddpm", "stable"):
        pytest.importorskip("diffusers")
        pytest.importorskip("transformers")
        folder = request.getfixturevalue("pixels" if request.param == "ddpm" else "stable")
        return from_pipeline(folder, bound=False).denoiser, None
    return globals()[request.param]()


def energy(pictures):
    return RED(pictures).mean()


@pytest.mark.parametrize("name", GUIDES)
def test_the_same_guide_brings_every_model_closer(model, name):
    denoiser, grid = model
    guide = GUIDES[name]
    if name == "in pictures" and info_of(denoiser).codec is None:
        pytest.skip("needs a codec")
    if name == "in pictures" and denoiser.codec.about:
        pytest.skip("an autoencoder with random weights encodes nothing that it would decode")
    options = {"n": 2, "sampler": "ddim", "seed": 1}
    options |= {"steps": 6} if grid is None else {"grid": grid}
    plain, guided = orn.sample(denoiser, **options), orn.sample(guide(denoiser), **options)
    assert plain.shape == guided.shape
    assert plain.shape[1] == 3
    assert guided.isfinite().all()
    assert energy(guided) < energy(plain)


@pytest.mark.parametrize("distance", ["squared", "lite0"])
def test_every_model_can_be_led_away_from_its_own_reconstruction(model, distance):
    """A named perceptual distance sees pictures; each sample is moved by itself."""
    denoiser, _ = model
    path = denoiser.path
    rule, t = SelfMinority(distance=distance, scale=0.5), path.time_of(-0.5)
    x = path.diffuse(0.0, t, Noise.of(0, range(2)).normal("x", denoiser.shape))

    def shift(x, cond):
        bound = denoiser.with_condition(cond)
        return rule(bound)(x, t).clean - bound(x, t).clean

    found = shift(x, denoiser.cond)
    largest = 0.5 * path.sigma(t) ** 2 / path.alpha(t)
    torch.testing.assert_close(found.flatten(1).abs().amax(1), torch.full((2,), largest), rtol=1e-3, atol=1e-4)
    # The perceptual network has kinks (ReLU6): rounding that crosses one changes the gradient by a few per cent, so two
    # batches of different shapes cannot be compared through it. Another neighbour in a batch of the same shape changes
    # no rounding of this row; where everything is smooth the row alone is compared, too.
    other = shift(torch.stack((x[0].flip(-1) + 0.5, x[1])), denoiser.cond)
    torch.testing.assert_close(other[1], found[1], rtol=0.0, atol=1e-6 * largest)
    assert not torch.allclose(other[0], found[0], rtol=0.0, atol=0.1 * largest)
    if distance == "squared":
        alone = shift(x[1:], {key: value[:1] for key, value in denoiser.cond.items()})
        torch.testing.assert_close(alone[0], found[1], rtol=0.0, atol=1e-4 * largest)


def test_every_model_can_begin_louder_and_later(model):
    denoiser, grid = model
    options = {"n": 2, "sampler": "ancestral", "seed": 1} | ({"steps": 4} if grid is None else {"grid": grid})
    plain, loud = orn.sample(denoiser, **options), orn.sample(denoiser, **options, prior_scale=2.0, skip_steps=1)
    assert loud.isfinite().all()
    assert loud.shape == plain.shape
    assert not torch.allclose(loud, plain)


def test_no_strength_is_no_guidance(model):
    denoiser, grid = model
    options = {"n": 1, "sampler": "ddim"} | ({"steps": 3} if grid is None else {"grid": grid})
    none = Universal(energies=RED, strength=0.0)
    assert torch.equal(orn.sample(none(denoiser), **options), orn.sample(denoiser, **options))


def test_the_codec_shows_through_everything():
    denoiser, _ = latents()
    codec = denoiser.codec
    guide = GUIDES["estimate"]
    wrapped = [
        guide(denoiser),
        compose(guide, guide)(denoiser),
        add(guide)(denoiser),
        interval(guide, sigma=(0.1, 10.0))(denoiser),
        orn.CachedDenoiser(denoiser),
        denoiser.with_condition({}),
        CFG(weight=2.0, null={})(denoiser),
    ]
    for one in wrapped:
        assert info_of(one).codec is codec
    assert orn.sample(denoiser, 1, steps=2).shape == (1, 3, 16, 16)
    assert orn.sample(denoiser, 1, steps=2, decode=False).shape == (1, 4, 8, 8)
    own = Universal(energies=lambda z: z[:, 3].square().flatten(1).mean(1), strength=0.1, decode=lambda z: z)
    assert orn.sample(own(denoiser), 1, steps=2).isfinite().all()


def test_decoding_is_split_as_sampling_is():
    denoiser, _ = latents()
    whole = orn.sample(denoiser, 3, steps=2, strict=True)
    assert torch.equal(whole, orn.sample(denoiser, 3, steps=2, strict=True, batch=2))
