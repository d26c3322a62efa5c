"""The networks of SDXL in their full size, on the meta device: names and shapes, and no numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...interop.loading import diffusers_library, silenced

BASE: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER: Mapping[str, Any] = {
    **BASE,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (384, 768, 1536, 1536),
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
SMALL: Mapping[str, Any] = {
    **BASE,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [1, 1, 1],
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 112,
}
"""A U-Net of the base's structure, that runs in an instant: 64 pooled numbers and six sinusoids of 8."""
AUTOENCODER: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_G: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
PARTS = ("base", "refiner", "autoencoder", "clip-l", "clip-g")


def build(part: str) -> Any:
    """One of `PARTS` on the meta device, or the "small" U-Net on the processor.

    Raises:
        UsageError: diffusers or transformers is not installed.
    """
    library = diffusers_library()
    with silenced(), torch.device("cpu" if part == "small" else "meta"):
        if part in ("base", "refiner", "small"):
            config = {"base": BASE, "refiner": REFINER, "small": SMALL}[part]
            return library.UNet2DConditionModel(**config).eval()
        if part == "autoencoder":
            return library.AutoencoderKL(**AUTOENCODER)
        try:
            from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
        except ImportError as error:
            raise UsageError(f"transformers cannot be imported ({error}): pip install 'ornstein[diffusers]'") from None
        if part == "clip-l":
            return CLIPTextModel(CLIPTextConfig(**CLIP_L))
        return CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen digits of SHA-256 over the sorted lines "name (shape)"."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


__all__ = ["AUTOENCODER", "BASE", "CLIP_G", "CLIP_L", "PARTS", "REFINER", "SMALL", "build", "digest"]
