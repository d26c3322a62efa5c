from pathlib import Path

import pytest
import torch

from ornstein.networks import UNetConfig
from ornstein.runs import export, open_own
from ornstein.training import TrainConfig, train
from ornstein.training.config import Every


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny network on 16 × 16 critters, labelled: a second of training."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    network = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), patch=2)
    train(
        TrainConfig(
            data="critters:64",
            out=str(out),
            size=16,
            images=64,
            batch=16,
            condition="label",
            network=network,
            every=Every(log=32, samples=0),
            tensorboard=False,
        ),
        quiet=True,
    )
    return out


@pytest.fixture(scope="session")
def bold_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a model with large random weights, whose pictures depend visibly on label, number and step."""
    run = open_own(tiny_run)
    draw = torch.Generator().manual_seed(1)
    for weight in run.model.parameters():
        weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    return export(run, tmp_path_factory.mktemp("runs") / "bold", half=False)


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 × 8 critters by their captions."""
    out = tmp_path_factory.mktemp("runs") / "text"
    network = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(0,), patch=2, head_width=8)
    train(
        TrainConfig(
            data="critters:16",
            out=str(out),
            size=8,
            images=16,
            batch=16,
            condition="text",
            network=network,
            every=Every(log=16, samples=0),
            tensorboard=False,
        ),
        quiet=True,
    )
    run = open_own(out)
    draw = torch.Generator().manual_seed(2)
    for weight in run.model.parameters():
        weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    return export(run, out.with_name("bold-text"), half=False)
