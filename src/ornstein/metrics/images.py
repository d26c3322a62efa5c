"""Image files as they are measured: as they are where no resizing is needed, and by one antialiased filter elsewhere.

Parmar et al. 2022 (clean-fid, arXiv 2104.11222): how files are decoded, resized and stored moves a Fréchet distance by
more than models differ. So a folder whose pictures have one resolution is read as it is; and what must be resized is
resized by Pillow's antialiased bicubic filter and rounded to bytes, as if it had been stored as a PNG.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.base import Derived
from ornstein.errors import DataError
from ornstein.storage.reading import PICTURE, open_regular

if TYPE_CHECKING:
    from PIL import Image

    from ornstein.data import Example, Source
    from ornstein.data.folder import Folder

Size = tuple[int, int]  # height, width

_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The images of a folder, decoded when asked for: each at its own resolution, or its centre square at ``size``."""

    folder: Folder
    size: int | None

    @property
    def name(self) -> str:
        """The folder."""
        return self.folder.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.folder.classes

    @property
    def fingerprint(self) -> str:
        """Digest of the files."""
        return self.folder.fingerprint

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Example:
        from ornstein.data import Example

        entry = self.folder.entries[index]
        image = read_image(self.folder.root / entry.path, self.size, entry.path)
        return Example(image=image, label=entry.label, caption=entry.caption, name=entry.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread(Derived):
    """``count`` images of a source, evenly spread: number i is its number ⌊i · length / count⌋.

    The first ones of a folder that is sorted by class would be a few classes only.
    """

    source: Any
    count: int

    @property
    def fingerprint(self) -> str:
        """Digest of the whole source and the count."""
        from ornstein.storage.files import digest

        return digest(self.source.fingerprint, "spread", self.count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.source[index * len(self.source) // self.count]


def spread(source: Source | Files, count: int) -> Source | Files | Spread:
    """At most ``count`` images of ``source``, evenly spread."""
    return Spread(source=source, count=count) if count < len(source) else source


def list_folder(where: str | Path) -> Folder | None:
    """The folder of image files that ``where`` names; None if it names another kind of data.

    Raises `DataError` for a folder without images.
    """
    from ornstein.data import embedded, packages
    from ornstein.data.folder import METADATA, open_folder

    path = Path(where).expanduser()
    name = str(where).split(":", maxsplit=1)[0]
    if not path.is_dir() or name in packages.NAMES or name == "dicebear" or name in embedded.known_styles():
        return None
    if not (path / METADATA).is_file():
        packed = any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")) or any(path.glob("*.tar"))
        if packed:
            return None
    return open_folder(path, size=64)


def resolutions(folder: Folder, count: int) -> list[Size]:
    """The different (height, width) of the ``count`` images that `spread` takes, the first image's first.

    Only headers are read. Files that cannot be read are left out, here as elsewhere.
    """
    from PIL import Image

    total = len(folder)
    count = min(count, total)
    found: dict[Size, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(count):
            try:
                path = folder.root / folder.entries[i * total // count].path
                with open_regular(path, PICTURE) as file, Image.open(file) as image:
                    width, height = image.size
                    if image.getexif().get(0x0112, 1) >= 5:  # turned by a quarter when shown
                        width, height = height, width
                    found[height, width] = None
            except Exception:  # noqa: BLE001, S112  (damaged files raise nearly anything inside Pillow)
                continue
    return list(found)


def read_image(path: Path, size: int | None, name: str) -> Tensor:
    """An image file as uint8 (3, H, W): as it is, or its centre square at ``size`` by antialiased bicubic filtering.

    Transparency is laid on white, EXIF rotation is applied, deep grey is rescaled. `UnreadableError` with name and
    reason where it is no picture.
    """
    from PIL import Image

    from ornstein.data.base import UnreadableError
    from ornstein.data.decode import bytes_of, formats, reason, require_pixels, upright

    data = bytes_of(path, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=formats()) as opened:
                require_pixels(*opened.size)
                picture = upright(opened)
                pixels = np.array((picture if size is None else square(picture, size)).convert("RGB"))
        except UnreadableError as error:
            raise UnreadableError(name, error.reason) from None
        except Exception as error:  # noqa: BLE001  (damaged files raise nearly anything inside Pillow)
            raise UnreadableError(name, reason(error)) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def square(picture: Image.Image, size: int) -> Image.Image:
    """The centre square of a grey or RGB picture at ``size`` × ``size``: antialiased bicubic, rounded to bytes."""
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if side == size and left.is_integer() and top.is_integer():
        return picture.crop((int(left), int(top), int(left) + side, int(top) + side))
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def one_resolution(found: Sequence[Size], where: str) -> Size:
    """The first of `resolutions`. Raises `DataError` if there is none."""
    if not found:
        raise DataError(f"folder {where} holds no readable image: give one with files such as .png or .jpg in it")
    return found[0]


def cautions(ours: Any, theirs: Any) -> list[str]:
    """Warnings about two sets' file formats: JPEG's loss is a difference that a distance sees.

    Parmar et al. 2022: compression at the usual quality alone moves an FID by more than many models differ.
    """
    found = []
    known = [(one, _formats(one)) for one in (ours, theirs) if one is not None]
    kinds = [(one, formats) for one, formats in known if formats is not None]
    for one, (jpeg, other) in kinds:
        if jpeg:
            mixed = " and other files" if other else ""
            found.append(f"{one.name} holds JPEG files{mixed}: their compression is part of what is measured")
    if len(kinds) == 2 and {bool(jpeg) for _, (jpeg, _) in kinds} == {True, False}:
        found.append(
            "one side is JPEG and the other is not: the distance holds the compression; compare like with like"
        )
    return found


def _formats(source: Any) -> tuple[int, int] | None:
    """Numbers of JPEG files and of other images in a folder; None for a source that does not say what it holds."""
    while hasattr(source, "source"):
        source = source.source
    entries = getattr(getattr(source, "folder", source), "entries", None)
    if entries is None or not hasattr(entries, "__len__"):
        return None
    jpeg = sum(Path(entry.path).suffix.lower() in _JPEG for entry in entries)
    return jpeg, len(entries) - jpeg
