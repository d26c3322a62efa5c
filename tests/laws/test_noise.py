"""The one source of randomness: invariances bit for bit, the normal law, Brownian increments, golden values."""

import hashlib
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from ornstein.errors import GridError
from ornstein.randomness import Noise, generator, mix

EVENT = (3, 5, 7)  # odd, so that a pair of numbers is cut at the end

GOLDEN_MIX = 974198464450464588
GOLDEN_PRIOR = [[0xBD235E49, 0xBE955C1A, 0x3FB58F88], [0x3E86FC99, 0xBF0E6C42, 0xBF326FE7]]
GOLDEN_FORK = [[0xBF1909C8, 0xBEC60880, 0xBFF247FB, 0xBF2CFEDB]]
GOLDEN_INCREMENT = [[0xBF0A6E0C, 0x3EFFC7AA, 0xBF08DE69], [0xBF5D0680, 0xBF097F3B, 0x3F087622]]
GOLDEN_DIGEST = "4f3a946e5d9982740d500caa3977286860c423d3321b115e73ef17096654d041"
GOLDEN_UNIFORM = "0x1.52e405e683da8p-3"
GOLDEN_UNIFORMS = ["0x1.1f09d5e8b6450p-2", "0x1.163a76f44f5e0p-3"]


@pytest.mark.parametrize("event", [(), (1,), EVENT, (3, 64, 64), (0,)])
def test_split_order_and_repetition_change_no_bit(event: tuple[int, ...]) -> None:
    whole = Noise.of(11, range(7)).normal("k", event)
    assert whole.shape == (7, *event)
    for cut in range(8):
        parts = [Noise.of(11, rows).normal("k", event) for rows in (range(cut), range(cut, 7))]
        assert torch.equal(torch.cat(parts), whole)
    order = [4, 0, 6, 2]
    shuffled = Noise.of(11, order)
    for _ in range(2):  # asking again, after other questions, changes nothing
        assert torch.equal(shuffled.normal("k", event), whole[order])
        shuffled.normal("other", event)
    assert torch.equal(shuffled.uniform_per_sample("k"), Noise.of(11, range(7)).uniform_per_sample("k")[order])
    times = [
        Noise.of(11, order).brownian_increment("w", 0.2, 0.7, (2,)),
        Noise.of(11, range(7)).brownian_increment("w", 0.2, 0.7, (2,))[order],
    ]
    assert torch.equal(*times)


def test_thread_count_and_threads_change_no_bit() -> None:
    noise, before = Noise.of(0, range(40)), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(noise.normal("k", (3, 64, 64)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda i: noise.normal(i % 3, EVENT), range(12)))
    assert all(torch.equal(many[i], noise.normal(i % 3, EVENT)) for i in range(12))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_is_a_cast(dtype: torch.dtype) -> None:
    full, cast = Noise.of(0, range(3)), Noise.of(0, range(3), dtype=dtype)
    assert torch.equal(cast.normal("k", EVENT), full.normal("k", EVENT).to(dtype))
    # Increments are summed in float32 whatever the precision asked for.
    assert torch.equal(
        cast.brownian_increment("k", 0.1, 0.2, EVENT), full.brownian_increment("k", 0.1, 0.2, EVENT).to(dtype)
    )


def test_golden_values() -> None:
    """The stream may never change: every seed ever published depends on it."""
    noise = Noise.of(0, (0, 1))
    assert mix(0, 0) == GOLDEN_MIX
    np.testing.assert_array_equal(noise.normal("prior", (3,)).numpy().view(np.uint32), GOLDEN_PRIOR)
    np.testing.assert_array_equal(
        Noise.of(5, (9,)).fork("dropout").normal((3, "mid"), (4,)).numpy().view(np.uint32), GOLDEN_FORK
    )
    increment = noise.brownian_increment("w", 0.3, 0.7, (3,)).numpy().view(np.uint32)
    np.testing.assert_array_equal(increment, GOLDEN_INCREMENT)
    assert noise.uniform("t").hex() == GOLDEN_UNIFORM
    assert [u.hex() for u in noise.uniform_per_sample("t").tolist()] == GOLDEN_UNIFORMS


def test_every_bit_of_a_hundred_thousand_numbers() -> None:
    """The last digit of each constant of the map shows in some of them."""
    noise = Noise.of(12, range(8)).normal("digest", (3, 64, 64)).numpy().astype("<f4")
    assert hashlib.sha256(noise.tobytes()).hexdigest() == GOLDEN_DIGEST


def test_events_larger_than_a_block_are_mapped_row_by_row() -> None:
    whole = Noise.of(3, range(2)).normal("k", (40_001,))
    assert torch.equal(whole[1], Noise.of(3, [1]).normal("k", (40_001,))[0])
    assert stats.kstest(whole.flatten().double().numpy(), "norm").pvalue > 0.01


def test_the_extreme_words_are_finite() -> None:
    from ornstein.randomness import _box_muller

    ends = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint32)
    pairs = np.array(list(itertools.product(ends, ends)), dtype=np.uint32)
    out = np.empty(pairs.shape, dtype=np.float32)
    _box_muller(pairs, out)
    assert np.isfinite(out).all()
    assert np.abs(out).max() == pytest.approx(math.sqrt(66.0 * math.log(2.0)), rel=1e-6)  # of u = 2⁻³³


@pytest.mark.parametrize("seed", [0, 1])
def test_white_is_normal_and_independent(seed: int) -> None:
    a = Noise.of(seed, range(64)).normal("a", (2048,)).double()
    assert stats.kstest(a.flatten().numpy(), "norm").pvalue > 0.01
    n = a.numel()
    assert abs(a.mean().item()) < 4 / math.sqrt(n)
    assert abs(a.square().mean().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs(a.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / n)
    others = {
        "key": Noise.of(seed, range(64)).normal("b", (2048,)),
        "number": Noise.of(seed, range(64)).normal(("a", 0), (2048,)),
        "seed": Noise.of(seed + 1, range(64)).normal("a", (2048,)),
        "fork": Noise.of(seed, range(64)).fork("a").normal("a", (2048,)),
        "row": a.roll(1, 0),
        "column": a.roll(1, 1),
        "pair": a.roll(1024, 1),
    }
    for name, b in others.items():
        assert abs((a * b.double()).mean().item()) < 4.5 / math.sqrt(n), name
        assert abs(((a**2 - 1) * (b.double() ** 2 - 1)).mean().item()) < 4.5 * 2 / math.sqrt(n), name


def test_forks_and_keys_never_meet() -> None:
    noise = Noise.of(0, range(2))
    sources = [
        noise,
        noise.fork("a"),
        noise.fork("a").fork("b"),
        noise.fork("a/b"),
        noise.fork("b").fork("a"),
        noise.fork(""),
    ]
    keys = ["a", ("a", "b"), "ab", ("ab",), 1, "1", (1, 1), 11, ("", "a"), ("a", ""), ("/a",), ("b", "a"), -1]
    seen = {tuple(s.normal(k, (4,)).flatten().tolist()) for s in sources for k in keys}
    assert len(seen) == len(sources) * (len(keys) - 1)  # "ab" is ("ab",)
    assert torch.equal(noise.normal("ab", (4,)), noise.normal(("ab",), (4,)))
    assert torch.equal(noise.fork("a").normal(0, (4,)), noise.fork("a").normal(0, (4,)))


def test_mix_has_no_collisions_and_no_history() -> None:
    inputs = [(a, b) for a in range(200) for b in range(200)] + [(str(a), b) for a in range(200) for b in range(100)]
    assert len({mix(*parts) for parts in inputs}) == len(inputs)
    assert mix(1) != mix("1")
    assert mix(np.int64(5)) == mix(5)  # type: ignore[arg-type]
    assert mix(True) == mix(1)
    assert all(0 <= mix(i) < 2**64 for i in range(100))
    for bad in (1.0, None, (1,), b"x"):
        with pytest.raises(TypeError):
            mix(bad)  # type: ignore[arg-type]
    assert generator("crop", 3).integers(1 << 30) == generator("crop", 3).integers(1 << 30)


def test_uniform_is_of_the_batch_and_uniforms_of_the_sample() -> None:
    a, b = Noise.of(0, range(9)), Noise.of(0, [3])
    assert a.uniform("t") == b.uniform("t")
    assert a.uniform("t") != a.uniform("u") != Noise.of(1, range(9)).uniform("u")
    assert a.uniform("t") != a.fork("x").uniform("t")
    each = Noise.of(0, range(4000)).uniform_per_sample("t")
    assert each.dtype == torch.float64
    assert each.device.type == "cpu"
    assert stats.kstest(each.numpy(), "uniform").pvalue > 0.01
    assert stats.kstest([a.uniform(i) for i in range(2000)], "uniform").pvalue > 0.01


def test_brownian_increments_add_up() -> None:
    noise = Noise.of(2, range(3))
    grids = [sorted(generator("grid", i).random(6).tolist()) for i in range(3)]
    for grid in grids:
        nodes = [0.0, *grid, 1.0]
        total = sum(noise.brownian_increment("w", a, b, (4,)) for a, b in itertools.pairwise(nodes))
        torch.testing.assert_close(total, noise.brownian_increment("w", 0.0, 1.0, (4,)), rtol=0, atol=2e-6)
        a, b, c = grid[:3]
        both = noise.brownian_increment("w", a, b, (4,)) + noise.brownian_increment("w", b, c, (4,))
        torch.testing.assert_close(both, noise.brownian_increment("w", a, c, (4,)), rtol=0, atol=1e-6)
    assert torch.equal(noise.brownian_increment("w", 0.3, 0.3, (4,)), torch.zeros(3, 4))
    assert torch.equal(noise.brownian_increment("w", 0.3, 0.6, (4,)), -noise.brownian_increment("w", 0.6, 0.3, (4,)))


def test_brownian_increments_have_brownian_covariance() -> None:
    noise, event = Noise.of(4, range(1)), (20000,)
    spans = [(0.0, 0.3), (0.2, 0.55), (0.5, 0.8), (0.123, 0.1234), (0.9, 1.0)]
    draws = torch.stack([noise.brownian_increment("w", a, b, event)[0].double() / math.sqrt(b - a) for a, b in spans])
    found = (draws @ draws.T / event[0]).numpy()
    for i, (a, b) in enumerate(spans):
        for j, (c, d) in enumerate(spans):
            overlap = max(0.0, min(b, d) - max(a, c)) / math.sqrt((b - a) * (d - c))
            assert found[i, j] == pytest.approx(overlap, abs=4.5 * math.sqrt((1 + overlap**2) / event[0]))
    assert stats.kstest(draws[1].numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize(("t0", "t1"), [(-0.1, 0.5), (1.1, 0.5), (0.0, 1.1), (math.nan, 0.5), (0.2, math.inf)])
def test_brownian_times_outside_the_unit_interval_are_refused(t0: float, t1: float) -> None:
    with pytest.raises(GridError, match="divide by the span"):
        Noise.of(0, range(1)).brownian_increment("w", t0, t1, (2,))
