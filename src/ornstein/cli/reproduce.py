"""`ornstein reproduce`: each paper's claims, measured again."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import UsageError
from ..options import Count, Option, Positive
from .output import emit_json, make_folder, note, refuse_file, say

if TYPE_CHECKING:
    from ..reproduce import Record


@dataclass(frozen=True, kw_only=True)
class ReproduceArgs:
    """Measure the claims of papers again; each is reproduced, not reproduced, inconclusive (also: by too little
    training) or not testable here.

    Example: ornstein reproduce accelerated-ode accelerated-sde --budget 0.1
    """

    methods: Annotated[tuple[str, ...], Option(positional=True, value="METHOD")] = ()
    """Any of accelerated-ode, accelerated-sde, randomized-midpoint, exponential-integrator, universal-guidance,
    universal-guides, minority-guidance, cas-dm, slct, udpm and sdxl; none means all."""
    out: Path = Path("runs/reproduce")
    """Folder for METHOD.json, METHOD.html and the stored cells; a run with the same folder goes on where it stopped."""
    budget: Positive = 1.0
    """Share of the full experiment: 1 takes at most six hours a method on two cores, 0.02 a few minutes."""
    longer: Count = 1
    """So many times longer are two rungs of slct trained beside, on latents with outliers; 1 leaves that out."""
    jobs: Count = 1
    """Processes that compute cells side by side."""
    fresh: bool = False
    """Compute every cell again instead of using stored ones."""
    json: bool = False
    """Print one JSON document with all records."""


def reproduce(args: ReproduceArgs) -> int:
    """Run the experiments, write a record and a page for each. The exit status is 0 regardless of the verdicts."""
    from ..reproduce import EXPERIMENTS, Budget, experiment

    names = list(dict.fromkeys(args.methods or EXPERIMENTS))
    budget = Budget(args.budget, args.longer)
    for name in names:
        experiment(name)  # an unknown name is refused before hours of work
    if args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {args.jobs}")
    refuse_file(args.out)
    make_folder(args.out)
    records = [_one(name, args, budget) for name in names]
    if args.json:
        emit_json([record.to_json() for record in records])
    else:
        for record in records:
            _show(record, args.out)
    return 0


def _one(name: str, args: ReproduceArgs, budget: object) -> Record:
    from ..reproduce import Budget, Cells, Record, experiment, measure
    from ..reproduce.page import page
    from ..storage.files import write_text

    assert isinstance(budget, Budget)
    chosen = experiment(name)
    folder = args.out / "cells" / name
    if args.fresh and folder.is_dir():
        for cell in folder.glob("*.json"):
            cell.unlink(missing_ok=True)  # another process may be at it
        shutil.rmtree(folder / "files", ignore_errors=True)
    cells = Cells(folder, name, chosen.version, args.jobs, lambda line: note(f"{name}: {line}"))
    begin = time.perf_counter()
    found = measure(chosen, cells, budget)
    note(f"{name}: {time.perf_counter() - begin:.0f} s")
    record = Record(
        experiment=name,
        title=chosen.title,
        arxiv=chosen.arxiv,
        version=chosen.version,
        budget=args.budget,
        command=f"ornstein reproduce {name} --budget {args.budget:g}" + f" --longer {args.longer}" * (args.longer > 1),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(cells.seconds, 1),
        cells=cells.used,
        machine=_machine(),
        found=found,
    )
    tree = record.to_json()
    write_text(args.out / f"{name}.json", json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(args.out / f"{name}.html", page(Record.from_json(tree)))
    return record


def _show(record: Record, out: Path) -> None:
    from ..reproduce.page import against_noise, tally, value
    from ..reproduce.training import percent

    say(f"{record.title} (arXiv {record.arxiv})")
    for finding in record.found.findings:
        say(f"  {finding.verdict.upper()}: {finding.claim}")
        say(f"      expected  {finding.expected}")
        if finding.verdict != "not testable here":
            say(f"      measured  {finding.measured}")
        if finding.kind == "training":
            say(f"      training  {percent(finding.share)} of the paper's; the baseline: {finding.baseline}")
        if finding.value is not None:
            say(f"      value     {value(finding)}; effect against noise: {against_noise(finding)}")
        if finding.reason:
            say(f"      because   {finding.reason}")
    say(f"  {tally(record.found.findings)}; {out / f'{record.experiment}.html'}")


def _machine() -> dict[str, object]:
    import os
    import platform

    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
