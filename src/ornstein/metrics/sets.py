"""What is kept of a set of images for comparing it: exact sums, a sample of features, and a fingerprint.

The numbers are the same for any batch size and any number of processes, bit for bit, because nothing in them depends
on either: the network always sees aligned blocks of 32 consecutive images (the last one filled up with black), a
process handles whole blocks, and what is added up is added exactly (`ornstein.metrics.frechet`,
`ornstein.metrics.classes`) or chosen by index (`ornstein.metrics.kernel`). The promise holds for one machine, device
and number of threads; another one may compute other last bits *inside* the network.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ornstein.errors import UsageError
from ornstein.metrics import files
from ornstein.metrics.blocks import Block, ImageSource, agree, blocks, padded
from ornstein.metrics.classes import InceptionScoreSums
from ornstein.metrics.features import CLASSES, POOLED, SPATIAL, Features
from ornstein.metrics.frechet import QUANTUM, Moments, quantise
from ornstein.metrics.kernel import CAPACITY, Sample
from ornstein.metrics.vectors import Vectors

VECTORS = "vectors"
KEEPS = (SPATIAL, CLASSES, VECTORS)
"""What `statistics` may keep beside moments and a sample: for sFID, for the inception score, for neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What the metrics need of a set of images, or of the part of it that some processes handled.

    Memory and file size do not grow with the set: 8·width² bytes of moments and 4·5000·width of sampled features
    (39 MB for lite0, 75 MB for Inception), with ``spatial`` 8·width² more (26 and 33 MB), with ``classes`` 80 kB. Only
    ``vectors``, on which neighbour distances are defined, are 4·width bytes an image.
    """

    features: str
    resolution: tuple[int, int] | None  # None while no image was seen
    moments: Moments
    sample: Sample
    fingerprint: int  # Σ hash(number of the image, its bytes) mod 2¹²⁸
    spatial: Moments | None = None
    classes: InceptionScoreSums | None = None
    vectors: Vectors | None = None
    skipped: int = 0  # images that exist but could not be read
    parts: frozenset[int] = frozenset({0})
    world: int = 1
    about: Mapping[str, str] = field(default_factory=dict[str, str])  # what it was made from: source, preprocessing …

    @property
    def count(self) -> int:
        """Number of images."""
        return self.moments.count

    @property
    def complete(self) -> bool:
        """Whether every process's part is in it."""
        return len(self.parts) == self.world

    def merge(self, *others: Statistics) -> Statistics:
        """This and other parts of one set together; the order does not matter.

        Raises `UsageError` for parts of different sets, networks or resolutions, and for a part given twice.
        """
        everything = (self, *others)
        if len({(part.features, part.moments.width) for part in everything}) > 1:
            names = ", ".join(sorted({part.features for part in everything}))
            raise UsageError(f"cannot merge statistics of different features ({names}): use one feature network")
        if len({part.world for part in everything}) > 1:
            worlds = ", ".join(str(part.world) for part in everything)
            raise UsageError(f"cannot merge parts made by different numbers of processes ({worlds})")
        if len({(part.spatial is None, part.classes is None, part.vectors is None) for part in everything}) > 1:
            raise UsageError("cannot merge parts that keep different things: make all parts with the same `keep`")
        ranks = [rank for part in everything for rank in part.parts]
        if len(set(ranks)) < len(ranks):
            raise UsageError(f"cannot merge parts that overlap (ranks {sorted(ranks)}): give each rank's part once")
        moments, sample = Moments(self.moments.width), Sample(self.sample.capacity)
        spatial = None if self.spatial is None else Moments(self.spatial.width)
        classes = None if self.classes is None else InceptionScoreSums(self.classes.splits)
        vectors = None if self.vectors is None else Vectors(self.vectors.width)
        for part in everything:
            moments.merge(part.moments)
            sample.merge(part.sample)
            if spatial is not None and part.spatial is not None:
                spatial = part.spatial if not spatial.width else _merged(spatial, part.spatial)
            if classes is not None and part.classes is not None:
                classes.merge(part.classes)
            if vectors is not None and part.vectors is not None:
                vectors.merge(part.vectors)
        return Statistics(
            features=self.features,
            resolution=functools.reduce(agree, (part.resolution for part in everything)),
            moments=moments,
            sample=sample,
            spatial=spatial,
            classes=classes,
            vectors=vectors,
            fingerprint=sum(part.fingerprint for part in everything) % 2**128,
            skipped=sum(part.skipped for part in everything),
            parts=frozenset(ranks),
            world=self.world,
            about=self.about,
        )

    def save(self, path: str | Path) -> None:
        """Write to ``path``: safetensors with a JSON description and a checksum in its header, put in place at once."""
        files.write(path, [self])

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote. Raises `DataError` for a missing, truncated, damaged or foreign file."""
        return read_statistics(path)[0]

    def __repr__(self) -> str:
        size = "×".join(map(str, self.resolution or ()))
        return f"Statistics({self.features!r}, {self.count} images {size}, parts {sorted(self.parts)} of {self.world})"


def read_statistics(path: str | Path) -> list[Statistics]:
    """The sets in a file that `ornstein.metrics.files.write` wrote.

    Raises `DataError` for a missing, truncated, damaged or foreign file.
    """
    return [Statistics(**fields) for fields in files.read_fields(path)]


def statistics(
    images: Iterable[Any] | ImageSource,
    features: Features,
    *,
    keep: Collection[str] = (),
    rank: int = 0,
    world: int = 1,
    capacity: int = CAPACITY,
    about: Mapping[str, str] | None = None,
) -> Statistics:
    """The statistics of a set of images under a feature network.

    ``images`` is a tensor (N, C, H, W), a source (`ImageSource`; unreadable images are left out and counted), or a list
    or any iterable of single images (C, H, W) or batches (B, C, H, W); always uint8, C = 3 or 1, one resolution. With
    several processes each is given the *whole* set and handles the blocks of 32 images whose number is ``rank`` modulo
    ``world``; of a source or a tensor it reads nothing else. `Statistics.merge` puts the parts together. One block of
    images is held in memory at a time; ``capacity`` vectors are kept for the kernel distance. ``keep`` names what is
    needed besides (`KEEPS`): "spatial" for sFID, "classes" for the inception score, "vectors" for everything that is
    defined by neighbours. ``about`` says what the images are, for the file.

    Raises `DataError` for no images at all, `UsageError` for anything but uint8 images of one resolution, and for
    something to keep that the network does not give.
    """
    collector = Collector(features, keep=keep, rank=rank, world=world, capacity=capacity, about=about)
    for block in blocks(images, rank=rank, world=world):
        collector.update(block)
    return collector.result()


class Collector:
    """Gathers the `Statistics` of one feature network from blocks, so that several can share one pass over a set."""

    def __init__(
        self,
        features: Features,
        *,
        keep: Collection[str] = (),
        rank: int = 0,
        world: int = 1,
        capacity: int = CAPACITY,
        about: Mapping[str, str] | None = None,
    ) -> None:
        unknown = set(keep) - set(KEEPS)
        if unknown:
            raise UsageError(f"cannot keep {', '.join(sorted(unknown))}: choose from {', '.join(KEEPS)}")
        lacking = set(keep) & {SPATIAL, CLASSES} - set(getattr(features, "heads", ()))
        if lacking:
            raise UsageError(
                f"the features {features.name!r} have no {' or '.join(sorted(lacking))} output: "
                "use lite0 or inception for metrics on it"
            )
        self.features = features
        self._moments, self._sample = Moments(features.width), Sample(capacity)
        self._spatial: Moments | None = Moments(0) if SPATIAL in keep else None
        self._classes = InceptionScoreSums() if CLASSES in keep else None
        self._vectors = Vectors(features.width) if VECTORS in keep else None
        self._census = Census()
        self._rank, self._world, self._about = rank, world, dict(about or {})

    def update(self, block: Block) -> None:
        """Take in a block."""
        stack = self._census.update(block)
        if stack is None:
            return
        found = self._outputs(stack)
        units = quantise(found[POOLED])
        if units.shape != (len(stack), self.features.width):
            name, width = self.features.name, self.features.width
            raise UsageError(f"features {name!r} gave {units.shape[1]} numbers an image, not {width}")
        self._moments.update_units(units)
        rows = (units * QUANTUM).astype(np.float32)
        if self._spatial is not None:
            spatial = quantise(found[SPATIAL])
            self._spatial = self._spatial if self._spatial.width else Moments(spatial.shape[1])
            self._spatial.update_units(spatial)
        if self._classes is not None:
            self._classes.update(block.indices, found[CLASSES])
        if self._vectors is not None:
            self._vectors.add(block.indices, rows)
        for index, row in zip(block.indices, rows, strict=True):
            self._sample.add(index, row)

    def result(self) -> Statistics:
        """The statistics of all that was seen."""
        return Statistics(
            features=self.features.name,
            resolution=self._census.resolution,
            moments=self._moments,
            sample=self._sample,
            spatial=self._spatial,
            classes=self._classes,
            vectors=self._vectors,
            fingerprint=self._census.fingerprint,
            skipped=self._census.skipped,
            parts=frozenset({self._rank}),
            world=self._world,
            about=self._about,
        )

    def _outputs(self, block: Tensor) -> dict[str, Tensor]:
        """The network's outputs for a block of at most 32 images, computed as part of a batch of exactly 32."""
        outputs = getattr(self.features, "outputs", None)
        found = {POOLED: self.features(padded(block))} if outputs is None else outputs(padded(block))
        return {name: value[: len(block)] for name, value in found.items()}


class Census:
    """Which images a set holds: their count, resolution and fingerprint, without any network."""

    def __init__(self) -> None:
        self.count, self.skipped, self.fingerprint = 0, 0, 0
        self.resolution: tuple[int, int] | None = None

    def update(self, block: Block) -> Tensor | None:
        """Take in a block; its images as one tensor uint8 (B, 3, H, W), None if it has none."""
        self.skipped += block.skipped
        if not block.images:
            return None
        stack = block.stack()
        self.resolution = agree(self.resolution, (stack.shape[-2], stack.shape[-1]))
        self.count += len(stack)
        hashes = (_hash(index, image) for index, image in zip(block.indices, stack.numpy(), strict=True))
        self.fingerprint = (self.fingerprint + sum(hashes)) % 2**128
        return stack


def _hash(index: int, image: np.ndarray[Any, Any]) -> int:
    """128 bits of the number and the bytes of an image; the resolution is recorded elsewhere."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=struct.pack("<q", index))
    return int.from_bytes(digest.digest(), "little")


def _merged(a: Moments, b: Moments) -> Moments:
    """Both together; a part that has seen nothing has width 0."""
    if not b.width:
        return a
    both = Moments(a.width)
    both.merge(a)
    both.merge(b)
    return both
