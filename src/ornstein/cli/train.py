"""`ornstein train METHOD`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .help import entry, filled
from .output import note, say

_HELP = """usage: ornstein train METHOD [options]

{methods}

{example}

ornstein train METHOD --help shows the options."""
_EXAMPLE = "Example: ornstein train ddpm --data critters --out runs/critters --images 200000"


def parse(args: Sequence[str]) -> Any:
    """The configuration of the method named by the first word."""
    from ..training.methods import METHODS
    from .parser import parse as parse_into

    if not args or args[0] in {"-h", "--help"}:
        rows = [line for name, method in METHODS.items() for line in entry(f"  {name}", method.what, 21)]
        say(_HELP.format(methods="\n".join(rows), example="\n".join(filled(_EXAMPLE))))
        raise SystemExit(0 if args else 2)
    if args[0] not in METHODS:
        from ..methods import METHODS as PAPERS

        planned = {method.name for method in PAPERS} & {args[0]}
        why = "is not ready yet" if planned else "is unknown"
        raise UsageError(f"training method {args[0]!r} {why}: choose one of {', '.join(METHODS)}")
    return parse_into(METHODS[args[0]].configuration, f"ornstein train {args[0]}", args[1:])


def train(config: Any) -> int:
    """Train, or go on with a run that was stopped."""
    from ..training import DivergedError
    from ..training import train as run_training
    from ..training.slct import ECTConfig

    if isinstance(config, ECTConfig) and not config.init_from:
        note(
            "ect without --init-from begins with a random network: --init-from RUN tunes a diffusion model, as "
            "the method does"
        )
    try:
        summary = run_training(config)
    except DivergedError as error:
        note(f"ornstein: {error}")
        return 1
    if summary.finished_before:
        say(f"{summary.out} has seen its {summary.images} images already: raise --images to go on")
        return 0
    skipped = f", {summary.skipped_count} files skipped" if summary.skipped_count else ""
    say(
        f"{summary.images} images, loss {summary.loss:.4g}, {summary.images_per_second:.1f} images/s{skipped}: "
        f"ornstein sample {summary.out}"
    )
    sys.stdout.flush()
    return 0
