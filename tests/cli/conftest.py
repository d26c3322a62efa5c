from pathlib import Path

import pytest

from ornstein.networks import UNetConfig
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
