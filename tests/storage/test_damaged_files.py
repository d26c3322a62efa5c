"""Every kind of file that the library writes, damaged anywhere: it opens as it was, or is refused in one line.

And descriptions that promise more than their weights hold: refused before anything is allocated.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ornstein as orn
from ornstein.errors import CheckpointError, OrnsteinError
from ornstein.guides.own import files as guides
from ornstein.latents import KLCodec
from ornstein.metrics import Statistics
from ornstein.networks import DiTConfig
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig
from ornstein.rarity import Table
from ornstein.runs import open_codec, open_run, save_codec
from ornstein.storage.configs import to_dict
from ornstein.training import Every, TrainConfig, train


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """One folder with a file of every kind."""
    home = tmp_path_factory.mktemp("home")
    train(
        TrainConfig(
            data="critters:4", out=str(home / "run"), size=16, images=8, batch=4, condition="label",
            network=DiTConfig(width=16, depth=1, head_width=16, patch=8), tensorboard=False, workers=0,
            every=Every(log=4, checkpoint=4, seconds=0, samples=0),
        ),
        quiet=True,
    )  # fmt: skip
    config = KLConfig(width=8, multipliers=(1, 2), patch=2)
    about = {"kind": "autoencoder", "network": to_dict(config), "where": "", "images": 5}
    net = KLAutoencoder(config)
    save_codec(KLCodec(net=net, factor=config.factor, channels=config.latent, about=about), home / "codec")
    header = {
        "format": "ornstein-rarity",
        "version": 1,
        "data": {"name": "d", "fingerprint": "f", "examples": 3, "classes": []},
    }
    table = Table(header=header, names=("a", "b", "c"), scores=np.arange(3.0), labels=np.full(3, -1))
    for suffix in ("csv", "json", "safetensors"):
        table.write(home / f"scores.{suffix}")
    return home


def weights(path: Path) -> list[torch.Tensor]:
    return list(open_run(path).denoiser.net.state_dict().values())


KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config.json": ("run", weights),
    "checkpoints/000000000008/ema.safetensors": ("run", weights),
    "codec.json": ("codec", lambda path: open_codec(path).fingerprint),
    "codec.safetensors": ("codec", lambda path: open_codec(path).fingerprint),
    "scores.csv": (".", lambda path: Table.read(path / "scores.csv").names),
    "scores.csv.json": (".", lambda path: Table.read(path / "scores.csv").names),
    "scores.json": (".", lambda path: Table.read(path / "scores.json").names),
    "scores.safetensors": (".", lambda path: Table.read(path / "scores.safetensors").names),
}


@pytest.mark.parametrize("name", KINDS)
@given(damage=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_opens_or_is_one_line(home, tmp_path_factory, name, damage) -> None:
    where, reader = KINDS[name]
    folder = Path(shutil.copytree(home / where, tmp_path_factory.mktemp("damaged") / "it"))
    data = bytearray((folder / name).read_bytes())
    # Headers and documents are where structure lies: half of the damage goes to the first bytes.
    place = damage.draw(st.integers(0, len(data) - 1) | st.integers(0, min(len(data), 400) - 1))
    way = damage.draw(st.sampled_from(["cut", "flip", "replace", "insert", "swap"]))
    piece = damage.draw(
        st.binary(min_size=1, max_size=12) | st.sampled_from([b"9" * 40, b"[" * 999, b"-1", b"null", b"1e999"])
    )
    if way == "cut":
        del data[place:]
    elif way == "flip":
        data[place] ^= 1 << damage.draw(st.integers(0, 7))
    elif way == "replace":
        data[place : place + len(piece)] = piece
    elif way == "insert":
        data[place:place] = piece
    else:
        data[place : place + 8] = data[place : place + 8][::-1]
    (folder / name).write_bytes(data)
    before, began, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), "opened"
    try:
        reader(folder)
    except OrnsteinError as error:
        said = str(error)
    assert said.isprintable()
    assert 0 < len(said) < 1000
    assert time.monotonic() - began < 5.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


# ------------------------------------------------------------------------------------------- promises of a description

HUGE = [0, -1, 10**8, 10**12, 2**63 - 1]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "key", ["shape.0", "shape.1", *(f"network.{name}" for name in ("width", "depth", "channels", "patch", "classes"))]
)
def test_a_description_of_another_model_is_refused_at_once(home, tmp_path, key, value) -> None:
    folder = Path(shutil.copytree(home / "run", tmp_path / "run"))
    document = json.loads((folder / "config.json").read_text())
    here, (*parts, last) = document["model"], key.split(".")
    for part in parts:
        here = here[part]
    here[int(last) if last.isdecimal() else last] = value
    (folder / "config.json").write_text(json.dumps(document))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError) as error:
        orn.load(folder)
    assert str(error.value).isprintable()
    assert time.monotonic() - began < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("key", ["width", "latent", "blocks", "patch"])
def test_a_codec_or_guide_of_another_size_is_refused_at_once(home, tmp_path, key) -> None:
    folder = Path(shutil.copytree(home / "codec", tmp_path / "codec"))
    document = json.loads((folder / "codec.json").read_text())
    if key in document["about"]["network"]:
        document["about"]["network"][key] = 10**9
    else:
        document["about"]["network"] = {}
    (folder / "codec.json").write_text(json.dumps(document))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError):
        open_codec(folder)
    assert time.monotonic() - began < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_files_that_are_no_files_are_refused_wherever_one_is_read(home, tmp_path) -> None:
    import os

    folder = Path(shutil.copytree(home, tmp_path / "home", symlinks=True))
    for name, (where, reader) in KINDS.items():
        path = folder / where / name
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(OrnsteinError) as error:
            reader(folder / where)
        assert str(error.value).isprintable()
        path.unlink()
        shutil.copy(home / where / name, path)
    os.mkfifo(folder / "x.safetensors")
    for reader in (Statistics.load, lambda path: guides.read_network("classifier", path)):
        with pytest.raises(OrnsteinError, match="not a regular file"):
            reader(folder / "x.safetensors")
