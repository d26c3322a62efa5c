"""From a configuration to a network whose first weights are a pure function of a seed."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.networks.dit import DiT, DiTConfig
from ornstein.networks.embeddings import TimeEmbedding
from ornstein.networks.unet import UNet, UNetConfig
from ornstein.options import Choice
from ornstein.randomness import generator

NetworkChoice = Annotated[UNetConfig, Choice("unet")] | Annotated[DiTConfig, Choice("dit")]
"""A network that a configuration leaves open."""

NETWORKS: dict[str, tuple[type, type[nn.Module]]] = {"unet": (UNetConfig, UNet), "dit": (DiTConfig, DiT)}


def build(config: object, seed: int = 0) -> nn.Module:
    """The network of ``config``, on the CPU, with weights drawn by `initialise`; the global generator is not touched.

    Raises `ConfigError` for an object that is no network configuration.
    """
    for kind, network in NETWORKS.values():
        if isinstance(config, kind):
            with torch.random.fork_rng(devices=[]):
                net = network(config)
            return initialise(net, seed)
    names = ", ".join(kind.__name__ for kind, _ in NETWORKS.values())
    raise ConfigError(f"{type(config).__name__} is not the configuration of a network: give one of {names}")


def initialise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight of ``net`` anew, each as a pure function of (seed, its name), and return ``net``.

    Matrices and kernels ~ N(0, 1 / fan-in), embedding tables and learned tokens ~ N(0, ½²), Fourier frequencies
    ~ N(0, (2π · scale)²); biases are zero. Gains, and weights that the network itself set to zero, stay as they are.
    Because the key is the name, adding a layer does not change the weights of the others. A network on the meta device,
    which has shapes and no memory, is returned as it is.
    """
    if any(tensor.is_meta for tensor in net.parameters()):
        return net
    with torch.no_grad():
        for prefix, module in net.named_modules():
            for name, tensor in module.named_parameters(prefix, recurse=False):
                if name.endswith(".bias"):
                    tensor.zero_()
                elif tensor.ndim > 1 and bool(tensor.any()):
                    tensor.copy_(_normal(seed, name, tensor) * _spread(module, tensor))
            if isinstance(module, TimeEmbedding) and module.kind == "fourier":
                frequencies = _normal(seed, f"{prefix}.frequencies", module.frequencies)
                module.frequencies.copy_(frequencies * 2 * math.pi * module.scale)
    return net


def _spread(module: nn.Module, tensor: Tensor) -> float:
    if isinstance(module, nn.Linear | nn.Conv2d):
        return (tensor[0].numel()) ** -0.5
    return 0.5


def _normal(seed: int, name: str, like: Tensor) -> Tensor:
    return torch.from_numpy(generator(seed, "weights", name).standard_normal(like.shape, dtype=np.float32))
