"""One pass over a set of images for `ornstein eval`: every network evaluates each block once."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, UsageError
from ..storage.files import write_text
from .image_sets import ImageSet
from .request import INSISTING, EvalRequest, weights_of

if TYPE_CHECKING:
    from ..metrics import NetworkFeatures, Statistics
    from ..metrics.clip import Clip
    from ..metrics.perceptual import PerceptualDistance
    from ..metrics.sets import Census
    from .eval_args import EvalArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluators:
    """The networks of a call: features, a perceptual distance for diversity, CLIP."""

    features: tuple[NetworkFeatures, ...] = ()
    distance: PerceptualDistance | None = None
    clip: Clip | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatistics:
    """Result of one pass: statistics by network, numbers by name, and numbers of single images by name."""

    census: Census
    statistics: tuple[Statistics, ...]
    numbers: dict[str, float | int | None] = field(default_factory=dict[str, "float | int | None"])
    images: dict[str, dict[int, Any]] = field(default_factory=dict[str, dict[int, Any]])
    captions: dict[int, str] = field(default_factory=dict[int, str])


def load_evaluators(request: EvalRequest, args: EvalArgs) -> Evaluators:
    """Every network that the request needs, loaded. Raises `UsageError` where one is not what its metric insists on."""
    from ..metrics import features, perceptual
    from ..metrics.clip import Clip
    from ..metrics.inceptionv3 import STANDARD
    from ..runs import usable_device

    usable_device(args.device)
    networks: list[NetworkFeatures] = []
    if request.on_statistics or request.retrieves:
        names = [name.strip() for name in args.features.split(",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"--features {args.features!r} must name each of lite0, inception, dinov2 at most once")
        weights = weights_of(args.weights, names)
        networks = [features(name, weights=weights.get(name), device=args.device) for name in names]
    for name in request.insisting:
        if all(network.name != STANDARD for network in networks):
            raise UsageError(
                f"{name} is defined on the standard Inception weights, not on {', '.join(n.name for n in networks)}: "
                f"give --features inception with them, or ask for {INSISTING[name]}"
            )
    return Evaluators(
        features=tuple(networks),
        distance=perceptual.lpips(args.lpips).to(args.device) if "diversity" in request.metrics else None,
        clip=Clip(args.clip, args.device) if "clip" in request.metrics else None,
        device=args.device,
    )


def compute_statistics(
    images: ImageSet, evaluators: Evaluators, keep: Collection[str], *, names: bool = False
) -> SetStatistics:
    """Statistics and numbers of a set of images, from one pass over it; with ``names`` also the name of each image."""
    from ..metrics import Collector, DiversityMeter
    from ..metrics.blocks import blocks
    from ..metrics.clip import ClipMeter
    from ..metrics.sets import Census

    collectors = [Collector(network, keep=keep, about=images.about) for network in evaluators.features]
    diversity = None if evaluators.distance is None else DiversityMeter()
    clip = None if evaluators.clip is None else ClipMeter(evaluators.clip)
    census, called, captions = Census(), {}, {}
    observers = [one for one in (*collectors, diversity, clip) if one is not None]
    for block in blocks(images.images):
        census.update(block)
        if names:
            called |= dict(zip(block.indices, block.names, strict=True))
        captions |= dict(zip(block.indices, block.captions, strict=True))
        for observer in observers:
            observer.update(block)
    result = SetStatistics(census=census, statistics=tuple(collector.result() for collector in collectors))
    result.images["name"] = called
    result.captions.update(captions)
    if diversity is not None and evaluators.distance is not None:
        found = diversity.result(evaluators.distance, evaluators.device)
        name = f"diversity-{evaluators.distance.name}"
        result.numbers.update({name: found.value, f"{name} error": found.error, f"{name} pairs": found.pairs})
    if clip is not None:
        score = clip.result()
        name = f"CLIP-score-{score.name}"
        result.numbers.update({name: score.value, f"{name} error": score.error})
        result.images[name] = dict(zip(score.indices.tolist(), score.scores.tolist(), strict=True))
    return result


def ranks(mine: SetStatistics, theirs: SetStatistics | None) -> dict[str, float | int | None]:
    """Whether images show their captions: the rank of each one's own among those of the captioned data.

    Raises `UsageError` where the data is a file of statistics, and for an image without a caption on either side.
    """
    from ..metrics.measure import label
    from ..metrics.retrieval import TOP, retrieval

    if theirs is None:
        raise UsageError("the metric retrieval compares captions, which statistics do not keep: name the data itself")
    numbers: dict[str, float | int | None] = {}
    for one, other in zip(mine.statistics, theirs.statistics, strict=True):
        assert one.vectors is not None
        assert other.vectors is not None
        own = [mine.captions[i] for i in one.vectors.indices.tolist()]
        known = [theirs.captions[i] for i in other.vectors.indices.tolist()]
        if not all(own) or not all(known):
            raise UsageError("the metric retrieval needs a caption for every image: put them into metadata.jsonl")
        found = retrieval(one.vectors.rows, own, other.vectors.rows, known)
        name = label("retrieval", one.features)
        numbers |= {
            f"{name} top-1": found.first,
            f"{name} top-{TOP}": found.top,
            f"{name} top-{TOP} by chance": found.chance,
            f"{name} median rank": found.median,
            f"{name} captions": found.captions,
        }
    return numbers


def write_images(path: Path, columns: Mapping[str, Mapping[int, Any]]) -> None:
    """A row for each image: its number, its name and its numbers; null, or nothing in CSV, where one is undefined."""
    rows: list[dict[str, Any]] = []
    for index in sorted({index for column in columns.values() for index in column}):
        row: dict[str, Any] = {"index": index}
        for name, column in columns.items():
            value = column.get(index)
            row[name] = None if isinstance(value, float) and math.isnan(value) else value
        rows.append(row)
    text = _json_lines(rows) if path.suffix == ".jsonl" else _csv(rows, ["index", *columns])
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"--per-image {path} cannot be written ({(error.strerror or 'error').lower()})") from None


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
