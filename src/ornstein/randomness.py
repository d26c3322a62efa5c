"""The one source of randomness: every number is a pure function of (seed of the sample, key).

Nothing here has a position or a history, so splitting a batch, reordering it, or resuming after a crash changes no
bit. The generator is Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), whose
128-bit key is exactly (64-bit seed of the sample, 64-bit hash of the key), so two different (seed, key) pairs never
share a stream by construction except through a hash collision (probability 2⁻⁶⁴ a pair).

Numbers are drawn on the host in float32 and then moved and cast, so a run sees the same noise on every device and at
every precision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Key = int | str | tuple[int | str, ...]

_DEPTH = 30  # levels of the Brownian tree: increments are exact down to 2⁻³⁰ of the unit interval


@lru_cache(maxsize=65536)
def mix(*parts: int | str) -> int:
    """A 64-bit integer that depends on every part and on their order (BLAKE2b; stable across machines and versions)."""
    # Each part carries its type and length, so that ("a", "b") and ("ab",) or 1 and "1" can never read the same.
    text = b"".join(b"%s%d:%s" % (type(p).__name__[:1].encode(), len(str(p)), str(p).encode()) for p in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator keyed by ``parts``: for permutations, crops and whatever else is drawn on the host."""
    return np.random.Generator(np.random.Philox(key=mix(*parts)))


class NoiseSource(Protocol):
    """All randomness of sampling and training; see the module's text for the law it obeys."""

    def white(self, key: Key, event: Sequence[int]) -> Tensor:
        """Standard normal noise, shape (B, *event)."""
        ...

    def uniform(self, key: Key) -> float:
        """One number in [0, 1) for the whole batch, on the host: it does not depend on how the batch is split."""
        ...

    def uniforms(self, key: Key) -> Tensor:
        """One number in [0, 1) per sample, shape (B,), float64."""
        ...

    def increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """W(t1) − W(t0) of a Brownian path on [0, 1], shape (B, *event), whatever the grid it is asked on."""
        ...

    def fork(self, name: str) -> NoiseSource:
        """An independent source with the same seeds, e.g. ``"dropout"``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The `NoiseSource` of this library: one 64-bit seed per sample.

    ``shared`` is the seed of the numbers common to the batch (`uniform`). Build it with `Noise.of` unless you hold
    per-sample seeds already.

    >>> a = Noise.of(0, range(4)).white("prior", (3, 8, 8))
    >>> b = Noise.of(0, range(2, 4)).white("prior", (3, 8, 8))
    >>> bool((a[2:] == b).all())
    True
    """

    seeds: tuple[int, ...]
    shared: int = 0
    name: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls, seed: int, samples: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Noise:
        """Noise for the samples with these numbers in the stream of ``seed``: sample i always sees the same noise."""
        seeds = tuple(mix(seed, i) for i in samples)
        return cls(seeds=seeds, shared=seed, device=torch.device(device), dtype=dtype)

    def fork(self, name: str) -> Noise:
        """An independent source with the same seeds."""
        return replace(self, name=f"{self.name}/{name}")

    def white(self, key: Key, event: Sequence[int]) -> Tensor:
        """Standard normal noise, shape (B, *event): Box and Muller's map of the raw 32-bit words."""
        size = math.prod(event)
        half = (size + 1) // 2
        words = torch.from_numpy(self._raw(key, half).view(np.int32))  # (B, 2 half), signed
        # (w + ½) · 2⁻³² + ½ lies in (0, 1], so the logarithm is finite and |noise| ≤ 6.8.
        radius = words[:, :half].to(torch.float32).mul_(2.0**-32).add_(0.5 + 2.0**-33).log_().mul_(-2.0).sqrt_()
        angle = words[:, half:].to(torch.float32).mul_(math.pi * 2.0**-31)
        out = torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=1)
        return out[:, :size].reshape(len(self.seeds), *event).to(device=self.device, dtype=self.dtype)

    def uniform(self, key: Key) -> float:
        """One number in [0, 1) for the whole batch."""
        return float(np.random.Philox(key=_philox_key(mix(self.shared, "shared"), self._stream(key))).random_raw() >> 11) * 2.0**-53

    def uniforms(self, key: Key) -> Tensor:
        """One number in [0, 1) per sample, shape (B,), float64."""
        words = (self._raw(key, 1)[:, 0] >> np.uint64(11)).astype(np.float64)
        return torch.from_numpy(words * 2.0**-53).to(self.device)

    def increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """W(t1) − W(t0), shape (B, *event): Lévy's midpoint construction, every node keyed by its place in the tree."""
        if not (0.0 <= t0 <= 1.0 and 0.0 <= t1 <= 1.0):
            raise ValueError(f"Brownian times must lie in [0, 1], got {t0} and {t1}: divide by the span of the path")
        return self._brownian(key, t1, event) - self._brownian(key, t0, event)

    def _brownian(self, key: Key, t: float, event: Sequence[int]) -> Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        left, right, lo, hi = torch.zeros(()), self.white((*parts, "W", 0, 0), event), 0.0, 1.0
        if t == 0.0:
            return torch.zeros_like(right)
        for level in range(1, _DEPTH + 1):
            if t == hi:
                return right
            mid = 0.5 * (lo + hi)
            bridge = math.sqrt(0.25 * (hi - lo)) * self.white((*parts, "W", level, int(mid * 2**level)), event)
            centre = 0.5 * (left + right) + bridge
            if t < mid:
                hi, right = mid, centre
            else:
                lo, left = mid, centre
        return left + (right - left) * ((t - lo) / (hi - lo))

    def _stream(self, key: Key) -> int:
        return mix(self.name, *(key if isinstance(key, tuple) else (key,)))

    def _raw(self, key: Key, count: int) -> npt.NDArray[np.uint64]:
        """``count`` 64-bit words per sample, shape (B, count)."""
        stream = self._stream(key)
        # One bit generator, re-keyed for every sample: making a new one costs ten times as much.
        philox = np.random.Philox(key=0)
        state = philox.state
        out = np.empty((len(self.seeds), count), dtype=np.uint64)
        for row, seed in zip(out, self.seeds, strict=True):
            state["state"]["key"][:] = (seed, stream)
            philox.state = state
            row[:] = philox.random_raw(count)
        return out


def _philox_key(seed: int, stream: int) -> int:
    return seed | stream << 64
