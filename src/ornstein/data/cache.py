"""Files kept between runs: rendered pictures (memory-mapped afterwards) and small JSON documents.

Everything is written to a temporary file first and then moved into place, so a reader sees a whole file or none, and
any number of processes may write the same entry at once. A file that is torn (a power cut), or was made from something
else, is made again. A folder that cannot be written costs only time: pictures are then kept in memory. Every entry can
be deleted at any time; each combination of set, count and size has its own.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import current_process, get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ornstein.storage.files import atomic, cache_folder, digest, map_array, read_json, write_json
from ornstein.storage.reading import parse_json

Picture = npt.NDArray[np.uint8]  # (3, R, R)
Draw = Callable[[int], tuple[Picture, dict[str, str]]]
Progress = Callable[[int, int], None]  # (done, total)

_FIRST = 32
PARALLEL_FROM = 256  # fewer pictures are rendered sooner than processes are started


class Pictures:
    """Rendered pictures, uint8 (N, 3, R, R), with a small dictionary of notes for each."""

    def __init__(self, notes: list[dict[str, str]], *, path: Path | None = None, array: Picture | None = None) -> None:
        self.notes = notes
        self._path = path
        self._array = array

    @property
    def array(self) -> Picture:
        """The pictures, memory-mapped if they lie in the cache."""
        if self._array is None:
            assert self._path is not None
            self._array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        assert self._array is not None
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        # A process started afresh maps the file again instead of receiving a copy of it.
        return {"notes": self.notes, "_path": self._path, "_array": None if self._path else self._array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def pictures(key: Mapping[str, Any], count: int, size: int, draw: Draw, progress: Progress | None = None) -> Pictures:
    """``draw(0)``, …, ``draw(count − 1)``, from the cache if they were rendered before under the same ``key``."""
    whole = parse_json(json.dumps({**key, "count": count, "size": size, "format": 1}))
    stem = digest(json.dumps(whole, sort_keys=True))
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"pictures-{stem}.npy"
        found = _read(path, whole)
        return found or _write(path, whole, draw, progress)
    except OSError:
        rows, notes = [], []
        for row, note in _drawn(draw, count, progress):
            rows.append(row)
            notes.append(note)
        return Pictures(notes, array=np.stack(rows))


def _shape(key: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return (key["count"], 3, key["size"], key["size"])


def _read(path: Path, key: Mapping[str, Any]) -> Pictures | None:
    notes = read_json(path.with_suffix(".json"))
    if not isinstance(notes, dict) or notes.get("key") != key:
        return None
    array = map_array(path, _shape(key), np.dtype(np.uint8))
    if array is None or _check(array) != notes.get("crc32") or len(notes.get("notes", ())) != key["count"]:
        return None
    return Pictures(notes["notes"], path=path, array=array)


def _check(array: Picture) -> int:
    total = 0
    for row in array:
        total = zlib.crc32(row.tobytes(), total)
    return total


def _write(path: Path, key: Mapping[str, Any], draw: Draw, progress: Progress | None) -> Pictures:
    notes: list[dict[str, str]] = []
    total = 0
    with atomic(path) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": _shape(key)}
        np.lib.format.write_array_header_1_0(file, header)
        for row, note in _drawn(draw, key["count"], progress):
            data = row.tobytes()
            total = zlib.crc32(data, total)
            file.write(data)
            notes.append(note)
    write_json(path.with_suffix(".json"), {"key": key, "crc32": total, "notes": notes})
    return Pictures(notes, path=path)


def _drawn(draw: Draw, count: int, progress: Progress | None) -> Iterator[tuple[Picture, dict[str, str]]]:
    """The pictures in order, rendered by several processes where that is possible and worth it."""
    for done, (row, note) in enumerate(_rendered(draw, count), start=1):
        yield np.ascontiguousarray(row), note
        if progress is not None and (done % 64 == 0 or done == count):
            progress(done, count)


def _rendered(draw: Draw, count: int) -> Iterator[tuple[Picture, dict[str, str]]]:
    workers = min(8, os.cpu_count() or 1)
    alone = workers == 1 or current_process().daemon or "fork" not in get_all_start_methods()
    if alone or count < PARALLEL_FROM:
        yield from map(draw, range(count))
        return
    # The first ones are drawn here, so that the children inherit what drawing loads. Threads would not help, as the
    # renderer holds the interpreter's lock; the children touch no tensor library.
    yield from map(draw, range(_FIRST))
    with get_context("fork").Pool(workers) as pool:
        yield from pool.imap(draw, range(_FIRST, count), chunksize=16)
