"""The other studies of ``ornstein rates``: a wrong score, the dimension, single precision."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.errors import UsageError

from .rates_args import RatesArgs, names, progressing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ornstein.lab.dimension import DimensionReport
    from ornstein.lab.studies import Study


def answer(args: RatesArgs, question: str) -> int:
    """Run one study and show it; the exit status is always 0."""
    found = _dimension(args) if question == "dimension" else _study(args, question)
    if args.plot is not None:
        _plots(found, args.plot)
    if args.json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        _table(found)
    return 0


def _dimension(args: RatesArgs) -> DimensionReport:
    from ornstein.lab.dimension import dimension

    targets, schedules, trajectories = (2, 4, 64) if args.quick else (4, 8, 128)
    with progressing() as progress:
        return dimension(
            names(args.samplers) or None,
            path=args.path,
            grid=args.grid,
            targets=targets,
            schedules=schedules,
            trajectories=trajectories,
            progress=progress,
        )


def _study(args: RatesArgs, question: str) -> Study:
    from ornstein.lab.perturbed import ScoreError
    from ornstein.lab.studies import precision, score_error

    samplers, targets = names(args.samplers) or None, names(args.targets)
    if question == "precision":
        counts = (64, 256) if args.quick else (64, 256, 1024)
        with progressing() as progress:
            return precision(samplers, path=args.path, grid=args.grid, counts=counts, progress=progress)
    error = ScoreError.parse(args.score_error)
    if not targets:
        raise UsageError("no target given: a wrong score is measured on Gaussians and on the line, as G8,M1")
    counts = (32, 128) if args.quick else (32, 128, 512)
    with progressing() as progress:
        return score_error(error, samplers, targets, args.path, args.grid, counts, progress)


def _table(found: DimensionReport | Study) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ornstein.lab.dimension import DimensionReport

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    console = Console(width=None if sys.stdout.isatty() else 120)

    def row(*cells: str) -> None:
        table.add_row(*cells)

    if isinstance(found, DimensionReport):
        ends = [f"d = {d}" for d in found.growths[0].dimensions] if found.growths else []
        for title in ("family", "sampler", "evaluations", *ends, "exponent of d"):
            table.add_column(title, justify="left" if title in ("family", "sampler") else "right", no_wrap=True)
        for one in found.growths:
            means = [sum(column) / len(column) for column in zip(*one.errors, strict=True)]
            exponent = f"{one.exponent:.3f} ± {one.half_width:.3f}"
            row(one.family, one.sampler, str(one.evaluations), *(f"{e:.2e}" for e in means), exponent)
        console.print(table)
        console.print(
            f"{found.path} path, {found.grid} grid, {found.seconds:.0f} s: median distance to the fine solution "
            "(product: root mean square, which is √d by construction)",
            highlight=False,
        )
        return
    table.add_column("sampler", no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("error in", no_wrap=True)
    pair = ("exact score", "wrong score") if found.study == "score-error" else ("float32 network", "float32 state")
    for title in pair:
        for n in found.counts:
            table.add_column(f"{title}\nn = {n}", justify="right")
    if found.study == "score-error":
        table.add_column("plateau", justify="right")
    for one in found.effects:
        cells = ["–" if e is None else f"{e:.1e}" for e in (*one.exact, *one.changed)]
        if found.study == "score-error":
            last = one.changed[-1]
            cells.append(f"{last:.3g}" if one.converged and last is not None else "still moving")
        row(one.sampler, one.target, one.measure, *cells)
    console.print(table)
    for skip in found.skipped:
        console.print(f"[dim]{skip.sampler} on {skip.target} not measured: {skip.reason}[/]", highlight=False)
    what = f"score {found.change}" if found.study == "score-error" else "float32 beside float64, on M2"
    console.print(f"{found.path} path, {found.grid} grid, {what}", highlight=False)


def _plots(found: DimensionReport | Study, folder: Path) -> None:
    from ornstein.lab.dimension import DimensionReport
    from ornstein.lab.plots import draw_effects, draw_growth, save

    figures: dict[str, Figure] = {}
    if isinstance(found, DimensionReport):
        for family in dict.fromkeys(one.family for one in found.growths):
            figures[f"dimension-{family}"] = draw_growth(found, family)
    else:
        for name in dict.fromkeys(one.sampler for one in found.effects):
            figures[f"{found.study}-{name}"] = draw_effects(found, name)
    try:
        files = save(figures, folder)
    except OSError as error:
        raise UsageError(f"cannot write plots to {folder}: {error.strerror or error}") from error
    print(f"wrote {len(files)} plots to {folder}", file=sys.stderr)
