"""Objectives: what a step of training minimises, as per-sample losses with names."""

from .base import Examples, Losses, Objective
from .denoising import Denoising

__all__ = ["Denoising", "Examples", "Losses", "Objective"]
