"""`ornstein eval`: how far samples are from data, and what else can be said of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .eval_args import EvalArgs
from .image_sets import RESIZED, How, ImageSet, Sampling, open_data, open_measured, open_samples
from .imports import find_here
from .output import emit_json, note, say
from .reconstruct import reconstruct
from .request import EvalRequest, read_request
from .written import mixture

if TYPE_CHECKING:
    from ..metrics import Statistics
    from .set_statistics import SetStatistics


def evaluate(args: EvalArgs) -> int:
    """Measure and print. Whatever can be refused is refused before the first image is sampled."""
    from ..metrics import files, images, measure, sets
    from ..metrics.measure import needs
    from ..runs import is_codec
    from .set_statistics import compute_statistics, load_evaluators, ranks, write_images

    if is_codec(args.what):
        return reconstruct(args)
    request = read_request(args)
    reference = None if args.reference_statistics is None else sets.read_statistics(args.reference_statistics)
    ours, theirs = _image_sets(args, request)
    if reference is not None:
        _check_reference(args, reference, ours, theirs)
    request.check_counts(ours.count, _their_count(request, reference, theirs))
    evaluators = load_evaluators(request, args)
    names = [network.name for network in evaluators.features]
    referred = None if reference is None else [_referred(args, request, reference, name) for name in names]
    cautions = images.cautions(ours.source, theirs.source if theirs is not None and request.compares else None)
    if request.compares:
        cautions += _handled_apart(ours, theirs, reference)
    cautions += _unlike(ours, theirs if request.compares else None)
    for caution in cautions:
        note(f"caution: {caution}")
    keep = {*needs(request.measured), *(needs(request.on_statistics, "theirs") if request.store else ())}
    needed = set(needs(request.measured, "theirs"))
    if request.retrieves:
        keep.add("vectors")
        needed.add("vectors")
    note(f"looking at {ours.count} images of {ours.name}")
    mine = compute_statistics(ours, evaluators, keep, names=args.per_image is not None)
    other: SetStatistics | None = None
    against: Sequence[Statistics] = referred or ()
    if request.compares and referred is None and theirs is not None:
        note(f"looking at {theirs.count} images of {theirs.name}")
        other = compute_statistics(theirs, _features_only(evaluators), needed)
        against = other.statistics
    if args.statistics_out is not None:
        files.write(args.statistics_out, mine.statistics if request.store else against)
    numbers = dict(mine.numbers)
    for index, one in enumerate(mine.statistics):
        found = measure(one, against[index] if against else None, request.measured, k=args.k)
        numbers |= found.numbers
        for name, values in found.images.items():
            mine.images[name] = dict(zip(found.indices, values.tolist(), strict=True))
    if request.retrieves:
        numbers |= ranks(mine, other)
    fingerprints = [mine.census.fingerprint, *(one.fingerprint for one in against[:1])]
    if len(fingerprints) == 2 and len(set(fingerprints)) == 1:
        cautions.append("both sides are the same images: a distance of 0 says nothing else")
        note(f"caution: {cautions[-1]}")
    if args.per_image is not None:
        write_images(args.per_image, mine.images)
    result = _document(args, request, ours, theirs, mine, other, against)
    result = {"what": args.what, "reference": result.pop("reference"), "seed": args.seed, **numbers, **result}
    _print(result | ({"cautions": cautions} if cautions else {}), as_json=args.json)
    return 0


def _image_sets(args: EvalArgs, request: EvalRequest) -> tuple[ImageSet, ImageSet | None]:
    """Both sides opened, nothing sampled; the second is the data, None where neither the call nor a metric names it."""
    from ..runs import is_run, open_run
    from ..samplers import default_for

    needed = request.compares or args.reference is not None or args.other is not None
    where = request.where
    if not is_run(args.what):
        ours = open_measured(args.what, args.n, args.size, args.resize)
        if where is None or not needed:
            return ours, None
        return ours, open_data(where, args.n, ours.resolution, args.resize)
    run = open_run(args.what, ema=True if args.ema is None else args.ema, device=args.device)
    height, width = run.picture[-2:]
    if args.size not in (None, width):
        raise UsageError(f"--size {args.size} differs from the run's {width}: leave it out")
    spoken = next((name for name in ("clip", "retrieval") if name in request.metrics), None)
    if spoken is not None and run.condition != "text":
        raise UsageError(
            f"the metric {spoken} compares with captions, and the model in {args.what} takes none: leave it out"
        )
    how: How = "lanczos" if args.resize == "auto" else args.resize
    theirs = None
    if where is not None and (needed or run.condition != "none"):
        theirs = open_data(where, args.n, (height, width), how)
    find_here(args.sampler)
    name = args.sampler or default_for(run.denoiser.path)
    sampling = Sampling(sampler=name, steps=_steps(args, run), seed=args.seed, batch=args.batch)
    return open_samples(run, args.n, sampling, None if theirs is None else theirs.source), theirs


def _steps(args: EvalArgs, run: Any) -> int:
    """--steps, or what is usual: 20, or the evaluations that the model's own grid or its levels have."""
    from ..sampling_plan import usual_steps

    own = run.denoiser.info.grid
    if args.steps is not None or own is None:
        return usual_steps(run.denoiser.path, args.steps)
    times = own(None)(run.denoiser.path)
    return sum(s < t for t, s in itertools.pairwise(times))


def _unlike(ours: ImageSet, theirs: ImageSet | None) -> list[str]:
    """Cautions about sets that hold samples of several calls, or unlike numbers of images."""
    found = [mixture(side.name) for side in (ours, theirs) if side is not None and side.source is not None]
    if theirs is not None and 2 * min(ours.count, theirs.count) <= max(ours.count, theirs.count):
        found.append(
            f"{ours.name} has {ours.count} images and {theirs.name} {theirs.count}: a Fréchet distance depends on both "
            f"numbers; --n {min(ours.count, theirs.count)} takes as many of either"
        )
    return [caution for caution in found if caution is not None]


def _handled_apart(ours: ImageSet, theirs: ImageSet | None, reference: Sequence[Statistics] | None) -> list[str]:
    """Warnings when the two sets were resized by different filters."""
    other = reference[0].about if reference is not None else {} if theirs is None else theirs.about
    ways = [about.get("preprocessing", "") for about in (ours.about, other)]
    if ways[0] == ways[1] or not all(way.startswith(RESIZED) for way in ways):
        return []
    return [f"one side was resized as {ways[0]!r} and the other as {ways[1]!r}: make both with the same --resize"]


def _their_count(request: EvalRequest, reference: Sequence[Statistics] | None, theirs: ImageSet | None) -> int | None:
    if not request.compares:
        return None
    if reference is not None:
        return reference[0].count
    return None if theirs is None else theirs.count


def _check_reference(args: EvalArgs, reference: Sequence[Statistics], ours: ImageSet, theirs: ImageSet | None) -> None:
    """Refuse a reference of another resolution, or one that was not made from the data that is named beside it."""
    from ..metrics.blocks import blocks
    from ..metrics.sets import Census

    made = reference[0]
    if made.resolution != ours.resolution:
        size, mine = ("×".join(map(str, one or ("no",))) for one in (made.resolution, ours.resolution))
        raise UsageError(
            f"reference {args.reference_statistics} is of {size} pixels and {ours.name} of {mine}: "
            "make a reference at this resolution, or give --size for a folder"
        )
    if theirs is None:
        return
    ways = [about.get("preprocessing", "unknown") for about in (made.about, theirs.about)]
    if ways[0] != ways[1]:
        raise UsageError(
            f"reference {args.reference_statistics} was read {ways[0]!r} and {theirs.name} is read {ways[1]!r}: "
            "make both with the same --resize"
        )
    census = Census()
    for block in blocks(theirs.images):
        census.update(block)
    if census.fingerprint != made.fingerprint:
        source = made.about.get("source", "another set")
        raise UsageError(
            f"reference {args.reference_statistics} ({made.count} images of {source}) was not made from these "
            f"{census.count} images of {theirs.name}: make it again, or leave the data out"
        )


def _referred(args: EvalArgs, request: EvalRequest, reference: Sequence[Statistics], features: str) -> Statistics:
    """The reference's statistics for a feature network, with all that the metrics need."""
    from ..metrics.measure import needs

    for one in reference:
        if one.features == features:
            for keep in needs(request.measured, "theirs"):
                if getattr(one, keep) is None:
                    raise UsageError(
                        f"reference {args.reference_statistics} keeps no {keep}, which the metrics asked for need: "
                        "make it again with --statistics-out and these metrics"
                    )
            return one
    names = ", ".join(one.features for one in reference)
    raise UsageError(
        f"reference {args.reference_statistics} was made with {names}, not with {features}: make one with it"
    )


def _features_only(evaluators: Any) -> Any:
    """What the data is looked at with: diversity and CLIP score are of the samples."""
    import dataclasses

    return dataclasses.replace(evaluators, distance=None, clip=None)


def _document(
    args: EvalArgs,
    request: EvalRequest,
    ours: ImageSet,
    theirs: ImageSet | None,
    mine: SetStatistics,
    other: SetStatistics | None,
    against: Sequence[Statistics],
) -> dict[str, Any]:
    """All of the result that is no measured number."""
    censuses = [mine.census, *([other.census] if other is not None else against[:1])]
    ways = [ours.about, *(one.about for one in against[:1])]
    result: dict[str, Any] = {"reference": None if theirs is None else theirs.name}
    if args.reference_statistics is not None and result["reference"] is None:
        result["reference"] = against[0].about.get("source") if against else None
    if mine.statistics:
        result["features"] = ",".join(one.features for one in mine.statistics)
    result |= {
        "resolution": list(ours.resolution),
        "images": [one.count for one in censuses],
        "skipped": sum(one.skipped for one in censuses),
        "fingerprints": [f"{one.fingerprint:032x}" for one in censuses],
        "preprocessing": [about.get("preprocessing", "unknown") for about in ways],
    }
    if request.ks:
        result["k"] = dict(request.ks)
    for name in ("reference_statistics", "statistics_out", "per_image"):
        if getattr(args, name) is not None:
            result[name] = str(getattr(args, name))
    if "sampler" in ours.about:
        result |= {
            "sampler": ours.about["sampler"],
            "steps": int(ours.about["steps"]),
            "condition": ours.about["condition"],
        }
    return result


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit_json(result)
        return
    for key, value in result.items():
        say(f"{key:<16} {value}")
