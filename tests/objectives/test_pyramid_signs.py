"""The adversarial losses of a pyramid away from symmetric points: signs, noise, draws, and what is frozen."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ornstein.denoisers import Denoiser
from ornstein.networks.discriminator import DiscriminatorConfig, discriminator
from ornstein.objectives import TrainBatch
from ornstein.objectives.pyramid import Pyramid, PyramidLoss
from ornstein.parameterizations import LevelBelow
from ornstein.paths import PyramidPath
from ornstein.randomness import Noise

PATH = PyramidPath()
B, SIDE = 4, 16
WEIGHTS = {1: 0.2, 2: 0.5, 3: 1.0}


def batch(first: int = 0, count: int = B) -> TrainBatch:
    drawn = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(first))
    return TrainBatch(clean=2.0 * drawn - 1.0, cond={}, positions=tuple(range(first, first + count)))


def noise(examples: TrainBatch) -> Noise:
    return Noise.of(0, examples.positions)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def grey(x: Tensor, time: Tensor) -> Tensor:
    """A network that predicts zeros."""
    del time
    return torch.zeros(len(x), 12, *x.shape[2:])


def denoiser(net: Callable[..., Tensor] = grey) -> Denoiser:
    return Denoiser(net, PATH, LevelBelow(preconditioned=False))


class Judge(nn.Module):
    """A discriminator with a constant logit, or one of the images; it keeps its inputs."""

    def __init__(self, logit: float | Callable[[Tensor], Tensor] = 0.0) -> None:
        super().__init__()
        self.logit, self.inputs = logit, list[Tensor]()

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        self.inputs.append(x.detach().clone())
        return self.logit(x) if callable(self.logit) else self.logit + 0.0 * x.flatten(1).sum(1)


def objective(judge: nn.Module, **options) -> Pyramid:
    return Pyramid(loss=PyramidLoss(**({"label_dropout": 0.0, "draw": "all"} | options)), discriminator=judge)


# --------------------------------------------------------------------------------------------------------------- signs


@pytest.mark.parametrize("logit", [-2.0, 2.0])
def test_the_network_wants_its_images_taken_for_real(logit):
    """a · softplus(−D): at a logit of 2 the loss is small, at −2 it is large."""
    found = objective(Judge(logit))(denoiser(), batch(), noise(batch()), 0.0)
    expected = torch.tensor([WEIGHTS[int(level)] * softplus(-logit) for level in found.times])
    torch.testing.assert_close(found.terms["adversarial"], expected)


@pytest.mark.parametrize("logit", [-2.0, 2.0])
def test_the_discriminator_wants_fakes_below_zero_and_data_above(logit):
    found = objective(Judge(logit)).discriminator_loss(denoiser(), batch(), noise(batch()), 0.0)
    assert found is not None
    rows = torch.ones(3 * B)
    torch.testing.assert_close(found.terms["fake"].detach(), rows * 0.5 * softplus(logit))
    torch.testing.assert_close(found.terms["real"].detach(), rows * 0.5 * softplus(-logit))


def test_the_slopes_of_the_losses_have_their_signs():
    """The network raises the logit of what it makes; the discriminator lowers it, and raises that of data."""
    judge = Judge(lambda x: shift * torch.ones(len(x)) + 0.0 * x.flatten(1).sum(1))
    for at in (-2.0, 0.0, 2.0):
        for name, sign in (("adversarial", -1.0), ("fake", 1.0), ("real", -1.0)):
            shift = torch.tensor(at, requires_grad=True)
            both = objective(judge)
            ask = both if name == "adversarial" else both.discriminator_loss
            found = ask(denoiser(), batch(), noise(batch()), 0.0)
            assert found is not None
            (slope,) = torch.autograd.grad(found.terms[name].sum(), shift)
            assert slope.item() * sign > 0.0, (name, at)


def test_the_penalty_is_taken_at_the_noisy_data():
    """D = ½·s·|x|² has the gradient s·x: the penalty is ½·r·s²·|g + ν|², of data alone."""
    judge = Judge(lambda x: 0.5 * 0.3 * x.square().flatten(1).sum(1))
    found = objective(judge, draw="one", level_probabilities=(0.0, 0.0, 1.0)).discriminator_loss(
        denoiser(), batch(), noise(batch()), 0.0
    )
    assert found is not None
    data = judge.inputs[1]
    expected = 0.5 * 0.8 * 0.3**2 * data.square().flatten(1).sum(1)
    torch.testing.assert_close(found.terms["penalty"].detach(), expected)


# ----------------------------------------------------------------------------------------------------- where it is dark


@pytest.mark.parametrize(("share", "silent"), [(0.05, True), (0.0999, True), (0.1001, False), (0.15, False)])
def test_a_level_is_silent_below_a_tenth_of_the_noise(share, silent):
    """ᾱ_l times a constant image against the noise; a silent level has neither pixels' error nor metric."""
    std, size = 0.3, 4.0  # the scale of the second level
    path = PyramidPath(alphas=(0.5, share * std / (0.5 * size)), sigmas=(1e-9, std), factors=(2, 2))
    assert path.gains[2] * path.scale(2) / path.stds[2] == pytest.approx(share, rel=1e-6)
    first, second = PyramidLoss().weights(path)
    assert (first.fidelity, first.perceptual, first.adversarial, first.penalty) == (1.0, 4.0, 0.2, 0.1)
    assert tuple(second) == ((0.0, 0.0, 1.0, 0.8) if silent else (1.0, 4.0, 0.5, 0.4))


# --------------------------------------------------------------------------------------------------------------- noise


def test_data_and_fakes_get_noise_of_their_own():
    """Of the published size, independent between data, fakes, levels, and the network's own step."""
    many = batch(count=64)
    judge = Judge()
    objective(judge).discriminator_loss(denoiser(), many, noise(many), 0.0)
    objective(judge)(denoiser(), many, noise(many), 0.0)
    drawn: dict[str, Tensor] = {}
    for level in (1, 2, 3):
        below = torch.nn.functional.avg_pool2d(many.clean, 2 ** (level - 1))
        fake, data = judge.inputs[2 * (level - 1) : 2 * level]
        drawn |= {f"fake {level}": fake, f"data {level}": data - below, f"network {level}": judge.inputs[5 + level]}
    for name, values in drawn.items():
        assert values.std().item() == pytest.approx(0.4, rel=0.05), name
        assert values.mean().abs() < 0.05, name
    names = list(drawn)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = (drawn[name].flatten(1)[:, :48].flatten() for name in (first, second))
            assert torch.corrcoef(torch.stack((a, b)))[0, 1].abs() < 0.1, (first, second)  # 1/√3072 = 0.018


def test_the_discriminator_learns_from_other_states_than_the_network():
    """At the same level and for the same noise of the step, the states of the two steps are independent."""
    states: list[Tensor] = []

    def net(x: Tensor, time: Tensor) -> Tensor:
        states.append(x.clone())
        return grey(x, time)

    many, both = batch(count=64), objective(Judge())
    both.discriminator_loss(denoiser(net), many, noise(many), 0.0)
    both(denoiser(net), many, noise(many), 0.0)
    for level, (theirs, ours) in enumerate(zip(states[:3], states[3:], strict=True), 1):
        mean = PATH.diffuse(many.clean, level, torch.zeros_like(ours))
        assert (ours - mean).std().item() == pytest.approx(PATH.stds[level], rel=0.1)
        assert (theirs - mean).std().item() == pytest.approx(PATH.stds[level], rel=0.1)
        pair = torch.stack(((ours - mean).flatten(), (theirs - mean).flatten()))
        assert torch.corrcoef(pair)[0, 1].abs() < 0.1  # 768 numbers at the third level: 1/√768 = 0.036


def test_levels_have_their_odds_and_are_drawn_apart_for_the_two_networks():
    both = objective(Judge(), draw="one", level_probabilities=(1.0, 2.0, 1.0))
    ours, theirs = [], []
    for step in range(200):
        one = batch(step, count=1)
        found = both.discriminator_loss(denoiser(), one, noise(one), 0.0)
        assert found is not None
        theirs += found.times.tolist()
        ours += both(denoiser(), one, noise(one), 0.0).times.tolist()
    for levels in (ours, theirs):
        assert levels.count(2.0) / 200 == pytest.approx(0.5, abs=0.1)
        assert levels.count(1.0) / 200 == pytest.approx(0.25, abs=0.1)
    # Independent draws agree with probability ¼² + ½² + ¼² = 0.375.
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) / 200 == pytest.approx(0.375, abs=0.12)


# -------------------------------------------------------------------------------------------------------------- frozen


def test_dropout_acts_in_a_networks_own_step_alone():
    """Of the discriminator in its own step, of the network in its own: each is evaluated in the other's."""

    class Dropping(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            self.seen = nn.functional.dropout(torch.ones(64), 0.5, self.training)
            return grey(x, time)

    net, rival = Dropping(), discriminator(DiscriminatorConfig(width=8, dropout=0.5), 4)
    both, model = objective(rival, draw="one", level_probabilities=(0.0, 0.0, 1.0)), denoiser(net)

    def step(ask: Callable[..., object], seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        found = ask(model, batch(), noise(batch()), 0.0)
        terms = found.terms  # type: ignore[attr-defined]
        return terms.get("adversarial", terms.get("fake")).detach(), net.seen

    (first, ours), (second, others) = step(both, 1), step(both, 2)
    assert torch.equal(first, second)
    assert not torch.equal(ours, others)
    (first, ours), (second, others) = step(both.discriminator_loss, 1), step(both.discriminator_loss, 2)
    assert not torch.equal(first, second)
    assert torch.equal(ours, others)
    assert net.training
    assert rival.training
