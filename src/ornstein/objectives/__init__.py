"""Objectives: what a step of training minimises, as per-sample losses with names."""

from .base import AdversarialObjective, Losses, Objective, TrainBatch
from .cascading import CascadeLoss, Cascading
from .consistency import ConsistencyLoss, ConsistencyTraining
from .denoising import Denoising

__all__ = [
    "AdversarialObjective",
    "CascadeLoss",
    "Cascading",
    "ConsistencyLoss",
    "ConsistencyTraining",
    "Denoising",
    "Losses",
    "Objective",
    "TrainBatch",
]
