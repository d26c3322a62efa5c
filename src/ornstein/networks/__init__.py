"""Networks: all are called as ``net(x, time, label=…, text=…, text_mask=…, vector=…)``."""

from ornstein.networks.building import NETWORKS, NetworkChoice, build, initialise
from ornstein.networks.dit import DiT, DiTConfig
from ornstein.networks.text import TextConfig, TextEncoder, vocabulary
from ornstein.networks.unet import UNet, UNetConfig

__all__ = [
    "NETWORKS",
    "DiT",
    "DiTConfig",
    "NetworkChoice",
    "TextConfig",
    "TextEncoder",
    "UNet",
    "UNetConfig",
    "build",
    "initialise",
    "vocabulary",
]
