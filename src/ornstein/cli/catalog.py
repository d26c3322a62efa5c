"""`ornstein methods`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..methods import METHODS
from .output import emit_json, say


@dataclass(frozen=True, kw_only=True)
class MethodsArgs:
    """The eleven methods, each with its honest state.

    Example: ornstein methods --json
    """

    json: bool = False
    """Print one JSON document instead of the table."""


def methods(args: MethodsArgs) -> int:
    """Print the table."""
    if args.json:
        emit_json([asdict(method) for method in METHODS])
        return 0
    width = max(len(method.name) for method in METHODS)
    for method in METHODS:
        say(f"{method.name:<{width}}  {method.state:<8} {method.what}")
        say(f"{'':<{width}}  {'':<8} here: {method.here}")
        if method.command:
            say(f"{'':<{width}}  {'':<8} run:  {method.command}")
    return 0
