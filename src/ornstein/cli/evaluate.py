"""`ornstein eval`: how far samples are from data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ..errors import UsageError
from .output import emit_json, note, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Source


@dataclass(frozen=True, kw_only=True)
class EvalArgs:
    """Fréchet distance and KID between a run's samples (or a folder of images) and a data source.

    The features are EfficientNet-lite0 by default and every number carries their name; only the standard Inception
    weights, from a file or the cache, make it an FID.

    Example: ornstein eval runs/critters --against critters --n 1000 --sampler dpmpp-2m --steps 20
    """

    what: tyro.conf.Positional[str]
    """A run, checkpoint folder or shipped model to sample from; or a folder of images."""
    against: str = "critters"
    """The data: a name, a folder, parquet or shards, as for train --data."""
    n: int = 1000
    """How many images of each (fewer if the data has fewer)."""
    features: str = "lite0"
    """Feature network: lite0 or inception."""
    weights: Path | None = None
    """File of the Inception weights, for --features inception."""
    sampler: str = "dpmpp-2m"
    """Sampler, when sampling from a run."""
    steps: int = 20
    """Length of the time grid, when sampling from a run."""
    seed: int = 0
    """Stream of samples."""
    batch: int = 16
    """Images at a time."""
    size: int | None = None
    """Resolution; by default the run's own, or that of the first image in the folder."""
    device: str = "cpu"
    """Where to run, e.g. cuda."""
    json: bool = False
    """Print one JSON document instead of text."""


def evaluate(args: EvalArgs) -> int:
    """Measure and print."""
    from ..data import open_source
    from ..metrics import compare, features, statistics

    if args.n < 2 or args.batch < 1:
        raise UsageError(f"--n must be at least 2 and --batch at least 1, got {args.n} and {args.batch}")
    network = features(args.features, weights=args.weights, device=args.device)
    images, size = _images(args)
    data = open_source(args.against, size=size, limit=args.n)
    note(f"features of {args.n} images of {args.what}")
    ours = statistics(images, network)
    note(f"features of {len(data)} images of {args.against}")
    theirs = statistics(data, network)
    report = compare(ours, theirs)
    result = {"what": args.what, "against": args.against, "seed": args.seed, **report.as_dict()}
    if _is_run(args.what):
        result |= {"sampler": args.sampler, "steps": args.steps}
    if args.json:
        emit_json(result)
    else:
        for key, value in result.items():
            say(f"{key:<16} {value}")
    return 0


def _is_run(what: str) -> bool:
    from ..runs import is_run

    return is_run(what)


def _images(args: EvalArgs) -> tuple[Source | Iterator[Tensor], int]:
    """(iterable of uint8 batches or a source, resolution)."""
    from .. import sampling
    from ..data import open_source, to_uint8

    if not _is_run(args.what):
        size = args.size or _first_size(args.what)
        return open_source(args.what, size=size, limit=args.n), size
    from ..runs import open_run

    run = open_run(args.what, device=args.device)
    model, size = run.denoiser, run.spec.shape[-1]
    if args.size not in (None, size):
        raise UsageError(f"--size {args.size} differs from the run's {size}: leave it out")

    def batches() -> Iterator[Tensor]:
        for begin in range(0, args.n, args.batch):
            rows = min(args.batch, args.n - begin)
            yield to_uint8(
                sampling.sample(model, rows, sampler=args.sampler, steps=args.steps, seed=args.seed, first=begin)
            )
            note(f"sampled {begin + rows} of {args.n}")

    return batches(), size


def _first_size(what: str) -> int:
    from PIL import Image

    from ..data.decode import extensions

    folder = Path(what)
    if not folder.is_dir():
        return 64
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in extensions():
            with contextlib.suppress(OSError), Image.open(file) as image:  # a damaged one is skipped, here as elsewhere
                return min(image.size)
    return 64
