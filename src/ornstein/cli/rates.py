"""``ornstein rates``: measured orders of convergence beside the declared ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.errors import UsageError

from .imports import find_here
from .rates_args import RatesArgs, names, progressing

if TYPE_CHECKING:
    from ornstein.lab.rates import Report, Series


def rates(args: RatesArgs) -> int:
    """Run the command; 0: every sampler has its order, 1: one is below it. Raises `UsageError` on bad input."""
    find_here(args.samplers)
    chosen = [name for name in ("score_error", "dimension", "precision") if getattr(args, name)]
    if len(chosen) > 1:
        options = " and ".join("--" + name.replace("_", "-") for name in chosen)
        raise UsageError(f"{options} are different studies: give one at a time")
    if chosen:
        from .rates_studies import answer

        return answer(args, chosen[0])
    report = _measured(args)
    if args.plot is not None:
        _plots(report, args.plot)
    if args.json:
        print(json.dumps(report.to_json(), allow_nan=False))
    else:
        _table(report)
    return 0 if report.passed else 1


def _measured(args: RatesArgs) -> Report:
    from ornstein.lab.rates import measure

    samplers, targets = names(args.samplers), names(args.targets)
    if not targets:
        raise UsageError("no target given: choose from G8, Giso, Gdeg, M1, M1s, M1p, M2, M64")
    with progressing() as progress:
        return measure(
            samplers or None,
            targets,
            path=args.path,
            grid=args.grid,
            quick=args.quick,
            progress=progress,
            jobs=args.jobs,
        )


def _plots(report: Report, folder: Path) -> None:
    from ornstein.lab.plots import write

    try:
        files = write(report, folder)
    except OSError as error:
        raise UsageError(f"cannot write plots to {folder}: {error.strerror or error}") from error
    print(f"wrote {len(files)} plots to {folder}", file=sys.stderr)


_COLOURS = {"agrees": "green", "higher": "green", "exact": "green", "open": "yellow", "below": "bold red"}


_WIDE = {"error in", "last pair", "steps", "evaluations"}  # columns that a narrow terminal goes without


def _table(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ornstein.lab.plots import shown

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    titles = ["sampler", "target", "error in", "declared", "measured", "last pair", "steps", "evaluations", "error"]
    shown_here = [title for title in titles if console.width >= 110 or title not in _WIDE] + ["verdict"]
    for title in shown_here:
        table.add_column(title, justify="left" if title in {*titles[:3], "verdict"} else "right", no_wrap=True)
    previous = ""
    for one in report.series:
        if previous and previous != one.sampler:
            table.add_section()
        last = "–" if one.fit.last is None else f"{one.fit.last:.2f}"
        steps, evaluations, error = _headline(one)
        cells = {
            "sampler": "" if previous == one.sampler else one.sampler,
            "target": one.target,
            "error in": one.measure,
            "declared": f"{one.declared:g}",
            "measured": shown(one).removeprefix("order "),
            "last pair": last,
            "steps": steps,
            "evaluations": evaluations,
            "error": error,
            "verdict": f"[{_COLOURS[one.verdict]}]{one.verdict}[/]",
        }
        table.add_row(*(cells[title] for title in shown_here))
        previous = one.sampler
    console.print(table)
    for skip in report.skipped:
        console.print(f"[dim]{skip.sampler} on {skip.target} not measured: {skip.reason}[/]", highlight=False)
    for one in report.comparisons:
        pairs = ", ".join(f"{c:.2f} at {n}" for n, c in zip(one.evaluations, one.closer, strict=True))
        console.print(
            f"{one.sampler} on {one.target}, {one.measure}: times closer than {one.against}: {pairs} evaluations",
            highlight=False,
        )
    noted = {f"{one.sampler} on {one.target}, {one.measure}: {one.note}": None for one in report.series if one.note}
    for note in noted:
        console.print(f"[dim]{note}[/]", highlight=False)
    below = sorted({one.sampler for one in report.series if not one.passed})
    closing = (
        f"below the declared order: {', '.join(below)}" if below else "every sampler has at least its declared order"
    )
    console.print(f"{report.path} path, {report.grid} grid, {report.seconds:.0f} s: {closing}", highlight=False)


def _headline(one: Series) -> tuple[str, str, str]:
    """The largest measured step count, its evaluations and its error."""
    for n, calls, error in reversed(list(zip(one.counts, one.evaluations, one.errors, strict=True))):
        if error is not None:
            return str(n), str(calls), f"{error:.1e}"
    return "–", "–", "–"
