"""What the cells of `ornstein.reproduce.slct` share: the data, its latents, and their seeds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.base import Source
from ...latents import Codec
from ...networks.unet import UNetConfig
from ...objectives.consistency import ConsistencyLoss
from ...randomness import Noise
from ...runs import open_codec
from ...storage.files import digest as digest_of
from ...training.config import Optimizer, TrainConfig
from ...training.slct import ICTConfig, RAdam, SLCTConfig
from ..arms import SAMPLE_SEED, run_options

LADDER = ("ict", "cauchy", "anchored", "paired", "adaptive", "slct")
DIFFUSION = "diffusion"
STAGE, START = 250, 10
"""Least steps of a stage of the curriculum, and the intervals of the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the arms of one comparison share, a part of each cell's settings: ``end`` intervals of the last stage."""

    codec: str
    data: str
    size: int
    width: int
    batch: int
    end: int
    samples: int
    rate: float

    @property
    def key(self) -> str:
        """A short name of these settings, for files."""
        return digest_of(json.dumps(asdict(self), sort_keys=True))[:8]


def clean(world: World, out: Path, count: int) -> Tensor:
    """The first latents of the data as training sees them, (count, c, h, w): normalised draws from the posteriors."""
    from ...latents.dataset import moments_of
    from ...training.latents import encoded

    config = configuration(world, LADDER[0], out, 0, world.batch)
    codec, source = encoded(config, data_of(world.data, world.size), torch.device("cpu"))
    assert codec is not None
    rows = range(min(count, len(source)))
    stack = torch.stack([source[i].image for i in rows])
    moments = moments_of(stack, codec.channels)
    assert moments is not None
    return moments.draw(Noise.of(SAMPLE_SEED, rows).normal("latent", moments.mean.shape[1:]))


@lru_cache(maxsize=4)
def opened(codec: str) -> Codec:
    """A codec by name or folder."""
    return open_codec(codec)


@lru_cache(maxsize=8)
def data_of(name: str, size: int, limit: int | None = None) -> Source:
    """The pictures of a world, opened once."""
    from ...data import open_source

    return open_source(name, size=size, limit=limit)


def finest(steps: int) -> int:
    """Intervals of the last stage: they double while each stage keeps `STAGE` steps, up to the paper's 640.

    >>> [finest(steps) for steps in (50, 600, 1000, 330_000)]
    [20, 20, 80, 640]
    """
    return START * 2 ** (min(max(steps // STAGE, 2), 7) - 1)


def objective(arm: str, end: int) -> ConsistencyLoss:
    """The losses of a rung: each changes one thing of the one before, and the last changes the network instead."""
    # iCT's squared norm as a mean, as in the published code: its scale is then that of the other rungs.
    loss = replace(ICTConfig(out="unused").objective, reduce="mean", end=end)
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"distance": "cauchy"},
        {"diffusion": 5.0},
        {"coupling": "assignment"},
        {"scale": "adaptive"},
        {},
    )
    for change in changes[: LADDER.index(arm) + 1]:
        loss = replace(loss, **change)
    return loss


def network(world: World, arm: str) -> UNetConfig:
    """The same U-Net for all; the norms of the last rung have no gain, and a bias of each pixel as published."""
    plain = UNetConfig(width=world.width, multipliers=(1, 2), blocks=1, attention=(1,), head_width=world.width, patch=1)
    if arm != "slct":
        return plain
    return replace(plain, norm="nonscaling", norm_size=world.size // opened(world.codec).factor)


def configuration(world: World, arm: str, out: Path, seed: int, images: int) -> TrainConfig:
    """The training of one arm."""
    shared = run_options(
        data=world.data, out=out, size=world.size, images=images, batch=world.batch, seed=seed, logs=8
    ) | {"codec": world.codec, "path": "ve", "predicts": "edm", "network": network(world, arm)}
    if arm == DIFFUSION:
        return TrainConfig(**shared, optimizer=Optimizer(lr=1e-3, warmup=min(4096, images // 4)))
    return SLCTConfig(**shared, objective=objective(arm, world.end), optimizer=RAdam(lr=world.rate))
