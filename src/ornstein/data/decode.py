"""From the bytes of any image file to a square RGB picture, or one clear reason why not.

Conversions: grey and 16-bit to RGB, transparency onto white, CMYK to RGB, the first frame of an animation, EXIF
rotation applied, ICC profiles ignored. The shorter side is brought to R with an antialiased filter (Lanczos downwards,
bicubic upwards) and the centre square is kept.
"""

from __future__ import annotations

import io
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ornstein.data.base import UnreadableError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485
"""Images with more pixels are skipped: Pillow's own guard against decompression bombs (256 MiB of RGB bytes)."""

# Formats that start another program, or need a handler that is not there, or are not pictures.
_REFUSED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


def decode(data: bytes, size: int, name: str = "image") -> Tensor:
    """The picture in ``data`` as uint8 (3, size, size); `UnreadableError` with name and reason otherwise.

    Never warns, and depends on nothing but its arguments.
    """
    if not data:
        raise UnreadableError(name, "the file is empty")
    # The filters must hold for the whole of opening and loading: Pillow warns from both.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data, size)
        except UnreadableError as error:
            raise UnreadableError(name, error.reason) from None
        except Exception as error:  # noqa: BLE001  (damaged files raise nearly anything inside Pillow)
            raise UnreadableError(name, _reason(error)) from None


def decode_file(path: Path, size: int, name: str) -> Tensor:
    """`decode` of a file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(name, (error.strerror or type(error).__name__).lower()) from None
    return decode(data, size, name)


def _decode(data: bytes, size: int) -> Tensor:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=formats()) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:  # where Pillow would warn; at twice as many it refuses by itself
            raise Image.DecompressionBombError
        # A large JPEG is decoded at a half, a quarter or an eighth; still at least twice what is needed.
        shorter = min(width, height)
        opened.draft(None, (max(1, 2 * size * width // shorter), max(1, 2 * size * height // shorter)))
        opened.load()
        image = opened
        try:
            image = ImageOps.exif_transpose(opened) or opened
        except Exception:  # noqa: BLE001  (a damaged EXIF block leaves the picture as it is)
            image = opened
        square = _square(to_rgb(image), size)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: deep grey rescaled, transparency on white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in {"La", "RGBa"}:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        clear = image.convert("RGBA")
        page = Image.new("RGBA", clear.size, "white")
        page.alpha_composite(clear)
        return page.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: npt.NDArray[np.generic], mode: str) -> npt.NDArray[np.uint8]:
    """Deep grey as 0 … 255: 16-bit values by 1/257, floats in [0, 1] by 255, anything else by its own range."""
    deep = values.astype(np.float64)
    finite = np.isfinite(deep)
    deep = np.where(finite, deep, deep[finite].min(initial=np.inf) if finite.any() else 0.0)
    low, high = float(deep.min()), float(deep.max())
    if mode != "F" and low >= 0.0 and high <= 65535.0:
        low, high = 0.0, 65535.0
    elif mode == "F" and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    span = high - low or 1.0
    return np.rint((deep - low) * (255.0 / span)).astype(np.uint8)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to ``size``, centre square: one resampling of the centre box."""
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if side == size and left.is_integer() and top.is_integer():
        return image.crop((int(left), int(top), int(left) + side, int(top) + side))
    how = Image.Resampling.LANCZOS if side >= size else Image.Resampling.BICUBIC
    return image.resize((size, size), how, box=(left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image in any known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels"
    text = re.sub(r"<[^>]*\bat 0x[0-9a-f]+>", "the file", " ".join(str(error).split()))
    return f"cannot be decoded ({text[:160] or type(error).__name__})"


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's formats that are decoded."""
    from PIL import Image

    Image.init()
    return tuple(sorted(set(Image.OPEN) - _REFUSED))


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """File name endings of those formats, lower case with the dot."""
    from PIL import Image

    return frozenset(e.lower() for e, f in Image.registered_extensions().items() if f in formats())
