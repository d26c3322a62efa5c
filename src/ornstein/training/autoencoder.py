"""A small KL autoencoder as a method of the trainer: its runs are codecs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from ..denoisers import Denoiser
from ..errors import ConfigError
from ..models.autoencoder import AutoencoderSpec
from ..models.spec import ModelSpec, PathName, Prediction
from ..networks.autoencoder import KLConfig, PatchDiscriminator
from ..networks.building import initialise
from ..objectives import Objective
from ..objectives.reconstruction import ReconstructionLoss
from ..options import Absent
from ..randomness import mix
from ..typed import typed
from .conditions import Text
from .config import Condition, LatentOptions, Optimizer, TrainConfig

if TYPE_CHECKING:
    from ..data.base import Source


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig(TrainConfig):
    """Train a small autoencoder whose latents a model can then be trained on, with --codec.

    Example: ornstein train autoencoder --data critters --out runs/autoencoder --images 200000

    The same command continues a run that was stopped, exactly where it was.
    """

    kind: ClassVar[str] = "autoencoderconfig"
    renamed: ClassVar[Mapping[str, str]] = {"critic_width": "discriminator_width", "critic_lr": "discriminator_lr"}

    coarser: ClassVar[bool] = False

    takes_latents: ClassVar[bool] = False

    path: Absent[PathName] = "flow"
    predicts: Absent[Prediction] = "clean"
    sigma_data: Absent[float] = 0.5
    condition: Absent[Condition] = "none"
    text: Absent[Text] = field(default_factory=Text)
    codec: Absent[str] = ""
    latents: Absent[LatentOptions] = field(default_factory=LatentOptions)
    batch: int = 16
    """Images a step, over all processes."""
    network: KLConfig = field(default_factory=partial(KLConfig, smooth=16))  # pyright: ignore[reportIncompatibleVariableOverride]
    """The network."""
    objective: ReconstructionLoss = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=partial(ReconstructionLoss, gradients=1.0)
    )
    """The losses."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer, where there is a discriminator."""
    discriminator_lr: float = 2e-4
    """The discriminator's learning rate."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.discriminator_width < 8 or self.discriminator_width % 8:
            raise ConfigError(f"discriminator_width must be a multiple of 8, got {self.discriminator_width}")
        if not 0.0 < self.discriminator_lr < float("inf"):
            raise ConfigError(f"discriminator_lr must be positive, got {self.discriminator_lr}")

    def natural_condition(self, source: Source) -> Condition:
        """None."""
        del source
        return "none"

    def specify(self, source: Source) -> AutoencoderSpec:
        """The network on this data."""
        del source
        return AutoencoderSpec(shape=(3, self.size, self.size), network=self.network)

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The losses with their metric and discriminator."""
        del spec, averages
        discriminator = None
        if self.objective.adversarial > 0.0:
            with torch.random.fork_rng(devices=[]):
                discriminator = PatchDiscriminator(width=self.discriminator_width)
            discriminator = initialise(discriminator, mix(self.seed, "critic")).to(device)
        return self.objective.with_parts(device, discriminator)

    def discriminator_settings(self) -> Optimizer:
        """The discriminator's optimizer."""
        return Optimizer(lr=self.discriminator_lr, betas=(0.5, 0.9), warmup=0)
