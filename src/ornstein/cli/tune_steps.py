"""`ornstein tune-steps`: search the intermediate noise levels of multistep consistency sampling on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from ..errors import UsageError
from ..options import Count, Index, Limits, Option, Positive
from .output import emit_json, note, say

if TYPE_CHECKING:
    from ..runs import TrainedModel

CANDIDATES = (0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class TuneStepsArgs:
    """Search the middle levels of a consistency model, and keep them with the run, whose grids then use them.

    Level by level from the noisiest: candidates are tried, then levels between the best one and its neighbours. All
    are scored by the Fréchet distance between samples of the same noise and data.

    Example: ornstein tune-steps runs/slct --reference critters --n 500
    """

    run: Annotated[str, Option(positional=True, value="MODEL")]
    """A run of slct, ict, cm or ect."""
    reference: str = "critters"
    """The data to compare with, as for train --data; other data than the test set of a paper's table."""
    evaluations: Annotated[int, Limits(least=2)] = 2
    """Evaluations to search for: one level less than that."""
    n: Annotated[int, Limits(least=2)] = 500
    """Images of each side."""
    candidates: tuple[Positive, ...] = CANDIDATES
    """Levels σ/α to try."""
    refine: Index = 3
    """Further levels tried around the best one."""
    features: str = "lite0"
    """Feature network of the distance: lite0, inception or dinov2."""
    ema: Positive | None = None
    """A further average of the weights, by its number in --ema.also of the training."""
    seed: int = 0
    """Stream of samples."""
    batch: Count = 50
    """Images at a time."""
    dry: bool = False
    """Only print; leave the run as it is."""
    device: str = "cpu"
    """Where to run, e.g. cuda."""
    json: bool = False
    """Print one JSON document instead of a sentence."""


@dataclass(slots=True, kw_only=True)
class Search:
    """Middle levels by greedy search: ``score`` of a tuple of levels is to be small; ``tried`` keeps all of them."""

    score: Callable[[tuple[float, ...]], float]
    candidates: Sequence[float]
    refine: int = 0
    tried: dict[tuple[float, ...], float] = field(default_factory=dict)

    def find(self, count: int) -> tuple[float, ...]:
        """``count`` levels, each below the one before."""
        found: tuple[float, ...] = ()
        for _ in range(count):
            found = (*found, self._next(found))
        return found

    def _next(self, before: tuple[float, ...]) -> float:
        """The best level to follow these."""
        top = before[-1] if before else math.inf
        levels = sorted(level for level in set(self.candidates) if level < top)
        if not levels:
            raise UsageError(f"no candidate lies below {top:g}: give lower --candidates")

        def at(level: float) -> float:
            key = (*before, level)
            if key not in self.tried:
                self.tried[key] = self.score(key)
            return self.tried[key]

        for step in range(self.refine + 1):
            best = min(levels, key=at)
            if step == self.refine:
                return best
            place = levels.index(best)
            neighbours = [levels[i] for i in (place - 1, place + 1) if 0 <= i < len(levels)]
            if not neighbours:
                return best
            # Towards the better neighbour, in the middle of the logarithms.
            levels = sorted({*levels, math.sqrt(best * min(neighbours, key=at))})
        raise AssertionError


def tune_steps(args: TuneStepsArgs) -> int:
    """Search, print, and write sampling.json."""
    from pathlib import Path

    from .. import grids
    from ..models.consistency import ConsistencySpec
    from ..runs import SAMPLING_CONFIG, TrainedModel, open_run, resolve_model_path
    from ..storage.files import write_json

    run = open_run(args.run, ema=True if args.ema is None else args.ema, device=args.device)
    if not isinstance(run, TrainedModel) or not isinstance(run.spec, ConsistencySpec):
        raise UsageError(f"{args.run} is no consistency model: its samplers need no middle levels")
    if not args.dry and run.folder == resolve_model_path(args.run) != Path(args.run):
        raise UsageError(f"{args.run} comes with the library and stays as it is: use --dry, or a copy of its folder")
    spec, path = run.spec, grids.affine(run.denoiser.path)
    low = max(spec.sigma_min, path.sigma_bar(path.t_min))
    high = min(spec.sigma_max, path.sigma_bar(path.t_range[1]))
    if not args.candidates or not all(low < level < high for level in args.candidates):
        raise UsageError(f"--candidates must lie between {low:g} and {high:g}")
    search = Search(score=distance_to_data(args, run, spec), candidates=args.candidates, refine=args.refine)
    once = search.score(())
    found = search.find(args.evaluations - 1)
    best = search.tried[found]
    result = {
        "run": args.run,
        "reference": args.reference,
        "features": args.features,
        "n": args.n,
        "middle": list(found),
        "distance": best,
        "distance_of_one_evaluation": once,
        "tried": [{"levels": list(levels), "distance": value} for levels, value in sorted(search.tried.items())],
    }
    if not args.dry:
        write_json(run.folder / SAMPLING_CONFIG, {key: result[key] for key in result if key != "run"})
    if args.json:
        emit_json(result)
    else:
        levels = ", ".join(f"{level:.3g}" for level in found)
        kept = "" if args.dry else f"; {run.folder / SAMPLING_CONFIG} keeps it"
        say(f"{levels}: FD-{args.features} {best:.4g}, {once:.4g} with one evaluation{kept}")
    return 0


def distance_to_data(args: TuneStepsArgs, run: TrainedModel, spec: object) -> Callable[[tuple[float, ...]], float]:
    """The Fréchet distance of samples that climb to these levels."""
    from .. import metrics
    from ..metrics.frechet import frechet_distance
    from ..models.consistency import ConsistencySpec
    from .image_sets import Sampling, open_data, open_samples

    assert isinstance(spec, ConsistencySpec)
    height, width = run.picture[-2:]
    data = open_data(args.reference, args.n, (height, width), "lanczos")
    net = metrics.features(args.features, device=args.device)
    note(f"looking at {data.count} images of {data.name}")
    real = metrics.statistics(data.images, net).moments

    def score(levels: tuple[float, ...]) -> float:
        candidate = replace(run, denoiser=replace(run.denoiser, grid=lambda _: spec.multistep(*levels)))
        sampling = Sampling(sampler="ddim", steps=1 + len(levels), seed=args.seed, batch=args.batch)
        side = open_samples(candidate, args.n, sampling, data.source)
        value = frechet_distance(metrics.statistics(side.images, net).moments, real)
        note(f"{', '.join(f'{level:.3g}' for level in levels) or 'one evaluation'}: {value:.4g}")
        return value

    return score
