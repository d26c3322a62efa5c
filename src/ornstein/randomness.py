"""The one source of randomness: every number is a pure function of (seed of the sample, key).

Nothing here has a position or a history, so splitting a batch, reordering it, or resuming after a crash changes no
bit. The generator is Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), whose
128-bit key is exactly (64-bit seed of the sample, 64-bit hash of the key), so two different (seed, key) pairs never
share a stream by construction except through a hash collision (probability 2⁻⁶⁴ a pair).

Numbers are drawn on the host in float32 and then moved and cast, so a run sees the same noise on every device and at
every precision. The map from words to normal numbers uses additions, products, one division and one square root only –
operations that IEEE 754 rounds in one way – so no processor, thread count or library version changes a bit either.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checks import OneLine
from .errors import GridError, UsageError
from .scalars import to_device
from .typed import typed

Key = int | str | tuple[int | str, ...]

_F = np.float32
_ROOT_HALF = np.int32(0x3F3504F3)  # the bits of √½ in float32
_BLOCK = 16384  # pairs of normal numbers mapped at once
_DEPTH = 30  # levels of the Brownian tree: increments are exact down to 2⁻³⁰ of the unit interval


@lru_cache(maxsize=65536, typed=True)
def mix(*parts: int | str) -> int:
    """A 64-bit integer that depends on every part and on their order (BLAKE2b; stable across machines and versions).

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    # Each part carries its type and length, so that ("a", "b") and ("ab",) or 1 and "1" can never read the same.
    text = b"".join(_field(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _field(part: int | str) -> bytes:
    kind, text = (b"s", part.encode()) if isinstance(part, str) else (b"i", b"%d" % operator.index(part))
    return b"%s%d:%s" % (kind, len(text), text)


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator keyed by ``parts``: for permutations, crops and whatever else is drawn on the host."""
    return np.random.Generator(np.random.Philox(key=mix(*parts)))


class NoiseSource(Protocol):
    """All randomness of sampling and training; see the module's text for the law it obeys."""

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Standard normal noise, shape (B, *event)."""
        ...

    def uniform(self, key: Key) -> float:
        """One number in [0, 1) for the whole batch, on the host: it does not depend on how the batch is split."""
        ...

    def uniform_per_sample(self, key: Key) -> Tensor:
        """One number in [0, 1) per sample, shape (B,), float64, on the host: training times are made of them."""
        ...

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """W(t1) − W(t0) of a Brownian path on [0, 1], shape (B, *event), the same for every grid."""
        ...

    def fork(self, name: str) -> NoiseSource:
        """An independent source with the same seeds, e.g. ``"dropout"``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(OneLine):
    """The `NoiseSource` of this library: one 64-bit seed per sample.

    ``shared`` is the seed of the numbers common to the batch (`uniform`). Build it with `Noise.of` unless you hold
    per-sample seeds already.

    >>> a = Noise.of(0, range(4)).normal("prior", (3, 8, 8))
    >>> b = Noise.of(0, range(2, 4)).normal("prior", (3, 8, 8))
    >>> bool((a[2:] == b).all())
    True
    """

    seeds: tuple[int, ...]
    shared: int = 0
    name: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @classmethod
    @typed(UsageError)
    def of(
        cls, seed: int, samples: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Noise:
        """Noise for the samples with these numbers in the stream of ``seed``: sample i always sees the same noise."""
        seeds = tuple(mix(seed, i) for i in samples)
        return cls(seeds=seeds, shared=seed, device=torch.device(device), dtype=dtype)

    def fork(self, name: str) -> Noise:
        """An independent source with the same seeds."""
        return replace(self, name=f"{self.name}/{len(name)}:{name}")

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Standard normal noise, shape (B, *event); no number exceeds 6.8 in size."""
        return to_device(self._normal(key, event), self.device, self.dtype)

    def uniform(self, key: Key) -> float:
        """One number in [0, 1) for the whole batch."""
        word = np.random.Philox(key=mix(self.shared, "shared") | self._stream(key) << 64).random_raw()
        return (int(word) >> 11) * 2.0**-53

    def uniform_per_sample(self, key: Key) -> Tensor:
        """One number in [0, 1) per sample, shape (B,), float64, on the host."""
        words = (self._raw(key, 1)[:, 0] >> np.uint64(11)).astype(np.float64)
        return torch.as_tensor(words * 2.0**-53)

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """W(t1) − W(t0), shape (B, *event): Lévy's midpoint construction, every node keyed by its place in the tree.

        Raises:
            GridError: a time lies outside [0, 1].
        """
        if not (0.0 <= t0 <= 1.0 and 0.0 <= t1 <= 1.0):
            raise GridError(f"Brownian times must lie in [0, 1], got {t0} and {t1}: divide by the span of the path")
        nodes: dict[tuple[int, int], Tensor] = {}  # the two ends share the top of the tree
        change = self._brownian(key, t1, event, nodes) - self._brownian(key, t0, event, nodes)
        return to_device(change, self.device, self.dtype)

    def _brownian(self, key: Key, t: float, event: Sequence[int], nodes: dict[tuple[int, int], Tensor]) -> Tensor:
        """W(t) in float32 on the host, whatever the precision asked for: the tree adds up to thirty terms."""
        parts = key if isinstance(key, tuple) else (key,)

        def node(level: int, place: int) -> Tensor:
            if (level, place) not in nodes:
                nodes[level, place] = self._normal((*parts, "W", level, place), event)
            return nodes[level, place]

        right, lo, hi = node(0, 0), 0.0, 1.0
        left = torch.zeros_like(right)
        if t == 0.0:
            return left
        for level in range(1, _DEPTH + 1):
            if t == hi:
                return right
            mid = 0.5 * (lo + hi)
            centre = 0.5 * (left + right) + math.sqrt(0.25 * (hi - lo)) * node(level, int(mid * 2**level))
            if t < mid:
                hi, right = mid, centre
            else:
                lo, left = mid, centre
        return left + (right - left) * ((t - lo) / (hi - lo))

    def _stream(self, key: Key) -> int:
        return mix(self.name, *(key if isinstance(key, tuple) else (key,)))

    def _normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Standard normal noise, shape (B, *event), float32, on the host."""
        size = math.prod(event)
        half = (size + 1) // 2
        words = self._raw(key, half).view(np.uint32)  # (B, 2·half)
        out = np.empty(words.shape, dtype=np.float32)
        rows = max(1, _BLOCK // max(half, 1))  # a block of rows fits the cache, and small events share the overhead
        for start in range(0, len(out), rows):
            _box_muller(words[start : start + rows], out[start : start + rows])
        return torch.as_tensor(out)[:, :size].reshape(len(self.seeds), *event)

    def _raw(self, key: Key, count: int) -> npt.NDArray[np.uint64]:
        """``count`` 64-bit words per sample, shape (B, count)."""
        stream = self._stream(key)
        # One bit generator, re-keyed for every sample: making a new one costs several times as much.
        philox = np.random.Philox(key=0)
        state: Any = philox.state
        out = np.empty((len(self.seeds), count), dtype=np.uint64)
        for row, seed in zip(out, self.seeds, strict=True):
            state["state"]["key"][:] = (seed, stream)
            philox.state = state
            row[:] = philox.random_raw(count)
        return out


def _box_muller(words: npt.NDArray[np.uint32], out: npt.NDArray[np.float32]) -> None:
    """Box and Muller's map of words (rows, 2n) to normal numbers (rows, 2n), the same bits everywhere.

    numpy's own log, cos and sin differ in the last bit between processors; the series below do not. Their errors are
    under 10⁻⁶, and the law is that of the exact map to within the float32 grid.
    """
    half = words.shape[1] // 2
    # (w + ½)·2⁻³² lies in [2⁻³³, 1]: never zero, and with all its digits in the tail, where they matter.
    uniform = words[:, :half].astype(np.float32)
    uniform += _F(0.5)
    uniform *= _F(2.0**-32)
    radius = np.sqrt(_minus_two_log(uniform))
    # A quarter of the angle, in [−π/4, π/4], by its Taylor series; then doubled twice.
    angle = words[:, half:].view(np.int32).astype(np.float32)
    angle *= _F(math.pi * 2.0**-33)
    square = angle * angle
    sine = _series(square, (1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0))
    sine *= angle
    cosine = _series(square, (1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0))
    for _ in range(2):
        cosine *= sine
        cosine += cosine
        sine *= sine
        sine *= _F(-2.0)
        sine += _F(1.0)
        sine, cosine = cosine, sine
    np.multiply(cosine, radius, out=out[:, :half])
    np.multiply(sine, radius, out=out[:, half:])


def _minus_two_log(u: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """−2·log u for u in (0, 1], in place of u: log u = e·log 2 + 2·artanh((m − 1)/(m + 1)), u = m·2ᵉ, m ∈ [√½, √2)."""
    bits = u.view(np.int32)
    bits -= _ROOT_HALF
    exponent = (bits >> np.int32(23)).astype(np.float32)
    bits &= np.int32(0x7FFFFF)
    bits += _ROOT_HALF
    ratio = u - _F(1.0)
    u += _F(1.0)
    ratio /= u
    square = np.multiply(ratio, ratio, dtype=np.float32)
    out = _series(square, (-4 / 9, -4 / 7, -4 / 5, -4 / 3, -4.0))
    out *= ratio
    exponent *= _F(-2.0 * math.log(2.0))
    out += exponent
    return out


def _series(x: npt.NDArray[np.float32], coefficients: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """A polynomial by Horner's rule, highest power first."""
    out = x * _F(coefficients[0])
    out += _F(coefficients[1])
    for coefficient in coefficients[2:]:
        out *= x
        out += _F(coefficient)
    return out
