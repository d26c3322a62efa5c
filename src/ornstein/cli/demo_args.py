"""The options of `ornstein demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Count, Index

SAMPLERS = ("ddpm", "ddim", "heun", "dpmpp-2m", "unipc", "auto")


EVALUATIONS = (5, 10, 20, 50)


FINE = 200  # evaluations of the reference solution, of order 3 and more


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """The main job on the embedded data: a short live training, then the shipped models under several samplers.

    Example: ornstein demo --out demo
    """

    out: Path = Path("demo")
    """Folder for the page and everything it shows."""
    model: str = "critters"
    """What to sample: the shipped model, or a run of yours."""
    images: Index = 4096
    """Length of the live training, in images (0: none)."""
    n: Count = 6
    """Images a sampler."""
    seed: int = 0
    """Stream of samples."""
    json: bool = False
    """Print one JSON document about the page instead of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One sampler at one number of evaluations."""

    sampler: str
    evaluations: int
    seconds_per_image: float
    distance: float | None


def live_command(args: DemoArgs) -> str:
    """The command that repeats the live training."""
    return (
        f"ornstein train ddpm --data critters --out {args.out}/live --images {args.images} --seed 1 "
        "--batch 8 --condition none --every.samples 0 --no-tensorboard --network.patch 4 --network.smooth 8"
    )
