"""Codecs in closed form: normalisation, running statistics, digests, the weights of tiles, and the report."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.data import Example, UnreadableError
from ornstein.errors import ConfigError, UsageError
from ornstein.latents import Identity, KLCodec, Moments, Normalisation, Running, Tiles, normalisation, weights_digest
from ornstein.metrics.reconstruction import reconstruction
from ornstein.networks.autoencoder import KLAutoencoder, KLConfig


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- normalisation


def test_a_draw_is_its_formula() -> None:
    mean, logvar, noise = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1), randn(2, 3, 4, 5, seed=2)
    moments = Moments(mean, logvar)
    torch.testing.assert_close(moments.draw(noise), mean + torch.exp(logvar / 2) * noise, rtol=1e-12, atol=0)
    assert moments.draw(None) is mean
    assert moments.draw(noise.float()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 4, 5), (1, 4, 5), (3, 1, 5)], ids=str)
def test_there_and_back_in_double(shape: tuple[int, ...]) -> None:
    by = Normalisation(shift=randn(*shape), scale=randn(*shape, seed=1).abs() + 0.3)
    z, logvar = randn(2, 3, 4, 5, seed=2), randn(2, 3, 4, 5, seed=3)
    latent = by.apply(z)
    torch.testing.assert_close(latent, (z - by.shift) * by.scale, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by.undo(latent), z, rtol=1e-12, atol=1e-12)
    # The deviation of a draw is scaled as the draw is.
    wide = torch.exp((logvar + by.log_scale(z)) / 2)
    torch.testing.assert_close(wide, torch.exp(logvar / 2) * by.scale, rtol=1e-12, atol=0)
    assert by.by_element == (shape[1:] != (1, 1))


def test_what_is_no_normalisation() -> None:
    one = torch.ones(1, 1, 1)
    for wrong in (torch.ones(3), torch.ones(1, 1, 1, 1), one * math.inf, one * math.nan):
        with pytest.raises(ConfigError, match="the shift of latents must be finite"):
            Normalisation(shift=wrong, scale=one)
        with pytest.raises(ConfigError, match="the scale of latents must be finite"):
            Normalisation(shift=one, scale=wrong)
    for value in (0.0, -1.0):
        with pytest.raises(ConfigError, match="must be positive everywhere"):
            Normalisation.of(scale=[1.0, value])
    by = Normalisation.of(shift=[1.0, 2.0], scale=4.0)
    assert (by.shift.shape, by.scale.shape, by.shift.dtype) == ((2, 1, 1), (1, 1, 1), torch.float32)
    plain = Normalisation.of()
    assert (plain.shift.item(), plain.scale.item()) == (0.0, 1.0)
    assert (Normalisation().shift.item(), Normalisation().scale.item()) == (0.0, 1.0)
    with pytest.raises(UsageError, match=r"normalised for shape \(2, 1, 1\), got \(3, 4, 4\)"):
        by.apply(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UsageError, match=r"normalised for shape \(1, 1, 5\), got \(3, 4, 4\)"):
        Normalisation(scale=torch.ones(1, 1, 5)).undo(torch.zeros(1, 3, 4, 4))


def test_running_statistics_are_those_of_the_whole_in_any_blocks() -> None:
    # Far from zero: in single precision nothing of the variance would be left.
    z, logvar = randn(50, 2, 3, 1) * 1e-3 + 1e4, randn(50, 2, 3, 1, seed=1)
    for sizes in ((50,), (1, 49), (20, 7, 23)):
        seen, drawn = Running(), Running()
        for part, width in zip(z.split(sizes), logvar.split(sizes), strict=True):
            seen.update(part)
            drawn.update(part, width)
        assert (seen.count, drawn.count) == (50, 50)
        torch.testing.assert_close(seen.mean, z.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(seen.squares, (z - z.mean(0)).square().sum(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(drawn.squares, seen.squares + logvar.exp().sum(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("by", ["channel", "element"])
def test_statistics_replace_what_latents_had(by: str) -> None:
    z = 2.0 * randn(40, 3, 2, 2) + 5.0 * randn(3, 2, 2, seed=1)
    old = Normalisation(shift=randn(3, 2, 2, seed=2).float(), scale=(randn(3, 1, 1, seed=3).abs() + 0.5).float())
    seen = Running()
    seen.update(old.apply(z))
    found = normalisation(seen, by, std=0.8, before=old)  # type: ignore[arg-type]
    fresh = found.apply(z)
    around = (0,) if by == "element" else (0, 2, 3)
    if by == "element":
        torch.testing.assert_close(fresh.mean(0), torch.zeros(3, 2, 2).double(), rtol=0, atol=1e-5)
        width = torch.full((3, 2, 2), 0.64).double()
        torch.testing.assert_close(fresh.var(0, unbiased=False), width, rtol=1e-5, atol=0)
    else:  # the old shift by element stays: what is measured is brought to zero and 0.8 by channel
        shown = old.apply(z)
        want = (shown - shown.mean(around, keepdim=True)) / shown.std(around, unbiased=False, keepdim=True) * 0.8
        torch.testing.assert_close(fresh, want, rtol=1e-4, atol=1e-4)


def test_deviations_have_a_floor_of_a_thousandth_of_the_largest() -> None:
    z = randn(40, 1, 1, 4) * torch.tensor([1.0, 1e-2, 1e-5, 0.0])
    seen = Running()
    seen.update(z)
    found = normalisation(seen, "element")
    sigma = z.std(0, unbiased=False)
    floor = torch.tensor([float(sigma[0, 0, 0]), float(sigma[0, 0, 1]), *[1e-3 * float(sigma[0, 0, 0])] * 2]).double()
    torch.testing.assert_close(found.scale.double().flatten(), 0.5 / floor, rtol=1e-6, atol=0)
    still = Running()
    still.update(torch.full((1, 1, 1, 2), 0.7))  # one image is enough
    assert normalisation(still, "element").scale.flatten().tolist() == [0.5, 0.5]
    assert normalisation(still, "channel", std=2.0).scale.flatten().tolist() == [2.0]


# ------------------------------------------------------------------------------------------------------------- digests


class Other(nn.Linear):
    pass


def linear(kind: type[nn.Linear] = nn.Linear, **changes: torch.Tensor) -> nn.Module:
    made = kind(2, 3)
    made.load_state_dict({"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.zeros(3)})
    for name, value in changes.items():
        setattr(made, name, nn.Parameter(value, requires_grad=False))
    return made


def test_a_digest_of_weights_knows_names_kinds_shapes_and_bytes() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    renamed = linear()
    renamed.gain, renamed.bias = renamed.bias, None  # type: ignore[assignment]
    changed = values.clone()
    changed[2, 1] += 1e-6
    prints = [
        weights_digest(linear()),
        weights_digest(linear(Other)),
        weights_digest(renamed),
        weights_digest(linear(weight=changed)),
        weights_digest(linear(weight=values.reshape(2, 3))),
        weights_digest(linear(weight=values.view(torch.int32))),
        weights_digest(linear(weight=values.half())),
        weights_digest("no module"),
    ]
    assert len(set(prints)) == len(prints)
    assert weights_digest(linear()) == prints[0]
    assert weights_digest(linear(weight=values.t().contiguous().t())) == prints[0]  # the layout is not content


class Shuffled(nn.Module):
    """Pixels become channels and back."""

    def moments(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = nn.functional.pixel_unshuffle(image, 2)
        return mean, mean - 2.0

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(latent, 2)


def shuffled(**changes: object) -> KLCodec:
    return KLCodec(net=Shuffled(), factor=2, channels=12, **changes)  # type: ignore[arg-type]


def test_a_codecs_fingerprint_knows_the_values_and_shapes_of_its_normalisation() -> None:
    of = Normalisation.of
    by = [of(), of(shift=0.1), of(scale=1.1), of(shift=[0.0] * 12), of(scale=[1.0] * 12), of(shift=1.0, scale=0.1)]
    prints = [shuffled(normalisation=one).fingerprint for one in [*by, of(shift=0.1, scale=1.0 + 1e-6)]]
    prints.append(shuffled(weights="others").fingerprint)
    assert len(set(prints)) == len(prints)
    assert shuffled().normalised(by[1]).fingerprint == prints[1]
    assert shuffled(tiles=Tiles()).fingerprint == prints[0]


def test_a_codec_keeps_everything_but_what_is_changed() -> None:
    codec = shuffled(normalisation=Normalisation.of(shift=0.3), about={"kind": "x"}, weights="w")
    tiled = codec.tiled()
    assert (tiled.tiles, tiled.normalisation, tiled.about, tiled.weights) == (
        Tiles(side=64, overlap=16),
        codec.normalisation,
        {"kind": "x"},
        "w",
    )
    assert Tiles() == Tiles(side=64, overlap=16)
    by = Normalisation.of(scale=2.0)
    again = tiled.normalised(by)
    assert (again.tiles, again.normalisation, again.weights) == (tiled.tiles, by, "w")
    assert codec.latent_shape((3, 8, 6)) == (12, 4, 3)
    assert (codec.dtype, codec.device) == (torch.float32, torch.device("cpu"))
    double = KLCodec(net=KLAutoencoder(KLConfig(width=8)).double(), factor=4, channels=4)
    assert double.dtype == torch.float64
    assert double.to("cpu") is double
    assert not double.net.training


def test_a_codec_answers_in_its_inputs_precision_and_computes_in_its_own() -> None:
    torch.manual_seed(0)
    double = KLCodec(net=KLAutoencoder(KLConfig(width=8)).double(), factor=4, channels=4)
    image, latent = torch.rand(1, 3, 8, 8, generator=rng()), torch.randn(1, 4, 2, 2, generator=rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, logvar = double.moments(image)
        picture = double.decode(latent)
    expected = double.net.moments(image.double())
    # Computed in double and rounded once: in the precision of the input nothing like this would come out.
    torch.testing.assert_close(mean, expected[0].float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logvar, expected[1].float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(picture, double.net.decode(latent.double()).float(), rtol=1e-6, atol=1e-7)
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 6)):
        with pytest.raises(UsageError, match="sides divide by 4"):
            double.moments(wrong)
    for wrong in (torch.zeros(4, 2, 2), torch.zeros(1, 3, 2, 2)):
        with pytest.raises(UsageError, match=r"latents \(B, 4, h, w\)"):
            double.decode(wrong)


def test_pictures_are_their_own_latents() -> None:
    image, codec = torch.randn(1, 3, 4, 4, generator=rng()), Identity()
    assert codec.encode(image, torch.ones(1)) is image
    assert codec.decode(image) is image
    assert (codec.factor, codec.channels, codec.fingerprint) == (1, 3, "identity")


# --------------------------------------------------------------------------------------------------------------- tiles


def ramps(side: int, overlap: int, after: int, length: int) -> list[tuple[int, np.ndarray]]:
    """(start, weights over the whole side) of each tile: linear from ½ a step above 0 where two tiles meet."""
    starts = Tiles(side=side, overlap=overlap).starts(length)
    found = []
    for start in starts:
        weight = np.zeros(length * after)
        for place in range(side * after):
            rise = (place + 0.5) / (overlap * after) if overlap and start > 0 else 1.0
            fall = (side * after - place - 0.5) / (overlap * after) if overlap and start + side < length else 1.0
            weight[start * after + place] = min(rise, 1.0) * min(fall, 1.0)
        found.append((start, weight))
    return found


@pytest.mark.parametrize(("side", "overlap", "after"), [(4, 1, 1), (4, 2, 2), (3, 0, 2), (5, 2, 1), (4, 3, 1)])
def test_seams_fade_linearly(side: int, overlap: int, after: int) -> None:
    """Every tile answers its own number, so the picture is the weighted mean of the numbers."""
    height, width = 7, 9
    count = itertools.count()
    tiles = Tiles(side=side, overlap=overlap)

    def numbered(part: torch.Tensor) -> torch.Tensor:
        assert part.shape == (1, 2, side, side)
        return torch.full((1, 1, side * after, side * after), float(next(count)), dtype=torch.float64)

    found = tiles.run(numbered, torch.zeros(1, 2, height, width, dtype=torch.float64), 1, after)
    total, weights = np.zeros((height * after, width * after)), np.zeros((height * after, width * after))
    tall, wide = ramps(side, overlap, after, height), ramps(side, overlap, after, width)
    for number, ((_, row), (_, column)) in enumerate(itertools.product(tall, wide)):
        total += number * row[:, None] * column
        weights += row[:, None] * column
    np.testing.assert_allclose(found[0, 0].numpy(), total / weights, rtol=1e-12)
    assert next(count) == len(tall) * len(wide)


def test_where_tiles_begin() -> None:
    tiles = Tiles(side=6, overlap=2)
    expected = {1: [0], 6: [0], 7: [0, 1], 10: [0, 4], 11: [0, 4, 5], 14: [0, 4, 8], 15: [0, 4, 8, 9]}
    assert {length: tiles.starts(length) for length in expected} == expected
    assert Tiles(side=2, overlap=1).starts(4) == [0, 1, 2]
    for side, overlap in ((1, 0), (4, -1), (4, 4), (4, 5)):
        with pytest.raises(ConfigError, match="side ≥ 2 and 0 ≤ overlap < side"):
            Tiles(side=side, overlap=overlap)


def test_tiles_stay_where_their_image_is() -> None:
    """On a device without numbers every mixture with the host is an error."""
    x = torch.zeros(1, 2, 12, 9, device="meta", dtype=torch.float64)
    found = Tiles(side=4, overlap=2).run(lambda part: part[:, :1], x, 1, 1)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (1, 1, 12, 9), torch.float64)
    by = Normalisation.of(shift=0.1, scale=[2.0, 3.0])
    for latent in (by.apply(x), by.undo(x), by.log_scale(x)):
        assert (latent.device.type, latent.dtype) == ("meta", torch.float64)


def test_one_tile_is_the_function_itself_and_a_narrow_side_is_not_padded() -> None:
    shapes: list[tuple[int, ...]] = []

    def same(part: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(part.shape[-2:]))
        return nn.functional.avg_pool2d(part, 2)

    x = randn(1, 1, 12, 40)
    tiles = Tiles(side=6, overlap=2)
    torch.testing.assert_close(tiles.run(same, x[..., :12], 2, 1), same(x[..., :12]))
    shapes.clear()
    torch.testing.assert_close(tiles.run(same, x, 2, 1), nn.functional.avg_pool2d(x, 2))
    assert set(shapes) == {(12, 12)}
    shapes.clear()
    torch.testing.assert_close(tiles.run(same, x[..., :6, :], 2, 1), nn.functional.avg_pool2d(x[..., :6, :], 2))
    assert set(shapes) == {(6, 12)}
    shapes.clear()
    tall = x.transpose(2, 3)[..., :6]
    torch.testing.assert_close(tiles.run(same, tall, 2, 1), nn.functional.avg_pool2d(tall, 2))
    assert set(shapes) == {(12, 6)}


# -------------------------------------------------------------------------------------------------------------- report


class Dimmed:
    """A codec whose pictures come back a little darker, by channel; its latents are twice the pictures."""

    factor, channels, fingerprint = 1, 3, "dimmed"
    shift = torch.tensor([0.02, 0.05, 0.0]).reshape(3, 1, 1)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        del noise
        self.batches.append(len(image))
        return 2.0 * image

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent / 2.0 - self.shift


class Faces:
    """Pictures of one value each; number 4 cannot be read."""

    name, classes, size, fingerprint = "faces", (), 8, "0"

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Example:
        if index == 4:
            raise UnreadableError("4", "torn")
        image = torch.full((3, 8, 8), 100 + 5 * index, dtype=torch.uint8)
        image[:, 0] = 3  # too dark to be dimmed by the whole shift
        return Example(image=image)


def test_the_report_in_closed_form() -> None:
    def metric(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (b - a).flatten(1).amax(1) * torch.arange(1.0, len(a) + 1.0)

    codec = Dimmed()
    found = reconstruction(codec, Faces(), count=7, batch=3, metric=metric)
    picked = [0, 3, 6, 9, 13, 16, 19]  # ⌊i·23/7⌋
    pictures = torch.stack([Faces()[i].image for i in picked]).double()
    again = ((pictures / 127.5 - 1.0 - Dimmed.shift + 1.0) * 127.5).round().clamp(0, 255)
    error = (pictures - again).flatten(1)
    psnr = [10 * math.log10(255.0**2 / float(row.square().mean())) for row in error]
    assert codec.batches == [3, 3, 1]
    assert (found.count, found.metric) == (7, "function")
    assert found.psnr == pytest.approx(sum(psnr) / 7, rel=1e-9)
    assert found.l1 == pytest.approx(float(error.abs().mean()) / 127.5, rel=1e-9)
    farthest = (error / 127.5).amax(1) * torch.tensor([1.0, 2, 3, 1, 2, 3, 1])
    assert found.perceptual == pytest.approx(float(farthest.mean()), rel=1e-5)
    power = (2.0 * (pictures / 127.5 - 1.0)).square().mean()
    assert found.latent_std == pytest.approx(float(power.sqrt()), rel=1e-6)


def test_the_report_of_everything_and_of_nothing_lost() -> None:
    codec = Dimmed()
    whole = reconstruction(codec, Faces())
    assert (whole.count, codec.batches, whole.metric) == (23, [16, 7], "")
    assert math.isnan(whole.perceptual)
    lossless = reconstruction(Identity(), Faces(), count=3)
    assert lossless.psnr == pytest.approx(10 * math.log10(255.0**2 / 1e-10))
    assert lossless.l1 == 0.0
    square = nn.MSELoss()
    square.name = "square"  # type: ignore[assignment]
    assert reconstruction(Identity(), Faces(), count=2, metric=square).metric == "square"
