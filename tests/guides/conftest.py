"""Small networks with random weights in place of the trained ones: the laws of guides hold for any network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn


def _seeded(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class FakeSegmenter:
    classes = ("background", "body", "eyes")

    def __call__(self, images: Tensor) -> Tensor:
        kernel = _seeded((3, 3, 3, 3), 0).to(images.dtype)
        return fn.conv2d(images, kernel, padding=1)[..., ::2, ::2]


class FakeClassifier:
    classes = ("green critter", "blue critter", "red critter", "top/crown")

    def __call__(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(2).mean(2) @ _seeded((3, 4), 1).to(images.dtype)) * 3


class FakeEmbedder:
    """Finds nothing in dark pictures."""

    def __call__(self, images: Tensor) -> Tensor:
        found = torch.cat([images.mean((2, 3)), images.square().mean((2, 3))], 1) @ _seeded((6, 5), 2).to(images.dtype)
        dark = images.mean((1, 2, 3)) < -0.9
        return torch.where(dark[:, None], torch.nan, found)


class FakeTextImage:
    scale = 10.0

    def image(self, images: Tensor) -> Tensor:
        small = fn.adaptive_avg_pool2d(images, 2).flatten(1)
        return small @ _seeded((12, 4), 3).to(images.dtype)

    def text(self, texts: list[str]) -> Tensor:
        return torch.cat([_seeded((1, 4), sum(text.encode())) for text in texts])


class FakeDetector:
    classes = ("eyes", "mouth")

    def loss(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        side = images.shape[-1]
        for box, label in zip((boxes * side).round().int().tolist(), labels.tolist(), strict=True):
            inside = images[..., box[1] : box[3], box[0] : box[2]]
            total = total + (inside - 0.3 * (1 + label)).square().flatten(1).mean(1)
        return total


class FakeEdges(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(fn.conv2d(images, _seeded((1, 3, 3, 3), 4).to(images.dtype), padding=1))

    def features(self, images: Tensor) -> list[Tensor]:
        first = torch.tanh(fn.conv2d(images, _seeded((4, 3, 3, 3), 5).to(images.dtype)))
        return [first, torch.tanh(fn.conv2d(first, _seeded((5, 4, 3, 3), 6).to(images.dtype), stride=2))]


OWN = {
    "segmenter": FakeSegmenter,
    "classifier": FakeClassifier,
    "embedder": FakeEmbedder,
    "text_image": FakeTextImage,
    "detector": FakeDetector,
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own networks are the small ones above."""
    own = pytest.importorskip("ornstein.guides.own")
    for name, network in OWN.items():
        monkeypatch.setattr(own, name, lambda weights=None, network=network: network())
