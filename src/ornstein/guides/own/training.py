"""Training a guide network from drawings: minutes on one core, and the same bits from the same seed on a CPU."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ornstein.errors import ConfigError
from ornstein.guides.own import files
from ornstein.guides.own.detecting import Detection
from ornstein.guides.own.drawings import Drawings, open_drawings
from ornstein.guides.own.likeness import Identity, Words
from ornstein.guides.own.networks import GUIDES, Guide
from ornstein.guides.own.tasks import Attributes, Segmentation, Task
from ornstein.randomness import generator

TASKS: dict[str, Callable[[], Task]] = {
    "segmentation": Segmentation,
    "classifier": Attributes,
    "identity": Identity,
    "text": Words,
    "detection": Detection,
}

Report = Callable[[int, int, float], None]  # (images seen, images in all, loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideTraining:
    """How a guide network is trained.

    ``images`` are seen in all, in batches of ``batch`` (0 is the kind's own, 32 or 64). They are made of ``drawings``
    critters and, for every other style, a sixty-fourth of that number; an eighth of each is held out. ``start`` is the
    file of a classifier whose tower the network starts with; "" starts it with nothing.
    """

    kind: str
    seed: int = 0
    images: int = 16_000
    batch: int = 0
    drawings: int = 2048
    lr: float = 2e-3
    start: str = ""

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ConfigError(f"unknown guide network {self.kind!r}: choose one of {', '.join(TASKS)}")
        if self.batch == 0:
            object.__setattr__(self, "batch", 64 if self.kind in {"identity", "text"} else 32)
        if self.images < 0 or self.batch < 16 or self.drawings < 32:
            raise ConfigError(
                f"images={self.images}, batch={self.batch}, drawings={self.drawings}: they must be at least 0, 16, 32"
            )
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be positive, got {self.lr}")

    @property
    def steps(self) -> int:
        """Batches in all."""
        return -(-self.images // self.batch)


def train(how: GuideTraining, out: Path, report: Report | None = None, drawing: Any = None) -> dict[str, Any]:
    """Train a network, write it to ``out`` with its card ``NAME.json``, and return the card.

    ``report`` hears of the progress and ``drawing`` (done, total) of the drawings that are not yet in the cache.
    """
    if how.start:
        files.read_network("classifier", how.start)  # complains before the drawing starts
    seen, held_out = open_drawings(how.drawings, max(2, how.drawings // 64), drawing)
    task = TASKS[how.kind]()
    net = fitted_network(how, task, seen, report)
    card = {"format": files.FORMAT, "kind": how.kind, "parameters": net.parameter_count, "train": asdict(how)}
    card["command"] = command(how)
    if how.start:
        card["start_sha256"] = hashlib.sha256(Path(how.start).read_bytes()).hexdigest()
    card["quality"] = quality(task, net, held_out)
    files.write(net, out, card)
    return card


def command(how: GuideTraining) -> str:
    """The command line that does this."""
    line = f"ornstein train-guide {how.kind} --out {how.kind}.safetensors --seed {how.seed} --images {how.images}"
    if how.drawings != GuideTraining(kind=how.kind).drawings:
        line += f" --drawings {how.drawings}"
    return f"{line} --start {how.start}" if how.start else line


def quality(task: Task, net: Guide, held_out: Drawings) -> Mapping[str, float]:
    """Figures on drawings that were not trained on; a pure function of the network."""
    with torch.inference_mode():
        return task.quality(net, held_out, generator(0, "guide quality", net.kind))


def fitted_network(how: GuideTraining, task: Task, drawings: Drawings, report: Report | None = None) -> Guide:
    """The trained network, frozen: the moving average of the weights, rounded to half precision as in its file."""
    net = files.make(how.kind, task.settings(drawings), how.seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if how.start:
        files.begin(net, cast("files.Classifier", files.read_network("classifier", how.start)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        helper = task.helper() or nn.Identity()
    average = copy.deepcopy(net)
    weights = [*net.parameters(), *helper.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=how.lr, weight_decay=0.02, betas=(0.9, 0.98))
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.lr * _rate(step, how.steps)
        loss = task.loss(net, helper, drawings, generator(how.seed, "guide", how.kind, step), how.batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        _follow(average, net, min(0.99, step / (step + 10)))
        if report is not None and (step % 20 == 19 or step + 1 == how.steps):
            report((step + 1) * how.batch, how.steps * how.batch, float(loss.detach()))
    average.load_state_dict({name: tensor.half().float() for name, tensor in average.state_dict().items()})
    return files.frozen(average)


def _rate(step: int, steps: int) -> float:
    """A short climb, then down a cosine to a fiftieth."""
    warm = min(1.0, (step + 1) / max(1, min(50, steps // 10)))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _follow(average: nn.Module, net: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for mean, now in zip(average.parameters(), net.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)


assert set(TASKS) == set(GUIDES)
