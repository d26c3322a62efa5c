"""`ornstein score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..errors import UsageError, printable
from ..options import Count, Option
from .output import emit_json, note, refuse_target, say


@dataclass(frozen=True, kw_only=True)
class ScoreArgs:
    """How rare every image of a data set is to a trained model: the distance from its one-step reconstruction.

    Example: ornstein score critters --data critters:500 --out scores.csv

    A call that was killed goes on where it stopped. With --shard 0/4 … 3/4 four calls share the work; the last one to
    finish puts the table together.
    """

    run: Annotated[str, Option(positional=True, value="MODEL")]
    """A run folder, a checkpoint folder, or the name of a shipped model."""
    data: str = ""
    """What to score, as for train --data; by default what the run was trained on."""
    out: Path = Path("scores.csv")
    """The table: a .csv, .json or .safetensors file."""
    log_snr: float = -3.703
    """Noise level at which images are reconstructed, as log-SNR; the default is that of the paper on LSUN."""
    draws: Count = 5
    """Draws of the noise for an image, whose distances are averaged."""
    distance: str = "lite0"
    """squared, absolute, lite0 (the formula of LPIPS on a network that is always there), vgg, alex or squeeze (LPIPS),
    or the path of LPIPS weights; lpips is vgg."""
    seed: int = 0
    """The noise of draw j of image i is a function of (seed, i, j)."""
    shard: str = "0/1"
    """I/N: only part I of N, numbered from 0."""
    batch: Count = 256
    """Images between two saves; it changes no number."""
    device: str = "cpu"
    """Where to run, e.g. cuda."""
    json: bool = False
    """Print one JSON document instead of a sentence."""


def score(args: ScoreArgs) -> int:
    """Score, and say what was found."""
    from .. import rarity
    from ..data import open_source
    from ..runs import open_own

    shard = _shard(args.shard)
    refuse_target("--out", args.out)
    recipe = rarity.Recipe(log_snr=args.log_snr, distance=args.distance, draws=args.draws, seed=args.seed)
    run = open_own(args.run, device=args.device)
    where = args.data or run.details.get("train", {}).get("data") or "critters"
    source = open_source(where, size=run.picture[-1])

    def progress(done: int, total: int) -> None:
        note(f"{done} of {total} images" if shard[1] == 1 else f"{done} images of shard {args.shard} (of {total})")

    table = rarity.score(run, source, args.out, recipe, shard=shard, batch=args.batch, progress=progress)
    if table is None:
        if args.json:
            emit_json({"out": str(args.out), "shard": args.shard, "finished": False})
        else:
            say(f"shard {args.shard} is done; {args.out} is written when all are, or by a call without --shard")
        return 0
    summary = _summary(table)
    if args.json:
        emit_json({"out": str(args.out), "shard": args.shard, "finished": True, **table.header, **summary})
    else:
        mean, top = summary["mean"], summary["rarest"]
        rarest = ", ".join(printable(name) for name, _ in top[:3])
        level = "of none" if mean is None else f"{mean:.4g}"
        lost = summary["unreadable"]
        count = (
            f"{len(table)} images" if not lost else f"{len(table) - lost} of {len(table)} images ({lost} unreadable)"
        )
        say(f"{count}, mean {table.header['distance']} {level}, rarest {rarest}: {args.out}")
    return 0


def _shard(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not slash or not first.isdecimal() or not second.isdecimal():
        raise UsageError(f"--shard {text!r} must read I/N, for example 0/4")
    return int(first), int(second)


def _summary(table: Any) -> dict[str, Any]:
    """Mean, unreadable images, and the rarest images with their scores."""
    import numpy as np

    known = np.flatnonzero(~np.isnan(table.scores))
    top = known[np.argsort(-table.scores[known], kind="stable")][:10]
    return {
        "mean": float(table.scores[known].mean()) if len(known) else None,
        "unreadable": len(table) - len(known),
        "rarest": [(table.names[i], float(table.scores[i])) for i in top.tolist()],
    }
