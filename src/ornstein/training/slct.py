"""Consistency models as methods of the trainer: sLCT, and iCT, CM and ECT as presets of the same objective."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch

from .. import grids
from ..denoisers import Denoiser
from ..errors import ConfigError
from ..models.consistency import ConsistencySpec
from ..models.spec import Conditioned, DenoiserSpec, ModelSpec, PathName, Prediction
from ..networks import NetworkChoice, UNetConfig
from ..objectives import ConsistencyLoss, ConsistencyTraining, Objective
from ..objectives.curricula import target_decay
from ..options import Layout
from ..paths.base import AffinePath
from ..typed import typed
from . import ema
from .conditions import require_known
from .config import Averaging, Optimizer, Precision, TrainConfig, shape_of
from .divergence import DivergenceConfig, DivergenceMonitor

if TYPE_CHECKING:
    from ..data.base import Source
    from ..runs import TrainedModel


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class RAdam(Optimizer):
    """RAdam (Liu et al. 2020), which needs no warm-up; or AdamW."""

    kind: ClassVar[str] = "radam"

    rule: Literal["radam", "adamw"] = "radam"
    """radam, with coupled decay of the weights, or adamw, with decoupled decay."""
    lr: float = 1e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two running moments of the gradient."""
    weight_decay: float = 1e-4
    """Decay of matrices and kernels; gains and biases are never decayed."""
    warmup: int | None = 0
    """Images over which the learning rate grows from 0."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 never clips."""

    def make(self, groups: list[dict[str, object]], device: torch.device) -> torch.optim.Optimizer:
        """The optimizer of these groups of weights."""
        if self.rule == "adamw":
            return Optimizer.make(self, groups, device)
        return torch.optim.RAdam(groups, lr=self.lr, betas=self.betas, eps=self.eps, foreach=True)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Averages(Averaging):
    """The average of the weights that samples are drawn from, and others beside it."""

    kind: ClassVar[str] = "averages"

    also: tuple[float, ...] = ()
    """Further averages to keep, of the name ema-NUMBER: below 0.28 the width of a power function, above 0.5 the decay
    of an exponential average, such as 0.9999."""

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        for value in self.also:
            ema.decay(value)


def _small() -> UNetConfig:
    return replace(UNetConfig.small(), norm="nonscaling")


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class SLCTConfig(TrainConfig):
    """Train a consistency model from scratch: pictures in one or two evaluations (sLCT).

    Example: ornstein train slct --data critters --size 32 --out runs/slct --images 4000000 --optimizer.lr 3e-4

    The objective's every part can be changed for another one. --init-from RUN begins with a trained model's
    weights; its path, predicts, network and condition are then used. The same command continues a run that was stopped.
    """

    kind: ClassVar[str] = "slctconfig"
    renamed: ClassVar[Mapping[str, str]] = {"origin": "init_from"}

    coarser: ClassVar[bool] = False  # the published batches
    layout: ClassVar[Layout] = {**TrainConfig.layout, "": (*TrainConfig.layout[""], "init_from")}

    batch: int = 128
    """Images a step, over all processes."""
    path: PathName = "ve"
    """The forward law; on all of them levels are counted in σ/α."""
    predicts: Prediction = "edm"
    """What the network's output means: edm is the boundary form of consistency models, others are anchored to it."""
    init_from: str = ""
    """A run, checkpoint, card or shipped model whose averaged weights are the first ones; by default fresh ones."""
    sigma_min: float = 0.002
    """The noise level at which the model returns its input."""
    sigma_max: float = 80.0
    """The noisiest level, where sampling begins."""
    curriculum: int = 0
    """Images over which the curriculum runs; 0 takes --images. It stays what it was when a run is made longer."""
    network: NetworkChoice = field(default_factory=_small)
    """The network, by default with non-scaling norms."""
    objective: ConsistencyLoss = field(default_factory=ConsistencyLoss)
    """The losses."""
    optimizer: RAdam = field(default_factory=RAdam)
    """The optimizer."""
    ema: Averages = field(default_factory=Averages)
    """The averages of the weights."""
    precision: Precision = "no"
    """Mixed precision of the network, no or bf16; the loss is always in float32."""
    watch: DivergenceConfig = field(default_factory=DivergenceConfig)
    """What the training is watched for."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.precision == "fp16":
            raise ConfigError("precision fp16 cannot hold the weights of this loss, which reach 2e5: use bf16 or no")
        if not 0.0 <= self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"need 0 ≤ sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if self.sigma_min == 0.0 and self.objective.spacing == "grid":
            raise ConfigError("sigma_min 0 has no place on a grid: use 0.002, or --objective.spacing ratio")
        if self.curriculum < 0:
            raise ConfigError(f"curriculum must not be negative, got {self.curriculum}")
        if self.curriculum == 0:  # written down, so that a longer training does not go back to coarser stages
            object.__setattr__(self, "curriculum", self.images)

    def with_budget(self, images: int) -> Self:
        """The curriculum follows where it ran over the whole budget."""
        return replace(self, images=images, curriculum=images if self.curriculum == self.images else self.curriculum)

    @property
    def steps(self) -> int:
        """Steps of the curriculum."""
        return max(self.curriculum // self.batch, 1)

    def specify(self, source: Source) -> ConsistencySpec:
        """The model on this data, or that of ``init_from``.

        σ_min is no lower than the path goes, or was trained in ``init_from``.

        Raises `ConfigError` for an ``init_from`` of another image size or other labels, of pictures where these are
        latents or the other way round, or one that is no single denoiser on a path with α and σ.
        """
        alone = self._begun_from(source) if self.init_from else self.plain(source)
        known = {f.name: getattr(alone, f.name) for f in dataclasses.fields(alone)}
        if isinstance(alone, ConsistencySpec):
            return alone
        low = self.sigma_min
        if low > 0.0 and (self.init_from or self.path != "ve"):  # a fresh VE path is made to end there
            path = alone.denoiser(torch.nn.Identity()).path
            low = max(low, grids.affine(path).sigma_bar(path.t_min))
        time_input = "path" if self.init_from else "log"
        return ConsistencySpec(**known, sigma_min=low, sigma_max=self.sigma_max, time_input=time_input)

    def _begun_from(self, source: Source) -> DenoiserSpec:
        from ..runs import open_own

        run = open_own(self.init_from)
        spec = run.spec
        affine = isinstance(run.denoiser.path, AffinePath)
        if not isinstance(spec, DenoiserSpec) or type(spec) not in {DenoiserSpec, ConsistencySpec} or not affine:
            raise ConfigError(
                f"--init-from {self.init_from} is not a single denoiser on a path with α and σ: give a run of "
                "train ddpm"
            )
        self._require_shape(run, shape_of(source))
        require_known(spec, source, f"--init-from {self.init_from}")
        return spec

    def _require_shape(self, run: TrainedModel, shape: tuple[int, int, int]) -> None:
        """`ConfigError` for data of another shape than the samples of ``init_from``, and for latents of another
        codec."""
        from ..latents import KLCodec
        from .latents import first_codec

        if (run.codec is None) != (not self.codec):
            hint = "leave --codec out" if run.codec is None else "give the --codec that it was trained with"
            raise ConfigError(
                f"--init-from {self.init_from} makes {'pictures' if run.codec is None else 'latents'}: {hint}"
            )
        if run.spec.shape[0] != shape[0]:
            raise ConfigError(
                f"--init-from {self.init_from} makes samples of {run.spec.shape[0]} channels, and the data have "
                f"{shape[0]}: "
                "give the --codec that it was trained with"
            )
        if run.spec.shape != shape:
            side = run.picture[-1]
            raise ConfigError(f"--init-from {self.init_from} makes images of {side} pixels: give --size {side}")
        if isinstance(run.codec, KLCodec) and run.codec.weights != getattr(first_codec(self), "weights", ""):
            raise ConfigError(
                f"--init-from {self.init_from} makes latents of another autoencoder than --codec {self.codec}: "
                "give the --codec that it was trained with"
            )
        theirs = run.details["train"].get("latents", {}) if self.codec else {}
        for name in ("statistics", "std"):
            ours = getattr(self.latents, name)
            if theirs.get(name, ours) != ours:
                raise ConfigError(
                    f"--init-from {self.init_from} makes latents with --latents.{name} {theirs[name]}, and here "
                    f"it is {ours}: "
                    f"give --latents.{name} {theirs[name]}"
                )

    def prepare(self, model: Conditioned) -> None:
        """The average weights of the run in ``init_from``, if there is one."""
        if self.init_from:
            from ..runs import open_own

            model.load_state_dict(open_own(self.init_from).model.state_dict())

    def make_objective(self, spec: ModelSpec, device: torch.device, averages: Mapping[str, Denoiser]) -> Objective:
        """The losses with their curriculum; their target is the average of that name, in training mode as the network
        itself.
        """
        del spec, device
        teacher = averages.get("target")
        if teacher is not None and isinstance(teacher.net, torch.nn.Module):
            teacher.net.train()
        return ConsistencyTraining(
            loss=self.objective,
            steps=self.steps,
            of=self.images / self.batch,
            sigma_max=self.sigma_max,
            teacher=teacher,
        )

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Those of ``ema.also``, and the target's, where it is an average."""
        loss, steps = self.objective, self.steps
        named: dict[str, Callable[[int], float]] = {f"ema-{value}": ema.decay(value) for value in self.ema.also}
        if loss.target > 0.0:
            named["target"] = lambda step: target_decay(loss.target, loss.intervals(step - 1, steps), loss.start)
        return named

    def monitor(self) -> DivergenceMonitor:
        """Watches every step."""
        return DivergenceMonitor(watch=self.watch)


def _ict() -> ConsistencyLoss:
    return ConsistencyLoss(
        distance="pseudo-huber", reduce="sum", scale="constant", coupling="none", diffusion=0.0, end=1280
    )


def _cm() -> ConsistencyLoss:
    return ConsistencyLoss(
        distance="l2",
        scale="constant",
        weight="none",
        coupling="none",
        diffusion=0.0,
        curriculum="root",
        start=2,
        end=150,
        times="uniform",
        target=0.9,
    )


def _ect() -> ConsistencyLoss:
    return ConsistencyLoss(
        distance="pseudo-huber",
        reduce="sum",
        scale="constant",
        base=1e-6,
        spacing="ratio",
        start=2,
        end=256,
        coupling="none",
        diffusion=0.0,
    )


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ICTConfig(SLCTConfig):
    """Train a consistency model by improved consistency training (iCT): the objective of slct with other defaults.

    Example: ornstein train ict --data critters --size 32 --out runs/ict --images 4000000
    """

    kind: ClassVar[str] = "ictconfig"

    network: NetworkChoice = field(default_factory=UNetConfig.small)
    """The network."""
    objective: ConsistencyLoss = field(default_factory=_ict)
    """The losses."""


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class CMConfig(ICTConfig):
    """Train a consistency model by the first recipe (CM): squared distance, uniform levels, an averaged target.

    Example: ornstein train cm --data critters --size 32 --out runs/cm --images 4000000
    """

    kind: ClassVar[str] = "cmconfig"

    objective: ConsistencyLoss = field(default_factory=_cm)
    """The losses."""


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ECTConfig(ICTConfig):
    """Tune a diffusion model into a consistency model (ECT): levels in a ratio that closes, from --init-from RUN.

    Example: ornstein train ect --init-from runs/diffusion --data critters --size 32 --out runs/ect --images 500000
    """

    kind: ClassVar[str] = "ectconfig"

    sigma_min: float = 0.0
    """The noise level at which the model returns its input."""
    objective: ConsistencyLoss = field(default_factory=_ect)
    """The losses."""
