"""What each guide network is trained to do, part one: say which part a pixel shows, and what a drawing is like."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.guides.own import drawings as drawn
from ornstein.guides.own.degrade import degraded
from ornstein.guides.own.drawings import OTHERS, PARTS, Cutouts, Drawings
from ornstein.guides.own.networks import Classifier, Segmenter
from ornstein.guides.own.scenes import flat, over, placed, signed, varied

BLURRY = 0.5
"""The strength of degradation at which the second half of the held-out figures is measured."""


class Task(Protocol):
    """A kind of training: the settings of its network, the loss of a batch, and the quality on drawings not seen."""

    def settings(self, drawings: Drawings) -> dict[str, Any]:
        """What the network is built from."""
        ...

    def helper(self) -> nn.Module | None:
        """Layers that take part in training alone."""
        ...

    def loss(self, net: Any, helper: Any, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """The mean loss of a batch of about ``count`` pictures."""
        ...

    def quality(self, net: Any, drawings: Drawings, rng: np.random.Generator) -> dict[str, float]:
        """Figures on held-out drawings, from 0 (bad) to 1 (good)."""
        ...


def percent(value: Tensor | float) -> float:
    """A figure rounded to four places, for a card."""
    return round(float(value), 4)


def some(cutouts: Cutouts, rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers of ``count`` drawings, with repetitions."""
    return rng.integers(0, len(cutouts), count)


class Segmentation:
    """Cross entropy and the overlap (Dice) of every class, on critters shifted, scaled and put on any background."""

    weights = (1.0, 1.0, 2.0, 2.0, 3.0)

    def settings(self, drawings: Drawings) -> dict[str, Any]:
        """Background and parts."""
        del drawings
        return {"classes": ["background", *PARTS]}

    def helper(self) -> nn.Module | None:
        """None."""
        return None

    def batch(self, drawings: Drawings, rng: np.random.Generator, count: int, wide: float) -> tuple[Tensor, Tensor]:
        """Pictures in [−1, 1] and labels, the share ``wide`` of them far from where critters stand."""
        far = round(wide * count)
        pictures, labels = [], []
        for number, scale, shift in ((count - far, (0.9, 1.1), 0.05), (far, (0.4, 1.4), 0.25)):
            if number == 0:
                continue
            source = drawings.recoloured if rng.random() < 0.5 else drawings.critters
            layer = placed(source, some(source, rng, number), rng, scale=scale, shift=shift)
            pictures.append(over(layer, varied(rng, number)))
            labels.append(layer.labels)
        return signed(torch.cat(pictures)), torch.cat(labels)

    def loss(self, net: Segmenter, helper: Any, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """Weighted cross entropy plus the mean of 1 − Dice."""
        del helper
        pictures, labels = self.batch(drawings, rng, count, 0.4)
        order = torch.from_numpy(rng.permutation(count))  # each group of the degradation sees both kinds
        logits, labels = net(degraded(pictures[order], rng)), labels[order]
        wanted = functional.one_hot(labels, logits.shape[1]).movedim(3, 1).to(logits)
        chance = logits.softmax(1)
        dice = 2 * (chance * wanted).sum((0, 2, 3)) / ((chance + wanted).sum((0, 2, 3)) + 1.0)
        return functional.cross_entropy(logits, labels, torch.tensor(self.weights)) + (1 - dice).mean()

    def quality(self, net: Segmenter, drawings: Drawings, rng: np.random.Generator) -> dict[str, float]:
        """Intersection over union of each class: in place, elsewhere, and blurred."""
        found: dict[str, float] = {}
        for name, wide, strength in (("", 0.0, 0.0), (" elsewhere", 1.0, 0.0), (" blurred", 0.0, BLURRY)):
            pictures, labels = self.batch(drawings, rng, 256, wide)
            guess = torch.cat([net(chunk).argmax(1) for chunk in degraded(pictures, rng, strength).split(64)])
            for k, part in enumerate(net.classes):
                both, either = ((guess == k) & (labels == k)).sum(), ((guess == k) | (labels == k)).sum()
                found[f"iou {part}{name}"] = percent(both / either.clamp(min=1))
        return found


class Attributes:
    """The cross entropy of every group of classes; style for all drawings, the others for critters."""

    shares = 0.75  # of critters in a batch
    sources: ClassVar[dict[str, str]] = {
        "colour": "body colour", "top": "top", "eyes": "eyes", "mouth": "mouth", "pattern": "pattern",
        "cheeks": "cheeks", "shape": "body",
    }  # fmt: skip

    def settings(self, drawings: Drawings) -> dict[str, Any]:
        """The groups and their classes."""
        del drawings
        groups = {"colour": drawn.colours("body"), "background": drawn.colours("background")}
        groups |= {g: drawn.variants(part) for g, part in self.sources.items() if g != "colour"}
        groups["style"] = ("critters", *OTHERS)
        return {"groups": {group: list(values) for group, values in groups.items()}}

    def helper(self) -> nn.Module | None:
        """None."""
        return None

    def truth(self, groups: dict[str, tuple[str, ...]], cutouts: Cutouts, rows: np.ndarray) -> dict[str, Tensor]:
        """The number of the right class in each group of the creature itself."""
        notes = [cutouts.named[row] for row in rows]
        return {
            group: torch.tensor([groups[group].index(note.get(source, "none")) for note in notes])
            for group, source in self.sources.items()
        }

    def critters(
        self, net: Classifier, drawings: Drawings, rng: np.random.Generator, count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures in [−1, 1] and their classes."""
        source = drawings.recoloured if rng.random() < 0.5 else drawings.critters
        rows = some(source, rng, count)
        layer = placed(source, rows, rng, scale=(0.92, 1.1), shift=0.05, mirror=False)
        background, which = flat(rng, count)
        truth = self.truth(net.groups, source, rows)
        truth |= {"background": torch.from_numpy(which), "style": torch.zeros(count, dtype=torch.int64)}
        return signed(over(layer, background)), truth

    def strangers(self, drawings: Drawings, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Pictures of the other styles, and the number of the style."""
        return strangers(drawings, rng, count)

    def loss(self, net: Classifier, helper: Any, drawings: Drawings, rng: np.random.Generator, count: int) -> Tensor:
        """The sum over groups."""
        del helper
        own = round(self.shares * count)
        pictures, truth = self.critters(net, drawings, rng, own)
        others, style = self.strangers(drawings, rng, count - own)
        order = torch.from_numpy(rng.permutation(count))
        logits = torch.empty(count, len(net.classes))
        logits[order] = net(degraded(torch.cat([pictures, others])[order], rng))
        truth["style"] = torch.cat([truth["style"], style])
        losses = [
            functional.nll_loss(logits[: len(truth[group]), which], truth[group]) for group, which in net.slices()
        ]
        return torch.stack(losses).sum()

    def quality(self, net: Classifier, drawings: Drawings, rng: np.random.Generator) -> dict[str, float]:
        """The share of drawings whose class is right, by group."""
        found: dict[str, float] = {}
        for name, strength in (("", 0.0), (" blurred", BLURRY)):
            pictures, truth = self.critters(net, drawings, rng, 512)
            others, style = self.strangers(drawings, rng, 128)
            shown = degraded(torch.cat([pictures, others]), rng, strength)
            logits = torch.cat([net(chunk) for chunk in shown.split(64)])
            truth["style"] = torch.cat([truth["style"], style])
            for group, which in net.slices():
                guess = logits[: len(truth[group]), which].argmax(1)
                found[f"{group}{name}"] = percent((guess == truth[group]).float().mean())
        return found


def strangers(drawings: Drawings, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures in [−1, 1] of the other styles on plain backgrounds, and the number of the style, from 1."""
    style = rng.integers(0, len(drawings.others), count)
    colour, coverage = torch.empty(count, 3, 64, 64), torch.empty(count, 1, 64, 64)
    for k, other in enumerate(drawings.others):
        rows = np.flatnonzero(style == k)
        if len(rows):
            layer = placed(other, some(other, rng, len(rows)), rng, scale=(0.85, 1.15), shift=0.06)
            colour[rows], coverage[rows] = layer.colour, layer.coverage
    background, _ = flat(rng, count)
    return signed(colour + (1 - coverage) * background), torch.from_numpy(style + 1)
