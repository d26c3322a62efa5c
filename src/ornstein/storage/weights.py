"""Weights: tensors of a safetensors file, and into a module."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

Tensors = dict[str, Tensor]


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file; `CheckpointError` if it is missing or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy it again, or train again") from None
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a readable safetensors file ({reason}): copy it again") from None


@torch.no_grad()
def fill(module: nn.Module, tensors: Tensors, path: Path) -> None:
    """Copy weights into a module, keeping the module's own dtypes and memory formats.

    Raises `CheckpointError` naming the first tensor that is missing, left over, or of another shape.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {name!r}: it belongs to another network")
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
            )
        tensor.copy_(tensors[name])
    left = sorted(set(tensors) - set(own))
    if left:
        raise CheckpointError(f"{path} holds a tensor {left[0]!r} that the network does not have")
