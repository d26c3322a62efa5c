"""`ornstein methods`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..methods import PAPERS
from .help import filled
from .output import emit_json, say


@dataclass(frozen=True, kw_only=True)
class MethodsArgs:
    """The eleven papers: what each does, whether it is here, and the command that runs it.

    Example: ornstein methods --json
    """

    json: bool = False
    """Print one JSON document instead of the table."""


def methods(args: MethodsArgs) -> int:
    """Print the table."""
    if args.json:
        emit_json([asdict(method) for method in PAPERS])
        return 0
    for method in PAPERS:
        say(f"{method.name}  ({method.state})")
        for lead, text in (("", method.what), ("here: ", method.here), ("run:  ", method.command)):
            for line in filled(text, " " * (4 + len(lead)), f"    {lead}"):
                say(line)
    return 0
