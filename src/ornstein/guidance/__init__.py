"""Guidance: functions from denoisers to denoisers. They compose, and work with every sampler.

from ornstein import guidance as guide

model = guide.CFG(weight=4.0, null=run.null())(run.denoiser)
both = guide.compose(guide.CFG(weight=4.0, null=run.null()), guide.interval(guide.PAG(scale=2.0), sigma=(0.3, 5.0)))
images = orn.sample(both(run.denoiser), n=4, cond=run.cond(labels=[3]))
"""

from . import energies, registry
from .base import CachedEvaluation, Guided, Rule, Strength, condition_of, network_of
from .checkpointing import checkpointed
from .classifier import NoisyClassifier
from .compose import add, compose, interval
from .energies import (
    Colour,
    Edges,
    Energy,
    GuideWarning,
    Measured,
    Palette,
    Smoothness,
    inpainting,
    super_resolution,
)
from .minority import Minority, MinorityPrompt, SelfMinority
from .perturbed import Perturbed
from .posterior import DPS, LinearPosterior, misfit_of
from .registry import *  # noqa: F403  (the guidances that have a name on the command line)
from .universal import Backward, Universal, corrected

__all__ = [
    "DPS",
    "Backward",
    "CachedEvaluation",
    "Colour",
    "Edges",
    "Energy",
    "GuideWarning",
    "Guided",
    "LinearPosterior",
    "Measured",
    "Minority",
    "MinorityPrompt",
    "NoisyClassifier",
    "Palette",
    "Perturbed",
    "Rule",
    "SelfMinority",
    "Smoothness",
    "Strength",
    "Universal",
    "add",
    "checkpointed",
    "compose",
    "condition_of",
    "corrected",
    "energies",
    "inpainting",
    "interval",
    "misfit_of",
    "network_of",
    "super_resolution",
]
__all__ += registry.__all__
