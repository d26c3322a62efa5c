"""The published checkpoints of UDPM (``shadyabh/UDPM``) as denoisers; no code that came with a file is run.

Two layouts are read: ``model_ema_state_….pt``, a flat state dict, and ``model_state_….pt``, a dictionary whose "model"
is one. Everything about the network follows from the names and shapes of the weights.

>>> from ornstein.interop import udpm  # doctest: +SKIP
>>> model = udpm.load_denoiser("model_ema_state_UDPM64_AFHQv2.pt")  # doctest: +SKIP
>>> images = orn.sample(model, n=4)  # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import CheckpointError
from ..networks.ncsnpp import NCSNpp, NCSNppConfig
from ..parameterizations import LevelBelow
from ..paths import PyramidPath
from ..storage.tensor_files import read_pickle
from .opened import OpenedModel, PlainModel

_GIVE = "give model_ema_state_….pt or model_state_….pt of UDPM"
_BLOCK = re.compile(r"(enc|dec)\.(\d+)x\2_(\w+?)\.(.+)")


def load_denoiser(
    where: str | Path,
    *,
    path: PyramidPath | None = None,
    rule: Literal["exact", "published"] = "published",
    device: str | torch.device = "cpu",
) -> Denoiser:
    """A published checkpoint as a denoiser, in evaluation mode; ``rule`` is the posterior that samples are drawn with.

    A class-conditional network takes ``cond={"label": …}``, (B,) int64. The levels are the published three, or those
    of ``path`` for a network trained with others. The network predicts H^{l−1}x_0 itself and sees the state as it is.

    Raises `CheckpointError` for a file that is missing, damaged, would run code, or holds another network.
    """
    where = Path(where).expanduser()
    weights = read_weights(where)
    config = infer(weights, where)
    with torch.device("meta"):
        net = NCSNpp(config)
    missing = sorted(set(net.state_dict()) - set(weights))
    left = sorted(set(weights) - set(net.state_dict()))
    if missing or left:
        what = f"lacks {missing[0]!r}" if missing else f"holds {left[0]!r}, which the network does not have"
        raise CheckpointError(f"{where} {what}: {_GIVE}")
    for name, own in net.state_dict().items():
        if own.shape != weights[name].shape:
            raise CheckpointError(f"{where}: {name!r} has shape {tuple(weights[name].shape)}, not {tuple(own.shape)}")
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    net.to(device).eval().requires_grad_(False)
    levels = PyramidPath(rule=rule) if path is None else path
    side = config.resolution * levels.factors[0]
    reading = LevelBelow(scaled=False, preconditioned=False)
    return Denoiser(net, levels, reading, shape=(config.channels, side, side))


def open_checkpoint(where: str | Path, *, device: str | torch.device = "cpu") -> OpenedModel:
    """A published checkpoint as `ornstein.load` opens it. Labels are numbers, −1 being none.

    Raises `CheckpointError` as `load` does.
    """
    where, denoiser = Path(where), load_denoiser(where, device=device)
    assert isinstance(denoiser.net, NCSNpp)
    return PlainModel(denoiser=denoiser, folder=where, weights=where, labels=denoiser.net.config.classes)


def read_weights(where: str | Path) -> dict[str, Tensor]:
    """The network's weights in a file of either layout, named as ours: without ``module.`` and ``net.`` in front.

    Raises `CheckpointError` as `load` does.
    """
    where = Path(where)
    if not where.is_file():
        raise CheckpointError(f"{where} does not exist: {_GIVE}")
    found: Any = read_pickle(where, _GIVE)
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{where} holds no state dict of tensors: {_GIVE}")
    return {re.sub(r"^(module\.)?(net\.)?", "", str(name)): tensor for name, tensor in found.items()}


def infer(weights: Mapping[str, Tensor], where: str | Path = "the checkpoint") -> NCSNppConfig:
    """The network that these weights belong to: sizes from their names, widths from their shapes.

    Raises `CheckpointError` for weights of something else.
    """
    parts = [match.groups() for name in weights if (match := _BLOCK.fullmatch(name))]
    sides = sorted({int(side) for _, side, _, _ in parts}, reverse=True)
    try:
        stem, top = weights[f"enc.{sides[0]}x{sides[0]}_conv.weight"], sides[0]
        width = stem.shape[0]
        blocks = [name for part, side, name, _ in parts if part == "enc" and int(side) == top and "block" in name]
        multipliers = tuple(weights[f"enc.{side}x{side}_block0.conv0.weight"].shape[0] // width for side in sides)
        outputs = weights[f"dec.{top}x{top}_aux_conv.weight"].shape[0]
    except (IndexError, KeyError) as error:
        raise CheckpointError(f"{where} is no NCSN++ network (no weights {error}): {_GIVE}") from None
    attention = {int(side) for part, side, _, rest in parts if part == "enc" and rest == "qkv.weight"}
    label = weights.get("map_label.weight")
    return NCSNppConfig(
        resolution=top,
        channels=stem.shape[1],
        out_channels=outputs,
        width=width,
        multipliers=multipliers,
        blocks=len(set(blocks)),
        attention=tuple(sorted(attention, reverse=True)),
        classes=0 if label is None else label.shape[1],
    )
