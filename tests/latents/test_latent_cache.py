"""Cached latents in closed form: every example, the statistics, what makes another entry, and any kind of damage."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.data import Example, UnreadableError
from ornstein.errors import DataError, UsageError
from ornstein.latents import Identity, KLCodec, Normalisation, Tiles
from ornstein.latents.dataset import latents, moments_of


class Halving(nn.Module):
    """Four pixels become channels; the log-variance of a channel grows with what it holds. It notes its batches."""

    def __init__(self, weight: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=dtype))
        self.batches: list[int] = []

    def moments(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(len(image))
        mean = nn.functional.pixel_unshuffle(image, 2) * self.weight
        return mean, 0.5 * mean - 1.0

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(latent / self.weight, 2)


def codec(weight: float = 1.0, dtype: torch.dtype = torch.float32, **changes: object) -> KLCodec:
    return KLCodec(net=Halving(weight, dtype), factor=2, channels=12, **changes)  # type: ignore[arg-type]


class Pictures:
    """Pictures of random pixels, brighter from channel to channel; every seventh cannot be read."""

    name, classes = "pictures", ("a", "b", "c")

    def __init__(self, count: int = 40, size: int = 4, fingerprint: str = "0") -> None:
        self.count, self.size, self.fingerprint = count, size, fingerprint
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def pixels(self, index: int) -> torch.Tensor:
        draw = np.random.default_rng(index)
        low = np.array([0, 40, 90]).reshape(3, 1, 1)
        return torch.from_numpy(draw.integers(low, 256 - low // 2, (3, self.size, self.size)).astype(np.uint8))

    def __getitem__(self, index: int) -> Example:
        self.read.append(index)
        if index % 7 == 6:
            raise UnreadableError(f"{index}.png", "torn")
        return Example(image=self.pixels(index), label=index % 3, caption=f"number {index}", name=f"{index}.png")

    def raw(self) -> torch.Tensor:
        """The means of all that can be read, in float64."""
        rows = torch.stack([self.pixels(i) for i in range(self.count) if i % 7 != 6]).double()
        return nn.functional.pixel_unshuffle(rows / 127.5 - 1.0, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


@pytest.mark.parametrize("draws", [True, False])
@pytest.mark.parametrize("by", ["none", "channel", "element"])
def test_examples_and_statistics_in_closed_form(by: str, draws: bool) -> None:
    source, std = Pictures(330), 0.7  # more than the 256 rows that the statistics take at a time
    before = Normalisation.of(shift=0.25, scale=3.0)
    made, after = latents(source, codec(normalisation=before), by=by, std=std, draws=draws)  # type: ignore[arg-type]
    raw = source.raw()
    spread = (0.5 * raw - 1.0).exp() if draws else torch.zeros_like(raw)
    if by == "none":
        shift, scale = torch.full((1, 1, 1), 0.25).double(), torch.full((1, 1, 1), 3.0).double()
    elif by == "element":
        shift = raw.mean(0)
        scale = std / (raw.var(0, unbiased=False) + spread.mean(0)).sqrt()
    else:
        shift = raw.mean((0, 2, 3)).reshape(12, 1, 1)
        scale = std / ((raw - shift).square().mean((0, 2, 3)) + spread.mean((0, 2, 3))).sqrt().reshape(12, 1, 1)
    torch.testing.assert_close(after.normalisation.shift.double(), shift, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.normalisation.scale.double(), scale, rtol=1e-5, atol=1e-6)
    assert made.normalise is after.normalisation
    assert (made.shape, made.size, len(made), made.name, made.classes) == (
        (12, 2, 2),
        4,
        330,
        "pictures",
        ("a", "b", "c"),
    )
    for index in (0, 17, 329, -330, -1):
        number = index % 330
        mean = nn.functional.pixel_unshuffle(source.pixels(number).double() / 127.5 - 1.0, 2)
        expected = (mean - shift) * scale
        if draws:
            expected = torch.cat((expected, 0.5 * mean - 1.0 + (2.0 * scale.log()).expand(12, 2, 2)))
        example = made[index]
        assert example.image.dtype == torch.float32
        torch.testing.assert_close(example.image.double(), expected, rtol=1e-5, atol=1e-5)
        assert (example.label, example.caption, example.name) == (number % 3, f"number {number}", f"{number}.png")
    with pytest.raises(UnreadableError, match=r"^13\.png: torn$"):
        made[13]
    with pytest.raises(IndexError):
        made[330]


def test_defaults() -> None:
    """By element to a standard deviation of one half, with the posteriors' own variance."""
    named = latents(Pictures(), codec(), by="element", std=0.5, draws=True)[0].fingerprint
    assert latents(Pictures(), codec())[0].fingerprint == named


def test_what_makes_other_latents() -> None:
    def of(source: Pictures | None = None, by: str = "element", std: float = 0.5, draws: bool = True, **changes):  # type: ignore[no-untyped-def]
        return latents(source or Pictures(), codec(**changes), by=by, std=std, draws=draws)[0].fingerprint  # type: ignore[arg-type]

    prints = [
        of(),
        of(Pictures(41)),
        of(Pictures(size=6)),
        of(Pictures(fingerprint="1")),
        of(weight=1.5),
        of(dtype=torch.float64),
        of(tiles=Tiles(side=3, overlap=1)),
        of(tiles=Tiles(side=3, overlap=2)),
        of(tiles=Tiles(side=4, overlap=1)),
        of(by="channel"),
        of(by="none"),
        of(by="none", normalisation=Normalisation.of(shift=0.1)),
        of(by="none", normalisation=Normalisation.of(scale=1.1)),
        of(std=0.6),
        of(draws=False),
        of(by="none", draws=False),
    ]
    assert len(set(prints)) == len(prints)
    assert of() == prints[0]
    assert of(normalisation=Normalisation.of(shift=0.1, scale=2.0)) == prints[0]  # measured anew


def test_shards_and_batches_and_progress(folder: Path) -> None:
    source, made_by, seen = Pictures(1030, size=2), codec(), []
    made, _ = latents(source, made_by, by="none", progress=lambda *done: seen.append(done))
    assert sorted(path.name for path in folder.glob("latents-*/*")) == [
        *("00000.json", "00000.npy", "00001.json", "00001.npy"),
    ]
    assert made_by.net.batches == [16] * 64 + [6]  # of the shard's own start, so that a restart changes none
    assert seen == [(min(16 * k, 1030) if k <= 64 else 1030, 1030) for k in range(1, 66)]
    assert source.read == list(range(1030))
    for index in (0, 1023, 1024, 1029):
        expected = nn.functional.pixel_unshuffle(source.pixels(index).float() / 127.5 - 1.0, 2)
        torch.testing.assert_close(made[index].image[:12], expected)
    first, second = (np.load(path) for path in sorted(folder.glob("latents-*/*.npy")))
    assert (first.shape, second.shape, first.dtype) == ((1024, 24, 1, 1), (6, 24, 1, 1), np.float32)
    assert bool((first[6, :12] == -1.0).all())  # unreadable: encoded as black


HARMS = ("numbers", "axes", "last byte", "sum", "key", "count", "shape", "format", "list", "header", "nothing")


@pytest.mark.parametrize("harm", HARMS)
def test_any_kind_of_damage_is_encoded_over(folder: Path, harm: str) -> None:
    made, _ = latents(Pictures(), codec())
    good = made[5].image
    (file,) = folder.glob("latents-*/00000.npy")
    notes = file.with_suffix(".json")
    data, document, array = file.read_bytes(), json.loads(notes.read_text()), np.load(file)
    if harm == "numbers":  # the same bytes, which the checksum cannot tell
        np.save(file, array.view(np.int32))
    elif harm == "axes":
        np.save(file, array.reshape(40, 24, 4, 1))
    elif harm == "last byte":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "header":
        file.write_bytes(b"no array")
    elif harm == "list":
        notes.write_text("[]")
    elif harm != "nothing":
        changed = {"sum": {"crc32": document["crc32"] ^ 1}, "key": {"key": "x"}, "count": {"count": 41}}
        changed |= {"shape": {"shape": [24, 2, 3]}, "format": {"format": 2}}
        notes.write_text(json.dumps(document | changed[harm]))
    source = Pictures()
    again, _ = latents(source, codec())
    assert source.read == ([] if harm == "nothing" else list(range(40)))
    assert torch.equal(again[5].image, good)
    assert file.read_bytes() == data


def test_without_a_cache_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "file"))
    source = Pictures()
    made, _ = latents(source, codec(), by="none")
    torch.testing.assert_close(
        made[8].image[:12], nn.functional.pixel_unshuffle(source.pixels(8).float() / 127.5 - 1.0, 2)
    )
    assert (made[8].label, made[8].caption) == (2, "number 8")
    with pytest.raises(UnreadableError, match=r"^6\.png: torn$"):
        made[6]


def test_moments_of_a_batch() -> None:
    image = torch.arange(48.0).reshape(1, 12, 2, 2)
    mean, logvar = moments_of(image, 6)  # type: ignore[misc]
    assert torch.equal(mean, image[:, :6])
    assert torch.equal(logvar, image[:, 6:])
    assert moments_of(image, 12) is None
    assert moments_of(image, 4) is None


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(DataError, match=r"autoencoder, got Identity: leave the codec out"):
        latents(Pictures(), Identity())
    with pytest.raises(DataError, match="pictures of 5 pixels do not divide by 2"):
        latents(Pictures(size=5), codec())
    only = Pictures(1)
    only.count = 0
    with pytest.raises(UsageError, match="at least one image"):
        latents(only, codec())


def test_the_codec_that_comes_back_differs_in_its_normalisation_alone() -> None:
    before = codec(normalisation=Normalisation.of(shift=0.3), tiles=Tiles(side=8, overlap=2))
    _, after = latents(Pictures(), before)
    assert (after.net, after.weights, after.tiles) == (before.net, before.weights, before.tiles)
    kept = replace(before, normalisation=Normalisation.of(scale=math.pi))
    assert latents(Pictures(), kept, by="none")[1].normalisation is kept.normalisation
