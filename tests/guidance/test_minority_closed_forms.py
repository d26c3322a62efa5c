"""Minority guidance against its formulas: noise, levels, distances, labels, and every step of the token."""

import math

import pytest
import torch
from torch import Tensor, nn

from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, GridError, UsageError
from ornstein.metrics.pairs import distance
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise

F64 = torch.float64
X = Noise.of(0, range(3), dtype=F64).normal("x", (2, 2))
TIMES = {"VP": 0.4, "VE": 1.7, "Flow": 0.6}
PATHS = [VP(), VE(), Flow()]


def net(x: Tensor, time: Tensor) -> Tensor:
    return torch.tanh(0.8 * x) + 0.3 * x.roll(1, -1)


def noise_of(t: float | Tensor, seed: int, draw: int, event=(2, 2)) -> Tensor:
    """Common to the batch: a function of the seed, the time and the draw."""
    place = "batch" if isinstance(t, Tensor) else float(t).hex()
    return Noise.of(seed, [0], dtype=F64).normal(("minority", place, draw), event)


def far(x: Tensor, path, t, level: float, seed: int, draws: int, pair, look=lambda z: z) -> Tensor:
    """The distance of x̂_0 from its own reconstructions, which are held fixed."""
    clean, p = net(x, torch.zeros(len(x))), path.time_of(level)
    total = torch.zeros(len(x), dtype=F64)
    for draw in range(draws):
        with torch.no_grad():
            other = net(path.alpha(p) * clean + path.sigma(p) * noise_of(t, seed, draw), torch.zeros(len(x)))
        total = total + pair(look(clean), look(other))
    return total / draws


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", ["squared", "absolute"])
def test_the_shift_away_from_the_own_reconstruction(path, normalise, name):
    """s·(σ²/α)·g/max|g|, with a strength that follows the noise; three draws; another seed and level; any time."""
    pair, one = distance(name)[1], TIMES[type(path).__name__]
    for t in (one, torch.tensor([one, 0.7 * one, 1.2 * one], dtype=F64)):
        leaf = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(far(leaf, path, t, -0.7, 4, 3, pair).sum(), leaf)
        if normalise:
            gradient = gradient / gradient.abs().amax((1, 2), keepdim=True)
        column = torch.as_tensor(t, dtype=F64).reshape(-1, 1, 1)
        alpha, sigma = path.alpha(column), path.sigma(column)
        level = 2.0 * (alpha.log() - sigma.log())
        wanted = net(X, torch.zeros(3)) + (0.3 + 0.05 * level) * sigma**2 / alpha * gradient
        rule = guide.SelfMinority(
            scale=lambda s: 0.3 + 0.05 * s, log_snr=-0.7, distance=name, draws=3, seed=4, normalise=normalise
        )
        found = rule(Denoiser(net, path, "clean"))(X, t)
        torch.testing.assert_close(found.clean, wanted, rtol=1e-10, atol=1e-10)
        assert not found.clean.requires_grad


def test_every_nth_time_is_counted_from_the_noisiest_by_the_nearest():
    path, grid = Flow(), [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]
    model = Denoiser(net, path, "clean")
    rule = guide.SelfMinority(distance="squared", every=2, grid=grid)
    for t, acts in ((0.8, False), (0.55, True), (0.3, False), (0.1, True), (0.54, True), (0.7, False), (0.66, True)):
        assert torch.equal(rule(model)(X, t).clean, net(X, torch.zeros(3))) is not acts, t
    assert not torch.equal(rule(model)(X, torch.full((3,), 0.8, dtype=F64)).clean, net(X, torch.zeros(3))), (
        "a time for each sample has no place on the grid"
    )
    assert torch.equal(guide.SelfMinority(distance="squared")(model)(X, 1.0).clean, net(X, torch.zeros(3)))
    with pytest.raises(ConfigError, match="every"):
        guide.SelfMinority(every=2)
    # A second look where the path has no noise level of that kind is refused by the path.
    with pytest.raises(GridError):
        guide.SelfMinority(distance="squared", log_snr=-20.0)(Denoiser(net, VE(sigma_max=5.0), "clean"))(X, 0.5)


class Codec:
    factor, channels = 2, 2

    def decode(self, latent: Tensor) -> Tensor:
        return torch.cat([latent, latent[:, :1]], 1).repeat_interleave(16, 2).repeat_interleave(16, 3).tanh()

    def encode(self, image: Tensor) -> Tensor:
        return image[:, :2, ::16, ::16]


@pytest.mark.parametrize("name", ["squared", "lite0"])
def test_a_perceptual_distance_sees_what_is_decoded(name):
    x = Noise.of(3, range(2), dtype=F64).normal("latents", (2, 2, 2))
    path, t, codec, pair = VE(), 0.8, Codec(), distance(name)[1]
    clean = net(x, torch.zeros(2)).requires_grad_()
    p = path.time_of(-2.25)
    with torch.no_grad():
        other = net(clean + path.sigma(p) * noise_of(t, 0, 0, (2, 2, 2)), torch.zeros(2))
    look = (lambda z: z) if name == "squared" else codec.decode
    (cotangent,) = torch.autograd.grad(pair(look(clean), look(other)).sum(), clean)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf, torch.zeros(2)), leaf, cotangent)
    gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    rule = guide.SelfMinority(distance=name)
    found = rule(Denoiser(net, path, "clean", codec=codec))(x, t).clean
    # The perceptual network is one of float32.
    torch.testing.assert_close(found, clean.detach() + 0.4 * t**2 * gradient, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- the prompt


W = Noise.of(9, [0], dtype=F64).normal("weights", (4, 4))[0]
TEXT = Noise.of(3, range(3), dtype=F64).normal("text", (5, 4))
MASK = torch.tensor([[True] * 5, [True, True, False, False, False], [True] * 3 + [False] * 2])


def texty(x: Tensor, time: Tensor, words: Tensor, told: Tensor | None = None) -> Tensor:
    """Each row attends to its tokens, under other names than the usual ones."""
    flat = x.flatten(1)
    weight = torch.ones(words.shape[:2], dtype=x.dtype) if told is None else told.to(x.dtype)
    scores = (words @ W * flat[:, None]).sum(2).masked_fill(weight == 0, -torch.inf)
    return torch.tanh(flat + (torch.softmax(scores, 1)[..., None] * words).sum(1) @ W).reshape(x.shape)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_the_token_is_that_of_torchs_adam(masked, dynamic):
    """It begins at the mean of the words that count, and climbs ‖sg(x̂_0) − x̃_0‖² + λ‖x̂_0 − sg(x̃_0)‖²."""
    path, t, rows = VE(), 1.7, 3
    cond = {"words": TEXT, "told": MASK} if masked else {"words": TEXT}
    level = -0.5 - math.log(1.7) if dynamic else -0.5
    p = path.time_of(level)
    noise = noise_of(t, 6, 0)
    weight = MASK[..., None].to(F64) if masked else torch.ones(3, 5, 1, dtype=F64)
    token = ((TEXT * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)).requires_grad_()
    optimizer = torch.optim.Adam([token], lr=0.03, maximize=True)

    def clean(x: Tensor, extra: Tensor | None) -> Tensor:
        if extra is None:
            return texty(x, torch.zeros(rows), **cond)
        told = {"told": torch.cat([MASK, torch.ones(3, 1, dtype=torch.bool)], 1)} if masked else {}
        return texty(x, torch.zeros(rows), torch.cat([TEXT, extra], 1), **told)

    for _ in range(4):
        optimizer.zero_grad()
        first = clean(X, token)
        again = clean(first + path.sigma(p) * noise, None)
        raised = (first.detach() - again).square() + 0.7 * (first - again.detach()).square()
        raised.sum().backward()
        optimizer.step()
    rule = guide.MinorityPrompt(
        steps=4,
        rate=0.03,
        balance=0.7,
        log_snr=(lambda s: -0.5 + 0.5 * s) if dynamic else -0.5,
        text="words",
        mask="told",
        seed=6,
    )
    found = rule(Denoiser(texty, path, "clean", cond=cond))(X, t).clean
    torch.testing.assert_close(found, clean(X, token.detach()), rtol=1e-8, atol=1e-8)


def test_a_prompt_of_one_row_serves_all_and_no_rate_is_no_token():
    one, mask = TEXT[1:2], MASK[1:2]
    model = Denoiser(texty, VE(), "clean", cond={"words": one, "told": mask})
    same = Denoiser(texty, VE(), "clean", cond={"words": one.expand(3, -1, -1), "told": mask.expand(3, -1)})
    rule = guide.MinorityPrompt(steps=2, rate=0.1, text="words", mask="told")
    torch.testing.assert_close(rule(model)(X, 1.7).clean, rule(same)(X, 1.7).clean, rtol=1e-12, atol=1e-12)
    plain = model(X, 1.7).clean
    assert not torch.allclose(rule(model)(X, 1.7).clean, plain, atol=1e-4)
    for silent in ({"steps": 0}, {"rate": 0.0}):
        rule = guide.MinorityPrompt(text="words", mask="told", **silent)
        assert torch.equal(rule(model)(X, 1.7).clean, plain)
    with pytest.raises(UsageError, match="needs text embeddings 'text' in the condition, got words, told"):
        guide.MinorityPrompt()(model)(X, 1.7)
    with pytest.raises(UsageError, match="got nothing"):
        guide.MinorityPrompt()(Denoiser(net, VE(), "clean"))(X, 1.7)
    masked_out = Denoiser(texty, VE(), "clean", cond={"words": TEXT, "told": torch.zeros(3, 5, dtype=torch.bool)})
    rule = guide.MinorityPrompt(steps=1, text="words", mask="told")
    assert not rule(masked_out)(X, 1.7).clean.isnan().any(), "a prompt of no words begins at zero"


# ------------------------------------------------------------------------------------------------------ with classifier


class Conditioning(nn.Module):
    """Classes of rarity that remember what they are told."""

    labels: tuple[str, ...] = ("a", "b")

    def number(self, target: int) -> int:
        if not -4 <= target < 4:
            raise UsageError("no such class")
        return target % 4

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        told = 0.0 if label is None else label.to(state.dtype)
        return (1.0 + target) * (told + 1.0) * state.flatten(1).sum(1)


def labelled(x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
    return torch.tanh(x)


def test_a_class_of_rarity_is_told_the_labels_that_it_knows():
    """x̂_0 + w·(σ²/α)·∇ log p, at σ = 1.7 of a state at unit variance."""
    unit = 1.0 / math.sqrt(1.0 + 1.7**2)
    plain = torch.tanh(X)
    for target, factor in ((-1, 4.0), (0, 1.0), (2, 3.0)):
        for label, told in (
            (torch.tensor([0, 1, 2]), [1.0, 2.0, 3.0]),
            (torch.tensor([1]), [2.0] * 3),
            (None, [1.0] * 3),
        ):
            model = Denoiser(labelled, VE(), "clean", cond={} if label is None else {"label": label})
            found = guide.Minority(Conditioning(), target, 0.6)(model)(X, 1.7).clean
            slope = factor * torch.tensor(told, dtype=F64)[:, None, None] * unit
            torch.testing.assert_close(found, plain + 0.6 * 1.7**2 * slope.expand(3, 2, 2), rtol=1e-12, atol=1e-12)
    deaf = Conditioning()
    deaf.labels = ()
    model = Denoiser(labelled, VE(), "clean", cond={"label": torch.tensor([0, 1, 2])})
    found = guide.Minority(deaf)(model)(X, 1.7).clean
    torch.testing.assert_close(found, plain + torch.full_like(X, 4.0 * 1.7**2 * unit), rtol=1e-12, atol=1e-12)
    with pytest.raises(UsageError, match="no such class"):
        guide.Minority(Conditioning(), 4)
    with pytest.raises(ConfigError, match="NoisyClassifier"):
        guide.Minority(lambda x, s: x)
