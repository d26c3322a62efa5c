"""The options of `ornstein rates`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..options import Count


@dataclass(frozen=True, kw_only=True)
class RatesArgs:
    """Measure the order of every sampler on targets with exact solutions, and compare it with the declared one.

    Exit status 1 if a sampler falls short of its order. With --score-error, --dimension or --precision another study
    runs instead, with exit status 0.

    Example: ornstein rates --samplers heun,unipc --quick
    """

    samplers: str = ""
    """Names of samplers, or import paths package.module:Class, separated by commas; all by default."""
    targets: str = "G8,M1"
    """Exact targets, separated by commas: G8, Giso, Gdeg (Gaussian), M1, M1s, M1p (on the line), M2, M64."""
    path: Literal["vp", "ve", "flow"] = "vp"
    """Forward path."""
    grid: Literal["log-snr", "karras"] = "log-snr"
    """Spacing of the steps."""
    quick: bool = False
    """Fewer and smaller step counts, for a first look."""
    score_error: str = ""
    """Put an error into the score and show where each sampler ends: scale=0.01, or height=0.5,frequency=20."""
    dimension: bool = False
    """The exponent of the error in the dimension, for the randomized midpoint and three others (or --samplers)."""
    precision: bool = False
    """What single precision costs each sampler."""
    jobs: Count | None = None
    """Processes to share the work, by default one for every core. The numbers do not depend on it."""
    json: bool = False
    """Print one JSON document on standard output and nothing else there."""
    plot: Path | None = field(default=None)
    """Folder for one picture a sampler."""


@contextmanager
def progressing() -> Iterator[Callable[[str], None]]:
    """Progress on standard error: one moving line on a terminal, one line a step elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("measuring") as status:

        def progress(what: str) -> None:
            if console.is_terminal:
                status.update(f"measuring {what}")
            else:
                print(f"measuring {what}", file=sys.stderr)

        yield progress


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
