"""A second network that learns against the model, with an optimizer of its own: the discriminator of an objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..objectives import AdversarialObjective, Losses, Objective
from ..paths.base import Path as Forward
from ..storage.weights import Tensors, fill, read_tensors
from . import checkpoint
from .config import Optimizer
from .statistics import LossStatistics, emptied, merged, record

if TYPE_CHECKING:
    from accelerate import Accelerator

PARTS = ("discriminator", "discriminator_optimizer")
_OLD = ("rival", "rival_optimizer")  # in older checkpoints


def files_of(folder: Path) -> tuple[str, str]:
    """The names of a discriminator's files in a checkpoint, without their ending: `PARTS`, or those of older ones."""
    old = not (folder / f"{PARTS[0]}.safetensors").is_file() and (folder / f"{_OLD[0]}.safetensors").is_file()
    return _OLD if old else PARTS


@dataclass(slots=True, kw_only=True)
class DiscriminatorTraining:
    """The discriminator in training: its weights and optimizer belong to the checkpoint, its sums to the log.

    Its gradients are averaged over the processes; it runs in float32 whatever the precision of the model.
    """

    objective: AdversarialObjective
    module: nn.Module
    settings: Optimizer
    optimizer: torch.optim.Optimizer
    stepper: Any  # the optimizer as accelerate wraps it
    accelerator: Accelerator
    statistics: LossStatistics

    @classmethod
    def of(
        cls, objective: Objective, settings: Optimizer, path: Forward, accelerator: Accelerator
    ) -> DiscriminatorTraining | None:
        """The discriminator of an objective that has one; else None."""
        from .optimizers import adam

        module = objective.discriminator if isinstance(objective, AdversarialObjective) else None
        if module is None:
            return None
        module.to(accelerator.device).train()
        optimizer = adam(settings, module, accelerator.device)
        return cls(
            objective=objective,  # pyright: ignore[reportArgumentType]
            module=module,
            settings=settings,
            optimizer=optimizer,
            stepper=accelerator.prepare(optimizer),
            accelerator=accelerator,
            statistics=LossStatistics(path, accelerator.device),
        )

    def learn(self, losses: Losses | None, images: int) -> None:
        """One step on these losses at the learning rate after ``images`` images; none of them, and nothing is done."""
        if losses is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(images)
        self.accelerator.backward(losses.total)
        weights = [p for p in self.module.parameters() if p.requires_grad]
        if self.accelerator.num_processes > 1:
            for weight in weights:
                if weight.grad is not None:
                    torch.distributed.all_reduce(weight.grad)
                    weight.grad.div_(self.accelerator.num_processes)
        norm = self.accelerator.clip_grad_norm_(weights, self.settings.clip or math.inf)
        self.stepper.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.add(losses, norm)

    @property
    def names(self) -> dict[Tensor, str]:
        """The weights' names."""
        return {parameter: name for name, parameter in self.module.named_parameters()}

    def tensors(self) -> dict[str, Tensors]:
        """Its parts of a checkpoint."""
        return {
            "discriminator": self.module.state_dict(),
            "discriminator_optimizer": checkpoint.optimizer_tensors(self.optimizer, self.names),
        }

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; `CheckpointError` if it has no discriminator, or another one."""
        names = files_of(folder)
        weights, moments = (folder / f"{name}.safetensors" for name in names)
        fill(self.module, read_tensors(weights), weights, exact=True)
        without = state["unmoved"][names[1]] if "unmoved" in state else self.names.values()
        checkpoint.fill_optimizer(self.optimizer, read_tensors(moments), self.names, moments, without)
        sums = state.get("discriminator", state.get("rival"))
        # As the model's sums: one process carries those of all on.
        if sums and self.accelerator.is_main_process:
            self.statistics.load(sums)
        elif sums and sums["steps"]:
            self.statistics.load(emptied(sums))

    def record(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Its part of a line of the log, from the sums of all processes."""
        total = merged(states)
        return {"discriminator": record(total)} if total["steps"] else {}
