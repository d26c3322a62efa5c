"""Precision, recall, density, coverage: limits, closed-form expectations, and the definitions written out."""

import numpy as np
import pytest

from ornstein.errors import UsageError
from ornstein.metrics.frechet import QUANTUM
from ornstein.metrics.manifold import expected_coverage, manifold, radii
from ornstein.metrics.vectors import length


def gauss(n, width=4, seed=0, shift=0.0):
    x = np.random.default_rng(seed).normal(size=(n, width)) + shift
    return (np.round(x / QUANTUM) * QUANTUM).astype("f4")


def test_equal_sets_are_perfect():
    x = gauss(60)
    found = manifold(x, x)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    assert found.density == pytest.approx(6 / 5)  # itself and the five it is near to, counted from the other side
    x[1:] = x[0]  # one image sixty times: balls of radius 0 are still closed
    assert manifold(x, x).precision == manifold(x, x).recall == manifold(x, x).coverage == 1.0


def test_far_apart_sets_share_nothing():
    found = manifold(gauss(40), gauss(50, seed=1, shift=60.0))
    assert (found.precision, found.recall, found.density, found.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_dropped_modes_cost_recall_and_invented_ones_precision():
    a, b = gauss(100), gauss(100, seed=1, shift=60.0)
    both = np.concatenate((gauss(100, seed=2), gauss(100, seed=3, shift=60.0)))
    dropped, invented = manifold(np.concatenate((a, gauss(100, seed=4))), both), manifold(both, a)
    assert dropped.precision > 0.8
    assert 0.4 < dropped.recall < 0.51
    assert 0.4 < dropped.coverage < 0.51
    assert 0.4 < invented.precision < 0.51
    assert invented.recall > 0.8
    assert manifold(b, b).precision == 1.0


def test_exchanging_the_sets_exchanges_precision_and_recall():
    a, b = gauss(40), gauss(60, seed=1, shift=0.5)
    assert manifold(a, b).precision == manifold(b, a).recall
    assert manifold(a, b).recall == manifold(b, a).precision


def test_the_definitions_written_out():
    fake, real, k = gauss(23), gauss(31, seed=1), 3
    between = np.linalg.norm(fake[:, None].astype(float) - real[None].astype(float), axis=-1)
    ball_r = np.sort(np.linalg.norm(real[:, None].astype(float) - real[None].astype(float), axis=-1), 1)[:, k]
    ball_f = np.sort(np.linalg.norm(fake[:, None].astype(float) - fake[None].astype(float), axis=-1), 1)[:, k]
    found = manifold(fake, real, k_precision=k, k_density=k)
    assert found.precision == (between <= ball_r).any(1).mean()
    assert found.recall == (between <= ball_f[:, None]).any(0).mean()
    assert found.density == pytest.approx((between <= ball_r).sum() / (k * len(fake)))
    assert found.coverage == (between <= ball_r).any(0).mean()
    np.testing.assert_allclose(length(radii(real, k)[0]), ball_r, rtol=1e-9)


def test_expectations_for_equal_laws():
    # Density 1 whatever the law (a fake lies in a real vector's ball with probability k / n); coverage in closed form.
    n, m, k = 40, 60, 5
    found = [manifold(gauss(n, 3, 2 * s), gauss(m, 3, 2 * s + 1)) for s in range(150)]
    for values, expected in (
        ([f.density for f in found], 1.0),
        ([f.coverage for f in found], expected_coverage(n, m, k)),
    ):
        error = np.std(values, ddof=1) / len(values) ** 0.5
        assert abs(np.mean(values) - expected) < 4 * error < 0.06
    assert expected_coverage(1, 10, 1) == pytest.approx(1 / 10)


def test_too_few_images_for_k():
    with pytest.raises(UsageError, match="at least 6 images in the set, got 5"):
        manifold(gauss(20), gauss(5))
    with pytest.raises(UsageError, match="at least 4 images in the set, got 3"):
        manifold(gauss(3), gauss(20))
