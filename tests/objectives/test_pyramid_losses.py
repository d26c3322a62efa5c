"""UDPM's losses, their discriminator and the level-below prediction: sheet (h) 7, 11, and the laws of each part."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError, PathError
from ornstein.networks import UNetConfig, build
from ornstein.networks.discriminator import DiscriminatorConfig, discriminator
from ornstein.objectives import AdversarialObjective, TrainBatch
from ornstein.objectives.pyramid import Pyramid, PyramidLoss, Weights
from ornstein.parameterizations import LevelBelow, parameterization
from ornstein.paths import VP, PyramidPath
from ornstein.randomness import Noise

PATH = PyramidPath()
B, SIDE = 4, 16
POSITIONS = tuple(range(B))


def images(seed: int = 0, side: int = SIDE) -> torch.Tensor:
    return torch.rand(B, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch(**cond: torch.Tensor) -> TrainBatch:
    return TrainBatch(clean=images(), cond=cond, positions=POSITIONS)


def network(channels: int = 12) -> nn.Module:
    net = build(UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), out_channels=channels))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return net


def model(path: PyramidPath = PATH, **reading: bool) -> Denoiser:
    return Denoiser(network(3 * max(path.factors) ** 2), path, LevelBelow(**reading), shape=(3, SIDE, SIDE))


class Constant(nn.Module):
    """A discriminator that answers w·x + c."""

    def __init__(self, slope: float = 0.0, logit: float = 0.0) -> None:
        super().__init__()
        self.slope, self.logit = nn.Parameter(torch.tensor(slope)), nn.Parameter(torch.tensor(logit))
        self.asked: list[tuple[torch.Size, float, torch.Tensor | None]] = []

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        self.asked.append((x.shape, time[0].item(), label))
        return self.slope * x.flatten(1).sum(1) + self.logit


class Counting:
    """A metric that remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[torch.Size] = []

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.seen.append(a.shape)
        return (a - b).square().flatten(1).mean(1)


def objective(rival: nn.Module | None, metric: Counting | None = None, **options) -> Pyramid:
    return Pyramid(loss=PyramidLoss(label_dropout=0.0, **options), metric=metric, discriminator=rival)


# ---------------------------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("kernel", [(), (1.0, 3.0, 3.0, 1.0)])
def test_reading_the_target_gives_the_level_below(scaled, precondition, kernel):
    path = PyramidPath(alphas=(0.5, 0.6, 0.2), sigmas=(0.1, 0.2, 0.3), factors=(2, 1, 4), kernel=kernel)
    reading, clean = LevelBelow(scaled=scaled, preconditioned=precondition), images().double()
    for level in (1, 2, 3):
        noise = torch.ones(B, *path.state_shape(clean.shape[1:], level)).double()
        x = path.diffuse(clean, level, noise)
        estimate = reading.to_estimate(path, x, float(level), reading.target(path, clean, noise, x, float(level)))
        torch.testing.assert_close(estimate.clean, path.down(clean, 0, level - 1), rtol=1e-12, atol=1e-12)


def test_pixels_are_shuffled_and_what_is_left_over_is_left_out():
    reading, x = LevelBelow(scaled=False, preconditioned=False), torch.zeros(2, 3, 4, 4)
    raw = torch.arange(2 * 12 * 16, dtype=torch.float32).reshape(2, 12, 4, 4)
    shuffled = torch.nn.functional.pixel_shuffle(raw, 2)
    assert torch.equal(reading.to_estimate(PATH, x, 2.0, raw).clean, shuffled)
    assert torch.equal(reading.to_estimate(PATH, x, 2.0, torch.cat((raw, raw), 1)).clean, shuffled)
    assert torch.equal(reading.to_estimate(PATH, x, 2.0, shuffled).clean, shuffled)
    with pytest.raises(PathError, match="must return 12 channels"):
        reading.to_estimate(PATH, x, 2.0, x)
    with pytest.raises(PathError, match="needs a PyramidPath"):
        reading.precondition(VP(), x, 0.5)
    assert parameterization("level-below") == LevelBelow()


def test_scaled_outputs_are_images_and_states_are_fed_at_unit_variance():
    ones = torch.ones(1, 3, 16, 16)
    reading = LevelBelow(preconditioned=False)
    for level in (1, 2, 3):
        assert PATH.scale(level) == 2**level
        x = PATH.diffuse(ones, level, torch.zeros(1, *PATH.state_shape(ones.shape[1:], level)))
        assert torch.allclose(reading.target(PATH, ones, x, x, float(level)), ones[..., :1, :1])
        clean = 0.5 * torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(1)).expand(64, 3, 16, 16)
        noise = torch.randn(64, *PATH.state_shape(clean.shape[1:], level), generator=torch.Generator().manual_seed(2))
        fed = LevelBelow().precondition(PATH, PATH.diffuse(clean, level, noise), float(level))
        assert fed.std().item() == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("path", [PATH, PyramidPath(alphas=(0.5, 1e-3), sigmas=(0.1, 0.3), factors=(2, 4))])
def test_one_set_of_weights_serves_all_levels(path):
    denoiser = model(path)
    for level in range(1, path.levels + 1):
        x = torch.zeros(2, *path.state_shape((3, SIDE, SIDE), level))
        assert denoiser(x, float(level)).clean.shape[1:] == path.state_shape((3, SIDE, SIDE), level - 1)


# ------------------------------------------------------------------------------------------------------------- weights


def test_the_published_weights():
    assert PyramidLoss().weights(PATH) == (
        Weights(1.0, 4.0, 0.2, 0.1),
        Weights(1.0, 4.0, 0.5, 0.4),
        Weights(0.0, 0.0, 1.0, 0.8),
    )


def test_each_term_can_be_left_out():
    alone = PyramidLoss(adversarial=(0.0,)).weights(PATH)
    assert [w.fidelity for w in alone] == [1.0, 1.0, 1.0]  # at the third level there would be no loss at all
    assert [w.perceptual for w in PyramidLoss(metric="none").weights(PATH)] == [0.0] * 3
    assert [w.adversarial for w in PyramidLoss(adversarial=(0.1, 0.2, 0.3)).weights(PATH)] == [0.1, 0.2, 0.3]
    four = PyramidPath(alphas=(0.5, 0.5, 0.2, 1e-3), sigmas=(0.1,) * 4, factors=(2, 1, 2, 2))
    assert [w.adversarial for w in PyramidLoss().weights(four)] == [0.2, 0.5, 0.5, 1.0]
    with pytest.raises(ConfigError, match="2 values for 3 levels"):
        PyramidLoss(penalty=(1.0, 2.0)).weights(PATH)
    with pytest.raises(ConfigError, match="level 3 has no loss"):
        PyramidLoss(adversarial=(1.0, 1.0, 0.0), fidelity=(1.0, 1.0, 0.0)).weights(PATH)
    for bad in (
        {"fidelity": (-1.0,)},
        {"label_dropout": 2.0},
        {"instance_noise": -1.0},
        {"level_probabilities": (0.0,)},
        {"metric": ""},
    ):
        with pytest.raises(ConfigError):
            PyramidLoss(**bad)


def test_without_adversarial_weight_no_discriminator_is_built():
    small = DiscriminatorConfig(width=8)
    assert PyramidLoss(adversarial=(0.0,), metric="none").on(PATH, SIDE, small).discriminator is None
    built = PyramidLoss(metric="none").on(PATH, SIDE, small)
    assert isinstance(built, AdversarialObjective)
    assert built.discriminator is not None
    assert built.metric is None
    assert (
        PyramidLoss(adversarial=(0.0,), metric="none")
        .on(PATH, SIDE, small)
        .discriminator_loss(model(), batch(), Noise.of(0, POSITIONS), 0.0)
        is None
    )


# -------------------------------------------------------------------------------------------------------------- losses


def test_losses_at_logit_zero_are_log_two_and_the_metric_is_not_asked_at_the_third_level():
    metric, rival = Counting(), Constant()
    found = objective(rival, metric, draw="all")(model(), batch(), Noise.of(0, POSITIONS), 0.0)
    assert found.times.tolist() == [1.0] * B + [2.0] * B + [3.0] * B
    expected = torch.tensor([0.2] * B + [0.5] * B + [1.0] * B) * math.log(2.0)
    torch.testing.assert_close(found.terms["adversarial"].detach(), expected)
    assert metric.seen == [(B, 3, 16, 16), (B, 3, 8, 8)]
    assert found.terms["perceptual"][2 * B :].eq(0).all()
    assert found.terms["fidelity"][2 * B :].eq(0).all()
    assert [(shape[-1], round(time, 4)) for shape, time, _ in rival.asked] == [(16, 0.1667), (8, 0.5), (4, 0.8333)]
    theirs = objective(Constant(), draw="all").discriminator_loss(model(), batch(), Noise.of(0, POSITIONS), 0.0)
    assert theirs is not None
    for name in ("fake", "real"):
        torch.testing.assert_close(theirs.terms[name].detach(), torch.full((3 * B,), 0.5 * math.log(2.0)))


def test_the_penalty_of_a_linear_discriminator_is_its_squared_slope():
    slope, level = 0.3, 2
    level_probabilities = tuple(float(i == level) for i in (1, 2, 3))
    found = objective(Constant(slope), level_probabilities=level_probabilities).discriminator_loss(
        model(), batch(), Noise.of(0, POSITIONS), 0.0
    )
    assert found is not None
    pixels = 3 * 8 * 8
    torch.testing.assert_close(found.terms["penalty"].detach(), torch.full((B,), 0.5 * 0.4 * slope**2 * pixels))
    found.total.backward()


def test_a_lazy_penalty_is_rare_and_heavy():
    seen = []
    flat = Denoiser(lambda x, time: torch.zeros(B, 12, *x.shape[2:]), PATH, LevelBelow(preconditioned=False))
    lazy = objective(Constant(0.3), level_probabilities=(0.0, 1.0, 0.0), r1_interval=4)
    for step in range(200):
        positions = tuple(range(4 * step, 4 * step + 4))
        found = lazy.discriminator_loss(flat, replace(batch(), positions=positions), Noise.of(0, positions), 0.0)
        assert found is not None
        seen.append(found.terms["penalty"][0].item())
    full = 0.5 * 0.4 * 0.3**2 * 3 * 8 * 8
    assert {round(value / full, 4) for value in seen} == {0.0, 4.0}
    assert sum(seen) / len(seen) == pytest.approx(full, rel=0.3)
    with pytest.raises(ConfigError, match="r1_interval must be at least 1"):
        PyramidLoss(r1_interval=0)


def test_a_discriminator_only_sees_levels_that_listen_to_it():
    rival, denoiser = Constant(), model()
    some = objective(rival, adversarial=(0.0, 0.0, 1.0))
    for step in range(20):
        positions = tuple(range(4 * step, 4 * step + 4))
        found = some.discriminator_loss(denoiser, replace(batch(), positions=positions), Noise.of(0, positions), 0.0)
        assert found is not None
        assert found.times.tolist() == [3.0] * B
    all_at_once = objective(Constant(), adversarial=(0.0, 1.0, 1.0), draw="all")
    found = all_at_once.discriminator_loss(denoiser, batch(), Noise.of(0, POSITIONS), 0.0)
    assert found is not None
    assert found.times.tolist() == [2.0] * B + [3.0] * B
    never = objective(Constant(), adversarial=(0.0, 0.0, 1.0), level_probabilities=(1.0, 0.0, 0.0))
    assert never.discriminator_loss(denoiser, batch(), Noise.of(0, POSITIONS), 0.0) is None


def test_the_fidelity_is_the_mean_absolute_error_of_images():
    path = replace(PATH, alphas=(0.5, 0.2, 0.5))
    loss = PyramidLoss(draw="all", label_dropout=0.0, metric="none", adversarial=(0.0,))
    denoiser = Denoiser(lambda x, time: torch.zeros(B, 12, *x.shape[2:]), path, LevelBelow(preconditioned=False))
    found = Pyramid(loss=loss, path=path)(denoiser, batch(), Noise.of(0, POSITIONS), 0.0)
    for level in (1, 2, 3):
        below = torch.nn.functional.avg_pool2d(images(), 2 ** (level - 1))
        rows = found.terms["fidelity"][(level - 1) * B : level * B]
        torch.testing.assert_close(rows, below.abs().flatten(1).mean(1))
    squared = Pyramid(loss=replace(loss, distance="l2"), path=path)(denoiser, batch(), Noise.of(0, POSITIONS), 0.0)
    torch.testing.assert_close(squared.terms["fidelity"][:B], images().square().flatten(1).mean(1))


def test_a_perfect_network_has_no_fidelity_loss():
    below = {SIDE // 2**level: torch.nn.functional.avg_pool2d(images(), 2 ** (level - 1)) for level in (1, 2, 3)}
    denoiser = Denoiser(lambda x, time: below[x.shape[-1]], PATH, LevelBelow(preconditioned=False))
    loss = PyramidLoss(draw="all", label_dropout=0.0, metric="none", adversarial=(0.0,))
    found = Pyramid(loss=loss)(denoiser, batch(), Noise.of(0, POSITIONS), 0.0)
    assert found.terms["fidelity"].max() < 1e-6


def test_neither_network_learns_from_the_others_loss():
    rival, denoiser = discriminator(DiscriminatorConfig(width=8, dropout=0.5), 4), model()
    rival.train()
    denoiser.net.train()
    both = objective(rival, draw="all")
    both(denoiser, batch(), Noise.of(0, POSITIONS), 0.0).total.backward()
    assert all(p.grad is None and p.requires_grad for p in rival.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.net.parameters())
    denoiser.net.zero_grad()
    found = both.discriminator_loss(denoiser, batch(), Noise.of(0, POSITIONS), 0.0)
    assert found is not None
    found.total.backward()
    assert all(p.grad is None for p in denoiser.net.parameters())
    assert all(p.grad is not None for p in rival.parameters())
    assert rival.training
    assert denoiser.net.training


def test_the_losses_are_a_function_of_the_noise():
    both, denoiser = objective(Constant(), level_probabilities=(1.0, 2.0, 1.0)), model()
    again = both(denoiser, batch(), Noise.of(0, POSITIONS), 0.5)
    assert torch.equal(again.total, both(denoiser, batch(), Noise.of(0, POSITIONS), 0.5).total)


def test_the_noise_on_the_discriminators_images_falls_as_published():
    shown: list[float] = []

    class Watching(Constant):
        def forward(self, x, time, label=None):
            shown.append(x.std().item())
            return super().forward(x, time, label)

    flat = Denoiser(lambda x, time: torch.zeros(B, 12, *x.shape[2:]), PATH, LevelBelow(preconditioned=False))
    for progress in (0.0, 0.5, 1.0):
        objective(Watching(), level_probabilities=(1.0, 0.0, 0.0))(flat, batch(), Noise.of(0, POSITIONS), progress)
    assert shown == pytest.approx([0.4 * 0.99**n for n in (0, 300, 600)], rel=0.1)


def test_labels_reach_the_discriminator_and_dropped_ones_do_not():
    rival, label = Constant(), torch.tensor([0, 1, 2, 0])
    net = build(UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), out_channels=12, classes=3))
    denoiser = Denoiser(net, PATH, LevelBelow())
    for drop, expected in ((0.0, label), (1.0, torch.full((B,), -1))):
        rival.asked.clear()
        Pyramid(loss=PyramidLoss(label_dropout=drop), discriminator=rival)(
            denoiser, batch(label=label), Noise.of(0, POSITIONS), 0.0
        )
        assert torch.equal(rival.asked[0][2], expected)


def test_what_does_not_fit_is_refused():
    other = Denoiser(lambda x, time: x, VP(), "clean")
    with pytest.raises(PathError, match="needs a PyramidPath"):
        objective(None, adversarial=(0.0,))(other, batch(), Noise.of(0, POSITIONS), 0.0)
    with pytest.raises(PathError, match="not the denoiser's"):
        objective(None, adversarial=(0.0,))(
            model(replace(PATH, rule="published")), batch(), Noise.of(0, POSITIONS), 0.0
        )


# ------------------------------------------------------------------------------------------------------- discriminator


def test_the_discriminator_sees_every_size_and_is_told_level_and_class():
    config = DiscriminatorConfig(width=8, classes=3)
    net = discriminator(config, 4, seed=1).eval()
    assert config.widths(4) == (16, 24, 24)
    assert DiscriminatorConfig(width=192).widths(16) == (384, 512, 512, 512, 512)
    time, label = torch.full((B,), 0.5), torch.zeros(B, dtype=torch.int64)
    for side in (4, 8, 16):
        assert net(images(side=side), time, label).shape == (B,)
    shown = images(side=4)
    assert not torch.equal(net(shown, time, label), net(shown, time / 3, label))
    assert not torch.equal(net(shown, time, label), net(shown, time, label + 1))
    assert torch.equal(net(shown, time, label), discriminator(config, 4, seed=1).eval()(shown, time, label))
    assert not torch.equal(net(shown, time, label), discriminator(config, 4, seed=2).eval()(shown, time, label))
    # The spread within a group is what tells four equal images from four different ones.
    same = shown[:1].expand(4, -1, -1, -1)
    assert not torch.allclose(net(same, time, label)[0], net(shown, time, label)[0], atol=1e-6)
    alone = discriminator(replace(config, group=1), 4, seed=1).eval()
    torch.testing.assert_close(alone(same, time, label)[0], alone(shown, time, label)[0])
    assert net(shown[:3], time[:3], label[:3]).shape == (3,)
