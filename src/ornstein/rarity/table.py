"""The table of scores: one row an image, under a header with the data, the model and the recipe.

A `.csv` file is plain, and its header lies beside it in `NAME.csv.json` (older files begin with it, as JSON behind
"# "); a `.json` file is one document; a `.safetensors` file has the header, the names and the classes in its metadata.
The three hold the same numbers, bit for bit.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, StorageError, UsageError
from ..storage.reading import TABLE, Refused, denied, load_json, parse_json, read_bytes, reason_of

if TYPE_CHECKING:
    from ..data.base import Source

FORMAT, VERSION = "ornstein-rarity", 1
SUFFIXES = (".csv", ".json", ".safetensors")
_COLUMNS = ("index", "name", "score", "label")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Scores (N,) float64, higher is rarer, NaN where an image could not be read; labels (N,) int64, −1 for none.

    Row i is example i of the data. ``header`` has "data" (name, fingerprint, examples, classes), "run", "log_snr",
    "alpha_bar", "distance", "draws", "seed", "size" and "clamp".
    """

    header: Mapping[str, Any]
    names: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        counts = {len(self.names), len(self.scores), len(self.labels), int(self.header["data"]["examples"])}
        if len(counts) != 1:
            raise DataError(f"the table of scores is torn, its columns have {sorted(counts)} rows: score again")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.header["data"]["classes"])

    @property
    def fingerprint(self) -> str:
        """Digest of the data that was scored."""
        return self.header["data"]["fingerprint"]

    def check(self, source: Source) -> None:
        """Raise `DataError` unless these are the scores of ``source``."""
        if source.fingerprint != self.fingerprint or len(source) != len(self):
            data = self.header["data"]
            raise DataError(
                f"these scores belong to other data ({data['examples']} examples of {data['name']} at "
                f"{self.header['size']} px, not {len(source)} of {source.name} at {source.size} px): score this data"
            )

    def write(self, path: str | Path) -> None:
        """Write the file, atomically, in the format of its suffix."""
        from ..storage.files import atomic, write_json

        path = Path(path)
        data = {".csv": self._csv, ".json": self._json, ".safetensors": self._tensors}[suffix_of(path)]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix_of(path) == ".csv":
            write_json(beside(path), dict(self.header), indent=1)
        with atomic(path) as file:
            file.write(data)

    @classmethod
    def read(cls, path: str | Path) -> Table:
        """Read a file that `write` made; `DataError` for any other."""
        path = Path(path)
        reader = {".csv": _from_csv, ".json": _from_json, ".safetensors": _from_tensors}[suffix_of(path)]
        if not path.is_file():
            raise DataError(f"there is no table of scores {path}: make it with ornstein score RUN --out {path}")
        try:
            header, names, scores, labels = reader(path)
            if header.get("format") == FORMAT and header.get("version") == VERSION:
                wide = np.array([np.nan if value is None else value for value in scores], dtype=np.float64)
                return cls(header=header, names=tuple(names), scores=wide, labels=np.asarray(labels, dtype=np.int64))
        except (DataError, StorageError):
            raise
        except PermissionError:
            raise denied(path) from None
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OverflowError,
            csv.Error,
        ) as error:
            raise DataError(f"{path} is not a readable table of scores ({_why(error)}): score again") from None
        raise DataError(f"{path} is not a table of scores of this version: make it with ornstein score")

    def _plain(self) -> list[float | None]:
        return [None if value != value else value for value in self.scores.tolist()]

    def _csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        columns = (range(len(self)), self.names, self._plain(), self.labels.tolist())
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _json(self) -> bytes:
        rows = {"name": list(self.names), "score": self._plain(), "label": self.labels.tolist()}
        return json.dumps({**self.header, "rows": rows}, indent=None).encode()

    def _tensors(self) -> bytes:
        from safetensors.numpy import save

        metadata = {"header": json.dumps(dict(self.header)), "names": json.dumps(list(self.names))}
        return save({"scores": self.scores, "labels": self.labels}, metadata)


def suffix_of(path: Path) -> str:
    """The suffix of a table's file; `UsageError` for one that is none."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a table of scores ends in .csv, .json or .safetensors, got {path}")
    return path.suffix


_Columns = tuple[dict[str, Any], list[str], Any, Any]


def _from_csv(path: Path) -> _Columns:
    text = read_bytes(path, TABLE).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if text.startswith("# "):  # written before the header lay beside the file
        first, _, text = text.partition("\n")
        header = parse_json(first[2:])
    else:
        header = load_json(
            beside(path), DataError, "it heads the table of scores beside it, so copy it there, or score again"
        )
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if [int(row["index"]) for row in rows] != list(range(len(rows))):
        raise ValueError("its rows are not numbered 0, 1, 2, …")
    scores = [float(row["score"]) if row["score"] else None for row in rows]
    return header, [row["name"] for row in rows], scores, [int(row["label"]) for row in rows]


def beside(path: Path) -> Path:
    """The file of the header of a table in CSV."""
    return path.with_name(path.name + ".json")


def _why(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError | Refused) else type(error).__name__


def _from_json(path: Path) -> _Columns:
    document = parse_json(read_bytes(path, TABLE))
    rows = document.pop("rows")
    return document, rows["name"], rows["score"], rows["label"]


def _from_tensors(path: Path) -> _Columns:
    from ..storage.weights import read_arrays

    arrays, metadata = read_arrays(path, DataError, "score again")
    return parse_json(metadata["header"]), parse_json(metadata["names"]), arrays["scores"], arrays["labels"]
