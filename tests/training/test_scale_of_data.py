"""Training measures the scale of its data, stores it with the model, and the sampler "auto" uses it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_source
from ornstein.networks import DiTConfig
from ornstein.runs import export, open_run
from ornstein.samplers import auto
from ornstein.sampling import resolve
from ornstein.training import Every, Optimizer, TrainConfig, train
from ornstein.training.scale import data_std

SIDE, COUNT = 8, 40


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, float]:
    """A folder of pictures, a fixed pattern and a little noise; and the scale of its pixels in [−1, 1]."""
    draw = np.random.default_rng(0)
    pattern = draw.uniform(60.0, 190.0, (SIDE, SIDE, 3))
    pixels = np.clip(pattern + draw.normal(0.0, 12.0, (COUNT, SIDE, SIDE, 3)), 0, 255).round().astype(np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i:03}.png")
    return folder, math.sqrt((pixels / 127.5).var(axis=0, ddof=1).mean())


def configuration(data: Path, out: Path, images: int) -> TrainConfig:
    return TrainConfig(
        data=str(data), out=str(out), size=SIDE, images=images, batch=8, tensorboard=False, workers=0,
        network=DiTConfig(width=32, depth=1, head_width=16), optimizer=Optimizer(lr=1e-3, warmup=0),
        every=Every(log=8, checkpoint=8, seconds=0, samples=0),
    )  # fmt: skip


def test_the_scale_is_that_of_the_pixels_around_their_mean(pictures: tuple[Path, float]) -> None:
    folder, scale = pictures
    assert data_std(open_source(str(folder), size=SIDE)) == pytest.approx(scale, rel=1e-3)


def test_a_set_of_one_picture_has_none(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "one" / "a.png")
    assert data_std(open_source(str(tmp_path / "one"), size=SIDE)) is None


def test_a_run_keeps_it_and_auto_uses_it(pictures: tuple[Path, float], tmp_path: Path) -> None:
    folder, scale = pictures
    out = tmp_path / "run"
    train(configuration(folder, out, 8), quiet=True)
    export(open_run(out), tmp_path / "exported")
    for place in (out, tmp_path / "exported"):
        model = open_run(place).denoiser
        assert model.info.data_std == pytest.approx(scale, rel=1e-3)
        plan = resolve(model, "auto", None, 9, None, None)
        rule, grid = auto(model.path, 9, 3 * SIDE * SIDE, model.info.data_std)
        assert (plan.sampler, plan.times) == (rule, grid(model.path))


def test_a_run_of_before_goes_on_with_the_scale_that_it_had(pictures: tuple[Path, float], tmp_path: Path) -> None:
    """Older files do not name it, and nobody knows that of their models."""
    out = tmp_path / "run"
    train(configuration(pictures[0], out, 8), quiet=True)
    file = out / "config.json"
    document = json.loads(file.read_text())
    del document["model"]["data_std"]
    file.write_text(json.dumps(document))
    train(configuration(pictures[0], out, 16), quiet=True)
    assert open_run(out).denoiser.data_std is None


def test_latents_count_with_the_spread_of_their_posteriors() -> None:
    """Mean and log-variance in one example: the variance of a draw is the sum of both."""
    draw = torch.Generator().manual_seed(0)
    means = 0.4 * torch.randn(200, 4, 2, 2, generator=draw)

    class Latents:
        name, size, classes, shape = "latents", 16, (), (4, 2, 2)

        def __len__(self) -> int:
            return len(means)

        def __getitem__(self, index: int) -> object:
            spread = torch.full((4, 2, 2), math.log(0.09))
            return type("Example", (), {"image": torch.cat([means[index], spread])})()

    found = data_std(Latents())  # type: ignore[arg-type]
    assert found == pytest.approx(math.sqrt(float(means.double().var(0).mean()) + 0.09), rel=1e-3)
