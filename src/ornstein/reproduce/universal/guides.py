"""What `ornstein.reproduce.universal.guided` measures: guides by a network that ships, on the shipped critters network.

Each sample has a drawing of its own that the network has not seen; a task turns it into what is asked for: the map of
its parts, its identity, where its parts lie, its caption, its style, or three of these at once. A sample succeeds if an
independent network, EfficientNet-lite0, finds its own drawing the nearest of all drawings that were asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import grids, sampling
from ... import guidance as guide
from ...guides import own
from ...guides.energies import Identity, Likeness, ObjectLocation, SegmentationMap
from ...samplers import DDIM
from . import images

Energy = Callable[[Tensor], Tensor]
PLAIN, UNIVERSAL, DPS = "plain", "universal", "dps"
STEPS, RECURRENCE = 6, 4
"""Steps of universal guidance and how often each is made; the plain model and DPS take as many evaluations in steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """The weighted sum of energies."""

    parts: tuple[tuple[float, Energy], ...]

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        return torch.stack([weight * energy(clean) for weight, energy in self.parts]).sum(0)


def segmentation(pictures: Tensor, captions: list[str]) -> Energy:
    """The map of the drawing's parts, as the guide sees them."""
    del captions
    return SegmentationMap(segmenter=own.segmenter(), target=own.segmenter()(pictures).argmax(1))


def identity(pictures: Tensor, captions: list[str]) -> Energy:
    """Who is in the drawing; critters stand for faces."""
    del captions
    return Identity.like(own.embedder(), pictures)


def boxes(pictures: Tensor, captions: list[str]) -> Energy:
    """The parts of the drawing, each in its place."""
    del captions
    detector = own.detector()
    found = [detector.detect(row) for row in pictures.split(1)]
    # A drawing without any part is asked for as it is elsewhere: in the whole picture.
    whole = (torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0]))
    pairs = [(places, labels) if len(labels) else whole for ((places, labels, _),) in found]
    return ObjectLocation(
        detector=detector, boxes=tuple(places for places, _ in pairs), labels=tuple(labels for _, labels in pairs)
    )


def text(pictures: Tensor, captions: list[str]) -> Energy:
    """The drawing's caption."""
    del pictures
    return Likeness.to_text(own.text_image(), captions)


def style(pictures: Tensor, captions: list[str]) -> Energy:
    """The drawing's look, by the picture tower of the network for texts."""
    del captions
    return Likeness.to_picture(own.text_image(), pictures)


def three(pictures: Tensor, captions: list[str]) -> Energy:
    """Map, identity and caption at once, each with its own weight."""
    parts = ((name, TASKS[name](pictures, captions)) for name in ("segmentation", "identity", "text"))
    return Sum(parts=tuple((WEIGHTS[name] / WEIGHTS["three"], energy) for name, energy in parts))


TASKS: Mapping[str, Callable[[Tensor, list[str]], Energy]] = {
    "segmentation": segmentation,
    "identity": identity,
    "boxes": boxes,
    "text": text,
    "style": style,
    "three": three,
}
WEIGHTS: Mapping[str, float] = {
    "segmentation": 100.0, "identity": 400.0, "boxes": 10.0, "text": 3.0, "style": 2.0, "three": 100.0,
}  # fmt: skip
"""The library's own weights of these guides, in which candidates are counted."""


@lru_cache(maxsize=4)
def asked(seed: int, count: int) -> tuple[Tensor, tuple[str, ...]]:
    """Drawings (count, 3, 64, 64) in [−1, 1] that the network has not seen, and their captions."""
    source = images.source()
    chosen = [source[images.TRAINED + (seed * count + i) % images.HELD_OUT] for i in range(count)]
    stack = torch.stack([example.image for example in chosen]).float() / 127.5 - 1.0
    return stack, tuple(example.caption for example in chosen)


def drawn(*, task: str, method: str, strength: float, seed: int, count: int) -> Mapping[str, Any]:
    """Draw under a guide: ``{"failed", "kid", "energy", "evaluations", "gradients", "seconds"}``.

    ``failed`` is the part of the samples whose own drawing lite0 does not find the nearest of the ``count`` that were
    asked for, ``energy`` the mean of what was asked for, and seconds are those of a core for a sample.
    """
    from ...data import to_uint8
    from ...metrics.kernel import mmd2

    pictures, captions = asked(seed, count)
    with torch.no_grad():
        energy = TASKS[task](pictures, list(captions))
    clean, counted, seconds = _sampled(method, energy, WEIGHTS[task] * strength, seed, count)
    ours = images.features(to_uint8(clean))
    theirs = images.features(to_uint8(pictures))
    nearest = ((ours[:, None] - theirs[None]) ** 2).sum(2).argmin(1)
    return {
        "failed": float((nearest != np.arange(count)).mean()),
        "kid": mmd2(ours, images.reference()),
        "energy": float(energy(clean).nanmean()),
        "evaluations": counted.evaluations,
        "gradients": counted.gradients,
        "seconds": round(seconds / count, 4),
    }


def _sampled(
    method: str, energy: Energy, strength: float, seed: int, count: int
) -> tuple[Tensor, images.Counted, float]:
    counted = images.Counted(images.network())
    grid = grids.default(counted.path, STEPS if method == UNIVERSAL else STEPS * RECURRENCE)
    model: Any = counted
    if method == UNIVERSAL:
        model = guide.Universal(energies=energy, strength=strength)(counted)
    elif method == DPS:
        model = guide.DPS(misfit=energy, scale=strength, grid=grid, eta=0.0)(counted)
    if method == UNIVERSAL:
        grid = grids.resample(grid, RECURRENCE)
    since = time.process_time()
    clean = sampling.sample(model, count, sampler=DDIM(), grid=grid, seed=1000 + seed)
    return clean.clamp(-1.0, 1.0), counted, time.process_time() - since


def tried(*, arm: str, seed: int, choice: Mapping[str, float], count: int) -> float:
    """What the strength of an arm, a task and a method, is chosen by: the part that fails plus the kernel distance."""
    task, method = arm.split()
    found = drawn(task=task, method=method, strength=choice["strength"], seed=seed, count=count)
    return found["failed"] + found["kid"]
