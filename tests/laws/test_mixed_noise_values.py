"""Noise between samples number by number, mixtures of estimates, and the keys that the one source is made of."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch

from ornstein.errors import UsageError
from ornstein.estimates import Estimate, Gaussian
from ornstein.interpolation import Between, Mixed, Square, Varied, arc, level_key
from ornstein.modulation import Site, modulated, sites
from ornstein.paths import VE, VP, PyramidPath
from ornstein.randomness import Noise, generator, mix

CPU, DOUBLE, EVENT = torch.device("cpu"), torch.float64, (2, 3)
DRAWS: dict[str, Any] = {
    "white": lambda source: source.normal("k", EVENT),
    "increment": lambda source: source.brownian_increment("w", 0.2, 0.9, EVENT),
    "fork": lambda source: source.fork("f").normal(("k", 1), EVENT),
}


def rows_of(draw: Any, numbers: list[int], seed: int = 6) -> torch.Tensor:
    return draw(Noise.of(seed, numbers, dtype=DOUBLE))


def test_an_arc_is_a_quarter_of_a_circle() -> None:
    assert arc(2) == ((1.0, 0.0), (0.0, 1.0))
    for steps in (3, 4, 7):
        angles = np.linspace(0.0, math.pi / 2, steps)
        np.testing.assert_allclose(arc(steps), np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-15)
        assert (arc(steps)[0], arc(steps)[-1]) == ((1.0, 0.0), (0.0, 1.0))
    for steps in (1, 0, -1):
        with pytest.raises(UsageError, match=f"at least 2 frames, got {steps}"):
            arc(steps)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("rows", [range(5), range(1, 4)], ids=["all", "some"])
def test_between_two_samples(name: str, rows: range) -> None:
    source = Between(a=4, b=9, frames=5, seed=6)(rows, CPU, DOUBLE)
    one, two = (rows_of(DRAWS[name], [number] * len(rows)) for number in (4, 9))
    angles = torch.tensor([row * math.pi / 8 for row in rows], dtype=DOUBLE).reshape(-1, 1, 1)
    torch.testing.assert_close(DRAWS[name](source), angles.cos() * one + angles.sin() * two, rtol=1e-14, atol=1e-14)
    own = Noise.of(6, [4] * len(rows))
    assert source.uniform("u") == own.uniform("u") != Noise.of(7, [4]).uniform("u")
    assert torch.equal(source.uniform_per_sample("u"), own.uniform_per_sample("u"))


@pytest.mark.parametrize("name", DRAWS)
def test_a_square_of_four_samples(name: str) -> None:
    """Rows of the square go down from (a, b) to (c, d), columns along from (a, c) to (b, d)."""
    rows = range(1, 8)
    source = Square(corners=(3, 1, 4, 5), side=3, seed=6)(rows, CPU, DOUBLE)
    a, b, c, d = (rows_of(DRAWS[name], [number] * len(rows)) for number in (3, 1, 4, 5))
    theta, eta = (
        torch.tensor(angles, dtype=DOUBLE).reshape(-1, 1, 1) * math.pi / 4
        for angles in ([row % 3 for row in rows], [row // 3 for row in rows])
    )
    top, bottom = theta.cos() * a + theta.sin() * b, theta.cos() * c + theta.sin() * d
    torch.testing.assert_close(DRAWS[name](source), eta.cos() * top + eta.sin() * bottom, rtol=1e-14, atol=1e-14)
    assert torch.equal(source.uniform_per_sample("u"), Noise.of(6, [3] * len(rows)).uniform_per_sample("u"))
    with pytest.raises(UsageError, match="at least 2 frames"):
        Square(corners=(0, 1, 2, 3), side=1)


@pytest.mark.parametrize("keep", [0.0, 0.6, 1.0])
def test_variations_at_one_key(keep: float) -> None:
    rows = range(3)
    source = Varied(image=4, key=("k", 1), keep=keep, seed=6)(rows, CPU, DOUBLE)
    draw = lambda noise: noise.normal(("k", 1), EVENT)  # noqa: E731
    own = rows_of(draw, [4, 4, 4])
    fresh = draw(Noise.of(6, rows, dtype=DOUBLE).fork("vary 4"))
    wanted = keep * own + math.sqrt(1.0 - keep**2) * fresh
    wanted[0] = own[0]
    torch.testing.assert_close(draw(source), wanted, rtol=1e-14, atol=1e-14)
    assert torch.equal(source.normal("k", EVENT), Noise.of(6, [4] * 3, dtype=DOUBLE).normal("k", EVENT))
    later = Varied(image=4, key=("k", 1), keep=keep, seed=6)(range(1, 3), CPU, DOUBLE)  # another batch of the call
    torch.testing.assert_close(draw(later), wanted[1:], rtol=1e-14, atol=1e-14)
    forked = source.fork("x")
    assert (forked.key, forked.shares) == (("k", 1), source.shares)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="keep must lie"):
            Varied(image=4, key=1, keep=bad)
    assert (Varied(image=4, key=1).keep, Varied(image=4, key=1).seed) == (0.0, 0)
    assert (Between(a=0, b=1, frames=2).seed, Square(corners=(0, 1, 2, 3), side=2).seed) == (0, 0)


def test_mixtures_have_the_dtype_of_the_argument() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        source = Between(a=4, b=9, frames=3)(range(3), CPU, dtype)
        assert source.normal("k", EVENT).dtype == dtype
        one, two = (Noise.of(0, [number] * 3, dtype=dtype).normal("k", EVENT) for number in (4, 9))
        assert torch.equal(source.normal("k", EVENT)[::2], torch.stack([one[0], two[2]]))  # the ends, bit for bit
    plain = Mixed(first=Noise.of(0, [0]), second=Noise.of(0, [1]), shares=((0.6, 0.8),))
    assert plain.key is None
    assert plain.normal("k", ()).shape == (1,)


def test_noise_is_moved_to_its_device() -> None:
    """To the device without storage, which every machine has; numbers of the host stay there."""
    device = torch.device("meta")
    assert Noise.of(0, [0]).device == CPU
    sources: list[Any] = [
        Noise.of(0, range(2), device="meta", dtype=DOUBLE),
        Between(a=0, b=1, frames=2)(range(2), device, DOUBLE),
        Square(corners=(0, 1, 2, 3), side=2)(range(2), device, DOUBLE),
        Varied(image=0, key="k")(range(2), device, DOUBLE),
    ]
    for source in sources:
        for draw in DRAWS.values():
            assert (draw(source).device, draw(source).dtype) == (device, DOUBLE)
        assert source.uniform_per_sample("u").device == CPU


def test_keys_of_the_levels_of_other_pyramids() -> None:
    for levels in (1, 2, 4):
        path = PyramidPath(alphas=(0.5,) * levels, sigmas=(0.1,) * levels, factors=(2,) * levels)
        keys = [level_key(path, level) for level in range(1, levels + 1)]
        assert keys == [*range(levels - 2, -1, -1), "prior"]
        for level in (0, levels + 1):
            with pytest.raises(UsageError, match=rf"level {level} has no noise: choose 1 \(details\) to {levels}"):
                level_key(path, level)


# -------------------------------------------------------------------------------------------------- the source's keys


def digest(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def words(seed: int, stream: int, count: int) -> np.ndarray:
    """Philox with the 128-bit key (seed, stream), as numpy makes it."""
    return np.random.Philox(key=seed | stream << 64).random_raw(count)


def test_every_number_is_philox_under_the_published_key() -> None:
    assert mix("ab", -7, 12) == digest(b"s2:abi2:-7i2:12")
    assert mix("ä") == digest("s2:ä".encode())  # bytes are counted, not letters
    numbers = (3, 5, 3)
    noise = Noise.of(11, numbers)
    assert (noise.seeds, noise.shared, noise.name) == (tuple(mix(11, i) for i in numbers), 11, "")
    for source, name in ((noise, ""), (noise.fork("a"), "/1:a"), (noise.fork("a").fork("bc"), "/1:a/2:bc")):
        assert source.name == name
        for key in ("t", 4, ("t", 4)):
            parts = key if isinstance(key, tuple) else (key,)
            stream = mix(name, *parts)
            drawn = [words(seed, stream, 1)[0] >> np.uint64(11) for seed in noise.seeds]
            assert source.uniform_per_sample(key).tolist() == [int(w) / 2**53 for w in drawn]
            shared = words(mix(11, "shared"), stream, 1)[0]
            assert source.uniform(key) == (int(shared) >> 11) / 2**53
    mapped = np.random.Generator(np.random.Philox(key=mix("crop", 3)))
    assert generator("crop", 3).integers(1 << 40, size=4).tolist() == mapped.integers(1 << 40, size=4).tolist()


@pytest.mark.parametrize("size", [1, 2, 5, 10_001])
def test_normal_numbers_are_box_and_mullers_map_of_philox(size: int) -> None:
    noise = Noise.of(2, range(3))
    half = (size + 1) // 2
    found = noise.normal("k", (size,)).double().numpy()
    for row, seed in zip(found, noise.seeds, strict=True):
        u = words(seed, mix("", "k"), half).view(np.uint32).astype(np.float64)
        radius = np.sqrt(-2.0 * np.log((u[:half] + 0.5) * 2.0**-32))
        # The second half of the words is read as signed angles of a whole turn.
        angle = np.where(u[half:] < 2.0**31, u[half:], u[half:] - 2.0**32) * 2.0**-31 * math.pi
        wanted = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=5e-6)  # its series are in float32


@pytest.mark.parametrize("t", [0.25, 0.375, 0.3, 1.0, 0.0])
def test_a_brownian_path_is_levys_construction(t: float) -> None:
    noise = Noise.of(2, range(2))
    node = lambda level, place: noise.normal(("w", "W", level, place), EVENT).double()  # noqa: E731

    def value(t: float, depth: int = 30) -> torch.Tensor:
        lo, hi, left, right = 0.0, 1.0, torch.zeros(2, *EVENT, dtype=DOUBLE), node(0, 0)
        for level in range(1, depth + 1):
            mid = (lo + hi) / 2
            middle = (left + right) / 2 + math.sqrt(hi - lo) / 2 * node(level, int(mid * 2**level))
            lo, hi, left, right = (lo, mid, left, middle) if t <= mid else (mid, hi, middle, right)
        return left + (right - left) * (t - lo) / (hi - lo)

    for key in ("w", ("w",)):
        found = noise.brownian_increment(key, 0.0, t, EVENT).double()
        torch.testing.assert_close(found, value(t), rtol=0, atol=2e-6)  # thirty terms in float32
        between = noise.brownian_increment(key, 0.7, t, EVENT).double()
        torch.testing.assert_close(between, value(t) - value(0.7), rtol=0, atol=4e-6)


# ----------------------------------------------------------------------------------------------- mixtures of estimates

X, CLEAN, WHITE = (Noise.of(1, range(3), dtype=DOUBLE).normal(key, EVENT) for key in ("x", "clean", "white"))


def test_a_mixture_stands_where_its_first_term_with_a_weight_does() -> None:
    one = Estimate(X, 0.3, VP(), clean=CLEAN, extras={"a": X})
    two = Estimate(WHITE, 0.7, VE(), clean=WHITE, extras={"b": X})
    three = Estimate(WHITE, 0.8, VP(), noise=X)
    found = Estimate.mix((0.0, three), (1.75, two), (-0.25, one), (-0.5, three))
    torch.testing.assert_close(found.clean, 1.75 * WHITE - 0.25 * CLEAN - 0.5 * three.clean, rtol=1e-13, atol=1e-13)
    assert (found.x is WHITE, found.t, found.path, set(found.extras)) == (True, 0.7, VE(), {"b"})
    assert Estimate.mix((0.0, one), (1.0, two), (0.0, three)) is two
    assert Estimate.mix((0.5, one), (0.5 + 5e-10, two)).t == 0.3  # differences below 1e-9 are rounding
    for weights in ((1.05, 0.0), (0.5, 0.55), (0.5, 0.45), (0.5, 0.5 + 2e-9), (2.0, -2.0)):
        with pytest.raises(ValueError, match="must sum to 1"):
            Estimate.mix((weights[0], one), (weights[1], two))


def test_exactly_one_of_three_predictions() -> None:
    one: dict[str, Any] = {"clean": CLEAN, "noise": X, "velocity": WHITE}
    for left in one:
        with pytest.raises(TypeError, match="exactly one"):
            Estimate(X, 0.3, VP(), **{key: value for key, value in one.items() if key != left})
    with pytest.raises(TypeError, match="exactly one"):
        Estimate(X, 0.3, VP(), **one)
    assert Estimate(X, 0.3, VP(), clean=CLEAN).extras == {}


def test_a_gaussian_is_its_mean_and_its_root() -> None:
    mean, rows = CLEAN, torch.tensor([0.5, -2.0, 3.0], dtype=DOUBLE)
    assert torch.equal(Gaussian(mean=mean, root=0.3).sample(WHITE), mean + 0.3 * WHITE)
    assert torch.equal(Gaussian(mean=mean, root=rows).sample(WHITE), mean + rows.reshape(3, 1, 1) * WHITE)
    assert torch.equal(Gaussian(mean=mean, root=lambda z: z.roll(1, 0)).sample(WHITE), mean + WHITE.roll(1, 0))


def test_modulations_of_one_site_by_name_and_time() -> None:
    net = torch.nn.ModuleDict({"b": Site("down.1"), "a": Site("up.1")})
    assert sites(net) == ("down.1", "up.1")
    assert sites(Site("alone")) == ("alone",)
    scaled = lambda feature, site, t: feature * t + len(site)  # noqa: E731
    with modulated(net, {"up.*": scaled, "up.1": lambda f, site, t: -f}), modulated(net["a"], {"*.1": scaled}):
        assert net["a"](2.0, 3.0) == -(2.0 * 3.0 + 4) * 3.0 + 4
        assert net["b"](2.0, 3.0) == 2.0
        with pytest.raises(Exception, match="no site matches 'UP"), modulated(net, {"UP.1": scaled}):
            pass
    assert repr(Site("up.1")) == "Site(up.1)"
