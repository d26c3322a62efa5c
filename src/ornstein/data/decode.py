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
from ornstein.storage.reading import PICTURE, read_bytes, reason_of

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485
"""Images with more pixels are skipped: Pillow's own guard against decompression bombs (256 MiB of RGB bytes)."""

MAX_MEMORY = 256 << 20
"""Pictures that would take more bytes of memory while they are decoded are skipped."""

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
            raise UnreadableError(name, reason(error)) from None


def decode_file(path: Path, size: int, name: str) -> Tensor:
    """`decode` of a regular file."""
    return decode(bytes_of(path, name), size, name)


def bytes_of(path: Path, name: str) -> bytes:
    """The content of a picture's file; `UnreadableError` for a FIFO, a device, or a file above `PICTURE` bytes."""
    try:
        return read_bytes(path, PICTURE)
    except (OSError, ValueError) as error:
        raise UnreadableError(name, reason_of(error)) from None


def _decode(data: bytes, size: int) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=formats()) as opened:
        width, height = opened.size
        require_pixels(width, height)
        # A large JPEG is decoded at a half, a quarter or an eighth; still at least twice what is needed.
        shorter = min(width, height)
        opened.draft(None, (max(1, 2 * size * width // shorter), max(1, 2 * size * height // shorter)))
        square = _square(upright(opened), size)
    return torch.from_numpy(np.array(square.convert("RGB"))).permute(2, 0, 1).contiguous()


def require_pixels(width: int, height: int) -> None:
    """Refuse a picture of more than `MAX_PIXELS`, where Pillow would warn; at twice as many it refuses by itself."""
    from PIL import Image

    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError


def upright(opened: Image.Image) -> Image.Image:
    """A picture in RGB or grey of eight bits, with its EXIF rotation applied.

    Raises `UnreadableError` where that would take more than `MAX_MEMORY`.
    """
    from PIL import ImageOps

    pixels = opened.width * opened.height
    taken = pixels * (_BYTES.get(opened.mode, 8) + 3 * bool(opened.info.get("progressive")))
    if taken > MAX_MEMORY:
        raise UnreadableError("", f"takes {taken >> 20} MiB of memory decoded, more than {MAX_MEMORY >> 20}")
    opened.load()
    plain = _plain(opened)
    try:
        return ImageOps.exif_transpose(plain) if plain.getexif().get(_TURNED, 1) != 1 else plain
    except Exception:  # noqa: BLE001  (a damaged EXIF block leaves the picture as it is)
        return plain


_TURNED = 0x0112  # EXIF's tag of the rotation
_BYTES = {"1": 2, "L": 1, "P": 5, "RGB": 4, "I;16": 3, "I;16B": 3, "I;16L": 3, "I": 5, "F": 5}  # with the copy; else 8


def _plain(image: Image.Image) -> Image.Image:
    """RGB, or grey of eight bits: converted in strips, so that there are never three copies."""
    from PIL import Image

    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return _with_exif(image.convert("L"), image)
    grey = image.mode.startswith("I") or image.mode == "F"
    span = _span(image) if grey else (0.0, 0.0, 0.0)
    page = Image.new("L" if grey else "RGB", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        strip.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
        part = Image.fromarray(_eight_bits(np.asarray(strip), *span)) if grey else to_rgb(strip)
        page.paste(part, (0, top))
    return _with_exif(page, image)


def _with_exif(page: Image.Image, image: Image.Image) -> Image.Image:
    page.info |= {key: image.info[key] for key in ("exif",) if key in image.info}
    return page


_STRIP = 256  # rows


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: deep grey rescaled, transparency on white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), *_span(image))).convert("RGB")
    if image.mode in {"La", "RGBa"}:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        clear = image.convert("RGBA")
        page = Image.new("RGBA", clear.size, "white")
        page.alpha_composite(clear)
        return page.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _span(image: Image.Image) -> tuple[float, float, float]:
    """Black and white of deep grey, 16 bits, [0, 1] of floats, or else its own range; and its least value."""
    low, high = np.inf, -np.inf
    for top in range(0, image.height, _STRIP):
        deep = np.asarray(image.crop((0, top, image.width, min(top + _STRIP, image.height)))).astype(np.float64)
        finite = deep[np.isfinite(deep)]
        low, high = min(low, float(finite.min(initial=np.inf))), max(high, float(finite.max(initial=-np.inf)))
    if low > high:
        return 0.0, 1.0, 0.0
    if image.mode != "F" and low >= 0.0 and high <= 65535.0:
        return 0.0, 65535.0, low
    return (0.0, 1.0, low) if image.mode == "F" and low >= 0.0 and high <= 1.0 else (low, high, low)


def _eight_bits(values: npt.NDArray[np.generic], low: float, high: float, least: float) -> npt.NDArray[np.uint8]:
    """[low, high] as 0 … 255; what is not finite becomes the least value."""
    deep = values.astype(np.float64)
    deep = np.where(np.isfinite(deep), deep, least)
    return np.rint((deep - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to ``size``, centre square of a grey or RGB picture: one resampling of the centre box."""
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if side == size and left.is_integer() and top.is_integer():
        return image.crop((int(left), int(top), int(left) + side, int(top) + side))
    how = Image.Resampling.LANCZOS if side >= size else Image.Resampling.BICUBIC
    return image.resize((size, size), how, box=(left, top, left + side, top + side))


def reason(error: Exception) -> str:
    """Why Pillow cannot read a picture, in a few words."""
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
