"""Ornstein: recent advances in diffusion models as parts that work on any denoiser, and compose.

import ornstein as orn

model = orn.load("critters")                                   # a run, a shipped model, a diffusers pipeline, …
images = orn.sample(model, n=16, sampler="dpmpp-2m", steps=20, seed=0)
model = orn.Denoiser(my_module, path=orn.VP(), predicts="noise", shape=(3, 64, 64))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import denoisers, errors, estimates, grids, guidance, parameterizations, paths, randomness, samplers
    from .data.pictures import show
    from .denoisers import CachedDenoiser, Denoiser, Guidance
    from .estimates import Estimate, Gaussian
    from .interop.diffusers import from_pipeline
    from .paths import VE, VP, AffinePath, Flow, LocationPath, Path, PyramidPath, ShiftedPath
    from .randomness import Noise, NoiseSource
    from .relay import Relay
    from .runs import load
    from .runs.front import sample, stream
    from .samplers import plan, run, solve

__version__ = "0.1.0"

# Names are imported when they are used: the command and its help do not wait for torch.
_MODULES = {
    "data.pictures": ("show",),
    "denoisers": ("CachedDenoiser", "Denoiser", "Guidance"),
    "estimates": ("Estimate", "Gaussian"),
    "paths": ("VE", "VP", "AffinePath", "Flow", "LocationPath", "Path", "PyramidPath", "ShiftedPath"),
    "randomness": ("Noise", "NoiseSource"),
    "relay": ("Relay",),
    "interop.diffusers": ("from_pipeline",),
    "runs": ("load",),
    "runs.front": ("sample", "stream"),
    "samplers": ("plan", "run", "solve"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

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
    "Relay",
    "ShiftedPath",
    "__version__",
    "denoisers",
    "errors",
    "estimates",
    "from_pipeline",
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
    "show",
    "solve",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
