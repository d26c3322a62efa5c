"""The published networks of torchvision behind guides, from the user's weights: LR-ASPP, Faster R-CNN, ResNet-50.

torchvision is imported where a network is built, and weights are read as tensors alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from ..errors import CheckpointError, ConfigError
from ..metrics.features import IMAGENET_MEAN, IMAGENET_STD
from ..storage.statedicts import read_state
from .published import FASTER_RCNN_FILE, LRASPP_FILE, RESNET_FILE, weights_file


def _torchvision(module: str) -> Any:
    """A module of torchvision. Raises `ConfigError` where it cannot be imported."""
    import importlib

    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a torchvision of another build of torch raises the latter
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"this network needs torchvision, which cannot be imported here ({reason}): pip install torchvision, the "
            "build that belongs to the installed torch, or use the source own"
        ) from error


def _filled(net: Any, path: Path, what: str, device: torch.device) -> nn.Module:
    """The network with the weights of a file, frozen."""
    state = read_state(path, f"torchvision's weights of {what}")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {what}: give torchvision's own weights") from error
    return net.float().eval().requires_grad_(False).to(device)


def _categories(module: Any, name: str) -> tuple[str, ...]:
    """The class names that torchvision keeps beside a network's weights."""
    return tuple(getattr(module, name).DEFAULT.meta["categories"])


def unit(images: Tensor) -> Tensor:
    """Images in [−1, 1] as float32 in about [0, 1]."""
    return (images.float() + 1.0) / 2.0


def normalised(images: Tensor) -> Tensor:
    """Images in [0, 1] by the mean and spread of ImageNet."""
    mean, std = (torch.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def resized(images: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Stretched to a square of ``side`` pixels."""
    if images.shape[-2:] == (side, side):
        return images
    return fn.interpolate(images, size=(side, side), mode=mode, align_corners=False)


class LRASPP:
    """LR-ASPP with MobileNetV3-Large (Howard et al. 2019): the segmenter of universal guidance, at 520 pixels."""

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        models = _torchvision("torchvision.models.segmentation")
        path = weights_file(weights, LRASPP_FILE, "LR-ASPP")
        self.classes = _categories(models, "LRASPP_MobileNet_V3_Large_Weights")
        net = models.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(self.classes))
        self.net = _filled(net, path, "LR-ASPP", torch.device(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, 21, 520, 520)."""
        return self.net(normalised(resized(unit(images), 520)))["out"]


class ResNet50:
    """ResNet-50 on ImageNet (He et al. 2016), at 224 pixels."""

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        models = _torchvision("torchvision.models")
        path = weights_file(weights, RESNET_FILE, "ResNet-50")
        self.classes = _categories(models, "ResNet50_Weights")
        self.net = _filled(models.resnet50(weights=None), path, "ResNet-50", torch.device(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, 1000)."""
        return self.net(normalised(resized(unit(images), 224)))


class FasterRCNN:
    """Faster R-CNN with ResNet-50 FPN v2 (Ren et al. 2015; Li et al. 2021): the detector of universal guidance.

    Its loss for given boxes is that of training, without the box regression of the head, as in the paper:
    objectness and box regression of the proposals, and classification of the regions. It needs the training mode,
    with batch normalisation left in evaluation. Proposals and regions are sampled at random there; the draw is the
    same at every call, and the global generator is left as it was.
    """

    KEPT = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier")

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu", seed: int = 0) -> None:
        models = _torchvision("torchvision.models.detection")
        path = weights_file(weights, FASTER_RCNN_FILE, "Faster R-CNN")
        self.classes = _categories(models, "FasterRCNN_ResNet50_FPN_V2_Weights")
        net = models.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=len(self.classes))
        self.net, self.seed = _filled(net, path, "Faster R-CNN", torch.device(device)), seed
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()

    def loss(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """(B,), one image at a time: the network averages its losses over a batch."""
        height, width = images.shape[-2:]
        scale = torch.tensor([width, height, width, height], device=images.device, dtype=torch.float32)
        target = {"boxes": boxes.to(images.device).float() * scale, "labels": labels.to(images.device).long()}
        return torch.stack([self._one(image, target) for image in unit(images)])

    def _one(self, image: Tensor, target: dict[str, Tensor]) -> Tensor:
        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            losses = self.net([image], [dict(target)])
        return torch.stack([losses[name] for name in self.KEPT]).sum()


__all__ = ["LRASPP", "FasterRCNN", "ResNet50", "normalised", "resized", "unit"]
