"""The five guide networks. Each takes float pictures (B, 3, H, W) in [−1, 1] of any size and answers in float32.

They are modules, but not for training by their users: `ornstein.guides.own.files.to_estimate` gives them frozen and in
evaluation mode. All are differentiable in the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import UsageError
from ornstein.guides.own import boxes as boxing
from ornstein.guides.own.towers import MapOf, Summary, fitted, resized
from ornstein.networks.text import UNKNOWN, TextConfig, TextEncoder


class Guide(nn.Module):
    """A network with a kind, built from settings that JSON can hold."""

    kind: ClassVar[str]

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make it again."""
        return {}

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters())


class Segmenter(Guide):
    """Which part of a drawing every pixel shows."""

    kind = "segmentation"

    def __init__(self, *, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.map = MapOf(len(self.classes), stride=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make it again."""
        return {"classes": list(self.classes)}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W), as large as the pictures: softmax over K."""
        with torch.autocast(images.device.type, enabled=False):
            return resized(self.map(fitted(images)), *images.shape[2:])


class Classifier(Guide):
    """What a drawing is like: one class out of every group, such as ``top/crown`` and ``colour/green``.

    The logits are log-probabilities normalised within each group: those of a group are log p(class | picture), and the
    softmax over *all* classes is p divided by the number of groups, so that the cross entropy of a class is the right
    one up to a constant whichever way it is taken.
    """

    kind = "classifier"

    def __init__(self, *, groups: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.groups: dict[str, tuple[str, ...]] = {group: tuple(values) for group, values in groups.items()}
        self.classes = tuple(f"{group}/{value}" for group, values in self.groups.items() for value in values)
        self.summary = Summary(len(self.classes))

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make it again."""
        return {"groups": {group: list(values) for group, values in self.groups.items()}}

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Each group and where its classes stand."""
        start = 0
        for group, values in self.groups.items():
            yield group, slice(start, start + len(values))
            start += len(values)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K), normalised in every group."""
        with torch.autocast(images.device.type, enabled=False):
            raw = self.summary(fitted(images))
            return torch.cat([raw[:, which].log_softmax(1) for _, which in self.slices()], dim=1)


class Embedder(Guide):
    """Which creature it is, whatever its colours and its background: unit vectors, alike for the same creature.

    The *identity* of a creature is the choice of its body, top, eyes, mouth, pattern and cheeks – the shapes – as a
    face stays the same in another light. The angle between two vectors says how much of it two pictures share.
    """

    kind = "identity"
    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.summary = Summary(self.width + 1)

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, 64), and the logit (B,) that there is a creature at all."""
        with torch.autocast(images.device.type, enabled=False):
            raw = self.summary(fitted(images))
            return functional.normalize(raw[:, :-1], dim=1), raw[:, -1]

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors (B, 64); NaN in the rows where no creature was found. Such rows pass no gradient."""
        vectors, found = self.parts(images)
        return torch.where((found > 0)[:, None], vectors, torch.full_like(vectors, float("nan")))


class TextImage(Guide):
    """How well words fit a drawing: unit vectors of both, and the scale of their products."""

    kind = "text"
    width = 128

    def __init__(self, *, vocabulary: Sequence[str], length: int = 40) -> None:
        super().__init__()
        self.tower = Summary(self.width)
        self.words = TextEncoder(TextConfig(vocabulary=tuple(vocabulary), length=length))
        self.head = nn.Linear(self.words.config.width, self.width)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make it again."""
        return {"vocabulary": list(self.words.config.vocabulary), "length": self.words.config.length}

    @property
    def scale(self) -> float:
        """The factor on cosines that makes logits of them; at most 100, as CLIP's."""
        return float(self.temperature().detach())

    def temperature(self) -> Tensor:
        """The same as a tensor."""
        return self.log_scale.exp().clamp(max=100.0)

    def image(self, images: Tensor) -> Tensor:
        """Unit vectors (B, 128)."""
        with torch.autocast(images.device.type, enabled=False):
            return functional.normalize(self.tower(fitted(images)), dim=1)

    def text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (K, 128) of K texts, e.g. ``["a green critter with a crown on navy"]``.

        Raises `UsageError` for a text none of whose words is known: it would mean nothing.
        """
        if isinstance(texts, str):
            raise UsageError(f"text() takes a list of texts, got the text {texts!r}: put it in brackets")
        ids = self.words.config.encode(texts)
        for text, row in zip(texts, ids, strict=True):
            if not bool((row > UNKNOWN).any()):
                known = ", ".join(self.words.config.vocabulary[:12])
                raise UsageError(f"text {text!r} has no word that this network knows (it knows {known}, …)")
        return self.encoded(ids)

    def encoded(self, ids: Tensor) -> Tensor:
        """Unit vectors (K, 128) of word ids (K, L)."""
        with torch.autocast(self.log_scale.device.type, enabled=False):
            tokens, mask = self.words(ids)
            weight = mask[:, :, None].to(tokens)
            mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1.0)
            return functional.normalize(self.head(mean), dim=1)

    def forward(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Logits (B, K): the scaled cosines of pictures and texts."""
        return self.temperature() * self.image(images) @ self.text(texts).T


class Detector(Guide):
    """Where things are: an anchor-free detector on a grid of 16 × 16 places.

    Every place answers, for each class, the logit of being in the middle of such a thing, and the distances to the four
    sides of its box. Boxes are x0, y0, x1, y1 as fractions of width and height.
    """

    kind = "detection"

    def __init__(self, *, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.map = MapOf(5 * len(self.classes), stride=4)

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make it again."""
        return {"classes": list(self.classes)}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, N, K) and the box of each class (B, N, K, 4) at N = 256 places, row by row."""
        with torch.autocast(images.device.type, enabled=False):
            raw = self.map(fitted(images)).flatten(2).transpose(1, 2).float()
            logits, sides = raw.split([len(self.classes), 4 * len(self.classes)], dim=2)
            return logits - boxing.PRIOR, boxing.decoded(sides.unflatten(2, (-1, 4)))

    def loss(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """How far the pictures are from showing exactly these things: the loss of training, (B,).

        ``boxes`` (K, 4) and ``labels`` (K,) int64 are the same for the whole batch. Raises `UsageError` for boxes that
        are no boxes and labels that are no classes.
        """
        boxes, labels = self.checked(boxes, labels)
        count = len(images)
        target = boxes.expand(count, -1, -1), labels.expand(count, -1)
        return boxing.loss(*self(images), *(t.to(images.device) for t in target))

    def checked(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes in float32 and the labels, if they can be meant."""
        boxes, labels = torch.as_tensor(boxes).float(), torch.as_tensor(labels)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1] or len(labels) == 0:
            raise UsageError(
                f"boxes must be (K, 4) with K labels, K > 0, got {tuple(boxes.shape)} with {tuple(labels.shape)}: "
                "give x0 y0 x1 y1 and one class for each"
            )
        inside = bool(((boxes >= 0) & (boxes <= 1)).all())
        if not inside or bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            raise UsageError(f"boxes must have 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, got {boxes.tolist()}")
        if labels.is_floating_point() or bool(((labels < 0) | (labels >= len(self.classes))).any()):
            raise UsageError(f"labels must be 0 … {len(self.classes) - 1} ({', '.join(self.classes)}), got {labels}")
        return boxes, labels.to(torch.int64)

    @torch.no_grad()
    def detect(self, images: Tensor, threshold: float = 0.3) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What is found in each picture: boxes (M, 4), labels (M,), probabilities (M,), the surest first."""
        logits, boxes = self(images)
        return [boxing.chosen(*row, threshold) for row in zip(logits, boxes, strict=True)]


GUIDES: dict[str, type[Guide]] = {g.kind: g for g in (Segmenter, Classifier, Embedder, TextImage, Detector)}
"""The networks by kind: segmentation, classifier, identity, text, detection."""
