"""The authors' code clamps the guided clean estimate, and derives the noise from it, also without backward steps."""

import pytest
import torch

import ornstein as orn
from ornstein.guidance.energies import Measured
from ornstein.guidance.universal import Backward, Universal
from ornstein.paths import VP

PATH = VP()
GOAL = torch.tensor([[2.0, -0.3, 0.1], [0.2, 0.4, -3.0]], dtype=torch.float64)
ENERGY = Measured(operator=lambda clean: clean, target=GOAL)
MODEL = orn.Denoiser(lambda x, time: 0.9 * x, PATH, "clean", shape=(3,))
X = torch.tensor([[1.5, -0.2, 0.4], [0.3, -2.5, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("log_snr", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_without_steps_the_code_clamps_the_forward_guided_estimate(log_snr, strength):
    t = PATH.time_of(log_snr)
    forward = Universal(energies=ENERGY, strength=strength)(MODEL)(X, t).clean
    assert (forward.abs() > 1.0).any()
    found = Universal.as_in_code(ENERGY, strength)(MODEL)(X, t)
    torch.testing.assert_close(found.clean, forward.clamp(-1.0, 1.0), rtol=1e-12, atol=1e-12)
    # The noise is the one whose clean estimate is the clamped one.
    noise = (X - PATH.alpha(t) * found.clean) / PATH.sigma(t)
    torch.testing.assert_close(found.noise, noise, rtol=1e-12, atol=1e-12)


def test_a_rate_of_zero_is_no_step():
    t = PATH.time_of(0.0)
    still = Universal.as_in_code(ENERGY, 1.0, steps=3, rate=0.0)(MODEL)(X, t).clean
    assert torch.equal(still, Universal.as_in_code(ENERGY, 1.0)(MODEL)(X, t).clean)


def test_only_a_clamp_acts_without_steps():
    t = PATH.time_of(-3.0)
    forward = Universal(energies=ENERGY, strength=1.0)(MODEL)(X, t).clean
    plain = Universal(energies=ENERGY, strength=1.0, backward=Backward(steps=0, rate=0.1))
    assert torch.equal(plain(MODEL)(X, t).clean, forward)
    assert torch.equal(Universal.as_in_paper(ENERGY, 1.0)(MODEL)(X, t).clean, forward)
    none = Universal(energies=ENERGY, strength=0.0, backward=Backward(steps=0, rate=0.1))
    assert torch.equal(none(MODEL)(X, t).clean, MODEL(X, t).clean)
    assert torch.equal(Backward(steps=0, rate=0.1).descend(X, lambda clean: (clean, clean.sum(1))), X)


def test_in_pictures_it_is_the_decoded_estimate_that_is_clamped():
    """Rows whose picture lies within the range stay as they are: decoding and encoding them would lose something."""
    t, x = PATH.time_of(0.0), torch.cat((X[:1], 0.3 * X[1:]))
    guide = Universal(
        energies=ENERGY,
        strength=0.0,
        backward=Backward(steps=0, rate=0.1, clamp=(-1.0, 3.0), space="image"),
        decode=lambda z: 2.0 * z + 1.0,
        encode=lambda picture: (picture - 1.0) / 2.0 + 0.05,
    )
    found = guide(MODEL)(x, t).clean
    torch.testing.assert_close(found[0], (0.9 * x[0]).clamp(-1.0, 1.0) + 0.05, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], 0.9 * x[1])
