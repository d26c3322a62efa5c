"""What every benchmark shares: facts about the machine, medians with their spread, a table, and one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, name: str) -> argparse.Namespace:
    """The two options of every script, ``--quick`` and ``--out``."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a few seconds: shows that it runs, no more")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes (default: results/{name}.json; none if --quick)")
    found = parser.parse_args()
    if found.out is None and not found.quick:
        found.out = RESULTS / f"{name}.json"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{name: _version(name) for name in ("torch", "diffusers", "accelerate")},
    }


def spread(samples: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median, quartiles, the least, and how many."""
    low, middle, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    rounded = {"median": middle, "q1": low, "q3": high, "min": min(samples)}
    return {**{key: round(value, digits) for key, value in rounded.items()}, "n": len(samples)}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned, numbers to the right."""
    text = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in text
    ]
    return "\n".join((lines[0], "-" * len(lines[0]), *lines[1:]))


def write(out: Path | None, benchmark: str, seed: int, results: dict[str, Any], quick: bool) -> None:
    """One JSON document, whole or not at all."""
    if out is None:
        return
    document = {
        "benchmark": benchmark,
        "command": " ".join(["python", f"benchmarks/{benchmark}.py", *(["--quick"] if quick else [])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": machine(),
        **results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(out)
    print(f"wrote {out}", file=sys.stderr)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
