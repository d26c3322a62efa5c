"""`sample` and `stream`: images from a denoiser in one call."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from . import checks
from .denoisers import Denoiser, DenoiserInfo, DenoiserLike, info_of
from .editing import Beginning, beginning
from .errors import NotFiniteError, UsageError
from .estimates import Estimate
from .grids import GridLike
from .guidance.boost import Boosted
from .interpolation import Latents
from .paths.base import AffinePath, Cond
from .progress import Progress, check_progress, counted
from .randomness import Noise, NoiseSource
from .samplers import Event, Sampler, plan, run, solve
from .samplers import stream as stream_steps
from .sampling_plan import SamplingPlan, resolve, skipped

if TYPE_CHECKING:
    from .latents import Codec


def _check_call(n: Any, seed: Any, first: Any, prior_scale: Any, skip_steps: Any, cond: Any) -> None:
    """Refuse numbers and conditions that are none; n, first and skip_steps are whole numbers."""
    checks.whole("n", n, 1)
    checks.whole("seed", seed)
    checks.whole("first", first, 0)
    checks.whole("skip_steps", skip_steps, 0)
    checks.real("prior_scale", prior_scale, least=0.0, error=UsageError)
    if cond is not None:
        checks.conditions(cond)


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
    start: Tensor | None = None,
    strength: float | None = None,
    mask: Tensor | None = None,
    progress: Progress = False,
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
        start: pictures to begin from instead of noise, (n or 1, C, H, W) or (C, H, W) in [−1, 1], in pixels also where
            the model is one of latents; see `ornstein.editing`.
        strength: the noise level (2/π)·arctan(σ/α) that they are taken to, in (0, 1]: 0.3 keeps most of a picture, 1
            nothing; 0.6 by default, and 1 with a mask. All steps are taken below it.
        mask: 1 where a picture is redrawn, 0 where it stays as it is: (H, W), or with channels and rows like ``start``.
        progress: True for a bar on stderr, or a function that is called with (evaluations done, all of them).

    Raises:
        UsageError: arguments that do not fit together (and its subclasses for paths and grids).

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: torch.zeros_like(x), path=orn.VP(), predicts="clean", shape=(3, 8, 8))
    >>> orn.sample(model, n=2, steps=5).abs().max().item()
    0.0
    """
    _check_call(n, seed, first, prior_scale, skip_steps, cond)
    checks.flag("strict", strict)
    checks.flag("decode", decode)
    check_progress(progress)
    if batch is not None:
        checks.whole("batch", batch, 1)
    if noise is not None:
        checks.function("noise", noise, "one of ornstein.interpolation", UsageError)
    strength = _strength(start, strength, mask, prior_scale, skip_steps)
    request = skipped(resolve(model, sampler, steps, evaluations, grid, shape, dtype, strength), skip_steps)
    codec = info_of(model).codec
    begun = beginning(start, strength, mask, shape=_finished(request.shape, None if start is None else codec), n=n)
    codec = codec if decode else None
    size = 1 if strict else n if batch is None else batch
    parts: list[Tensor] = []

    def total() -> int:
        handovers = info_of(model).handovers
        return len(plan(request.sampler, model.path, request.times, seed, handovers)) * math.ceil(n / size)

    with _repeatable(strict), counted(progress, total) as tick:
        for low in range(0, n, size):
            rows = range(low, min(low + size, n))
            part = model if cond is None else model.with_condition(_slice(cond, rows, n))
            samples = range(first + rows.start, first + rows.stop)
            source = None if noise is None else noise(rows, request.device, request.dtype)
            pictures = None if begun is None else begun.rows(rows, n)
            x, part, source = _begin(part, request, seed, samples, prior_scale, source, pictures)
            watched = _Watched(part, tick)
            descent = solve(request.sampler, part.path, x, request.times, source, info_of(part).handovers)
            clean = run(descent, cast("DenoiserLike", watched))
            watched.check_result(clean, request.sampler)
            clean = clean if codec is None else _decoded(codec, clean)
            parts.append(clean if pictures is None or not decode else pictures.pasted(clean))
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
    start: Tensor | None = None,
    strength: float | None = None,
    mask: Tensor | None = None,
) -> Iterator[Event]:
    """The same as one batch of `sample`, seen evaluation by evaluation; the last event's ``x`` is the result.

    Nothing is decoded: the events of a model of latents hold latents.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: torch.zeros_like(x), path=orn.VE(), predicts="clean", shape=(1, 4, 4))
    >>> [event.evaluation for event in orn.stream(model, sampler=orn.samplers.DPMSolver2S(), grid=orn.grids.karras(3))]
    [1, 2, 3, 4, 5, 5]
    """
    _check_call(n, seed, first, prior_scale, skip_steps, cond)
    strength = _strength(start, strength, mask, prior_scale, skip_steps)
    request = skipped(resolve(model, sampler, steps, evaluations, grid, shape, dtype, strength), skip_steps)
    begun = beginning(
        start, strength, mask, shape=_finished(request.shape, None if start is None else info_of(model).codec), n=n
    )
    bound = model if cond is None else model.with_condition(cond)
    x, bound, noise = _begin(bound, request, seed, range(first, first + n), prior_scale, None, begun)
    watched = _Watched(bound)
    steps_ = solve(request.sampler, bound.path, x, request.times, noise, info_of(bound).handovers)
    return _checked(stream_steps(steps_, cast("DenoiserLike", watched)), watched, request.sampler)


def _checked(events: Iterator[Event], watched: _Watched, sampler: Sampler) -> Iterator[Event]:
    for event in events:
        if event.final:
            watched.check_result(event.x, sampler)
        yield event


@dataclass(slots=True)
class _Watched:
    """The denoiser of one descent, whose estimates must be finite.

    The host checks the first estimate and the result; in between the device notes what it sees, so that nothing
    waits for it, and the message can still name the evaluation that failed.
    """

    denoiser: DenoiserLike
    tick: Callable[[], object] = lambda: None
    finite: list[tuple[float, Tensor]] = field(default_factory=list[tuple[float, Tensor]])

    def __post_init__(self) -> None:
        info = info_of(self.denoiser)
        info.check_conditions()
        _warn_of_training(info)

    def __call__(self, x: Tensor, t: float) -> Estimate:
        answer = self.denoiser(x, t)
        if not isinstance(answer, Estimate):  # pyright: ignore[reportUnnecessaryIsInstance] - a stranger's denoiser
            raise UsageError(f"a denoiser must return an ornstein.Estimate, got {type(answer).__name__}")
        if answer.x.device.type != "meta":
            self.finite.append((t, torch.isfinite(answer.prediction).all()))
        if len(self.finite) == 1:
            self._check_answers()
        self.tick()
        return answer

    def check_result(self, x: Tensor, sampler: Sampler) -> None:
        """Raise `NotFiniteError` unless every estimate, and the state x at the end, is finite."""
        self._check_answers()
        if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
            raise NotFiniteError(
                f"{type(sampler).__name__} left the range of {str(x.dtype).removeprefix('torch.')}: every estimate was "
                "finite, its result is not; take more steps, another sampler or a wider dtype"
            )

    def _check_answers(self) -> None:
        flags = torch.stack([flag for _, flag in self.finite]).tolist() if self.finite else []
        if all(flags):
            return
        index = flags.index(False)
        t, plain = self.finite[index][0], isinstance(self.denoiser, Denoiser)
        at = f"t = {t:g}"
        if isinstance(path := self.denoiser.path, AffinePath):
            at += f", noise level σ/α = {path.sigma_bar(t):.3g}"
        remedy = (
            "look at the network's weights and precision"
            if plain
            else "weaken the guides, take more steps, or look at the network's weights"
        )
        raise NotFiniteError(f"evaluation {index + 1}, at {at}, gave numbers that are not finite: {remedy}")


def _warn_of_training(info: DenoiserInfo) -> None:
    """One line where the network's training mode changes what it returns."""
    net = info.module
    if net is None or not net.training:
        return
    for part in net.modules():
        random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0.0  # pyright: ignore[reportPrivateUsage]
        if part.training and (random or isinstance(part, nn.modules.batchnorm._BatchNorm)):  # pyright: ignore[reportPrivateUsage]
            warnings.warn(
                f"the network is in training mode and has {type(part).__name__} layers: call eval() before sampling",
                stacklevel=4,
            )
            return


def _begin(
    model: DenoiserLike,
    request: SamplingPlan,
    seed: int,
    samples: range,
    prior_scale: float,
    noise: NoiseSource | None,
    begun: Beginning | None,
) -> tuple[Tensor, DenoiserLike, NoiseSource]:
    """The first state, the denoiser (which knows the masked region) and the noise of these samples."""
    noise = Noise.of(seed, samples, device=request.device, dtype=request.dtype) if noise is None else noise
    path, top = model.path, request.times[0]
    if begun is None:
        source = noise if prior_scale == 1.0 else Boosted(noise, prior_scale)
        return path.prior(source, request.shape, top), model, source
    begun = begun.encoded(info_of(model).codec, request.device, request.dtype)
    known = begun.known(path)
    return begun.state(path, noise, top), model if known is None else known(model), noise


def _strength(
    start: Tensor | None, strength: float | None, mask: Tensor | None, prior_scale: float, skip_steps: int
) -> float | None:
    """The noise level of ``start``; None without one."""
    if start is None:
        return strength
    if prior_scale != 1.0 or skip_steps:
        raise UsageError(
            "prior_scale and skip_steps change the start from noise, and start= begins at pictures: leave them out"
        )
    return (0.6 if mask is None else 1.0) if strength is None else strength


def _finished(shape: tuple[int, ...], codec: Codec | None) -> tuple[int, ...]:
    """The shape of a decoded sample."""
    return shape if codec is None else (3, *(side * codec.factor for side in shape[1:]))


def _slice(cond: Cond, rows: range, n: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, value in cond.items():
        count = value.shape[0] if value.ndim else 0
        if count not in (1, n):
            raise UsageError(f"condition {key!r} has {count} rows: it needs {n}, or one to repeat")
        out[key] = value if value.shape[0] == 1 else value[rows.start : rows.stop]
    return out


@torch.no_grad()
def _decoded(codec: Codec, latents: Tensor) -> Tensor:
    """Pictures of latents."""
    return codec.decode(latents)


class _Deterministic:
    """Torch's deterministic mode, which belongs to the process: on while a strict call runs, in any thread."""

    def __init__(self) -> None:
        self.lock, self.calls, self.before = threading.Lock(), 0, (False, False)

    def __enter__(self) -> None:
        with self.lock:
            if self.calls == 0:
                self.before = (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                )
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA refuses such products without it
                torch.use_deterministic_algorithms(True)
            self.calls += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.calls -= 1
            if self.calls == 0:
                torch.use_deterministic_algorithms(self.before[0], warn_only=self.before[1])


_deterministic = _Deterministic()


@contextmanager
def _repeatable(strict: bool) -> Iterator[None]:
    """Deterministic kernels for the length of a strict call."""
    with _deterministic if strict else nullcontext():
        yield
