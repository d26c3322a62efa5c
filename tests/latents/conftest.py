"""Tiny autoencoders and runs on their latents."""

from dataclasses import replace
from pathlib import Path

import pytest

from ornstein.networks import UNetConfig
from ornstein.networks.autoencoder import KLConfig
from ornstein.objectives.reconstruction import ReconstructionLoss
from ornstein.training import Every, Optimizer, TrainConfig, train
from ornstein.training.autoencoder import AutoencoderConfig

BATCH = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Latents are cached in the test's own folder; drawings are drawn again, which is quick at this size."""
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))


def autoencoder_config(out: Path, **changes) -> AutoencoderConfig:
    base = AutoencoderConfig(
        data="critters:16",
        out=str(out),
        size=16,
        images=12 * BATCH,
        batch=BATCH,
        network=KLConfig(width=8, multipliers=(1, 2), patch=2),
        objective=ReconstructionLoss(metric="none", adversarial=0.5, adversarial_from=4 * BATCH),
        discriminator_width=8,
        optimizer=Optimizer(lr=3e-3, warmup=0),
        every=Every(log=4 * BATCH, checkpoint=4 * BATCH, seconds=0, samples=0),
        tensorboard=False,
        workers=0,
    )
    return replace(base, **changes)


def latent_config(out: Path, codec: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        data="critters:16",
        out=str(out),
        codec=str(codec),
        size=16,
        images=6 * BATCH,
        batch=BATCH,
        network=UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8, patch=1),
        optimizer=Optimizer(lr=3e-3, warmup=0),
        every=Every(log=3 * BATCH, checkpoint=3 * BATCH, seconds=0, samples=0),
        tensorboard=False,
        workers=0,
    )
    return replace(base, **changes)


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory) -> Path:
    """A finished run of twelve steps, a critic in the last eight."""
    out = tmp_path_factory.mktemp("autoencoder") / "run"
    train(autoencoder_config(out), quiet=True)
    return out
