"""Exact distances: equal images at distance 0, brute force agreed with, and no trace of blocks or of who did what."""

import numpy as np
import pytest

from ornstein.errors import UsageError
from ornstein.metrics import vectors
from ornstein.metrics.frechet import QUANTUM
from ornstein.metrics.vectors import Vectors, length, meet, nearest, tiles


def cloud(n, width=9, seed=0, scale=3.0):
    return (np.round(np.random.default_rng(seed).normal(size=(n, width)) * scale / QUANTUM) * QUANTUM).astype("f4")


def dense(x, y):
    """All squared distances in units, in Python's own integers."""
    mine, theirs = ((np.asarray(z, float) / QUANTUM).astype(np.int64).astype(object) for z in (x, y))
    return ((mine[:, None] - theirs[None]) ** 2).sum(-1).astype(float)


def test_distances_are_exact_integers():
    x, y = cloud(13, scale=60.0), cloud(17, seed=1, scale=60.0)
    x[3] = y[5]
    ((_, _, found),) = tiles(x, y)
    assert np.array_equal(found, dense(x, y))
    assert found[3, 5] == 0.0


def test_blocks_leave_no_trace(monkeypatch):
    x, y = cloud(53), cloud(61, seed=1)
    x[7], y[::3], y[1] = y[2], y[2], y[2]  # ties and copies
    whole = nearest(x, y, 6), nearest(y, y, 6, same=True)
    ball_x, ball_y = nearest(x, x, 2, same=True)[0][:, 1], nearest(y, y, 3, same=True)[0].T
    met = meet(x, y, k=4, around_x=ball_x, around_y=ball_y)
    for tile in (1, 7, 16, 60):
        monkeypatch.setattr(vectors, "TILE", tile)
        for a, b in zip(whole, (nearest(x, y, 6), nearest(y, y, 6, same=True)), strict=True):
            assert np.array_equal(a[0], b[0])
            assert np.array_equal(a[1], b[1])
        again = meet(x, y, k=4, around_x=ball_x, around_y=ball_y)
        for name in ("squared", "numbers", "held", "smallest", "reached", "inside"):
            assert np.array_equal(getattr(met, name), getattr(again, name)), name


def test_processes_that_share_the_images_agree_with_one():
    x, y = cloud(40), cloud(30, seed=1)
    ball_x, ball_y = nearest(x, x, 2, same=True)[0][:, 1], nearest(y, y, 2, same=True)[0].T
    whole = meet(x, y, k=3, around_x=ball_x, around_y=ball_y)
    parts = [meet(x[i::3], y, k=3, around_x=ball_x[i::3], around_y=ball_y) for i in range(3)]
    for i, part in enumerate(parts):
        assert np.array_equal(part.squared, whole.squared[i::3])
        assert np.array_equal(part.numbers, whole.numbers[i::3])
        assert np.array_equal(part.held, whole.held[:, i::3])
        assert np.array_equal(part.smallest, whole.smallest[:, i::3])
    assert np.array_equal(np.min([p.reached for p in parts], 0), whole.reached)
    assert np.array_equal(np.any([p.inside for p in parts], 0), whole.inside)


def test_nearest_is_brute_force():
    x, y = cloud(20), cloud(31, seed=1)
    squared, numbers = nearest(x, y, 5)
    order = np.argsort(dense(x, y), axis=1, kind="stable")[:, :5]
    assert np.array_equal(numbers, order)
    assert np.array_equal(squared, np.take_along_axis(dense(x, y), order, 1))
    own = dense(y, y)
    np.fill_diagonal(own, np.inf)
    assert np.array_equal(nearest(y, y, 3, same=True)[1], np.argsort(own, axis=1, kind="stable")[:, :3])


def test_a_copy_is_a_neighbour_but_oneself_is_not():
    y = cloud(5)
    y[4] = y[0]
    squared, numbers = nearest(y, y, 1, same=True)
    assert (squared[0, 0], numbers[0, 0]) == (0.0, 4)
    assert (squared[1] > 0).all()


def test_sklearn_agrees():
    neighbours = pytest.importorskip("sklearn.neighbors")
    x, y = cloud(50), cloud(80, seed=1)
    theirs, names = neighbours.NearestNeighbors(n_neighbors=4, algorithm="brute").fit(y.astype(float)).kneighbors(x)
    squared, numbers = nearest(x, y, 4)
    np.testing.assert_allclose(length(squared), theirs, rtol=1e-9)
    assert np.array_equal(numbers, names)


def test_vectors_are_sorted_by_number_whoever_brought_them():
    rows = cloud(10)
    whole, a, b = Vectors(9), Vectors(9), Vectors(9)
    whole.add(range(10), rows)
    b.add([8, 9, 0], rows[[8, 9, 0]])
    a.add([1, 2, 3], rows[1:4])
    a.add([7, 6, 5, 4], rows[[7, 6, 5, 4]])
    a.merge(b)
    assert np.array_equal(a.indices, np.arange(10))
    assert np.array_equal(a.rows, whole.rows)
    assert len(a) == 10
    assert Vectors(4).rows.shape == (0, 4)
    with pytest.raises(UsageError, match="widths"):
        a.merge(Vectors(4))
    with pytest.raises(UsageError, match="shape"):
        a.add([1], rows)


def test_refusals():
    y = cloud(5)
    with pytest.raises(UsageError, match="at least 6 images in the set, got 5"):
        nearest(y, y, 5, same=True)
    with pytest.raises(UsageError, match="k = 0"):
        nearest(y, y, 0)
    with pytest.raises(UsageError, match="one width"):
        nearest(y, y[:, :3], 1)
    with pytest.raises(UsageError, match="length 750, more than 724"):
        nearest(np.full((2, 9), 250.0), y, 1)
