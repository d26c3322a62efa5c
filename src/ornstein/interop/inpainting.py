"""Inpainting networks: nine channels, of which five show a mask and the picture that is to stay.

    shown = [ mask | E(picture·(1 − mask)) ],        mask 1 where the picture is drawn anew,

beside the four of the state (Stable Diffusion's and SDXL's inpainting checkpoints). The mask is brought to the size of
the latents by its nearest pixel, as in their training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UsageError
from ..latents.codec import Codec


def shows_picture(channels: int, codec: Codec | None) -> bool:
    """Whether a network of so many input channels is shown a mask and a picture."""
    return codec is not None and channels == 2 * codec.channels + 1


@torch.no_grad()
def shown_picture(
    codec: Codec, size: tuple[int, int], picture: Tensor | None, mask: Tensor | None, rows: int, device: torch.device
) -> Tensor:
    """What such a network is shown, (rows or 1, c + 1, h, w); without a picture a mask over all of a grey one.

    Args:
        codec: of the latents.
        size: (H, W) of the pictures in pixels.
        picture: (n or 1, 3, H, W) or (3, H, W) in [−1, 1].
        mask: (H, W), (1, H, W) or (n or 1, 1, H, W); 1 where it is drawn anew, from ½ up.
        rows: n.
        device: where the network lives.

    Raises:
        UsageError: one without the other, or of another size.
    """
    if (picture is None) != (mask is None):
        raise UsageError("an inpainting network is shown a picture and a mask: give both, or neither")
    if picture is None or mask is None:
        picture, mask = torch.zeros(1, 3, *size), torch.ones(1, 1, *size)
    picture = picture[None] if picture.ndim == 3 else picture
    mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 4 else mask
    for name, value, channels in (("picture", picture, 3), ("mask", mask, 1)):
        if value.ndim != 4 or tuple(value.shape[1:]) != (channels, *size) or len(value) not in (1, rows):
            raise UsageError(
                f"{name} has the shape {tuple(value.shape)}: it needs ({rows} or 1, {channels}, {size[0]}, {size[1]}), "
                "the size of the pictures that are made"
            )
    count = max(len(picture), len(mask))
    picture = picture.to(device)
    free = (mask.to(device) >= 0.5).to(picture.dtype)
    kept = picture * (1.0 - free)
    latent = codec.encode(kept)
    small = functional.interpolate(free, size=latent.shape[-2:])
    return torch.cat([small.expand(count, -1, -1, -1), latent.expand(count, -1, -1, -1)], dim=1)
