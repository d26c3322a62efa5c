"""Laws of the energies that need no network, of blurs and of thresholds."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from ornstein import guidance as guide
from ornstein.denoisers import Denoiser
from ornstein.errors import UsageError
from ornstein.guidance.energies import gradients, rows_of, slope
from ornstein.guidance.perturbed import blurred
from ornstein.paths import VE
from ornstein.randomness import Noise

X = Noise.of(0, range(3), dtype=torch.float64).normal("x", (3, 8, 8)).clamp(-1, 1)
PICTURE = Noise.of(1, range(1), dtype=torch.float64).normal("y", (3, 8, 8)).clamp(-1, 1)
MASK = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
MASK[..., :4] = 1.0
COLOURS = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.5]], dtype=torch.float64)

ENERGIES = {
    "inpainting": guide.inpainting(PICTURE, MASK),
    "super-resolution": guide.super_resolution(torch.nn.functional.avg_pool2d(PICTURE, 4), 4),
    "colour": guide.Colour(target=COLOURS[:1]),
    "masked colour": guide.Colour(target=COLOURS[:1], mask=MASK),
    "palette": guide.Palette(colours=COLOURS),
    "edges": guide.Edges.like(PICTURE),
    "smoothness": guide.Smoothness(),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_one_number_a_sample_with_the_gradient_of_finite_differences(name: str) -> None:
    energy = ENERGIES[name]
    values = energy(X)
    assert values.shape == (3,)
    assert bool((values >= -1e-12).all())
    for i in range(3):
        torch.testing.assert_close(energy(X[i : i + 1]), values[i : i + 1], rtol=1e-12, atol=1e-12)
    gradient, found = slope(((1.0, energy),), X)
    torch.testing.assert_close(found, values)
    way = Noise.of(2, range(3), dtype=torch.float64).normal("d", (3, 8, 8))
    h = 1e-6
    change = (energy(X + h * way) - energy(X - h * way)) / (2 * h)
    torch.testing.assert_close((gradient * way).flatten(1).sum(1), change, rtol=1e-6, atol=1e-8)


def test_what_the_energies_are_least_at() -> None:
    flat = torch.full((1, 3, 8, 8), 0.3, dtype=torch.float64)
    assert float(guide.inpainting(PICTURE, MASK)(PICTURE)) == 0.0
    assert float(guide.inpainting(PICTURE, MASK)(PICTURE + (1 - MASK))) == 0.0
    assert float(guide.inpainting(PICTURE, MASK, std=0.1)(PICTURE + 0.1)) == pytest.approx(0.5 * 3 * 32)
    assert float(guide.super_resolution(torch.full((1, 3, 2, 2), 0.3).double(), 4)(flat)) == pytest.approx(0, abs=1e-10)
    assert float(guide.Colour(target=torch.full((1, 3), 0.3).double())(flat)) == pytest.approx(0, abs=1e-10)
    assert float(guide.Edges.like(PICTURE)(PICTURE)) == 0.0
    assert float(guide.Edges.like(PICTURE)(PICTURE + 0.2)) == pytest.approx(0, abs=1e-10), "brightness is no edge"
    assert float(guide.Smoothness()(flat)) == pytest.approx(0.01)
    ramp = torch.arange(8.0).double().expand(1, 3, 8, 8)
    torch.testing.assert_close(gradients(ramp)[0, 0, :, 1:-1], torch.ones(8, 6, dtype=torch.float64))
    assert float(gradients(ramp)[0, 1].abs().max()) == 0.0


def test_a_palette_pulls_each_pixel_to_its_nearest_colour() -> None:
    energy = guide.Palette(colours=COLOURS, softness=1e-3)
    pixels = torch.stack([COLOURS[0] + 0.1, COLOURS[1] - 0.2], 1)[None, :, :, None].expand(1, 3, 2, 1)
    expected = 0.5 * torch.tensor([3 * 0.01, 3 * 0.04], dtype=torch.float64).mean()
    assert float(energy(pixels)) == pytest.approx(float(expected), abs=1e-3)
    gradient, _ = slope(((1.0, energy),), pixels)
    torch.testing.assert_close(gradient[0, :, :, 0] * 2, torch.tensor([[0.1, -0.2]] * 3, dtype=torch.float64))


def test_targets_of_one_row_or_of_each_sample() -> None:
    target = X.flip(0)
    for energy in (guide.inpainting(target, MASK), guide.Edges.like(target), guide.Colour(target=target.mean((2, 3)))):
        values = energy(X)
        for i in range(3):
            part = rows_of(energy, slice(i, i + 1))(X[i : i + 1])
            torch.testing.assert_close(part, values[i : i + 1], rtol=1e-12, atol=1e-12)
        with pytest.raises(UsageError, match="one row"):
            energy(X[:2])
    plain = lambda clean: clean.flatten(1).mean(1)  # noqa: E731
    assert rows_of(plain, slice(0, 1)) is plain
    with pytest.raises(UsageError, match="mask"):
        guide.inpainting(PICTURE, MASK[..., :4])
    with pytest.raises(UsageError, match="operator gives"):
        guide.super_resolution(PICTURE, 4)(X)
    with pytest.raises(UsageError, match="palette"):
        guide.Palette(colours=COLOURS)(X[:, :1])


def test_precisions() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for energy in ENERGIES.values():
            found: Tensor = slope(((2.0, energy),), X.to(dtype))[0]
            assert found.dtype == dtype
            assert bool(torch.isfinite(found).all())


PIXELS = Noise.of(3, range(2), dtype=torch.float64).normal("p", (3, 5, 4))


def test_energies_have_their_formulas():
    """By numpy and scipy, on pictures of 5 × 4."""
    p = PIXELS.numpy()
    brightness = p.mean(1)
    kernels = [np.stack([ndimage.sobel(b, axis, mode="nearest") / 8.0 for b in brightness]) for axis in (1, 0)]
    np.testing.assert_allclose(gradients(PIXELS).numpy(), np.stack(kernels, 1), rtol=1e-12, atol=1e-14)
    sizes = np.sqrt(kernels[0] ** 2 + kernels[1] ** 2 + 1e-4)
    goal = PIXELS.flip(0)
    wanted = 0.5 * ((sizes - sizes[::-1]) ** 2).mean((1, 2))
    np.testing.assert_allclose(guide.Edges.like(goal)(PIXELS).numpy(), wanted, rtol=1e-10)
    down, right = p[:, :, 1:, :-1] - p[:, :, :-1, :-1], p[:, :, :-1, 1:] - p[:, :, :-1, :-1]
    total = np.sqrt(down**2 + right**2 + 1e-4).mean((1, 2, 3))
    np.testing.assert_allclose(guide.Smoothness()(PIXELS).numpy(), total, rtol=1e-12)
    colours = torch.tensor([[0.3, -0.2, 0.9], [-1.0, 0.4, 0.1]], dtype=torch.float64)
    square = ((p[:, None] - colours.numpy()[None, :, :, None, None]) ** 2).sum(2)
    for softness in (0.02, 1.3):
        soft = -softness * np.log(np.exp(-square / (2.0 * softness)).sum(1)) + softness * np.log(2.0)
        found = guide.Palette(colours=colours, softness=softness)(PIXELS).numpy()
        np.testing.assert_allclose(found, soft.mean((1, 2)), rtol=1e-6)  # log K is taken in float32
    mask = torch.linspace(0.0, 1.0, 40, dtype=torch.float64).reshape(2, 1, 5, 4)
    mean = (mask * PIXELS).sum((2, 3)) / mask.sum((2, 3))
    masked = guide.Colour(target=colours, mask=mask)
    torch.testing.assert_close(masked(PIXELS), 0.5 * (mean - colours).square().sum(1))
    torch.testing.assert_close(rows_of(masked, slice(1, 2))(PIXELS[1:]), masked(PIXELS)[1:])
    plain = guide.Colour(target=colours[:1])(PIXELS)
    torch.testing.assert_close(plain, 0.5 * (PIXELS.mean((2, 3)) - colours[:1]).square().sum(1))


def test_measurements_have_their_formulas():
    target, mask = PIXELS.flip(1), torch.linspace(0.0, 1.0, 20, dtype=torch.float64).reshape(1, 1, 5, 4).round()
    wanted = (mask * (PIXELS - target)).square().flatten(1).sum(1) / (2.0 * 0.09)
    torch.testing.assert_close(guide.inpainting(target, mask, std=0.3)(PIXELS), wanted)
    even = Noise.of(4, range(2), dtype=torch.float64).normal("even", (3, 4, 6))
    small = even.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    goal = small.flip(0)
    wanted = (small - goal).square().flatten(1).sum(1) / (2.0 * 0.16)
    torch.testing.assert_close(guide.super_resolution(goal, 2, std=0.4)(even), wanted)
    for wrong in (mask[0], mask.expand(2, 1, 5, 4), mask[..., :-1, :], mask[..., :-1]):
        with pytest.raises(UsageError, match="mask of one row"):
            guide.inpainting(target, wrong)
    with pytest.raises(UsageError, match="palette"):
        guide.Palette(colours=torch.zeros(3))(PIXELS)


def test_the_slope_of_several_energies_is_that_of_those_that_found_something():
    lost = torch.tensor([True, False])
    first = lambda c: torch.where(lost, torch.nan, c.flatten(1).sum(1))  # noqa: E731
    second = lambda c: torch.where(~lost, torch.nan, c.square().flatten(1).sum(1))  # noqa: E731
    with pytest.warns(guide.GuideWarning):
        gradient, values = slope(((2.0, first), (3.0, second)), PIXELS)
    torch.testing.assert_close(gradient, torch.stack([6.0 * PIXELS[0], torch.full_like(PIXELS[1], 2.0)]))
    torch.testing.assert_close(values, torch.stack([3.0 * PIXELS[0].square().sum(), 2.0 * PIXELS[1].sum()]))
    with pytest.warns(guide.GuideWarning):
        gradient, values = slope(((2.0, first), (3.0, lambda c: None)), PIXELS)
    assert torch.isnan(values).tolist() == [True, False]
    assert not gradient[0].any()


def test_a_blur_of_a_map_that_is_not_square():
    """Along rows and columns by the same Gaussian, cut off at the rim and normalised there."""
    feature = Noise.of(5, range(2), dtype=torch.float64).normal("f", (3, 4, 7))

    def matrix(size: int, blur: float) -> Tensor:
        at = torch.arange(size, dtype=torch.float64)
        kernel = torch.exp(-((at[:, None] - at) ** 2) / (2.0 * blur**2))
        return kernel / kernel.sum(1, keepdim=True)

    wanted = torch.stack([matrix(4, 1.3) @ row @ matrix(7, 1.3).T for row in feature.flatten(0, 1)]).reshape(2, 3, 4, 7)
    torch.testing.assert_close(blurred(feature, 1.3), wanted, rtol=1e-6, atol=1e-6)  # weights are made in float32
    mean = feature.mean((2, 3), keepdim=True).expand(2, 3, 4, 7)
    torch.testing.assert_close(blurred(feature, math.inf), mean)


@pytest.mark.parametrize("quantile", [0.3, 0.77, 0.995, 1.0])
def test_a_quantile_lies_between_two_numbers(quantile):
    clean = 2.0 * PIXELS
    s = torch.quantile(clean.abs().flatten(1), quantile, dim=1).clamp_min(0.7)[:, None, None, None]
    wanted = 0.7 * clean.clamp(-s, s) / s
    inner = Denoiser(lambda x, time: x, VE(), "clean")
    found = guide.Threshold(quantile=quantile, bound=0.7)(inner)(clean, 1.0).clean
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    plain = guide.Threshold(quantile=None, bound=0.7)(inner)(clean, 1.0).clean
    assert torch.equal(plain, clean.clamp(-0.7, 0.7))
