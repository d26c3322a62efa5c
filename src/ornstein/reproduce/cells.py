"""Cells: the jobs of an experiment, each stored as soon as it is done."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..storage.files import write_text
from ..storage.reading import TABLE, parse_json, read_bytes

Json = Any  # None, bool, int, float, str, and lists and mappings of them
Job = Callable[..., Json]


class Cells:
    """A store of finished cells in a folder, and the way to ask for more.

    ``cells(function, **settings)`` returns ``function(**settings)``, from the store if it is there. The settings and
    the result are plain JSON values, the function stands at the top of a module, and equal settings must give equal
    results: the settings hold the seed. ``cells.map(function, rows)`` does the same for many settings and, with
    ``jobs`` above 1, in that many single-threaded processes. Each cell is written atomically the moment it is done;
    an unreadable one is computed again.

    A function with a parameter ``files`` is given a folder for what is too large for a cell, such as weights; it is no
    part of the settings. It stays with the cells, or goes with this object if they are kept in memory.

    Args:
        folder: where cells are kept (made if missing); None keeps them in memory.
        experiment: name and version, part of each cell's identity.
        jobs: processes used by `map`.
        note: called with one line about each computed cell.

    ``used`` counts the different cells asked for, ``seconds`` what they took to compute, also in earlier runs.
    """

    def __init__(
        self,
        folder: Path | None,
        experiment: str = "",
        version: int = 0,
        jobs: int = 1,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if jobs < 1:
            raise ConfigError(f"jobs must be at least 1, got {jobs}")
        self.folder, self.experiment, self.version, self.jobs, self.note = folder, experiment, version, jobs, note
        self.seconds, self.used = 0.0, 0
        self._passing: Path | None = None
        self._memory: dict[str, dict[str, Json]] = {}
        self._used: set[str] = set()

    def __call__(self, function: Job, /, **settings: Json) -> Json:
        """The value of one cell."""
        return self.map(function, [settings])[0]

    def map(self, function: Job, rows: Sequence[Mapping[str, Json]]) -> list[Json]:
        """The values of many cells, in the order of ``rows``."""
        names = [self._name(function, row) for row in rows]
        todo = {name: row for name, row in zip(names, rows, strict=True) if self._load(name) is None}
        if len(todo) > 1 and self.jobs > 1:
            self._many(function, todo)
        else:
            for place, (name, row) in enumerate(todo.items(), 1):
                self._store(name, row, *_timed(function, self._given(function, row)))
                self._say(function, row, place, len(todo))
        stored = {name: self._load(name) for name in names}
        fresh = stored.keys() - self._used
        self._used |= fresh
        self.used += len(fresh)
        self.seconds += sum(cell["seconds"] for name, cell in stored.items() if name in fresh and cell is not None)
        return [stored[name]["value"] for name in names]  # pyright: ignore[reportOptionalSubscript]

    def _many(self, function: Job, todo: Mapping[str, Mapping[str, Json]]) -> None:
        # Spawned: a forked child of a process that has used torch's threads can hang.
        with ProcessPoolExecutor(
            min(self.jobs, len(todo)), mp_context=get_context("spawn"), initializer=_alone
        ) as pool:
            place = (function.__module__, function.__qualname__)
            futures = {
                pool.submit(_elsewhere, *place, self._given(function, row)): (name, row) for name, row in todo.items()
            }
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    name, row = futures[future]
                    self._store(name, row, *future.result())
                    self._say(function, row, done, len(todo))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def files(self) -> Path:
        """The folder that functions with a parameter ``files`` are given."""
        if self.folder is not None:
            return self.folder / "files"
        if self._passing is None:
            self._passing = Path(tempfile.mkdtemp(prefix="ornstein-cells-"))
            weakref.finalize(self, shutil.rmtree, self._passing, ignore_errors=True)
        return self._passing

    def _given(self, function: Job, row: Mapping[str, Json]) -> dict[str, Any]:
        """The arguments of a cell's function."""
        takes = "files" in inspect.signature(function).parameters
        if takes:
            self.files().mkdir(parents=True, exist_ok=True)
        return {**row, "files": self.files()} if takes else dict(row)

    def _say(self, function: Job, row: Mapping[str, Json], done: int, total: int) -> None:
        self.note(f"{function.__name__} {' '.join(f'{k}={v}' for k, v in row.items())} ({done} of {total})"[:160])

    def _name(self, function: Job, row: Mapping[str, Json]) -> str:
        if function.__qualname__ != function.__name__:
            raise ConfigError(f"a cell's function must stand at the top of a module, got {function.__qualname__}")
        identity = json.dumps([self.experiment, self.version, function.__name__, dict(row)], sort_keys=True)
        return f"{function.__name__.strip('_')}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def _load(self, name: str) -> dict[str, Json] | None:
        if self.folder is None or name in self._memory:
            return self._memory.get(name)
        try:
            cell = parse_json(read_bytes(self.folder / f"{name}.json", TABLE))
            self._memory[name] = {"value": cell["value"], "seconds": float(cell["seconds"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return self._memory[name]

    def _store(self, name: str, row: Mapping[str, Json], value: Json, seconds: float) -> None:
        cell = {"experiment": self.experiment, "version": self.version, "settings": dict(row), "seconds": seconds}
        text = json.dumps({**cell, "value": value}, ensure_ascii=False)
        self._memory[name] = {"value": parse_json(text)["value"], "seconds": seconds}
        if self.folder is None:
            return
        write_text(self.folder / f"{name}.json", text)


def _timed(function: Job, row: Mapping[str, Json]) -> tuple[Json, float]:
    begin = time.perf_counter()
    return function(**row), round(time.perf_counter() - begin, 3)


def _alone() -> None:
    import torch

    torch.set_num_threads(1)


def _elsewhere(module: str, name: str, row: Mapping[str, Json]) -> tuple[Json, float]:
    return _timed(getattr(importlib.import_module(module), name), row)
