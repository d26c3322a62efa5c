"""Image-to-image and inpainting: a descent that begins at pictures, and a region that it must not change.

With a clean picture x₀ and a noise level given by its **strength**

    s = (2/π)·arctan(σ/α) ∈ (0, 1],        x_t = α·x₀ + σ·z,

sampling begins at x_t instead of pure noise (SDEdit; Meng et al. 2022, sec. 3). s is the noise level itself, the
same on every path: 0.5 is as much noise as signal, 1 is pure noise. What remains of the picture is what is larger
than σ/α.

Outside a mask M (1 where the picture is to be redrawn) the clean estimate is replaced by the picture,

    x̂₀ ← M·x̂₀ + (1 − M)·x₀ ,

which is the exact denoiser of a region that is known: every sampler, deterministic or not and of any order, then
takes that region from its own noise to x₀ (the replacement method, Song et al. 2021, app. I.2, in the form that
needs no loop of its own). A grid that repeats its steps (`grids.resample`) is RePaint (Lugmayr et al. 2022), in
which the two regions agree better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import grids
from .denoisers import DenoiserLike
from .errors import PathError, UsageError
from .estimates import Estimate
from .grids import Grid, GridLike, times_of
from .guidance.base import Rule
from .latents import Codec
from .paths import PyramidPath, ShiftedPath
from .paths.base import AffinePath, Path
from .randomness import NoiseSource
from .scalars import Time

_LONGEST = 4096
"""A grid as long as this is the longest that `below` looks at, or 16 times the steps that were asked for."""


def time_of_strength(path: Path, strength: float) -> float:
    """The time of a noise level.

    On a pyramid, whose noise grows with its levels, s means the level ⌈s·L⌉ of L.

    Args:
        path: an `AffinePath`, a `ShiftedPath` around one, or a `PyramidPath`.
        strength: s = (2/π)·arctan(σ/α), in (0, 1]; levels outside the path's range become its ends.

    Raises:
        UsageError: a strength that is not in (0, 1].
        PathError: a path without noise levels.

    >>> from ornstein.paths import VE, Flow
    >>> round(time_of_strength(Flow(), 0.5), 6), round(time_of_strength(VE(), 0.5), 6)
    (0.5, 1.0)
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0.0 < strength <= 1.0:
        raise UsageError(
            f"strength must be a number above 0 and at most 1, got {strength!r}: 0.3 keeps most of a picture, 0.8 "
            "little"
        )
    base = path.base if isinstance(path, ShiftedPath) else path
    low, high = base.t_range
    if isinstance(base, PyramidPath):
        return float(math.ceil(strength * base.levels))
    if not isinstance(base, AffinePath):
        raise PathError(f"{type(base).__name__} has no noise level σ/α: begin at a time of a grid instead")
    if strength == 1.0:
        return high
    t = base.time_of(-2.0 * math.log(math.tan(0.5 * math.pi * strength)))
    return min(max(t, base.t_min, low), high)


def below(family: Callable[[int], GridLike], steps: int, start: float, path: Path) -> Grid:
    """The grid of a family below ``start`` with the number of steps that was asked for.

    The family's longest grid of which no more than that many steps lie below ``start``, cut there: the whole work is
    done where it matters. The search ends at a grid of some thousands of times, so just above the path's least noise
    there may be fewer steps; at the least noise there is one. On a pyramid, whose steps are its levels, the grid is
    cut alone.
    """

    def cut(count: int) -> tuple[float, ...]:
        return times_of(grids.partial(family(count), start), path)

    if isinstance(path, PyramidPath):
        return Grid(f"below({start:g})", lambda _: cut(steps))
    base = path.base if isinstance(path, ShiftedPath) else path
    if isinstance(base, AffinePath) and start <= base.t_min:
        return Grid(f"below({start:g})", lambda _: (start, cut(1)[-1]))
    low, high, longest = steps, 2 * steps, max(_LONGEST, 16 * steps)
    while len(cut(high)) - 1 <= steps and high < longest:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(cut(middle)) - 1 <= steps else (low, middle)
    times = cut(low)
    return Grid(f"below({steps}, {start:g})", lambda _: times)


@dataclass(frozen=True, slots=True, eq=False)
class KnownRegion(Rule):
    """A guidance under which a region keeps the value of ``clean``: x̂₀ ← M·x̂₀ + (1 − M)·clean.

    Args:
        clean: what is known, (B or 1, *event), in the space of the samples (latents of a model of latents).
        mask: M, broadcast to (B, *event): 1 where the sample is free, 0 where it is known.
    """

    clean: Tensor
    mask: Tensor

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event), known where the mask is 0."""
        estimate = inner(x, t)
        mask = self.mask.to(estimate.clean)
        return estimate.replace(clean=torch.lerp(self.clean.to(estimate.clean), estimate.clean, mask))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beginning:
    """Where a descent begins: pictures, a noise level, and what must stay.

    Args:
        images: (n or 1, C, H, W) in [−1, 1]: pictures, also of a model of latents.
        strength: the noise level, see `time_of_strength`.
        mask: 1 where the picture is redrawn and 0 where it stays; (H, W), (1 or C, H, W) or (n or 1, 1 or C, H, W).
    """

    images: Tensor
    strength: float
    mask: Tensor | None = None

    def rows(self, rows: range, n: int) -> Beginning:
        """The part of these samples."""
        return Beginning(
            images=_rows(self.images, rows, n),
            strength=self.strength,
            mask=None if self.mask is None else _rows(self.mask, rows, n),
        )

    def encoded(self, codec: Codec | None, device: torch.device, dtype: torch.dtype) -> Beginning:
        """In the space of the samples: latents of the pictures, and a mask that is free wherever a pixel of it is."""
        images, mask = self.images.to(device, dtype), None if self.mask is None else self.mask.to(device, dtype)
        if codec is not None:
            with torch.no_grad():
                images = codec.encode(images)
            mask = None if mask is None else functional.max_pool2d(mask.amax(1, keepdim=True), codec.factor)
        return Beginning(images=images, strength=self.strength, mask=mask)

    def state(self, path: Path, noise: NoiseSource, t: float) -> Tensor:
        """x_t of the pictures; with a mask and s = 1, what is redrawn begins as pure noise."""
        rows = noise.normal("prior", path.state_shape(self.images.shape[1:], t))
        clean = self.images.expand(len(rows), *self.images.shape[1:])
        x = path.diffuse(clean, t, rows)
        if self.mask is None or self.strength < 1.0:
            return x
        return torch.lerp(x, path.prior(noise, self.images.shape[1:], t), self.mask.to(x))

    def known(self, path: Path) -> KnownRegion | None:
        """The guidance that keeps what the mask leaves out; None without a mask.

        Raises:
            PathError: a mask on a path whose state changes its shape.
        """
        if self.mask is None:
            return None
        if isinstance(path, PyramidPath):
            raise PathError("a mask needs a path whose state keeps its size, and a pyramid's does not: leave mask out")
        return KnownRegion(self.images, self.mask)

    def pasted(self, images: Tensor) -> Tensor:
        """Finished pictures with the known region exactly as it was given."""
        if self.mask is None:
            return images
        return torch.lerp(self.images.to(images), images, self.mask.to(images))


def beginning(
    images: object, strength: float | None, mask: object, *, shape: tuple[int, ...], n: int
) -> Beginning | None:
    """The arguments ``start``, ``strength`` and ``mask`` of a call, checked; None where all are left out.

    Args:
        images: (n or 1, *shape) or *shape*, finite, about [−1, 1].
        strength: in (0, 1].
        mask: see `Beginning`, values in [0, 1].
        shape: of one finished sample.
        n: samples.

    Raises:
        UsageError: what does not fit, with both shapes.
    """
    if images is None:
        if strength is not None or mask is not None:
            raise UsageError("strength and mask need start: the pictures to begin from")
        return None
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        raise UsageError("start holds bytes (torch.uint8), and pictures are in [−1, 1] here: give x / 127.5 - 1")
    pictures = _tensor(images, "start")
    pictures = pictures[None] if pictures.ndim == len(shape) else pictures
    if tuple(pictures.shape[1:]) != shape or pictures.shape[0] not in (1, n):
        raise UsageError(
            f"start has the shape {tuple(pictures.shape[1:])} in {pictures.shape[0]} rows, and samples here have "
            f"{shape}: give ({n} or 1, "
            f"{', '.join(map(str, shape))}), resized beforehand"
        )
    free = None if mask is None else _mask(mask, shape, n)
    return Beginning(images=pictures, strength=1.0 if strength is None else strength, mask=free)


def _mask(mask: object, shape: tuple[int, ...], n: int) -> Tensor:
    free = _tensor(mask, "mask")
    if free.min() < 0.0 or free.max() > 1.0:
        raise UsageError(
            f"a mask has values from 0 (stays) to 1 (redrawn), got {float(free.min()):g} to {float(free.max()):g}"
        )
    free = free[(None,) * max(0, len(shape) + 1 - free.ndim)] if free.ndim else free
    fits = free.ndim == len(shape) + 1 and all(
        have in (1, want) for have, want in zip(free.shape, (n, *shape), strict=True)
    )
    if not fits or tuple(free.shape[-2:]) != tuple(shape[-2:]):
        raise UsageError(
            f"mask has the shape {tuple(free.shape)}, which does not fit samples of {shape}: give {tuple(shape[-2:])}"
        )
    return free


def _tensor(value: object, name: str) -> Tensor:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if not isinstance(value, Tensor) or not dense or value.is_complex() or not value.ndim or value.numel() == 0:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
        what += "" if dense or not isinstance(value, Tensor) else " that is sparse or has no numbers"
        raise UsageError(f"{name} must be a dense tensor of real numbers, got {what}")
    value = value if value.is_floating_point() else value.float()
    if not bool(value.isfinite().all()):
        raise UsageError(f"{name} holds numbers that are not finite")
    return value


def _rows(value: Tensor, rows: range, n: int) -> Tensor:
    return value if value.shape[0] == 1 and n != 1 else value[rows.start : rows.stop]
