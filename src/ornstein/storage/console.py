"""Lines for the eye, on standard error."""

from __future__ import annotations

import contextlib
import sys

from ..errors import printable


def tell(text: str) -> None:
    """Write one printable line to standard error; a stream that is closed, broken or full costs no work."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()
