"""The InceptionV3 that FID is defined on, and how its weights are found and read.

Szegedy et al. 2016 (arXiv 1512.00567) as frozen in TensorFlow's graph of 2015-12-05. It differs from the network that
torchvision calls Inception v3 in three ways: 1008 classes, average pooling that leaves padding out of its count, and
max pooling in the very last block. Parameter names follow the published PyTorch state dict.
"""

# ruff: noqa: D102 (the class says what forward does)

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from ornstein.errors import CheckpointError
from ornstein.storage.statedicts import read_state

STANDARD = "inception-2015-12-05"
STANDARD_SHA256 = "6726825d"  # torch hub's convention: the file name ends in the first digits of its SHA-256
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")

_Size = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution without bias, batch normalisation (ε = 10⁻³), rectifier."""

    def __init__(self, inputs: int, outputs: int, kernel: _Size, stride: int = 1, padding: _Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return fn.relu(self.bn(self.conv(x)), inplace=True)


def _along(inputs: int, outputs: int, axis: str, length: int) -> Conv:
    """A one-dimensional convolution, "w"ide or "h"igh, that keeps the shape."""
    half = length // 2
    return Conv(inputs, outputs, *(((1, length), 1, (0, half)) if axis == "w" else ((length, 1), 1, (half, 0))))


def _mean_pool(x: Tensor) -> Tensor:
    return fn.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Wide5(nn.Module):
    """35 × 35 block: 1 × 1, 5 × 5, two 3 × 3, pooled ("A" in torchvision)."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, three, self.branch_pool(_mean_pool(x))), 1)


class Halve35(nn.Module):
    """35 → 17 ("B")."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), three, fn.max_pool2d(x, 3, stride=2)), 1)


class Wide7(nn.Module):
    """17 × 17 block with 1 × 7 and 7 × 1 convolutions ("C")."""

    def __init__(self, inputs: int, middle: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, middle, 1)
        self.branch7x7_2 = _along(middle, middle, "w", 7)
        self.branch7x7_3 = _along(middle, 192, "h", 7)
        self.branch7x7dbl_1 = Conv(inputs, middle, 1)
        self.branch7x7dbl_2 = _along(middle, middle, "h", 7)
        self.branch7x7dbl_3 = _along(middle, middle, "w", 7)
        self.branch7x7dbl_4 = _along(middle, middle, "h", 7)
        self.branch7x7dbl_5 = _along(middle, 192, "w", 7)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat((self.branch1x1(x), seven, twice, self.branch_pool(_mean_pool(x))), 1)


class Halve17(nn.Module):
    """17 → 8 ("D")."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _along(192, 192, "w", 7)
        self.branch7x7x3_3 = _along(192, 192, "h", 7)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat((self.branch3x3_2(self.branch3x3_1(x)), seven, fn.max_pool2d(x, 3, stride=2)), 1)


class Split8(nn.Module):
    """8 × 8 block whose 3 × 3 branches end side by side in 1 × 3 and 3 × 1 ("E")."""

    def __init__(self, inputs: int, *, max_pool: bool) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = _along(384, 384, "w", 3)
        self.branch3x3_2b = _along(384, 384, "h", 3)
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _along(384, 384, "w", 3)
        self.branch3x3dbl_3b = _along(384, 384, "h", 3)
        self.branch_pool = Conv(inputs, 192, 1)
        self._max_pool = max_pool

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = fn.max_pool2d(x, 3, stride=1, padding=1) if self._max_pool else _mean_pool(x)
        return torch.cat(
            (
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(twice),
                self.branch3x3dbl_3b(twice),
                self.branch_pool(pooled),
            ),
            1,
        )


class Inception(nn.Module):
    """Images (B, 3, 299, 299), scaled to about [−1, 1], to pooled features (B, 2048). 23,850,960 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = Wide5(192, 32)
        self.Mixed_5c = Wide5(256, 64)
        self.Mixed_5d = Wide5(288, 64)
        self.Mixed_6a = Halve35(288)
        self.Mixed_6b = Wide7(768, 128)
        self.Mixed_6c = Wide7(768, 160)
        self.Mixed_6d = Wide7(768, 160)
        self.Mixed_6e = Wide7(768, 192)
        self.Mixed_7a = Halve17(768)
        self.Mixed_7b = Split8(1280, max_pool=False)
        self.Mixed_7c = Split8(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x)["pooled"]

    def heads(self, x: Tensor) -> dict[str, Tensor]:
        """Everything that a metric is defined on.

        * pooled (B, 2048): the mean of the last block, for FID and KID.
        * spatial (B, 2023): the first 7 channels of Mixed_6d at 17 × 17 – ``mixed_6/conv`` in the graph of 2015 – for
          sFID (Nash et al. 2021, arXiv 2103.03841, as evaluated since Dhariwal and Nichol 2021).
        * classes (B, 1008): logits without their bias, as the published inception scores use them.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(fn.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(fn.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = x[:, :7].flatten(1)
        pooled = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x)))).mean((2, 3))
        return {"pooled": pooled, "spatial": spatial, "classes": fn.linear(pooled, self.fc.weight)}


def load_inception(weights: str | Path | None = None) -> tuple[Inception, str]:
    """The network with its weights, and the name it deserves (see `ornstein.metrics.features.inception`)."""
    path = find_weights(weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with torch.device("meta"):
        net = Inception()
    state = read_state(path, FILES[0])
    # Some published copies lack the counters of seen batches, which evaluation never reads.
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros(value.shape, dtype=value.dtype))
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise CheckpointError(
            f"{path} is not the state dict of FID's InceptionV3 ({first[:160]}): give {FILES[0]}"
        ) from error
    standard = digest.startswith(STANDARD_SHA256)
    return net.float(), STANDARD if standard else f"inception-{digest[:8]}"


def find_weights(weights: str | Path | None = None) -> Path:
    """The weights file: ``weights`` itself, or the first of the published names in torch hub's cache."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise CheckpointError(f"no Inception weights at {str(path)!r}: give the path of {FILES[0]}")
        return path
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    folders = dict.fromkeys((hub, Path("~/.cache/torch/hub/checkpoints").expanduser()))
    for folder in folders:
        for name in FILES:
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(
        f"no Inception weights: looked for {' or '.join(FILES)} in {', '.join(map(str, folders))}; "
        "download either file and name its path, or use the offline features 'lite0'"
    )
