"""What schedulers made of samplers refuse, each in one line; and a sampler of one's own."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.errors import ConfigError, GridError, UsageError
from ornstein.samplers import Query

from .test_scheduler_adapter import KINDS, ddim, driven, made

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


def test_the_reference_is_true_of_every_class_that_it_lists() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "schedulers.md"
    listed = dict(re.findall(r"^\| `([A-Z]\w+)` \| (.*) \|$", page.read_text("utf-8"), flags=re.MULTILINE))
    assert set(listed) <= set(KINDS)  # a new sampler costs no row here
    assert len(listed) > 10
    for name, options in listed.items():
        fields = dataclasses.fields(getattr(orn.schedulers, name).kind)
        assert options == (", ".join(f"`{item.name}={item.default!r}`" for item in fields) or "–")


class Own:
    """DDIM, by a stranger; ``late`` asks for a time that its estimate decides."""

    order = 1
    needs = orn.paths.AffinePath

    def __init__(self, late: bool = False) -> None:
        self.late = late

    def step(self, path: Any, x: Tensor, step: Any, noise: Any, memory: Any) -> Any:
        estimate = yield Query(x, step.t)
        if self.late and estimate.clean.mean() > 0.5:
            estimate = yield Query(x, 0.5 * (step.t + step.s))
        return path.ddim_step(x, estimate, path.sigma(step.s) / path.sigma(step.t), step.s)


def test_a_sampler_of_ones_own() -> None:
    source = ddim()
    scheduler, wanted = orn.schedulers.from_sampler(Own(), source.config), made("DDIM", source)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = []
    for one in (scheduler, wanted):
        one.set_timesteps(5)
        ends.append(driven(one, source, x))
    torch.testing.assert_close(*ends)
    with pytest.raises(UsageError, match="Own is not of this library"):
        scheduler.save_pretrained("nowhere")
    with pytest.raises(UsageError, match="Own has no list of evaluations"):
        orn.schedulers.from_sampler(Own(late=True), source.config).set_timesteps(5)


def test_bad_input_is_refused_in_one_line() -> None:
    scheduler = made("DDIM", ddim())
    for arguments, kind, message in (
        ({}, UsageError, "needs a number of steps"),
        ({"num_inference_steps": 0}, UsageError, "at least 1, got 0"),
        ({"num_inference_steps": 2.5}, UsageError, "whole number"),
        ({"num_inference_steps": 1001}, UsageError, "cannot make 1001 steps"),
        ({"timesteps": [5, 7]}, UsageError, "timesteps must fall, from the noisiest on: 7 follows 5"),
        ({"timesteps": [7, 7]}, UsageError, "7 follows 7"),
        ({"timesteps": []}, UsageError, "list of numbers"),
        ({"timesteps": "99"}, UsageError, "list of numbers"),
        ({"timesteps": [900, float("nan")]}, UsageError, "finite, got nan"),
        ({"timesteps": [1500, 3]}, GridError, "timesteps go up to 999 here.*got 1500"),
        ({"timesteps": [500, -1]}, GridError, "above the clean end, got -1"),
        ({"timesteps": [500, 400.00001, 400.0]}, UsageError, "same but for rounding"),
        ({"sigmas": [float("inf"), 1.0]}, UsageError, "finite"),
        ({"sigmas": [100.0, 1.0]}, GridError, "sigmas go up to 14.6"),
        ({"sigmas": [0.0]}, UsageError, "a level above 0"),
        ({"timesteps": [1], "sigmas": [1.0]}, UsageError, "twice"),
        ({"num_inference_steps": 3, "timesteps": [900, 5]}, UsageError, "2 timesteps are no 3 steps"),
    ):
        with pytest.raises(kind, match=message) as caught:
            scheduler.set_timesteps(**arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="set_timesteps before the loop"):
        made("DDIM", ddim()).step(torch.zeros(1, 2), 5, torch.zeros(1, 2))
    scheduler.set_timesteps(3)
    with pytest.raises(UsageError, match="timestep 5 is none of"):
        scheduler.step(torch.zeros(1, 2), 5, torch.zeros(1, 2))
    with pytest.raises(UsageError, match=r"returned \(1, 3\) for a state of \(1, 2\)"):
        scheduler.step(torch.zeros(1, 3), scheduler.timesteps[0], torch.zeros(1, 2))
    with pytest.raises(UsageError, match="2 generators for 3 samples"):
        scheduler.step(torch.zeros(3, 2), scheduler.timesteps[0], torch.zeros(3, 2), generator=[torch.Generator()] * 2)
    scheduler.step(torch.zeros(1, 2), scheduler.timesteps[0], torch.zeros(1, 2))
    with pytest.raises(UsageError, match="changed its shape"):
        scheduler.step(torch.zeros(2, 2), scheduler.timesteps[1], torch.zeros(2, 2))
    scheduler.set_begin_index(9)
    with pytest.raises(UsageError, match="begin_index 9 is past the last of 3"):
        scheduler.step(torch.zeros(1, 2), scheduler.timesteps[0], torch.zeros(1, 2))


def test_sources_that_cannot_be_read_are_refused_in_one_line() -> None:
    of = orn.schedulers.DDIM.from_config
    for config, message in (
        (diffusers.LCMScheduler().config, "belongs to a few-step model"),
        (diffusers.IPNDMScheduler().config, "IPNDMScheduler has no betas"),
        ({"_class_name": "MyScheduler"}, "unknown scheduler class 'MyScheduler'"),
        ({"_class_name": "DiffusionPipeline"}, "unknown scheduler class"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "wrong"}, "DDIMScheduler cannot be made"),
        ({"wrong": 1}, "no scheduler of diffusers has this configuration"),
        ("folder", "takes pipe.scheduler.config, got 'folder'"),
        (None, "takes pipe.scheduler.config"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            of(config)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no option 'forn': did you mean form"):
        made("AcceleratedODE", ddim(), forn="memory")
    with pytest.raises(ConfigError, match="probe"):
        made("AcceleratedODE", ddim(), form="wrong")
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        made("DDIM", ddim(), seed="a")
    with pytest.raises(AttributeError, match="no scheduler 'Picard': choose one of AcceleratedODE"):
        _ = orn.schedulers.Picard
    with pytest.raises(UsageError, match="unknown sampler 'ddimm'"):
        orn.schedulers.from_sampler("ddimm", ddim().config)
    with pytest.raises(UsageError, match="a sampler is needed"):
        orn.schedulers.from_sampler(orn.samplers.DDIM, ddim().config)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose a class"):
        orn.schedulers.SamplerScheduler.from_config(ddim().config)
