"""A small KL autoencoder as a method of the trainer: its runs are codecs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import tyro
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..errors import ConfigError, UsageError
from ..networks.autoencoder import KLAutoencoder, KLConfig, PatchCritic
from ..networks.building import initialise
from ..objectives import Objective
from ..objectives.reconstruction import ReconstructionLoss
from ..parameterizations import Net, Parameterization
from ..paths import Flow
from ..randomness import mix
from .config import Condition, LatentOptions, Optimizer, Text, TrainConfig
from .spec import Conditioned, PathName, Prediction, Spec

if TYPE_CHECKING:
    from ..data.base import Source
    from ..estimates import Estimate
    from ..paths.base import Path
    from ..scalars import Time


@dataclass(frozen=True, slots=True)
class NoSamples:
    """The parameterization of an autoencoder, which makes no pictures of its own: asking for one is refused."""

    def feed(self, path: Path, x: Tensor, t: Time) -> Tensor:
        """Refused."""
        del path, x, t
        raise UsageError(
            "this run is an autoencoder, which makes no pictures of its own: train a model with --codec RUN, "
            "or measure it with ornstein eval RUN"
        )

    def read(self, path: Path, x: Tensor, t: Time, raw: Tensor) -> Estimate:
        """Refused."""
        del raw
        raise AssertionError(self.feed(path, x, t))

    def target(self, path: Path, clean: Tensor, white: Tensor, x: Tensor, t: Time) -> Tensor:
        """Refused."""
        del clean, white
        return self.feed(path, x, t)


class Autoencoding(nn.Module):
    """``net(image, time, noise=…)`` → (reconstruction, mean, logvar); the time is not looked at."""

    def __init__(self, auto: KLAutoencoder) -> None:
        super().__init__()
        self.auto = auto

    def latent_shape(self, shape: Any) -> tuple[int, int, int]:
        """Of pictures (3, H, W)."""
        factor = self.auto.config.factor
        return self.auto.config.latent, shape[-2] // factor, shape[-1] // factor

    def forward(self, image: Tensor, time: Tensor, *, noise: Tensor | None = None) -> Any:
        """See `KLAutoencoder.forward`."""
        del time
        return self.auto(image, noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderSpec(Spec):
    """An autoencoder without its weights; ``path`` and ``predicts`` mean nothing here."""

    network: KLConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def reading(self) -> Parameterization:
        """It answers no noisy images."""
        return NoSamples()

    def build(self, seed: int = 0) -> Conditioned:
        """The network with fresh weights, a pure function of the seed."""
        with torch.random.fork_rng(devices=[]):
            auto = KLAutoencoder(self.network)
        return Conditioned(initialise(Autoencoding(auto), seed), None)

    def denoiser(self, net: Net) -> Denoiser:
        """The network, on a path that is never walked."""
        return Denoiser(net, Flow(), self.reading, shape=self.shape)

    def show(self, model: Conditioned, images: Tensor) -> Tensor:
        """Pictures and, each below its own, their reconstructions: (2·N, 3, H, W), in rows of N."""
        auto: Any = model.net
        with torch.no_grad():
            again = auto(images, images.new_zeros(len(images)))[0]
        parts = [torch.cat((a, b)) for a, b in zip(images.split(4), again.clamp(-1, 1).split(4), strict=True)]
        return torch.cat(parts)


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs)
@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig(TrainConfig):
    """Train a small autoencoder whose latents a model can then be trained on, with --codec.

    Example: ornstein train autoencoder --data critters --out runs/autoencoder --images 200000

    The same command continues a run that was stopped, exactly where it was.
    """

    takes_latents: ClassVar[bool] = False

    path: tyro.conf.Suppress[PathName] = "flow"
    predicts: tyro.conf.Suppress[Prediction] = "clean"
    sigma_data: tyro.conf.Suppress[float] = 0.5
    condition: tyro.conf.Suppress[Condition] = "none"
    text: tyro.conf.Suppress[Text] = field(default_factory=Text)
    codec: tyro.conf.Suppress[str] = ""
    latents: tyro.conf.Suppress[LatentOptions] = field(default_factory=LatentOptions)
    batch: int = 16
    """Images a step, over all processes."""
    network: KLConfig = field(default_factory=KLConfig)  # pyright: ignore[reportIncompatibleVariableOverride]
    """The network."""
    objective: ReconstructionLoss = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=ReconstructionLoss
    )
    """The losses."""
    critic_width: int = 32
    """Channels of the critic's first layer, where there is a critic."""
    critic_lr: float = 2e-4
    """The critic's learning rate."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.critic_width < 8 or self.critic_width % 8:
            raise ConfigError(f"critic_width must be a multiple of 8, got {self.critic_width}")
        if not 0.0 < self.critic_lr < float("inf"):
            raise ConfigError(f"critic_lr must be positive, got {self.critic_lr}")

    def specify(self, source: Source) -> AutoencoderSpec:
        """The network on this data."""
        del source
        return AutoencoderSpec(
            shape=(3, self.size, self.size), path=self.path, predicts=self.predicts, network=self.network
        )

    def loss(self, device: torch.device) -> Objective:
        """The losses with their metric and critic."""
        critic = None
        if self.objective.adversarial > 0.0:
            with torch.random.fork_rng(devices=[]):
                critic = PatchCritic(width=self.critic_width)
            critic = initialise(critic, mix(self.seed, "critic")).to(device)
        return self.objective.with_parts(device, critic)

    def rivalry(self) -> Optimizer:
        """The critic's optimizer."""
        return Optimizer(lr=self.critic_lr, betas=(0.5, 0.9), warmup=0)
