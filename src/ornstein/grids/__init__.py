"""Grids: the times a sampler visits. Going down is sampling, going up is re-noising.

A `Grid` is a small value that becomes a tuple of times when it meets a path, so the same ``karras(10)`` serves a
variance-preserving, an exploding and a flow path. A plain list of times is a grid as well. Combinators (`churn`,
`resample`, `restart`, `partial`) take a grid and return a grid.
"""

from __future__ import annotations

from .base import Grid, GridLike, Rule, affine, times_of
from .changed import churn, multistep, partial, resample, restart, rounds, skip, without_first
from .falling import cauchy, default, few, karras, log_snr, power, pyramid_levels, span_log_snr, timesteps, uniform
from .published import early_stopping, li2024, li2025

__all__ = [
    "Grid",
    "GridLike",
    "Rule",
    "affine",
    "cauchy",
    "churn",
    "default",
    "early_stopping",
    "few",
    "karras",
    "li2024",
    "li2025",
    "log_snr",
    "multistep",
    "partial",
    "power",
    "pyramid_levels",
    "resample",
    "restart",
    "rounds",
    "skip",
    "span_log_snr",
    "times_of",
    "timesteps",
    "uniform",
    "without_first",
]
