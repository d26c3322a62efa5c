"""The losses of an autoencoder and of its critic against closed forms, at points where no two numbers are alike."""

import math

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.objectives import TrainBatch
from ornstein.objectives.reconstruction import Reconstructing, ReconstructionLoss
from ornstein.randomness import Noise

F64 = torch.float64


class Auto(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_pixels = nn.Conv2d(2, 3, 1).double()
        with torch.no_grad():
            self.to_pixels.weight.copy_(torch.linspace(-0.4, 0.9, 6, dtype=F64).reshape(3, 2, 1, 1))
        self.last_layer = self.to_pixels


class Tiny(nn.Module):
    """An autoencoder whose latents are means of pixels: (reconstruction, mean, logvar)."""

    def __init__(self) -> None:
        super().__init__()
        self.auto = Auto()

    def latent_shape(self, event) -> tuple[int, ...]:
        return (2, event[1] // 2, event[2] // 2)

    def forward(self, image: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert torch.equal(time, torch.zeros(len(image), dtype=image.dtype))
        small = nn.functional.avg_pool2d(image, 2)
        mean, logvar = 0.8 * small[:, :2] + 0.3, 0.5 * small[:, 1:] - 1.1
        z = mean + (0.5 * logvar).exp() * noise
        return nn.functional.interpolate(self.auto.to_pixels(z), scale_factor=2), mean, logvar


class Critic(nn.Module):
    """Verdicts of a slope and an offset that are given."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope, self.offset = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (slope, offset))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x.mean(1, keepdim=True) + self.offset


def batch(rows: int = 3, first: int = 0) -> TrainBatch:
    clean = Noise.of(2, range(rows), dtype=F64).normal("clean", (3, 4, 6)).clamp(-1, 1)
    return TrainBatch(clean=clean, cond={}, positions=tuple(range(first, first + rows)))


def answers(net: Tiny, data: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
    noise = Noise.of(0, range(len(data.clean)), dtype=F64).normal("latent", (2, 2, 3))
    return net(data.clean, torch.zeros(len(data.clean), dtype=F64), noise)


def losses(objective: Reconstructing, net: nn.Module, data: TrainBatch):
    model = orn.Denoiser(net, orn.Flow(), "clean")
    return objective(model, data, Noise.of(0, range(len(data.clean)), dtype=F64), 0.7)


@pytest.mark.parametrize("pixels", ["l1", "l2"])
def test_every_term_has_its_formula(pixels):
    loss = ReconstructionLoss(pixels=pixels, metric_weight=0.3, kl=0.2, adversarial=0.0)
    metric = lambda a, b: (a - 2.0 * b).square().flatten(1).sum(1)  # noqa: E731 - not symmetric: the order counts
    net, data = Tiny(), batch()
    found = losses(Reconstructing(loss=loss, metric=metric), net, data)
    again, mean, logvar = (value.double() for value in answers(net, data))
    error = (again - data.clean).flatten(1)
    own, unit = torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    divergence = torch.distributions.kl_divergence(own, unit).flatten(1).sum(1)
    wanted = {
        "pixels": (error.abs() if pixels == "l1" else error.square()).mean(1),
        "metric": 0.3 * metric(again, data.clean),
        "kl": 0.2 * divergence / 72,
    }
    assert list(found.terms) == list(wanted)
    for name, value in wanted.items():  # the answers are read in float32
        torch.testing.assert_close(found.terms[name].double(), value, rtol=1e-5, atol=1e-7)
    psnr = 10.0 * torch.log10(4.0 / error.square().mean(1))  # a range of 2
    torch.testing.assert_close(found.watched["psnr"].double(), psnr, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.watched["latent_std"].double(), mean.flatten(1).std(1), rtol=1e-5, atol=0)
    assert found.times.tolist() == [0.0] * 3
    assert not any(value.requires_grad for value in found.watched.values())


def test_the_decibels_of_a_perfect_reconstruction_are_bounded():
    class Same(Tiny):
        def forward(self, image, time, noise):
            return image, torch.zeros(len(image), 2, 2, 3), torch.zeros(len(image), 2, 2, 3)

    found = losses(Reconstructing(loss=ReconstructionLoss(metric="none")), Same(), batch())
    assert found.watched["psnr"].tolist() == pytest.approx([10.0 * math.log10(4e10)] * 3)
    assert found.terms["kl"].tolist() == [0.0] * 3


@pytest.mark.parametrize("slope", [0.7, -1.3])
@pytest.mark.parametrize("offset", [-2.0, 2.0])
def test_the_hinge_of_the_critic_at_both_signs(slope, offset):
    """max(0, 1 − D(x)) on pictures, max(0, 1 + D(x̂)) on reconstructions, means over patches."""
    net, data, critic = Tiny(), batch(), Critic(slope, offset)
    objective = Reconstructing(loss=ReconstructionLoss(adversarial_from=0), discriminator=critic)
    found = objective.discriminator_loss(
        orn.Denoiser(net, orn.Flow(), "clean"), data, Noise.of(0, range(3), dtype=F64), 0.0
    )
    assert found is not None
    assert found.times.dtype == torch.float64
    again = answers(net, data)[0]
    verdicts = {"real": critic(data.clean), "fake": critic(again)}
    margins = {"real": 1.0 - verdicts["real"], "fake": 1.0 + verdicts["fake"]}
    wanted = {name: margin.clamp_min(0.0).flatten(1).mean(1) for name, margin in margins.items()}
    assert list(found.terms) == ["real", "fake"]
    for name, value in wanted.items():
        torch.testing.assert_close(found.terms[name].double(), value, rtol=1e-5, atol=1e-6)
    assert bool((wanted["real"] if offset < 0.0 else wanted["fake"]).min() > 1.0)
    assert found.times.tolist() == [0.0] * 3
    assert [value.requires_grad for value in found.terms.values()] == [True, True]


@pytest.mark.parametrize(("adversarial", "slope"), [(0.5, 0.7), (0.8, -1.3), (0.5, 0.0), (0.5, 1e-12)])
def test_the_adversarial_term_pushes_verdicts_up(adversarial, slope):
    """w·(−D(x̂)), w = adversarial·‖∇ rest‖/(‖∇ adversarial‖ + 1e-4) ≤ 1e4: its gradient lowers −D, so raises D."""
    net, data, critic = Tiny(), batch(), Critic(slope, 0.4)
    loss = ReconstructionLoss(metric="none", kl=0.3, adversarial=adversarial, adversarial_from=0)
    found = losses(Reconstructing(loss=loss, discriminator=critic), net, data)
    last = net.auto.to_pixels.weight
    rest = found.terms["pixels"].mean() + found.terms["kl"].mean()
    verdict = critic(answers(net, data)[0])
    plain = -verdict.flatten(1).mean(1)
    ours, theirs = (torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (rest, plain.mean()))
    ratio = min(float(ours / (theirs + 1e-4)), 1e4)
    torch.testing.assert_close(found.terms["adversarial"].double(), adversarial * ratio * plain, rtol=1e-4, atol=1e-6)
    found.total.backward()
    assert critic.slope.grad is None


def test_the_ratio_of_gradients_is_bounded():
    """The weight of an adversarial gradient that is nearly nothing beside the rest is 10⁴."""

    class Loud(Tiny):
        def forward(self, image, time, noise):
            again, mean, logvar = super().forward(image, time, noise)
            return 1e4 * again, mean, logvar

    net, data, critic = Loud(), batch(), Critic(0.0, 0.4)
    loss = ReconstructionLoss(metric="none", pixels="l2", adversarial=0.5, adversarial_from=0)
    found = losses(Reconstructing(loss=loss, discriminator=critic), net, data)
    assert found.terms["adversarial"].tolist() == pytest.approx([0.5 * 1e4 * -0.4] * 3)


def test_the_critic_waits_for_the_first_batch_that_lies_wholly_beyond():
    critic = Critic(0.7, 0.1)
    loss = ReconstructionLoss(metric="none", adversarial=0.5, adversarial_from=10)
    objective = Reconstructing(loss=loss, discriminator=critic)
    model = orn.Denoiser(Tiny(), orn.Flow(), "clean")
    for first, begun in ((8, False), (9, False), (10, True)):
        data, noise = batch(first=first), Noise.of(0, range(3), dtype=F64)
        assert objective.begun(data) is begun
        assert ("adversarial" in objective(model, data, noise, 0.0).terms) is begun
        assert (objective.discriminator_loss(model, data, noise, 0.0) is not None) is begun
    alone = Reconstructing(loss=objective.loss)
    assert alone.discriminator_loss(model, batch(first=10), Noise.of(0, range(3), dtype=F64), 0.0) is None


def test_parts_are_loaded_where_they_have_a_weight_and_wrappers_are_looked_through():
    critic = Critic(0.7, 0.1)
    for loss in (ReconstructionLoss(metric="none"), ReconstructionLoss(metric_weight=0.0)):
        made = loss.with_parts("cpu", critic)
        assert (made.loss, made.metric, made.discriminator) == (loss, None, critic)
    assert ReconstructionLoss(metric_weight=0.1).with_parts("cpu", None).metric is not None

    class Wrapped(nn.Module):
        def __init__(self, name: str, inner: nn.Module) -> None:
            super().__init__()
            setattr(self, name, inner)

        def forward(self, *args, **keywords):
            return next(self.children())(*args, **keywords)

    loss = ReconstructionLoss(metric="none", adversarial=0.5, adversarial_from=0)
    plain = losses(Reconstructing(loss=loss, discriminator=critic), Tiny(), batch())
    for net in (Wrapped("module", Tiny()), Wrapped("net", Tiny()), Wrapped("module", Wrapped("net", Tiny()))):
        found = losses(Reconstructing(loss=loss, discriminator=critic), net, batch())
        assert all(name in found.terms for name in plain.terms)
