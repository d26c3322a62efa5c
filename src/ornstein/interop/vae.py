"""A diffusers AutoencoderKL, by folder, hub name or object, as a codec."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..latents.codec import KLCodec, Normalisation
from ..storage.files import read_json

KNOWN = (
    "identity, critters-latents, a run of `ornstein train autoencoder`, "
    "a diffusers AutoencoderKL or pipeline by folder or hub name"
)


class DiffusersVAE(nn.Module):
    """A diffusers AutoencoderKL as a `KLNetwork`."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of the posterior."""
        posterior = self.vae.encode(image, return_dict=False)[0]
        if isinstance(posterior, Tensor):  # AutoencoderTiny's code is not drawn
            return posterior, torch.full_like(posterior, -math.inf)
        return posterior.mean, posterior.logvar

    def decode(self, latent: Tensor) -> Tensor:
        """The picture."""
        return self.vae.decode(latent, return_dict=False)[0]


def wrap_vae(vae: Any, where: str = "") -> KLCodec:
    """A loaded diffusers AutoencoderKL as a codec, with the normalisation that its configuration names.

    The codec shares the module, which is frozen and put into evaluation mode.
    """
    config = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    scale = float(getattr(config, "scaling_factor", None) or 1.0)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        normalise = Normalisation.of(shift=list(mean), scale=[scale / float(one) for one in std])
    else:
        normalise = Normalisation.of(shift=float(getattr(config, "shift_factor", None) or 0.0), scale=scale)
    return KLCodec(
        net=DiffusersVAE(vae),
        factor=factor,
        channels=int(config.latent_channels),
        normalisation=normalise,
        about={"kind": "diffusers", "where": where},
    )


def open_vae(where: str | Path, device: str | torch.device, dtype: torch.dtype) -> KLCodec:
    """The autoencoder in a folder or of a hub name; `CheckpointError` where there is none."""
    from .loading import diffusers_library, silenced

    folder = Path(where).expanduser()
    kind = diffusers_library().AutoencoderKL
    places: list[dict[str, str]] = [{"subfolder": "vae"}] if (folder / "model_index.json").is_file() else [{}]
    if not folder.exists():
        places = [{}, {"subfolder": "vae"}]
    reason = ""
    for place in places:
        try:
            with silenced():
                vae = kind.from_pretrained(
                    str(folder) if folder.exists() else str(where), use_safetensors=True, torch_dtype=dtype, **place
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            vae = vae.to(torch.float32)  # its activations overflow in half precision
        codec = wrap_vae(vae, str(folder.resolve()) if folder.exists() else str(where))
        vae.to(device)
        return codec
    raise CheckpointError(f"no diffusers AutoencoderKL could be loaded from {where} ({reason}): give {KNOWN}")


def copy_vae(net: nn.Module, folder: Path) -> None:
    """Write the autoencoder of a codec that `wrap_vae` made: its config.json and one .safetensors file."""
    from .loading import silenced

    if not isinstance(net, DiffusersVAE):
        raise ConfigError(f"a {type(net).__name__} is no diffusers autoencoder")
    with silenced():
        net.vae.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")


def class_of(folder: Path) -> str | None:
    """The class that a diffusers configuration names."""
    found = read_json(folder / "config.json")
    return found.get("_class_name") if isinstance(found, dict) else None
