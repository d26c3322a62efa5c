"""LoRA files on a loaded model: laid on, scaled, and taken off again to the bit.

    style = load_lora(model, "style.safetensors", scale=0.8)
    images = orn.sample(model, 4, cond=model.cond(["a red fox"]))
    style.unload()

A layer's answer becomes y + scale·(α/r)·B·A·x (Hu et al. 2022, sec. 4.1). The weights of the model are not touched, so
that a scale of 0, and unloading, give the model back exactly. Read are files with diffusers' (PEFT's) names and with
kohya's, whose U-Net is named as in a single file or as in diffusers. A name that no layer has is refused, and never
left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from .. import checks
from ..errors import CheckpointError, UsageError
from ..storage.tensor_files import TensorFile, open_tensors
from .opened import OpenedModel
from .sdxl_names import UNetLayout

_GIVE = "give a .safetensors file of a LoRA with diffusers' or kohya's names"
_PARTS = {
    "unet": "unet",
    "transformer": "transformer",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}
_ENDS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
_OTHERS = re.compile(r".*(\.dora_scale|\.hada_w|\.lokr_w|\.lora_magnitude_vector|\.oft_|\.diff|\.diff_b|\.lora_bias)")


@dataclass(slots=True, eq=False)
class Lora:
    """A LoRA that lies on a model; as a context it is unloaded at the end.

    Attributes:
        name: of the file.
        layers: how many layers it changes.
        scale: its strength, which may be changed at any time; 0 is the model without it, to the bit.
    """

    name: str
    layers: int
    scale: float
    _hooks: list[Any] = field(default_factory=list[Any], repr=False)

    def unload(self) -> None:
        """Take it off; a second time does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()


def load_lora(model: OpenedModel, where: str | Path, *, scale: float = 1.0) -> Lora:
    """Lay a LoRA on an opened diffusers model, on its network and its text encoders.

    It lies on the modules of the pipeline, so that everything that shares them has it. Several add up. Conditions that
    were encoded before are those of the text encoders without it.

    Args:
        model: a model that `ornstein.load` opened from a diffusers pipeline or a file of SDXL; with a refiner, its
            base gets it.
        where: a .safetensors file.
        scale: strength; α/r of the file is applied besides.

    Raises:
        UsageError: a model of another kind, or a scale that is no number.
        CheckpointError: a file that is damaged, of another method (DoRA, LoHa, LoKr), or made for another model: the
            first layer that does not fit is named.
    """
    checks.real("scale", scale, error=UsageError)
    pipe = getattr(getattr(model, "base", model), "pipe", None)
    if pipe is None:
        raise UsageError(f"{model.name} is no diffusers pipeline, and a LoRA lies on one of these")
    path = Path(where).expanduser()
    file = open_tensors(path, _GIVE)
    pairs = _pairs(file)
    tables = {part: _layers(getattr(pipe, part, None)) for part in sorted({part for part, _ in pairs})}
    fitted = [(_layer(path, tables, part, name, pair), name, pair) for (part, name), pair in pairs.items()]
    deltas = [
        (layer, _Delta.of(layer, {kind: file.get(key) for kind, key in pair.items()}, f"{path}: {name}"))
        for layer, name, pair in fitted
    ]
    lora = Lora(path.name, len(fitted), float(scale))
    for layer, delta in deltas:
        lora._hooks.append(layer.register_forward_hook(_hook(lora, delta)))  # pyright: ignore[reportPrivateUsage]
    return lora


@dataclass(frozen=True, slots=True, eq=False)
class _Delta:
    """What a layer's answer gains, but for the scale: weights in the layer's precision and place."""

    down: Tensor
    up: Tensor
    mid: Tensor | None
    gain: float
    conv: Mapping[str, Any] | None

    @classmethod
    def of(cls, layer: Any, found: Mapping[str, Tensor], what: str) -> _Delta:
        down, up, mid = found["down"], found["up"], found.get("mid")
        alpha = float(found["alpha"]) if "alpha" in found else float(down.shape[0])
        convolves = isinstance(layer, nn.Conv2d)
        like = layer.weight
        if convolves:
            down, up = (part if part.ndim == 4 else part[..., None, None] for part in (down, up))
        else:
            down, up = (part[..., 0, 0] if part.ndim == 4 else part for part in (down, up))
        fits = down.shape[1] == like.shape[1] and up.shape[0] == like.shape[0] and down.shape[0] == up.shape[1]
        fits = fits and (not convolves or mid is not None or down.shape[2:] == like.shape[2:])
        if not fits:
            raise CheckpointError(
                f"{what} has the shapes {tuple(found['down'].shape)} and {tuple(found['up'].shape)} for a layer of "
                f"{tuple(like.shape)}: it was made for another model"
            )
        conv = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation} if convolves else None
        moved = [None if part is None else part.to(like.device, like.dtype) for part in (down, up, mid)]
        assert moved[0] is not None
        assert moved[1] is not None
        return cls(moved[0], moved[1], moved[2], alpha / down.shape[0], conv)

    def __call__(self, x: Tensor) -> Tensor:
        """(α/r)·B·A·x."""
        down, up = (part.to(x.device, x.dtype) for part in (self.down, self.up))
        if self.conv is None:
            return nn.functional.linear(nn.functional.linear(x, down), up) * self.gain
        if self.mid is None:
            inside = nn.functional.conv2d(x, down, **self.conv)
        else:
            inside = nn.functional.conv2d(nn.functional.conv2d(x, down), self.mid.to(x.device, x.dtype), **self.conv)
        return nn.functional.conv2d(inside, up) * self.gain


def _hook(lora: Lora, delta: _Delta) -> Any:
    def add(module: nn.Module, args: tuple[Any, ...], answer: Tensor) -> Tensor | None:
        del module
        return None if lora.scale == 0.0 else answer + lora.scale * delta(args[0])

    return add


def _pairs(file: TensorFile) -> dict[tuple[str, str], dict[str, str]]:
    """The tensors of each layer by what they are, under (part of the pipeline, name of the layer in the file)."""
    out: dict[tuple[str, str], dict[str, str]] = {}
    strange: list[str] = []
    for key in sorted(file.shapes):
        bare = key.removeprefix("base_model.model.").replace(".processor.", ".")
        bare = re.sub(r"\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$", r".\1.lora.\2.weight", bare)
        if _OTHERS.match(bare):
            raise CheckpointError(f"{file.path} holds {key!r}, of another method than LoRA: {_GIVE}")
        end = next((end for end in sorted(_ENDS, key=len, reverse=True) if bare.endswith("." + end)), None)
        name = "" if end is None else bare.removesuffix("." + end)
        part, _, rest = name.partition("_text_model" if name.startswith("lora_te") else ".")
        if name.startswith("lora_te"):
            rest = "text_model" + rest
        elif name.startswith(("lora_unet_", "lora_transformer_")):
            part, rest = "_".join(name.split("_")[:2]), name.split("_", 2)[2]
        if end is None or part not in _PARTS or not rest:
            strange.append(key)
            continue
        out.setdefault((_PARTS[part], rest), {})[_ENDS[end]] = key
    if strange or not out:
        what = f"holds {strange[0]!r}, which names no layer" if strange else "holds no layer"
        raise CheckpointError(f"{file.path} {what} of a LoRA: {_GIVE}")
    return out


def _layers(module: Any) -> dict[str, nn.Module]:
    """The layers of a network by every name that a file may have for them, dots as underscores."""
    if module is None:
        return {}
    out: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for known in _names(module, name):
                out[known.replace(".", "_")] = layer
    return out


def _names(module: Any, name: str) -> Iterator[str]:
    """The names of a layer: its own, with the prefix of older versions, and that of single files."""
    yield name
    yield f"text_model.{name}"
    if type(module).__name__ == "UNet2DConditionModel":
        kinds = module.config.up_block_types
        per_block = module.config.layers_per_block
        if isinstance(per_block, int):
            layout = UNetLayout(layers=per_block, attentive=tuple("CrossAttn" in kind for kind in kinds))
            try:
                yield layout.original(f"{name}.weight").name.removesuffix(".weight")
            except KeyError:
                return


def _layer(
    path: Path, tables: Mapping[str, Mapping[str, nn.Module]], part: str, name: str, pair: Mapping[str, str]
) -> nn.Module:
    table = tables[part]
    if not table:
        raise CheckpointError(f"{path} changes the {part}, which this model does not have: it was made for another one")
    found = table.get(name.replace(".", "_")) or table.get(f"{name.replace('.', '_')}_0")
    if found is None:
        raise CheckpointError(
            f"{path} changes the layer {name!r} of the {part}, which this model does not have: it was made for another"
        )
    lost = {"down", "up"} - set(pair)
    if lost:
        raise CheckpointError(
            f"{path} holds only a part of the layer {name!r} ({', '.join(sorted(pair))}): copy it again"
        )
    return found


__all__ = ["Lora", "load_lora"]
