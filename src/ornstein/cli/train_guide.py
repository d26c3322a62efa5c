"""`ornstein train-guide KIND`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UsageError
from ..options import Count, Option
from .output import emit_json, note, refuse_target, say


@dataclass(frozen=True, kw_only=True)
class TrainGuideArgs:
    """Train one of the small guide networks on the embedded drawings.

    Example: ornstein train-guide segmentation --out segmentation.safetensors --seed 0
    """

    kind: Annotated[str, Option(positional=True, value="KIND")]
    """What to train: segmentation, classifier, identity, text or detection."""
    out: Path
    """The file to write, NAME.safetensors; NAME.json beside it tells how it was made and how good it is."""
    seed: int = 0
    """The same seed gives the same weights."""
    images: Count = 16_000
    """Pictures seen in all."""
    drawings: Count = 2048
    """Critters to make them of; an eighth is held out."""
    start: Path | None = None
    """A classifier's file, whose lower layers the network starts with: the other kinds then learn sooner."""
    json: bool = False
    """Print one JSON document: the card."""


def train_guide(args: TrainGuideArgs) -> int:
    """Train and write; nothing is written before the end."""
    from ..guides.own.training import GuideTraining, train

    start_with = "" if args.start is None else str(args.start)
    how = GuideTraining(kind=args.kind, seed=args.seed, images=args.images, drawings=args.drawings, start=start_with)
    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} must end in .safetensors: its card is the .json beside it")
    refuse_target("--out", args.out)
    refuse_target("--out", args.out.with_suffix(".json"))
    start = last = time.monotonic()

    def report(done: int, total: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > 5 or done == total:
            last = time.monotonic()
            note(f"{done} of {total} images, loss {loss:.4f}, {done / (last - start):.0f} images/s")

    def drawing(done: int, total: int) -> None:
        if done % 512 == 0:
            note(f"{done} of {total} drawings")

    card = train(how, args.out, report, drawing)
    if args.json:
        emit_json({"weights": str(args.out), **card})
        return 0
    for name, value in card["quality"].items():
        say(f"{value:7.4f}  {name}")
    say(f"{card['parameters']} weights in {args.out}")
    return 0
