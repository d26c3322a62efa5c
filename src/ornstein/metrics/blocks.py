"""Any set of images as aligned blocks of 32, each handled by one process.

Block number b holds the images 32 b … 32 b + 31 of the set, whatever batches or processes they came from: this is what
makes every number of this package independent of both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ornstein.errors import DataError, UsageError

BLOCK = 32  # part of the definition of the numbers: another value may change their last bits
_EMPTY = "there is not one image in the set: give at least two"


class ImageSource(Protocol):
    """Images that can be read by number: item i has the image i as its uint8 tensor ``.image``."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(slots=True)
class Block:
    """Up to 32 images with their numbers in the set, and what else is known about each: name and caption."""

    images: list[Tensor] = field(default_factory=list[Tensor])
    indices: list[int] = field(default_factory=list[int])
    names: list[str] = field(default_factory=list[str])
    captions: list[str] = field(default_factory=list[str])
    skipped: int = 0

    def take(self, index: int, item: Any) -> None:
        """Add image number ``index``: a tensor, or an object with ``.image`` and perhaps ``.name`` and ``.caption``."""
        self.images.append(_image(item))
        self.indices.append(index)
        self.names.append(str(getattr(item, "name", None) or ""))
        self.captions.append(str(getattr(item, "caption", None) or ""))

    def stack(self) -> Tensor:
        """The images as one tensor uint8 (B, 3, H, W). Raises `UsageError` where their resolutions differ."""
        functools.reduce(agree, ((image.shape[-2], image.shape[-1]) for image in self.images))
        return torch.stack(self.images)


def blocks(images: Iterable[Any] | ImageSource, *, rank: int = 0, world: int = 1) -> Iterator[Block]:
    """The blocks whose number is ``rank`` modulo ``world``; one of them is in memory at a time.

    ``images`` is a tensor (N, C, H, W), a `ImageSource`, or any iterable of single images (C, H, W), batches (B, C, H,
    W) or objects with an ``.image``; always uint8, C = 3 or 1. Of a source or a tensor nothing else is read. Raises
    `DataError` for an empty set, `UsageError` for anything else and for a rank outside 0 … world − 1.
    """
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} is not one of {world} processes: give 0 ≤ rank < world")
    if _by_number(images):
        return _read(cast("ImageSource", images), rank, world)
    return _streamed(cast("Iterable[Any]", images), rank, world)


def padded(block: Tensor) -> Tensor:
    """A block of at most 32 images filled up with black to exactly 32, as every network sees it."""
    missing = BLOCK - len(block)
    return torch.cat((block, block.new_zeros((missing, *block.shape[1:])))) if missing else block


def agree(a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    """The common resolution of two parts (None: no image yet); `UsageError` where they differ."""
    if a is not None and b is not None and a != b:
        raise UsageError(f"images of different resolutions ({a[0]}×{a[1]} and {b[0]}×{b[1]}): resize them to one")
    return a if b is None else b


def _read(images: ImageSource, rank: int, world: int) -> Iterator[Block]:
    from ornstein.data.base import UnreadableError

    total = len(images)
    if not total:
        raise DataError(_EMPTY)
    for start in range(rank * BLOCK, total, world * BLOCK):
        block = Block()
        for index in range(start, min(start + BLOCK, total)):
            try:
                block.take(index, images[index])
            except UnreadableError:
                block.skipped += 1
        yield block


def _streamed(images: Iterable[Any], rank: int, world: int) -> Iterator[Block]:
    block, index = Block(), -1
    for index, image in enumerate(_flat(images)):
        if index // BLOCK % world != rank:
            continue
        block.take(index, image)
        if index % BLOCK == BLOCK - 1:
            yield block
            block = Block()
    if index < 0:
        raise DataError(_EMPTY)
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
            yield item


def _image(item: Any) -> Tensor:
    """One image as uint8 (3, H, W) on the host."""
    image = getattr(item, "image", item)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(f"an image must be a uint8 tensor (3, H, W) or (1, H, W), got {got}: convert it first")
    return image.detach().cpu().expand(3, -1, -1)
