"""SDXL in one file, as it was published and as most fine-tunes come: base, refiner and inpainting checkpoints.

The configuration follows from the names and shapes of the tensors; what these cannot say is that of the published
models. Every network is built without memory, compared with the file name by name, and only then read through a memory
map, in the precision that was asked for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, UsageError
from ..progress import Progress, counted
from ..storage.tensor_files import TensorFile, build_from, open_tensors
from .clip_vocabulary import clip_tokenizers, find_vocabulary
from .loading import SINGLE_FILES, diffusers_library, silenced
from .sdxl_names import Place, UNetLayout, clip_place, openclip_place, places_of, scatter, vae_place

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders."
_GIVE = "give a single file of SDXL (base, refiner or inpainting), or the folder of a diffusers pipeline"
_IGNORED = re.compile(r".*position_ids|.*logit_scale|denoiser\..*|model_ema\..*|v_pred|ztsnr|edm_.*")
_HEAD, _GROUPS, _SCALE = 64, 32, 0.13025
SCHEDULER: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
Predicts = Literal["epsilon", "v_prediction"]
Shapes = Mapping[str, tuple[int, ...]]


def is_single_file(what: Any) -> bool:
    """Whether something is named like a model in one file; the file may be missing."""
    if not isinstance(what, str | Path) or not str(what).endswith(SINGLE_FILES):
        return False
    try:
        return not Path(what).expanduser().is_dir()
    except OSError:
        return False


def open_single_file(
    where: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    vocabulary: str | Path | None = None,
    predicts: Predicts | None = None,
    progress: Progress = False,
) -> Any:
    """The diffusers pipeline in a single file of SDXL.

    Args:
        where: .safetensors, or a .ckpt of tensors alone, which is read without running anything.
        dtype: of the weights.
        vocabulary: of CLIP (`ornstein.interop.clip_vocabulary.clip_tokenizers`); by default it is looked for. Without
            one the pipeline opens, takes encoded captions alone, and a warning says so.
        predicts: "epsilon", or "v_prediction" for the fine-tunes that do; by default what a marker in the file says,
            else epsilon. Most such files say nothing.
        progress: True for a bar on stderr, or a function of (tensors read, all of them).

    Raises:
        CheckpointError: a file that is missing, truncated, would run code or is another model.
    """
    path = Path(where).expanduser()
    file = open_tensors(path, _GIVE)
    found = _Found.of(file)
    with counted(progress, lambda: len(file.shapes), "loading", " tensors") as tick, silenced():
        parts = {name: part.build(dtype, tick) for name, part in found.parts().items()}
    _warn(found, file, path)
    tokenizers = _tokenizers(path, vocabulary, found)
    library = diffusers_library()
    with silenced():
        scheduler = library.EulerDiscreteScheduler(
            **SCHEDULER, prediction_type=predicts or found.predicts, rescale_betas_zero_snr="ztsnr" in file.shapes
        )
        options: dict[str, Any] = {"force_zeros_for_empty_prompt": not found.refiner, "add_watermarker": False}
        name = "StableDiffusionXLPipeline"
        if found.refiner:
            name, options["requires_aesthetics_score"] = "StableDiffusionXLImg2ImgPipeline", True
        elif found.channels == 9:
            name = "StableDiffusionXLInpaintPipeline"
        return getattr(library, name)(
            vae=parts["vae"],
            text_encoder=parts.get("text_encoder"),
            text_encoder_2=parts.get("text_encoder_2"),
            tokenizer=None if found.refiner else tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=parts["unet"],
            scheduler=scheduler,
            **options,
        )


def original_state(pipe: Any) -> dict[str, Tensor]:
    """The weights of a diffusers pipeline of SDXL under the names of a single file, for `safetensors.torch.save_file`.

    Raises:
        ConfigError: a pipeline of another kind.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None or getattr(unet.config, "addition_embed_type", None) != "text_time":
        raise ConfigError(f"a {type(pipe).__name__} is no pipeline of SDXL: only these have a single file")
    levels = len(pipe.vae.config.block_out_channels)
    parts: dict[str, tuple[Any, str, Callable[[str], Place]]] = {
        "unet": (unet, UNET, _layout(unet).original),
        "vae": (pipe.vae, VAE, lambda name: vae_place(name, levels)),
    }
    first = getattr(pipe, "text_encoder", None)
    if first is not None:
        parts["text_encoder"] = (first, CLIP + "0.", clip_place)
    if pipe.text_encoder_2 is not None:
        refiner = bool(getattr(pipe.config, "requires_aesthetics_score", False))
        parts["text_encoder_2"] = (pipe.text_encoder_2, f"{CLIP}{0 if refiner else 1}.model.", openclip_place)
    out: dict[str, Tensor] = {}
    for module, prefix, place_of in parts.values():
        tensors = {name: value for name, value in module.state_dict().items() if not name.endswith("position_ids")}
        out |= scatter(places_of(tensors, prefix, place_of), tensors)
    return {name: tensor.contiguous() for name, tensor in out.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A network of a file: how it is made, and where its weights lie."""

    file: TensorFile
    make: Callable[[], Any]
    prefix: str
    place_of: Callable[[Any], Callable[[str], Place]]

    def build(self, dtype: torch.dtype, tick: Callable[[], object]) -> Any:
        """The network with its weights."""
        places: dict[str, Place] = {}

        def names(module: Any) -> dict[str, str]:
            places.update(places_of(module.state_dict(), self.prefix, self.place_of(module)))
            return {name: place.name for name, place in places.items()}

        return build_from(
            self.make,
            self.file,
            names,
            dtype=dtype,
            take=lambda name, tensor: places[name].taken(tensor),
            shape=lambda name, shape: places[name].shape(shape),
            unexpected=lambda name: name.startswith(self.prefix) and not _IGNORED.fullmatch(name),
            tick=tick,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What the names and shapes of a file say."""

    file: TensorFile
    refiner: bool
    channels: int
    first: bool
    second: str | None

    @classmethod
    def of(cls, file: TensorFile) -> _Found:
        shapes = file.shapes
        label, stem = shapes.get(UNET + "label_emb.0.0.weight"), shapes.get(UNET + "input_blocks.0.0.weight")
        if label is None or stem is None:
            raise CheckpointError(f"{file.path} {_other(shapes)}: {_GIVE}")
        towers = [f"{CLIP}{k}.model." for k in (0, 1) if f"{CLIP}{k}.model.ln_final.weight" in shapes]
        pooled = shapes.get(towers[0] + "text_projection", (0, 1280))[-1] if towers else 1280
        width, sizes = _sinusoids(label[1] - pooled, towers)
        if sizes is None:
            raise CheckpointError(
                f"{file.path}: a label vector of {label[1]} numbers is none of SDXL's (2816 of the base, 2560 of the "
                f"refiner): {_GIVE}"
            )
        del width
        return cls(
            file=file,
            refiner=sizes == 5,
            channels=stem[1],
            first=any(name.startswith(CLIP + "0.transformer.") for name in shapes),
            second=towers[0] if towers else None,
        )

    @property
    def predicts(self) -> Predicts:
        """What a marker in the file says."""
        return "v_prediction" if "v_pred" in self.file.shapes else "epsilon"

    def parts(self) -> dict[str, _Part]:
        """The networks of the file."""
        library, shapes, file = diffusers_library(), self.file.shapes, self.file
        unet, vae = _unet_config(shapes, self), _vae_config(shapes, file.path)
        levels = len(vae["block_out_channels"])
        out = {
            "unet": _Part(
                file=file,
                make=lambda: library.UNet2DConditionModel(**unet),
                prefix=UNET,
                place_of=lambda module: _layout(module).original,
            ),
            "vae": _Part(
                file=file,
                make=lambda: library.AutoencoderKL(**vae),
                prefix=VAE,
                place_of=lambda _: lambda name: vae_place(name, levels),
            ),
        }
        if self.first:
            out["text_encoder"] = _Part(
                file=file, make=lambda: _clip(shapes), prefix=CLIP + "0.", place_of=lambda _: clip_place
            )
        if (tower := self.second) is not None:
            out["text_encoder_2"] = _Part(
                file=file, make=lambda: _openclip(shapes, tower), prefix=tower, place_of=lambda _: openclip_place
            )
        return out


def _sinusoids(numbers: int, towers: list[str]) -> tuple[int, int | None]:
    """(width of each sinusoid, how many): six of the base and five of the refiner, whose tower is the only one."""
    refiner = towers == [CLIP + "0.model."] or (not towers and numbers == 1280)
    count = 5 if refiner else 6
    return (numbers // count, count) if numbers > 0 and numbers % count == 0 else (0, None)


def _other(shapes: Shapes) -> str:
    if any(name.startswith("cond_stage_model.") for name in shapes):
        return "is a single file of Stable Diffusion 1 or 2, and only SDXL's are read"
    if any(name.startswith(("lora_", "unet.")) or ".lora_" in name for name in shapes):
        return "is a LoRA, which is loaded into a model (ornstein.interop.lora)"
    if any(name.startswith("down_blocks.") for name in shapes):
        return "is one network of a diffusers pipeline alone"
    return "is no model of SDXL: it lacks the tensor 'model.diffusion_model.label_emb.0.0.weight'"


def _unet_config(shapes: Shapes, found: _Found) -> dict[str, Any]:
    """The configuration of the U-Net, level by level from the names of its input blocks."""
    at = UNET + "input_blocks."
    widths: list[int] = []
    depths: list[int] = []
    layers: list[int] = [0]
    number = 1
    while True:
        if f"{at}{number}.0.op.weight" in shapes:
            layers.append(0)
        elif (conv := shapes.get(f"{at}{number}.0.out_layers.3.weight")) is not None:
            layers[-1] += 1
            if layers[-1] == 1:
                widths.append(conv[0])
                depths.append(_count(shapes, f"{at}{number}.1.transformer_blocks."))
        else:
            break
        number += 1
    context = shapes.get(UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
    middle = _count(shapes, UNET + "middle_block.1.transformer_blocks.")
    if not widths or len(widths) != len(layers) or len(set(layers)) != 1 or not middle:
        raise CheckpointError(f"{found.file.path}: its U-Net is none of SDXL's: {_GIVE}")
    attentive = [depth > 0 for depth in depths]
    label = shapes[UNET + "label_emb.0.0.weight"][1]
    pooled = 1280 if found.second is None else shapes[found.second + "text_projection"][-1]
    return {
        "sample_size": 128,
        "in_channels": found.channels,
        "out_channels": shapes.get(UNET + "out.2.weight", (4,))[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attentive),
        "up_block_types": tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attentive)),
        "block_out_channels": tuple(widths),
        "layers_per_block": layers[0],
        # A level without attention has no depth; the last number is also that of the middle.
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle],
        "attention_head_dim": [max(1, width // _HEAD) for width in widths],
        "cross_attention_dim": context,
        "norm_num_groups": _GROUPS,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (label - pooled) // (5 if found.refiner else 6),
        "projection_class_embeddings_input_dim": label,
    }


def _vae_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    at = VAE + "encoder."
    levels = _count(shapes, at + "down.")
    widths = [shapes.get(f"{at}down.{k}.block.0.conv1.weight", (0,))[0] for k in range(levels)]
    if not widths or not all(widths):
        raise CheckpointError(f"{path} holds no autoencoder ({VAE}…): {_GIVE}")
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _count(shapes, at + "down.0.block."),
        "latent_channels": shapes.get(VAE + "post_quant_conv.weight", (4,))[0],
        "norm_num_groups": _GROUPS,
        "sample_size": 1024,
        "scaling_factor": _SCALE,
        "force_upcast": True,
    }


def _clip(shapes: Shapes) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    at = CLIP + "0.transformer.text_model."
    words, width = shapes[at + "embeddings.token_embedding.weight"]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=shapes[at + "encoder.layers.0.mlp.fc1.weight"][0],
            num_hidden_layers=_count(shapes, at + "encoder.layers."),
            num_attention_heads=max(1, width // _HEAD),
            max_position_embeddings=shapes[at + "embeddings.position_embedding.weight"][0],
            hidden_act="quick_gelu",
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    )


def _openclip(shapes: Shapes, at: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    words, width = shapes[at + "token_embedding.weight"]
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=shapes[at + "transformer.resblocks.0.mlp.c_fc.weight"][0],
            num_hidden_layers=_count(shapes, at + "transformer.resblocks."),
            num_attention_heads=max(1, width // _HEAD),
            max_position_embeddings=shapes[at + "positional_embedding"][0],
            hidden_act="gelu",
            projection_dim=shapes[at + "text_projection"][1],
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=0,
        )
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def _layout(unet: Any) -> UNetLayout:
    kinds = unet.config.up_block_types
    return UNetLayout(layers=int(unet.config.layers_per_block), attentive=tuple("CrossAttn" in kind for kind in kinds))


def _warn(found: _Found, file: TensorFile, path: Path) -> None:
    known = (UNET, VAE, CLIP)
    other = sorted(name for name in file.shapes if not name.startswith(known) and not _IGNORED.fullmatch(name))
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        warnings.warn(f"{path} holds {other[0]!r}{more}, which no network of SDXL has: left out", stacklevel=3)
    del found


def _tokenizers(path: Path, vocabulary: str | Path | None, found: _Found) -> tuple[Any, Any]:
    if found.second is None and not found.first:
        return None, None
    place = find_vocabulary(path.parent) if vocabulary is None else str(vocabulary)
    if place is not None:
        try:
            return clip_tokenizers(place)
        except UsageError:
            if vocabulary is not None:
                raise
    warnings.warn(
        f"{path.name} holds no vocabulary and none was found, so no prompt can be read: pip install open_clip_torch, "
        "put vocab.json and merges.txt beside the file, or give vocabulary=",
        stacklevel=3,
    )
    return None, None
