"""`ornstein sample`: PNGs and a grid from a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ..errors import UsageError
from ..options import Option
from .guidance import guidances_of, read_guidances
from .guides import read_guides, told_once
from .imports import find_here
from .interpolate import LatentArgs, Later
from .output import emit_json, make_folder, note, refuse_file, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers import Denoiser, DenoiserLike, Guidance
    from ..grids import Grid, GridLike
    from ..interpolation import Latents
    from ..runs import OpenedModel
    from ..sampling import SamplingPlan
    from .guides import RequestedGuides

_SHOWN = 256  # pictures in grid.png, the first ones


@dataclass(frozen=True, kw_only=True)
class SampleArgs(LatentArgs):
    """Images from a run, a checkpoint folder, or the shipped model ("critters").

    Example: ornstein sample runs/critters --sampler dpmpp-2m --steps 20 --seed 0 --n 16 --out out/critters
    """

    run: Annotated[str, Option(positional=True, value="MODEL")]
    """A run folder, a checkpoint folder, or the name of a shipped model."""
    out: Path = Path("out/samples")
    """Folder for the PNGs (000000.png, …) and grid.png."""
    n: int = 16
    """How many images."""
    sampler: str | None = None
    """Name of the sampler; by default dpmpp-2m, or ancestral on a pyramid. Or auto, which chooses
    sampler and grid by path and number of evaluations; an unknown name lists them all. Or one of your own by its
    import path, package.module:Class."""
    steps: int | None = None
    """Length of the time grid (20 unless --evaluations is given); of a consistency model the evaluations (1 or 2)."""
    evaluations: int | None = None
    """Instead of --steps: as many steps as fit into this number of network evaluations."""
    grid: Literal["default", "karras", "log-snr", "uniform", "quadratic"] = "default"
    """How the times are spread; the default suits the path of the model (and comes from auto with --sampler auto)."""
    seed: int = 0
    """Stream of samples: image i depends on (seed, i) alone."""
    first: int = 0
    """Number of the first image in the stream, to split a large job."""
    batch: int = 16
    """Images at a time."""
    label: Annotated[tuple[str, ...], Option(value="CLASS…")] = ()
    """Class names or numbers, cycled over the images (class-conditional models)."""
    caption: str | None = None
    """A caption (text-conditional models)."""
    guidance_scale: float = 1.0
    """Weight of classifier-free guidance toward --label or --caption; 1 is none, others ask the network twice.
    Short for --guidance cfg:WEIGHT before all others."""
    guidance: Annotated[tuple[str, ...], Option(value="NAME[:NUMBER]", single=True)] = ()
    """A guidance, such as pag:3 or cfg:7,rescale=0.7; --guidance help lists them. Repeat it for several; each acts on
    the answer of the one before."""
    guide: Annotated[tuple[str, ...], Option(value="KIND:ARG[:WEIGHT]", single=True)] = ()
    """A guide, such as segmentation:mask.png:400 or text:"a green critter":10; repeat it for several. ornstein guides
    lists them."""
    guide_source: Annotated[tuple[str, ...], Option(value="KIND=SOURCE[:WEIGHTS]", single=True)] = ()
    """The network behind a kind of guide: own, package or standard, with the path of its weights."""
    guide_through: Literal["network", "estimate"] = "network"
    """Whether the guides' gradient passes the model, or stops at its clean estimate, which costs half the time."""
    guide_window: Annotated[str | None, Option(value="LOW:HIGH")] = None
    """Noise levels σ/α at which guides act; everywhere by default."""
    guide_placement: Literal["joint", "separate"] = "joint"
    """Guides see the answer of --guidance-scale and --guidance, or the unconditional model, and both shifts are
    added."""
    backward: Annotated[str | None, Option(value="STEPS[:RATE]")] = None
    """Steps of descent on the clean estimate after the guides' gradient, and their size a pixel (0.01)."""
    recur: int = 1
    """Take every step so many times, with fresh noise in between: guides get closer, at that many times the cost."""
    average: float | None = None
    """A further average of the weights, by its number in --ema.also of the training."""
    boost: float = 1.0
    """Start from so many times the usual noise, for rarer images (Boost-and-Skip): with --skip, and a sampler with
    noise."""
    skip: int = 0
    """Leave out so many steps at the beginning."""
    columns: int = 0
    """Columns of the grid picture (0: about square)."""
    strict: bool = False
    """One image at a time with deterministic kernels: equal PNG bytes for every batch size and split."""
    device: str = "cpu"
    """Where to run, e.g. cuda."""
    json: bool = False
    """Print one JSON document about what was written."""


def sample(args: SampleArgs) -> int:
    """Draw, write, and say where."""
    import time

    from ..runs import open_run
    from ..samplers import default_for, plan
    from ..sampling import skipped

    _check(args)
    find_here(args.sampler)
    conditioned = args.caption is not None or bool(args.label)
    wanted = read_guidances(args.guidance, args.guidance_scale, conditioned=conditioned)
    run = open_run(args.run, ema=True if args.average is None else args.average, device=args.device)
    run = replace(run, denoiser=args.ruled(run.denoiser)) if args.posterior else run
    args = replace(args, sampler=args.sampler or default_for(run.denoiser.path))
    latents = args.latents(args.n, args.seed, args.first, args.recur, run.denoiser.path)
    cond = _condition(run, args)
    asked = _guides(run, args)
    request = skipped(_request(args, run.denoiser), args.skip)
    guided = _guided(run, args, asked, guidances_of(wanted, run, request.times, args.device))
    evaluations = len(plan(request.sampler, run.denoiser.path, request.times))
    make_folder(args.out)
    started = time.perf_counter()
    with told_once():
        written = _write(args, guided, request, cond, latents)
    pace = (time.perf_counter() - started) / args.n
    result = {
        "run": args.run,
        "sampler": args.sampler,
        "evaluations": evaluations,
        "times": list(request.times),
        "seed": args.seed,
        "first": args.first,
        "guidance_scale": args.guidance_scale,
        "guidance": list(args.guidance),
        "boost": args.boost,
        "skip": args.skip,
        **args.told(),
        **asked.record,
        "images": written,
        "grid": str(args.out / "grid.png"),
        "seconds_per_image": pace,
    }
    if args.json:
        emit_json(result)
    else:
        each = f"{evaluations} evaluation{'s' * (evaluations != 1)} each"
        say(f"{args.n} images, {each}, {pace:.3f} s an image: {args.out / 'grid.png'}")
    return 0


def _check(args: SampleArgs) -> None:
    """Refuse what needs no model to be seen."""
    if args.n < 1 or args.batch < 1:
        raise UsageError(f"--n and --batch must be at least 1, got {args.n} and {args.batch}")
    if args.columns < 0:
        raise UsageError(f"--columns must not be negative, got {args.columns}: 0 makes the grid about square")
    if not 0.0 < args.boost < float("inf") or args.skip < 0:
        raise UsageError(
            f"--boost must be positive and --skip not negative, got {args.boost:g} and {args.skip}: 1 and 0 are none"
        )
    if args.recur < 1:
        raise UsageError(f"--recur must be at least 1, got {args.recur}: 1 takes every step once")
    refuse_file(args.out)


def _write(
    args: SampleArgs,
    model: DenoiserLike,
    request: SamplingPlan,
    cond: dict[str, Tensor] | None,
    latents: Latents | None,
) -> list[str]:
    """Draw the images batch by batch, write them and the grid; the names of the files."""
    import torch

    from .. import sampling
    from ..data import save_grid, save_png

    written: list[str] = []
    pictures: list[Tensor] = []
    for begin in range(0, args.n, args.batch):
        rows = range(begin, min(begin + args.batch, args.n))
        images = sampling.sample(
            model,
            len(rows),
            sampler=request.sampler,
            grid=request.times,
            seed=args.seed,
            first=args.first + rows.start,
            noise=None if latents is None else Later(latents=latents, start=rows.start),
            cond=None if cond is None else {k: v[rows.start : rows.stop] for k, v in cond.items()},
            strict=args.strict,
            boost=args.boost,
        )
        lost = (~torch.isfinite(images).flatten(1).all(1)).nonzero().flatten().tolist()
        if lost:
            raise UsageError(
                f"image {args.first + rows[lost[0]]} came out as no numbers: weaken the guides (their weights, "
                "--recur, --guidance-scale, --boost) or take more steps"
            )
        for i, image in zip(rows, images, strict=True):
            written.append(str(save_png(image, args.out / f"{args.first + i:06d}.png")))
        pictures.extend(images[: _SHOWN - len(pictures)].cpu())
        note(f"{len(written)} of {args.n} images")
    columns = args.columns or max(1, round(len(pictures) ** 0.5))
    save_grid(torch.stack(pictures), args.out / "grid.png", columns)
    return written


def _guides(run: OpenedModel, args: SampleArgs) -> RequestedGuides:
    return read_guides(
        run,
        guide=args.guide,
        sources=args.guide_source,
        through=args.guide_through,
        backward=args.backward,
        window=args.guide_window,
        placement=args.guide_placement,
        recur=args.recur,
    )


def _guided(run: OpenedModel, args: SampleArgs, asked: RequestedGuides, inner: Guidance | None) -> DenoiserLike:
    """The model under its guidances, and the guides around them; or bare."""
    if inner is None and not args.guide:
        return run.denoiser
    from ..guides import compose

    null = run.null() if args.guide_placement == "separate" else None
    guidance = compose(asked.guides, asked.manner, inner, null)
    return run.denoiser if guidance is None else guidance(run.denoiser)


def _request(args: SampleArgs, model: Denoiser) -> SamplingPlan:
    from .. import grids, sampling

    if args.steps is not None and args.evaluations is not None:
        raise UsageError("give --steps or --evaluations, not both")
    if args.sampler == "auto" and args.grid == "default":
        request = sampling.resolve(model, "auto", args.steps, _shared(args), None, None)
        times = grids.recur(request.times, args.recur)(model.path)
        return replace(request, times=times) if args.recur > 1 else request
    return sampling.resolve(model, args.sampler, None, None, _grid(args, model), None)


def _shared(args: SampleArgs) -> int | None:
    """--evaluations for one descent of samplers that ask once a step: n steps taken K times cost n·K."""
    if args.evaluations is not None and args.evaluations < args.recur:
        raise UsageError(
            f"--evaluations {args.evaluations} are not enough for one step taken {args.recur} times: raise it"
        )
    return None if args.evaluations is None else args.evaluations // args.recur


def _grid(args: SampleArgs, model: Denoiser) -> GridLike:
    from .. import grids, sampling
    from ..denoisers import grid_of
    from ..samplers import default_for, steps_for
    from ..samplers import sampler as sampler_named

    own = grid_of(model)
    families = {
        "default": lambda steps: grids.default(model.path, steps) if own is None else own(steps),
        "karras": grids.karras,
        "log-snr": grids.log_snr,
        "uniform": grids.uniform,
        "quadratic": grids.power,
    }

    def family(steps: int) -> Grid:
        grid = families[args.grid](steps)
        return grid if args.recur == 1 else grids.recur(grid, args.recur)

    if args.sampler == "auto":  # its samplers ask once a step
        return family(next((n for n in (args.steps, _shared(args)) if n is not None), 20))
    if args.evaluations is not None:
        rule = sampler_named(args.sampler or default_for(model.path), import_paths=True)
        return steps_for(rule, model.path, args.evaluations, lambda _, steps: family(steps))
    if own is not None and args.grid == "default" and args.steps is None:
        return own(None) if args.recur == 1 else grids.recur(own(None), args.recur)
    return family(sampling.usual_steps(model.path, args.steps))


def _condition(run: OpenedModel, args: SampleArgs) -> dict[str, Tensor] | None:
    if args.caption is not None:
        return run.cond(captions=[args.caption] * args.n)
    if args.label:
        return run.cond(labels=[args.label[(args.first + i) % len(args.label)] for i in range(args.n)])
    return None
