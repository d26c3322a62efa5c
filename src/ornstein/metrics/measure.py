"""The metrics by name: what each needs, and all of them measured on two sets of statistics.

Every number carries the name of its feature network; only the standard Inception weights give FID, sFID, KID and IS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ornstein.errors import ConfigError, UsageError
from ornstein.metrics.features import CLASSES, SPATIAL
from ornstein.metrics.frechet import frechet_distance
from ornstein.metrics.inceptionv3 import STANDARD
from ornstein.metrics.kernel import kernel_distance
from ornstein.metrics.manifold import K_DENSITY, K_PRECISION, manifold
from ornstein.metrics.rarity import K_AVERAGE, K_OUTLIER, K_RARITY, rarity
from ornstein.metrics.sets import VECTORS, Statistics
from ornstein.metrics.vectors import Floats

Numbers = dict[str, float | int | None]
Measure = Callable[[Statistics, Any, Sequence[str], Mapping[str, int]], tuple[Numbers, dict[str, Floats]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric: how it is measured, and what it needs of the statistics of the measured set (``ours``) and of the
    reference (``theirs``).

    ``measure(a, b, wanted, ks)`` gives its numbers, and those of single images, by their full names. Metrics that share
    one are measured together, and ``wanted`` are the names of those that are wanted; `single` makes it of a function of
    two statistics.
    """

    what: str
    measure: Measure
    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] | None = ()  # None: it looks at one set alone
    k: Mapping[str, int] = field(default_factory=dict[str, int])  # neighbours, by what they define


_PUBLISHED = {"fd": "FID", "sfd": "sFID", "kid": "KID", "is": "IS"}
_OTHERWISE = {"fd": "FD", "sfd": "sFD", "kid": "KID", "is": "IS"}


def label(metric: str, features: str) -> str:
    """What a number may be called: FID, sFID, KID, IS on the standard Inception weights alone.

    >>> label("fd", "lite0"), label("fd", "inception-2015-12-05"), label("recall", "lite0")
    ('FD-lite0', 'FID', 'recall-lite0')
    """
    if metric in _PUBLISHED and features == STANDARD:
        return _PUBLISHED[metric]
    return f"{_OTHERWISE.get(metric, metric)}-{features}"


def needs(metrics: Iterable[str], side: str = "ours") -> tuple[str, ...]:
    """What `statistics` must keep of "ours" or "theirs" for these metrics; other names than `METRICS` need nothing."""
    found = [getattr(METRICS[name], side) or () for name in metrics if name in METRICS]
    return tuple(sorted({keep for keeps in found for keep in keeps}))


def neighbours(metrics: Iterable[str], k: int | None = None) -> dict[str, int]:
    """The k of each quantity that neighbours define: the definitions' own, or ``k`` for all of them."""
    if k is not None and k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    return {what: k or own for name in metrics if name in METRICS for what, own in METRICS[name].k.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """Numbers by their full names; and for each image of the measured set, in the order of ``indices``, its own."""

    numbers: Mapping[str, float | int | None]
    images: Mapping[str, Floats]
    indices: Sequence[int]


def check(a: Statistics, b: Statistics) -> None:
    """Raise `UsageError` unless the two sets can be compared: one network, one resolution, all parts, two images."""
    if a.features != b.features:
        raise UsageError(
            f"cannot compare features {a.features!r} with {b.features!r}: use one feature network for both"
        )
    for part in (a, b):
        if not part.complete:
            missing = sorted(set(range(part.world)) - part.parts)
            raise UsageError(f"statistics lack the parts of ranks {missing} of {part.world}: merge all parts first")
    if a.resolution is None or b.resolution is None or min(a.count, b.count) < 2:
        raise UsageError(f"distances need at least 2 images on each side, got {a.count} and {b.count}: give more")
    if a.resolution != b.resolution:
        sizes = " and ".join(f"{h}×{w}" for h, w in (a.resolution, b.resolution))
        raise UsageError(f"cannot compare images of different resolutions ({sizes}): resize one set")


def measure(a: Statistics, b: Statistics | None, metrics: Iterable[str], *, k: int | None = None) -> Measured:
    """The ``metrics`` (names of `METRICS`) of set ``a``, against reference ``b`` where they compare.

    ``k`` replaces the definitions' own numbers of neighbours. Raises `ConfigError` for an unknown name, `UsageError`
    for statistics that cannot be compared (`check`), lack what a metric needs, or hold too few images for k.
    """
    wanted = list(metrics)
    for name in wanted:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")
        _require(a, name, METRICS[name].ours)
        if METRICS[name].theirs is not None:
            if b is None:
                raise UsageError(f"the metric {name} compares two sets, and only one was given")
            check(a, b)
            _require(b, name, METRICS[name].theirs or ())
    ks = neighbours(wanted, k)
    numbers: Numbers = {}
    images: dict[str, Floats] = {}
    for function in dict.fromkeys(METRICS[name].measure for name in wanted):
        more, shown = function(a, b, wanted, ks)
        numbers, images = numbers | more, images | shown
    indices = a.vectors.indices.tolist() if a.vectors is not None and images else []
    return Measured(numbers=numbers, images=images, indices=indices)


def _require(one: Statistics, metric: str, keeps: Sequence[str]) -> None:
    for keep in keeps:
        if getattr(one, keep) is None:
            raise UsageError(f"the metric {metric} needs statistics that keep {keep!r}: make them again with it")


def single(name: str, function: Callable[[Statistics, Statistics], float | int | None]) -> Measure:
    """The measurement of a metric that is one number of two sets, called ``name``."""

    def found(a: Statistics, b: Any, wanted: Sequence[str], ks: Mapping[str, int]) -> tuple[Numbers, dict[str, Floats]]:
        del wanted, ks
        return {label(name, a.features): function(a, b)}, {}

    return found


def _spatial(a: Statistics, b: Statistics) -> float:
    assert a.spatial is not None
    assert b.spatial is not None
    return frechet_distance(a.spatial, b.spatial)


def _kid(a: Statistics, b: Any, wanted: Sequence[str], ks: Mapping[str, int]) -> tuple[Numbers, dict[str, Floats]]:
    del wanted, ks
    found = kernel_distance(a.sample.rows(a.moments.width), b.sample.rows(b.moments.width))
    name = label("kid", a.features)
    return {name: found.value, f"{name} error": found.error, f"{name} blocks": found.blocks}, {}


def _is(a: Statistics, b: Any, wanted: Sequence[str], ks: Mapping[str, int]) -> tuple[Numbers, dict[str, Floats]]:
    del b, wanted, ks
    assert a.classes is not None
    found, name = a.classes.score(), label("is", a.features)
    return {name: found.value, f"{name} deviation": found.deviation, f"{name} parts": found.splits}, {}


def _prdc(a: Statistics, b: Any, wanted: Sequence[str], ks: Mapping[str, int]) -> tuple[Numbers, dict[str, Floats]]:
    del wanted
    assert a.vectors is not None
    found = manifold(a.vectors.rows, b.vectors.rows, k_precision=ks["precision"], k_density=ks["density"])
    names = ("precision", "recall", "density", "coverage")
    return {label(name, a.features): getattr(found, name) for name in names}, {}


def _rare(a: Statistics, b: Any, wanted: Sequence[str], ks: Mapping[str, int]) -> tuple[Numbers, dict[str, Floats]]:
    assert a.vectors is not None
    # One search serves all three; what was not wanted for looks at one neighbour.
    found = rarity(
        a.vectors.rows,
        b.vectors.rows,
        k_average=ks.get("avgknn", 1),
        k_outlier=ks.get("lof", 1),
        k_rarity=ks.get("rarity", 1),
    )
    numbers: Numbers = {}
    images: dict[str, Floats] = {}
    if "avgknn" in wanted:
        name = label("AvgkNN", a.features)
        images[name], numbers[name] = found.average, float(found.average.mean())
    if "lof" in wanted:
        name = label("LOF", a.features)
        images[name], numbers[name] = found.outlier, float(found.outlier.mean())
    if "rarity" in wanted:
        name = label("rarity", a.features)
        images[name] = found.score
        numbers |= {name: found.mean_score, f"{name} undefined": found.undefined}
    return numbers, images


_NEIGHBOURS: dict[str, Any] = {"ours": (VECTORS,), "theirs": (VECTORS,)}
METRICS: dict[str, Metric] = {
    "fd": Metric(what="Fréchet distance", measure=single("fd", lambda a, b: frechet_distance(a.moments, b.moments))),
    "sfd": Metric(
        what="Fréchet distance of spatial features",
        measure=single("sfd", _spatial),
        ours=(SPATIAL,),
        theirs=(SPATIAL,),
    ),
    "kid": Metric(what="kernel distance", measure=_kid),
    "is": Metric(what="inception score", measure=_is, ours=(CLASSES,), theirs=None),
    "prdc": Metric(
        what="precision, recall, density, coverage",
        measure=_prdc,
        k={"precision": K_PRECISION, "density": K_DENSITY},
        **_NEIGHBOURS,
    ),
    "avgknn": Metric(what="average distance to neighbours", measure=_rare, k={"avgknn": K_AVERAGE}, **_NEIGHBOURS),
    "lof": Metric(what="local outlier factor", measure=_rare, k={"lof": K_OUTLIER}, **_NEIGHBOURS),
    "rarity": Metric(what="rarity score", measure=_rare, k={"rarity": K_RARITY}, **_NEIGHBOURS),
}
"""The metrics that are measured on statistics, by their names on the command line."""
