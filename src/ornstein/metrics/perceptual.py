"""Perceptual distances between pairs of images, fit to be trained on: frozen networks, live gradients, float32.

    d(a, b) = Σ_k  mean over pixels of  Σ_c w_kc·(f̂_kc(a) − f̂_kc(b))²,        f̂ = f/√(|f|² + 10⁻⁸) along the channels

with the features f_k of a frozen network and non-negative weights w (Zhang et al. 2018, arXiv 1801.03924, eq. 1).
Images are floating point in [−1, 1]; the shift and scale that the network was trained with happen inside. Every
distance carries a name, and only the published weights of LPIPS make it LPIPS.

>>> import torch
>>> from ornstein.metrics import perceptual
>>> body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
>>> distance = perceptual.matching(body, ["1"], name="toy")
>>> a = torch.zeros(2, 3, 32, 32)
>>> distance(a, a)
tensor([0., 0.])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from ornstein.errors import CheckpointError, ConfigError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# LPIPS's own rounding of the two, for images in [−1, 1].
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8
_LITE0_TAPS = (0, 2, 4, 10, 15)  # the last block at each resolution: strides 2, 4, 8, 16, 32

Taps = Callable[[Tensor], Sequence[Tensor]]


class PerceptualDistance(nn.Module):
    """``distance(a, b)``: images (B, 3, H, W) in [−1, 1] to distances (B,), float32; see the module's formula.

    ``taps`` maps the network's input (B, 3, H', W') to a list of features (B, C_k, H_k, W_k), or (B, C_k) without
    pixels. ``heads`` are weights of the channels, (C_k,) each, by default 1; ``weights`` one number for each feature,
    by default 1 with heads and 1/K without. ``normalise=False`` leaves out the hat and takes the mean over channels
    instead of the sum: plain feature matching.
    ``side``: images whose shorter side is less are enlarged to it (bilinear), for a deep network's last features of a
    small image are a single pixel. ``scales`` is how often the pair is looked at: whole, halved, quartered …; the
    distances are averaged.

    The network is in evaluation mode, its weights take no gradient, and it runs in float32 whatever autocast is set
    to; gradients flow to both images. Row i of the answer is a function of row i alone.

    Raises `UsageError` for images of another shape or kind, and of unequal shapes.
    """

    def __init__(
        self,
        name: str,
        taps: Taps,
        *,
        module: nn.Module,
        shift: Sequence[float],
        scale: Sequence[float],
        heads: Sequence[Tensor] | None = None,
        weights: Sequence[float] | None = None,
        normalise: bool = True,
        side: int = 64,
        scales: int = 1,
    ) -> None:
        super().__init__()
        if side < 1 or scales < 1:
            raise ConfigError(f"side and scales must be at least 1, got {side} and {scales}")
        if any(bool((head < 0).any()) for head in heads or ()) or any(weight < 0 for weight in weights or ()):
            raise ConfigError("the weights of a distance must not be negative")
        self.name, self.normalise, self.side, self.scales = name, normalise, side, scales
        self.module = module.float().eval().requires_grad_(False)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).reshape(1, 3, 1, 1), persistent=False)
        self.heads = nn.ParameterList([nn.Parameter(head.float(), requires_grad=False) for head in heads or ()])
        self.weights = None if weights is None else tuple(weights)
        self._taps = taps

    def train(self, mode: bool = True) -> PerceptualDistance:
        """A measure does not learn: it stays in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances, (B,)."""
        for images in (a, b):
            if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
                raise UsageError(
                    f"a perceptual distance compares floating-point images (B, 3, H, W) in [-1, 1], got {images.dtype} "
                    f"{tuple(images.shape)}"
                )
        if a.shape != b.shape:
            raise UsageError(f"the two sets of images differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
        with torch.autocast(a.device.type, enabled=False):
            a, b = a.float(), b.float()
            total = self._once(a, b)
            for _ in range(1, self.scales):
                if min(a.shape[-2:]) < 2:
                    raise UsageError(f"images of {tuple(a.shape[-2:])} pixels cannot be halved: lower scales")
                a, b = fn.avg_pool2d(a, 2), fn.avg_pool2d(b, 2)
                total = total + self._once(a, b)
            return total / self.scales

    def _once(self, a: Tensor, b: Tensor) -> Tensor:
        """At one scale."""
        ours, theirs = self._features(a), self._features(b)
        count = len(ours)
        for what, given in (("heads", len(self.heads)), ("weights", len(self.weights or ()))):
            if given not in (0, count):
                raise ConfigError(f"{self.name} has {count} features but {given} {what}: give one for each")
        weights = self.weights or ((1.0,) if self.heads else (1.0 / count,)) * count
        total = a.new_zeros(a.shape[0])
        for index, (f, g) in enumerate(zip(ours, theirs, strict=True)):
            error = ((_unit(f) - _unit(g)) if self.normalise else f - g).square()  # (B, C, pixels)
            if self.heads:
                error = error * self.heads[index][:, None]
            total = total + weights[index] * (error.sum(1) if self.normalise else error.mean(1)).mean(1)
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        """The features of images, (B, C_k, pixels) each."""
        x = enlarged(x, self.side)
        taps = self._taps((x - self.shift) / self.scale)
        return [tap.float().flatten(2) if tap.ndim > 2 else tap.float()[..., None] for tap in taps]

    def extra_repr(self) -> str:
        """The name and the sizes."""
        return f"{self.name!r}, side={self.side}, scales={self.scales}"


def enlarged(x: Tensor, side: int) -> Tensor:
    """Images whose shorter side is less than ``side``, enlarged until it is (bilinear); others as they are."""
    height, width = x.shape[-2:]
    if min(height, width) >= side:
        return x
    factor = side / min(height, width)
    size = (round(height * factor), round(width * factor))
    return fn.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _unit(feature: Tensor) -> Tensor:
    """Unit length along the channels; smooth at zero."""
    return feature * (feature.square().sum(1, keepdim=True) + _EPSILON).rsqrt()


def lpips(
    backbone: str | Path = "lite0",
    *,
    trunk: str | Path | None = None,
    heads: str | Path | None = None,
    side: int = 64,
    scales: int = 1,
) -> PerceptualDistance:
    """LPIPS on ``vgg``, ``alex`` or ``squeeze`` from the user's weights, or the like of it on what is always there.

    * ``"lite0"``, the default: the formula of LPIPS on five features of EfficientNet-lite0, whose weights come with a
      dependency, all channels weighted alike. It is no LPIPS, and is called "lite0".
    * ``"vgg"``, ``"alex"``, ``"squeeze"``: LPIPS 0.1. ``trunk`` is torchvision's state dict (vgg16-397923af,
      alexnet-owt-7be5be79, squeezenet1_1-b8a52dc0), by default from torch hub's cache; ``heads`` are the linear weights
      (vgg.pth, alex.pth, squeeze.pth), by default from an installed ``lpips`` or ``torchmetrics``.
    * a path: of the trunk's file, or of a folder that holds it, and in it the heads, if they are there.

    Files are safetensors, or .pth read without running code. Images smaller than ``side`` are enlarged to it.

    Raises `CheckpointError` for weights that are missing, damaged or another network's.
    """
    if isinstance(backbone, str) and backbone == "lite0":
        if trunk is not None or heads is not None:
            raise ConfigError("lite0 has its own weights: drop trunk and heads, or ask for 'vgg', 'alex' or 'squeeze'")
        return _lite0(side, scales)
    from ornstein.metrics import lpipsnets

    if isinstance(backbone, str) and backbone in lpipsnets.KINDS:
        kind = backbone
    else:
        path = Path(backbone).expanduser()
        if not path.exists():
            names = ", ".join(lpipsnets.KINDS)
            raise CheckpointError(
                f"no perceptual network {str(backbone)!r}: choose lite0, {names}, or give the path of weights"
            )
        trunk = trunk if trunk is not None else _trunk_in(path)
        kind = lpipsnets.guess(Path(trunk))
        beside = [Path(trunk).with_name(f"{kind}{suffix}") for suffix in (".pth", ".safetensors")]
        heads = heads if heads is not None else next((file for file in beside if file.is_file()), None)
    net, weights, name = lpipsnets.load_trunk(kind, trunk, heads)
    return PerceptualDistance(
        name, net, module=net, shift=_LPIPS_SHIFT, scale=_LPIPS_SCALE, heads=weights, side=side, scales=scales
    )


def _trunk_in(path: Path) -> Path:
    """The trunk's file in a folder."""
    from ornstein.metrics.lpipsnets import KINDS

    if path.is_file():
        return path
    for kind in KINDS.values():
        for name in (kind.trunk, f"{Path(kind.trunk).stem}.safetensors"):
            if (path / name).is_file():
                return path / name
    names = ", ".join(kind.trunk for kind in KINDS.values())
    raise CheckpointError(f"{path} holds none of {names}: name the file itself")


def _lite0(side: int, scales: int) -> PerceptualDistance:
    """Five features of EfficientNet-lite0, the input (RGB·255 − 127)/128 that it was trained with."""
    from ornstein.metrics.features import lite0

    net = cast("Any", lite0().module)

    def taps(x: Tensor) -> list[Tensor]:
        x = net._swish(net._bn0(net._conv_stem(x)))
        out: list[Tensor] = []
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index in _LITE0_TAPS:
                out.append(x)
        return out

    # (127.5·(x + 1) − 127)/128
    return PerceptualDistance(
        "lite0", taps, module=net, shift=(-0.5 / 127.5,) * 3, scale=(128 / 127.5,) * 3, side=side, scales=scales
    )


def matching(
    module: nn.Module,
    layers: Sequence[str] | None = None,
    *,
    name: str,
    weights: Sequence[float] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    normalise: bool = False,
    side: int = 64,
    scales: int = 1,
) -> PerceptualDistance:
    """Feature matching on any network of yours: the mean squared difference of its features, summed with ``weights``.

    ``layers`` are names of submodules (``dict(module.named_modules())`` lists them) whose outputs are compared; None
    takes what the module itself returns, a tensor or a list of them (timm's ``features_only=True``, DINO, CLIP's image
    tower). ``weights`` is one number a feature, by default 1/K. ``mean`` and ``std`` are those of images in [0, 1] that
    the network was trained with. ``normalise=True`` compares directions, as LPIPS does. The module is frozen: give a
    copy of one that is still to be trained.

    Raises `ConfigError` for a layer that is not there, and for weights of another number.

    >>> distance = matching(torch.nn.Conv2d(3, 4, 3), name="conv", weights=[2.0])
    >>> distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)).item()
    0.0
    """
    if layers is not None:
        known = dict(module.named_modules())
        for layer in layers:
            if layer not in known:
                import difflib

                near = difflib.get_close_matches(layer, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "named_modules() lists what there is"
                raise ConfigError(f"{name} has no layer {layer!r}: {hint}")

    def taps(x: Tensor) -> list[Tensor]:
        return _returned(module(x), name) if layers is None else _tapped(module, layers, x)

    return PerceptualDistance(
        name,
        taps,
        module=module,
        # Images in [−1, 1] to (x/2 + ½ − mean)/std.
        shift=[2 * m - 1 for m in mean],
        scale=[2 * s for s in std],
        weights=weights,
        normalise=normalise,
        side=side,
        scales=scales,
    )


def _returned(answer: object, name: str) -> list[Tensor]:
    """A network's own output as a list of features."""
    if isinstance(answer, Tensor):
        return [answer]
    if isinstance(answer, list | tuple) and answer and all(isinstance(part, Tensor) for part in answer):
        return list(answer)
    raise UsageError(f"{name} returns a {type(answer).__name__}: name its layers, or wrap it to return tensors")


def _tapped(module: nn.Module, layers: Sequence[str], x: Tensor) -> list[Tensor]:
    """The outputs of some submodules in one forward pass."""
    seen: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, object, object], None]:
        def hook(submodule: nn.Module, given: object, answer: object) -> None:
            del submodule, given
            # Copied: the next layer may write over it.
            seen[layer] = _returned(answer, layer)[0].clone()

        return hook

    known = dict(module.named_modules())
    hooks = [known[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if layer not in seen:
            raise ConfigError(f"layer {layer!r} is not visited in a forward pass: leave it out")
    return [seen[layer] for layer in layers]
