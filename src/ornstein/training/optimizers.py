"""Optimizers over the weights of a module."""

from __future__ import annotations

import torch
from torch import nn

from .config import Optimizer


def adam(settings: Optimizer, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer (AdamW) over the matrices, with decay, and the gains and biases, without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return settings.make(groups, device)
