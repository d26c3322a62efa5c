"""A pipeline of pixels as a part of a trained run: enough of its configuration to build and evaluate its network
again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..denoisers import Denoiser
from ..errors import CheckpointError, ConfigError
from ..storage.reading import parse_json
from .diffusers import DiffusersModel, from_pipeline
from .loading import diffusers_library, silenced
from .networks import Adapted, has_learned_variance
from .schedulers import SchedulerSpec, from_scheduler_config

_NETWORK = "UNet2DModel"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFront:
    """A diffusers UNet2DModel and its scheduler without weights; both as JSON, with the scheduler's class."""

    kind: ClassVar[str] = "pipelinefront"

    network: str
    scheduler: str

    @classmethod
    def of(cls, piped: DiffusersModel, where: str) -> PipelineFront:
        """The front of a loaded pipeline; `ConfigError` for one that takes a condition or works on latents."""
        net: Any = piped.pipe.unet if hasattr(piped.pipe, "unet") else None
        if piped.codec is not None or piped.condition != "none" or type(net).__name__ != _NETWORK:
            raise ConfigError(
                f"--front {where} is a {type(piped.pipe).__name__} whose condition is {piped.condition}: give a "
                "pipeline of pixels without conditions, such as DDPMPipeline or DDIMPipeline"
            )
        return cls(network=_written(net), scheduler=_written(piped.pipe.scheduler))

    def build(self) -> nn.Module:
        """The network with weights that are still to be filled in."""
        config = _read(self.network)
        with torch.random.fork_rng(devices=[]), silenced():
            net = diffusers_library().UNet2DModel.from_config(config)
        return Adapted(net.eval(), "pixels", False)

    def spec(self) -> SchedulerSpec:
        """Path and meaning of its output."""
        config = _read(self.scheduler)
        kind = getattr(diffusers_library(), str(config.get("_class_name")), None)
        if kind is None:
            raise CheckpointError(
                f"diffusers has no scheduler {config.get('_class_name')!r}: install the version that had"
            )
        with silenced():
            return from_scheduler_config(kind.from_config(config))

    def denoiser(self, net: Any, shape: tuple[int, ...]) -> Denoiser:
        """``net`` on the pipeline's path."""
        spec = self.spec()
        return Denoiser(
            net,
            spec.path,
            spec.predicts,
            shape=shape,
            timestep_of=spec.timestep_of,
            learned_variance=has_learned_variance(_read(self.network)),
            grid=spec.grid,
        )


def open_front(where: str | Path) -> tuple[PipelineFront, DiffusersModel]:
    """The front of a folder, and the pipeline with its weights."""
    piped = from_pipeline(where)
    return PipelineFront.of(piped, str(where)), piped


def _written(part: Any) -> str:
    """A diffusers configuration as JSON, keys in order; private entries are left out, but for the class."""
    config = {key: value for key, value in dict(part.config).items() if not key.startswith("_")}
    return json.dumps({"_class_name": type(part).__name__, **config}, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ConfigError(f"a configuration of diffusers holds a {type(value).__name__}, which cannot be written")


def _read(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointError("the description of a diffusers part in config.json cannot be read: restore it")
    return found
