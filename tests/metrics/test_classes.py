"""The inception score: closed forms, and the same bits for any batches and processes."""

import math

import numpy as np
import pytest
import torch

from ornstein.errors import UsageError
from ornstein.metrics.classes import InceptionScoreSums


def onehot(labels, classes, size=200.0):
    return np.eye(classes)[labels] * size


def logits(n, classes=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, classes)) * 3


def scored(x, splits=1):
    score = InceptionScoreSums(splits=splits)
    score.update(range(len(x)), x)
    return score.score()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_one_hot_classes_in_equal_parts_give_their_number(classes):
    assert scored(onehot(np.arange(2 * classes) % classes, classes)).value == pytest.approx(classes, rel=1e-9)


def test_a_classifier_that_always_says_the_same_gives_one():
    for row in (np.zeros(5), np.array([3.0, 1.0, 0.0, -2.0, 5.0]), onehot([2], 5)[0]):
        assert scored(np.tile(row, (40, 1)), splits=10).value == pytest.approx(1.0, abs=1e-9)


def test_it_is_the_exponential_of_the_mutual_information():
    x = logits(500)
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    information = (p * np.log(p / p.mean(0))).sum(1).mean()
    assert scored(x).value == pytest.approx(math.exp(information), rel=1e-10)
    assert scored(x + 1000.0).value == pytest.approx(math.exp(information), rel=1e-8)  # softmax forgets constants


@pytest.mark.filterwarnings("ignore:Metric", "ignore:std")
def test_torchmetrics_agrees_on_one_part():
    is_ = pytest.importorskip("torchmetrics.image.inception")

    class Given(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    theirs = is_.InceptionScore(feature=Given(), splits=1)
    x = torch.tensor(logits(60, classes=12), dtype=torch.float64)
    theirs.update(x.reshape(60, 3, 2, 2))
    assert scored(x).value == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_any_batches_order_and_processes():
    x = logits(101)
    whole = InceptionScoreSums()
    whole.update(range(101), x)
    parts = [InceptionScoreSums() for _ in range(3)]
    for index in np.random.default_rng(1).permutation(101):
        parts[index % 3].update([int(index)], x[index : index + 1])
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    parts[2].merge(InceptionScoreSums())  # a process without images
    assert parts[2].totals.tobytes() == whole.totals.tobytes()
    assert parts[2].score() == whole.score()
    assert whole.score() == InceptionScoreSums.score(whole)


def test_parts_are_of_equal_size_and_blind_to_sorting():
    score = InceptionScoreSums()
    labels = np.repeat(np.arange(5), 200)  # sorted by class: contiguous parts would hold one or two of five
    score.update(range(1000), onehot(labels, 5))
    assert score.counts.tolist() == [100] * 10
    assert score.score().value == pytest.approx(5.0)
    cycling = InceptionScoreSums()
    cycling.update(range(1000), onehot(np.arange(1000) % 10, 10))  # period = number of parts
    assert cycling.score().value > 8.5


def test_refusals():
    score = InceptionScoreSums()
    with pytest.raises(UsageError, match="needs 10 images, got 0"):
        score.score()
    score.update(range(9), logits(9))
    with pytest.raises(UsageError, match="needs 10 images, got 9"):
        score.score()
    with pytest.raises(UsageError, match="not finite"):
        score.update([9], [[float("nan")] * 7])
    with pytest.raises(UsageError, match="classes"):
        score.update([9], logits(1, classes=3))
    with pytest.raises(UsageError, match="shape"):
        score.update([9], logits(2))
    with pytest.raises(UsageError, match="parts"):
        score.merge(InceptionScoreSums(splits=3))


def test_sums_that_would_overflow_are_refused(monkeypatch):
    from ornstein.metrics import classes

    monkeypatch.setattr(classes, "MOST", 3)
    a, b = InceptionScoreSums(splits=2), InceptionScoreSums(splits=2)
    a.update(range(6), logits(6))
    b.update(range(6, 12), logits(6))
    with pytest.raises(UsageError, match="overflow exact sums"):
        a.merge(b)
    # A part at its limit of uniform answers by the largest known classifier is still exact.
    assert 2**20 * 2.0**40 * math.log(1008) < 2**63
