"""What a run carries from step to step, how it is made, saved and restored."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn

from .. import grids
from ..data import Batch
from ..data.base import Source
from ..data.loader import read_example
from ..denoisers import Denoiser
from ..errors import CheckpointError, ConfigError
from ..latents import Codec
from ..latents.dataset import moments_of
from ..models.spec import Conditioned, ModelSpec, Shows
from ..objectives import Losses, Objective, TrainBatch
from ..paths.base import AffinePath
from ..randomness import Noise, mix
from ..samplers.ancestral import Ancestral
from ..samplers.base import run, solve
from ..samplers.heun import Heun
from ..storage.weights import Tensors, fill, not_finite, read_tensors
from . import checkpoint, ema, folder, process
from .config import TrainConfig
from .discriminator import PARTS as DISCRIMINATOR_PARTS
from .discriminator import DiscriminatorTraining, files_of
from .divergence import DivergenceMonitor
from .optimizers import adam
from .statistics import LossStatistics, emptied, merged
from .validation import Validation

_SAMPLES, _SAMPLE_STEPS = 16, 12


def accelerator(config: TrainConfig) -> Accelerator:
    """Device, precision and processes; `ConfigError` for a precision that the device cannot do."""
    if config.strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    try:
        return _made(config, ddp)
    except ValueError as error:
        process.forget_accelerator()
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--precision {config.precision} does not work here ({reason}): use no or bf16") from None


def _made(config: TrainConfig, ddp: DistributedDataParallelKwargs) -> Accelerator:
    made = Accelerator(mixed_precision=config.precision, cpu=config.device == "cpu", kwargs_handlers=[ddp])
    if config.precision == "fp16" and made.scaler is None:  # the library would train in float32 without a word
        raise ValueError(f"fp16 needs an accelerator, and the device is {made.device.type}")
    return made


@dataclass(slots=True, kw_only=True)
class Session:
    """The moving parts of a run. ``images`` and ``step`` count from the very beginning, over all sittings."""

    config: TrainConfig
    spec: ModelSpec
    source: Source
    accelerator: Accelerator
    model: Conditioned
    average: Conditioned
    optimizer: torch.optim.Optimizer
    denoiser: Denoiser
    objective: Objective
    parts: list[list[nn.Parameter]]  # whose gradients are clipped apart
    stepper: Any  # the optimizer as accelerate wraps it
    statistics: LossStatistics
    others: dict[str, Conditioned]  # further averages
    guard: DivergenceMonitor | None
    discriminator: DiscriminatorTraining | None = None
    validation: Validation | None = None
    codec: Codec | None = None
    images: int = 0
    step: int = 0
    logged: int = 0
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    begun: int = 0  # images at the beginning of this sitting
    unproven: Path | None = None  # the newest checkpoint, until a loss after it was finite

    @classmethod
    def of(cls, config: TrainConfig, spec: ModelSpec, source: Source, accelerator: Accelerator) -> Session:
        """A session before its first step."""
        device = accelerator.device
        model = spec.build(mix(config.seed, "weights"))
        config.prepare(model)
        average, others = copy.deepcopy(model), {name: copy.deepcopy(model) for name in config.averages()}
        model.to(device)
        for module in (average, *others.values()):
            module.to(device).eval().requires_grad_(False)
        optimizer = adam(config.optimizer, model, device)
        wrapped, stepper = accelerator.prepare(model.train(), optimizer)
        denoiser = spec.denoiser(wrapped)
        teachers = {name: spec.denoiser(module) for name, module in others.items()}
        objective = config.make_objective(spec, device, teachers)
        parts = [[p for p in part if p.requires_grad] for part in spec.parts(model)]
        return cls(
            config=config,
            spec=spec,
            source=source,
            accelerator=accelerator,
            model=model,
            average=average,
            optimizer=optimizer,
            denoiser=denoiser,
            objective=objective,
            parts=[part for part in parts if part],
            stepper=stepper,
            statistics=LossStatistics(denoiser.path, device),
            others=others,
            guard=config.monitor(),
            discriminator=DiscriminatorTraining.of(
                objective, config.discriminator_settings(), denoiser.path, accelerator
            ),
        )

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.config.out)

    @property
    def names(self) -> Mapping[Tensor, str]:
        """The weights' names."""
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def noise(self, positions: tuple[int, ...]) -> Noise:
        """The noise of these samples: a function of the run's seed and their positions."""
        return Noise.of(mix(self.config.seed, "train"), positions)

    def clean(self, batch: Batch) -> Tensor:
        """The clean samples of a batch on the device; latents are drawn from their posteriors here."""
        images = batch.images.to(self.accelerator.device, non_blocking=True)
        moments = None if self.codec is None else moments_of(images, self.codec.channels)
        if moments is None:
            return images
        noise = self.noise(batch.positions).normal("latent", moments.mean.shape[1:])
        return moments.draw(noise.to(images, non_blocking=True))

    def cond(self, labels: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """The conditions of the network, as tensors on its device."""
        conditions = self.spec.conditions(labels, captions)
        return {key: value.to(self.accelerator.device, non_blocking=True) for key, value in conditions.items()}

    def note_skipped(self, batch: Batch) -> list[str]:
        """Remember the unreadable files of a batch; returns a line for each that is new."""
        new = {name: reason for name, reason in batch.skipped if name not in self.skipped}
        self.skipped |= new
        return [f"skipped {name}: {reason}" for name, reason in new.items()]

    @property
    def all_statistics(self) -> list[LossStatistics]:
        """The sums of the log: the model's, and the discriminator's."""
        return [self.statistics] if self.discriminator is None else [self.statistics, self.discriminator.statistics]

    def clear(self) -> None:
        """Begin the sums of the log anew."""
        for statistics in self.all_statistics:
            statistics.clear()
        if self.guard is not None:
            self.guard.clear()

    def learn(self, batch: Batch) -> None:
        """One step; nothing in here waits for the device."""
        config = self.config
        # Layers that draw for themselves (dropout) are re-seeded at every step, so that nothing need be remembered.
        torch.manual_seed(mix(config.seed, "step", self.step, self.accelerator.process_index))
        rate = config.optimizer.rate(self.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        examples, noise = self.examples(batch), self.noise(batch.positions)
        progress = min(self.images / config.images, 1.0)
        if self.discriminator is not None:
            loss_of = self.discriminator.objective.discriminator_loss
            self.discriminator.learn(loss_of(self.denoiser, examples, noise, progress), self.images)
        losses = self.objective(self.denoiser, examples, noise, progress)
        self.accelerator.backward(losses.total)
        norm = self._clip()
        admitted = self.accepts(losses, norm)
        if admitted:
            self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.step += 1
        self.images += config.batch
        self.follow()
        if admitted:
            self.statistics.add(losses, norm)

    def examples(self, batch: Batch) -> TrainBatch:
        """A batch as the objective takes it, on the device."""
        cond = self.cond(batch.labels, batch.captions)
        return TrainBatch(clean=self.clean(batch), cond=cond, positions=batch.positions)

    def _clip(self) -> Tensor | None:
        """Clip the gradients of each part by itself; the norm of them all before that."""
        bound = self.config.optimizer.clip or math.inf
        if len(self.parts) == 1:
            return self.accelerator.clip_grad_norm_(self.parts[0], bound)
        self.accelerator.unscale_gradients()
        norms = [torch.nn.utils.clip_grad_norm_(part, bound) for part in self.parts]
        return torch.linalg.vector_norm(torch.stack(norms))

    def accepts(self, losses: Losses, norm: Tensor | None) -> bool:
        """Whether the optimizer may have this batch: always, where nothing guards it."""
        return self.guard is None or norm is None or self.guard.accepts(losses, norm, self.accelerator)

    def counted(self) -> dict[str, Any]:
        """The sums of the log over all processes (all of them must ask)."""
        return merged(self._gathered(self.statistics.state()))

    def counted_discriminator(self) -> dict[str, Any]:
        """The discriminator's part of a line of the log, if there is one (all processes must call)."""
        return (
            {}
            if self.discriminator is None
            else self.discriminator.record(self._gathered(self.discriminator.statistics.state()))
        )

    def validated(self) -> dict[str, Any]:
        """Loss and accuracy of the averaged weights on held-out examples, where a line of the log is due."""
        check = self.validation
        if check is None:
            return {}
        due = self.images >= self.config.images or self.images // check.every > self.logged // check.every
        return {"validation": check(self.spec.denoiser(self.average))} if due else {}

    def all_skipped(self) -> dict[str, str]:
        """The unreadable files met by all processes (all of them must ask)."""
        out: dict[str, str] = {}
        for part in self._gathered(self.skipped):
            out |= part
        return dict(sorted(out.items()))

    def _gathered(self, value: Any) -> list[Any]:
        return gather_object([value]) if self.accelerator.num_processes > 1 else [value]

    def tensors(self) -> dict[str, Tensors]:
        """All that a checkpoint holds of weights, averages and moments, by the name of its file."""
        return {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            **{name: module.state_dict() for name, module in self.others.items()},
            "optimizer": checkpoint.optimizer_tensors(self.optimizer, self.names),
            **({} if self.discriminator is None else self.discriminator.tensors()),
        }

    def not_finite(self) -> str:
        """The name of a weight, average or moment that is not finite; empty if all are."""
        for part, named in self.tensors().items():
            for name, tensor in named.items():
                if not_finite(tensor):
                    return f"{part}/{name}"
        return ""

    def prove(self) -> None:
        """The newest checkpoint is good, for a loss after it was finite: older ones than ``config.keep`` may go."""
        if self.unproven is not None and self.accelerator.is_main_process:
            checkpoint.prune(self.out, self.config.keep)
            folder.forget_divergence(self.out, int(self.unproven.name))
        self.unproven = None

    def save(self) -> None:
        """Write a checkpoint (all processes must ask; the first one writes). It is unproven until `prove`."""
        sums, skipped = self.counted(), self.all_skipped()
        counted = None if self.discriminator is None else merged(self._gathered(self.discriminator.statistics.state()))
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "logged": self.logged,
                "seconds": self.seconds,
                "tally": sums,
                **({} if counted is None else {"discriminator": counted}),
                **({} if self.guard is None else {"guard": self.guard.state()}),
                "skipped": skipped,
                "scaler": None if scaler is None else scaler.state_dict(),
                "unmoved": self._unmoved(),
            }
            self.unproven = checkpoint.save(self.out, self.images, self.tensors(), state)
        self.accelerator.wait_for_everyone()

    def restore(self, place: Path) -> None:
        """Go on from a checkpoint, bit for bit; `CheckpointError` if it is damaged or another model's."""
        parts = (*checkpoint.PARTS, *self.others, *(files_of(place) if self.discriminator is not None else ()))
        state = checkpoint.read_state(place, parts)
        try:
            self._restore(place, state)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{place / 'state.json'} is damaged ({str(error)[:160]}): delete {place} to go on from the checkpoint "
                "before it"
            ) from None
        self.unproven, self.begun = place, self.images

    def _restore(self, place: Path, state: dict[str, Any]) -> None:
        if state["images"] != state["step"] * self.config.batch or state["logged"] > state["images"]:
            raise ValueError(f"{state['images']} images in {state['step']} steps of {self.config.batch}")
        for name, module in {"model": self.model, "ema": self.average, **self.others}.items():
            path = place / f"{name}.safetensors"
            fill(module, read_tensors(path), path, exact=True)
        path = place / "optimizer.safetensors"
        without = state["unmoved"]["optimizer"] if "unmoved" in state else None
        checkpoint.fill_optimizer(self.optimizer, read_tensors(path), self.names, path, without)
        if self.guard is not None:
            self.guard.load(state["guard"])
        if self.discriminator is not None:
            self.discriminator.restore(place, state)
        self.images, self.step, self.logged = state["images"], state["step"], state["logged"]
        self.seconds, self.skipped = state["seconds"], state["skipped"]
        # The sums of all processes were added up when they were saved: one process carries them on.
        if self.accelerator.is_main_process:
            self.statistics.load(state["tally"])
        elif state["tally"]["steps"]:
            self.statistics.load(emptied(state["tally"]))
        self._restore_scaler(state["scaler"])

    def _restore_scaler(self, state: Any) -> None:
        scaler = self.accelerator.scaler
        if (scaler is None) != (state is None):
            raise ValueError("the scaler of the gradient is missing, or there is one that this precision does not have")
        if scaler is None:
            return
        own = scaler.state_dict()
        sound = isinstance(state, dict) and state.keys() == own.keys()
        if not sound or not all(type(state[k]) is type(own[k]) and 0 <= state[k] < math.inf for k in own):
            raise ValueError("the scaler of the gradient is damaged")
        scaler.load_state_dict(state)

    def _unmoved(self) -> dict[str, list[str]]:
        found = {"optimizer": checkpoint.unmoved(self.optimizer, self.names)}
        if self.discriminator is not None:
            found[DISCRIMINATOR_PARTS[1]] = checkpoint.unmoved(self.discriminator.optimizer, self.discriminator.names)
        return found

    def follow(self) -> None:
        """Move the averages of the weights, after a step."""
        ema.update(self.average, self.model, self.step, ema.exponent(self.config.ema.sigma_rel))
        for name, keep in self.config.averages().items():
            ema.move(self.others[name], self.model, keep(self.step))

    def samples(self) -> Tensor:
        """A few samples from the averaged weights, always of the same noise and conditions."""
        denoiser = self.spec.denoiser(self.average)
        examples = [read_example(self.source, index % len(self.source))[0] for index in range(_SAMPLES)]
        if isinstance(self.spec, Shows):
            images = torch.stack([example.image for example in examples]).to(self.accelerator.device)
            return self.spec.show(self.average, images.float().div_(127.5).sub_(1.0))
        labels = torch.arange(_SAMPLES) % max(len(self.spec.labels), 1)
        denoiser = denoiser.with_condition(self.cond(labels, [example.caption for example in examples]))
        noise = Noise.of(mix(self.config.seed, "samples"), range(_SAMPLES), device=self.accelerator.device)
        grid = grids.default(denoiser.path, _SAMPLE_STEPS) if denoiser.grid is None else denoiser.grid(None)
        times = grid(denoiser.path)
        x = denoiser.path.prior(noise, self.spec.shape, times[0])
        rule = Heun() if isinstance(denoiser.path, AffinePath) else Ancestral()
        clean = run(solve(rule, denoiser.path, x, times, noise), denoiser)
        with torch.no_grad():
            return clean if self.codec is None else self.codec.decode(clean)
