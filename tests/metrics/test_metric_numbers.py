"""Numbers that published tables rest on: which images are chosen, in which parts, under which names, with which k."""

from __future__ import annotations

import hashlib
import inspect
import math
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ornstein.data.base import UnreadableError
from ornstein.errors import UsageError
from ornstein.metrics import DiversityMeter, InceptionScoreSums, Moments, Sample, kernel_distance, mmd2
from ornstein.metrics import diversity as diversity_module
from ornstein.metrics import kernel as kernel_module
from ornstein.metrics.blocks import BLOCK, Block, agree, blocks, padded
from ornstein.metrics.frechet import LIMIT, QUANTUM, quantise
from ornstein.metrics.manifold import manifold
from ornstein.metrics.measure import METRICS
from ornstein.metrics.rarity import rarity
from ornstein.metrics.sets import KEEPS, statistics
from ornstein.metrics.vectors import Vectors, length, nearest, tiles
from ornstein.randomness import mix


def pictures(n, seed=0, side=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


class Net:
    """Means of the pixels under three fixed weights each, with all the outputs that a metric may be defined on."""

    heads = ("pooled", "spatial", "classes")

    def __init__(self, name="net", width=5):
        self.name, self.width = name, width
        g = torch.Generator().manual_seed(1)
        self.matrices = [torch.randn(48, size, generator=g, dtype=torch.float64) for size in (width, 4, 6)]

    def outputs(self, images):
        flat = images.flatten(1).double() / 64.0
        return dict(zip(self.heads, (flat @ matrix for matrix in self.matrices), strict=True))

    def __call__(self, images):
        return self.outputs(images)["pooled"]


def of(n, seed=0, **options):
    return statistics(pictures(n, seed), Net(), keep=KEEPS, **options)


# -------------------------------------------------------------------------------------------------- published defaults


def test_defaults_are_the_published_ones():
    """Bińkowski 2018 and Parmar 2022 for KID, Salimans 2016, Zhu 2017, Kynkäänniemi 2019, Naeem 2020, Han 2022."""
    assert (kernel_module.CAPACITY, kernel_module.BLOCK) == (5000, 1000)
    assert diversity_module.PAIRS == DiversityMeter().pairs == 500
    assert InceptionScoreSums().splits == 10
    assert Sample().capacity == 5000
    assert (QUANTUM, LIMIT, BLOCK) == (2.0**-16, 256.0, 32)
    for function, ks in (
        (manifold, {"k_precision": 3, "k_density": 5}),
        (rarity, {"k_average": 5, "k_outlier": 20, "k_rarity": 3}),
    ):
        assert {name: inspect.signature(function).parameters[name].default for name in ks} == ks
    assert KEEPS == ("spatial", "classes", "vectors")
    published = {
        "fd": "Fréchet distance",
        "sfd": "Fréchet distance of spatial features",
        "kid": "kernel distance",
        "is": "inception score",
        "prdc": "precision, recall, density, coverage",
        "avgknn": "average distance to neighbours",
        "lof": "local outlier factor",
        "rarity": "rarity score",
    }
    assert {name: METRICS[name].what for name in published} == published


# -------------------------------------------------------------------------------------------------------------- chosen


def bottom(name, count, capacity):
    """The numbers with the smallest hashes, smallest first."""
    return sorted(range(count), key=lambda i: mix(name, i))[:capacity]


def test_the_sample_of_the_kernel_distance_is_those_of_the_smallest_hashes():
    sample = Sample(7)
    for index in range(50):
        sample.add(index, [float(index), 0.25])
    assert sample.indices == bottom("metrics/kernel", 50, 7) == SAMPLE
    assert sample.rows(2).tolist() == [[float(i), 0.25] for i in SAMPLE]
    assert sample.rows(2).dtype == np.float32
    nothing = Sample(0)
    nothing.add(3, [1.0])
    assert len(nothing) == 0


SAMPLE = [4, 15, 2, 30, 17, 24, 28]


def test_pairs_of_the_diversity_are_neighbours_in_the_order_of_hashes():
    seen = []

    def spy(a, b):
        assert len(a) == len(b) == 32
        seen.extend(zip(a[:, 0, 0, 0].tolist(), b[:, 0, 0, 0].tolist(), strict=True))
        return (a - b)[:, 0, 0, 0]

    meter = DiversityMeter(4)
    for block in blocks(torch.arange(1, 51, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(50, 3, 2, 2)):
        meter.update(block)
    found = meter.result(spy)
    order = bottom("metrics/diversity", 50, 8)
    expected = [(order[2 * i], order[2 * i + 1]) for i in range(4)]
    assert expected[:2] == PAIRS
    got = [tuple(round((value + 1.0) * 127.5) - 1 for value in pair) for pair in seen[:4]]
    assert got == expected
    assert set(seen[4:]) == {(-1.0, -1.0)}  # filled up with black
    differences = [(a - b) / 127.5 for a, b in expected]
    assert found.value == pytest.approx(np.mean(differences), rel=1e-5)
    assert found.error == pytest.approx(np.std(differences, ddof=1) / 2, rel=1e-5)


PAIRS = [(20, 25), (5, 39)]


def test_parts_of_the_inception_score_are_drawn_by_hash():
    score = InceptionScoreSums(splits=3)
    score.update(range(12), np.eye(12) * 900.0)
    parts = [int(score.totals[:, i].argmax()) for i in range(12)]
    assert parts == PARTS
    assert {array.dtype for array in (score.totals, score.counts, score.entropies)} == {np.dtype(np.int64)}
    for group in range(4):
        order = sorted(range(3), key=lambda i: mix("metrics/classes", 3 * group + i))
        assert [order.index(i) for i in range(3)] == parts[3 * group : 3 * group + 3]
    again = InceptionScoreSums(splits=3)
    for i in (11, 3, 7):
        again.update([i], np.eye(12)[i : i + 1] * 900.0)
    assert all(again.totals[parts[i], i] == score.totals[parts[i], i] for i in (11, 3, 7))


PARTS = [2, 0, 1, 0, 1, 2, 0, 1, 2, 1, 0, 2]


def test_the_inception_score_is_the_mean_over_parts_and_its_population_deviation():
    x = np.random.default_rng(0).normal(size=(40, 6)) * 2
    score = InceptionScoreSums(splits=4)
    score.update(range(40), x)
    where = {i: part for group in range(10) for i, part in enumerate(part_of(group), start=4 * group)}
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    values = []
    for part in range(4):
        mine = p[[i for i in range(40) if where[i] == part]]
        assert len(mine) == 10
        values.append(math.exp((mine * np.log(mine / mine.mean(0))).sum(1).mean()))
    found = score.score()
    assert found.value == pytest.approx(np.mean(values), rel=1e-9)
    assert found.deviation == pytest.approx(np.std(values), rel=1e-7)
    assert found.splits == 4


def part_of(group):
    order = sorted(range(4), key=lambda i: mix("metrics/classes", 4 * group + i))
    return [order.index(i) for i in range(4)]


SIZES = [(8, 30, 4, 2, 7), (4100, 9000, 5, 820, 1000), (7, 7, 1, 7, 7)]


@pytest.mark.parametrize(("n", "m", "count", "mine", "theirs"), SIZES)
def test_blocks_of_the_kernel_distance(n, m, count, mine, theirs):
    """As many of at most a thousand as the smaller side fills, each paired with the next one of the other side."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 0.2
    values = [
        mmd2(x[i * mine : (i + 1) * mine], y[j * theirs : (j + 1) * theirs])
        for i, j in ((i, (i + 1) % count) for i in range(count))
    ]
    found = kernel_distance(x, y)
    assert found.blocks == count
    assert found.value == pytest.approx(np.mean(values), rel=1e-9)
    if count > 1:
        assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(count), rel=1e-9)
    for wrong in (0, n // 2 + 1, -1):
        with pytest.raises(UsageError, match=f"into {wrong} blocks"):
            kernel_distance(x, y, blocks=wrong)


# -------------------------------------------------------------------------------------------------------------- blocks


def test_blocks_carry_numbers_names_and_captions():
    class Source:
        def __len__(self):
            return 70

        def __getitem__(self, index):
            if index in (3, 64):
                raise UnreadableError(str(index), "torn")
            caption = f"c{index}" if index % 2 else None
            return SimpleNamespace(image=pictures(1, index)[0], name=f"n{index}", caption=caption)

    found = list(blocks(Source(), rank=0, world=2))
    assert [block.indices for block in found] == [[i for i in range(32) if i != 3], [65, 66, 67, 68, 69]]
    assert [block.skipped for block in found] == [1, 1]
    assert found[1].names == ["n65", "n66", "n67", "n68", "n69"]
    assert found[1].captions == ["c65", "", "c67", "", "c69"]
    assert torch.equal(found[1].stack(), torch.stack([pictures(1, i)[0] for i in range(65, 70)]))
    (other,) = blocks(Source(), rank=1, world=2)
    assert other.indices == list(range(32, 64))
    stream = list(blocks((pictures(1, i)[0] for i in range(70)), rank=1, world=2))
    assert [block.indices for block in stream] == [list(range(32, 64))]
    assert stream[0].names == [""] * 32
    for rank, world in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(UsageError, match=f"rank {rank} is not one of {world}"):
            blocks(Source(), rank=rank, world=world)
    grey = Block()
    grey.take(5, pictures(1)[0, :1])
    assert torch.equal(grey.stack()[0, 2], pictures(1)[0, 0])
    assert (grey.indices, grey.names, grey.captions) == ([5], [""], [""])


@pytest.mark.parametrize("other", [(4, 4), (6, 6), (6, 4)], ids=str)
def test_pictures_of_one_height_or_one_width_are_not_of_one_size(other):
    one, two = (torch.zeros(3, *size, dtype=torch.uint8) for size in ((4, 6), other))
    block, first, second = Block(), DiversityMeter(), DiversityMeter()
    block.take(0, one)
    first.update(block)
    block.take(1, two)
    alone = Block()
    alone.take(1, two)
    second.update(alone)
    for act in (block.stack, lambda: DiversityMeter().update(block), lambda: first.merge(second)):
        with pytest.raises(UsageError, match="images of different resolutions"):
            act()


def test_blocks_are_filled_up_with_black_and_sizes_agree():
    x = pictures(31)
    full = padded(x)
    assert torch.equal(full[:31], x)
    assert full.shape == (32, 3, 4, 4)
    assert not full[31:].any()
    assert padded(pictures(32)) is not full
    same = pictures(32)
    assert padded(same) is same
    assert agree(None, None) is None
    assert agree((1, 2), None) == agree(None, (1, 2)) == agree((1, 2), (1, 2)) == (1, 2)
    with pytest.raises(UsageError, match="1×2 and 2×1"):
        agree((1, 2), (2, 1))


# --------------------------------------------------------------------------------------------------------- fingerprints


def test_the_fingerprint_of_a_set_is_the_sum_of_keyed_hashes():
    x = pictures(40)
    hashes = [
        int.from_bytes(
            hashlib.blake2b(x[i].numpy().tobytes(), digest_size=16, key=struct.pack("<q", i)).digest(), "little"
        )
        for i in range(40)
    ]
    whole = statistics(x, Net())
    assert whole.fingerprint == sum(hashes) % 2**128
    halves = [statistics(x, Net(), rank=rank, world=2) for rank in range(2)]
    assert halves[0].fingerprint == sum(hashes[:32]) % 2**128
    assert halves[1].merge(halves[0]).fingerprint == whole.fingerprint < 2**128
    assert f"{statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), Net()).fingerprint:032x}" == ZEROS


ZEROS = "97a2a977a782b8182e8eaa1d573de9da"


def test_merged_statistics_add_up_and_keep_what_they_are_of():
    class Broken:
        def __len__(self):
            return 70

        def __getitem__(self, index):
            if index in (2, 40, 41):
                raise UnreadableError(str(index), "torn")
            return SimpleNamespace(image=pictures(1, index)[0])

    parts = [
        statistics(Broken(), Net(), keep=KEEPS, rank=r, world=3, capacity=9, about={"source": "x"}) for r in range(3)
    ]
    whole = statistics(Broken(), Net(), keep=KEEPS, capacity=9, about={"source": "x"})
    merged = parts[2].merge(parts[0], parts[1])
    assert (merged.count, merged.skipped, merged.parts, merged.world) == (67, 3, {0, 1, 2}, 3)
    assert merged.complete
    assert not parts[0].complete
    assert not parts[0].merge(parts[1]).complete
    assert (merged.about, merged.resolution, merged.features) == ({"source": "x"}, (4, 4), "net")
    assert merged.sample.capacity == 9
    assert merged.sample.indices == whole.sample.indices
    assert merged.moments == whole.moments
    assert merged.spatial == whole.spatial
    assert merged.classes.score() == whole.classes.score()
    assert merged.vectors.rows.tobytes() == whole.vectors.rows.tobytes()
    assert repr(merged) == "Statistics('net', 67 images 4×4, parts [0, 1, 2] of 3)"
    other = statistics(pictures(40), Net(width=4), rank=1, world=2)
    with pytest.raises(UsageError, match="different features"):
        statistics(pictures(40), Net(), rank=0, world=2).merge(other)


def test_features_are_rounded_to_multiples_and_kept_to_the_end():
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5]]) * QUANTUM
    assert quantise(x).tolist() == [[0.0, 2.0, 2.0, 0.0, -2.0]]
    assert quantise([[LIMIT, -LIMIT]]).tolist() == [[2.0**24, -(2.0**24)]]
    assert quantise(np.zeros((0, 3))).shape == (0, 3)
    for wrong in (LIMIT + QUANTUM, -LIMIT - QUANTUM):
        with pytest.raises(UsageError, match="a feature has size 256, more than 256"):
            quantise([[0.0, wrong]])
    one = of(5)
    raw = Net()(pictures(5)).numpy()
    assert one.vectors.rows.dtype == np.float32
    np.testing.assert_allclose(one.vectors.rows, raw, rtol=0, atol=QUANTUM / 2)
    assert np.array_equal(one.vectors.rows, np.rint(raw / QUANTUM) * QUANTUM)
    assert one.vectors.indices.tolist() == list(range(5))
    np.testing.assert_allclose(one.spatial.mean, Net().outputs(pictures(5))["spatial"].mean(0), rtol=0, atol=QUANTUM)
    np.testing.assert_allclose(one.moments.mean, raw.mean(0), rtol=0, atol=QUANTUM)
    p = torch.softmax(Net().outputs(pictures(5))["classes"], 1).sum(0).numpy()
    np.testing.assert_allclose(one.classes.totals.sum(0) / 2.0**40, p, rtol=0, atol=5 * 2.0**-40)

    class Wider(Net):
        def __call__(self, images):
            return torch.cat((Net.outputs(self, images)["pooled"], torch.zeros(len(images), 1)), 1)

        outputs = None

    with pytest.raises(UsageError, match="features 'net' gave 6 numbers an image, not 5"):
        statistics(pictures(5), Wider())


def test_moments_of_exact_sums_at_their_limit():
    """2⁶³ is refused, one below it is not; the mean of nothing is zero."""
    m = Moments(1)
    m.count, m.total, m.products = 1, np.array([1]), np.array([[2**62]])
    n = Moments(1)
    n.count, n.total, n.products = 1, np.array([1]), np.array([[2**62 - 1]])
    n.merge(m)
    assert (n.count, int(n.total[0]), int(n.products[0, 0])) == (2, 2, 2**63 - 1)
    with pytest.raises(UsageError, match="2 feature vectors of this size overflow"):
        m.merge(m)
    assert Moments(3).mean.tolist() == [0.0, 0.0, 0.0]
    assert (Moments(3) == 3) is False
    assert repr(m) == "Moments(width=1, count=1)"


# ------------------------------------------------------------------------------------------------------------ distances


def test_distances_are_exact_up_to_the_longest_vector():
    """|x|² up to 2⁵¹ units of 2⁻³²: 724.08."""
    longest = np.full((1, 8), 256.0)  # |x|² = 8·2⁴⁸ = 2⁵¹
    other = np.zeros((1, 8))
    ((_, _, found),) = tiles(longest, other)
    assert found[0, 0] == 2.0**51
    assert length(found[0, 0]) == pytest.approx(math.sqrt(8) * 256)
    ((_, _, found),) = tiles(longest, -longest)
    assert found[0, 0] == 2.0**53
    longer = np.concatenate((longest, [[QUANTUM]]), 1)
    with pytest.raises(UsageError, match="length 724, more than 724"):
        list(tiles(longer, np.zeros((1, 9))))
    with pytest.raises(UsageError, match="length 724, more than 724"):
        list(tiles(np.zeros((1, 9)), longer))
    with pytest.raises(UsageError, match="at least 4 images in the set, got 3"):
        nearest(other, np.zeros((3, 8)), 4)
    assert nearest(other, np.zeros((3, 8)), 3)[1].tolist() == [[0, 1, 2]]  # equal distances by number
    empty = Vectors(2)
    assert (len(empty), empty.indices.tolist()) == (0, [])
