"""ContextDiff's path: its reduction, marginals, posterior, the bias of r(x̂_0), and gradients of the shift."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ornstein.errors import PathError
from ornstein.estimates import Estimate
from ornstein.paths import VP, AffinePath, ShiftedPath
from ornstein.randomness import Noise
from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.base import Sampler, run, solve
from ornstein.samplers.ddim import DDIM

DOUBLE = torch.float64
TABLE = VP.table()
GRID = (*(1.0 - k / 50 for k in range(50)), 0.0)


class Exact:
    """A denoiser made of a function (x, t) → (x̂_0, r̂ or None)."""

    def __init__(self, path: ShiftedPath | AffinePath, f: object) -> None:
        self.path, self.f = path, f

    def __call__(self, x: Tensor, t: float) -> Estimate:
        clean, shift = self.f(x, t)  # type: ignore[operator]
        return Estimate(x, t, self.path, clean=clean, extras={} if shift is None else {"shift": shift})


def sampled(
    sampler: Sampler, path: ShiftedPath | AffinePath, f: object, x: Tensor, times=GRID, seed: int = 0
) -> Tensor:
    noise = Noise.of(seed, range(len(x)), dtype=x.dtype)
    return run(solve(sampler, path, x, times, noise), Exact(path, f))  # type: ignore[arg-type]


def nothing(clean: Tensor, cond: object, t: object) -> Tensor:
    return torch.zeros_like(clean)


def bent(clean: Tensor, cond: object, t: object) -> Tensor:
    """Depends on x_0 and, unlike the simplest shifts, on t."""
    return torch.tanh(2.0 * clean) + 0.3 * (t if isinstance(t, float) else 1.0)


@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral("large"), DDIM(), DDIM(0.5)], ids=repr)
def test_no_shift_is_the_base_bit_for_bit(sampler: Sampler) -> None:
    path, noise = ShiftedPath(base=TABLE, shift=nothing), Noise.of(0, range(3))
    clean, z = noise.normal("c", (2, 4)), noise.normal("w", (2, 4))
    assert torch.equal(path.prior(noise, (2, 4)), TABLE.prior(noise, (2, 4)))
    assert torch.equal(path.diffuse(clean, 0.3, z), TABLE.diffuse(clean, 0.3, z))
    times = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)
    assert torch.equal(path.diffuse(clean, times, z), TABLE.diffuse(clean, times, z))
    for one, two in [(p.posterior(z, Estimate(z, 0.5, p, clean=clean), 0.5, 0.3) for p in (path, TABLE))]:
        assert torch.equal(one.mean, two.mean)
        assert one.root == two.root
    shrunk = lambda x, t: (0.5 * x.tanh(), None)  # noqa: E731
    start = path.prior(noise, (2, 4))
    assert torch.equal(sampled(sampler, path, shrunk, start), sampled(sampler, TABLE, shrunk, start))


def test_marginal_by_composition() -> None:
    path = ShiftedPath(base=TABLE, shift=bent)
    clean, zero, one = (
        torch.tensor([[0.8]], dtype=DOUBLE),
        torch.zeros(1, 1, dtype=DOUBLE),
        torch.ones(1, 1, dtype=DOUBLE),
    )
    x, variance = clean.clone(), 0.0
    for k in range(400):
        s, t = k / 1000, (k + 1) / 1000
        mean = path.renoise(x, s, t, zero, clean)
        slope = (path.renoise(x + 1.0, s, t, zero, clean) - mean).item()
        spread = (path.renoise(x, s, t, one, clean) - mean).item()
        x, variance = mean, slope**2 * variance + spread**2
    torch.testing.assert_close(x, path.mean(clean, 0.4), rtol=1e-12, atol=1e-12)
    assert variance == pytest.approx(TABLE.sigma(0.4) ** 2, rel=1e-12)
    assert path.renoise_needs_clean
    with pytest.raises(PathError, match="clean="):
        path.renoise(x, 0.1, 0.2, zero)


def test_posterior_is_dense_conditioning_and_the_published_coefficients() -> None:
    path = ShiftedPath(base=TABLE, shift=bent)
    clean, x = torch.tensor([[0.8]], dtype=DOUBLE), torch.tensor([[-0.4]], dtype=DOUBLE)
    for k in (1, 10, 400, 999):
        s, t = k / 1000, (k + 1) / 1000
        bar, before = TABLE.alpha(t) ** 2, TABLE.alpha(s) ** 2
        alpha, beta = bar / before, 1 - bar / before
        b_t, b_s = (path.strength(u) * bent(clean, {}, u) for u in (t, s))
        c1, c2 = beta * math.sqrt(before) / (1 - bar), (1 - before) * math.sqrt(alpha) / (1 - bar)
        found = path.posterior(x, Estimate(x, t, path, clean=clean), t, s)
        torch.testing.assert_close(found.mean, c1 * clean + c2 * (x - b_t) + b_s, rtol=1e-11, atol=1e-11)
        assert found.root**2 == pytest.approx(beta * (1 - before) / (1 - bar), rel=1e-9)  # type: ignore[operator]
        factor = np.array([[path.std(s), 0.0], [path.gain(s, t) * path.std(s), path.spread(s, t)]])
        cov = factor @ factor.T
        slope = cov[0, 1] / cov[1, 1]
        mean = path.mean(clean, s) + slope * (x - path.mean(clean, t))
        torch.testing.assert_close(found.mean, mean, rtol=1e-10, atol=1e-10)
        assert found.root**2 == pytest.approx(cov[0, 0] - slope * cov[0, 1], rel=1e-8)  # type: ignore[operator]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_with_the_true_image_maps_marginal_to_marginal(eta: float) -> None:
    path, s, t = ShiftedPath(base=TABLE, shift=bent), 0.3, 0.5
    clean, zero = torch.full((1, 1), 0.8, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    oracle = lambda x, u: (clean, None)  # noqa: E731
    step = lambda x: sampled(DDIM(eta), path, oracle, x, (t, s))  # noqa: E731
    noise = Noise.of(0, range(1), dtype=DOUBLE).normal(0, (1,))
    fresh = eta * path.bridge_std(t, s)
    centre = step(path.mean(clean, t)) - fresh * noise
    slope = (step(path.mean(clean, t) + 1.0) - step(path.mean(clean, t))).item()
    torch.testing.assert_close(centre, path.mean(clean, s), rtol=1e-13, atol=1e-13)
    assert (slope * path.std(t)) ** 2 + fresh**2 == pytest.approx(path.std(s) ** 2, rel=1e-13)
    # The correction form: plain DDIM, minus b_t·√((σ_s² − w²)/σ_t²), plus b_s.
    x = torch.full((1, 1), -0.4, dtype=DOUBLE)
    plain = sampled(DDIM(eta), TABLE, oracle, x, (t, s))
    b_t, b_s = (path.strength(u) * bent(clean, {}, u) for u in (t, s))
    factor = math.sqrt((path.std(s) ** 2 - fresh**2) / path.std(t) ** 2)
    torch.testing.assert_close(step(x), plain - factor * b_t + b_s, rtol=1e-13, atol=1e-13)
    if eta == 1.0:
        found = path.posterior(x, Estimate(x, t, path, clean=clean), t, s)
        torch.testing.assert_close(step(x), found.sample(noise), rtol=1e-12, atol=1e-12)
    assert zero.item() == 0.0


def test_strengths() -> None:
    alphas = [TABLE.alpha(k / 1000) for k in range(1001)]
    quadratic = ShiftedPath(base=TABLE, shift=bent)
    values = [quadratic.strength(k / 1000) for k in range(1001)]
    assert values[0] == 0.0
    assert values[1] == pytest.approx(5e-5, rel=1e-3)
    assert values[-1] == pytest.approx(6.3e-3, rel=1e-2)
    assert (max(values), int(np.argmax(values))) == (pytest.approx(0.25, abs=1e-5), 368)
    for bend, expected in (("prior", [1 - a for a in alphas]), ("data", [-a for a in alphas])):
        path = ShiftedPath(base=TABLE, shift=bent, bend=bend)  # type: ignore[arg-type]
        assert [path.strength(k / 1000) for k in range(1001)] == expected
    assert quadratic.strength(torch.tensor([0.5], dtype=DOUBLE)).item() == pytest.approx(quadratic.strength(0.5))


ATOMS, WEIGHTS = torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE), torch.tensor([0.30, 0.30, 0.40], dtype=DOUBLE)


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral()], ids=["ddim", "ancestral"])
def test_the_predicted_shift_is_unbiased_and_the_plugged_in_one_is_not(sampler: Sampler) -> None:
    shift = lambda clean, cond, t: 3.0 * torch.tanh(2.0 * clean)  # noqa: E731
    path = ShiftedPath(base=TABLE, shift=shift)

    def posterior(x: Tensor, t: float) -> Tensor:
        means = path.mean(ATOMS, t)
        return (WEIGHTS.log() - 0.5 * ((x - means) / path.std(t)) ** 2).softmax(-1)  # (B, 3)

    def exact(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        p = posterior(x, t)
        return (p @ ATOMS)[..., None], (p @ shift(ATOMS, None, t))[..., None]

    times = (*(1.0 - k / 250 for k in range(250)), 0.0)
    # Stratified starts make the deterministic sampler's frequencies exact to 1/n, not to 1/√n.
    n = 2000 if isinstance(sampler, DDIM) else 4000
    start = torch.special.ndtri((torch.arange(n, dtype=DOUBLE)[None, :, None] + 0.5) / n)  # one sample of n points

    def frequencies(f: object) -> np.ndarray:
        out = sampled(sampler, path, f, start, times)
        return np.bincount((out - ATOMS).abs().argmin(-1).flatten().numpy(), minlength=3) / n

    right, wrong = frequencies(exact), frequencies(lambda x, t: (exact(x, t)[0], None))
    np.testing.assert_allclose(right, WEIGHTS.numpy(), atol=0.02)
    assert np.abs(wrong - right).max() > 0.015  # r(E[x_0]) ≠ E[r(x_0)]: both modes exist, and differ


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Ancestral()], ids=repr)
def test_a_shift_of_the_condition_alone_is_a_change_of_variable(sampler: Sampler) -> None:
    cond = {"c": torch.tensor([[0.7, -1.1], [0.2, 0.4]], dtype=DOUBLE)}
    path = ShiftedPath(base=TABLE, shift=lambda clean, c, t: c["c"]).with_condition(cond)
    denoise = lambda x, t: (0.8 * torch.sin(x), None)  # noqa: E731
    moved = lambda x, t: denoise(x - path.strength(t) * cond["c"], t)  # noqa: E731
    start = torch.tensor([[0.3, -0.2], [1.0, 2.0]], dtype=DOUBLE)
    plain = sampled(sampler, TABLE, denoise, start)
    shifted = sampled(sampler, path, moved, start + path.strength(1.0) * cond["c"])
    torch.testing.assert_close(plain, shifted, rtol=1e-12, atol=1e-12)


def test_the_gradient_reaches_the_shift_only_through_the_bend() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, clean: Tensor, cond: object, t: object) -> Tensor:
            return self.layer(clean)

    path = ShiftedPath(base=VP(), shift=Adapter())
    clean, noise = torch.randn(2, 4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.0, 0.2, 0.4, 0.6], dtype=DOUBLE)

    def loss(rows: slice) -> Tensor:
        return (clean[rows] - path.diffuse(clean[rows], times[rows], noise[rows])).square().sum()

    (at_zero,) = torch.autograd.grad(loss(slice(0, 1)), layer.weight)
    (inside,) = torch.autograd.grad(loss(slice(1, 4)), layer.weight)
    assert at_zero.abs().max() == 0.0
    assert inside.abs().min() > 0.0
    with torch.no_grad():
        layer.weight[0, 1] += 1e-6
        up = loss(slice(1, 4))
        layer.weight[0, 1] -= 2e-6
        down = loss(slice(1, 4))
    assert ((up - down) / 2e-6).item() == pytest.approx(inside[0, 1].item(), rel=1e-6)


def gaussian(path: ShiftedPath, rho: float, variance: float) -> object:
    def f(x: Tensor, t: float) -> tuple[Tensor, None]:
        gain = path.base.alpha(t) + rho * path.strength(t)
        return gain * variance * x / (gain**2 * variance + path.std(t) ** 2), None

    return f


@pytest.mark.parametrize(("sampler", "expected"), [(DDIM(), 1.695), (Ancestral(), 1.687)], ids=["ddim", "ancestral"])
def test_gaussian_data_come_back(sampler: Sampler, expected: float) -> None:
    # Everything is linear, so the variance follows from one run on a unit vector and the noise each step adds.
    path = ShiftedPath(base=TABLE, shift=lambda clean, cond, t: 0.8 * clean)
    f, times = gaussian(path, 0.8, 1.7), tuple(k / 1000 for k in range(1000, -1, -1))
    variance, zero, one = 1.0, torch.zeros(1, 1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
    for t, s in itertools.pairwise(times):
        base = sampled(sampler, path, f, zero, (t, s))
        slope = (sampled(sampler, path, f, one, (t, s)) - base).item()
        fresh = path.bridge_std(t, s) if isinstance(sampler, Ancestral) else 0.0
        variance = slope**2 * variance + fresh**2
    assert variance == pytest.approx(expected, abs=1.5e-3)


def test_inversion_is_a_first_order_round_trip() -> None:
    path = ShiftedPath(base=TABLE, shift=lambda clean, cond, t: 0.8 * clean)
    f = gaussian(path, 0.8, 1.7)

    def error(steps: int) -> float:
        x = torch.ones(1, 1, dtype=DOUBLE)
        for k in range(1, steps):  # upward by hand: DDIM's rule with s > t
            t, s = k / steps, (k + 1) / steps
            estimate = Exact(path, f)(x, t)
            x = path.mean(estimate.clean, s) + path.std(s) * estimate.noise
        down = sampled(DDIM(), path, f, x, tuple(k / steps for k in range(steps, 0, -1)))
        return abs(down.item() - 1.0)

    errors = [error(n) for n in (50, 100, 200, 400)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(1.0, abs=0.15)


def test_prior_bend_moves_the_prior_by_the_condition() -> None:
    path = ShiftedPath(base=TABLE, shift=lambda clean, c, t: clean + c["c"], bend="prior").with_condition(
        {"c": torch.ones(1, 2)}
    )
    noise = Noise.of(0, range(3))
    torch.testing.assert_close(path.prior(noise, (2,)), TABLE.prior(noise, (2,)) + path.strength(1.0))
