"""UDPM's path: the operator, the chain, the exact posterior, the published one, shapes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.errors import GridError, PathError
from ornstein.estimates import Estimate
from ornstein.paths import PyramidPath
from ornstein.paths.pyramid import grow, shrink
from ornstein.randomness import Noise
from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.base import run, solve

DOUBLE = torch.float64
DDPM_BETAS = (0.1, 0.3, 0.5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def matrix(f: object, side: int) -> np.ndarray:
    """A linear map of one-channel images as a matrix."""
    basis = torch.eye(side * side, dtype=DOUBLE).reshape(-1, 1, side, side)
    return f(basis).flatten(1).T.numpy()  # type: ignore[operator]


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_the_operator_is_a_coisometry(factor: int) -> None:
    x, y = normal(2, 3, 6, 6), normal(2, 3, 6 // factor, 6 // factor, seed=1)
    h = matrix(lambda v: shrink(v, factor), 6)
    torch.testing.assert_close(shrink(grow(y, factor), factor), y, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(h.T, matrix(lambda v: grow(v, factor), 6 // factor), atol=1e-15)
    assert (shrink(x, factor) * y).sum().item() == pytest.approx((x * grow(y, factor)).sum().item(), rel=1e-12)
    p = h.T @ h
    np.testing.assert_allclose(p @ p, p, atol=1e-14)
    np.testing.assert_allclose(h @ h.T, np.eye((6 // factor) ** 2), atol=1e-14)
    if factor == 2:
        torch.testing.assert_close(shrink(x, 2), 2 * torch.nn.functional.avg_pool2d(x, 2))


def test_the_schedule_table() -> None:
    path = PyramidPath()
    np.testing.assert_allclose(path.gains[1:], [0.5, 0.1, 1e-4], rtol=1e-12)
    np.testing.assert_allclose(path.stds[1:], [0.1, 0.20100, 0.30000], atol=5e-6)
    for level in range(1, 4):
        total = sum((path.sigmas[k] / path.gains[k + 1]) ** 2 for k in range(level))
        assert path.stds[level] == pytest.approx(path.gains[level] * math.sqrt(total), rel=1e-12)
    assert [path.timestep_of(level) for level in (1.0, 2.0, 3.0)] == pytest.approx([1 / 6, 1 / 2, 5 / 6])


def chain(path: PyramidPath, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Means' matrices and noise factors of x_0 … x_L in terms of (x_0, z_1 … z_L), built step by step from C1."""
    sides = [side // path.factor(0, level) for level in range(path.levels + 1)]
    widths = [s * s for s in sides[1:]]
    mean, factor = np.eye(side * side), np.zeros((side * side, sum(widths)))
    means, factors = [mean], [factor]
    for level in range(1, path.levels + 1):
        f = path.factors[level - 1]
        h = matrix(lambda v, f=f: shrink(v, f), sides[level - 1])
        mean, factor = path.alphas[level - 1] * h @ mean, path.alphas[level - 1] * h @ factor
        start = sum(widths[: level - 1])
        factor[:, start : start + widths[level - 1]] += path.sigmas[level - 1] * np.eye(widths[level - 1])
        means.append(mean)
        factors.append(factor)
    return means, factors


MIXED = PyramidPath(alphas=(0.9, 0.6, 0.8), sigmas=(0.3, 0.5, 0.4), factors=(2, 1, 2))


@pytest.mark.parametrize("path", [PyramidPath(), MIXED], ids=["published", "mixed"])
def test_the_chain_has_the_closed_form_law(path: PyramidPath) -> None:
    means, factors = chain(path, 8)
    for level in range(1, path.levels + 1):
        side = 8 // path.factor(0, level)
        noise = torch.zeros(64, 1, side, side, dtype=DOUBLE)
        found = matrix(lambda v, t=level, w=noise: path.diffuse(v, t, w), 8)
        np.testing.assert_allclose(found, means[level], atol=1e-14)
        np.testing.assert_allclose(
            factors[level] @ factors[level].T, path.stds[level] ** 2 * np.eye(side * side), atol=1e-14
        )


@pytest.mark.parametrize("path", [PyramidPath(), MIXED], ids=["published", "mixed"])
@pytest.mark.parametrize(("s", "t"), [(0, 1), (0, 2), (1, 2), (2, 3), (1, 3), (0, 3)])
def test_renoise_after_diffuse_is_diffuse_in_law(path: PyramidPath, s: int, t: int) -> None:
    side, small = 8 // path.factor(0, s), 8 // path.factor(0, t)
    zero = torch.zeros(1, 1, small, small, dtype=DOUBLE)
    clean = normal(1, 1, 8, 8)
    mean = path.renoise(path.diffuse(clean, s, torch.zeros(1, 1, side, side, dtype=DOUBLE)), s, t, zero)
    torch.testing.assert_close(mean, path.diffuse(clean, t, zero), rtol=1e-12, atol=1e-14)
    gain = matrix(lambda v: path.renoise(v, s, t, torch.zeros(1, 1, small, small, dtype=DOUBLE)), side)
    spread = path.renoise(torch.zeros(1, 1, side, side, dtype=DOUBLE), s, t, zero + 1.0)[0, 0, 0, 0].item()
    cov = path.stds[s] ** 2 * gain @ gain.T + spread**2 * np.eye(small * small)
    np.testing.assert_allclose(cov, path.stds[t] ** 2 * np.eye(small * small), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("path", [PyramidPath(), MIXED], ids=["published", "mixed"])
@pytest.mark.parametrize(("s", "t"), [(0, 1), (1, 2), (2, 3), (1, 3), (0, 3)])
@pytest.mark.parametrize("level_of_estimate", ["image", "target"])
def test_posterior_is_dense_conditioning(path: PyramidPath, s: int, t: int, level_of_estimate: str) -> None:
    means, factors = chain(path, 8)
    side, small = 8 // path.factor(0, s), 8 // path.factor(0, t)
    clean, x = normal(1, 1, 8, 8, seed=2), normal(1, 1, small, small, seed=3)
    told = clean if level_of_estimate == "image" else shrink(clean, path.factor(0, s))
    found = path.posterior(x, Estimate(x, float(t), path, clean=told), float(t), float(s))

    cross, top = factors[s] @ factors[t].T, factors[t] @ factors[t].T
    slope = cross @ np.linalg.inv(top)
    flat = clean.flatten().numpy()
    mean = means[s] @ flat + slope @ (x.flatten().numpy() - means[t] @ flat)
    cov = factors[s] @ factors[s].T - slope @ cross.T
    np.testing.assert_allclose(found.mean.flatten().numpy(), mean, rtol=1e-10, atol=1e-10)
    zero = torch.zeros_like(found.mean)
    root = matrix(lambda v: type(found)(mean=zero, root=found.root).sample(v), side)
    np.testing.assert_allclose(root @ root.T, cov, rtol=1e-10, atol=1e-10)
    if s > 0:  # the information form of the sheet, C2, for one level
        h = matrix(lambda v: shrink(v, path.factor(s, t)), side)
        gain = path.gains[t] / path.gains[s]
        spread2 = path.stds[t] ** 2 - (gain * path.stds[s]) ** 2
        precision = gain**2 / spread2 * h.T @ h + np.eye(side * side) / path.stds[s] ** 2
        np.testing.assert_allclose(np.linalg.inv(precision), cov, rtol=1e-10, atol=1e-10)


def test_factors_of_one_are_ddpm() -> None:
    betas = np.array(DDPM_BETAS)
    path = PyramidPath(alphas=tuple(np.sqrt(1 - betas)), sigmas=tuple(np.sqrt(betas)), factors=(1, 1, 1))
    bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    np.testing.assert_allclose(np.array(path.stds) ** 2, 1 - bars, atol=1e-13)
    x, clean = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    for t in (2, 3):
        found = path.posterior(x, Estimate(x, float(t), path, clean=clean), float(t), t - 1.0)
        beta = betas[t - 1]
        first = beta * math.sqrt(bars[t - 1]) / (1 - bars[t])
        second = (1 - bars[t - 1]) * math.sqrt(1 - beta) / (1 - bars[t])
        torch.testing.assert_close(found.mean, first * clean + second * x, rtol=1e-13, atol=1e-13)
        std = type(found)(mean=0 * x, root=found.root).sample(torch.ones_like(x))[0, 0, 0, 0].item()
        assert std**2 == pytest.approx(beta * (1 - bars[t - 1]) / (1 - bars[t]), rel=1e-13)


def test_published_rule_differs_off_the_range_only() -> None:
    exact, published = PyramidPath(), PyramidPath(rule="published")
    x, clean = normal(1, 1, 2, 2), normal(1, 1, 4, 4, seed=1)
    one = exact.posterior(x, Estimate(x, 2.0, exact, clean=clean), 2.0, 1.0)
    two = published.posterior(x, Estimate(x, 2.0, published, clean=clean), 2.0, 1.0)

    def parts(v: Tensor) -> tuple[Tensor, Tensor]:
        on = grow(shrink(v, 2), 2)
        return on, v - on

    torch.testing.assert_close(parts(one.mean)[0], parts(two.mean)[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts(two.mean)[1], 0.990099 * parts(one.mean)[1], rtol=1e-6, atol=1e-12)
    noise = normal(1, 1, 4, 4, seed=5)
    drawn, said = one.sample(noise) - one.mean, two.sample(noise) - two.mean
    torch.testing.assert_close(parts(drawn)[0], parts(said)[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts(said)[1], math.sqrt(0.990099) * parts(drawn)[1], rtol=1e-6, atol=1e-12)


def test_shapes_up_and_down() -> None:
    path = PyramidPath()
    shapes = [(3, 64, 48), (3, 32, 24), (3, 16, 12), (3, 8, 6)]
    for s in range(4):
        assert tuple(path.state_shape(shapes[0], s)) == shapes[s]
        for t in range(4):
            assert tuple(path.state_shape(shapes[s], t, at=s)) == shapes[t]
    with pytest.raises(PathError, match="divide by 8"):
        path.state_shape((3, 20, 20), 3)
    with pytest.raises(PathError, match="divide"):
        path.diffuse(torch.zeros(1, 3, 7, 8), 1.0, torch.zeros(1, 3, 3, 4))
    with pytest.raises(PathError, match="images"):
        path.state_shape((3,), 1)
    with pytest.raises(PathError, match="too small for level 1"):
        x = torch.zeros(1, 3, 8, 8)
        path.posterior(x, Estimate(x, 3.0, path, clean=torch.zeros(1, 3, 16, 16)), 3.0, 1.0)
    for t in (-1.0, 0.5, 4.0, math.nan, math.inf):
        with pytest.raises(GridError, match="whole levels"):
            path.check(t)
    with pytest.raises(PathError, match="one level for the whole batch"):
        path.diffuse(torch.zeros(2, 3, 8, 8), torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4))
    batched = path.diffuse(torch.ones(2, 3, 8, 8), torch.tensor([1.0, 1.0]), torch.zeros(2, 3, 4, 4))
    assert torch.equal(batched, torch.ones(2, 3, 4, 4))


class Known:
    """A denoiser that knows the image and answers H^{l−1}x_0, or another fixed function of (x, t)."""

    def __init__(self, path: PyramidPath, clean: Tensor | None) -> None:
        self.path, self.clean, self.seen = path, clean, list[tuple[tuple[int, ...], tuple[int, ...]]]()

    def __call__(self, x: Tensor, t: float) -> Estimate:
        answer = grow(x, 2).tanh() if self.clean is None else shrink(self.clean, self.path.factor(0, t - 1))
        self.seen.append((tuple(x.shape[1:]), tuple(answer.shape[1:])))
        return Estimate(x, t, self.path, clean=answer)


@pytest.mark.parametrize("rule", ["exact", "published"])
def test_a_perfect_network_returns_the_image_for_any_noise(rule: str) -> None:
    path = PyramidPath(rule=rule)  # type: ignore[arg-type]
    clean = normal(2, 3, 16, 16)
    for seed in range(3):
        noise = Noise.of(seed, range(2), dtype=DOUBLE)
        net = Known(path, clean)
        x = path.prior(noise, (3, 16, 16))
        assert x.shape == (2, 3, 2, 2)
        out = run(solve(Ancestral(), path, x, (3.0, 2.0, 1.0, 0.0), noise), net)  # type: ignore[arg-type]
        assert torch.equal(out, clean)
        assert net.seen == [((3, 2, 2), (3, 4, 4)), ((3, 4, 4), (3, 8, 8)), ((3, 8, 8), (3, 16, 16))]


def test_the_last_level_adds_nothing_and_runs_repeat() -> None:
    path, noise = PyramidPath(), Noise.of(0, range(2))
    x = path.prior(noise, (3, 16, 16))
    assert x.std().item() == pytest.approx(0.3, rel=0.4)
    one, two = (run(solve(Ancestral(), path, x, (3.0, 2.0, 1.0, 0.0), noise), Known(path, None)) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(one, two)
    x_1 = run(solve(Ancestral(), path, x, (3.0, 2.0, 1.0), noise), Known(path, None))  # type: ignore[arg-type]
    assert torch.equal(one, Known(path, None)(x_1, 1.0).clean)
    point = path.posterior(x_1, Known(path, None)(x_1, 1.0), 1.0, 0.0)
    assert point.root == 0.0


def test_a_perfect_posterior_reproduces_the_marginal() -> None:
    # Drawing x_{l−1} from the posterior at the true image gives q(x_{l−1} | x_0) and the true cross-covariance.
    for path in (PyramidPath(), MIXED):
        _means, factors = chain(path, 8)
        for t in range(2, path.levels + 1):
            s, side, small = t - 1, 8 // path.factor(0, t - 1), 8 // path.factor(0, t)
            clean = torch.zeros(1, 1, 8, 8, dtype=DOUBLE)
            slope = matrix(
                lambda v, p=path, t=t, s=s, c=clean: p.posterior(v, Estimate(v, t, p, clean=c), t, s).mean, small
            )
            top = factors[t] @ factors[t].T
            np.testing.assert_allclose(slope @ top, factors[s] @ factors[t].T, atol=1e-13)
            x = torch.zeros(1, 1, small, small, dtype=DOUBLE)
            found = path.posterior(x, Estimate(x, t, path, clean=clean), t, s)
            root = matrix(lambda v, f=found: f.sample(v), side)
            np.testing.assert_allclose(slope @ top @ slope.T + root @ root.T, factors[s] @ factors[s].T, atol=1e-13)
