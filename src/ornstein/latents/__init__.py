"""Latents: codecs between pictures and the smaller space in which a model works.

from ornstein.runs import open_codec

codec = open_codec("runs/autoencoder")              # or a diffusers VAE, by folder or hub name
latent = codec.encode(pictures)                     # (B, c, H/f, W/f); the mean of the posterior
latent = codec.encode(pictures, noise)              # a draw from it
again = codec.decode(latent)                        # gradients reach the latent
"""

from .codec import Codec, Identity, KLCodec, KLNetwork, Moments, Normalisation, Running, normalisation, weights_digest
from .tiles import Tiles

__all__ = [
    "Codec",
    "Identity",
    "KLCodec",
    "KLNetwork",
    "Moments",
    "Normalisation",
    "Running",
    "Tiles",
    "normalisation",
    "weights_digest",
]
