"""Samplers by name: the registry at the edge, for command lines and configuration files."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

from ..errors import ConfigError
from .accelerated import AcceleratedODE, AcceleratedSDE, MidpointSDE
from .ancestral import Ancestral
from .angle import TrigFlowAdams
from .base import Sampler
from .ddim import DDIM
from .exponential import DPMSolver, DPMSolver2S
from .heun import Euler, Heun
from .integrators import DEIS, Collocation, ExponentialIntegrator
from .midpoint import RandomizedMidpoint
from .stochastic_adams import SASolver
from .unipc import UniPC

SAMPLERS: Mapping[str, Callable[[], Sampler]] = MappingProxyType(
    {
        "ancestral": Ancestral,
        "ancestral-large": partial(Ancestral, "large"),
        "ancestral-learned": partial(Ancestral, "learned"),
        "ddpm": Ancestral,
        "ddim": DDIM,
        "ddim-eta1": partial(DDIM, 1.0),
        "euler": Euler,
        "heun": Heun,
        "dpmpp-1": partial(DPMSolver, points=1),
        "dpmpp-2m": partial(DPMSolver, points=2),
        "dpmpp-2s": DPMSolver2S,
        "dpmpp-3m": partial(DPMSolver, points=3),
        "dpmpp-1-sde": partial(DPMSolver, points=1, stochastic=True),
        "dpmpp-2m-sde": partial(DPMSolver, points=2, stochastic=True),
        "dpmpp-2s-sde": partial(DPMSolver2S, stochastic=True),
        "dpmpp-3m-sde": partial(DPMSolver, points=3, stochastic=True),
        "unipc": UniPC,
        "unipc-1": partial(UniPC, p=1),
        "unipc-2": UniPC,
        "unipc-3": partial(UniPC, p=3),
        "accelerated-ode": AcceleratedODE,
        "accelerated-ode-history": partial(AcceleratedODE, "history"),
        "accelerated-ode-memory": partial(AcceleratedODE, "memory"),
        "accelerated-sde": AcceleratedSDE,
        "randomized-midpoint": RandomizedMidpoint,
        "staggered-midpoint": partial(RandomizedMidpoint, places="middle"),
        "exponential-integrator": ExponentialIntegrator,
        "deis-2": partial(DEIS, points=2),
        "deis-3": DEIS,
        "collocation-3": Collocation,
        "collocation-4": partial(Collocation, nodes=4, sweeps=4),
        "angle-adams": TrigFlowAdams,
        "angle-adams-explicit": partial(TrigFlowAdams, corrector=False),
        "sa-solver": SASolver,
        "sde-midpoint": MidpointSDE,
        "sde-midpoint-exponential": partial(MidpointSDE, "exponential"),
    }
)


def sampler(which: str | Sampler, *, import_paths: bool = False) -> Sampler:
    """The sampler with this name; a sampler passes through.

    >>> sampler("dpmpp-2m")
    DPMSolver(points=2, stochastic=False, brownian=False, start='midpoint')

    Args:
        which: a name from `SAMPLERS`, or a sampler.
        import_paths: also read "package.module:Class", which **imports and runs that module**. True only for words that
            the user typed or passed in a call; never for a name that was read from a file.

    Raises:
        ConfigError: no sampler has this name (the closest ones are named first), or the import path leads to none.
    """
    if not isinstance(which, str):
        return which
    if which in SAMPLERS:
        return SAMPLERS[which]()
    if ":" in which:
        if import_paths:
            return _imported(which)
        raise ConfigError(
            f"sampler {which!r} is an import path, which is read from the command line and from calls alone: "
            "name a sampler of the library"
        )
    close = difflib.get_close_matches(which.lower(), SAMPLERS, n=3, cutoff=0.4)
    if which == "auto":
        raise ConfigError("auto is no sampler of its own: samplers.auto(path, evaluations) gives one, with its grid")
    names = ", ".join([*close, *(name for name in SAMPLERS if name not in close)])
    raise ConfigError(f"unknown sampler {which!r}: choose one of {names}")


def _imported(where: str) -> Sampler:
    """The sampler at "package.module:Class" (made without arguments) or "package.module:instance"."""
    module_name, _, attribute = where.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"sampler {where!r} is no import path: write package.module:Class")
    found = _attribute(_module(module_name, where), attribute, where)
    if not callable(getattr(found, "step", None)):
        raise ConfigError(f"{where} is no sampler: it lacks step(path, x, step, noise, memory)")
    rule = _made(found, where) if isinstance(found, type) else found
    missing = [name for name in ("order", "needs") if not hasattr(rule, name)]
    if missing:
        raise ConfigError(f"{where} is no sampler: it lacks {' and '.join(missing)} (see ornstein.samplers.Sampler)")
    if not isinstance(rule.order, int | float) or not isinstance(rule.needs, type):
        raise ConfigError(f"{where} is no sampler: order must be a number and needs a class of paths")
    return rule


def _module(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):  # the module itself, or a package of it
            raise ConfigError(
                f"sampler {where!r}: there is no module {error.name!r}: install it, or run where it lies"
            ) from None
        raise ConfigError(f"sampler {where!r}: importing {name} failed: {_brief(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"sampler {where!r}: importing {name} failed: {_brief(error)}") from error


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        own = [key for key in vars(module) if not key.startswith("_")]
        close = difflib.get_close_matches(name, own, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "check the spelling"
        raise ConfigError(f"sampler {where!r}: {module.__name__} has no {name!r}: {hint}") from None


def _made(kind: type[Any], where: str) -> Any:
    """An instance of the class, made without arguments."""
    try:
        inspect.signature(kind).bind()
    except TypeError:
        required = [
            name
            for name, parameter in inspect.signature(kind).parameters.items()
            if parameter.default is parameter.empty and "VAR_" not in parameter.kind.name
        ]
        raise ConfigError(
            f"sampler {where!r}: {kind.__name__} needs arguments ({', '.join(required)}): give them defaults, or "
            "name an instance that has them"
        ) from None
    except ValueError:  # a class without a readable signature
        pass
    try:
        return kind()
    except Exception as error:
        raise ConfigError(f"sampler {where!r}: {kind.__name__}() failed: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# What `ornstein.samplers` has of this module: every class that is named above.
__all__ = [
    "DDIM",
    "DEIS",
    "SAMPLERS",
    "AcceleratedODE",
    "AcceleratedSDE",
    "Ancestral",
    "Collocation",
    "DPMSolver",
    "DPMSolver2S",
    "Euler",
    "ExponentialIntegrator",
    "Heun",
    "MidpointSDE",
    "RandomizedMidpoint",
    "SASolver",
    "TrigFlowAdams",
    "UniPC",
    "sampler",
]
