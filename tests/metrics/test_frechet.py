"""The Fréchet distance in closed form and against torchmetrics; moments as exact sums."""

import math
import random
import warnings

import numpy as np
import pytest
import torch

from ornstein.errors import UsageError
from ornstein.metrics import Moments, frechet, frechet_distance
from ornstein.metrics.frechet import QUANTUM


def moments(x):
    out = Moments(np.shape(x)[1])
    out.update(x)
    return out


def covariance(rng, d, rank=None):
    a = rng.standard_normal((d, rank or d))
    return a @ a.T


def test_one_dimension():
    assert frechet(1.0, 4.0, -2.0, 9.0) == pytest.approx(3.0**2 + (2.0 - 3.0) ** 2, rel=1e-14)


def test_diagonal():
    rng = np.random.default_rng(0)
    m1, m2, s1, s2 = rng.random((4, 7))
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet(m1, np.diag(s1**2), m2, np.diag(s2**2)) == pytest.approx(expected, rel=1e-12)


def test_commuting_full():
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    s1, s2 = rng.random((2, 6))
    zero = np.zeros(6)
    assert frechet(zero, q * s1**2 @ q.T, zero, q * s2**2 @ q.T) == pytest.approx(((s1 - s2) ** 2).sum(), rel=1e-12)


def test_full_against_a_direct_matrix_root():
    rng = np.random.default_rng(2)
    c1, c2, m = covariance(rng, 8), covariance(rng, 8), rng.standard_normal(8)
    values = np.linalg.eigvals(c1 @ c2)
    expected = m @ m + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(values.real).sum()
    assert frechet(m, c1, 0 * m, c2) == pytest.approx(expected, rel=1e-11)


def test_affine_map_of_a_gaussian():
    # The optimal map between N(0, C) and N(0, TCT), T symmetric positive, is T: the distance is tr (T−1)C(T−1).
    rng = np.random.default_rng(3)
    c, t = covariance(rng, 5), covariance(rng, 5)
    shift = t - np.eye(5)
    assert frechet(np.zeros(5), c, np.zeros(5), t @ c @ t) == pytest.approx(np.trace(shift @ c @ shift), rel=1e-10)


def test_rank_deficient():
    rng = np.random.default_rng(4)
    q = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    s1, s2 = np.zeros((2, 300))
    s1[:10], s2[5:20] = rng.random(10), rng.random(15)
    zero = np.zeros(300)
    assert frechet(zero, q * s1**2 @ q.T, zero, q * s2**2 @ q.T) == pytest.approx(((s1 - s2) ** 2).sum(), rel=1e-12)


def test_disjoint_supports_and_a_point_mass():
    zero = np.zeros(4)
    assert frechet(zero, np.diag([1.0, 2, 0, 0]), zero, np.diag([0.0, 0, 3, 4])) == pytest.approx(10.0)
    assert frechet(zero, np.zeros((4, 4)), zero + 1, np.zeros((4, 4))) == pytest.approx(4.0)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (5, 40), (300, 30)])
def test_zero_on_itself_symmetric_and_never_negative(n, d):
    rng = np.random.default_rng(n)
    a, b = moments(rng.standard_normal((n, d))), moments(3 + rng.standard_normal((n, d)))
    assert 0.0 <= frechet_distance(a, a) < 1e-10 * np.trace(a.covariance)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-11)
    assert frechet_distance(a, b) > 0


@pytest.mark.parametrize(("n", "m"), [(200, 150), (20, 30)])
def test_agrees_with_torchmetrics(n, m):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import FrechetInceptionDistance

    class Passthrough(torch.nn.Module):
        num_features = 24

        def forward(self, x):
            return x.double()

    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 24, generator=g, dtype=torch.float64)
    y = 0.5 + 1.5 * torch.randn(m, 24, generator=g, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fid = FrechetInceptionDistance(feature=Passthrough(), normalize=True, input_img_size=(24,)).set_dtype(
            torch.float64
        )
        fid.update(x, real=True)
        fid.update(y, real=False)
        expected = float(fid.compute())
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-6)


def test_moments_are_those_of_the_vectors():
    x = np.random.default_rng(5).standard_normal((100, 9)) * 3
    m = moments(x)
    assert np.abs(m.mean - x.mean(0)).max() < 2 * QUANTUM
    assert np.abs(m.covariance - np.cov(x.T)).max() < 1e-5
    exact = np.rint(x / QUANTUM) * QUANTUM
    np.testing.assert_allclose(m.covariance, np.cov(exact.T), rtol=1e-12, atol=1e-13)
    assert np.array_equal(m.covariance, m.covariance.T)


def test_no_cancellation_far_from_zero():
    x = np.random.default_rng(6).standard_normal((50, 3)) * 2.0**-12 + 200.0
    exact = np.rint(x / QUANTUM) * QUANTUM - 200.0
    np.testing.assert_allclose(moments(x).covariance, np.cov(exact.T), rtol=1e-11)


def test_any_split_and_any_order_give_the_same_bits():
    x = np.random.default_rng(7).standard_normal((101, 6)) * 50
    whole = moments(x)
    shuffler = random.Random(0)
    for size in (1, 7, 32, 100):
        parts = [moments(x[i : i + size]) for i in range(0, len(x), size)]
        shuffler.shuffle(parts)
        merged = Moments(6)
        for part in parts:
            merged.merge(part)
        assert merged == whole
        assert merged.covariance.tobytes() == whole.covariance.tobytes()
        assert merged.mean.tobytes() == whole.mean.tobytes()


def test_the_largest_features_still_add_up_exactly():
    x = np.full((1000, 2), 256.0) - np.arange(1000)[:, None] * QUANTUM
    m = moments(x)
    assert int(m.total[0]) == sum(2**24 - i for i in range(1000))
    assert int(m.products[0, 1]) == sum((2**24 - i) ** 2 for i in range(1000))


def test_features_that_cannot_be_summed_are_refused():
    for bad in (math.nan, math.inf, -300.0):
        with pytest.raises(UsageError, match="scale the features"):
            moments([[0.0, bad]])
    m = moments([[256.0]] * 32)
    for _ in range(9):
        m.merge(m)
    assert int(m.products[0, 0]) == 2**62  # 16384 vectors of the largest size
    with pytest.raises(UsageError, match="overflow"):
        m.merge(m)


def test_refusals():
    with pytest.raises(UsageError, match="at least 2"):
        _ = moments([[1.0]]).covariance
    with pytest.raises(UsageError, match="widths"):
        frechet_distance(moments(np.ones((3, 2))), moments(np.ones((3, 3))))
    with pytest.raises(UsageError, match="wide"):
        Moments(2).update(np.ones((3, 3)))
    with pytest.raises(UsageError, match="shape"):
        Moments(2).update(np.ones(2))
