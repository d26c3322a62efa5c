"""What a call of `ornstein eval` asks for, read from its words; whatever is wrong in them is refused here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, UsageError
from .output import refuse_target

if TYPE_CHECKING:
    from .eval_args import EvalArgs

INSISTING = {"fid": "fd", "sfid": "sfd"}  # these accept no other network than the published one
ON_IMAGES = ("diversity", "clip", "retrieval")  # measured on images or captions, not on statistics
SINGLE = ("avgknn", "lof", "rarity", "clip")  # each image has its own number
_PARTS = 10  # of the inception score


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """``metrics`` in order, ``insisting`` as they were written; ``ks`` neighbours by what they define.

    ``where`` is the data, ``store`` tells that one set is only turned into statistics.
    """

    metrics: tuple[str, ...]
    insisting: tuple[str, ...]
    ks: Mapping[str, int]
    where: str | None
    store: bool

    @property
    def on_statistics(self) -> tuple[str, ...]:
        """The metrics that are measured on statistics."""
        return tuple(name for name in self.metrics if name not in ON_IMAGES)

    @property
    def measured(self) -> tuple[str, ...]:
        """Of these the ones whose numbers are wanted: when one set is stored, those that look at one set."""
        from ..metrics import METRICS

        return tuple(name for name in self.on_statistics if not self.store or METRICS[name].theirs is None)

    @property
    def compares(self) -> bool:
        """Whether a second set is looked at."""
        from ..metrics import METRICS

        return self.retrieves or any(METRICS[name].theirs is not None for name in self.measured)

    @property
    def retrieves(self) -> bool:
        """Whether captions of both sets are compared."""
        return "retrieval" in self.metrics and not self.store

    def check_counts(self, ours: int, theirs: int | None) -> None:
        """Raise `UsageError` where a set is too small for a metric; ``theirs`` is None if there is no second set."""
        least = min(ours, ours if theirs is None else theirs)
        if ("is" in self.measured) and ours < _PARTS:
            raise UsageError(f"the inception score over {_PARTS} parts needs {_PARTS} images, got {ours}: give more")
        if (theirs is not None or self.store or "diversity" in self.metrics) and least < 2:
            raise UsageError(f"the metrics need at least 2 images on each side, got {least}: give more")
        for name, k in self.ks.items():
            smallest = least if name == "precision" else theirs
            if smallest is not None and smallest <= k:
                raise UsageError(
                    f"k = {k} neighbours ({name}) need at least {k + 1} images, got {smallest}: give more, or lower --k"
                )


def read_request(args: EvalArgs) -> EvalRequest:
    """The request in the words of a call. Raises `UsageError` in one line for words that make none."""
    from ..metrics.measure import neighbours

    if args.other is not None and args.reference is not None:
        raise UsageError(f"the data is named twice, {args.other} and --reference {args.reference}: name it once")
    if args.reference_statistics is not None and args.statistics_out is not None:
        raise UsageError("give --reference-statistics or --statistics-out, not both")
    metrics, insisting = _metrics(args.metrics)
    _check_table(args.per_image, metrics)
    for option, path in (("--per-image", args.per_image), ("--statistics-out", args.statistics_out)):
        if path is not None:
            refuse_target(option, path)
    where = args.other if args.other is not None else args.reference
    store = args.statistics_out is not None and where is None
    if where is None and not store and args.reference_statistics is None:
        where = "critters"
    request = EvalRequest(
        metrics=metrics, insisting=insisting, ks=neighbours(metrics, args.k), where=where, store=store
    )
    if args.statistics_out is not None and not request.on_statistics:
        raise UsageError(
            "--statistics-out needs a metric that is measured on statistics, such as fd: none was asked for"
        )
    if args.statistics_out is not None and not store and not request.compares:
        raise UsageError(
            f"--statistics-out keeps the statistics of {where}, and {', '.join(metrics)} looks at {args.what} alone: "
            "name one set, or add a metric that compares, such as fd"
        )
    return request


def weights_of(text: str | None, names: Sequence[str]) -> dict[str, str]:
    """``--weights`` for each network that loads some: a path for the only one, or NAME=PATH,NAME=PATH."""
    if text is None:
        return {}
    loading = [name for name in names if name != "lite0"]
    pairs = [part.partition("=") for part in text.split(",")]
    if all(name in loading and path for name, _, path in pairs):
        return {name: path for name, _, path in pairs}
    if len(loading) > 1:
        raise ConfigError(f"--weights {text!r} must read NAME=PATH,NAME=PATH for {' and '.join(loading)}")
    return {(loading or list(names))[0]: text}


def _metrics(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The metrics asked for, each once, and those among them that insist on the published network."""
    from ..metrics import METRICS

    known = (*METRICS, *ON_IMAGES)
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"no metric in {text!r}: choose from {', '.join(known)}")
    for name in names:
        if name not in (*known, *INSISTING):
            near = difflib.get_close_matches(name, (*known, *INSISTING), n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise ConfigError(f"unknown metric {name!r}: {hint}")
    insisting = tuple(name for name in names if name in INSISTING)
    return tuple(dict.fromkeys(INSISTING.get(name, name) for name in names)), insisting


def _check_table(path: Path | None, metrics: Sequence[str]) -> None:
    """Refuse a table of single images that would be empty or has no known format."""
    if path is None:
        return
    if path.suffix not in {".csv", ".jsonl"}:
        raise UsageError(f"--per-image {path} must end in .csv or .jsonl")
    if not set(metrics) & set(SINGLE):
        raise UsageError(f"--per-image needs one of {', '.join(SINGLE)} among --metrics, got {', '.join(metrics)}")
