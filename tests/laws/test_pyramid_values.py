"""Pyramids of pictures that are not square, with kernels that are not symmetric: every part beside numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.errors import ConfigError, GridError, PathError
from ornstein.estimates import Estimate
from ornstein.paths import PyramidPath
from ornstein.paths.blur import Blur, Circulant
from ornstein.paths.pyramid import grow, shrink
from ornstein.randomness import Noise

DOUBLE = torch.float64
SHAPE = (4, 12)
MIXED = PyramidPath(alphas=(0.9, 0.6, 0.8), sigmas=(0.3, 0.5, 0.4), factors=(2, 1, 2))
SKEW = PyramidPath(alphas=(0.9, 0.7, 0.5), sigmas=(0.3, 0.5, 0.4), factors=(2, 1, 2), kernel=(1.0, 4.0, -0.5))
# Nearly all of its noise at level 2 is that of level 1: the posterior is narrow.
LONG = PyramidPath(alphas=(0.8, 0.9), sigmas=(0.9, 0.2), factors=(1, 2), kernel=(1.0, 2.0, 0.3, 0.7, 0.1))
PATHS = pytest.mark.parametrize("path", [MIXED, SKEW, LONG], ids=["box", "skew", "long"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def operator(factor: int, taps: Any, height: int, width: int) -> np.ndarray:
    """H as a matrix: out[i, j] = Σ w_k·w_l·x[f·i + first + k, f·j + first + l], around the edges."""
    first = math.floor((factor - len(taps)) / 2)
    rows, columns = height // factor, width // factor
    out = np.zeros((rows, columns, height, width))
    for i in range(rows):
        for j in range(columns):
            for k, a in enumerate(taps):
                for m, b in enumerate(taps):
                    out[i, j, (factor * i + first + k) % height, (factor * j + first + m) % width] += a * b
    return out.reshape(rows * columns, height * width)


def taps_of(path: PyramidPath, factor: int) -> Any:
    if factor == 1:
        return [1.0]
    if not path.kernel:
        return [1.0 / math.sqrt(factor)] * factor
    return np.array(path.kernel) / np.linalg.norm(path.kernel)


def sizes(path: PyramidPath) -> list[tuple[int, int]]:
    factors = np.cumprod([1, *path.factors])
    return [(SHAPE[0] // int(f), SHAPE[1] // int(f)) for f in factors]


def chain(path: PyramidPath) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """H^l and Σ_l of all levels, step by step."""
    whole, cov = [np.eye(48)], [np.zeros((48, 48))]
    for level, size in enumerate(sizes(path)[:-1]):
        h = operator(path.factors[level], taps_of(path, path.factors[level]), *size)
        whole.append(h @ whole[-1])
        cov.append(path.alphas[level] ** 2 * h @ cov[-1] @ h.T + path.sigmas[level] ** 2 * np.eye(len(h)))
    return whole, cov


def matrix(f: Any, size: tuple[int, int]) -> np.ndarray:
    """A linear map of one-channel images as a matrix."""
    count = math.prod(size)
    return f(torch.eye(count, dtype=DOUBLE).reshape(count, 1, *size)).flatten(1).T.numpy()


def near_square(root: np.ndarray, wanted: np.ndarray) -> None:
    """root·rootᵀ is the covariance, and the root adds noise: its sign is plus."""
    near(root @ root.T, wanted)
    assert np.trace(root) >= 0.0


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


class Given:
    """A noise source of one tensor, with the keys and events of its calls."""

    def __init__(self, noise: Tensor) -> None:
        self.given, self.calls = noise, list[tuple[Any, tuple[int, ...]]]()

    def normal(self, key: Any, event: Any) -> Tensor:
        self.calls.append((key, tuple(event)))
        return self.given


@PATHS
def test_every_level_is_the_chain(path: PyramidPath) -> None:
    whole, cov = chain(path)
    size = sizes(path)
    alphas = np.cumprod([1.0, *path.alphas])
    assert path.gains == pytest.approx(alphas.tolist(), rel=1e-14)
    for t in range(path.levels + 1):
        for s in range(t + 1):
            h = matrix(lambda v, s=s, t=t: path.down(v, s, t), size[s])
            near(h @ whole[s], whole[t])
            near(matrix(lambda v, s=s, t=t: path.up(v, s, t), size[t]), h.T)
            assert path.factor(s, t) == size[s][0] // size[t][0]
            assert tuple(path.state_shape((5, *size[s]), t, at=s)) == (5, *size[t])
            assert tuple(path.state_shape((5, 6, *size[t]), s, at=t)) == (5, 6, *size[s])
        assert path.scale(t) == pytest.approx((whole[t] @ np.ones(48))[0], rel=1e-12)
        if t == 0:
            continue
        zero = torch.zeros(1, 1, *size[t], dtype=DOUBLE)
        flat = torch.zeros(1, 1, *SHAPE, dtype=DOUBLE)
        near(matrix(lambda v, t=t, z=zero: path.diffuse(v, t, z), SHAPE), alphas[t] * whole[t])
        root = matrix(lambda v, t=t, x=flat: path.diffuse(x, t, v), size[t])
        near_square(root, cov[t])
        if not path.kernel:
            near(cov[t], path.stds[t] ** 2 * np.eye(len(cov[t])))
        source = Given(normal(1, 1, *size[t]))
        drawn = path.prior(source, (1, *SHAPE), float(t))  # type: ignore[arg-type]
        near(drawn.flatten().numpy(), root @ source.given.flatten().numpy())
        assert source.calls == [("prior", (1, *size[t]))]
        if t == path.levels:
            assert torch.equal(path.prior(source, (1, *SHAPE)), drawn)  # type: ignore[arg-type]


@PATHS
def test_the_posterior_is_dense_conditioning(path: PyramidPath) -> None:
    whole, cov = chain(path)
    size, alphas = sizes(path), np.cumprod([1.0, *path.alphas])
    clean = normal(1, 1, *SHAPE, seed=2)
    flat = clean.flatten().numpy()
    for t in range(1, path.levels + 1):
        x = normal(1, 1, *size[t], seed=3)
        for s in range(t):
            ratio = alphas[t] / alphas[s]
            step = ratio * matrix(lambda v, s=s, t=t: path.down(v, s, t), size[s])
            slope = cov[s] @ step.T @ np.linalg.inv(cov[t])
            mean = alphas[s] * whole[s] @ flat
            mean = mean + slope @ (x.flatten().numpy() - step @ mean)
            left = cov[s] - slope @ step @ cov[s]
            for level in range(s + 1):  # the estimate may stand anywhere from the picture to the level below
                estimate = Estimate(x, float(t), path, clean=path.down(clean, 0, level))
                found = path.posterior(x, estimate, float(t), float(s))
                near(found.mean.flatten().numpy(), mean)
            zero = torch.zeros_like(found.mean)
            root = matrix(lambda v, f=found, z=zero: type(f)(mean=z, root=f.root).sample(v), size[s])
            near_square(root, left)
            noise = torch.zeros(1, 1, *size[t], dtype=DOUBLE)
            gain = matrix(lambda v, s=s, t=t, w=noise: path.renoise(v, s, t, w), size[s])
            near(gain, step)
            still = torch.zeros(1, 1, *size[s], dtype=DOUBLE)
            added = matrix(lambda v, s=s, t=t, x=still: path.renoise(x, s, t, v), size[t])
            near_square(added, cov[t] - step @ cov[s] @ step.T)


def test_the_published_posterior_in_its_own_formula() -> None:
    """The authors' scalar: 1/σ² = a²/σ_l² + 1/σ̃²_{l−1}, applied to every pixel alike."""
    path = PyramidPath(alphas=MIXED.alphas, sigmas=MIXED.sigmas, factors=(2, 2, 2), rule="published")
    clean, x = normal(2, 1, 4, 8, seed=1), normal(2, 1, 2, 4)
    for t in (2, 3):
        s, a, sigma, low = t - 1, path.alphas[t - 1], path.sigmas[t - 1], path.stds[t - 1]
        estimate = Estimate(x, float(t), path, clean=clean)
        found = path.posterior(x, estimate, float(t), float(s))
        variance = 1.0 / (a**2 / sigma**2 + 1.0 / low**2)
        mean = variance * (a / sigma**2 * grow(x, 2) + path.gains[s] / low**2 * clean)
        torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
        assert found.root == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_blur_and_circulant_beside_numpy() -> None:
    taps = (0.7, -0.2, 0.5, 0.1)
    blur = Blur(3, taps)
    h = operator(3, taps, 6, 9)
    assert blur.gain == pytest.approx(1.1**2)
    for dtype, atol in ((DOUBLE, 1e-14), (torch.float32, 1e-6)):
        x, y = normal(2, 1, 6, 9).to(dtype), normal(2, 1, 2, 3, seed=1).to(dtype)
        down, up = blur.down(x), blur.up(y)
        assert (down.dtype, down.shape, up.dtype, up.shape) == (dtype, (2, 1, 2, 3), dtype, (2, 1, 6, 9))
        np.testing.assert_allclose(down.flatten(1).double().numpy(), x.flatten(1).double().numpy() @ h.T, atol=atol)
        np.testing.assert_allclose(up.flatten(1).double().numpy(), y.flatten(1).double().numpy() @ h, atol=atol)
    # A covariance that is different in both directions: its kernel around the circle, and the spectrum of that.
    kernel = np.zeros((6, 9))
    kernel[0, 0], kernel[1, 0], kernel[-1, 0], kernel[0, 2], kernel[0, -2] = 2.0, 0.3, 0.3, -0.4, -0.4
    spectrum = np.fft.fft2(kernel).real
    dense = np.stack([np.roll(kernel, (i, j), (0, 1)).ravel() for i in range(6) for j in range(9)])
    small = np.fft.ifft2(blur.carried(spectrum)).real
    near((h @ dense @ h.T)[0].reshape(2, 3), small)
    x = normal(2, 1, 6, 9)
    near(Circulant(spectrum)(x).flatten(1).numpy(), x.flatten(1).numpy() @ dense)


def test_shapes_that_do_not_fit_are_refused_in_both_directions() -> None:
    for shape in ((1, 1, 7, 8), (1, 1, 8, 7)):
        with pytest.raises(PathError, match="cannot shrink"):
            shrink(torch.zeros(shape), 2)
        with pytest.raises(PathError, match=f"{shape[-2]}×{shape[-1]} cannot shrink from level 0 to 1"):
            MIXED.state_shape(shape[1:], 1)
    with pytest.raises(PathError, match="cannot shrink"):
        shrink(torch.zeros(4, 4), 2)
    assert shrink(torch.zeros(1, 4, 4), 2).shape == (1, 2, 2)
    x = torch.zeros(7)
    assert shrink(x, 1) is x
    assert grow(x, 1) is x
    with pytest.raises(PathError, match="needs images"):
        MIXED.state_shape((8,), 1)
    assert tuple(MIXED.state_shape((8, 4), 1)) == (4, 2)
    state = torch.zeros(1, 1, 2, 2)
    for side in (1, 3, 6):  # smaller than the target, or no level's size
        estimate = Estimate(state, 2.0, MIXED, clean=torch.zeros(1, 1, side, side))
        with pytest.raises(PathError, match="too small for level 1"):
            MIXED.posterior(state, estimate, 2.0, 1.0)


def test_levels_are_whole_and_one_for_the_batch() -> None:
    x, noise = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)
    wanted = MIXED.diffuse(x, 1, noise)
    for t in (1.0, torch.tensor(1.0), torch.tensor([1.0, 1.0]), torch.tensor([1, 1]), torch.tensor([1.0])):
        assert torch.equal(MIXED.diffuse(x, t, noise), wanted)
    with pytest.raises(PathError, match="one level for the whole batch"):
        MIXED.diffuse(x, torch.tensor([1.0, 2.0]), noise)
    for t in (0.5, -1.0, 4.0, torch.tensor([0.5, 0.5])):
        with pytest.raises(GridError, match="whole levels 0 … 3"):
            MIXED.diffuse(x, t, noise)
    for t in (0, 3, 3.0):
        MIXED.check(t)
    assert MIXED.renoise_needs_clean is False
    assert MIXED.with_condition({"label": x}) is MIXED


def test_nonsense_at_the_edges_of_every_option() -> None:
    one = {"alphas": (0.5,), "sigmas": (0.1,), "factors": (2,)}
    for options in ({}, {"alphas": (1e-9,)}, {"sigmas": (1e9,)}, {"factors": (1,)}, {"factors": (3,)}):
        PyramidPath(**{**one, **options})
    for options, message in (
        ({"alphas": (0.5, 0.5)}, "one value a level, got 2, 1 and 1"),
        ({"sigmas": (0.5, 0.5)}, "got 1, 2 and 1"),
        ({"factors": (2, 2)}, "got 1, 1 and 2"),
        ({"alphas": (), "sigmas": (), "factors": ()}, "got 0, 0 and 0"),
        ({"alphas": (0.0,)}, "must be positive"),
        ({"sigmas": (0.0,)}, "must be positive"),
        ({"alphas": (-0.5,)}, "must be positive"),
        ({"alphas": (math.inf,)}, "must be positive"),
        ({"sigmas": (math.inf,)}, "must be positive"),
        ({"factors": (0,)}, "whole numbers from 1 up"),
        ({"factors": (1.5,)}, r"^factors must be a list \(a whole number each\), got \(1\.5,\)$"),
        ({"factors": (3.0,)}, r"^factors must be a list \(a whole number each\), got \(3\.0,\)$"),
        ({"kernel": (1.0, -1.0)}, "kernel must be"),
        ({"kernel": (1.0, math.inf)}, "kernel must be"),
        ({"kernel": (1.0,), "rule": "published"}, "the box's alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            PyramidPath(**{**one, **options})  # type: ignore[arg-type]
    PyramidPath(**one, kernel=(0.1, 0.1))  # type: ignore[arg-type]
    PyramidPath(**one, kernel=(-1.0, -2.0))  # type: ignore[arg-type] - a sign is no reason
    PyramidPath(**one, rule="published")  # type: ignore[arg-type]


def test_a_prior_is_drawn_in_the_picture_of_its_level() -> None:
    noise = Noise.of(3, range(2), dtype=DOUBLE)
    drawn = MIXED.prior(noise, (1, 4, 12))
    assert torch.equal(drawn, MIXED.stds[3] * noise.normal("prior", (1, 1, 3)))
    assert torch.equal(MIXED.prior(noise, (1, 4, 12), 1.0), MIXED.stds[1] * noise.normal("prior", (1, 2, 6)))


def test_pictures_without_channels_under_a_kernel() -> None:
    clean, x, noise = normal(2, 4, 12), normal(2, 1, 3, seed=1), normal(2, 2, 6, seed=2)
    torch.testing.assert_close(SKEW.down(clean, 0, 3), SKEW.down(clean[:, None], 0, 3)[:, 0])
    for s, image in ((2.0, clean), (2.0, SKEW.down(clean, 0, 1))):
        flat, deep = (
            SKEW.posterior(one, Estimate(one, 3.0, SKEW, clean=known), 3.0, s)
            for one, known in ((x, image), (x[:, None], image[:, None]))
        )
        torch.testing.assert_close(flat.mean, deep.mean[:, 0])
        torch.testing.assert_close(flat.sample(noise), deep.sample(noise[:, None])[:, 0])
    with pytest.raises(PathError, match="must divide"):
        SKEW.down(clean[:, :3], 0, 1)
