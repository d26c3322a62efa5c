"""A folder of images: flat, in class folders, or with a ``metadata.jsonl`` of captions and labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ornstein.data.base import Example, checked
from ornstein.data.decode import decode_file, extensions
from ornstein.errors import DataError
from ornstein.storage.files import digest, digest_files
from ornstein.storage.reading import Refused, fault_of_text, lines_of, parse_json, unreadable

_SAMPLE = re.compile(r"\d{6,}\.png")
METADATA = "metadata.jsonl"
_CAPTIONS = ("caption", "text", "prompt")
_READ = ("file_name", "label", *_CAPTIONS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path relative to the folder (with ``/``), label and caption."""

    path: str
    label: int = -1
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Images of a folder, decoded when asked for."""

    root: Path
    size: int
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.root)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry = self.entries[checked(index, len(self))]
        image = decode_file(self.root / entry.path, self.size, entry.path)
        return Example(image=image, label=entry.label, caption=entry.caption, name=entry.path)

    def read_captions(self) -> list[str]:
        """Those of the metadata, or the names of the class folders."""
        return [entry.caption for entry in self.entries]


def open_folder(root: Path, *, size: int) -> Folder:
    """Images under ``root``, in the order of their paths.

    * With ``metadata.jsonl``: one JSON object a line with ``file_name``, optionally ``caption`` (or ``text``) and
      ``label`` (a name, or a number from 0). Only the listed files count.
    * Images lying directly in the folder: no labels; images of subfolders are included.
    * Otherwise each top-level subfolder that holds images is a class.

    Raises `DataError` if there is no image, or the metadata cannot be read.
    """
    metadata = root / METADATA
    listed = metadata.exists()
    if listed:
        entries, classes = _listed(metadata)
    else:
        entries, classes = _found(root)
    if not entries:
        raise DataError(f"folder {root} holds no images: give one with files such as .png, .jpg or .webp in it")
    seen = digest_files((e.path, root / e.path) for e in entries)
    labels = digest(*((e.label, e.caption) for e in entries)) if listed else ""
    return Folder(
        root=root,
        size=size,
        classes=classes,
        entries=entries,
        fingerprint=digest("folder", seen, classes, labels, size),
    )


def _found(root: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    paths = sorted(_walk(root))
    if any("/" not in path for path in paths):
        return tuple(Entry(path) for path in paths), ()
    classes = tuple(sorted({path.split("/", 1)[0] for path in paths}))
    place = {name: label for label, name in enumerate(classes)}
    entries = []
    for path in paths:
        name = path.split("/", 1)[0]
        entries.append(Entry(path, place[name], name.replace("_", " ")))
    return tuple(entries), classes


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of the images, without hidden files and the grid.png of samples; no folder is entered twice."""
    known = extensions()
    entered = set()

    def refuse(error: OSError) -> None:
        if error.filename == str(root):
            raise DataError(f"folder {root} cannot be read: {(error.strerror or 'error').lower()}") from None

    for here, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        # What `ornstein sample` writes: its overview is not one of the samples.
        if any(_SAMPLE.fullmatch(file) for file in files):
            files = [file for file in files if file != "grid.png"]
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in known:  # noqa: PTH122
                yield (Path(here) / file).relative_to(root).as_posix()


def _listed(metadata: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Entries of the metadata file, in its order."""
    try:
        rows = [(number, _row(metadata, number, line)) for number, line in lines_of(metadata)]
    except (OSError, Refused) as error:
        raise unreadable(metadata, error, DataError, "write one JSON object a line") from None
    labels = [row.get("label") for _, row in rows]
    classes, place = name_labels(labels, str(metadata))
    entries = []
    for (number, row), label in zip(rows, labels, strict=True):
        path = row.get("file_name")
        if not isinstance(path, str) or not path or Path(path).is_absolute() or ".." in Path(path).parts:
            got = repr(path)[:160]
            raise DataError(f"{metadata} line {number}: file_name must be a path inside the folder, got {got}")
        entries.append(Entry(Path(path).as_posix(), place.get(label, -1), caption_of(row)))
    return tuple(entries), classes


def _row(metadata: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except Refused as error:
        raise DataError(f"{metadata} line {number} is not a JSON object: {line[:60]!r} ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{metadata} line {number} is not a JSON object: {line[:60]!r}")
    for key, value in row.items():
        fault = fault_of_text(value) if isinstance(value, str) and key in _READ else None
        if fault:
            raise DataError(f"{metadata} line {number}: {key} {fault}: leave it out")
    return row


def caption_of(row: dict[str, Any]) -> str:
    """The first of caption, text and prompt that holds words."""
    return next((row[key].strip() for key in _CAPTIONS if isinstance(row.get(key), str)), "")


def name_labels(labels: list[Any], where: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Class names, and the index of every label met: names are sorted, numbers stand for themselves.

    ``None`` is no label. `DataError` for a mixture, or numbers that are not small and non-negative.
    """
    given = [label for label in labels if label is not None]
    if not given:
        return (), {}
    if not all(isinstance(label, str | int) for label in given):
        raise DataError(f"labels in {where} must be names or numbers")
    met = set(given)
    if all(isinstance(label, str) for label in met):
        classes = tuple(sorted(met))
        return classes, {name: i for i, name in enumerate(classes)}
    if all(isinstance(label, int) and not isinstance(label, bool) for label in met):
        if min(met) < -1 or max(met) >= 1_000_000:
            raise DataError(f"labels in {where} must be 0 … 999999 (−1 for none), got {min(met)} … {max(met)}")
        return tuple(str(i) for i in range(max(met) + 1)), {label: label for label in met}
    raise DataError(f"labels in {where} must be all names or all numbers")
