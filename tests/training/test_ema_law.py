import numpy as np
import pytest
import torch
from torch import nn

from ornstein.errors import ConfigError
from ornstein.training.ema import beta, exponent, update


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.25])
def test_exponent_solves_the_width(sigma_rel):
    gamma = exponent(sigma_rel)
    assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma_rel, rel=1e-10)
    # The same, from the profile itself: the standard deviation of s with density (γ + 1)·s^γ on [0, 1].
    s = (np.arange(200_000) + 0.5) / 200_000
    w = (gamma + 1) * s**gamma / 200_000
    assert np.sqrt((w * s**2).sum() - (w * s).sum() ** 2) == pytest.approx(sigma_rel, rel=1e-4)


def test_weights_of_the_average():
    # Unrolled, step k of n has weight (1 − β_k)·∏_{j>k} β_j: a power profile that sums to one from the first step on.
    gamma, n = exponent(0.1), 400
    kept = np.array([beta(step, gamma) for step in range(1, n + 1)])
    assert kept[0] == 0.0
    weights = (1 - kept) * np.append(np.cumprod(kept[::-1])[::-1][1:], 1.0)
    assert weights.sum() == pytest.approx(1.0)
    step = np.arange(1, n + 1)
    exact = (step / n) ** (gamma + 1) - ((step - 1) / n) ** (gamma + 1)
    assert weights == pytest.approx(exact, rel=1e-9)


def test_update_follows_the_weights():
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    update(average, model, 1, 5.0)
    assert torch.equal(average.weight, model.weight)
    before = average.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    update(average, model, 10, 5.0)
    torch.testing.assert_close(average.weight - before, torch.full((2, 3), 1 - beta(10, 5.0)))


def test_width_out_of_range():
    with pytest.raises(ConfigError, match=r"0\.28"):
        exponent(0.5)
