"""The three networks that LPIPS is defined on, and how their weights are found and read.

Zhang et al. 2018 (arXiv 1801.03924): AlexNet (Krizhevsky 2014), VGG-16 (Simonyan & Zisserman 2015) and SqueezeNet 1.1
(Iandola et al. 2016), each as the list of features that the distance compares. Layers carry the numbers of
torchvision's ``features``, so that its state dicts fit as they are; classifier weights in a file are left aside.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ornstein.errors import CheckpointError, ConfigError
from ornstein.storage.statedicts import read_state


class Fire(nn.Module):
    """SqueezeNet's module: a 1 × 1 bottleneck, then 1 × 1 and 3 × 3 side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, 2·expanded, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat((self.expand1x1(x), self.expand3x3(x)), 1).relu()


def _alex() -> list[nn.Module]:
    layers: list[nn.Module] = []
    rows = ((3, 64, 11, 4, 2, True), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, False), (384, 256, 3, 1, 1, False))
    for inputs, outputs, kernel, stride, padding, pooled in (*rows, (256, 256, 3, 1, 1, False)):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if pooled else []
    return layers


def _vgg() -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for stage, (outputs, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [nn.MaxPool2d(2, 2)] if stage else []
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
    return layers


def _squeeze() -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
    for row in (
        (64, 16, 64),
        (128, 16, 64),
        None,
        (128, 32, 128),
        (256, 32, 128),
        None,
        (256, 48, 192),
        (384, 48, 192),
    ):
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True)] if row is None or len(layers) == 2 else []
        layers += [] if row is None else [Fire(*row)]
    return [*layers, Fire(384, 64, 256), Fire(512, 64, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One of the three: where its features are tapped, their channels, and the published files."""

    taps: tuple[int, ...]
    widths: tuple[int, ...]
    trunk: str  # torchvision's file, whose name ends in the first digits of its SHA-256
    heads: str  # SHA-256 of the published linear heads, version 0.1

    @property
    def digest(self) -> str:
        """The first digits of the trunk's SHA-256."""
        return self.trunk.rpartition("-")[2].removesuffix(".pth")


KINDS = {
    "alex": Backbone(
        taps=(1, 4, 7, 9, 11),
        widths=(64, 192, 384, 256, 256),
        trunk="alexnet-owt-7be5be79.pth",
        heads="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "vgg": Backbone(
        taps=(3, 8, 15, 22, 29),
        widths=(64, 128, 256, 512, 512),
        trunk="vgg16-397923af.pth",
        heads="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "squeeze": Backbone(
        taps=(1, 4, 7, 9, 10, 11, 12),
        widths=(64, 128, 256, 384, 384, 512, 512),
        trunk="squeezenet1_1-b8a52dc0.pth",
        heads="4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    ),
}

_LAYERS = {"alex": _alex, "vgg": _vgg, "squeeze": _squeeze}


class Trunk(nn.Module):
    """The convolutions of one of the three networks: (B, 3, H, W) to the list of tapped features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.features = nn.ModuleList(_LAYERS[kind]())

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features, finest first: (B, widths[k], H_k, W_k)."""
        out: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in KINDS[self.kind].taps:
                out.append(x)
        return out


def load_trunk(kind: str, trunk: str | Path | None, heads: str | Path | None) -> tuple[Trunk, list[Tensor], str]:
    """The network, its heads (one weight a channel and tap) and the name that they deserve.

    Files that are not named are looked for: the trunk in torch hub's cache, the heads in the installed packages
    ``lpips`` and ``torchmetrics``, which carry them. The name is "lpips-KIND" for the published files
    alone, and else ends in the first digits of a digest of both.

    Raises `CheckpointError` where a file is missing, damaged, or another network's.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown LPIPS network {kind!r}: choose one of {', '.join(KINDS)}")
    known = KINDS[kind]
    trunk_path = _named(trunk, known.trunk) if trunk is not None else _cached(known.trunk)
    heads_path = _named(heads, f"{kind}.pth") if heads is not None else _packaged(kind)
    with torch.device("meta"):
        net = Trunk(kind)
    state = {key: value for key, value in read_state(trunk_path).items() if key.startswith("features.")}
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise CheckpointError(
            f"{trunk_path} does not hold the weights of {kind} ({first[:160]}): give {known.trunk}"
        ) from error
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (trunk_path, heads_path)]
    standard = sums[0].startswith(known.digest) and sums[1] == known.heads
    name = f"lpips-{kind}" if standard else f"lpips-{kind}-{hashlib.sha256(''.join(sums).encode()).hexdigest()[:8]}"
    return net.float(), read_heads(heads_path, known), name


def read_heads(path: Path, kind: Backbone) -> list[Tensor]:
    """The linear heads of a file with keys such as ``lin0.model.1.weight``, as (C,) each."""
    found: dict[int, Tensor] = {}
    for key, value in read_state(path).items():
        match = re.match(r"lins?\.?(\d+)\..*weight$", key)
        if match:
            found[int(match[1])] = value.float().flatten()
    heads = [found[index] for index in sorted(found)]
    if tuple(head.numel() for head in heads) != kind.widths:
        sizes = [head.numel() for head in heads]
        raise CheckpointError(f"{path} holds heads of {sizes} channels, not {list(kind.widths)}: give those of LPIPS")
    return heads


def guess(path: Path) -> str:
    """Which of the three a trunk's file holds."""
    state = read_state(path)
    for kind in KINDS:
        with torch.device("meta"):
            own = Trunk(kind).state_dict()
        if all(key in state and state[key].shape == value.shape for key, value in own.items()):
            return kind
    raise CheckpointError(
        f"{path} holds no LPIPS network: give torchvision's {' or '.join(k.trunk for k in KINDS.values())}"
    )


def _named(path: str | Path, wanted: str) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"no weights at {str(path)!r}: give the path of {wanted}")
    return path


def _cached(name: str) -> Path:
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    folders = dict.fromkeys((hub, Path("~/.cache/torch/hub/checkpoints").expanduser()))
    for folder in folders:
        for candidate in (folder / name, folder / f"{Path(name).stem}.safetensors"):
            if candidate.is_file():
                return candidate
    raise CheckpointError(
        f"no weights {name}: looked in {', '.join(map(str, folders))}; download the file and name its path, or use the "
        "offline distance 'lite0'"
    )


def _packaged(kind: str) -> Path:
    """The heads as two published packages carry them; nothing of the packages is imported."""
    for package, place in (
        ("lpips", f"lpips/weights/v0.1/{kind}.pth"),
        ("torchmetrics", f"torchmetrics/functional/image/lpips_models/{kind}.pth"),
    ):
        try:
            path = Path(str(importlib.metadata.distribution(package).locate_file(place)))
        except importlib.metadata.PackageNotFoundError:
            continue
        if path.is_file():
            return path
    raise CheckpointError(
        f"no linear heads of LPIPS for {kind}: give heads=PATH of {kind}.pth, install lpips, or use 'lite0'"
    )
