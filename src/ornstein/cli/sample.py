"""`ornstein sample`: PNGs and a grid from a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import UsageError
from .output import emit_json, make_folder, note, refuse_file, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers import Denoiser, DenoiserLike
    from ..grids import GridLike
    from ..runs import Run
    from ..sampling import Request

_SHOWN = 256  # pictures in grid.png, the first ones


@dataclass(frozen=True, kw_only=True)
class SampleArgs:
    """Images from a run, a checkpoint folder, or the shipped model ("critters").

    Example: ornstein sample runs/critters --sampler dpmpp-2m --steps 20 --seed 0 --n 16 --out out/critters
    """

    run: tyro.conf.Positional[str]
    """A run folder, a checkpoint folder, or the name of a shipped model."""
    out: Path = Path("out/samples")
    """Folder for the PNGs (000000.png, …) and grid.png."""
    n: int = 16
    """How many images."""
    sampler: str = "dpmpp-2m"
    """Name of the sampler, or auto, which chooses sampler and grid by path and number of evaluations; an unknown name
    lists them all."""
    steps: int | None = None
    """Length of the time grid (20 unless --evaluations is given)."""
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
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS")] = ()
    """Class names or numbers, cycled over the images (class-conditional models)."""
    caption: str | None = None
    """A caption (text-conditional models)."""
    guidance_scale: float = 1.0
    """Weight of classifier-free guidance toward --label or --caption; 1 is none, others ask the network twice."""
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

    import torch

    from .. import sampling
    from ..data import save_grid, save_png
    from ..runs import open_run
    from ..samplers import plan

    if args.n < 1 or args.batch < 1:
        raise UsageError(f"--n and --batch must be at least 1, got {args.n} and {args.batch}")
    if args.columns < 0:
        raise UsageError(f"--columns must not be negative, got {args.columns}: 0 makes the grid about square")
    refuse_file(args.out)
    run = open_run(args.run, device=args.device)
    model = run.denoiser
    cond = _condition(run, args)
    guided = _guided(run, args)
    request = _request(args, model)
    asked = plan(request.sampler, model.path, request.times)
    make_folder(args.out)
    started, written, pictures = time.perf_counter(), [], []
    for begin in range(0, args.n, args.batch):
        rows = range(begin, min(begin + args.batch, args.n))
        part = None if cond is None else {k: v[rows.start : rows.stop] for k, v in cond.items()}
        images = sampling.sample(
            guided,
            len(rows),
            sampler=request.sampler,
            grid=request.times,
            seed=args.seed,
            first=args.first + rows.start,
            cond=part,
            strict=args.strict,
        )
        for i, image in zip(rows, images, strict=True):
            path = args.out / f"{args.first + i:06d}.png"
            save_png(image, path)
            written.append(str(path))
        pictures.extend(images[: _SHOWN - len(pictures)].cpu())
        note(f"{len(written)} of {args.n} images")
    seconds = time.perf_counter() - started
    columns = args.columns or max(1, round(len(pictures) ** 0.5))
    save_grid(torch.stack(pictures), args.out / "grid.png", columns)
    result = {
        "run": args.run,
        "sampler": args.sampler,
        "evaluations": len(asked),
        "times": list(request.times),
        "seed": args.seed,
        "first": args.first,
        "guidance_scale": args.guidance_scale,
        "images": written,
        "grid": str(args.out / "grid.png"),
        "seconds_per_image": seconds / args.n,
    }
    if args.json:
        emit_json(result)
    else:
        pace = f"{len(asked)} evaluations each, {seconds / args.n:.3f} s an image"
        say(f"{args.n} images, {pace}: {args.out / 'grid.png'}")
    return 0


def _guided(run: Run, args: SampleArgs) -> DenoiserLike:
    if args.guidance_scale == 1.0:
        return run.denoiser
    if args.caption is None and not args.label:
        raise UsageError(
            f"--guidance-scale {args.guidance_scale:g} needs a condition to guide toward: --label or --caption"
        )
    from ..guidance import CFG

    return CFG(weight=args.guidance_scale, null=run.null())(run.denoiser)


def _request(args: SampleArgs, model: Denoiser) -> Request:
    from .. import sampling

    if args.steps is not None and args.evaluations is not None:
        raise UsageError("give --steps or --evaluations, not both")
    if args.sampler == "auto" and args.grid == "default":
        return sampling.resolve(model, "auto", args.steps, args.evaluations, None, None)
    return sampling.resolve(model, args.sampler, None, None, _grid(args, model), None)


def _grid(args: SampleArgs, model: Denoiser) -> GridLike:
    from .. import grids
    from ..samplers import sampler as sampler_named
    from ..samplers import steps_for

    families = {
        "default": lambda steps: grids.default(model.path, steps),
        "karras": grids.karras,
        "log-snr": grids.log_snr,
        "uniform": grids.uniform,
        "quadratic": grids.power,
    }
    family = families[args.grid]
    if args.sampler == "auto":  # its samplers ask once a step
        return family(next((n for n in (args.steps, args.evaluations) if n is not None), 20))
    if args.evaluations is not None:
        rule = sampler_named(args.sampler)
        return steps_for(rule, model.path, args.evaluations, lambda _, steps: family(steps))
    return family(20 if args.steps is None else args.steps)


def _condition(run: Run, args: SampleArgs) -> dict[str, Tensor] | None:
    if args.caption is not None:
        return run.cond(captions=[args.caption] * args.n)
    if args.label:
        return run.cond(labels=[args.label[(args.first + i) % len(args.label)] for i in range(args.n)])
    return None
