"""Hugging Face data: local parquet files, or a data set of the Hub by name, through the ``datasets`` library."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ornstein.data.base import Example, UnreadableError, checked
from ornstein.data.decode import decode, decode_file
from ornstein.data.folder import caption_of, name_labels
from ornstein.errors import DataError
from ornstein.storage.files import digest, digest_files

_REMEDY = "run `pip install 'ornstein[data]'`"
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
_LABELS = ("label", "labels", "cls", "class", "fine_label")
_CAPTIONS = ("caption", "text", "prompt", "captions")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """Rows of a `datasets.Dataset` with encoded images, decoded here so that a bad one can be skipped."""

    name: str
    size: int
    classes: tuple[str, ...]
    fingerprint: str
    rows: Any  # datasets.Dataset of the columns below, images not decoded
    image: str
    label: str | None
    places: dict[Any, int]
    caption: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        index = checked(index, len(self))
        row = self.rows[index]
        cell = row[self.image] or {}
        name = f"{self.name}[{index}]"
        if cell.get("path"):
            name += f" {Path(cell['path']).name}"
        if cell.get("bytes"):
            picture = decode(cell["bytes"], self.size, name)
        elif cell.get("path"):
            picture = decode_file(Path(cell["path"]), self.size, name)
        else:
            raise UnreadableError(name, "the row has no image")
        label = -1 if self.label is None else self.places.get(row[self.label], -1)
        return Example(image=picture, label=label, caption=self._caption(row), name=name)

    def read_captions(self) -> list[str]:
        """The column of captions."""
        if self.caption is None:
            return [""] * len(self)
        return [self._caption(row) for row in self.rows.select_columns([self.caption])]

    def _caption(self, row: dict[str, Any]) -> str:
        value = row[self.caption] if self.caption else ""
        if isinstance(value, list) and value:  # several captions of one image: the first
            value = value[0]
        return caption_of({"caption": value})


def open_parquet(path: Path, *, size: int) -> HubDataset:
    """A parquet file, or all of those in a folder, in the order of their paths.

    The image column (bytes, or a struct with ``bytes``) is called ``image`` or is the first one of that kind;
    ``label`` and ``text`` or ``caption`` are optional.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path} holds no parquet files")
    with _quiet() as datasets:
        try:
            rows = datasets.Dataset.from_parquet([str(f) for f in files])
        except Exception as error:  # noqa: BLE001  (damaged files raise errors of three libraries)
            raise DataError(f"{path} cannot be read as parquet: {_line(error)}") from None
    seen = digest_files((f.name if path.is_file() else f.relative_to(path).as_posix(), f) for f in files)
    return _table(str(path), rows, size, digest("parquet", seen, size))


def open_hub(where: str, *, size: int) -> HubDataset:
    """``hf:owner/name`` or ``hf:owner/name:split`` (default ``train``) from the Hub, or from its local cache.

    Without a connection it fails at once; with HF_HUB_OFFLINE=1 a copy in the cache is used.
    """
    match = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?::([\w.\[\]%:+-]+))?", where)
    if match is None:
        raise DataError(f"cannot read {where!r}: write hf:OWNER/NAME or hf:OWNER/NAME:SPLIT")
    name, split = match[1], match[2] or "train"
    with _quiet(bars=True) as datasets:
        _reach(name)
        try:
            rows = datasets.load_dataset(name, split=split)
        except Exception as error:  # noqa: BLE001  (errors of four libraries)
            raise DataError(
                f"cannot load split {split!r} of {name} from the Hugging Face Hub: {_line(error)}"
            ) from None
    seen = digest("hub", name, split, sorted((rows.info.download_checksums or {}).items(), key=str), len(rows), size)
    return _table(f"hf:{name}:{split}", rows, size, seen)


def _reach(name: str) -> None:
    """Ask the Hub once and briefly, as ``datasets`` would retry for half a minute."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=10)
    except HfHubHTTPError as error:
        raise DataError(f"the Hugging Face Hub does not give {name}: {_line(error)}") from None
    except Exception as error:  # noqa: BLE001  (the HTTP library is the Hub client's choice)
        raise DataError(
            f"cannot reach the Hugging Face Hub for {name} ({_line(error)}): "
            "connect, give a local parquet folder, or set HF_HUB_OFFLINE=1 to use a cached copy"
        ) from None


@contextlib.contextmanager
def _quiet(*, bars: bool = False) -> Iterator[Any]:
    """The ``datasets`` module, without its progress bars unless asked for; `DataError` if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"parquet and Hugging Face data need the package datasets: {_REMEDY}") from None
    hide = not bars and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        if hide:
            datasets.enable_progress_bars()


def _table(name: str, rows: Any, size: int, fingerprint: str) -> HubDataset:
    import datasets

    image = _image_column(name, rows)
    label = next((c for c in _LABELS if c in rows.column_names and c != image), None)
    caption = next((c for c in _CAPTIONS if c in rows.column_names and c != image), None)
    classes: tuple[str, ...] = ()
    places: dict[Any, int] = {}
    if label is not None:
        feature = rows.features[label]
        if isinstance(feature, datasets.ClassLabel):
            classes = tuple(feature.names)
            places = {i: i for i in range(len(classes))}
        elif isinstance(feature, datasets.Value):
            classes, places = name_labels(rows.unique(label), name)
        else:
            label = None
    rows = rows.select_columns([c for c in (image, label, caption) if c is not None])
    return HubDataset(
        name=name,
        size=size,
        classes=classes,
        fingerprint=fingerprint,
        rows=rows.cast_column(image, datasets.Image(decode=False)),
        image=image,
        label=label,
        places=places,
        caption=caption,
    )


def _image_column(name: str, rows: Any) -> str:
    import datasets

    def holds_images(column: str) -> bool:
        feature = rows.features[column]
        if isinstance(feature, datasets.Value):
            return feature.dtype in {"binary", "large_binary"}
        return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)

    columns: Sequence[str] = [c for c in (*_IMAGES, *rows.column_names) if c in rows.column_names]
    for column in columns:
        if holds_images(column):
            return column
    raise DataError(f"{name} has no column of images; its columns are {', '.join(rows.column_names)}")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
