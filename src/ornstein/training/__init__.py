"""Training: a typed configuration, a loop that can be killed at any moment, and what it writes.

The loop itself is imported when it is first asked for, so that opening a trained run stays quick.
"""

from typing import TYPE_CHECKING, Any

from ..models.spec import ModelSpec
from ..storage.configs import from_dict, to_dict
from .conditions import Text
from .config import Averaging, Every, Optimizer, TrainConfig
from .methods import METHODS, Method, read_config

if TYPE_CHECKING:
    from .loop import DivergedError, Summary, train

__all__ = [
    "METHODS",
    "Averaging",
    "DivergedError",
    "Every",
    "Method",
    "ModelSpec",
    "Optimizer",
    "Summary",
    "Text",
    "TrainConfig",
    "from_dict",
    "read_config",
    "to_dict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in {"DivergedError", "Summary", "train"}:
        from . import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
