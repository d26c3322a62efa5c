"""Names of SDXL's weights in the two layouts: diffusers' own, and the original one of single files.

A `Place` says where a tensor of a diffusers module lies in a single file, and what has to be done to it: OpenCLIP
keeps query, key and value in one matrix and transposes its projection, and the autoencoder's attention is a convolution
of one pixel. `gather` and `scatter` go either way, so that original → diffusers → original is the identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

How = Literal["", "squeeze", "transpose", "query", "key", "value"]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PARTS: tuple[How, ...] = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Place:
    """The name of a tensor in a single file, and what makes of it the tensor of a diffusers module."""

    name: str
    how: How = ""

    def taken(self, tensor: Tensor) -> Tensor:
        """The module's tensor."""
        if self.how == "squeeze":
            return tensor[..., 0, 0] if tensor.ndim == 4 else tensor
        if self.how == "transpose":
            return tensor.t().contiguous()
        if self.how:
            return tensor.chunk(3)[_PARTS.index(self.how)]
        return tensor

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the module's tensor, of a file's."""
        if self.how == "squeeze":
            return shape[:2]
        if self.how == "transpose":
            return shape[::-1]
        return (shape[0] // 3, *shape[1:]) if self.how and shape else shape


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetLayout:
    """What of a U-Net's configuration its original names depend on."""

    layers: int
    attentive: tuple[bool, ...]
    """Whether each up block has attention, in the order of a pass."""

    def original(self, name: str) -> Place:
        """Place of a tensor of a `UNet2DConditionModel`, without ``model.diffusion_model.``."""
        for ours, theirs in _OUTSIDE.items():
            if name.startswith(ours + "."):
                return Place(_inside(theirs + name[len(ours) :]))
        match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
        if match is None:
            raise KeyError(name)
        way, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        stride = self.layers + 1
        if kind in ("resnets", "attentions"):
            at = (
                f"input_blocks.{1 + block * stride + number}"
                if way == "down"
                else f"output_blocks.{block * stride + number}"
            )
            return Place(_inside(f"{at}.{int(kind == 'attentions')}.{rest}"))
        if kind == "downsamplers":
            return Place(f"input_blocks.{(block + 1) * stride}.0.op.{rest.removeprefix('conv.')}")
        return Place(f"output_blocks.{block * stride + self.layers}.{1 + self.attentive[block]}.{rest}")


def vae_place(name: str, levels: int) -> Place:
    """Place of a tensor of an `AutoencoderKL`, without ``first_stage_model.``."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." not in name:
        return Place(name)
    head, _, tail = name.partition("mid_block.attentions.0.")
    for ours, theirs in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        if tail.startswith(ours + "."):
            matrix = ours != "group_norm" and tail.endswith("weight")
            return Place(f"{head}mid.attn_1.{theirs}{tail[len(ours) :]}", "squeeze" if matrix else "")
    raise KeyError(name)


def clip_place(name: str) -> Place:
    """Place of a tensor of CLIP ViT-L's text tower, with its prefix or without, after ``conditioner.embedders.0.``."""
    return Place("transformer.text_model." + name.removeprefix("text_model."))


def openclip_place(name: str) -> Place:
    """Place of a tensor of OpenCLIP's text tower as transformers names it, after ``conditioner.embedders.N.model.``."""
    name = name.removeprefix("text_model.")
    known = {
        "text_projection.weight": Place("text_projection", "transpose"),
        "embeddings.token_embedding.weight": Place("token_embedding.weight"),
        "embeddings.position_embedding.weight": Place("positional_embedding"),
        "final_layer_norm.weight": Place("ln_final.weight"),
        "final_layer_norm.bias": Place("ln_final.bias"),
    }
    if name in known:
        return known[name]
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        raise KeyError(name)
    at, inside, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
    if inside in _OPENCLIP:
        return Place(f"{at}.{_OPENCLIP[inside]}.{kind}")
    parts: dict[str, How] = {"self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value"}
    return Place(f"{at}.attn.in_proj_{kind}", parts[inside])


def gather(places: Mapping[str, Place], tensor_of: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, by its own names, from those of a file."""
    return {name: place.taken(tensor_of(place.name)) for name, place in places.items()}


def scatter(places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file from those of a module: the inverse of `gather`."""
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[How, Tensor]] = {}
    for name, place in places.items():
        tensor = tensors[name]
        if place.how in _PARTS:
            parts.setdefault(place.name, {})[place.how] = tensor
        elif place.how == "transpose":
            out[place.name] = tensor.t().contiguous()
        else:
            out[place.name] = tensor[..., None, None] if place.how == "squeeze" else tensor
    return out | {name: torch.cat([found[part] for part in _PARTS]) for name, found in parts.items()}


def places_of(names: Iterable[str], prefix: str, place_of: Callable[[str], Place]) -> dict[str, Place]:
    """The places of a module's tensors in a file that has ``prefix`` before them."""
    out: dict[str, Place] = {}
    for name in names:
        place = place_of(name)
        out[name] = Place(prefix + place.name, place.how)
    return out


def _inside(name: str) -> str:
    """A name inside a residual block as the original has it; names inside transformers are the same."""
    for ours, theirs in _RESNET.items():
        name = (
            re.sub(rf"(\.)({ours})(\.(?:weight|bias))$", rf"\1{theirs}\3", name)
            if "transformer_blocks" not in name
            else name
        )
    return name
