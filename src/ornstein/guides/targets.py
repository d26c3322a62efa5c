"""What guides aim at, read from files and words: pictures, maps of classes, colours, boxes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..storage.reading import DOCUMENT, PICTURE, denied, parse_json, read_bytes
from .energies import IGNORED, check_boxes
from .types import suggestion

VOID = 255  # in maps of indices: nothing is asked for here


def picture(path: str, size: int) -> Tensor:
    """A picture file as (1, 3, size, size) in [−1, 1]: its centre square, brought to size."""
    from ..data.base import UnreadableError
    from ..data.decode import decode_file

    try:
        pixels = decode_file(_file(path, "picture"), size, path)
    except UnreadableError as error:
        raise DataError(f"{path} cannot be read as a picture ({error.reason}): give a PNG or JPEG") from None
    return (pixels[None].float() / 127.5) - 1.0


def square(shape: Sequence[int], what: str) -> int:
    """The side of square pictures. Raises `UsageError` for others."""
    if shape[-1] != shape[-2]:
        raise UsageError(f"{what} needs a model of square pictures, this one makes {shape[-1]} × {shape[-2]}")
    return int(shape[-1])


def raw(path: str, what: str = "picture") -> Any:
    """A file as a Pillow image in its own mode and size."""
    from PIL import Image, UnidentifiedImageError

    from ..data.decode import MAX_PIXELS, formats

    try:
        with Image.open(io.BytesIO(read_bytes(_file(path, what), PICTURE)), formats=formats()) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(f"{path} has {opened.width} × {opened.height} pixels: too many to read")
            opened.load()
            return opened.copy()
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, PermissionError):
            raise denied(path) from None
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path} cannot be read as a {what} ({reason}): give a PNG") from None


def exact(path: str, what: str, shape: Sequence[int]) -> Any:
    """A file as a Pillow image that has just the size of the model's pictures."""
    image = raw(path, what)
    height, width = shape[-2:]
    if image.size != (width, height):
        raise DataError(
            f"the {what} {path} is {image.width} × {image.height} pixels, the model's pictures are {width} × {height}: "
            "bring it to that size without smoothing"
        )
    return image


def known_part(path: str, shape: Sequence[int]) -> Tensor:
    """A mask of what is known, (1, 1, H, W): 1 where the file is white (128 and above), 0 where it is black."""
    grey = np.asarray(exact(path, "mask", shape).convert("L"))
    mask = torch.from_numpy((grey >= 128).astype(np.float32))[None, None]
    if not bool(mask.any()):
        raise DataError(f"the mask {path} is black everywhere, so nothing is known: white is kept, black is filled in")
    return mask


def small(path: str, shape: Sequence[int]) -> tuple[Tensor, int]:
    """(a small picture (1, 3, h, w) in [−1, 1], the factor that makes it H × W)."""
    from ..data.decode import to_rgb

    image = to_rgb(raw(path))
    height, width = shape[-2:]
    factor = height // image.height if image.height else 0
    if factor < 1 or (image.width * factor, image.height * factor) != (width, height):
        raise DataError(
            f"{path} is {image.width} × {image.height} pixels, which is no whole part of the model's "
            f"{width} × {height}: give, for example, {width // 4} × {height // 4}"
        )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1.0, factor


def classes_map(arg: str, shape: Sequence[int], classes: Sequence[str]) -> Tensor:
    """A map of classes (1, H, W) from ``MAP.png`` or ``MAP.png@COLOURS.json``.

    * Palette and grey files: the index, or the grey value, *is* the class number; 255 asks for nothing.
    * Colour files: each pixel has the colour of its class, by the table; or without one by `colours_of`. Transparent
      pixels, and the colour that the table gives to "ignore", ask for nothing.
    """
    path, table = _pair(arg)
    image = exact(path, "map of classes", shape)
    if image.mode in ("P", "L", "1", "I", "I;16") and not table:
        numbers = np.asarray(image).astype(np.int64)
        numbers = np.where(numbers == VOID, IGNORED, numbers)
        if numbers.max() >= len(classes):
            raise DataError(
                f"{path} has class number {numbers.max()}, but there are {len(classes)} classes: "
                f"{_numbered(classes)}; 255 asks for nothing"
            )
    else:
        colours = (
            _table(table, classes) if table else dict(zip(colours_of(len(classes)), range(len(classes)), strict=True))
        )
        numbers = _by_colour(np.asarray(image.convert("RGBA")), colours, path, bool(table))
    if not (numbers >= 0).any():
        raise DataError(f"the map {path} asks for nothing: all its pixels are 255 or transparent")
    return torch.from_numpy(numbers)[None]


def colours_of(count: int) -> list[tuple[int, int, int]]:
    """The colours of class numbers in colour files without a table: those of the Pascal VOC palette.

    Bit j of the number's three lowest bits goes into bit 7 of the three channels, the next three bits into bit 6, …
    """
    found: list[tuple[int, int, int]] = []
    for number in range(count):
        channels = [0, 0, 0]
        for level in range(3):
            for channel in range(3):
                channels[channel] |= (number >> (3 * level + channel) & 1) << (7 - level)
        found.append((channels[0], channels[1], channels[2]))
    return found


def _by_colour(
    pixels: npt.NDArray[np.uint8], colours: Mapping[tuple[int, int, int], int], path: str, table: bool
) -> npt.NDArray[np.int64]:
    rgb = pixels[..., :3].astype(np.int64) @ np.array([65536, 256, 1])
    numbers = np.full(rgb.shape, IGNORED - 1, dtype=np.int64)
    for (red, green, blue), number in colours.items():
        numbers[rgb == (red * 256 + green) * 256 + blue] = number
    numbers[pixels[..., 3] < 128] = IGNORED
    unknown = numbers < IGNORED
    if unknown.any():
        remedy = "its table lacks it" if table else "name the table of its colours, MAP.png@COLOURS.json"
        raise DataError(f"{path} has the colour #{int(rgb[unknown][0]):06x}, which is no class: {remedy}")
    return numbers


def _table(path: str, classes: Sequence[str]) -> dict[tuple[int, int, int], int]:
    """Colours to class numbers from {"class": "#rrggbb", …}."""
    try:
        table = parse_json(read_bytes(_file(path, "table of colours"), DOCUMENT))
    except ValueError as error:
        raise DataError(f'{path} is no JSON ({error}): a table reads {{"CLASS": "#rrggbb", …}}') from None
    if not isinstance(table, dict) or not table:
        raise DataError(f'{path} is no table of colours: it reads {{"CLASS": "#rrggbb", …}}')
    return {
        _rgb(str(value)): IGNORED if name == "ignore" and name not in classes else class_number(name, classes)
        for name, value in table.items()
    }


def class_number(name: str, classes: Sequence[str]) -> int:
    """The number of a class by its name, the part of it after a slash if no other has that, or its number.

    Raises `UsageError` that lists them.
    """
    named = [i for i, known in enumerate(classes) if known == name or known.rpartition("/")[2] == name]
    if name in classes or len(named) == 1:
        return classes.index(name) if name in classes else named[0]
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise UsageError(f"unknown class {name!r}: {suggestion(name, classes)}")


def _numbered(classes: Sequence[str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in enumerate(classes[:24])) + (", …" if len(classes) > 24 else "")


def _rgb(text: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UsageError(f"{text!r} is no colour: write #rrggbb, or a name such as navy") from None
    return red, green, blue


def colours(text: str) -> Tensor:
    """Colours separated by commas, as (K, 3) in [−1, 1]: #rrggbb, or a name that CSS knows."""
    names = [name.strip() for name in text.split(",")]
    return torch.tensor([_rgb(name) for name in names], dtype=torch.float32) / 127.5 - 1.0


def boxes(text: str, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(boxes (K, 4), labels (K,)) from ``LABEL@x0,y0,x1,y1+LABEL@…``, fractions of the picture from its top left."""
    found: list[list[float]] = []
    labels: list[int] = []
    for part in text.split("+"):
        label, _, numbers = part.partition("@")
        try:
            box = [float(number) for number in numbers.split(",")]
        except ValueError:
            box = []
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise UsageError(f"a box reads LABEL@x0,y0,x1,y1 in fractions of the picture, got {part!r}")
        labels.append(class_number(label.strip(), classes))
        found.append(box)
    pair = torch.tensor(found), torch.tensor(labels)
    check_boxes(*pair, len(classes))
    return pair


def _pair(arg: str) -> tuple[str, str]:
    """FILE@OTHER as its two parts; the second is empty if there is only one, whose name may contain an @."""
    if Path(arg).expanduser().is_file():
        return arg, ""
    first, at, second = arg.rpartition("@")
    return (first, second) if at else (second, "")


def inpainting(arg: str, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(picture, what is known of it) from ``PICTURE@MASK``."""
    path, mask = _pair(arg)
    if not mask:
        raise UsageError(f"inpainting reads PICTURE@MASK, got {arg!r}: white is kept, black is filled in")
    return picture(path, square(shape, "inpainting")), known_part(mask, shape)


def _file(path: str, what: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"no {what} at {path!r}: give the path of a file")
    return file


__all__ = [
    "boxes",
    "class_number",
    "classes_map",
    "colours",
    "colours_of",
    "exact",
    "inpainting",
    "known_part",
    "picture",
    "raw",
    "small",
    "square",
]
