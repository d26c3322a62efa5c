"""Pictures to files: float images in [−1, 1] to bytes, PNG files and grids, the same bytes every time."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ornstein import checks
from ornstein.errors import UsageError
from ornstein.storage.files import atomic


def to_uint8(images: Tensor) -> Tensor:
    """round(127.5·(x + 1)) clamped to 0 … 255, any shape; uint8 passes unchanged, on the host. NaN becomes 0."""
    if images.dtype == torch.uint8:
        return images.cpu()
    scaled = images.detach().cpu().to(torch.float32).add(1.0).mul_(127.5)
    return scaled.nan_to_num_(nan=0.0).round_().clamp_(0.0, 255.0).to(torch.uint8)


def png(image: Tensor) -> bytes:
    """One image (C, H, W), C = 1 or 3, floats in [−1, 1] or uint8, as the bytes of a PNG file."""
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected an image of shape (1 or 3, H, W), got {tuple(image.shape)}")
    pixels = to_uint8(image).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=6)
    return file.getvalue()


def save_png(image: Tensor, path: str | Path) -> Path:
    """Write one image (C, H, W), C = 1 or 3, floats in [−1, 1] or uint8, as a PNG; returns the path.

    The file appears atomically; equal images give equal bytes (with the same versions of Pillow and zlib).
    """
    found, path = png(image), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(found)
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


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Images side by side, which a notebook displays as a picture; made by `show`."""

    images: Tensor
    columns: int | None = None

    def _repr_png_(self) -> bytes:
        return png(grid(self.images, self.columns))

    def __repr__(self) -> str:
        count, _, height, width = self.images.shape
        return f"<{count} image{'s' * (count > 1)} of {width} × {height}: shown in a notebook, or by save(path)>"

    def save(self, path: str | Path) -> Path:
        """Write the picture as a PNG file; returns the path."""
        return save_grid(self.images, path, self.columns)


def show(images: Tensor, columns: int | None = None) -> Shown:
    """Images as one picture in a notebook, side by side on white.

    Args:
        images: (N, C, H, W) as `ornstein.sample` returns them, or one (C, H, W); C = 1 or 3, floats in [−1, 1].
        columns: images in a row; about square by default.

    Returns:
        An object that a notebook displays, and that ``save(path)`` writes.

    Raises:
        UsageError: images of another shape, such as latents that are not decoded.

    >>> import torch
    >>> show(torch.zeros(6, 3, 8, 8), columns=3)
    <6 images of 8 × 8: shown in a notebook, or by save(path)>
    """
    checks.instance("images", images, Tensor, "a tensor of images", UsageError)
    if columns is not None:
        checks.whole("columns", columns, 1)
    rows = images[None] if images.ndim == 3 else images
    if rows.ndim != 4 or rows.shape[1] not in (1, 3) or 0 in rows.shape:
        raise UsageError(f"images have the shape (N, 1 or 3, H, W), got {tuple(images.shape)}: decode latents first")
    return Shown(rows, columns)
