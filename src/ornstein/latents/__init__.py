"""Latents: codecs between pictures and the smaller space in which a model works.

from ornstein.latents import open_codec

codec = open_codec("runs/autoencoder")              # or a diffusers VAE, by folder or hub name
latent = codec.encode(pictures)                     # (B, c, H/f, W/f); the mean of the posterior
latent = codec.encode(pictures, noise)              # a draw from it
again = codec.decode(latent)                        # gradients reach the latent
"""

from ..metrics.reconstruction import Reconstruction, reconstruction
from .codec import Codec, Identity, KLCodec, KLNetwork, Moments, Normalisation, Running, normalisation, weights_digest
from .files import is_codec, open_codec, save_codec
from .tiles import Tiles

__all__ = [
    "Codec",
    "Identity",
    "KLCodec",
    "KLNetwork",
    "Moments",
    "Normalisation",
    "Reconstruction",
    "Running",
    "Tiles",
    "is_codec",
    "normalisation",
    "open_codec",
    "reconstruction",
    "save_codec",
    "weights_digest",
]
