"""Error at 5 to 50 evaluations: our samplers beside diffusers' schedulers as they ship, with exact denoisers.

    OMP_NUM_THREADS=1 python benchmarks/practice.py                 # everything; an hour and more on one thread
    OMP_NUM_THREADS=1 python benchmarks/practice.py --only ours     # again after a sampler has changed
    python benchmarks/practice.py --markdown                        # the tables of docs/practice.md from the JSON

Everybody gets the same denoiser, the same 512 starts at the noisy end and the same number of calls, and ends at the
clean sample. The error is the mean (and median) distance to the exact solution of the probability-flow ODE from the
same start. Every cell is kept in runs/practice/ as soon as it is computed, and the same command goes on where it was
stopped; what is not there is taken from results/practice.json. Other smoothness, scales and counts: practice_sweep.py.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import practice_problem as problem
import practice_theirs as theirs
from ornstein import grids
from ornstein.errors import OrnsteinError
from ornstein.samplers import sampler as sampler_named
from ornstein.samplers import steps_for
from ornstein.sampling import resolve
from report import RESULTS, table, write

CACHE = Path("runs/practice")
COUNTS = (5, 8, 10, 15, 20, 30, 50)
NEW = (
    "accelerated-ode-memory",
    "accelerated-ode-history",
    "accelerated-ode",
    "staggered-midpoint",
    "randomized-midpoint",
    "exponential-integrator",
    "collocation-3",
    "deis-2",
    "deis-3",
    "angle-adams",
    "angle-adams-explicit",
    "sa-solver",
)
CLASSIC = ("ddim", "heun", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3")
GRIDS = {"log-snr": grids.log_snr, "karras": grids.karras, "uniform": grids.uniform, "quadratic": grids.power}
# (path, target, whether every setting of diffusers is tried, or only the plain ones and those that did well elsewhere)
PROBLEMS = (
    ("linear", "M2", True),
    ("linear", "M1", True),
    ("linear", "M64", False),
    ("scaled-linear", "M2", True),
    ("cosine", "M2", True),
    ("flow", "M2", True),
    ("ve", "M2", True),
    ("linear", "G8", False),
    ("linear", "M1s", False),
    ("scaled-linear", "M64", False),
    ("cosine", "M64", False),
)
_RARE = ("predict_x0", "solver_type", "euler_at_final", "set_alpha_to_one", "lambda_min_clipped")


class Cell(NamedTuple):
    """One number: ``who`` is "theirs" or "ours", ``name`` the setting or "SAMPLER GRID"; no number where it failed."""

    path: str
    target: str
    who: str
    name: str
    count: int
    calls: int
    mean: float | None
    median: float | None

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self[:5]

    @property
    def family(self) -> str:
        """What the tables call it."""
        return self.name.split(" [")[0] if self.who == "theirs" else self.name.split(" ")[0]


class Journal:
    """The cells computed so far, on disk line by line."""

    def __init__(self, file: Path, published: Path | None = None) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        known = cells_of(json.loads(published.read_text("utf-8"))) if published and published.exists() else ()
        self.cells = {cell.key: cell for cell in (*known, *(Cell(*json.loads(line)) for line in lines))}

    def add(self, cell: Cell) -> None:
        """Keep it at once."""
        self.cells[cell.key] = cell
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as out:
            out.write(json.dumps(cell) + "\n")

    def of(self, path: str, target: str) -> list[Cell]:
        """The cells of a problem that gave a number."""
        return [c for c in self.cells.values() if (c.path, c.target) == (path, target) and c.mean is not None]


def measured_theirs(journal: Journal, case: tuple[str, str, bool], counts: tuple[int, ...], quick: bool) -> None:
    """Every setting of diffusers on one problem."""
    path, target, whole = case
    choices = theirs.settings(path)
    if quick:
        choices = choices[:: len(choices) // 5]
    elif not whole:
        good = shortlist(journal, path)
        choices = [setting for setting in choices if setting.name in good or plain(setting)][::-1]
    bench = problem.coupled(target, path, CACHE)
    for setting in choices:
        for count in counts:
            key = (path, target, "theirs", setting.name, count)
            if key in journal.cells:
                continue
            try:
                found, calls = bench.theirs(setting, path, count)
                errors = bench.errors(found) if theirs.finite(found) else None
            except (RuntimeError, ValueError, AssertionError, IndexError):  # some settings cannot run at some counts
                calls, errors = 0, None
            journal.add(_cell(key, calls, errors))


def shortlist(journal: Journal, path: str) -> set[str]:
    """Settings among the eight best of a cell that was measured in full on this path."""
    names = set[str]()
    for where, target, whole in PROBLEMS:
        if whole and where == path:
            cells = [cell for cell in journal.of(where, target) if cell.who == "theirs"]
            for count in COUNTS:
                names |= {c.name for c in sorted((c for c in cells if c.count == count), key=lambda c: c.mean)[:8]}
    return names


def plain(setting: theirs.Setting) -> bool:
    """Whether only its order, spacing, last σ and the lowering at the end are chosen."""
    return not any(key in _RARE for key, _ in setting.options)


def measured_ours(journal: Journal, case: tuple[str, str, bool], counts: tuple[int, ...], quick: bool) -> None:
    """Our samplers on the four grids, and the automatic choice."""
    path, target, _ = case
    bench = problem.coupled(target, path, CACHE)
    for name, count in ((name, count) for name in _names(quick) for count in counts):
        for grid in GRIDS if name != "auto" else ("auto",):
            key = (path, target, "ours", f"{name} {grid}", count)
            if key in journal.cells:
                continue
            try:
                if name == "auto":
                    request = resolve(bench.target.denoiser(bench.path), "auto", None, count, None, (1,))
                    sampler, times = request.sampler, request.times
                else:
                    sampler, family = sampler_named(name), GRIDS[grid]
                    times = steps_for(sampler, bench.path, count, lambda _, n, family=family: family(n))(bench.path)
                found, calls = bench.ours(sampler, times)
                errors = bench.errors(found) if theirs.finite(found) else None
            except OrnsteinError:  # too few evaluations for one step
                calls, errors = 0, None
            journal.add(_cell(key, calls, errors))


def _names(quick: bool) -> tuple[str, ...]:
    own = (*NEW, *CLASSIC) if not quick else ("deis-3", "ddim")
    return ("auto", *own)


def _cell(key: tuple[str, str, str, str, int], calls: int, errors: dict[str, float] | None) -> Cell:
    if errors is None:
        return Cell(*key, calls, None, None)
    return Cell(*key, calls, _short(errors["mean"]), _short(errors["median"]))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def best(cells: list[Cell], count: int, who: str) -> Cell | None:
    """The least mean error at this count."""
    return min((c for c in cells if c.count == count and c.who == who), key=lambda c: c.mean or 0.0, default=None)


def families(cells: list[Cell]) -> Iterator[tuple[str, str, dict[int, Cell]]]:
    """(who, family, best cell by count), in order of first appearance; for diffusers over all settings, for ours over
    the grids."""
    seen: dict[tuple[str, str], dict[int, Cell]] = {}
    for cell in cells:
        row = seen.setdefault((cell.who, cell.family), {})
        if cell.count not in row or (cell.mean or 0.0) < (row[cell.count].mean or 0.0):
            row[cell.count] = cell
    for (who, family), row in seen.items():
        yield who, family, row


def show(journal: Journal, path: str, target: str) -> str:
    """The best of every family at every count, as text."""
    cells = journal.of(path, target)
    rows = [
        [f"{'diffusers ' if who == 'theirs' else ''}{family}", *(_number(row.get(n)) for n in COUNTS)]
        for who, family, row in sorted(families(cells), key=lambda entry: entry[0], reverse=True)
    ]
    rows.append(["best diffusers", *(_number(best(cells, n, "theirs")) for n in COUNTS)])
    return f"{target}, {path}\n" + table(["best setting or grid", *COUNTS], rows)


def _number(cell: Cell | None) -> str:
    return "–" if cell is None or cell.mean is None else f"{cell.mean:.3g}"


def document(journal: Journal) -> dict[str, Any]:
    """All cells by problem and setting: count → [mean, median, calls]."""
    out: dict[str, Any] = {}
    for cell in journal.cells.values():
        rows = out.setdefault(f"{cell.path}/{cell.target}", {}).setdefault(cell.who, {})
        rows.setdefault(cell.name, {})[str(cell.count)] = [cell.mean, cell.median, cell.calls]
    return {"samples": problem.SAMPLES, "counts": COUNTS, "results": out}


def cells_of(document: dict[str, Any]) -> Iterator[Cell]:
    """The inverse of `document`."""
    for problem_name, sides in document["results"].items():
        path, target = problem_name.split("/")
        for who, rows in sides.items():
            for name, counts in rows.items():
                for count, (mean, median, calls) in counts.items():
                    yield Cell(path, target, who, name, int(count), calls, mean, median)


def collected(journal: Journal, out: Path, quick: bool) -> None:
    """Write all cells, with the short lists on one line each."""
    write(out, "practice", problem.SEED, document(journal), quick)
    text = re.sub(
        r"[\[{]\s+([^][{}]*?)\s+[]}]", lambda m: m[0][0] + " ".join(m[1].split()) + m[0][-1], out.read_text("utf-8")
    )
    out.write_text(
        re.sub(r"{\s+(\"\d+\": \[[^{}]*?\])\s+}", lambda m: "{" + " ".join(m[1].split()) + "}", text), "utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few settings at two counts: shows that it runs")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: results/practice.json)")
    parser.add_argument("--only", choices=("ours", "theirs"), help="only one side")
    parser.add_argument("--problems", nargs="*", default=[], help="only these, as in linear/M2")
    parser.add_argument("--forget", nargs="*", default=[], help="measure these samplers of ours again")
    parser.add_argument("--markdown", action="store_true", help="print the tables for the page; measure nothing")
    args = parser.parse_args()
    if args.markdown:
        import practice_page

        print(practice_page.page())
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # their tensors on their way to numpy
    published = None if args.quick else RESULTS / "practice.json"
    journal = Journal(CACHE / ("quick.jsonl" if args.quick else "cells.jsonl"), published)
    cases = [case for case in PROBLEMS if not args.problems or f"{case[0]}/{case[1]}" in args.problems]
    again = {case[:2] for case in cases}
    for key, cell in list(journal.cells.items()):
        if cell.who == "ours" and cell.family in args.forget and key[:2] in again:
            del journal.cells[key]
    counts = (5, 10) if args.quick else COUNTS
    for case in cases[:1] if args.quick else cases:
        began = time.process_time()
        if args.only != "ours":
            measured_theirs(journal, case, counts, args.quick)
        if args.only != "theirs":
            measured_ours(journal, case, counts, args.quick)
        print(show(journal, *case[:2]) + f"\n{time.process_time() - began:.0f} s\n", flush=True)
    out = args.out if args.out is not None or args.quick else RESULTS / "practice.json"
    if out is not None:
        collected(journal, out, args.quick)


if __name__ == "__main__":
    main()
