"""What a pipeline's network is: refused where nobody would give it its inputs, and the shape of its states."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .inpainting import shows_picture
from .networks import PipelineKind, guidance_width


def check_network(net: Any, kind: PipelineKind, name: str, pipe: Any) -> None:
    """Refuse networks with inputs that nobody would give them."""
    config = net.config
    if kind in ("flux", "sd3"):
        return
    if (embed := getattr(config, "class_embed_type", None)) is not None:
        raise UsageError(f"the network of this {name} has class_embed_type {embed!r}, no labels: not supported")
    if kind != "text" and kind != "text-xl" and guidance_width(net) is not None:
        raise UsageError(f"the network of this {name} takes a guidance weight as an input: not supported")
    if getattr(config, "encoder_hid_dim_type", None) not in (None, "text_proj"):
        raise UsageError(f"the network of this {name} needs {config.encoder_hid_dim_type}: not supported")
    added = getattr(config, "addition_embed_type", None)
    if (kind == "text" and added is not None) or (kind == "text-xl" and added != "text_time"):
        raise UsageError(f"the network of this {name} has addition_embed_type {added!r}: not supported")
    if kind == "text-xl":
        _check_label_vector(net, pipe, name)


def _check_label_vector(net: Any, pipe: Any, name: str) -> None:
    """Refuse a network of SDXL that takes another number of sizes than the pipeline says."""
    encoder, config = pipe.text_encoder_2, net.config
    width = getattr(getattr(encoder, "config", None), "projection_dim", None)
    if width is None:
        return
    taken = (net.add_embedding.linear_1.in_features - int(width)) // int(config.addition_time_embed_dim)
    given = 5 if getattr(pipe.config, "requires_aesthetics_score", False) else 6
    if taken != given:
        raise UsageError(
            f"the network of this {name} takes {taken} sizes beside its caption and is given {given}: a refiner needs "
            "requires_aesthetics_score=True, and no other network"
        )


def trained_size(net: Any) -> tuple[int, int]:
    """Height and width of the states that a network was trained on."""
    own = getattr(net.config, "sample_size", 128)  # Flux has none, and its pipeline makes 1,024 pixels
    if own is None:
        raise UsageError("the network does not say for which size it was trained: give size=")
    return (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))


def channels_of(net: Any, codec: Any) -> int:
    """Channels of a state."""
    channels = int(net.config.in_channels)
    if type(net).__name__ == "FluxTransformer2DModel":
        channels //= 4  # it sees squares of 2 × 2 latent pixels
    if codec is not None and channels != codec.channels and not shows_picture(channels, codec):
        raise UsageError(
            f"the network takes {channels} channels and its latents have {codec.channels}: models that are shown a "
            f"picture as well are supported with a mask alone (inpainting, {2 * codec.channels + 1} channels)"
        )
    return channels if codec is None else codec.channels


def state_shape(channels: int, codec: Any, size: int | tuple[int, int], patch: int = 1) -> tuple[int, int, int]:
    """The shape of a state, for pictures of so many pixels; a network may see patches of latent pixels.

    Raises:
        UsageError: a size that does not divide, with the nearest one that does.
    """
    height, width = (size, size) if isinstance(size, int) else size
    factor = 1 if codec is None else codec.factor
    step = factor * patch
    if height % step or width % step or min(height, width) < 1:
        near = "×".join(str(max(1, round(side / step)) * step) for side in (height, width))
        raise UsageError(f"a size of {height}×{width} does not divide by {step}, as the codec needs: take {near}")
    return channels, height // factor, width // factor
