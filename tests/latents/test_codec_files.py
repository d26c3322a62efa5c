"""Codecs in files: what is written comes back whole, damage is one line, and what is no codec is told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ornstein.errors import CheckpointError
from ornstein.interop.vae import wrap_vae
from ornstein.latents import KLCodec, Normalisation, Tiles
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig
from ornstein.runs import is_codec, open_codec, save_codec


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own(folder: Path, **changes: object) -> KLCodec:
    """An autoencoder of ours as a run would give it."""
    from ornstein.storage.configs import to_dict

    config = KLConfig(width=8, multipliers=(1, 2), patch=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = KLAutoencoder(config)
    about = {"kind": "autoencoder", "network": to_dict(config), "where": str(folder / "run"), "images": 5}
    return KLCodec(net=net, factor=config.factor, channels=config.latent, about=about, **changes)  # type: ignore[arg-type]


def test_a_saved_autoencoder_is_whole(tmp_path: Path) -> None:
    shift = torch.randn(4, 2, 2, generator=rng()).transpose(1, 2)  # its layout is no part of it
    by = Normalisation(shift=shift, scale=torch.rand(4, 2, 2, generator=rng()) + 0.5)
    codec = own(tmp_path, normalisation=by, tiles=Tiles(side=9, overlap=3))
    folder = save_codec(codec, str(tmp_path / "deep" / "codec"))
    assert folder == tmp_path / "deep" / "codec"
    document = json.loads((folder / "codec.json").read_text())
    assert (document["format"], document["version"], document["kind"]) == ("ornstein-codec", 1, "autoencoder")
    assert (document["tiles"], document["weights"], document["about"]) == ([9, 3], codec.weights, codec.about)
    again = open_codec(folder)
    assert isinstance(again, KLCodec)
    assert (again.fingerprint, again.tiles, again.factor, again.channels) == (codec.fingerprint, codec.tiles, 4, 4)
    assert again.about == codec.about
    image = torch.rand(1, 3, 8, 8, generator=rng())
    torch.testing.assert_close(again.encode(image), codec.encode(image), rtol=1e-4, atol=1e-5)
    assert open_codec(again) is again
    assert is_codec(folder)
    state = torch.random.get_rng_state()
    open_codec(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("damage", ["version", "format", "about", "shift", "scale", "network", "missing", "list"])
def test_a_damaged_codec_is_one_line(tmp_path: Path, damage: str) -> None:
    folder = save_codec(own(tmp_path), tmp_path / "codec")
    document, tensors = json.loads((folder / "codec.json").read_text()), load_file(folder / "codec.safetensors")
    if damage in ("shift", "scale"):
        tensors.pop(damage)
    elif damage == "missing":
        tensors.pop("net.to_pixels.weight" if "net.to_pixels.weight" in tensors else min(tensors))
    elif damage == "network":
        document["about"]["network"]["width"] = "wide"
    elif damage == "list":
        document = [document]
    else:
        document[damage] = 2 if damage == "version" else "else"
    (folder / "codec.json").write_text(json.dumps(document))
    save_file(tensors, folder / "codec.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_codec(folder)
    assert "\n" not in str(caught.value)
    if damage == "version":
        assert "has version 2, this library reads 1" in str(caught.value)


def test_what_is_a_codec_and_what_is_not(tmp_path: Path) -> None:
    def folder(name: str, **files: object) -> Path:
        (tmp_path / name).mkdir(parents=True)
        for file, document in files.items():
            (tmp_path / name / f"{file}.json").write_text(json.dumps(document))
        return tmp_path / name

    kind = {"model": {"kind": "autoencoderspec"}}
    assert is_codec(folder("saved", codec={}))
    assert is_codec(folder("vae", config={"_class_name": "AutoencoderKL"}))
    assert is_codec(folder("run", config=kind))
    assert is_codec(folder("run/checkpoints/5", state={}))
    assert not is_codec(folder("run/checkpoints/6"))
    assert not is_codec(folder("other", config={"model": {"kind": "networkspec"}}))
    assert not is_codec(folder("unet", config={"_class_name": "UNet2DModel"}))
    assert not is_codec(folder("list", config=[1]))
    assert not is_codec(folder("empty"))
    with pytest.raises(CheckpointError, match="is no codec: give identity"):
        open_codec(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="there is no codec"):
        open_codec("no-such-codec")
    with pytest.raises(CheckpointError, match="there is no codec"):
        open_codec("./nobody/nothing")


class Vae(nn.Module):
    """What of a diffusers AutoencoderKL is read."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        known = {"block_out_channels": (8, 16, 16), "latent_channels": 3, "scaling_factor": 0.5}
        self.config = type("Config", (), known | config)()


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({}, [0.0], [0.5]),
        ({"scaling_factor": None}, [0.0], [1.0]),
        ({"shift_factor": 0.25}, [0.25], [0.5]),
        ({"shift_factor": None, "scaling_factor": 2.0}, [0.0], [2.0]),
        ({"latents_mean": [1.0, 2.0, 3.0], "latents_std": [0.5, 4.0, 2.0]}, [1.0, 2.0, 3.0], [1.0, 0.125, 0.25]),
        ({"latents_mean": [1.0, 2.0, 3.0], "latents_std": None}, [0.0], [0.5]),
        ({"latents_mean": None, "latents_std": [1.0, 2.0, 3.0]}, [0.0], [0.5]),
    ],
    ids=str,
)
def test_the_normalisation_of_a_diffusers_autoencoder(config: dict, shift: list[float], scale: list[float]) -> None:
    codec = wrap_vae(Vae(**config), "somewhere")
    assert codec.normalisation.shift.flatten().tolist() == shift
    assert codec.normalisation.scale.flatten().tolist() == scale
    assert (codec.factor, codec.channels, codec.about) == (4, 3, {"kind": "diffusers", "where": "somewhere"})
