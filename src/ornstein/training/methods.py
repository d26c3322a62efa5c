"""Registry of training methods: name → configuration class.

A method is a subclass of `TrainConfig` with its options, and whichever of five hooks differ:

* ``specify(source)``: the `ModelSpec` of its model on this data (and ``prepare(model)`` for first weights that are not
  random, such as those of another run);
* ``select(source, device)``: the examples that are trained on, and what is measured on those that are held out;
* ``make_objective(spec, device, averages)``: the `Objective`, which may have a network of its own
  (`ornstein.objectives.AdversarialObjective`) with the optimizer ``discriminator_settings()``;
* ``averages()``: further averages of the weights;
* ``monitor()``: what looks at every step for signs of a divergence.

Everything else – data, steps, averages, checkpoints, resuming, the log, the run's folder – is the same for all. A new
method is a module with a configuration, a kind of model in `ornstein.models`, and a line in `METHODS`. Modules are
imported when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..storage.configs import from_dict, kind_of

if TYPE_CHECKING:
    from .config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Where a method's configuration is, its ``kind`` in files, and what the method does, in half a line."""

    what: str
    module: str
    config: str
    kind: str

    @property
    def configuration(self) -> type[TrainConfig]:
        """Its subclass of `TrainConfig`."""
        return getattr(importlib.import_module(self.module, __package__), self.config)


METHODS: Mapping[str, Method] = {
    "ddpm": Method(
        what="a denoising diffusion model on any path, with any parameterization",
        module=".config",
        config="TrainConfig",
        kind="trainconfig",
    ),
    "autoencoder": Method(
        what="a small autoencoder, in whose latents the others can be trained",
        module=".autoencoder",
        config="AutoencoderConfig",
        kind="autoencoderconfig",
    ),
    "rarity-classifier": Method(
        what="a classifier of the rarity of noisy images, for minority guidance",
        module=".rarity",
        config="RarityConfig",
        kind="rarityconfig",
    ),
    "cas-dm": Method(
        what="a denoiser and a refiner of its images that a perceptual metric trains",
        module=".cas_dm",
        config="CascadeConfig",
        kind="cascadeconfig",
    ),
    "slct": Method(
        what="a consistency model from scratch: pictures in one or two evaluations",
        module=".slct",
        config="SLCTConfig",
        kind="slctconfig",
    ),
    "ict": Method(
        what="the same by improved consistency training",
        module=".slct",
        config="ICTConfig",
        kind="ictconfig",
    ),
    "cm": Method(
        what="the same by the first recipe for consistency models",
        module=".slct",
        config="CMConfig",
        kind="cmconfig",
    ),
    "ect": Method(
        what="a diffusion model tuned into a consistency model",
        module=".slct",
        config="ECTConfig",
        kind="ectconfig",
    ),
    "udpm": Method(
        what="a network that doubles the picture's size at every evaluation, with an adversarial loss",
        module=".udpm",
        config="UDPMConfig",
        kind="udpmconfig",
    ),
}


def config_class(kind: object) -> type[TrainConfig]:
    """The configuration of this ``kind`` in a file; that of ddpm for a kind that is none, which it will refuse."""
    return next((m for m in METHODS.values() if m.kind == kind), METHODS["ddpm"]).configuration


def read_config(data: object, own: type[TrainConfig] | None = None) -> TrainConfig:
    """The configuration, of any method, that `ornstein.training.to_dict` wrote; `ConfigError` for anything else.

    A class ``own`` that is no method of the library is read too.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and kind == "cascadeconfig" and data.get("clip") == 0.0:
        data = {**data, "clip": None}  # how an unbounded cascade was written once
    return from_dict(own if own is not None and kind == kind_of(own) else config_class(kind), data)


def method_of(config: TrainConfig | Mapping[str, Any]) -> str:
    """The name on the command line of the method of a configuration, or of what a file holds of one."""
    kind = config.get("kind") if isinstance(config, Mapping) else kind_of(type(config))
    for name, method in METHODS.items():
        if method.kind == kind:
            return name
    raise ConfigError(f"no training method has a configuration of kind {kind!r}")
