"""The start of a run: what is said of its data and network, and the plan of a budget in minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data.base import Source
from ..latents import Codec
from . import plan
from .config import TrainConfig
from .session import Session


def found(source: Source) -> str:
    """What the data is: "photos: 402 pictures, 6 classes, 64 × 64"."""
    count, classes = len(source), len(source.classes)
    kinds = f", {classes} {'class' if classes == 1 else 'classes'}" if classes else ""
    return f"{source.name}: {count:,} picture{'s' * (count != 1)}{kinds}, {source.size} × {source.size}"


def made(session: Session) -> str:
    """The network and the device: "2,710,000 parameters on cpu"."""
    count = sum(p.numel() for p in session.model.parameters())
    condition = {"label": ", with labels", "text": ", with captions"}.get(session.config.condition, "")
    return f"{count:,} parameters on {session.accelerator.device.type}{condition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run before its first step: its data, and the seconds that one step of a `Session` takes (``trial``).

    ``notes`` wait until the configuration has made a session, so a run that is refused costs one line.
    """

    whole: Source
    codec: Codec | None
    hardware: Accelerator
    trial: Callable[[Session], float]
    say: Callable[[str], None]
    notes: list[str]

    def open(self) -> None:
        """Say the notes, once."""
        while self.notes:
            self.say(self.notes.pop(0))

    def planned(self, config: TrainConfig, begun: TrainConfig | None, planner: plan.Planner | None) -> TrainConfig:
        """The configuration without None, and with the plan of a budget in minutes: that of the run if it has begun."""
        if begun is not None and planner is None and config.minutes:
            config = plan.as_planned(config, begun)
        elif begun is None and (planner is not None or config.minutes):
            chosen = (planner or plan.Planner())(config, self.whole, self._seconds)
            if chosen.images_per_second:
                self.say(str(chosen))
            config = chosen.config
        return plan.settle(config, begun)

    def _seconds(self, candidate: TrainConfig) -> float:
        """What a step of a configuration takes; all processes have the number of the first one, and decide alike."""
        candidate = plan.settle(candidate)
        source, _ = candidate.select(self.whole, self.hardware.device)
        session = Session.of(candidate, candidate.specify(source), source, self.hardware)
        session.codec = self.codec
        self.open()
        seconds = self.trial(session)
        self.hardware.free_memory()
        return broadcast_object_list([seconds])[0] if self.hardware.num_processes > 1 else seconds
