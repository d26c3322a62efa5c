"""The arithmetic of a dense detector: places, boxes, which place answers for which box, the loss, and reading it out.

One scale of an anchor-free detector (Tian et al. 2019, "FCOS"), with their focal loss (Lin et al. 2017) and the
generalised intersection over union (Rezatofighi et al. 2019) of boxes. Boxes are x0, y0, x1, y1 in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

GRID = 16
PRIOR = 4.0  # an untrained place holds every class for improbable: sigmoid(-4) = 0.018
_REACH = 0.3  # a place answers for a box if it is this near to its centre, as a part of the box's size,
_LEAST, _MOST = 0.75 / GRID, 1.6 / GRID  # within limits: every box has a place, and large ones not many more


def centres(like: Tensor) -> Tensor:
    """The centres of the places, row by row: (N, 2) as x, y."""
    at = (torch.arange(GRID, device=like.device, dtype=like.dtype) + 0.5) / GRID
    return torch.stack([at.repeat(GRID), at.repeat_interleave(GRID)], dim=1)


def decoded(raw: Tensor) -> Tensor:
    """Raw distances (B, N, C, 4) as boxes: each side is 0.25·softplus(raw) from the place's centre."""
    reach = 0.25 * functional.softplus(raw)
    at = centres(raw)[:, None]
    return torch.cat([at - reach[..., :2], at + reach[..., 2:]], dim=-1)


def assigned(boxes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Which box each place answers for in each class, (B, N, C) int64, −1 for none; of several the smallest.

    ``boxes`` (B, K, 4), ``labels`` (B, K), −1 where there is no box. Every box wins the place nearest to its centre
    unless a smaller one of its class does.
    """
    at = centres(boxes)
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]  # (B, K, 2)
    reach = (_REACH * size).clamp(min=_LEAST, max=_MOST)
    near = ((at[:, None] - middle[:, None]).abs() <= reach[:, None]).all(-1)  # (B, N, K)
    own = labels[:, None] == torch.arange(classes, device=labels.device)[:, None]  # (B, C, K)
    area = torch.where(near[:, :, None] & own[:, None], size.prod(-1)[:, None, None], torch.inf)
    least, which = area.min(3)
    return torch.where(least.isfinite(), which, -1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (…, 4), in (−1, 1]; 1 for equal ones."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inner / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes (N, 4) and (M, 4): (N, M)."""
    a, b = a[:, None], b[None]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union.clamp(min=1e-9)


def loss(logits: Tensor, predicted: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of the classes over all places plus 2·(1 − GIoU) over the places with a box, per such place: (B,).

    ``logits`` (B, N, C), ``predicted`` (B, N, C, 4); ``boxes`` (B, K, 4) and ``labels`` (B, K), −1 for no box.
    """
    which = assigned(boxes, labels, logits.shape[2])
    held = which >= 0
    wanted = held.to(logits)
    cross = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    chance = logits.sigmoid()
    wrong = wanted * (1 - chance) + (1 - wanted) * chance
    balance = 0.25 * wanted + 0.75 * (1 - wanted)
    target = boxes.gather(1, which.clamp(min=0).flatten(1)[..., None].expand(-1, -1, 4)).view_as(predicted)
    fit = torch.where(held, 1 - giou(predicted, target), 0.0)
    focal = 2 * balance * wrong.square() * cross
    return (focal + 2 * fit).sum((1, 2)) / held.sum((1, 2)).clamp(min=1)


def chosen(logits: Tensor, boxes: Tensor, threshold: float, overlap: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and probabilities of one picture: logits (N, C), boxes (N, C, 4).

    What overlaps something surer of its class is left out.
    """
    chance = logits.sigmoid().flatten()
    order = chance.argsort(descending=True, stable=True)
    order = order[chance[order] > threshold]
    boxes, label, chance = boxes.flatten(0, 1)[order].clamp(0, 1), order % logits.shape[1], chance[order]
    rival = (iou(boxes, boxes) > overlap) & (label[:, None] == label[None])
    keep = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if bool(keep[i]):
            keep[i + 1 :] &= ~rival[i, i + 1 :]
    return boxes[keep], label[keep], chance[keep]
