"""LPIPS diversity: the mean perceptual distance between random pairs of one set's own images."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.errors import UsageError
from ornstein.metrics.blocks import BLOCK, Block, agree, padded
from ornstein.randomness import mix

PAIRS = 500
Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches (B, 3, H, W) of floats in [−1, 1] to distances (B,), as `ornstein.metrics.perceptual.lpips` makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """The mean distance over ``pairs`` disjoint random pairs, and its standard error (None for a single pair)."""

    value: float
    error: float | None
    pairs: int


class DiversityMeter:
    """Gathers E d(x, x′) over pairs of different images of one set, from blocks.

    As in Zhu et al. 2017 (arXiv 1711.11586), §5, with the pairs drawn without replacement: the images with the smallest
    hashes of their indices, paired in the order of the hashes. So the pairs are independent for independent images, the
    estimate is unbiased, and it is the same for any order, batches and number of processes. 0 means that all images
    look alike; the range depends on the distance. A set of n images gives ⌊n/2⌋ pairs, at most ``pairs``.

    State: 2 · pairs images in bytes (12 MB for 500 pairs of 64 × 64 pixels), whatever the number of images.
    """

    def __init__(self, pairs: int = PAIRS) -> None:
        if pairs < 1:
            raise UsageError(f"a diversity needs at least one pair, got {pairs}")
        self.pairs = pairs
        self._heap: list[tuple[int, int, Tensor]] = []  # (−hash, −index, image): the largest hash is on top
        self._resolution: tuple[int, int] | None = None

    def update(self, block: Block) -> None:
        """Take in a block."""
        for index, image in zip(block.indices, block.images, strict=True):
            self._resolution = agree(self._resolution, (image.shape[-2], image.shape[-1]))
            self._push((-mix("metrics/diversity", index), -index, image))

    def merge(self, other: DiversityMeter) -> None:
        """Take in what another process has seen."""
        if other.pairs != self.pairs:
            raise UsageError(f"cannot merge diversities over {self.pairs} and {other.pairs} pairs: use one number")
        self._resolution = agree(self._resolution, other._resolution)
        for item in other._heap:
            self._push(item)

    def result(self, distance: Distance, device: torch.device | str = "cpu") -> Diversity:
        """The diversity of all that was seen; the distance is computed in batches of exactly 32 pairs."""
        images = [image for _, _, image in sorted(self._heap, key=lambda item: (-item[0], -item[1]))]
        pairs = len(images) // 2
        if not pairs:
            raise UsageError(f"a diversity needs at least 2 images, got {len(images)}: give more")
        found: list[float] = []
        for start in range(0, pairs, BLOCK):
            rows = range(start, min(start + BLOCK, pairs))
            a, b = (_floats(torch.stack([images[2 * i + side] for i in rows]), device) for side in (0, 1))
            with (
                torch.inference_mode(),
                torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False),
            ):
                found += distance(a, b)[: len(rows)].double().cpu().tolist()
        mean = math.fsum(found) / pairs
        error = None
        if pairs > 1:
            error = math.sqrt(math.fsum((one - mean) ** 2 for one in found) / (pairs - 1) / pairs)
        return Diversity(value=mean, error=error, pairs=pairs)

    def _push(self, item: tuple[int, int, Tensor]) -> None:
        if len(self._heap) < 2 * self.pairs:
            heapq.heappush(self._heap, (item[0], item[1], item[2].clone()))
        elif item[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, (item[0], item[1], item[2].clone()))


def _floats(images: Tensor, device: torch.device | str) -> Tensor:
    return padded(images).to(device=device, dtype=torch.float32) / 127.5 - 1.0
