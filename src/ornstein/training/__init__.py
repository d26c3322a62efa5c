"""Training: a typed configuration, a loop that can be killed at any moment, and what it writes."""

from .codec import from_dict, to_dict
from .config import Averaging, Every, Optimizer, Text, TrainConfig
from .loop import DivergedError, Summary, train
from .spec import Spec

__all__ = [
    "Averaging",
    "DivergedError",
    "Every",
    "Optimizer",
    "Spec",
    "Summary",
    "Text",
    "TrainConfig",
    "from_dict",
    "to_dict",
    "train",
]
