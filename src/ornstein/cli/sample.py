"""`ornstein sample`: PNGs and a grid from a run."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UsageError
from .guidance import guidances_of, needs_condition, read_guidances
from .guides import guide_warnings_once, read_guides
from .imports import find_here
from .init import InitialPictures, read_initial
from .interpolate import Later
from .output import emit_json, make_folder, note, refuse_file, say
from .prompts import conditions_of, labels_of, note_labels, read_prompts
from .sample_args import SampleArgs
from .written import record_samples

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers import DenoiserLike, Guidance
    from ..interpolation import Latents
    from ..runs import OpenedModel
    from ..sampling_plan import SamplingPlan
    from .guides import RequestedGuides

_MUCH = 2**30  # bytes of weights from which their size is said before they are read
_SHOWN = 256  # pictures in grid.png, the first ones


def sample(args: SampleArgs) -> int:
    """Draw, write, and say where."""
    import time

    from ..runs import open_run
    from ..samplers import default_for, plan
    from ..sampling_plan import skipped

    refuse_file(args.out)
    find_here(args.sampler)
    wanted = read_guidances(args.guidance, args.guidance_scale)
    prompts = read_prompts(args)
    _say_memory(args)
    run = open_run(args.run, ema=True if args.ema is None else args.ema, device=args.device)
    run = replace(run, denoiser=args.ruled(run.denoiser)) if args.posterior else run
    run = _text_to_image(run, args)
    unlabelled, labels = not args.label, labels_of(run, args)
    args = replace(args, sampler=args.sampler or default_for(run.denoiser.path), label=labels)
    latents = args.latents(args.n, args.seed, args.first, args.resample, run.denoiser.path)
    guiding = needs_condition(wanted, args.guidance_scale)
    if guiding and not args.conditioned:
        raise UsageError(f"{guiding} needs a condition to guide toward: {_remedy(run)}")
    cond, null = conditions_of(run, args, prompts, guided=bool(guiding))
    requested = _guides(run, args)
    initial = read_initial(args, run)
    request = skipped(_request(args, run), args.skip_steps)
    guided = _guided(run, args, requested, guidances_of(wanted, run, request.times, args.device, null), null)
    evaluations = len(plan(request.sampler, run.path, request.times, handovers=run.info.handovers))
    make_folder(args.out)
    if unlabelled and labels:
        note_labels(labels)
    started = time.perf_counter()
    with guide_warnings_once():
        written = _write(args, guided, request, cond, latents, initial)
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
        **({"prompts": list(prompts)} if prompts else {}),
        **{name: value for name in ("size", "refiner", "lora") if (value := getattr(args, name))},
        "prior_scale": args.prior_scale,
        "skip_steps": args.skip_steps,
        **({} if initial is None else initial.record),
        **args.record(),
        **requested.record,
        "images": written,
        "grid": str(args.out / "grid.png"),
        "seconds_per_image": pace,
    }
    record_samples(args.out, {**result, "labels": list(args.label)}, written)
    if args.json:
        emit_json(result)
    else:
        each = f"{evaluations} evaluation{'s' * (evaluations != 1)} each"
        say(f"{args.n} images, {each}, {pace:.3f} s an image: {args.out / 'grid.png'}")
    return 0


def _say_memory(args: SampleArgs) -> None:
    """Say what weights will take before they are read, where that is much."""
    from ..interop.loading import SINGLE_FILES
    from ..runs import format_of

    for place in (args.run, args.refiner):
        found = None if place is None else format_of(place)
        if found is None or not (found.name == "diffusers pipeline" or str(place).endswith(SINGLE_FILES)):
            continue
        from ..interop import memory

        weights = memory.weights_in(str(place))
        if sum(weights.values()) >= _MUCH:
            note(f"{place}: {memory.said(weights)}")


def _text_to_image(run: OpenedModel, args: SampleArgs) -> OpenedModel:
    """The model with --lora and --refiner, for pictures of --size."""
    if args.refiner is None and args.size is None and not args.lora:
        return run
    from ..interop.lora import load_lora
    from ..interop.refined import resized, with_refiner
    from ..runs import open_run

    for text in args.lora:
        place, _, scale = text.rpartition(":")
        try:
            where, by = (place, float(scale)) if place else (text, 1.0)
        except ValueError:
            where, by = text, 1.0
        load_lora(run, where, scale=by)
    if args.refiner is not None:
        run = with_refiner(run, open_run(args.refiner, device=args.device))
    if args.size is None:
        return run
    match = re.fullmatch(r"([1-9]\d{0,5})\s*[x×X]\s*([1-9]\d{0,5})", args.size.strip())
    if match is None:
        raise UsageError(f"--size {args.size!r} is no size: write WIDTHxHEIGHT in pixels, such as 1024x768")
    return resized(run, int(match[2]), int(match[1]))


def _write(
    args: SampleArgs,
    model: DenoiserLike,
    request: SamplingPlan,
    cond: dict[str, Tensor] | None,
    latents: Latents | None,
    initial: InitialPictures | None,
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
            prior_scale=args.prior_scale,
            **({} if initial is None else initial.arguments(range(args.first + rows.start, args.first + rows.stop))),
        )
        lost = (~torch.isfinite(images).flatten(1).all(1)).nonzero().flatten().tolist()
        if lost:
            raise UsageError(
                f"image {args.first + rows[lost[0]]} came out as no numbers: weaken the guides (their weights, "
                "--resample, --guidance-scale, --prior-scale) or take more steps"
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
        differentiate_through=args.differentiate_through,
        backward=args.backward,
        window=args.guide_window,
        placement=args.guide_placement,
        resample=args.resample,
    )


def _remedy(run: OpenedModel) -> str:
    """The option that gives a model's condition, or what a model without one is lacking."""
    option = {"label": "--label", "text": "--prompt"}.get(run.condition)
    return option or f"{run.folder} has none (train it with --condition label or text)"


def _guided(
    run: OpenedModel,
    args: SampleArgs,
    requested: RequestedGuides,
    inner: Guidance | None,
    null: dict[str, Tensor] | None,
) -> DenoiserLike:
    """The model under its guidances, and the guides around them; or bare."""
    if inner is None and not args.guide:
        return run
    from ..guides import compose

    guidance = compose(requested.guides, requested.options, inner, null if args.guide_placement == "separate" else None)
    return run if guidance is None else guidance(run)


def _request(args: SampleArgs, model: DenoiserLike) -> SamplingPlan:
    from .. import grids
    from ..sampling_plan import resolve

    families = {"karras": grids.karras, "log-snr": grids.log_snr, "uniform": grids.uniform, "quadratic": grids.power}
    return resolve(
        model,
        args.sampler,
        args.steps,
        args.evaluations,
        None,
        None,
        strength=args.noise_level,
        family=families.get(args.grid),
        resample=args.resample,
    )
