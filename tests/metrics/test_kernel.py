"""The kernel distance: brute force, unbiasedness, and the bottom-k sample."""

import random

import numpy as np
import pytest

from ornstein.errors import UsageError
from ornstein.metrics import Sample, kernel_distance, mmd2


def brute(x, y):
    def k(u, v):
        return (float(u @ v) / len(u) + 1.0) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


def test_one_block_equals_brute_force():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((13, 4)), rng.standard_normal((9, 4)) + 0.3
    assert mmd2(x, y) == pytest.approx(brute(x, y), rel=1e-12)
    one = kernel_distance(x, y, blocks=1)
    assert one.value == pytest.approx(brute(x, y), rel=1e-12)
    assert (one.error, one.blocks) == (None, 1)


def test_blocks_are_disjoint_and_averaged():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((24, 3))
    values = [mmd2(x[4 * i : 4 * i + 4], y[8 * j : 8 * j + 8]) for i, j in ((0, 1), (1, 2), (2, 0))]
    found = kernel_distance(x, y, blocks=3)
    assert found.value == pytest.approx(np.mean(values), rel=1e-12)
    assert found.error == pytest.approx(np.std(values, ddof=1) / 3**0.5, rel=1e-12)


def test_unbiased_for_equal_laws():
    values = [kernel_distance(*np.random.default_rng(i).standard_normal((2, 40, 6))).value for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / len(values) ** 0.5
    assert min(values) < 0 < max(values)


def test_expectation_for_different_laws():
    # Point masses at 0 and 1 in one dimension: k(0, 0) = 1, k(0, 1) = 1, k(1, 1) = 8.
    assert mmd2(np.zeros((5, 1)), np.ones((6, 1))) == pytest.approx(1 + 8 - 2)
    # x ~ N(0, 1), y ~ N(μ, 1) independent: MMD² = E(xx'+1)³ + E(yy'+1)³ − 2E(xy+1)³, moments by hand.
    mu = 1.5
    second, third = mu**2 + 1, mu**3 + 3 * mu
    expected = (1 + 3) + (1 + 3 * mu**2 + 3 * second**2 + third**2) - 2 * (1 + 3 * second)
    rng = np.random.default_rng(2)
    found = [mmd2(rng.standard_normal((30, 1)), mu + rng.standard_normal((30, 1))) for _ in range(2000)]
    assert abs(np.mean(found) - expected) < 4 * np.std(found, ddof=1) / len(found) ** 0.5


def test_the_standard_error_is_honest():
    found = [kernel_distance(*np.random.default_rng(i).standard_normal((2, 400, 3)), blocks=20) for i in range(150)]
    spread = np.std([one.value for one in found], ddof=1)
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.25)


def test_default_number_of_blocks():
    rng = np.random.default_rng(3)
    for n, m, blocks in ((2, 9, 1), (7, 9, 1), (8, 100, 4), (4000, 9000, 4), (4001, 4500, 5)):
        assert kernel_distance(rng.random((n, 2)), rng.random((m, 2))).blocks == blocks


def test_refusals():
    with pytest.raises(UsageError, match="at least 2"):
        kernel_distance(np.ones((1, 2)), np.ones((5, 2)))
    with pytest.raises(UsageError, match="blocks"):
        kernel_distance(np.ones((4, 2)), np.ones((5, 2)), blocks=3)
    with pytest.raises(UsageError, match="one width"):
        kernel_distance(np.ones((4, 2)), np.ones((5, 3)))
    with pytest.raises(UsageError, match="one size"):
        Sample(3).merge(Sample(4))


def filled(indices, capacity):
    out = Sample(capacity)
    for i in indices:
        out.add(i, [float(i), 0.5])
    return out


def test_a_sample_does_not_depend_on_order_or_split():
    whole = filled(range(200), 30)
    assert len(whole) == 30
    shuffled = list(range(200))
    random.Random(0).shuffle(shuffled)
    merged = Sample(30)
    for part in (filled(shuffled[i::3], 30) for i in (2, 0, 1)):
        merged.merge(part)
    assert merged.indices == filled(shuffled, 30).indices == whole.indices
    assert merged.rows(2).tobytes() == whole.rows(2).tobytes()
    assert whole.rows(2)[:, 0].tolist() == whole.indices


def test_a_sample_is_uniform():
    # Sorted by class, as folders are: the share of the first half must be a half.
    kept = np.array(filled(range(20000), 2000).indices)
    assert abs((kept < 10000).sum() - 1000) < 4 * (2000 * 0.25) ** 0.5
    assert filled(range(5), 10).rows(2).shape == (5, 2)
    assert Sample(4).rows(3).shape == (0, 3)


def test_a_longer_set_begins_with_the_same_choice():
    assert set(filled(range(300), 30).indices) & set(range(200)) <= set(filled(range(200), 30).indices)
