"""Runs on latents: encoded once, resumed bit for bit, and decoded wherever pictures are wanted."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.cli.main import main
from ornstein.data import Example, UnreadableError, open_source
from ornstein.errors import CheckpointError, ConfigError, DataError, UsageError
from ornstein.latents import Identity
from ornstein.latents import dataset as cached
from ornstein.latents.dataset import latents
from ornstein.runs import export, is_codec, open_codec, open_run
from ornstein.training import train
from ornstein.training.config import LatentOptions

_spec = importlib.util.spec_from_file_location("latents_conftest", Path(__file__).with_name("conftest.py"))
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)
BATCH = tiny.BATCH


class Pictures:
    """A source that counts how often it is read; every seventh picture cannot be."""

    name, classes, size, fingerprint = "pictures", ("a", "b"), 16, "0"

    def __init__(self, count=20):
        self.count, self.read = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read += 1
        if index % 7 == 6:
            raise UnreadableError(f"{index}.png", "torn")
        image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        return Example(image=image, label=index % 2, caption=f"number {index}", name=f"{index}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory, autoencoder) -> Path:
    out = tmp_path_factory.mktemp("latent") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORNSTEIN_CACHE", str(out.parent / "cache"))
        train(tiny.latent_config(out, autoencoder), quiet=True)
    return out


def test_examples_are_normalised_latents_with_all_that_was_known(autoencoder):
    source, codec = Pictures(), open_codec(autoencoder)
    made, normalised = latents(source, codec, by="element", draws=False)
    assert made.shape == (4, 4, 4)
    assert (made.name, made.classes, len(made), made.size) == ("pictures", ("a", "b"), 20, 16)
    image = source[3].image[None].float() / 127.5 - 1
    torch.testing.assert_close(made[3].image[None], normalised.encode(image), atol=1e-4, rtol=1e-4)
    assert (made[3].label, made[3].caption, made[3].name) == (1, "number 3", "3.png")
    with pytest.raises(UnreadableError, match="torn"):
        made[6]
    rows = torch.stack([made[i].image for i in range(20) if i % 7 != 6]).double()
    torch.testing.assert_close(rows.mean(0), torch.zeros(4, 4, 4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(0, unbiased=False), torch.full((4, 4, 4), 0.5).double(), atol=1e-4, rtol=0)
    both, _ = latents(source, codec, draws=True)
    assert both[0].image.shape == (8, 4, 4)
    assert both.fingerprint != made.fingerprint


def test_pictures_are_encoded_once(autoencoder):
    first, codec = Pictures(), open_codec(autoencoder)
    made, _ = latents(first, codec)
    assert first.read == 20
    second = Pictures()
    again, _ = latents(second, codec)
    assert second.read == 0
    assert again.fingerprint == made.fingerprint
    assert torch.equal(again[2].image, made[2].image)
    other = Pictures()
    latents(other, codec.tiled(2, 1))
    assert other.read == 20
    copied = pickle.loads(pickle.dumps(made))
    assert torch.equal(copied[2].image, made[2].image)


def test_encoding_goes_on_where_it_was_interrupted(autoencoder, monkeypatch, tmp_path):
    monkeypatch.setattr(cached, "SHARD", 6)
    codec = open_codec(autoencoder)

    class Failing(Pictures):
        def __getitem__(self, index):
            if index == 13:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        latents(Failing(), codec)
    source = Pictures()
    made, _ = latents(source, codec)
    assert source.read == 8  # the first twelve were there
    whole = [made[i].image for i in (0, 5, 12, 19)]
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "elsewhere"))
    afresh, _ = latents(Pictures(), codec)
    assert all(torch.equal(a, afresh[i].image) for a, i in zip(whole, (0, 5, 12, 19), strict=True))


@pytest.mark.parametrize("damage", ["torn", "changed", "no notes"])
def test_a_damaged_cache_is_made_again(autoencoder, tmp_path, damage):
    codec = open_codec(autoencoder)
    made, _ = latents(Pictures(), codec)
    before = made[0].image
    (file,) = (tmp_path / "cache").glob("latents-*/00000.npy")
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "changed":
        array = np.load(file)
        array[0] += 1.0
        np.save(file, array)
    else:
        file.with_suffix(".json").unlink()
    source = Pictures()
    again, _ = latents(source, codec)
    assert source.read == 20
    assert torch.equal(again[0].image, before)


def test_a_cache_that_cannot_be_written_costs_only_time(autoencoder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "file"))
    made, _ = latents(Pictures(), open_codec(autoencoder))
    assert made[0].image.shape == (8, 4, 4)


def test_what_cannot_be_encoded(autoencoder):
    with pytest.raises(DataError, match="leave the codec out"):
        latents(Pictures(), Identity())
    source = Pictures()
    source.size = 18
    with pytest.raises(DataError, match="do not divide by 4"):
        latents(source, open_codec(autoencoder))


# ---------------------------------------------------------------------------------------------------------------- runs


def test_a_run_knows_its_codec(run, autoencoder):
    opened = open_run(run)
    assert opened.denoiser.shape == (4, 4, 4)
    assert opened.picture == (3, 16, 16)
    assert opened.codec.normalisation.by_element
    assert opened.codec.weights == open_codec(autoencoder).weights
    images = orn.sample(orn.load(run), 2, steps=3, seed=1)
    raw = orn.sample(orn.load(run), 2, steps=3, seed=1, decode=False)
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(opened.codec.decode(raw), images)


def test_it_outlives_the_autoencoder(run, autoencoder, tmp_path):
    place = shutil.copytree(autoencoder, tmp_path / "auto")
    train(tiny.latent_config(tmp_path / "run", place, images=3 * BATCH), quiet=True)
    shutil.rmtree(place)
    train(tiny.latent_config(tmp_path / "run", place), quiet=True)
    for part in ("model", "ema", "optimizer"):
        one, other = (
            load_file(max((folder / "checkpoints").iterdir()) / f"{part}.safetensors")
            for folder in (run, tmp_path / "run")
        )
        assert all(torch.equal(one[name], other[name]) for name in one), part
    assert orn.sample(orn.load(tmp_path / "run"), 1, steps=2).shape == (1, 3, 16, 16)


def test_another_codec_is_another_run(run, autoencoder, tmp_path):
    place = shutil.copytree(run, tmp_path / "run")
    changed = tiny.latent_config(place, autoencoder, images=9 * BATCH, latents=LatentOptions(statistics="channel"))
    with pytest.raises(ConfigError, match=r"the data of|latents\.statistics"):
        train(changed, quiet=True)
    shutil.rmtree(place / "codec")
    with pytest.raises(CheckpointError, match="lost its codec"):
        open_run(place)


@pytest.mark.parametrize(
    "options",
    [
        LatentOptions(statistics="none"),
        LatentOptions(statistics="channel", std=1.0),
        LatentOptions(draw=False),
    ],
    ids=["as the codec makes them", "by channel", "means"],
)
def test_other_latents(autoencoder, tmp_path, options):
    train(tiny.latent_config(tmp_path / "run", autoencoder, images=BATCH, latents=options), quiet=True)
    codec = open_run(tmp_path / "run").codec
    assert codec.normalisation.by_element == (options.statistics == "element")
    if options.statistics == "none":
        assert torch.equal(codec.normalisation.scale, torch.ones(1, 1, 1))


def test_a_card_takes_the_codec_along(run, tmp_path):
    card = export(open_run(run), tmp_path / "card", half=False)
    assert torch.equal(orn.sample(orn.load(card), 1, steps=2), orn.sample(orn.load(run), 1, steps=2))


def test_a_card_names_a_codec_that_comes_with_the_library(run, autoencoder, tmp_path, monkeypatch):
    opened = open_run(run)
    for module in ("open", "codecs"):
        monkeypatch.setattr(f"ornstein.runs.{module}.shipped", lambda: (opened.codec.about["where"],))
    card = export(opened, tmp_path / "card", half=False)
    assert set(load_file(card / "codec" / "codec.safetensors")) == {"shift", "scale"}
    assert torch.equal(orn.sample(orn.load(card), 1, steps=2), orn.sample(orn.load(run), 1, steps=2))
    document = json.loads((card / "codec" / "codec.json").read_text())
    (card / "codec" / "codec.json").write_text(json.dumps(document | {"weights": "others"}))
    with pytest.raises(CheckpointError, match="has other weights than it was made with"):
        orn.load(card)


def test_the_shipped_codec_shows_what_it_was_shown():
    codec = open_codec("critters-latents")
    image = open_source("critters", size=64, limit=4)[3].image.float()[None] / 127.5 - 1
    latent = codec.encode(image)
    assert latent.shape == (1, 8, 8, 8)
    assert float((codec.decode(latent) - image).square().mean()) < 4 * 10**-2.7  # 27 dB
    assert is_codec("critters-latents")
    with pytest.raises(UsageError, match="autoencoder, which makes no pictures"):
        orn.sample(orn.load("critters-latents"), 1)


def test_the_command_decodes(run, tmp_path, capsys):
    assert main(["sample", str(run), "--n", "2", "--steps", "2", "--out", str(tmp_path / "out")]) == 0
    from PIL import Image

    with Image.open(tmp_path / "out" / "000001.png") as picture:
        assert picture.size == (16, 16)
    words = ["--n", "4", "--steps", "2", "--metrics", "diversity", "--json"]
    capsys.readouterr()
    assert main(["eval", str(run), *words]) == 0
    assert json.loads(capsys.readouterr().out)["resolution"] == [16, 16]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codec", "no/such/codec"], "no codec"),
        (["--codec", "CODEC", "--flip"], "mirrors"),
        (["--codec", "CODEC", "--size", "18"], "do not divide by 4"),
        (["--codec", "CODEC", "--latents.std", "0"], "must be positive"),
        (["--codec", "identity"], "leave the codec out"),
        (["--codec", "CODEC", "--network", "unet", "--network.multipliers", "1", "1", "1", "1"], "size 4"),
    ],
)
def test_what_does_not_fit_costs_one_line(autoencoder, tmp_path, capsys, words, message):
    words = [str(autoencoder) if word == "CODEC" else word for word in words]
    head = ["train", "ddpm", "--data", "critters:8", "--out", str(tmp_path / "out")]
    size = [] if "--size" in words else ["--size", "16"]
    assert main([*head, *size, *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ornstein: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["cas-dm", "udpm"])
def test_methods_of_pictures_refuse_latents(autoencoder, tmp_path, capsys, method):
    words = ["train", method, "--data", "critters:8", "--out", str(tmp_path / "out"), "--codec", str(autoencoder)]
    assert main(words) == 2
    assert "works on pictures" in capsys.readouterr().err


def test_drawing_is_a_function_of_the_sample_alone(autoencoder):
    """Two epochs draw two latents of one picture; the batch does not matter."""
    made, _ = latents(open_source("critters:8", size=16), open_codec(autoencoder), draws=True)
    from ornstein.data import batches

    one = next(batches(made, batch=8, seed=0, shuffle=False))
    assert one.images.shape == (8, 8, 4, 4)
    assert one.images.dtype == torch.float32
    assert torch.equal(one.images[3], made[3].image)
