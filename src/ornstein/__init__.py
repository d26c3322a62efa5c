"""Ornstein: recent advances in diffusion models as parts that work on any denoiser, and compose.

import ornstein as orn

model = orn.load("critters")                                   # a run, a checkpoint, or the shipped model
images = orn.sample(model, n=16, sampler="dpmpp-2m", steps=20, seed=0)
model = orn.Denoiser(my_module, path=orn.VP(), predicts="noise", shape=(3, 64, 64))
"""

from . import denoisers, errors, estimates, grids, guidance, parameterizations, paths, randomness, samplers
from .denoisers import CachedDenoiser, Denoiser, Guidance
from .estimates import Estimate, Gaussian
from .paths import VE, VP, AffinePath, Flow, LocationPath, Path, PyramidPath, ShiftedPath
from .randomness import Noise, NoiseSource
from .runs import load
from .samplers import plan, run, solve
from .sampling import sample, stream

__version__ = "0.1.0"

__all__ = [
    "VE",
    "VP",
    "AffinePath",
    "CachedDenoiser",
    "Denoiser",
    "Estimate",
    "Flow",
    "Gaussian",
    "Guidance",
    "LocationPath",
    "Noise",
    "NoiseSource",
    "Path",
    "PyramidPath",
    "ShiftedPath",
    "__version__",
    "denoisers",
    "errors",
    "estimates",
    "grids",
    "guidance",
    "load",
    "parameterizations",
    "paths",
    "plan",
    "randomness",
    "run",
    "sample",
    "samplers",
    "solve",
    "stream",
]
