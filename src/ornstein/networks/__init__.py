"""Networks: all are called as ``net(x, time, label=…, text=…, text_mask=…, vector=…)``."""

from ornstein.networks.building import NETWORKS, build
from ornstein.networks.unet import UNet, UNetConfig

__all__ = ["NETWORKS", "UNet", "UNetConfig", "build"]
