"""`ornstein train METHOD`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .help import entry, filled
from .output import note, say

_HELP = """usage: ornstein train METHOD [options]

{methods}

{example}

ornstein train METHOD --help shows the options."""
_EXAMPLE = "Example: ornstein train ddpm --data critters --minutes 10"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArgs:
    """A command line: the configuration, the fields set on it, and how to say it again."""

    config: Any
    given: frozenset[str]
    command: str


def parse(args: Sequence[str]) -> TrainArgs:
    """The configuration of the method named by the first word; without --out, in runs/METHOD-DATA."""
    from ..training.methods import METHODS
    from ..training.plan import completed
    from .parser import given
    from .parser import parse as parse_into

    if not args or args[0] in {"-h", "--help"}:
        rows = [line for name, method in METHODS.items() for line in entry(f"  {name}", method.what, 21)]
        say(_HELP.format(methods="\n".join(rows), example="\n".join(filled(_EXAMPLE))))
        raise SystemExit(0 if args else 2)
    method, *options = args
    if method not in METHODS:
        from ..methods import PAPERS

        planned = {paper.name for paper in PAPERS} & {method}
        why = "is not ready yet" if planned else "is unknown"
        raise UsageError(f"training method {method!r} {why}: choose one of {', '.join(METHODS)}")
    kind = METHODS[method].configuration
    if not any(word.partition("=")[0] in {"--out", "--help", "-h"} for word in options):
        options = [*_out(method, options), *options]
    config, fields = parse_into(kind, f"ornstein train {method}", options), given(kind, options)
    command = shlex.join(["ornstein", "train", *args])
    return TrainArgs(config=completed(config, fields), given=fields, command=command)


def _out(method: str, options: Sequence[str]) -> list[str]:
    """--out runs/METHOD-DATA, or nothing where no data are named."""
    for place, word in enumerate(options):
        name, _, value = word.partition("=")
        if name == "--data":
            value = value or (options[place + 1] if place + 1 < len(options) else "")
            tail = Path(value).expanduser().resolve().name if "/" in value or value in {".", ".."} else value
            tail = re.sub(r"[^\w.-]+", "-", tail).strip("-.")
            if tail:
                return ["--out", f"runs/{method}-{tail}"]
    return []


def _look(out: str | Path) -> str:
    """The command that draws from a run: a model of labels is asked for some of them."""
    from ..models.card import CONFIG
    from ..storage.files import read_json

    found = read_json(Path(out) / CONFIG)
    classes = found.get("model", {}).get("classes", []) if isinstance(found, dict) else []
    words = ["ornstein", "sample", str(out), *(["--label", *map(str, classes[:6])] if classes else [])]
    return shlex.join(words)


def train(args: TrainArgs) -> int:
    """Train, or go on with a run that was stopped."""
    from ..training import DivergedError
    from ..training import train as run_training
    from ..training.loop import Stopped
    from ..training.plan import MINUTES, Planner
    from ..training.slct import ECTConfig

    config = args.config
    if isinstance(config, ECTConfig) and not config.init_from:
        note(
            "ect without --init-from begins with a random network: --init-from RUN tunes a diffusion model, as "
            "the method does"
        )
    notes: list[str] = []
    if config.minutes == MINUTES and not {"images", "minutes"} & args.given:
        notes.append(f"no budget was given: {MINUTES:g} minutes; --minutes or --images gives another")
    if "--out" not in args.command:
        notes.append(f"the run is kept in {config.out}")
    try:
        summary = run_training(config, planner=Planner(given=args.given, notes=tuple(notes)))
    except DivergedError as error:
        note(f"ornstein: {error}")
        return 1
    except Stopped as stop:
        note(f"stopped at {stop.images} of {stop.budget} images: the checkpoint is in {stop.out}/checkpoints")
        note(f"to go on: {args.command}")
        note(f"to look: {_look(stop.out)}")
        return 130
    if summary.finished_before:
        say(f"{summary.out} has seen its {summary.images} images already: raise --images or --minutes to go on")
        return 0
    skipped = f", {count} {'file' if count == 1 else 'files'} skipped" if (count := summary.skipped_count) else ""
    say(
        f"{summary.images} images, loss {summary.loss:.4g}, {summary.images_per_second:.1f} images/s{skipped}: "
        f"{_look(summary.out)}"
    )
    sys.stdout.flush()
    return 0
