"""Universal guidance where the answer is known: exact posteriors, and backward steps in closed form."""

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigError
from ornstein.guidance import Backward, Universal
from ornstein.lab.meters import propagate
from ornstein.lab.targets import M2, GaussianTarget, MixtureTarget
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, Ancestral, run, solve

MU, V, Y, STD = 0.7, 1.5, 2.0, 0.5
POSTERIOR = (MU + V / (V + STD**2) * (Y - MU), V * STD**2 / (V + STD**2))
TARGET = GaussianTarget([MU], [V])
LIKELIHOOD = guide.Measured(operator=lambda x: x, target=torch.tensor([[Y]], dtype=torch.float64), std=STD)
PATHS = [VP(), VE(), Flow()]


def moments(guidance, sampler, grid):
    """(mean, variance) that the sampler gives, exactly: the guided denoiser of a Gaussian is affine."""
    path = VP.table()
    times = orn.grids.times_of(grid, path)
    root = torch.full((1, 1), path.std(times[0]), dtype=torch.float64)
    found = propagate(sampler, guidance(TARGET.denoiser(path)), times, torch.zeros(1, dtype=torch.float64), root)
    return float(found.mean), float(found.variance)


def state(path, t, dim=1, rows=5, seed=0):
    noise = Noise.of(seed, range(rows), dtype=torch.float64)
    return path.diffuse(noise.normal("x", (dim,)), t, noise.normal("z", (dim,)))


# ------------------------------------------------------------------------------------------- exact laws on a Gaussian


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("level", [-3.0, 0.0, 4.0])
def test_the_corrected_strength_gives_the_exact_posterior_mean(path, level: float) -> None:
    """At every state and noise level, hence for every sampler: E[x_0 | x_t, y] of the Gaussian."""
    t = path.time_of(level)
    x = state(path, t)
    a, s2 = path.alpha(t), path.sigma(t) ** 2
    precision = 1 / V + a * a / s2 + 1 / STD**2
    exact = (MU / V + a * x / s2 + Y / STD**2) / precision
    model = TARGET.denoiser(path)
    scalar = Universal(energies=LIKELIHOOD, strength=guide.corrected(STD, variance=V))(model)(x, t).clean
    matrix = guide.LinearPosterior(measured=LIKELIHOOD, iterations=1)(model)(x, t).clean
    torch.testing.assert_close(scalar, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(matrix, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral()], ids=["ddim", "ancestral"])
def test_the_corrected_strength_samples_the_exact_posterior(sampler) -> None:
    guidance = Universal(energies=LIKELIHOOD, strength=guide.corrected(STD, variance=V))
    mean, variance = moments(guidance, sampler, orn.grids.log_snr(200))
    assert mean == pytest.approx(POSTERIOR[0], abs=0.02)
    assert variance == pytest.approx(POSTERIOR[1], rel=0.05)


def test_the_plain_strength_concentrates_and_recurrence_helps() -> None:
    """H8: with w = 1, more recurrence comes nearer to the posterior in mean and in variance."""
    guidance = Universal(energies=LIKELIHOOD)
    grid = orn.grids.uniform(100)
    found = [moments(guidance, DDIM(), orn.grids.resample(grid, k)) for k in (1, 2, 4)]
    for (mean, variance), (was_mean, was_variance) in zip(found[1:], found, strict=False):
        assert POSTERIOR[0] < mean < was_mean
        assert was_variance < variance < POSTERIOR[1]
    assert found[0] == (pytest.approx(2.318, abs=0.03), pytest.approx(0.003, abs=0.003))
    assert found[2] == (pytest.approx(1.888, abs=0.03), pytest.approx(0.151, abs=0.02))


def test_recurrence_without_guidance_keeps_the_marginal() -> None:
    guidance = Universal(energies=LIKELIHOOD, strength=0.0)
    for k in (1, 3):
        mean, variance = moments(guidance, Ancestral(), orn.grids.resample(orn.grids.log_snr(200), k))
        assert mean == pytest.approx(MU, abs=0.01)
        assert variance == pytest.approx(V, rel=0.05)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_forward_guidance_is_parallel_to_the_likelihood_score(path) -> None:
    """H2: the shift of the score is the exact one times 1 + V_t/std²."""
    t = path.time_of(0.5)
    x = state(path, t)
    model = TARGET.denoiser(path)
    plain, guided = model(x, t), Universal(energies=LIKELIHOOD)(model)(x, t)
    shift = guided.score - plain.score
    a, s2 = path.alpha(t), path.sigma(t) ** 2
    left = V * s2 / (a * a * V + s2)
    kappa = a * V / (a * a * V + s2)
    torch.testing.assert_close(shift, kappa * (Y - plain.clean) / STD**2, rtol=1e-12, atol=1e-12)
    exact = kappa * (Y - plain.clean) / (STD**2 + left)
    torch.testing.assert_close(shift, exact * (1 + left / STD**2), rtol=1e-12, atol=1e-12)


def test_a_linear_posterior_is_exact_with_a_full_covariance_and_fewer_measurements() -> None:
    """Kalman's update of a correlated Gaussian, by conjugate gradients through the Jacobian."""
    root = torch.tensor([[1.0, 0.3, -0.2], [0.0, 0.8, 0.5], [0.0, 0.0, 0.4]], dtype=torch.float64)
    covariance, mean = root @ root.T, torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    rows = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]], dtype=torch.float64)
    y, std = torch.tensor([[1.0, 0.2]], dtype=torch.float64), 0.3
    target, path = GaussianTarget.full(mean, covariance), VP()
    t = path.time_of(-1.0)
    x = state(path, t, dim=3)
    a, s2 = path.alpha(t), path.sigma(t) ** 2
    precision = covariance.inverse() + a * a / s2 * torch.eye(3, dtype=torch.float64) + rows.T @ rows / std**2
    weighed = mean @ covariance.inverse() + a / s2 * x + y @ rows / std**2
    exact = weighed @ precision.inverse()
    measured = guide.Measured(operator=lambda v: v @ rows.T, target=y, std=std)
    guidance = guide.LinearPosterior(measured=measured, iterations=2)
    torch.testing.assert_close(guidance(target.denoiser(path))(x, t).clean, exact, rtol=1e-10, atol=1e-10)
    for enough in (5, 9):  # a converged system stays where it is
        again = guide.LinearPosterior(measured=measured, iterations=enough)(target.denoiser(path))(x, t).clean
        torch.testing.assert_close(again, exact, rtol=1e-10, atol=1e-10)


def test_the_jacobian_of_an_exact_denoiser_is_its_covariance() -> None:
    """H4 on a mixture, through the vector–Jacobian product that guidance uses."""
    path, target = VP(), M2()
    t = path.time_of(0.0)
    x = state(path, t, dim=2, rows=3)
    a, s = path.alpha(t), path.sigma(t)
    law = target.law(path, t)
    joint = law._log_joint(x, 1.0, 0.0)[0]
    r = torch.softmax(joint, 1)
    frames, pull = target.frames, a * target.variances / law.variances
    means = torch.stack(
        [m + ((x - a * m) @ q * p) @ q.T for m, q, p in zip(target.means, frames, pull, strict=True)], 1
    )
    inside = torch.stack(
        [q @ torch.diag(v * s * s / c) @ q.T for q, v, c in zip(frames, target.variances, law.variances, strict=True)]
    )
    mean = (r[..., None] * means).sum(1)
    centred = means - mean[:, None]
    covariance = torch.einsum("bk,kij->bij", r, inside) + torch.einsum("bk,bki,bkj->bij", r, centred, centred)
    for axis in range(2):
        unit = torch.eye(2, dtype=torch.float64)[axis]
        guided = Universal(energies=lambda c, u=unit: c @ u)(target.denoiser(path))(x, t).clean
        torch.testing.assert_close(mean - guided, covariance[:, axis], rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("m", [0, 1, 3, 400])
def test_backward_guidance_has_its_closed_form(m: int) -> None:
    """H5: Δ_m = (1 − (1 − η/std²)^m)(y − x̂_0), and the noise of the answer is the paper's ε − (α/σ)·Δ."""
    path, rate = VP(), 0.1
    t = path.time_of(0.0)
    x = state(path, t)
    model = TARGET.denoiser(path)
    plain = model(x, t)
    guided = Universal(energies=LIKELIHOOD, strength=0.0, backward=Backward(steps=m, rate=rate))(model)(x, t)
    delta = (1 - (1 - rate / STD**2) ** m) * (Y - plain.clean)
    torch.testing.assert_close(guided.clean, plain.clean + delta, rtol=1e-12, atol=1e-12)
    noise = plain.noise - path.alpha(t) / path.sigma(t) * delta
    torch.testing.assert_close(guided.noise, noise, rtol=1e-12, atol=1e-12)
    if m == 0:
        assert torch.equal(guided.clean, plain.clean)


def test_the_two_readings_of_the_centre() -> None:
    """Paper: both shifts start from the unguided estimate and add. Code: the descent starts where forward has led."""
    path, rate, m = VP(), 0.05, 3
    t = path.time_of(1.0)
    x = state(path, t)
    model = TARGET.denoiser(path)
    plain = model(x, t).clean
    forward = Universal(energies=LIKELIHOOD)(model)(x, t).clean
    keep = (1 - rate / STD**2) ** m
    paper = Universal.as_in_paper(LIKELIHOOD, 1.0, steps=m, rate=rate)(model)(x, t).clean
    torch.testing.assert_close(paper, forward + (1 - keep) * (Y - plain), rtol=1e-12, atol=1e-12)
    code = Universal(energies=LIKELIHOOD, backward=Backward(steps=m, rate=rate))(model)(x, t).clean
    torch.testing.assert_close(code, Y + keep * (forward - Y), rtol=1e-12, atol=1e-12)


def test_the_authors_descent_is_adam_clamped_with_samples_at_rest() -> None:
    clean = torch.tensor([[0.2, -3.0], [0.5, 0.5]], dtype=torch.float64)
    goal = torch.tensor([0.5, 0.5], dtype=torch.float64)
    moved = Backward(steps=3, rate=0.01, descent="adam", clamp=(-1.0, 1.0), cutoff=1e-5).descend(
        clean, lambda c: (c - goal, 0.5 * (c - goal).square().sum(1))
    )
    leaf = clean[:1].clamp(-1, 1).clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * (leaf - goal).square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(moved[:1], leaf.detach().clamp(-1, 1), rtol=1e-12, atol=1e-12)
    assert torch.equal(moved[1], clean[1])
    made = Universal.as_in_code(LIKELIHOOD, 2.0, steps=5).backward
    wanted = Backward(steps=5, rate=0.01, descent="adam", clamp=(-1.0, 1.0), cutoff=1e-5)
    assert {name: getattr(made, name) for name in Backward.__slots__} == {
        name: getattr(wanted, name) for name in Backward.__slots__
    }


def test_backward_in_the_image_space_of_a_codec() -> None:
    path = VP()
    t = path.time_of(1.0)
    x = state(path, t)
    model = TARGET.denoiser(path)
    seen = guide.Measured(operator=lambda p: p, target=torch.tensor([[3.0]], dtype=torch.float64))
    backward = Backward(steps=1, rate=1.0, space="image")
    guided = Universal(
        energies=seen, strength=0.0, backward=backward, decode=lambda z: 2 * z + 1, encode=lambda p: (p - 1) / 2
    )
    torch.testing.assert_close(guided(model)(x, t).clean, torch.full_like(x, 1.0), rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="encode"):
        Universal(energies=seen, backward=backward, decode=lambda z: z)
    with pytest.raises(ConfigError, match="a model with a codec"):
        Universal(energies=seen, strength=0.0, backward=backward)(model)(x, t)


def test_a_mixture_is_pulled_to_its_posterior() -> None:
    """Two modes, evidence for one: the corrected guidance finds it, roughly, for x_0 given x_t is no Gaussian."""
    target = MixtureTarget.of([0.5, 0.5], [[-2.0], [2.0]], stds=[0.5, 0.5])
    path = VP()
    noise = Noise.of(0, range(300), dtype=torch.float64)
    measured = guide.Measured(operator=lambda x: x, target=torch.tensor([[1.5]], dtype=torch.float64), std=0.5)
    model = guide.LinearPosterior(measured=measured, iterations=1)(target.denoiser(path))
    times = orn.grids.times_of(orn.grids.log_snr(60), path)
    out = run(solve(DDIM(), path, path.prior(noise, (1,)), times, noise), model)
    assert float((out > 0).double().mean()) > 0.97
    assert float(out.mean()) == pytest.approx(1.75, abs=0.2)
    assert 0.25 < float(out.std()) < 0.5


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=lambda p: type(p).__name__)
def test_every_parameterization_gives_the_same_guided_estimate(path) -> None:
    """H10: one exact denoiser, dressed as each kind of network."""
    t = path.time_of(0.3)
    x = state(path, t)
    exact = TARGET.denoiser(path)
    guidance = Universal(energies=LIKELIHOOD, backward=Backward(steps=2, rate=0.05))
    expected = guidance(exact)(x, t).clean
    for kind in ("clean", "noise", "v", "velocity", "edm", "consistency"):
        if kind == "noise" and isinstance(path, Flow):
            with pytest.raises(ConfigError, match=r"predicts='noise' on Flow, whose noisiest time has no signal"):
                Denoiser(exact, path, kind)
            continue
        reading = orn.parameterizations.parameterization(kind)

        def net(fed: Tensor, time: Tensor, reading=reading) -> Tensor:
            back = fed / (reading.precondition(path, torch.ones_like(fed), t))
            estimate = exact(back, t)
            return reading.target(path, estimate.clean, estimate.noise, back, t)

        found = guidance(Denoiser(net, path, kind))(x, t).clean
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_pure_noise_is_left_unguided() -> None:
    path = Flow()
    model = TARGET.denoiser(path)
    x = state(path, 1.0)
    for guidance in (Universal(energies=LIKELIHOOD), guide.LinearPosterior(measured=LIKELIHOOD)):
        assert torch.equal(guidance(model)(x, 1.0).clean, model(x, 1.0).clean)
