"""The divergence monitor: batches that are left out, and the first signs of divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..options import check_fields
from ..typed import typed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..objectives import Losses

_RECENT = 20  # batches, of which more than half must be good
_SETTLED = 200  # batches of a stage after which its gradients have a usual size


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceConfig:
    """When a batch is left out, and when a run has diverged. A batch without a finite loss is always left out."""

    kind: ClassVar[str] = "watch"

    outlier: float = 0.0
    """Leave out batches whose gradient is this many times as large as of late; 0 leaves none out for its size."""
    output: float = 10.0
    """A run has diverged when the root mean square of the network's outputs exceeds this; data lie in [-1, 1]."""
    surge: float = 100.0
    """A run has diverged when its gradients are this many times as large as in the rest of the stage."""

    def __post_init__(self) -> None:
        for name, low in (("outlier", 0.0), ("output", 1.0), ("surge", 1.0)):
            if not low <= getattr(self, name) < math.inf:
                raise ConfigError(f"watch.{name} must be at least {low:g}, got {getattr(self, name)}")
        check_fields(self)


@dataclass(slots=True, kw_only=True)
class DivergenceMonitor:
    """Checks the loss and gradient of every batch before the optimizer's step. Its numbers belong to the checkpoint.

    Loss and gradient are read on the host, so each step waits for the device once. All processes have the same
    numbers, and decide alike.
    """

    watch: DivergenceConfig
    stage: float = 0.0
    settled: int = 0  # batches of this stage
    slow: float = 0.0  # means of log ‖gradient‖: over the stage,
    fast: float = 0.0  # and over the last few batches
    size: float = 0.0  # mean of the size of the outputs over the last few batches
    bad: list[int] = field(default_factory=list)  # 1 for each of the last batches that was left out as not finite
    seen: int = 0  # since the last line of the log
    left_out: dict[str, int] = field(default_factory=lambda: {"nonfinite": 0, "outlier": 0})
    cause: str = ""  # why the run has diverged; empty if it has not

    def accepts(self, losses: Losses, norm: Tensor, accelerator: Accelerator) -> bool:
        """Whether the optimizer may have the batch."""
        numbers = [losses.total.detach().float(), norm.detach().float()]
        numbers += [losses.watched["output"].float().square().mean().sqrt()] if "output" in losses.watched else []
        found = torch.stack([number.to(numbers[0].device) for number in numbers])
        if accelerator.num_processes > 1:
            found = accelerator.reduce(found, "mean")
        return self.accepts_numbers(found.tolist(), losses.schedule.get("intervals", 0.0))  # type: ignore[union-attr]

    def accepts_numbers(self, numbers: list[float], stage: float) -> bool:
        """`accepts` of [loss, norm of the gradient, size of the outputs], host numbers."""
        self.seen += 1
        if stage != self.stage:
            self.stage, self.settled = stage, 0
        finite = all(math.isfinite(number) for number in numbers)
        self.bad = [*self.bad, int(not finite)][-_RECENT:]
        if not finite:
            self.left_out["nonfinite"] += 1
            if sum(self.bad) > _RECENT // 2:
                self.cause = f"{sum(self.bad)} of the last {len(self.bad)} batches gave no finite loss or gradient"
            return False
        log = math.log(max(numbers[1], 1e-30))
        outlier = self.settled >= _RECENT and 0.0 < self.watch.outlier < math.exp(min(log - self.fast, 700.0))
        self._follow(log, numbers[2] if len(numbers) > 2 else 0.0)
        self.left_out["outlier"] += outlier
        return not outlier

    def _follow(self, log: float, size: float) -> None:
        self.settled += 1
        first = self.settled == 1
        self.fast = log if first else 0.9 * self.fast + 0.1 * log
        self.slow = log if first else self.slow + (log - self.slow) / min(self.settled, 1000)
        self.size = 0.9 * self.size + 0.1 * size
        if self.size > self.watch.output:
            self.cause = f"the root mean square of the network's outputs is {self.size:.3g}, and data lie in [-1, 1]"
        elif self.settled >= _SETTLED and self.fast - self.slow > math.log(self.watch.surge):
            self.cause = f"the gradient is {math.exp(self.fast - self.slow):.3g} times as large as in the stage so far"

    def record(self) -> dict[str, Any]:
        """The monitor's part of a line of the log: which fractions of the batches were left out."""
        return {"left_out": {name: count / max(self.seen, 1) for name, count in self.left_out.items()}}

    def clear(self) -> None:
        """Begin the counts of the log anew."""
        self.seen, self.left_out = 0, dict.fromkeys(self.left_out, 0)

    def state(self) -> dict[str, Any]:
        """Its numbers, exact."""
        names = ("stage", "settled", "slow", "fast", "size", "bad", "seen", "left_out")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; ValueError for one that it cannot have made."""
        own = self.state()
        if not isinstance(state, dict) or state.keys() != own.keys():
            raise ValueError("the numbers of its divergence monitor are missing or unknown")
        numbers = [state[name] for name in ("stage", "slow", "fast", "size")]
        counts = [state["settled"], state["seen"], *dict(state["left_out"]).values(), *list(state["bad"])]
        sound = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        sound = sound and all(isinstance(x, int) and 0 <= x < 2**62 for x in counts) and len(state["bad"]) <= _RECENT
        if not sound or dict(state["left_out"]).keys() != own["left_out"].keys():
            raise ValueError("the numbers of its divergence monitor are damaged")
        for name, value in state.items():
            setattr(self, name, value)
