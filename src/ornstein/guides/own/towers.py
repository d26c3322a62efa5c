"""What the guide networks are made of: a small convolutional tower on pictures of 64 × 64, and what turns it into one
vector or into a map. Nothing here knows what it is trained for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import UsageError
from ornstein.networks.blocks import Norm, grow, shrink, zeroed

SIDE = 64
"""Every picture is resized to SIDE × SIDE before the first layer."""

WIDTHS = (24, 48, 96)


def fitted(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [−1, 1], any size, as (B, 3, 64, 64) float32; bilinear, antialiased, differentiable.

    Raises `UsageError` for anything but colour pictures.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:] or not images.is_floating_point():
        got = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
        raise UsageError(f"guide networks take float pictures (batch, 3, height, width) in [-1, 1], got {got}")
    return resized(images.float(), SIDE, SIDE)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) to (B, C, height, width), bilinear with antialiasing; itself where the size is right."""
    if x.shape[2:] == (height, width):
        return x
    return functional.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the last convolution starts at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_in = Norm("group", inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_out = Norm("group", outputs)
        self.conv_out = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        h = self.conv_in(functional.silu(self.norm_in(x)))
        return self.shortcut(x) + self.conv_out(functional.silu(self.norm_out(h)))


class Tower(nn.Module):
    """Pictures (B, 3, 64, 64) to features of 32², 16² and 8² pixels with 24, 48 and 96 channels.

    The finest has one convolution only: most of the time would go there.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.stem = nn.Conv2d(12, fine, 3, padding=1)  # squares of 2 × 2 pixels become channels
        self.middle = Block(fine, middle)
        self.coarse = nn.Sequential(Block(middle, coarse), Block(coarse, coarse))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features, finest first."""
        x = functional.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.stem(x)
        middle = self.middle(shrink(fine))
        return fine, middle, self.coarse(shrink(middle))


class Summary(nn.Module):
    """Pictures (B, 3, 64, 64) to vectors (B, outputs): a tower, 4 × 4 places of 48 channels, two linear layers.

    The places are kept apart, for what a drawing shows depends on where it shows it.
    """

    def __init__(self, outputs: int, hidden: int = 160, channels: int = 48) -> None:
        super().__init__()
        self.tower = Tower()
        self.norm = Norm("group", WIDTHS[-1])
        self.squeeze = nn.Conv2d(WIDTHS[-1], channels, 1)
        self.hidden = nn.Linear(16 * channels, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 64, 64) to (B, outputs)."""
        h = self.squeeze(functional.silu(self.norm(self.tower(x)[-1])))
        return self.out(functional.silu(self.hidden(shrink(h).flatten(1))))

    def seen(self) -> dict[str, Tensor]:
        """The weights of all layers but the last: what another network can start from."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("out.")}


class MapOf(nn.Module):
    """Pictures (B, 3, 64, 64) to maps (B, outputs, 64/stride, 64/stride): a tower and the way back up."""

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.stride = stride
        self.tower = Tower()
        self.to_middle = nn.Conv2d(coarse, middle, 1)
        self.up_middle = Block(middle, middle)
        last = middle if stride == 4 else fine
        if stride == 1:
            self.to_fine = nn.Conv2d(middle, fine, 1)
            self.up_fine = Block(fine, fine)
        self.norm = Norm("group", last)
        self.out = nn.Conv2d(last, outputs if stride == 4 else 4 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 64, 64) to (B, outputs, 64/stride, 64/stride)."""
        fine, middle, coarse = self.tower(x)
        h = self.up_middle(middle + grow(self.to_middle(coarse)))
        if self.stride == 1:
            h = self.up_fine(fine + grow(self.to_fine(h)))
        h = self.out(functional.silu(self.norm(h)))
        return h if self.stride == 4 else functional.pixel_shuffle(h, 2)
