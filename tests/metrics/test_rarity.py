"""Rarity of single images: lattices, scaling, and scikit-learn's local outlier factor."""

import itertools

import numpy as np
import pytest

from ornstein.errors import UsageError
from ornstein.metrics.frechet import QUANTUM
from ornstein.metrics.manifold import radii
from ornstein.metrics.rarity import rarity
from ornstein.metrics.vectors import length


def gauss(n, width=4, seed=0, shift=0.0):
    x = np.random.default_rng(seed).normal(size=(n, width)) + shift
    return (np.round(x / QUANTUM) * QUANTUM).astype("f4")


def lattice(side=9):
    return np.array(list(itertools.product(range(side), repeat=2)), dtype="f4")


def test_a_lattice_has_outlier_factor_one_inside():
    points = lattice(15)
    inside = points[(points >= 5).all(1) & (points <= 9).all(1)] + 0.5
    found = rarity(inside, points, k_outlier=4)
    np.testing.assert_allclose(found.outlier, np.sqrt(0.5) ** 0, atol=1e-9)  # reach of the neighbours: one step
    far = rarity(np.array([[40.0, 40.0]]), points, k_outlier=4)
    assert far.outlier[0] > 10
    assert np.isnan(far.score[0])


def test_average_distance_on_a_lattice():
    found = rarity(lattice()[40:41] + np.float32([0.5, 0.5]), lattice(), k_average=4, k_outlier=5)
    assert found.average[0] == pytest.approx(0.5**0.5, rel=1e-12)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_sklearn_agrees_on_the_outlier_factor(k):
    neighbours = pytest.importorskip("sklearn.neighbors")
    x, y = gauss(30, shift=0.7), gauss(120, seed=1)
    theirs = neighbours.LocalOutlierFactor(n_neighbors=k, novelty=True).fit(y.astype(float))
    found = rarity(x, y, k_outlier=k)
    np.testing.assert_allclose(found.outlier, -theirs.score_samples(x.astype(float)), rtol=1e-8)


def test_average_distance_scales_with_the_data_and_the_others_behave():
    x, y = gauss(20), gauss(90, seed=1)
    one, two = rarity(x, y), rarity(2 * x, 2 * y)
    np.testing.assert_allclose(two.average, 2 * one.average, rtol=1e-12)
    np.testing.assert_allclose(two.score, 2 * one.score, rtol=1e-12)
    np.testing.assert_allclose(two.outlier, one.outlier, rtol=1e-8)


def test_the_rarity_of_a_real_image_is_at_most_its_own_radius():
    y = gauss(80)
    found = rarity(y, y)
    own = length(radii(y, 3)[0])
    assert not np.isnan(found.score).any()
    assert found.undefined == 0.0
    assert (found.score <= own).all()
    assert (found.score < own).any()


def test_the_rarity_score_written_out():
    x, y, k = gauss(40, shift=0.8), gauss(50, seed=1), 3
    ball = np.sort(np.linalg.norm(y[:, None].astype(float) - y[None].astype(float), axis=-1), 1)[:, k]
    between = np.linalg.norm(x[:, None].astype(float) - y[None].astype(float), axis=-1)
    expected = np.where(between <= ball, ball, np.inf).min(1)
    found = rarity(x, y, k_rarity=k)
    assert np.array_equal(np.isnan(found.score), np.isinf(expected))
    inside = ~np.isinf(expected)
    np.testing.assert_allclose(found.score[inside], expected[inside], rtol=1e-9)
    assert found.undefined == np.isinf(expected).mean()
    assert 0 < found.undefined < 1
    assert found.mean_score == pytest.approx(expected[inside].mean())


def test_rare_images_are_rarer_by_every_measure():
    y = gauss(400, 2)
    centre, edge = gauss(100, 2, 1) * 0.1, gauss(100, 2, 2) * 0.1 + np.float32([2.5, 0.0])
    common, rare = rarity(centre, y), rarity(edge, y)
    assert rare.average.mean() > 2 * common.average.mean()
    assert rare.outlier.mean() > 1.1 * common.outlier.mean()
    assert rare.mean_score > 2 * common.mean_score


def test_copies_in_the_reference_divide_by_something():
    y = gauss(60)
    y[:40] = y[0]
    found = rarity(y, y)
    assert np.isfinite(found.outlier).all()
    assert found.average[0] == 0.0


def test_each_row_is_its_own():
    x, y = gauss(30, shift=0.5), gauss(70, seed=1)
    whole = rarity(x, y)
    parts = [rarity(part, y) for part in (x[:1], x[1:12], x[12:])]
    for name in ("average", "outlier", "score"):
        assert np.concatenate([getattr(p, name) for p in parts]).tobytes() == getattr(whole, name).tobytes()


def test_too_few_images_for_k():
    with pytest.raises(UsageError, match="at least 21 images in the reference, got 20"):
        rarity(gauss(5), gauss(20))
    assert len(rarity(gauss(5), gauss(21)).average) == 5
    with pytest.raises(UsageError, match="at least 51"):
        rarity(gauss(5), gauss(30), k_average=50)
    with pytest.raises(UsageError, match="k = 40 neighbours need at least 41 images in the reference, got 40"):
        rarity(gauss(5), gauss(40), k_rarity=40)
    assert len(rarity(gauss(5), gauss(41), k_rarity=40).score) == 5
    for name in ("k_average", "k_outlier", "k_rarity"):
        with pytest.raises(UsageError, match="lower k"):
            rarity(gauss(5), gauss(40), **{name: 0})
    assert rarity(gauss(3, shift=90.0), gauss(40)).mean_score is None
