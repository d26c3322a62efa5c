"""Random wrong configurations: fields from Python, entries of files, and settings of other libraries' schedulers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from calls import NONSENSE
from files import spoiled
from isolation import WrongError

import ornstein as orn
from ornstein.interop.schedulers import from_scheduler_config, times_of_pipeline
from ornstein.training import METHODS, read_config, to_dict

SCHEDULERS = ("DDPM", "DDIM", "PNDM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LCM")
SCHEDULERS += ("FlowMatchEulerDiscrete", "EDMEuler", "TCD", "CMStochasticIterative", "DEISMultistep", "KDPM2Discrete")
SETTINGS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (1, 2, 3, 10, 100, 1000),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "beta_start": (0.0, 1e-6, 0.5),
    "beta_end": (0.02, 0.5, 0.999, 1.0, 2.0),
    "trained_betas": ([0.1], [0.1, 0.2], [0.5, 0.4], [0.1, 1.0]),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction", "strange"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (0, 1, 7),
    "set_alpha_to_one": (True, False),
    "clip_sample": (True, False),
    "thresholding": (True, False),
    "rescale_betas_zero_snr": (True, False),
    "use_karras_sigmas": (True, False),
    "use_exponential_sigmas": (True, False),
    "use_flow_sigmas": (True, False),
    "final_sigmas_type": ("zero", "sigma_min"),
    "shift": (0.5, 1.0, 3.0),
    "sigma_min": (0.002, 0.03),
    "sigma_max": (80.0, 1.0),
    "sigma_data": (0.5, 1.0),
    "original_inference_steps": (1, 10, 50),
}


def cases(random: Random, places: object = None) -> tuple[str, Callable[[], object]]:
    """One random configuration."""
    del places
    return random.choice([_from_python, _from_python, _from_file, _from_scheduler])(random)


@functools.cache
def _classes() -> tuple[type, ...]:
    """The configurations of every method, and all configurations inside them."""
    found: dict[type, None] = {}

    def walk(config: Any) -> None:
        found[type(config)] = None
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                walk(value)

    for method in METHODS.values():
        walk(method.configuration(**_needed(method.configuration)))
    return tuple(found)


def _needed(cls: type) -> dict[str, Any]:
    """What a configuration of a run cannot do without."""
    right = {"out": "run", "data": "critters", "scores": "scores.csv", "init_from": "other"}
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in right.items() if name in names} if "out" in names else {}


def _from_python(random: Random) -> tuple[str, Callable[[], object]]:
    cls = random.choice(_classes())
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    wrong = {name: random.choice([*NONSENSE]) for name in random.sample(names, random.choice([1, 1, 2]))}

    def case() -> None:
        config: Any = cls(**{**_needed(cls), **{name: NONSENSE[which]() for name, which in wrong.items()}})
        if _needed(cls):
            _written_and_read(config)

    return f"{cls.__name__}({', '.join(f'{name}={which}' for name, which in wrong.items())})", case


def _written_and_read(config: Any) -> None:
    """What was accepted must survive its file, which is written without nan and infinity."""
    text = json.dumps(to_dict(config), allow_nan=False)
    if read_config(json.loads(text)) != config:
        raise WrongError("the configuration that is read differs from the one that was written")


def _from_file(random: Random) -> tuple[str, Callable[[], object]]:
    name = random.choice([*METHODS])
    document = to_dict(METHODS[name].configuration(**_needed(METHODS[name].configuration)))
    said = ", ".join(spoiled(random, document, random.choice(["leaf", "leaf", "leaf", "key"])) for _ in range(2))
    return f"read_config of {name}: {said}", lambda: _written_and_read(read_config(document))


def _from_scheduler(random: Random) -> tuple[str, Callable[[], object]]:
    kind = random.choice(SCHEDULERS)
    settings = {key: random.choice(SETTINGS[key]) for key in random.sample([*SETTINGS], random.choice([0, 1, 2, 3, 5]))}
    steps = random.choice([1, 2, 3, 5, 10, 50])

    # Imported by the parent process, once: it takes seconds.
    cls = getattr(importlib.import_module("diffusers"), f"{kind}Scheduler")

    def case() -> None:
        known = {key: value for key, value in settings.items() if key in inspect.signature(cls).parameters}
        try:
            scheduler = cls(**known)
        except Exception:
            return  # the other library refuses its own settings, in its own words
        law = from_scheduler_config(scheduler)
        before = copy.deepcopy(dict(scheduler.config))
        times = times_of_pipeline(scheduler, law.path, steps) if law.grid is None else law.grid(steps)(law.path)
        if dict(scheduler.config) != before:
            raise WrongError("the scheduler was changed")
        _descends(times, law.path, climbs=law.grid is not None)
        model = orn.Denoiser(
            lambda x, t: torch.zeros_like(x), law.path, law.predicts, timestep_of=law.timestep_of, shape=(3,)
        )
        if not orn.sample(model, 2, sampler="ddim", grid=times).isfinite().all():
            raise WrongError("samples are not finite, and nothing says so")

    return f"{kind}Scheduler({settings}), {steps} steps", case


def _descends(times: tuple[float, ...], path: Any, *, climbs: bool) -> None:
    low, high = path.t_range
    if not all(low <= t <= high for t in times):
        raise WrongError(f"times outside the path's span: {times}")
    if not climbs and any(s >= t for t, s in itertools.pairwise(times)):
        raise WrongError(f"times that climb: {times}")
