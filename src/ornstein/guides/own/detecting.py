"""What each guide network is trained to do, part three: find things and parts of things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ornstein.guides.own import boxes as boxing
from ornstein.guides.own.degrade import degraded
from ornstein.guides.own.drawings import OBJECTS, OTHERS, PARTS, Cutouts, Drawings
from ornstein.guides.own.networks import Detector
from ornstein.guides.own.scenes import Layer, extents, placed, signed, varied
from ornstein.guides.own.tasks import BLURRY, percent, some

_ABOVE = PARTS[1:]  # parts that have boxes of their own


class Scene(NamedTuple):
    """Pictures in [−1, 1] (B, 3, 64, 64), boxes (B, K, 4) and labels (B, K), −1 where there is no box."""

    pictures: Tensor
    boxes: Tensor
    labels: Tensor


class Detection:
    """The loss of `boxes.loss` on up to three drawings over any background; things hidden by half have no box."""

    def settings(self, drawings: Drawings) -> dict[str, Any]:
        """Critters, their parts, and four other styles."""
        del drawings
        return {"classes": ["critter", *_ABOVE, *(style.removesuffix("s") for style in OTHERS[:OBJECTS])]}

    def helper(self) -> nn.Module | None:
        """None."""
        return None

    def loss(self, net: Detector, helper: Any, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """The mean over the batch."""
        del helper
        scene = self.scenes(drawings, rng, count)
        logits, boxes = net(degraded(scene.pictures, rng))
        return boxing.loss(logits, boxes, scene.boxes, scene.labels).mean()

    def scenes(self, drawings: Drawings, rng: np.random.Generator, count: int) -> Scene:
        """A third of the pictures show one critter where critters stand; the others up to three things anywhere."""
        layers: list[Layer] = []
        kinds: list[np.ndarray] = []
        plain = rng.random(count) < 1 / 3
        for slot, share in enumerate((1.0, 0.45, 0.2)):
            present = (rng.random(count) < share) & ~(plain & (slot > 0))
            kind = np.where(plain | (rng.random(count) < 0.6), 0, rng.integers(1, OBJECTS + 1, count))
            kinds.append(np.where(present, kind, -1))
            scale = (0.35, 1.3) if slot == 0 else (0.3, 0.65)
            layers.append(self._slot(drawings, kinds[-1], plain, rng, scale))
        return _composed(layers, kinds, varied(rng, count))

    def _slot(
        self,
        drawings: Drawings,
        kinds: np.ndarray,
        plain: np.ndarray,
        rng: np.random.Generator,
        scale: tuple[float, float],
    ) -> Layer:
        """One drawing of the wanted kind for every picture; nothing where the kind is −1."""
        count = len(kinds)
        layer = Layer(torch.zeros(count, 3, 64, 64), torch.zeros(count, 1, 64, 64), torch.zeros(count, 64, 64).long())
        critters = drawings.recoloured if rng.random() < 0.5 else drawings.critters
        sources: Sequence[tuple[Cutouts, np.ndarray, tuple[float, float], float]] = [
            (critters, (kinds == 0) & plain, (0.95, 1.05), 0.03),
            (critters, (kinds == 0) & ~plain, scale, 0.32),
            *((other, kinds == k, scale, 0.32) for k, other in enumerate(drawings.others[:OBJECTS], start=1)),
        ]
        for source, where, size, shift in sources:
            rows = np.flatnonzero(where)
            if len(rows):
                made = placed(source, some(source, rng, len(rows)), rng, scale=size, shift=shift)
                for whole, part in zip(layer, made, strict=True):
                    whole[rows] = part
        return layer

    def quality(self, net: Detector, drawings: Drawings, rng: np.random.Generator) -> dict[str, float]:
        """For things and parts, the shares of what is there that is found and of what is found that is there."""
        found: dict[str, float] = {}
        for name, strength in (("", 0.0), (" blurred", BLURRY)):
            scene = self.scenes(drawings, rng, 256)
            guesses = [g for chunk in degraded(scene.pictures, rng, strength).split(64) for g in net.detect(chunk)]
            parts = torch.tensor([label in _ABOVE for label in net.classes])
            for of, which in (("things", ~parts), ("parts", parts)):
                found |= {f"{k} of {of}{name}": v for k, v in _matched(guesses, scene, which).items()}
        return found


def _composed(layers: Sequence[Layer], kinds: Sequence[np.ndarray], picture: Tensor) -> Scene:
    """The layers over each other, and the boxes of what is left visible."""
    solid = [layer.coverage[:, 0] > 0.5 for layer in layers]
    boxes, labels = [], []
    for i, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        picture = layer.colour + (1 - layer.coverage) * picture
        hidden = torch.zeros_like(solid[i])
        for later in solid[i + 1 :]:
            hidden |= later
        wanted = torch.from_numpy(kind)
        # Numbers of the classes: the critter, its parts, then the other kinds.
        thing = torch.where(wanted > 0, wanted + len(_ABOVE), wanted)
        masks = [(solid[i], thing, 6, 0.5)]
        masks += [
            (layer.labels == PARTS.index(part) + 1, torch.where(wanted == 0, 1 + k, -1), 3, 0.7)
            for k, part in enumerate(_ABOVE)
        ]
        for mask, label, least, share in masks:
            box, seen = extents(mask & ~hidden)
            size = (box[:, 2:] - box[:, :2]).amin(1) * mask.shape[1]
            good = (label >= 0) & (seen > share * mask.sum((1, 2))) & (size >= least)
            boxes.append(torch.where(good[:, None], box, torch.tensor([0.0, 0.0, 1.0, 1.0])))
            labels.append(torch.where(good, label, -1))
    return Scene(signed(picture), torch.stack(boxes, 1), torch.stack(labels, 1))


def _matched(guesses: Sequence[tuple[Tensor, Tensor, Tensor]], scene: Scene, which: Tensor) -> dict[str, float]:
    """Recall and precision at an intersection over union of one half, over the classes ``which``."""
    there = recalled = reported = right = 0
    for (boxes, labels, _), truth, classes in zip(guesses, scene.boxes, scene.labels, strict=True):
        real = (classes >= 0) & which[classes.clamp(min=0)]
        mine = which[labels]
        hit = boxing.iou(boxes[mine], truth[real]) >= 0.5
        hit &= labels[mine][:, None] == classes[real][None]
        there, reported = there + int(real.sum()), reported + int(mine.sum())
        recalled, right = recalled + int(hit.any(0).sum()), right + int(hit.any(1).sum())
    return {"recall": percent(recalled / max(1, there)), "precision": percent(right / max(1, reported))}
