"""Codecs from folders and hub names, and into the folder of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..interop.vae import KNOWN, class_of, copy_vae, open_vae
from ..latents.codec import Codec, Identity, KLCodec, Normalisation
from ..storage.files import atomic, read_json, write_json
from ..storage.reading import load_json
from .places import CARD, WEIGHTS, read_run, resolve_model_path, shipped

VERSION = 1
DOCUMENT, TENSORS, VAE = "codec.json", "codec.safetensors", "vae"


def open_codec(
    where: str | Path | Codec, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Codec:
    """The codec that ``where`` names.

    * ``identity``: pictures as they are;
    * a run of ``ornstein train autoencoder``, one of its checkpoints, a card or the name of a shipped one, such as
      ``critters-latents``: the averaged weights, in float32 whatever ``dtype`` says;
    * a folder that `save_codec` wrote, such as ``RUN/codec``;
    * a diffusers AutoencoderKL (SD, SDXL, …) by folder or hub name, or the one of a whole pipeline. Its scaling and
      shift factors are applied, or its latents_mean and latents_std. With ``dtype=torch.float16`` a VAE that overflows
      there (``force_upcast``, SDXL's) stays in float32. Only safetensors are read.

    Raises `CheckpointError` for anything else.
    """
    if not isinstance(where, str | Path):
        return where
    if str(where) == "identity":
        return Identity()
    folder = resolve_model_path(Path(where).expanduser())
    if (folder / DOCUMENT).is_file():
        return _saved(folder, device, dtype)
    if (folder / "model_index.json").is_file() or class_of(folder) == "AutoencoderKL":
        return open_vae(where, device, dtype)
    if folder.exists():
        if not any((folder / name).is_file() for name in ("config.json", CARD, "state.json")):
            raise CheckpointError(f"{where} is no codec: give {KNOWN}")
        return _from_run(folder, device, str(where))
    if str(where).count("/") == 1 and not str(where).startswith((".", "/", "~")):
        return open_vae(where, device, dtype)
    raise CheckpointError(f"there is no codec {str(where)!r}: give {KNOWN}")


def is_codec(where: str | Path) -> bool:
    """Whether a folder holds a codec and nothing else: an autoencoder's run or card, a saved codec, a diffusers VAE."""
    folder = resolve_model_path(Path(where).expanduser())
    if (folder / DOCUMENT).is_file() or class_of(folder) == "AutoencoderKL":
        return True
    home = folder if (folder / "config.json").is_file() else folder.parent.parent
    if home != folder and not (folder / "state.json").is_file():
        return False
    try:
        found = read_json(home / "config.json")
        return found["model"]["kind"] == "autoencoderspec"
    except (KeyError, TypeError):
        return False


def save_codec(codec: Codec, folder: str | Path, *, named: bool = False) -> Path:
    """Write what `open_codec` reads: the normalisation, and the weights of an autoencoder of our own.

    A diffusers VAE is copied into the folder ``vae`` inside, with a digest of its weights that is compared when it is
    opened. ``named`` writes the name of a codec that comes with the library instead of its weights. Returns the folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"format": "ornstein-codec", "version": VERSION}
    tensors: dict[str, Tensor] = {}
    if isinstance(codec, Identity):
        document |= {"kind": "identity"}
    elif isinstance(codec, KLCodec):
        document |= {"kind": codec.about.get("kind", ""), "about": codec.about, "weights": codec.weights}
        if document["kind"] not in ("autoencoder", "diffusers"):
            raise ConfigError("only codecs that open_codec opened can be saved: this one was made by hand")
        document["tiles"] = None if codec.tiles is None else [codec.tiles.side, codec.tiles.overlap]
        tensors = {"shift": codec.normalisation.shift, "scale": codec.normalisation.scale}
        if named and codec.about.get("where") not in shipped():
            raise ConfigError("only codecs that come with the library can be named: leave named out")
        if document["kind"] == "diffusers":
            copy_vae(codec.net, folder / VAE)
        elif not named:
            tensors |= {f"net.{name}": value for name, value in codec.net.state_dict().items()}
    else:
        raise ConfigError(f"a {type(codec).__name__} cannot be saved: use a codec of ornstein.latents")
    with atomic(folder / TENSORS) as file:
        file.write(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))
    write_json(folder / DOCUMENT, document)
    return folder


def _saved(folder: Path, device: str | torch.device, dtype: torch.dtype) -> Codec:
    from ..storage.weights import read_tensors

    path = folder / DOCUMENT
    document = load_json(path, CheckpointError, "copy it again", must_hold=None)
    if not isinstance(document, dict) or document.get("format") != "ornstein-codec":
        raise CheckpointError(f"{path} is not the description of a codec")
    if document.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {document.get('version')!r}, this library reads {VERSION}")
    if document.get("kind") == "identity":
        return Identity()
    tensors = read_tensors(folder / TENSORS)
    if not {"shift", "scale"} <= tensors.keys() or not isinstance(about := document.get("about"), dict):
        raise CheckpointError(f"{path} and {TENSORS} beside it do not describe a codec: copy both again")
    named = not any(name.startswith("net.") for name in tensors)
    if not named:
        weights = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
        codec = _own(about, weights, folder / TENSORS, device, "net.")
    else:
        own = document.get("kind") == "autoencoder"
        codec = _shipped(path, about, device) if own else open_vae(_inside(path, about), device, dtype)
        codec = replace(codec, about=about)
        if codec.weights != document.get("weights") and (own or dtype == torch.float32):
            raise CheckpointError(f"the codec in {folder} has other weights than it was made with: copy it again")
    try:
        normalise = Normalisation(shift=tensors["shift"], scale=tensors["scale"])
        tiles = document.get("tiles")
        codec = codec.normalised(normalise)
        return codec.tiled(*tiles) if tiles else codec
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _shipped(path: Path, about: dict[str, Any], device: str | torch.device) -> KLCodec:
    """The codec of the library that a document names; no other name is looked up."""
    where = about.get("where")
    if where not in shipped():
        raise CheckpointError(
            f"{path} names the codec {where!r} outside its folder: only {', '.join(shipped())} may be named, so copy "
            "the folder again with its weights"
        )
    return _from_run(WEIGHTS / str(where), device, str(where))


def _inside(path: Path, about: dict[str, Any]) -> Path:
    """The autoencoder beside a document: a folder of its own, not a link, with weights and configuration in it."""
    vae = path.parent / VAE
    if not vae.is_dir() or not vae.resolve().is_relative_to(path.parent.resolve()):
        raise CheckpointError(
            f"{path} names an autoencoder outside its folder ({str(about.get('where'))!r}), which is not opened: "
            f"copy its config.json and .safetensors file to {vae} if you trust it"
        )
    return vae


def _own(
    about: dict[str, Any], weights: dict[str, Tensor], path: Path, device: str | torch.device, inside: str
) -> KLCodec:
    """An autoencoder of ours from its configuration and weights, in ``path`` under the prefix ``inside``."""
    from ..networks.autoencoder import KLAutoencoder, KLConfig
    from ..storage.configs import from_dict
    from ..storage.weights import build_like, fill

    try:
        config = from_dict(KLConfig, about.get("network"), "network")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with torch.random.fork_rng(devices=[]):
        net = build_like(lambda: KLAutoencoder(config), path, inside=inside)
    fill(net, weights, path)
    codec = KLCodec(net=net, factor=config.factor, channels=config.latent, about=about)
    net.to(device)
    return codec


def _from_run(folder: Path, device: str | torch.device, where: str) -> KLCodec:
    """The averaged weights of an autoencoder's run."""
    from ..models.autoencoder import AutoencoderSpec
    from ..storage.configs import to_dict

    found = read_run(folder)
    if not isinstance(found.spec, AutoencoderSpec):
        raise CheckpointError(f"the run in {folder} makes pictures, it is no codec: give {KNOWN}")
    config = found.spec.network
    weights = {name.removeprefix("net.auto."): value for name, value in found.tensors.items()}
    about = {"kind": "autoencoder", "network": to_dict(config), "where": where, "images": found.images}
    return _own(about, weights, found.weights, device, "net.auto.")
