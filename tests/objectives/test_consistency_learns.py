"""A small network trained by the recipe finds the consistency functions that are known in closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.objectives import ConsistencyLoss, ConsistencyTraining, TrainBatch
from ornstein.randomness import Noise

pytestmark = pytest.mark.slow
STEPS, BATCH = 1600, 128


class Small(nn.Module):
    """A number and its level to a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1))
        for i, layer in enumerate(self.body[::2]):
            generator = torch.Generator().manual_seed(i)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
                layer.bias.zero_()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, 1, 1, 1), time log(σ)/4 (B,)."""
        waves = [wave(k * time) for k in (1.0, 2.0, 4.0) for wave in (torch.sin, torch.cos)]
        return self.body(torch.stack([x.flatten(), *waves], 1)).reshape(x.shape)


def learned(draw, loss: ConsistencyLoss) -> orn.Denoiser:
    """The model after training on numbers that ``draw`` makes of white noise (B, 1, 1, 1)."""
    net = Small()
    model = orn.Denoiser(net, path=orn.VE(), predicts="consistency")
    objective = ConsistencyTraining(loss=loss, steps=STEPS, of=STEPS)
    optimizer = torch.optim.RAdam(net.parameters(), lr=3e-3)
    average = Small()
    for step in range(STEPS):
        positions = tuple(range(BATCH * step, BATCH * (step + 1)))
        noise = Noise.of(0, positions)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1.0 - step / STEPS)
        batch = TrainBatch(clean=draw(noise.normal("data", (1, 1, 1))), cond={}, positions=positions)
        objective(model, batch, noise, step / STEPS).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), net.parameters(), strict=True):
                ours.lerp_(theirs, 1.0 if step == 0 else 0.02)
    return orn.Denoiser(average.requires_grad_(False), path=orn.VE(), predicts="consistency")


def states(t: float, s: float) -> Tensor:
    """x_t of data N(0, s²), at even quantiles."""
    quantiles = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    return (math.sqrt(s**2 + t**2) * torch.special.ndtri(quantiles)).float().reshape(-1, 1, 1, 1)


# Numbers are no pictures: what is paired optimally in one dimension is no longer independent at all.
SLCT = ConsistencyLoss(coupling="none")


@pytest.mark.parametrize(
    "loss",
    [SLCT, ConsistencyLoss(coupling="none", distance="pseudo-huber", scale="constant", base=0.03, diffusion=0.0)],
)
def test_the_map_of_a_gaussian(loss):
    """f(x, t) = x·√((s² + σ_min²)/(s² + t²)), well apart from the mean of x_0, x·s²/(s² + t²)."""
    s = 0.5
    model = learned(lambda noise: s * noise, loss)
    for t in (0.3, 1.0, 3.0, 10.0, 80.0):
        x = states(t, s)
        exact, mean = x * math.sqrt((s**2 + 4e-6) / (s**2 + t**2)), x * s**2 / (s**2 + t**2)
        error = (model(x, t).clean - exact).square().mean().sqrt()
        assert error < 0.1, t
        assert t < 1.0 or (model(x, t).clean - mean).square().mean().sqrt() > 2.0 * error


def test_the_map_to_two_points():
    """Along the way to ±½ numbers keep their order: all go to one of the two, the smaller to −½, about half to each.

    Not at σ = 80: of the levels that training draws, hardly any lies there, and a few tails still go the wrong way.
    """
    model = learned(lambda noise: 0.5 * noise.sign(), SLCT)
    for t in (1.0, 10.0):
        answer = model(states(t, 0.5), t).clean.flatten()
        assert (answer.abs() - 0.5).abs().median() < 0.25, t
        signs = (answer > 0.0).int()
        assert (signs.diff() >= 0).all(), t
        assert 0.15 < signs.float().mean() < 0.85, t
