"""Statistics as files: safetensors with a JSON description of what they were made from, and a checksum of both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ornstein.errors import DataError, UsageError
from ornstein.metrics.classes import InceptionScoreSums
from ornstein.metrics.frechet import QUANTUM, Moments
from ornstein.metrics.kernel import Sample
from ornstein.metrics.vectors import Vectors
from ornstein.storage.files import atomic
from ornstein.storage.reading import Refused, parse_json, reason_of
from ornstein.storage.weights import read_arrays

_FORMAT = 2
_KEY = "ornstein.statistics"
_Arrays = dict[str, np.ndarray[Any, Any]]


def write(path: str | Path, sets: Sequence[Any]) -> None:
    """Write statistics of one set of images, one for each feature network, to ``path``; put in place at once."""
    from safetensors.numpy import save

    path = Path(path)
    if not sets or len({one.features for one in sets}) < len(sets):
        raise UsageError("a statistics file holds one set of statistics for each feature network: give these")
    arrays: _Arrays = {}
    described = []
    for number, one in enumerate(sets):
        arrays |= {f"{number}.{name}": array for name, array in _arrays(one).items()}
        described.append(_described(one))
    document = {"format": _FORMAT, "quantum": QUANTUM, "sets": described}
    header = json.dumps({**document, "checksum": _checksum(document, arrays)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(save(arrays, metadata={_KEY: header}))
        file.flush()
        os.fsync(file.fileno())  # minutes of work: on the disk before the old file goes


def read_fields(path: str | Path) -> list[dict[str, Any]]:
    """The fields of the sets that `write` wrote, in order.

    Raises `DataError` for a missing, truncated, damaged or foreign file.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no statistics at {str(path)!r}: make them first")
    arrays, metadata = read_arrays(path, DataError, "it is truncated or damaged, make the statistics again")
    if _KEY not in metadata:
        raise DataError(f"{path} holds no statistics of images: give a file that Statistics.save wrote")
    try:
        document = parse_json(metadata[_KEY])
    except Refused as error:
        raise DataError(f"{path} is truncated or damaged ({error}): make the statistics again") from None
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no statistics of images: give a file that Statistics.save wrote")
    found = document.get("format")
    if found != _FORMAT or document.get("quantum") != QUANTUM:
        raise DataError(f"{path} has format {found}, this version reads {_FORMAT}: make it again")
    checksum = document.pop("checksum", None)
    if _checksum(document, arrays) != checksum:
        raise DataError(f"{path} is damaged (its checksum does not match): make the statistics again")
    try:
        return [_read(about, arrays, f"{number}.") for number, about in enumerate(document["sets"])]
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} does not describe its own arrays ({reason_of(error)}): make it again") from None


def _arrays(one: Any) -> _Arrays:
    arrays: _Arrays = {
        "total": one.moments.total,
        "products": one.moments.products,
        "sample_indices": np.array(one.sample.indices, dtype=np.int64),
        "sample": one.sample.rows(one.moments.width),
    }
    if one.spatial is not None:
        arrays |= {"spatial_total": one.spatial.total, "spatial_products": one.spatial.products}
    if one.classes is not None:
        arrays |= {
            "classes_counts": one.classes.counts,
            "classes_entropies": one.classes.entropies,
            "classes_totals": one.classes.totals,
        }
    if one.vectors is not None:
        arrays |= {"vectors_indices": one.vectors.indices, "vectors": one.vectors.rows}
    return arrays


def _described(one: Any) -> dict[str, Any]:
    return {
        "features": one.features,
        "resolution": None if one.resolution is None else list(one.resolution),
        "count": one.count,
        "capacity": one.sample.capacity,
        "fingerprint": f"{one.fingerprint:032x}",
        "skipped": one.skipped,
        "parts": sorted(one.parts),
        "world": one.world,
        "about": dict(one.about),
    }


def _read(about: Mapping[str, Any], arrays: _Arrays, prefix: str) -> dict[str, Any]:
    mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    sample = Sample(about["capacity"])
    for index, row in zip(mine["sample_indices"].tolist(), mine["sample"], strict=True):
        sample.add(index, row)
    spatial = classes = vectors = None
    if "spatial_total" in mine:
        spatial = _moments(about["count"], mine["spatial_total"], mine["spatial_products"])
    if "classes_counts" in mine:
        classes = InceptionScoreSums(len(mine["classes_counts"]))
        classes.counts, classes.entropies = mine["classes_counts"], mine["classes_entropies"]
        classes.totals = mine["classes_totals"]
    if "vectors" in mine:
        vectors = Vectors(mine["vectors"].shape[1])
        vectors.add(mine["vectors_indices"], mine["vectors"])
    return {
        "features": about["features"],
        "resolution": tuple(about["resolution"]) if about["resolution"] else None,
        "moments": _moments(about["count"], mine["total"], mine["products"]),
        "sample": sample,
        "spatial": spatial,
        "classes": classes,
        "vectors": vectors,
        "fingerprint": int(about["fingerprint"], 16),
        "skipped": about["skipped"],
        "parts": frozenset(about["parts"]),
        "world": about["world"],
        "about": about["about"],
    }


def _moments(count: int, total: np.ndarray[Any, Any], products: np.ndarray[Any, Any]) -> Moments:
    moments = Moments(total.shape[0])
    moments.count, moments.total, moments.products = count, total, products
    return moments


def _checksum(document: Mapping[str, Any], arrays: _Arrays) -> str:
    digest = hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
