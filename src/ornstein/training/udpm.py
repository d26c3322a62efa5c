"""UDPM as a method of the trainer: one network for all levels of a pyramid, against a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from ..denoisers import Denoiser
from ..errors import CheckpointError, ConfigError
from ..models.pyramid import Below, UDPMSpec
from ..models.spec import Conditioned, ModelSpec
from ..networks import NetworkChoice, UNetConfig
from ..networks.discriminator import DiscriminatorConfig
from ..objectives import Objective
from ..objectives.pyramid import PyramidLoss
from ..options import Layout
from ..paths import PyramidPath
from ..randomness import mix
from ..storage.configs import flat, to_dict
from ..storage.weights import fill, read_tensors
from ..typed import typed
from .config import Optimizer, TrainConfig, require_fit
from .discriminator import files_of

if TYPE_CHECKING:
    from ..data.base import Source


def small() -> UNetConfig:
    """The default network, for pictures of 32 or 64 pixels on a CPU: 2.7 million parameters."""
    return UNetConfig(
        width=32,
        multipliers=(1, 2, 4),
        blocks=1,
        attention=(2,),
        head_width=32,
        patch=1,
        time_features="fourier",
        time_scale=16.0,
    )


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class UDPMConfig(TrainConfig):
    """Train a model that doubles the picture's size at every evaluation: three evaluations make a picture.

    Example: ornstein train udpm --data critters --out runs/udpm --images 1000000

    The same command continues a run that was stopped.
    """

    kind: ClassVar[str] = "udpmconfig"
    renamed: ClassVar[Mapping[str, str]] = {"origin": "init_from", "rival": "discriminator_optimizer"}

    coarser: ClassVar[bool] = False
    layout: ClassVar[Layout] = {**TrainConfig.layout, "": (*TrainConfig.layout[""], "init_from")}

    takes_latents: ClassVar[bool] = False

    init_from: str = ""
    """A run of udpm of the same model, path and network; its averaged weights and its discriminator are the first ones.
    A card has no discriminator. By default both are fresh."""
    path: PyramidPath = field(default_factory=PyramidPath)  # pyright: ignore[reportIncompatibleVariableOverride]
    """The levels."""
    predicts: Below = "level-below"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What the network's output means: the picture of the level below."""
    precondition: bool = True
    """Feed the state at unit variance and let the network predict the change of the enlarged state;
    --no-precondition does neither, as published."""
    network: NetworkChoice = field(default_factory=small)
    """The network of all levels."""
    objective: PyramidLoss = field(default_factory=PyramidLoss)  # pyright: ignore[reportIncompatibleVariableOverride]
    """The losses."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=5e-4, betas=(0.0, 0.99), clip=0.0))
    """The optimizer."""
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(dropout=0.2))
    """The discriminator."""
    discriminator_optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=5e-4, betas=(0.0, 0.99), clip=0.0))
    """The discriminator's optimizer."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        require_fit(self.network, "network", self.size)
        whole = self.path.factor(0, self.path.levels)
        if self.size % whole or (self.size // whole) % self.network.factor:
            raise ConfigError(
                f"size {self.size} shrinks by {whole} over the levels of the path, and the network needs sides that "
                f"divide by {self.network.factor} there: change size, path.factors, or the network's multipliers"
            )
        if self.discriminator.classes or self.discriminator.channels != 3:
            raise ConfigError("discriminator.channels and discriminator.classes follow from the data: leave them out")
        self.objective.weights(self.path)
        self.objective.frequencies(self.path)

    def specify(self, source: Source) -> UDPMSpec:
        """The model on this data.

        Raises `ConfigError` where the data lacks what ``condition`` asks for, and for an ``init_from`` of another
        model.
        """
        from .conditions import conditioning_of

        known = conditioning_of(self.condition, self.text, source)
        channels = 3 * max(self.path.factors) ** 2
        spec = UDPMSpec(
            shape=(3, self.size, self.size),
            path=self.path,
            sigma_data=self.sigma_data,
            precondition=self.precondition,
            network=replace(self.network, out_channels=channels, **known.options()),
            text=known.text,
            classes=known.classes,
        )
        if self.init_from:
            self._require_same(spec)
        return spec

    def _require_same(self, spec: UDPMSpec) -> None:
        """`ConfigError` naming what another model differs in."""
        from ..runs import open_own

        theirs = open_own(self.init_from).spec
        if not isinstance(theirs, UDPMSpec):
            raise ConfigError(f"--init-from {self.init_from} is no run of train udpm: give the folder of one")
        # The scale of the data is measured on the way, and is not known of the new model yet.
        ours, given = (flat(to_dict(replace(one, data_std=None))) for one in (spec, theirs))
        for key in sorted({*ours, *given}):
            if ours.get(key) != given.get(key):
                raise ConfigError(
                    f"--init-from {self.init_from} is another model, with {key} {given.get(key)} and not "
                    f"{ours.get(key)}: give the data and options that it was trained with"
                )

    def prepare(self, model: Conditioned) -> None:
        """The average weights of the run in ``init_from``, if there is one."""
        if self.init_from:
            from ..runs import open_own

            model.load_state_dict(open_own(self.init_from).model.state_dict())

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The losses with their metric and, unless it has no weight, the discriminator."""
        del averages
        network = replace(self.discriminator, classes=len(spec.labels))
        objective = self.objective.on(self.path, self.size, network, seed=mix(self.seed, "rival"), device=device)
        if self.init_from and objective.discriminator is not None:
            from ..runs import open_own

            folder = open_own(self.init_from).weights.parent
            weights = folder / f"{files_of(folder)[0]}.safetensors"
            if weights.is_file():
                try:
                    fill(objective.discriminator, read_tensors(weights), weights)
                except CheckpointError as error:
                    raise CheckpointError(
                        f"--init-from {self.init_from}: {error}: give the --discriminator options that it was "
                        "trained with"
                    ) from None
        return objective

    def discriminator_settings(self) -> Optimizer:
        """The discriminator's own."""
        return self.discriminator_optimizer
