"""The progress of a call: evaluations done, of all, or tensors read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import checks
from .errors import UsageError

Progress = bool | Callable[[int, int], object]
"""True for a bar on stderr, False for nothing, or a function of (evaluations done, all of them)."""


def check_progress(progress: Progress) -> None:
    """Raise `UsageError` for what is neither True, False nor a function."""
    if not isinstance(progress, bool):
        checks.function("progress", progress, "True, False or a function (done, total)", UsageError)


@contextmanager
def counted(
    progress: Progress, total: Callable[[], int], what: str = "sampling", unit: str = " evaluations"
) -> Iterator[Callable[[], object]]:
    """What to call after every evaluation, or other unit; ``total`` is asked only where progress is shown."""
    if progress is False:
        yield lambda: None
    elif progress is True:
        from tqdm import tqdm

        with tqdm(total=total(), desc=what, unit=unit, dynamic_ncols=True) as bar:
            yield bar.update
    else:
        done, whole, report = 0, total(), progress

        def step() -> None:
            nonlocal done
            done += 1
            report(done, max(done, whole))

        yield step
