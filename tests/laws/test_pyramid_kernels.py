"""Pyramids of any kernel: the operator, its adjoint, the chain and the posterior against exact linear algebra."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.errors import ConfigError, PathError
from ornstein.estimates import Estimate
from ornstein.paths import PyramidPath
from ornstein.paths.blur import Blur
from ornstein.paths.pyramid import shrink
from ornstein.randomness import Noise
from ornstein.samplers import Ancestral, run, solve

DOUBLE = torch.float64
TENT = PyramidPath(alphas=(0.9, 0.7, 0.5), sigmas=(0.3, 0.5, 0.4), factors=(2, 1, 2), kernel=(1.0, 3.0, 3.0, 1.0))
THREE = PyramidPath(alphas=(0.8, 0.3), sigmas=(0.2, 0.4), factors=(2, 3), kernel=(1.0, 2.0, 4.0, 2.0, 1.0))
BOX = PyramidPath(alphas=(0.9, 0.6), sigmas=(0.3, 0.5), factors=(2, 2), kernel=(5.0, 5.0))
D4 = tuple((np.array([1, 3, 3, 1]) + np.sqrt(3) * np.array([1, 1, -1, -1])).tolist())
WAVELET = PyramidPath(alphas=(0.9, 0.6), sigmas=(0.3, 0.5), factors=(2, 2), kernel=D4)
PATHS = pytest.mark.parametrize("path", [TENT, THREE, BOX, WAVELET], ids=["tent", "odd", "box", "wavelet"])
SIDE = 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def matrix(f, side: int) -> np.ndarray:
    """A linear map of one-channel images as a matrix."""
    return f(torch.eye(side * side, dtype=DOUBLE).reshape(-1, 1, side, side)).flatten(1).T.numpy()


def sides(path: PyramidPath) -> list[int]:
    return [SIDE // path.factor(0, level) for level in range(path.levels + 1)]


def covariances(path: PyramidPath) -> list[np.ndarray]:
    """Σ_l given x_0, step by step."""
    out = [np.zeros((SIDE**2, SIDE**2))]
    for level in range(1, path.levels + 1):
        h = path.alphas[level - 1] * matrix(lambda v, t=level: path.down(v, t - 1, t), sides(path)[level - 1])
        out.append(h @ out[-1] @ h.T + path.sigmas[level - 1] ** 2 * np.eye(len(h)))
    return out


@PATHS
def test_up_is_the_adjoint_of_down(path):
    for s in range(path.levels + 1):
        for t in range(s, path.levels + 1):
            down = matrix(lambda v, s=s, t=t: path.down(v, s, t), sides(path)[s])
            up = matrix(lambda v, s=s, t=t: path.up(v, s, t), sides(path)[t])
            np.testing.assert_allclose(up, down.T, atol=1e-14)
        ones = torch.ones(1, 1, SIDE, SIDE, dtype=DOUBLE)
        torch.testing.assert_close(
            path.down(ones, 0, s) / path.scale(s), torch.ones(1, 1, *(sides(path)[s],) * 2).double()
        )


def test_the_kernel_of_the_sheet_has_the_correlations_of_the_sheet():
    norm = float(np.hypot.reduce([1.0, 3.0, 3.0, 1.0]))
    blur = Blur(2, tuple(tap / norm for tap in (1.0, 3.0, 3.0, 1.0)))
    row = np.zeros((1, 1, 16, 16))
    row[0, 0, 8, 8] = 1.0
    spread = blur.down(blur.up(torch.tensor(row)))[0, 0]
    assert spread[8, 8].item() == pytest.approx(1.0)
    assert spread[8, 9].item() == pytest.approx(0.3)
    along = blur.carried(np.ones((16, 16)))[0]  # the eigenvalues of HHᵀ, of the other direction constant: 1.6 times
    assert along.min() / 1.6 == pytest.approx(0.4)
    assert along.max() / 1.6 == pytest.approx(1.6)


def test_a_kernel_that_is_the_box_is_the_box():
    plain = PyramidPath(alphas=BOX.alphas, sigmas=BOX.sigmas, factors=BOX.factors)
    x, noise, clean = normal(2, 3, 3, 3), normal(2, 3, 6, 6, seed=1), normal(2, 3, SIDE, SIDE, seed=2)
    torch.testing.assert_close(BOX.down(clean, 0, 2), shrink(clean, 4))
    one, two = (p.posterior(x, Estimate(x, 2.0, p, clean=clean), 2.0, 1.0) for p in (plain, BOX))
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.sample(noise), two.sample(noise))
    torch.testing.assert_close(plain.diffuse(clean, 1, noise), BOX.diffuse(clean, 1, noise))


@PATHS
def test_the_chain_has_the_law_of_its_steps(path):
    wanted = covariances(path)
    for level in range(1, path.levels + 1):
        side, zero = sides(path)[level], torch.zeros(1, 1, SIDE, SIDE, dtype=DOUBLE)
        root = matrix(lambda v, t=level, x=zero: path.diffuse(x, t, v), side)
        np.testing.assert_allclose(root @ root.T, wanted[level], atol=1e-13)
        prior = matrix(lambda v, t=level: path.prior(Given(v), (1, SIDE, SIDE), float(t)), side)
        np.testing.assert_allclose(prior, root, atol=1e-14)
        for s in range(level):
            still = torch.zeros(1, 1, sides(path)[s], sides(path)[s], dtype=DOUBLE)
            gain = matrix(
                lambda v, s=s, t=level, n=side: path.renoise(v, s, t, torch.zeros(len(v), 1, n, n).double()),
                sides(path)[s],
            )
            added = matrix(lambda v, s=s, t=level, x=still: path.renoise(x, s, t, v), side)
            np.testing.assert_allclose(gain @ wanted[s] @ gain.T + added @ added.T, wanted[level], atol=1e-13)


class Given:
    """A noise source of one tensor."""

    def __init__(self, noise: Tensor) -> None:
        self.given = noise

    def normal(self, key, event) -> Tensor:
        return self.given


@PATHS
@pytest.mark.parametrize("level_of_estimate", ["image", "target"])
def test_the_posterior_is_dense_conditioning(path, level_of_estimate):
    wanted, clean = covariances(path), normal(1, 1, SIDE, SIDE, seed=2)
    for t in range(1, path.levels + 1):
        for s in range(t):
            side, small = sides(path)[s], sides(path)[t]
            gain = path.gains[t] / path.gains[s] * matrix(lambda v, s=s, t=t: path.down(v, s, t), side)
            x = normal(1, 1, small, small, seed=3)
            told = clean if level_of_estimate == "image" else path.down(clean, 0, s)
            found = path.posterior(x, Estimate(x, float(t), path, clean=told), float(t), float(s))
            slope = wanted[s] @ gain.T @ np.linalg.inv(wanted[t])
            start = path.gains[s] * path.down(clean, 0, s).flatten().numpy()
            mean = start + slope @ (x.flatten().numpy() - gain @ start)
            np.testing.assert_allclose(found.mean.flatten().numpy(), mean, atol=1e-11)
            zero = torch.zeros_like(found.mean)
            root = matrix(lambda v, f=found, z=zero: type(f)(mean=z, root=f.root).sample(v), side)
            np.testing.assert_allclose(root @ root.T, wanted[s] - slope @ gain @ wanted[s], atol=1e-12)


@PATHS
def test_a_perfect_network_returns_the_image_for_any_noise(path):
    clean, noise = normal(2, 3, SIDE, SIDE), Noise.of(0, range(2), dtype=DOUBLE)

    def known(x: Tensor, t: float) -> Estimate:
        return Estimate(x, t, path, clean=path.down(clean, 0, t - 1))

    times = tuple(float(t) for t in range(path.levels, -1, -1))
    out = run(solve(Ancestral(), path, path.prior(noise, (3, SIDE, SIDE)), times, noise), known)  # type: ignore[arg-type]
    assert torch.equal(out, clean)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="the box's alone"):
        PyramidPath(kernel=(1.0, 2.0, 1.0), rule="published")
    for bad in ((1.0, -1.0), (float("nan"),)):
        with pytest.raises(ConfigError, match="kernel must be"):
            PyramidPath(kernel=bad)
    with pytest.raises(PathError, match="must divide"):
        TENT.down(torch.zeros(1, 1, 6, 6), 0, 3)
