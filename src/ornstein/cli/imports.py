"""Import paths on the command line."""

from __future__ import annotations

import sys
from pathlib import Path


def find_here(words: str | None) -> None:
    """Let an import path among ``words``, package.module:Class, be found in the current folder, after everything else.

    The script ``ornstein`` would otherwise look beside itself alone.
    """
    here = str(Path.cwd())
    if words and ":" in words and here not in sys.path:
        sys.path.append(here)


__all__ = ["find_here"]
