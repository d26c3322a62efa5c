"""What is kept of a set of images for comparing it: exact moments, a sample of features, and a fingerprint.

The numbers are the same for any batch size and any number of processes, bit for bit, because nothing in them depends
on either: the network always sees aligned blocks of 32 consecutive images (the last one filled up with black), a
process handles whole blocks, and what is added up is added exactly (`ornstein.metrics.frechet`) or chosen by index
(`ornstein.metrics.kernel`). The promise holds for one machine, device and number of threads; another one may compute
other last bits *inside* the network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import DataError, UsageError
from ornstein.metrics.features import Features
from ornstein.metrics.frechet import QUANTUM, Moments, quantise
from ornstein.metrics.kernel import CAPACITY, Sample

NETWORK_BATCH = 32  # part of the definition of the numbers: another value may change their last bits
_FORMAT = 1


class Source(Protocol):
    """Images that can be read by number: item i has the image i as its uint8 tensor ``.image``."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What `compare` needs of a set of images, or of the part of it that some processes handled.

    Memory and file size do not grow with the set: 8·width² bytes of moments and 4·5000·width of sampled features
    (39 MB for lite0, 75 MB for Inception).
    """

    features: str
    resolution: tuple[int, int] | None  # None while no image was seen
    moments: Moments
    sample: Sample
    fingerprint: int  # Σ hash(number of the image, its bytes) mod 2¹²⁸
    skipped: int = 0  # images that exist but could not be read
    parts: frozenset[int] = frozenset({0})
    world: int = 1

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
        ranks = [rank for part in everything for rank in part.parts]
        if len(set(ranks)) < len(ranks):
            raise UsageError(f"cannot merge parts that overlap (ranks {sorted(ranks)}): give each rank's part once")
        resolution = functools.reduce(_agree, (part.resolution for part in everything))
        moments, sample = Moments(self.moments.width), Sample(self.sample.capacity)
        for part in everything:
            moments.merge(part.moments)
            sample.merge(part.sample)
        fingerprint = sum(part.fingerprint for part in everything) % 2**128
        return Statistics(
            features=self.features,
            resolution=resolution,
            moments=moments,
            sample=sample,
            fingerprint=fingerprint,
            skipped=sum(part.skipped for part in everything),
            parts=frozenset(ranks),
            world=self.world,
        )

    def save(self, path: str | Path) -> None:
        """Write to ``path``: safetensors with a JSON description and a checksum in its header, put in place at once."""
        from safetensors.numpy import save

        path = Path(path)
        arrays = {
            "total": self.moments.total,
            "products": self.moments.products,
            "sample_indices": np.array(self.sample.indices, dtype=np.int64),
            "sample": self.sample.rows(self.moments.width),
        }
        description = {
            "format": _FORMAT,
            "features": self.features,
            "quantum": QUANTUM,
            "resolution": self.resolution,
            "count": self.count,
            "capacity": self.sample.capacity,
            "fingerprint": f"{self.fingerprint:032x}",
            "skipped": self.skipped,
            "parts": sorted(self.parts),
            "world": self.world,
            "checksum": _checksum(arrays),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, save(arrays, metadata={"ornstein.statistics": json.dumps(description)}))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote. Raises `DataError` for a missing, truncated, damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise DataError(f"no statistics at {str(path)!r}: make them first")
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get("ornstein.statistics")
                if text is None:
                    raise DataError(f"{path} holds no statistics of images: give a file that Statistics.save wrote")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            about = json.loads(text)
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is truncated or damaged ({error}): make the statistics again") from error
        if about.get("format") != _FORMAT or about.get("quantum") != QUANTUM:
            raise DataError(f"{path} has format {about.get('format')}, this version reads {_FORMAT}: make it again")
        if _checksum(arrays) != about["checksum"]:
            raise DataError(f"{path} is damaged (its checksum does not match): make the statistics again")
        moments = Moments(arrays["total"].shape[0])
        moments.count, moments.total, moments.products = about["count"], arrays["total"], arrays["products"]
        sample = Sample(about["capacity"])
        for index, row in zip(arrays["sample_indices"].tolist(), arrays["sample"], strict=True):
            sample.add(index, row)
        return cls(
            features=about["features"],
            resolution=tuple(about["resolution"]) if about["resolution"] else None,
            moments=moments,
            sample=sample,
            fingerprint=int(about["fingerprint"], 16),
            skipped=about["skipped"],
            parts=frozenset(about["parts"]),
            world=about["world"],
        )

    def __repr__(self) -> str:
        size = "×".join(map(str, self.resolution or ()))
        return f"Statistics({self.features!r}, {self.count} images {size}, parts {sorted(self.parts)} of {self.world})"


def statistics(
    images: Iterable[Any] | Source, features: Features, *, rank: int = 0, world: int = 1, capacity: int = CAPACITY
) -> Statistics:
    """The statistics of a set of images under a feature network.

    ``images`` is a tensor (N, C, H, W), a source (`Source`; unreadable images are left out and counted), or a list or
    any iterable of single images (C, H, W) or batches (B, C, H, W); always uint8, C = 3 or 1, one resolution. With
    several processes each is given the *whole* set and handles the blocks of 32 images whose number is ``rank`` modulo
    ``world``; of a source or a tensor it reads nothing else. `Statistics.merge` puts the parts together. One block of
    images is held in memory at a time; ``capacity`` vectors are kept for the kernel distance.

    Raises `DataError` for no images at all, `UsageError` for anything but uint8 images of one resolution.
    """
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} is not one of {world} processes: give 0 ≤ rank < world")
    moments, sample = Moments(features.width), Sample(capacity)
    fingerprint, skipped, resolution = 0, 0, None
    for block in _blocks(images, rank, world):
        skipped += block.skipped
        if not block.images:
            continue
        stack = _stack(block.images)
        resolution = _agree(resolution, (stack.shape[-2], stack.shape[-1]))
        units = quantise(_run(features, stack))
        if units.shape != (len(stack), features.width):
            raise UsageError(f"features {features.name!r} gave {units.shape[1]} numbers an image, not {features.width}")
        moments.update_units(units)
        rows = (units * QUANTUM).astype(np.float32)
        for index, image, row in zip(block.indices, stack.numpy(), rows, strict=True):
            sample.add(index, row)
            fingerprint += _hash(index, image)
    return Statistics(
        features=features.name,
        resolution=resolution,
        moments=moments,
        sample=sample,
        fingerprint=fingerprint % 2**128,
        skipped=skipped,
        parts=frozenset({rank}),
        world=world,
    )


@dataclass(slots=True)
class _Block:
    """Up to 32 images and their numbers in the set."""

    images: list[Tensor] = field(default_factory=list[Tensor])
    indices: list[int] = field(default_factory=list[int])
    skipped: int = 0

    def take(self, index: int, image: Tensor) -> None:
        self.images.append(image)
        self.indices.append(index)


def _run(features: Features, block: Tensor) -> Tensor:
    """Features of a block of at most 32 images, computed as part of a batch of exactly 32."""
    missing = NETWORK_BATCH - len(block)
    batch = torch.cat((block, block.new_zeros((missing, *block.shape[1:])))) if missing else block
    return features(batch)[: len(block)]


def _blocks(images: Iterable[Any] | Source, rank: int, world: int) -> Iterator[_Block]:
    """The blocks of 32 consecutive images that are this rank's."""
    if _by_number(images):
        return _read_blocks(cast("Source", images), rank, world)
    return _streamed_blocks(cast("Iterable[Any]", images), rank, world)


def _read_blocks(images: Source, rank: int, world: int) -> Iterator[_Block]:
    from ornstein.data.base import UnreadableError

    total = len(images)
    if not total:
        raise DataError("there is not one image in the set: give at least two")
    for start in range(rank * NETWORK_BATCH, total, world * NETWORK_BATCH):
        block = _Block()
        for index in range(start, min(start + NETWORK_BATCH, total)):
            try:
                block.take(index, _image(images[index]))
            except UnreadableError:
                block.skipped += 1
        yield block


def _streamed_blocks(images: Iterable[Any], rank: int, world: int) -> Iterator[_Block]:
    block, index = _Block(), -1
    for index, image in enumerate(_flat(images)):
        if index // NETWORK_BATCH % world != rank:
            continue
        block.take(index, _image(image))
        if index % NETWORK_BATCH == NETWORK_BATCH - 1:
            yield block
            block = _Block()
    if index < 0:
        raise DataError("there is not one image in the set: give at least two")
    if block.images:
        yield block


def _by_number(images: Any) -> bool:
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise UsageError(f"a tensor of images has shape (N, C, H, W), got {tuple(images.shape)}")
        return True
    readable = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    return readable and not isinstance(images, (list, tuple))


def _flat(images: Iterable[Any]) -> Iterator[Any]:
    for item in images:
        tensor = getattr(item, "image", item)
        if isinstance(tensor, Tensor) and tensor.ndim == 4:
            yield from tensor
        else:
            yield tensor


def _image(item: Any) -> Tensor:
    """One image as uint8 (3, H, W) on the host."""
    image = getattr(item, "image", item)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(f"an image must be a uint8 tensor (3, H, W) or (1, H, W), got {got}: convert it first")
    return image.detach().cpu().expand(3, -1, -1)


def _stack(images: list[Tensor]) -> Tensor:
    functools.reduce(_agree, ((image.shape[-2], image.shape[-1]) for image in images))
    return torch.stack(images)


def _agree(a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    if a is not None and b is not None and a != b:
        raise UsageError(f"images of different resolutions ({a[0]}×{a[1]} and {b[0]}×{b[1]}): resize them to one")
    return a if b is None else b


def _hash(index: int, image: np.ndarray[Any, Any]) -> int:
    """128 bits of the number and the bytes of an image; the resolution is recorded elsewhere."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=struct.pack("<q", index))
    return int.from_bytes(digest.digest(), "little")


def _checksum(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
