"""`sample` and `stream`: images from a denoiser in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import grids
from .denoisers import DenoiserLike, codec_of, grid_of
from .errors import GridError, UsageError
from .grids import GridLike, times_of
from .guidance.boost import Boosted
from .interpolation import Latents
from .paths import PyramidPath
from .paths.base import Cond, Path
from .randomness import Noise, NoiseSource
from .samplers import DDIM, Event, Sampler, auto, default_for, run, solve, steps_for
from .samplers import sampler as sampler_named
from .samplers import stream as stream_steps
from .samplers.auto import rule_for

if TYPE_CHECKING:
    from .latents import Codec


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """A resolved call: the sampler, its times, and the shape of one clean sample."""

    sampler: Sampler
    times: tuple[float, ...]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


def usual_steps(path: Path, steps: int | None) -> int:
    """The number of steps that was asked for, or 20; on a pyramid one a level.

    Raises:
        GridError: a pyramid and another number.
    """
    if not isinstance(path, PyramidPath):
        return 20 if steps is None else steps
    if steps not in {None, path.levels}:
        raise GridError(f"a pyramid takes one step a level, {path.levels} here, got {steps}: leave the number out")
    return path.levels


def resolve(
    model: DenoiserLike,
    sampler: str | Sampler | None,
    steps: int | None,
    evaluations: int | None,
    grid: GridLike | None,
    shape: Sequence[int] | None,
    dtype: torch.dtype = torch.float32,
) -> SamplingPlan:
    """Turn the arguments of `sample` into values, refusing what does not fit together.

    Raises:
        UsageError: no shape is known, or more than one of steps, evaluations and grid is given.
        GridError: steps that the path does not have (see `usual_steps`).
    """
    event = tuple(shape) if shape is not None else getattr(model, "shape", None)
    if event is None:
        raise UsageError("the model does not know the shape of a sample: pass shape=(channels, height, width)")
    if sum(given is not None for given in (steps, evaluations, grid)) > 1:
        raise UsageError("give one of steps, evaluations and grid, not several")
    rule: Sampler
    if sampler is None:
        sampler = default_for(model.path)
    own = grid_of(model)
    if sampler == "auto" and own is not None and grid is None:
        rule, times = DDIM(), times_of(own(steps if evaluations is None else evaluations), model.path)
    elif sampler == "auto":
        rule, times = _chosen(
            model.path, next((n for n in (steps, evaluations) if n is not None), 20), grid, math.prod(event)
        )
    elif grid is not None:
        rule, times = sampler_named(sampler, import_paths=True), times_of(grid, model.path)
    elif evaluations is not None:
        rule = sampler_named(sampler, import_paths=True)
        family = grids.default if own is None else lambda _, count: own(count)
        times = times_of(steps_for(rule, model.path, evaluations, family), model.path)
    elif own is not None:
        rule, times = sampler_named(sampler, import_paths=True), times_of(own(steps), model.path)
    else:
        rule = sampler_named(sampler, import_paths=True)
        times = times_of(grids.default(model.path, usual_steps(model.path, steps)), model.path)
    if len(times) < 2:
        raise GridError(f"a grid needs at least two times, got {list(times)}: for example [1.0, 0.5, 0.0]")
    device = getattr(model, "device", torch.device("cpu"))
    return SamplingPlan(sampler=rule, times=times, shape=event, device=device, dtype=dtype)


def _chosen(path: Path, evaluations: int, grid: GridLike | None, size: int) -> tuple[Sampler, tuple[float, ...]]:
    """What "auto" means: both sampler and grid, or the sampler alone where the grid is given."""
    if grid is None:
        rule, own = auto(path, evaluations, size)
        return rule, times_of(own, path)
    times = times_of(grid, path)
    return rule_for(path, len(times) - 1), times


def sample(
    model: DenoiserLike,
    n: int = 1,
    *,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    evaluations: int | None = None,
    grid: GridLike | None = None,
    seed: int = 0,
    first: int = 0,
    noise: Latents | None = None,
    batch: int | None = None,
    cond: Cond | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    strict: bool = False,
    decode: bool = True,
    prior_scale: float = 1.0,
    skip_steps: int = 0,
) -> Tensor:
    """Draw ``n`` samples, shape (n, *shape), images in about [−1, 1].

    Sample number i sees the noise of (seed, i) whatever the batch, so ``n=16`` equals two calls of 8 with ``first`` 0
    and 8. Networks and sums round differently at another batch size; ``strict=True`` draws one sample at a time, which
    makes the images bit-equal for every ``batch`` and split, in every dtype, at the price of speed.

    Args:
        model: a `Denoiser`, or a guidance around one.
        n: how many.
        sampler: a name from `ornstein.samplers.SAMPLERS`, a sampler, the import path "package.module:Class" of your own
            (which imports that module), or "auto": sampler and grid by path and number of evaluations (with ``grid``:
            the sampler alone). By default `samplers.default_for` the path: "dpmpp-2m", or "ancestral" on a pyramid.
        steps: length of the default grid (20); of a model with grids of its own, their number of evaluations.
        evaluations: instead of steps, the number of network evaluations not to be exceeded.
        grid: instead of both, a grid or a list of times.
        seed: the stream of samples.
        first: number of the first sample in the stream.
        noise: instead of seed and first, other noise: images between images, see `ornstein.interpolation`.
        batch: samples at a time (default: all; with ``strict`` always one).
        cond: condition; each tensor has n rows, or one to repeat.
        shape: clean event (C, H, W); known already to a model that was loaded.
        dtype: of the state.
        strict: see above.
        decode: turn the samples of a model of latents into pictures with its codec; False leaves them as they are.
        prior_scale: start from so many times the usual noise (Boost-and-Skip, see `ornstein.guidance.boost`).
        skip_steps: leave out so many steps at the beginning of the grid.

    Raises:
        UsageError: arguments that do not fit together (and its subclasses for paths and grids).

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: torch.zeros_like(x), path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    >>> orn.sample(model, n=2, steps=5).abs().max().item()
    0.0
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}")
    request = skipped(resolve(model, sampler, steps, evaluations, grid, shape, dtype), skip_steps)
    if batch is not None and batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    size = 1 if strict else n if batch is None else batch
    parts: list[Tensor] = []
    codec = codec_of(model) if decode else None
    with _repeatable(strict):
        for start in range(0, n, size):
            rows = range(start, min(start + size, n))
            part = model if cond is None else model.with_condition(_slice(cond, rows, n))
            samples = range(first + rows.start, first + rows.stop)
            source = None if noise is None else noise(rows, request.device, request.dtype)
            x, source = _begin(part.path, request, seed, samples, prior_scale, source)
            clean = run(solve(request.sampler, part.path, x, request.times, source), part)
            parts.append(clean if codec is None else _decoded(codec, clean))
    return torch.cat(parts)


def stream(
    model: DenoiserLike,
    n: int = 1,
    *,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    evaluations: int | None = None,
    grid: GridLike | None = None,
    seed: int = 0,
    first: int = 0,
    cond: Cond | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    prior_scale: float = 1.0,
    skip_steps: int = 0,
) -> Iterator[Event]:
    """The same as one batch of `sample`, seen evaluation by evaluation; the last event's ``x`` is the result.

    Nothing is decoded: the events of a model of latents hold latents.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: torch.zeros_like(x), path=orn.VE(), predicts="clean", shape=(1, 4, 4))
    >>> [event.evaluation for event in orn.stream(model, sampler=orn.samplers.Heun(), grid=orn.grids.karras(3))]
    [1, 2, 3, 4, 5, 5]
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}")
    request = skipped(resolve(model, sampler, steps, evaluations, grid, shape, dtype), skip_steps)
    bound = model if cond is None else model.with_condition(cond)
    x, noise = _begin(bound.path, request, seed, range(first, first + n), prior_scale)
    return stream_steps(solve(request.sampler, bound.path, x, request.times, noise), bound)


def _begin(
    path: Path, request: SamplingPlan, seed: int, samples: range, prior_scale: float, noise: NoiseSource | None = None
) -> tuple[Tensor, NoiseSource]:
    noise = Noise.of(seed, samples, device=request.device, dtype=request.dtype) if noise is None else noise
    source = noise if prior_scale == 1.0 else Boosted(noise, prior_scale)
    return path.prior(source, request.shape, request.times[0]), source


def skipped(request: SamplingPlan, steps: int) -> SamplingPlan:
    """The request without its first ``steps`` steps; `GridError` where none would be left."""
    return replace(request, times=grids.without_first(request.times, steps)) if steps else request


def _slice(cond: Cond, rows: range, n: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, value in cond.items():
        if value.shape[0] not in (1, n):
            raise UsageError(f"condition {key!r} has {value.shape[0]} rows: it needs {n}, or one to repeat")
        out[key] = value if value.shape[0] == 1 else value[rows.start : rows.stop]
    return out


@torch.no_grad()
def _decoded(codec: Codec, latents: Tensor) -> Tensor:
    """Pictures of latents."""
    return codec.decode(latents)


@contextmanager
def _repeatable(strict: bool) -> Iterator[None]:
    """Deterministic kernels for the length of a strict call."""
    if not strict:
        yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA refuses deterministic products without it
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
