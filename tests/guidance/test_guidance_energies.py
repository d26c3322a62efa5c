"""Laws of the energies that need no network."""

import pytest
import torch
from torch import Tensor

from ornstein import guidance as guide
from ornstein.errors import UsageError
from ornstein.guidance.energies import gradients, rows_of, slope
from ornstein.randomness import Noise

X = Noise.of(0, range(3), dtype=torch.float64).white("x", (3, 8, 8)).clamp(-1, 1)
PICTURE = Noise.of(1, range(1), dtype=torch.float64).white("y", (3, 8, 8)).clamp(-1, 1)
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
    way = Noise.of(2, range(3), dtype=torch.float64).white("d", (3, 8, 8))
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
