"""How rare a set of images is among the joined data, how good, and how many of them belong to the known rare parts.

Rarity and quality are measured on the features of EfficientNet-lite0, and on images shrunk to 8 × 8 pixels, which know
nothing of that network and forgive fine artefacts. The rare pictures to compare with were never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data import open_source
from ...metrics import Statistics, features, measure, mmd2, statistics
from ...metrics.manifold import manifold
from ...metrics.rarity import rarity
from ...metrics.sets import VECTORS
from ...storage.files import digest
from ..arms import Pixels
from .cells import source

Floats = npt.NDArray[np.float64]
_NAMES = {
    "avgknn": "AvgkNN",
    "lof": "LOF",
    "rarity": "rarity",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """``real``: the training data; ``rare``: new drawings of its rare parts; ``pixels``, ``rare_pixels``: at 8 × 8.

    ``judge`` (width + 1, parts) is a linear classifier of the parts on features, made of the training data.
    """

    real: Statistics
    rare: Statistics
    pixels: Floats
    rare_pixels: Floats
    judge: Floats


def measured(images: Tensor, data: str, size: int, reference: int, files: Path) -> dict[str, Any]:
    """Images (n, 3, R, R) uint8 against the first ``reference`` of the data.

    Rarity among the data: ``avgknn``, ``lof``, ``rarity`` (None where all lies off the manifold), ``undefined``.
    Against the data: ``precision``, ``recall``, ``density``, ``coverage``, ``kid``. Against the held-out rare pictures:
    ``recall rare``, ``coverage rare``, ``kid rare``. ``share`` is the part of the images that the judge puts into a
    rare class. Names that end in "pixels" are the same on images shrunk to 8 × 8.
    """
    known = references(data, size, reference, files)
    ours = statistics(images, _network(), keep=(VECTORS,))
    found = measure(ours, known.real, ("prdc", "avgknn", "lof", "rarity")).numbers
    mine, rare = _rows(ours), _rows(known.rare)
    near = manifold(mine, rare)
    flat = pixels(images)
    plain, flat_rare = manifold(flat, known.pixels), manifold(flat, known.rare_pixels)
    strange = rarity(flat, known.pixels)
    out: dict[str, Any] = {name: found[f"{label}-lite0"] for name, label in _NAMES.items()}
    return out | {
        "undefined": found["rarity-lite0 undefined"],
        "avgknn pixels": float(strange.average.mean()),
        "lof pixels": float(strange.outlier.mean()),
        "rarity pixels": strange.mean_score,
        "undefined pixels": strange.undefined,
        "precision pixels": plain.precision,
        "recall pixels": plain.recall,
        "density pixels": plain.density,
        "coverage pixels": plain.coverage,
        "recall rare pixels": flat_rare.recall,
        "coverage rare pixels": flat_rare.coverage,
        "recall rare": near.recall,
        "coverage rare": near.coverage,
        "kid": mmd2(mine, _rows(known.real)),
        "kid rare": mmd2(mine, rare),
        "share": float((judged(mine, known.judge) > 0).mean()),
    }


def judging(*, data: str, size: int, reference: int, files: Path) -> Mapping[str, Any]:
    """What the judge is worth on new drawings: ``{"rare": part told rightly, "common": the same, "hash"}``."""
    known = references(data, size, reference, files)
    labels = np.concatenate([[part] * count for part, count in enumerate(counts(data).values()) if part])
    common = statistics(torch.stack(beyond(data, size, 0, 0, 64)), _network(), keep=(VECTORS,))
    return {
        "rare": float((judged(_rows(known.rare), known.judge) == labels).mean()),
        "common": float((judged(_rows(common), known.judge) == 0).mean()),
        "hash": f"{known.rare.fingerprint:032x}",
    }


@lru_cache(maxsize=1)
def references(data: str, size: int, reference: int, files: Path) -> References:
    """The features to compare with, computed once and kept in ``files``."""
    folder = files / f"reference-{digest(data, size, reference)[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    joined = source(data, size)
    some = [joined[i] for i in range(min(reference, len(joined)))]
    real = _kept(folder / "real.safetensors", lambda: torch.stack([example.image for example in some]))
    rare = _kept(folder / "rare.safetensors", lambda: _rare(data, size))
    return References(
        real=real,
        rare=rare,
        pixels=pixels(torch.stack([example.image for example in some])),
        rare_pixels=pixels(_rare(data, size)),
        judge=judge(_rows(real), np.array([example.label for example in some])),
    )


def _kept(path: Path, images: Callable[[], Tensor]) -> Statistics:
    """The statistics in a file, made if it is missing."""
    if not path.is_file():
        statistics(images(), _network(), keep=(VECTORS,)).save(path)
    return Statistics.load(path)


# -------------------------------------------------------------------------------- drawings that were never trained on


def counts(data: str) -> dict[str, int]:
    """The parts of a joined text.

    >>> counts("critters:8+planets:2")
    {'critters': 8, 'planets': 2}
    """
    return {name: int(count) for name, count in (text.split(":") for text in data.split("+"))}


def beyond(data: str, size: int, part: int, first: int, count: int) -> list[Tensor]:
    """Drawings of a part, from the ``first``-th behind those in the data."""
    name, trained = list(counts(data).items())[part]
    whole = open_source(f"{name}:{trained + first + count}", size=size)
    return [whole[trained + first + i].image for i in range(count)]


def held(data: str, size: int, count: int) -> Tensor:
    """About ``count`` new drawings in the proportions of the data, those behind the rare reference."""
    parts = counts(data)
    whole = sum(parts.values())
    each = [max(round(count * number / whole), 1) for number in parts.values()]
    firsts = [0, *list(parts.values())[1:]]
    return torch.stack([im for part, n in enumerate(each) for im in beyond(data, size, part, firsts[part], n)])


def _rare(data: str, size: int) -> Tensor:
    """New drawings of the rare parts, as many as were trained on."""
    parts = list(counts(data).values())
    return torch.stack([im for part in range(1, len(parts)) for im in beyond(data, size, part, 0, parts[part])])


# ----------------------------------------------------------------------------------------------------------- numbers


@lru_cache(maxsize=1)
def _network() -> Any:
    return features("lite0")


def _rows(known: Statistics) -> Floats:
    assert known.vectors is not None
    return known.vectors.rows.astype(np.float64)


def pixels(images: Tensor) -> Floats:
    """Images shrunk to 8 × 8, (n, 192)."""
    return Pixels()(images).numpy().astype(np.float64)


def judge(rows: Floats, labels: npt.NDArray[np.int64], ridge: float = 0.1) -> Floats:
    """Least squares of the parts' indicators on features and 1, every part weighing the same; (width + 1, parts)."""
    wide = np.concatenate((rows, np.ones((len(rows), 1))), axis=1)
    parts = int(labels.max()) + 1
    weight = 1.0 / np.bincount(labels, minlength=parts)[labels]
    inner = (wide * weight[:, None]).T @ wide
    inner += ridge * np.trace(inner) / len(inner) * np.eye(len(inner))
    return np.linalg.solve(inner, (wide * weight[:, None]).T @ np.eye(parts)[labels])


def judged(rows: Floats, weights: Floats) -> npt.NDArray[np.int64]:
    """The part of each image, (n,)."""
    return (rows @ weights[:-1] + weights[-1]).argmax(1)
