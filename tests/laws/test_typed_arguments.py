"""Every argument of another type than its signature declares is refused in one line that names it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein import grids, guidance, samplers
from ornstein.errors import GridError, UsageError
from ornstein.networks import UNetConfig
from ornstein.objectives import Denoising
from ornstein.paths.vp import Cosine, Linear, Table
from ornstein.training import METHODS, TrainConfig

NULL = {"label": torch.zeros(1)}
KNOWN: dict[str, Any] = {
    "weight": 2.0,
    "scale": 0.5,
    "null": NULL,
    "grid": [1.0, 0.5, 0.0],
    "worse": orn.Denoiser(lambda x, t: x, orn.VP()),
    "classifier": lambda x, t: x,
    "target": torch.zeros(3),
    "operator": lambda x: x,
    "colours": torch.zeros(2, 3),
    "by": {},
    "layers": (("a", "b"),),
    "misfit": lambda x: x,
    "measured": guidance.Measured(operator=lambda x: x, target=torch.zeros(1)),
    "steps": 4,
    "rate": 0.1,
    "energies": lambda x: x,
    "guidance": lambda d: d,
    "low": 0.3,
    "high": 0.6,
    "betas": (0.1, 0.2),
    "out": "run",
    "data": "critters",
    "scores": "scores.csv",
    "init_from": "other",
    "count": 2,
    "times": 2,
    "start": 0.7,
    "first": 0.5,
    "last": 0.1,
    "path": orn.VP(),
}
STRANGE: dict[str, tuple[Any, ...]] = {
    "int": ("4", 1.5, [1], {}, None, object(), True, int, torch.zeros(2)),
    "float": ("4", [1.0], {}, None, object(), float, torch.zeros(2), 1j, math.nan),
    "bool": ("yes", 1, [], None, object(), torch.zeros(2)),
    "str": (1, [], {}, None, object(), str),
}


def public() -> dict[str, Callable[..., Any]]:
    """Public classes and functions whose arguments are declared."""
    classes = [getattr(module, name) for module in (samplers, guidance) for name in module.__all__]
    classes = [c for c in classes if dataclasses.is_dataclass(c) and hasattr(c.__init__, "__wrapped__")]
    classes += [orn.VP, orn.VE, orn.Flow, Linear, Cosine, Table, TrainConfig, Denoising, UNetConfig]
    classes += [method.configuration for method in METHODS.values()]
    rules = [getattr(grids, name) for name in dir(grids) if not name.startswith("_")]
    rules = [rule for rule in rules if inspect.isfunction(rule) and hasattr(rule, "__wrapped__")]
    rules = [rule for rule in rules if rule.__module__.startswith(grids.__name__)]
    return {f"{thing.__module__}.{thing.__qualname__}": thing for thing in [*classes, *rules]}


PUBLIC = public()
CASES = [
    (name, argument, str(parameter.annotation))
    for name, thing in PUBLIC.items()
    for argument, parameter in inspect.signature(thing).parameters.items()
    if str(parameter.annotation) in STRANGE and "VAR_" not in parameter.kind.name
]


def test_the_public_face_is_found():
    assert len(PUBLIC) > 50
    assert len(CASES) > 200


@pytest.mark.parametrize(("name", "argument", "kind"), CASES)
def test_an_argument_of_another_type_is_refused_by_name(name: str, argument: str, kind: str):
    thing = PUBLIC[name]
    parameters = inspect.signature(thing).parameters
    right = {key: KNOWN[key] for key, p in parameters.items() if p.default is p.empty and key in KNOWN}
    right |= {key: [1, 0] for key in right if "Sequence" in str(parameters[key].annotation)}
    for value in STRANGE[kind]:
        with pytest.raises(UsageError) as caught:
            thing(**right | {argument: value})
        said = str(caught.value)
        assert said.startswith(argument)
        assert "\n" not in said
        assert len(said) < 300


@pytest.mark.parametrize("wrong", [{"sampler": {}}, {"path": 0}, {"x": None}, {"times": 1.5}, {"noise": 3}])
def test_solve_refuses_what_is_no_problem(wrong: dict[str, Any]):
    right = {
        "sampler": samplers.DDIM(),
        "path": orn.VP(),
        "x": torch.zeros(2, 3),
        "times": [1.0, 0.0],
        "noise": orn.Noise.of(0, range(2)),
    }
    with pytest.raises(UsageError, match=next(iter(wrong))):
        orn.solve(**right | wrong)


@pytest.mark.parametrize("codec", [math.nan, b"x", "x", (), object(), int])
def test_a_codec_decodes(codec: Any):
    with pytest.raises(UsageError, match="codec must be an object with a method decode"):
        orn.Denoiser(lambda x, t: x, orn.VP(), codec=codec)


@pytest.mark.parametrize("energies", [1.5, None, {}, "red", int, [3], (1.0, 2.0)])
def test_energies_are_functions(energies: Any):
    with pytest.raises(UsageError, match="energies are callables"):
        guidance.Universal(energies=energies)


@pytest.mark.parametrize("where", ["é" * 500, "a\0b", "~nobody/x", 3, None])
def test_a_name_that_cannot_be_one_is_no_model(where: Any):
    with pytest.raises(UsageError):
        orn.load(where)


@pytest.mark.parametrize("wrong", [{"ema": 1j}, {"ema": "x"}, {"device": math.nan}, {"device": []}])
def test_a_model_is_opened_with_numbers_and_devices(wrong: dict[str, Any]):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        orn.load("critters", **wrong)


@pytest.mark.parametrize("shape", [torch.tensor(3), torch.zeros(2, 2), 3, {}, "388", [0], [1.5]])
def test_a_shape_is_a_list_of_positive_whole_numbers(shape: Any):
    with pytest.raises(UsageError, match="shape"):
        orn.Denoiser(lambda x, t: x, orn.VP(), shape=shape)


def test_what_a_function_of_the_time_returns_is_looked_at():
    model = orn.Denoiser(lambda x, t: x, orn.VP(), shape=(3,), timestep_of=lambda path, t: None)
    with pytest.raises(UsageError, match="what timestep_of returns must be a number"):
        orn.sample(model)


def test_numbers_of_other_libraries_and_lists_for_tuples_are_taken():
    import numpy as np

    assert grids.karras(np.int64(3), rho=np.float32(7.0))(orn.VE())[0] == 80.0
    assert orn.VP.from_betas(np.linspace(0.1, 0.2, 3)).t_min == pytest.approx(1 / 3)
    assert orn.VP.from_betas([0.1, 0.2]) == orn.VP.from_betas(torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert guidance.SEG(blur=math.inf).blur == math.inf
    with pytest.raises(GridError):
        grids.karras(3, rho=math.inf)


def test_a_message_shortens_the_value_that_it_names():
    said = str(UsageError(f"{'x' * 5000!r} is no number"))
    assert len(said) < 400
    assert said.endswith("is no number")
    assert "5002 characters" in said
    assert len(str(UsageError("word " * 5000))) < 1000
