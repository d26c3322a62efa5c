"""From a source to an endless, exactly reproducible stream of batches.

Position p = 0, 1, 2, … counts samples over all epochs. Which example stands at p, and whether it is mirrored, is a pure
function of (source, seed, p); the number of workers, ranks and restarts changes no bit.
"""

from __future__ import annotations

import itertools
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ornstein.data.base import Example, Source, UnreadableError
from ornstein.errors import ConfigError, DataError, StorageError
from ornstein.randomness import generator, mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples for one training step.

    ``images`` is float32 (B, 3, R, R) in [−1, 1] (or what a source of latents holds); ``labels`` int64 (B,), −1 for
    none; ``positions`` are the samples' places in the stream; ``skipped`` holds ``(name, reason)`` of the unreadable
    files met while making this batch, each replaced by the next readable example.
    """

    images: Tensor
    labels: Tensor
    captions: list[str]
    positions: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """Which example stands at a position: epoch e = ⌊p / length⌋ is a permutation keyed by (seed, e).

    >>> order = Order(seed=0, length=5)
    >>> sorted(order.index(p) for p in range(5, 10))
    [0, 1, 2, 3, 4]
    """

    seed: int
    length: int
    shuffle: bool = True

    def index(self, position: int) -> int:
        """The index of the example at ``position`` ≥ 0."""
        epoch, place = divmod(position, self.length)
        return int(_permutation(self.seed, self.length, epoch)[place]) if self.shuffle else place


@lru_cache(maxsize=4)
def _permutation(seed: int, length: int, epoch: int) -> npt.NDArray[np.int64]:
    return generator(seed, "epoch", epoch).permutation(length)


def batches(
    source: Source,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    flip: bool = False,
    shuffle: bool = True,
    count: int | None = None,
) -> Iterator[Batch]:
    """``count`` batches, or endlessly many: step k covers the positions [start + k·batch, start + (k+1)·batch).

    Rank r of ``world`` gets the r-th contiguous chunk of batch/world of them. ``flip`` mirrors a sample left to right
    with probability ½, by (seed, position). With ``workers`` > 0 that many processes prepare whole batches ahead; they
    start at the first ``next`` and end when the iterator is closed or dropped.

    Raises `ConfigError` for impossible numbers and `DataError` for a source in which nothing can be read.
    """
    if batch < 1 or world < 1 or batch % world:
        raise ConfigError(f"batch {batch} cannot be shared by {world} processes: use a positive multiple of {world}")
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is outside 0 … {world - 1}")
    if start < 0 or workers < 0:
        raise ConfigError(f"start and workers must not be negative, got {start} and {workers}")
    if len(source) == 0:
        raise DataError(f"{source.name} holds no examples")
    order = Order(seed, len(source), shuffle)
    return _run(_Steps(source, order, batch, start, rank, world, flip), workers, count)


def read_example(source: Source, index: int) -> tuple[Example, list[tuple[str, str]]]:
    """Example ``index`` or, where that is unreadable, the next readable one; and what was skipped on the way."""
    skipped: list[tuple[str, str]] = []
    for offset in range(len(source)):
        try:
            return source[(index + offset) % len(source)], skipped
        except UnreadableError as error:
            skipped.append((error.name, error.reason))
    name, reason = skipped[0]
    raise DataError(f"none of the {len(source)} images of {source.name} can be read; for example {name}: {reason}")


@dataclass(frozen=True, slots=True)
class _Steps(Dataset[object]):
    """Step k → the uint8 batch of this rank, or the message of a `DataError` (workers mangle exceptions)."""

    source: Source
    order: Order
    batch: int
    start: int
    rank: int
    world: int
    flip: bool

    def __getitem__(self, step: int) -> Batch | str:
        share = self.batch // self.world
        first = self.start + step * self.batch + self.rank * share
        positions = tuple(range(first, first + share))
        try:
            found = [read_example(self.source, self.order.index(p)) for p in positions]
        except DataError as error:
            return str(error)
        images = torch.stack([self._mirrored(e.image, p) for (e, _), p in zip(found, positions, strict=True)])
        return Batch(
            images=images,
            labels=torch.tensor([e.label for e, _ in found], dtype=torch.int64),
            captions=[e.caption for e, _ in found],
            positions=positions,
            skipped=tuple(dict.fromkeys(entry for _, skipped in found for entry in skipped)),
        )

    def _mirrored(self, image: Tensor, position: int) -> Tensor:
        return image.flip(-1) if self.flip and mix(self.order.seed, "flip", position) & 1 else image


class _Count:
    """The sampler 0, 1, 2, …, of ``count`` numbers or endless."""

    def __init__(self, count: int | None) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return itertools.count() if self.count is None else iter(range(self.count))


def _same(item: object) -> object:
    return item


def _no_surprises(workers: int) -> None:
    """Undo the library's signal handler, which raises in the middle of a step if a worker dies; `next` notices too."""
    if not workers or not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    if getattr(signal.getsignal(signal.SIGCHLD), "__module__", "").startswith("torch."):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _run(steps: _Steps, workers: int, count: int | None) -> Iterator[Batch]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="This DataLoader will create"
        )  # more workers than cores is no mistake
        loader = DataLoader(
            steps,
            batch_size=None,
            sampler=_Count(count),
            num_workers=workers,
            collate_fn=_same,
            prefetch_factor=2 if workers else None,
            generator=torch.Generator(),  # otherwise the loader draws a number from the global generator
        )
        stream = iter(loader)  # starts the workers
    del loader
    _no_surprises(workers)
    while True:
        try:
            item = next(stream)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())[:160]
            if not workers or (isinstance(error, RuntimeError) and "worker" not in reason):
                raise
            raise StorageError(f"a process that reads data has died ({reason})") from None
        if isinstance(item, str):
            raise DataError(item)
        yield Batch(
            # Latents are floating point already.
            images=item.images
            if item.images.is_floating_point()
            else item.images.to(torch.float32).div_(127.5).sub_(1.0),
            labels=item.labels,
            captions=item.captions,
            positions=item.positions,
            skipped=item.skipped,
        )
