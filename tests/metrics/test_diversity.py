"""Diversity: random disjoint pairs of one set under any distance, the same for any batches and processes."""

import pickle

import pytest
import torch

from ornstein.errors import UsageError
from ornstein.metrics import DiversityMeter, perceptual
from ornstein.metrics.blocks import blocks


def noise(n, side=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


def square(a, b):
    return (a - b).square().mean((1, 2, 3))


def measured(images, pairs=500, distance=square):
    meter = DiversityMeter(pairs)
    for block in blocks(images):
        meter.update(block)
    return meter.result(distance)


def test_copies_of_one_image_have_none():
    x = noise(1).expand(50, -1, -1, -1)
    assert measured(x).value == 0.0
    lite0 = perceptual.lpips()
    assert measured(noise(1, 32).expand(4, -1, -1, -1), distance=lite0).value == 0.0
    assert measured(noise(4, 32), distance=lite0).value > 0.1


def test_two_images_are_one_pair():
    x = noise(2)
    found = measured(x)
    a, b = x.float() / 127.5 - 1
    assert (found.pairs, found.error) == (1, None)
    assert found.value == pytest.approx(float(square(a[None], b[None])), rel=1e-6)


def test_the_expectation_is_the_mean_over_all_pairs():
    # Two kinds of image, black and white: a pair differs with probability n / (2 (n − 1)), by 4.
    x = torch.zeros(400, 3, 4, 4, dtype=torch.uint8)
    x[::2] = 255
    draw = torch.Generator().manual_seed(0)
    found = [measured(x[torch.randperm(400, generator=draw)], pairs=200).value for _ in range(40)]
    assert sum(found) / 40 == pytest.approx(4 * 400 / (2 * 399), abs=4 * 2 / 8000**0.5)


def test_the_error_is_that_of_a_mean_over_the_pairs():
    found = measured(noise(80), distance=lambda a, b: (a - b)[:, 0, 0, 0])  # 40 pairs: a block of 32 and one filled up
    values = []
    measured(noise(80), distance=lambda a, b: values.append((a - b)[:, 0, 0, 0]) or values[-1])
    kept = torch.cat(values)[:40].double()
    assert found.value == pytest.approx(float(kept.mean()), rel=1e-12)
    assert found.error == pytest.approx(float(kept.std()) / 40**0.5, rel=1e-12)


def test_each_image_is_in_one_pair():
    seen = []

    def spy(a, b):
        seen.extend(int(v) for side in (a, b) for v in ((side[:, 0, 0, 0] + 1) * 127.5).round())
        return square(a, b)

    x = torch.arange(100, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(100, 3, 4, 4)
    assert measured(x, pairs=30, distance=spy).pairs == 30
    kept = [v for v in seen if v]  # blocks of 32 pairs are filled up with black
    assert len(set(kept)) == len(kept) >= 59
    assert set(kept) != set(range(1, 60)), "the pairs are drawn, not the first ones"


def test_any_batches_and_processes():
    x = noise(133)
    whole = measured(x, pairs=40)
    assert measured((x[i : i + 7] for i in range(0, 133, 7)), pairs=40) == whole
    for world in (2, 7):
        parts = [DiversityMeter(40) for _ in range(world)]
        for rank, part in enumerate(parts):
            for block in blocks(x, rank=rank, world=world):
                part.update(block)
        for part in parts[:-1]:
            parts[-1].merge(part)
        assert parts[-1].result(square) == whole


def test_memory_is_bounded():
    meter = DiversityMeter(5)
    for block in blocks(noise(500)):
        meter.update(block)
        # Written out a view is its whole storage: what is kept are copies of ten images of 192 bytes.
        assert len(pickle.dumps(meter)) < 10 * (192 + 600)


def test_refusals():
    with pytest.raises(UsageError, match="at least 2 images, got 1"):
        measured(noise(1))
    with pytest.raises(UsageError, match="at least one pair"):
        DiversityMeter(0)
    with pytest.raises(UsageError, match="use one number"):
        DiversityMeter(3).merge(DiversityMeter(4))
    with pytest.raises(UsageError, match="resolutions"):
        measured([noise(2), noise(1, 4)])
