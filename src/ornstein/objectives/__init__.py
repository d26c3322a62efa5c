"""Objectives: what a step of training minimises, as per-sample losses with names."""

from .base import Contested, Examples, Losses, Objective
from .cascading import CascadeLoss, Cascading
from .consistency import ConsistencyLoss, ConsistencyTraining
from .denoising import Denoising

__all__ = [
    "CascadeLoss",
    "Cascading",
    "ConsistencyLoss",
    "ConsistencyTraining",
    "Contested",
    "Denoising",
    "Examples",
    "Losses",
    "Objective",
]
