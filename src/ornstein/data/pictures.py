"""Pictures to files: float images in [−1, 1] to bytes, PNG files and grids, the same bytes every time."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ornstein.storage.files import atomic


def to_uint8(images: Tensor) -> Tensor:
    """round(127.5·(x + 1)) clamped to 0 … 255, any shape; uint8 passes unchanged, on the host. NaN becomes 0."""
    if images.dtype == torch.uint8:
        return images.cpu()
    scaled = images.detach().cpu().to(torch.float32).add(1.0).mul_(127.5)
    return scaled.nan_to_num_(nan=0.0).round_().clamp_(0.0, 255.0).to(torch.uint8)


def save_png(image: Tensor, path: str | Path) -> Path:
    """Write one image (C, H, W), C = 1 or 3, floats in [−1, 1] or uint8, as a PNG; returns the path.

    The file appears atomically; equal images give equal bytes (with the same versions of Pillow and zlib).
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected an image of shape (1 or 3, H, W), got {tuple(image.shape)}")
    pixels = to_uint8(image).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=6)
    return path


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Images (N, C, H, W) side by side on white, row by row: uint8 (C, H', W'); about square by default."""
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"expected images of shape (N, C, H, W) with N ≥ 1, got {tuple(images.shape)}")
    count, channels, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    page = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(images)):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        page[:, top : top + height, left : left + width] = image
    return page


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> Path:
    """Write images (N, C, H, W) as one PNG, ``columns`` in a row; returns the path. See `save_png`."""
    return save_png(grid(images, columns), path)
