"""Draws of latents have noise of their own, and the grids of samples are those of a stated grid and seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein import grids
from ornstein.data import batches, grid, open_source
from ornstein.latents.dataset import latents, moments_of
from ornstein.networks import DiTConfig
from ornstein.randomness import mix
from ornstein.runs import open_codec, open_run
from ornstein.training import Every, Optimizer, TrainConfig, train
from ornstein.training.config import LatentOptions

SEEN: list[Any] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Spied(TrainConfig):
    """Keeps what the objective is given."""

    kind: ClassVar[str] = "spied"

    def make_objective(self, spec, device, averages):
        def spy(model, batch, noise, progress):
            SEEN.append((batch.clean, noise.normal("noise", batch.clean.shape[1:]), batch.positions))
            return self.objective(model, batch, noise, progress)

        return spy


def options(out: Path, **changes) -> dict[str, Any]:
    return {
        "data": "critters:6",
        "out": str(out),
        "size": 16,
        "images": 24,
        "batch": 8,
        "seed": 5,
        "network": DiTConfig(width=16, depth=1, head_width=16, patch=4),
        "optimizer": Optimizer(lr=1e-3, warmup=0),
        "every": Every(log=8, checkpoint=10**6, seconds=0, samples=0),
        "tensorboard": False,
        "workers": 0,
    } | changes


@pytest.mark.parametrize("draw", [True, False])
def test_a_draw_of_a_latent_is_independent_of_the_diffusions_noise(draw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    SEEN.clear()
    given = LatentOptions(draw=draw, std=0.7)
    config = Spied(**options(tmp_path / "run", size=64, codec="critters-latents", latents=given))
    if not draw:  # an encoding that takes long says so
        now = itertools.count(0, 11)
        monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    train(config, quiet=True)
    assert capsys.readouterr().err == ("" if draw else "encoded 6 of 6 images\n")
    made, codec = latents(open_source("critters:6", size=64), open_codec("critters-latents"), std=0.7, draws=draw)
    assert len(SEEN) == 4
    assert SEEN.pop()[2] == SEEN[-1][2], "a run ends with the loss of its last weights on the batch before"
    draws, noises = [], []
    for (clean, noise, positions), batch in zip(SEEN, batches(made, batch=8, seed=5), strict=False):
        assert positions == batch.positions
        moments = moments_of(batch.images, codec.channels)
        if not draw:
            assert moments is None
            assert torch.equal(clean, batch.images)
            continue
        draws.append((clean - moments.mean) / (0.5 * moments.logvar).exp())
        noises.append(noise)
    if draw:
        one, two = torch.cat(draws).double(), torch.cat(noises).double()
        count = one.numel()
        assert one.var().item() == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
        assert abs((one * two).mean().item()) < 5 / count**0.5
        # Another visit of the same picture draws anew: the 24 draws of 6 pictures all differ.
        assert len({round(row.sum().item(), 6) for row in one}) == 24


def test_a_grid_of_samples_is_that_of_twelve_steps_of_heun(tmp_path):
    every = Every(log=8, checkpoint=10**6, seconds=0, samples=24)
    train(TrainConfig(**options(tmp_path / "run", condition="label", path="flow", every=every)), quiet=True)
    run = open_run(tmp_path / "run")
    labels = [i % len(run.classes) for i in range(16)]
    expected = orn.sample(
        run.denoiser,
        16,
        sampler="heun",
        grid=grids.default(run.denoiser.path, 12),
        seed=mix(5, "samples"),
        cond=run.cond(labels=labels),
    )
    (file,) = (tmp_path / "run" / "samples").iterdir()
    found = torch.from_numpy(np.array(Image.open(file))).movedim(2, 0)
    # 8-bit pictures, and a batch of another size may round at the last bit.
    assert (found.float() - grid(expected).float()).abs().max() <= 1


def test_captions_of_a_grid_are_those_of_the_first_examples(tmp_path):
    every = Every(log=8, checkpoint=10**6, seconds=0, samples=24)
    train(TrainConfig(**options(tmp_path / "run", condition="text", path="flow", every=every)), quiet=True)
    run = open_run(tmp_path / "run")
    data = open_source("critters:6", size=16)
    expected = orn.sample(
        run.denoiser,
        16,
        sampler="heun",
        grid=grids.default(run.denoiser.path, 12),
        seed=mix(5, "samples"),
        cond=run.cond(captions=[data[i % 6].caption for i in range(16)]),
    )
    (file,) = (tmp_path / "run" / "samples").iterdir()
    found = torch.from_numpy(np.array(Image.open(file))).movedim(2, 0)
    assert (found.float() - grid(expected).float()).abs().max() <= 1
