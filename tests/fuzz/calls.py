"""Random wrong calls of the public functions and classes: right arguments, of which one or two are nonsense."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from isolation import WrongError
from torch import nn

import ornstein as orn
from ornstein import grids, guidance
from ornstein.samplers import SAMPLERS


class Network(nn.Module):
    """A small right network of (3, 8, 8) with a condition ``label``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return 0.1 * self.layer(x)


def model(**options: Any) -> orn.Denoiser:
    return orn.Denoiser(Network(), **{"path": orn.VP(), "predicts": "noise", "shape": (3, 8, 8)} | options)


NONSENSE: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "'4'": lambda: "4",
    "''": lambda: "",
    "'nan'": lambda: "nan",
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "-0.0": lambda: -0.0,
    "10**30": lambda: 10**30,
    "1e308": lambda: 1e308,
    "1e-320": lambda: 1e-320,
    "[]": list,
    "[nan]": lambda: [math.nan],
    "[1, 1]": lambda: [1, 1],
    "[0, 1]": lambda: [0.0, 1.0],
    "()": tuple,
    "{}": dict,
    "object()": object,
    "tensor(nan)": lambda: torch.tensor(math.nan),
    "zeros(0)": lambda: torch.zeros(0),
    "zeros(2, 2)": lambda: torch.zeros(2, 2),
    "long(3)": lambda: torch.arange(3),
    "array": lambda: np.ones((2, 3)),
    "int": lambda: int,
    "VP": lambda: orn.VP,
    "DDIM": lambda: orn.samplers.DDIM,
    "lambda": lambda: lambda *_: None,
    "b'x'": lambda: b"x",
    "2+3j": lambda: 2 + 3j,
    "Path": lambda: Path("nowhere"),
    "range(3)": lambda: range(3),
    "model": model,
    "VE()": orn.VE,
    "{'a': 1}": lambda: {"a": 1},
    "{'label': zeros(9)}": lambda: {"label": torch.zeros(9)},
    "{1: zeros(2)}": lambda: {1: torch.zeros(2)},
    "set": lambda: {1, 2},
    "'\\n\\x1b[31m'": lambda: "\n\x1b[31m",
    "'é' * 500": lambda: "é" * 500,
    "np.float64": lambda: np.float64(0.3),
    "np.int64": lambda: np.int64(3),
    "-7": lambda: -7,
}

SIGNATURES = {"sample": orn.sample, "stream": orn.stream, "solve": orn.solve, "plan": orn.plan}
LEFT = {"times_of", "affine", "default"}
"""Functions of grids that are no rules."""
SMALL = {"n": 2, "steps": 3}


def _sampled(thing: Any) -> None:
    """Use what was made: a mistake that its constructor let pass must not draw nonsense."""
    if isinstance(thing, type(None) | int | float | str | torch.Tensor | tuple | list | dict):
        return
    if hasattr(thing, "step") and hasattr(thing, "order"):
        _drawn(lambda: orn.sample(model(), sampler=thing, **SMALL))
    elif isinstance(thing, grids.Grid):
        _drawn(lambda: orn.sample(model(), 2, grid=thing))
    elif hasattr(thing, "timestep_of") and hasattr(thing, "prior"):
        _drawn(lambda: orn.sample(model(path=thing, predicts="clean"), **SMALL))
    elif isinstance(thing, orn.Denoiser):
        _drawn(lambda: orn.sample(thing, **SMALL))


def _drawn(draw: Callable[[], torch.Tensor]) -> None:
    images = draw()
    if not images.isfinite().all():
        raise WrongError("samples are not finite, and nothing says so")


def _noise() -> orn.Noise:
    return orn.Noise.of(0, range(2))


def _recipes() -> dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]]]]:
    """Public callables, and right arguments by name (made when they are needed)."""
    constant = lambda value: lambda: value  # noqa: E731
    times = constant([1.0, 0.5, 0.0])
    x = lambda: torch.zeros(2, 3, 8, 8)  # noqa: E731
    found: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]]]] = {
        "sample": (orn.sample, {"model": model, "n": constant(2), "steps": constant(3)}),
        "stream": (lambda *a, **k: list(orn.stream(*a, **k)), {"model": model, "n": constant(2), "steps": constant(3)}),
        "solve": (
            lambda **k: orn.run(orn.solve(**k), model()),
            {"sampler": orn.samplers.DDIM, "path": orn.VP, "x": x, "times": times, "noise": _noise},
        ),
        "plan": (lambda **k: list(orn.plan(**k)), {"sampler": orn.samplers.DDIM, "path": orn.VP, "times": times}),
        "edit": (
            orn.sample,
            {"model": model, "n": constant(2), "steps": constant(3), "start": x, "strength": constant(0.5)}
            | {"mask": lambda: torch.ones(1, 1, 8, 8)},
        ),
        "Denoiser": (
            orn.Denoiser,
            {"net": Network, "path": orn.VP, "predicts": constant("noise"), "shape": constant((3, 8, 8))},
        ),
        "Noise.of": (orn.Noise.of, {"seed": constant(0), "samples": constant(range(2))}),
        "load": (orn.load, {"where": constant("critters")}),
    }
    names = [name for name in dir(grids) if not name.startswith("_")]
    for name in names:
        rule = getattr(grids, name)
        if inspect.isfunction(rule) and rule.__module__.startswith(grids.__name__) and name not in LEFT:
            found[f"grids.{name}"] = (rule, _guessed(rule))
    for kind in (orn.VP, orn.VE, orn.Flow, orn.PyramidPath, orn.VP.from_betas, orn.VP.table):
        label = getattr(kind, "__qualname__", str(kind))
        found[label] = (kind, _guessed(kind) | ({"betas": constant([0.1, 0.2, 0.3])} if "betas" in label else {}))
    for name, make in SAMPLERS.items():
        kind = make.func if isinstance(make, functools.partial) else make
        found[f"samplers.{name}"] = (kind, {})
    for name in guidance.__all__:
        kind = getattr(guidance, name)
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            found[f"guidance.{name}"] = (kind, _guessed(kind))
    return found


def _guessed(rule: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """Right arguments for the required parameters, by the names that they have everywhere."""
    known: dict[str, Any] = {
        "steps": 5,
        "count": 2,
        "times": 2,
        "rounds": 2,
        "low": 0.3,
        "high": 0.6,
        "start": 0.7,
        "path": orn.VP(),
        "grid": [1.0, 0.5, 0.0],
        "weight": 2.0,
        "scale": 2.0,
        "delta": 0.01,
        "null": {},
        "sigma": (0.3, 5.0),
        "p": 0.995,
    }
    out: dict[str, Callable[[], Any]] = {}
    for name, parameter in inspect.signature(rule).parameters.items():
        if parameter.default is parameter.empty and name in known:
            out[name] = lambda value=known[name]: value
    return out


def cases(random: Random, places: object = None) -> tuple[str, Callable[[], object]]:
    """One random wrong call."""
    del places
    recipes = _recipes()
    # The front doors half of the time: there are many more samplers and guidances than there are ways in.
    name = random.choice([*recipes] if random.random() < 0.5 else ["sample", "stream", "edit", "solve", "Denoiser"])
    call, right = recipes[name]
    known = [p for p in inspect.signature(SIGNATURES.get(name, call)).parameters if p not in {"a", "k"}]
    candidates = sorted({*right, *known} - {"a", "k", "self"})
    wrong = {
        where: random.choice([*NONSENSE])
        for where in random.sample(candidates, min(len(candidates), random.choice([1, 1, 1, 2])))
    }
    dropped = random.random() < 0.05 and bool(right)
    lost = random.choice([*right]) if dropped else None
    unknown = random.random() < 0.05

    def case() -> None:
        arguments = {key: value() for key, value in right.items() if key != lost}
        arguments |= {where: NONSENSE[which]() for where, which in wrong.items()}
        if unknown:
            arguments["colour"] = 1
        try:
            inspect.signature(call).bind(**arguments)
        except TypeError:
            return  # Python itself refuses it, by name
        states = "x" in wrong and isinstance(arguments["x"], torch.Tensor)
        if states or wrong.get("timestep_of") == "model" or wrong.get("shape") in {"[]", "()", "zeros(0)"}:
            return  # what a user's own function says of its arguments is its own affair
        try:
            result = call(**arguments)
        except TypeError as error:
            if "unexpected keyword argument" in str(error) or "required" in str(error):
                return  # the signature behind a wrapper
            raise
        if isinstance(result, torch.Tensor) and not result.isfinite().all():
            raise WrongError("the result is not finite, and nothing says so")
        _sampled(result)

    said = ", ".join([*(f"{where}={which}" for where, which in wrong.items()), *([f"without {lost}"] if lost else [])])
    return f"{name}({said}{', colour=1' if unknown else ''})", case
