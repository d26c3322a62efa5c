"""Energies made with a network: clean (B, 3, H, W) in [−1, 1] → (B,), low is good.

They take any network of the kinds in `ornstein.guides.contracts`, and add to the energies without one in
`ornstein.guidance.energies`. Targets have one row, or as many as the batch: ``rows`` cuts them for chunks. A row in
which the network finds nothing is NaN, and guidance leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as fn

from ..checks import OneLine
from ..errors import ConfigError, DataError, UsageError
from .contracts import Classifier, Detector, EdgeMap, Embedder, FeatureMaps, Segmenter, TextImage

IGNORED = -1
"""Ignore index: the class number of pixels outside the target."""


def _sliced(target: Tensor, which: slice) -> Tensor:
    return target if target.shape[0] == 1 else target[which]


def _per_sample(target: Tensor, rows: int, what: str) -> Tensor:
    if target.shape[0] not in (1, rows):
        raise UsageError(f"{what} of {target.shape[0]} rows does not fit {rows} samples: give it one row, or {rows}")
    return target.expand(rows, *target.shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassLogit(OneLine):
    """A class by a classifier's logits z:  ℓ = −log softmax(z)_y ("cross-entropy"), or ℓ = −z_y ("logit").

    ``label`` y: a class number, or (1 or B,) of them.
    """

    classifier: Classifier = field(repr=False)
    label: int | Tensor
    kind: Literal["cross-entropy", "logit"] = "cross-entropy"

    def __post_init__(self) -> None:
        if self.kind not in ("cross-entropy", "logit"):
            raise ConfigError(f'kind must be "cross-entropy" or "logit", got {self.kind!r}')
        labels = torch.as_tensor(self.label).reshape(-1)
        count = len(self.classifier.classes)
        if int(labels.min()) < 0 or int(labels.max()) >= count:
            raise ConfigError(f"a label of 0 … {count - 1} is needed, got {self.label}")
        object.__setattr__(self, "label", labels)

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        logits = self.classifier(clean)
        label = _per_sample(torch.as_tensor(self.label), len(clean), "a label").to(logits.device)
        scores = logits if self.kind == "logit" else torch.log_softmax(logits, 1)
        return -scores.gather(1, label[:, None])[:, 0].to(clean.dtype)

    def rows(self, which: slice) -> ClassLogit:
        """The labels of these samples."""
        return ClassLogit(classifier=self.classifier, label=_sliced(torch.as_tensor(self.label), which), kind=self.kind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentationMap(OneLine):
    """A map of classes: ℓ = the mean over pixels of the cross-entropy to it (Bansal et al. 2024, section 4; a mean over
    the segmenter's logits as in the authors' code, not the sum that the text writes).

    ``target`` (1 or B, H, W) class numbers, `IGNORED` where nothing is asked for; it is brought to the resolution of
    the logits by its nearest pixels.
    """

    segmenter: Segmenter = field(repr=False)
    target: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        count = len(self.segmenter.classes)
        if self.target.ndim != 3 or self.target.is_floating_point():
            raise ConfigError(f"a map of classes is (1 or B, H, W) integers, got {tuple(self.target.shape)}")
        if not bool((self.target >= 0).flatten(1).any(1).all()):
            raise ConfigError("the map asks for nothing: all its pixels are ignored")
        if int(self.target.max()) >= count:
            raise ConfigError(f"the map has class {int(self.target.max())}, the segmenter knows 0 … {count - 1}")

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        logits = self.segmenter(clean)
        target = self.target.to(logits.device)
        if target.shape[1:] != logits.shape[2:]:
            target = fn.interpolate(target[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0].long()
        target = _per_sample(target, len(clean), "a map")
        each = fn.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")  # (B, h, w)
        labelled = (target != IGNORED).flatten(1).sum(1).clamp_min(1)
        return (each.flatten(1).sum(1) / labelled).to(clean.dtype)

    def rows(self, which: slice) -> SegmentationMap:
        """The maps of these samples."""
        return SegmentationMap(segmenter=self.segmenter, target=_sliced(self.target, which))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Identity(OneLine):
    """The identity of a picture: ℓ = the mean absolute difference of embeddings (ℓ₁, scaled as in the authors' code).

    ``target`` (1 or B, D); `Identity.like` takes that of a picture. NaN where the embedder finds nothing.
    """

    embedder: Embedder = field(repr=False)
    target: Tensor = field(repr=False)

    @classmethod
    def like(cls, embedder: Embedder, picture: Tensor) -> Identity:
        """Of the picture (1 or B, 3, H, W). Raises `DataError` if nothing is found in it."""
        with torch.no_grad():
            target = embedder(picture)
        if not bool(torch.isfinite(target).all()):
            raise DataError("nobody was found in the picture whose identity is asked for: give another picture")
        return cls(embedder=embedder, target=target)

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        seen = self.embedder(clean)
        target = _per_sample(self.target.to(seen.device), len(clean), "an identity")
        return (seen - target).abs().mean(1).to(clean.dtype)

    def rows(self, which: slice) -> Identity:
        """The identities of these samples."""
        return Identity(embedder=self.embedder, target=_sliced(self.target, which))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectLocation(OneLine):
    """Objects in places: ℓ = the detector's own training loss for these boxes, box regression of the head left out.

    ``boxes`` (K, 4), x0 y0 x1 y1 in [0, 1], with ``labels`` (K,), the same for all samples; or a tuple of such pairs'
    parts, one for each sample.
    """

    detector: Detector = field(repr=False)
    boxes: Tensor | tuple[Tensor, ...]
    labels: Tensor | tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if isinstance(self.boxes, Tensor) != isinstance(self.labels, Tensor):
            raise ConfigError("boxes and labels must both be one tensor, or both a tuple of one for each sample")
        for boxes, labels in zip(_tuple(self.boxes), _tuple(self.labels), strict=True):
            check_boxes(boxes, labels, len(self.detector.classes))

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        if isinstance(self.boxes, Tensor) and isinstance(self.labels, Tensor):
            return self.detector.loss(clean, self.boxes, self.labels).to(clean.dtype)
        if len(self.boxes) != len(clean):
            raise UsageError(f"{len(self.boxes)} sets of boxes do not fit {len(clean)} samples: give one, or as many")
        rows = zip(clean.split(1), self.boxes, self.labels, strict=True)
        return torch.cat([self.detector.loss(row, boxes, labels) for row, boxes, labels in rows]).to(clean.dtype)

    def rows(self, which: slice) -> ObjectLocation:
        """The boxes of these samples."""
        if isinstance(self.boxes, Tensor):
            return self
        return ObjectLocation(detector=self.detector, boxes=self.boxes[which], labels=self.labels[which])


def _tuple(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (given,) if isinstance(given, Tensor) else given


def check_boxes(boxes: Tensor, labels: Tensor, classes: int) -> None:
    """Raise `ConfigError` for boxes that leave the picture, are empty, or have labels that are not known."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1] or not len(boxes):
        raise ConfigError(f"boxes are (K, 4) with K labels, got {tuple(boxes.shape)} and {tuple(labels.shape)}")
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        shown = ",".join(f"{value:g}" for value in box)
        if not all(0.0 <= value <= 1.0 for value in box):
            raise ConfigError(f"the box {shown} leaves the picture: x0,y0,x1,y1 are fractions between 0 and 1")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ConfigError(f"the box {shown} is empty: x0,y0,x1,y1 need x0 < x1 and y0 < y1")
        if not 0 <= label < classes:
            raise ConfigError(f"a label of 0 … {classes - 1} is needed, got {label}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likeness(OneLine):
    """Nearness in a space of images and texts: ℓ = −scale·cos(image, target)  (text and style of the paper).

    ``target`` (1 or B, D): `Likeness.to_text` takes that of a sentence, `Likeness.to_picture` that of a picture.
    ``scale`` is the network's own by default: 100 for CLIP, which is part of the published weights.
    """

    network: TextImage = field(repr=False)
    target: Tensor = field(repr=False)
    scale: float | None = None

    @classmethod
    def to_text(cls, network: TextImage, texts: Sequence[str]) -> Likeness:
        """One sentence, or one for each sample."""
        with torch.no_grad():
            return cls(network=network, target=network.text(list(texts)))

    @classmethod
    def to_picture(cls, network: TextImage, picture: Tensor) -> Likeness:
        """A picture (1 or B, 3, H, W)."""
        with torch.no_grad():
            return cls(network=network, target=network.image(picture))

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        seen = self.network.image(clean)
        target = _per_sample(self.target.to(seen.device), len(clean), "a target")
        scale = float(self.network.scale) if self.scale is None else self.scale
        return -scale * fn.cosine_similarity(seen, target, dim=1).to(clean.dtype)

    def rows(self, which: slice) -> Likeness:
        """The targets of these samples."""
        return Likeness(network=self.network, target=_sliced(self.target, which), scale=self.scale)


def grams(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """G = F·Fᵀ/(h·w) of each map (B, C, h, w), channels first brought to unit mean square: (B, C, C)."""
    found = []
    for features in maps:
        flat = features.flatten(2)
        flat = flat / (flat.square().mean((1, 2), keepdim=True) + 1e-6).sqrt()
        found.append(flat @ flat.transpose(1, 2) / flat.shape[2])
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gram(OneLine):
    """The style of a picture by Gram matrices (Gatys et al. 2016):  ℓ = ∑_k ‖G_k − G*_k‖²/(C_k·K) over K layers.

    ``target``: their K matrices (1 or B, C_k, C_k), see `grams`; `Gram.like` takes those of a picture.
    """

    network: FeatureMaps = field(repr=False)
    target: tuple[Tensor, ...] = field(repr=False)

    @classmethod
    def like(cls, network: FeatureMaps, picture: Tensor) -> Gram:
        """Of the picture (1 or B, 3, H, W)."""
        with torch.no_grad():
            return cls(network=network, target=grams(network.features(picture)))

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        total: Tensor | float = 0.0
        for seen, wanted in zip(grams(self.network.features(clean)), self.target, strict=True):
            wanted = _per_sample(wanted.to(seen.device), len(clean), "a style")
            total = total + (seen - wanted).square().sum((1, 2)) / (seen.shape[1] * len(self.target))
        return torch.as_tensor(total).to(clean.dtype)

    def rows(self, which: slice) -> Gram:
        """The styles of these samples."""
        return Gram(network=self.network, target=tuple(_sliced(target, which) for target in self.target))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlines(OneLine):
    """The outlines of a picture by a network: ℓ = half the mean squared difference of edge maps in [0, 1].

    ``target`` (1 or B, 1, h, w) is such a map; `Outlines.like` takes that of a picture.
    """

    network: EdgeMap | Callable[[Tensor], Tensor] = field(repr=False)
    target: Tensor = field(repr=False)

    @classmethod
    def like(cls, network: EdgeMap | Callable[[Tensor], Tensor], picture: Tensor) -> Outlines:
        """Of the picture (1 or B, 3, H, W)."""
        with torch.no_grad():
            return cls(network=network, target=network(picture))

    def __call__(self, clean: Tensor) -> Tensor:
        """(B,)."""
        seen = self.network(clean)
        target = _per_sample(self.target.to(seen.device), len(clean), "an edge map")
        if target.shape != seen.shape:
            raise UsageError(f"an edge map of {tuple(target.shape[2:])} does not fit {tuple(seen.shape[2:])} pixels")
        return 0.5 * (seen - target).square().flatten(1).mean(1).to(clean.dtype)

    def rows(self, which: slice) -> Outlines:
        """The maps of these samples."""
        return Outlines(network=self.network, target=_sliced(self.target, which))


__all__ = [
    "IGNORED",
    "ClassLogit",
    "Gram",
    "Identity",
    "Likeness",
    "ObjectLocation",
    "Outlines",
    "SegmentationMap",
    "check_boxes",
    "grams",
]
