"""Samplers of this library in the pipelines of diffusers.

    pipe.scheduler = orn.schedulers.AcceleratedODE.from_config(pipe.scheduler.config, form="memory")

There is a class for every kind of sampler (`ornstein.samplers`), and `from_sampler` takes any. diffusers is imported
with the first of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import SamplerScheduler, from_sampler

__all__ = ["SamplerScheduler", "from_sampler"]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    adapter = importlib.import_module(".adapter", __name__)
    if name in (*__all__, "SchedulerMixin"):  # by this one a pipeline that is loaded recognises schedulers
        return getattr(adapter, name)
    if name in adapter.CLASSES:
        return adapter.CLASSES[name]
    raise AttributeError(
        f"there is no scheduler {name!r}: choose one of {', '.join(sorted(adapter.CLASSES))}, or from_sampler"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *importlib.import_module(".adapter", __name__).CLASSES})
