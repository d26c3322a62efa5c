"""Pictures to files: exact values, the same bytes, nothing half written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import grid, save_grid, save_png, to_uint8


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_every_byte_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1.0), values)
    assert torch.equal(to_uint8(values.double() / 127.5 - 1.0), values)
    assert torch.equal(to_uint8(values), values)


def test_halves_go_to_the_even_byte_in_single_precision() -> None:
    # 127.5·(x + 1) = 127.5, 63.75, 0.51 and 254.49
    assert to_uint8(torch.tensor([0.0, -0.5, -0.996, 0.99600])).tolist() == [128, 64, 1, 254]
    assert to_uint8(torch.tensor([-0.5, 0.25, 1.0], dtype=torch.bfloat16)).tolist() == [64, 159, 255]
    assert to_uint8(torch.zeros(2, 1, requires_grad=True)).tolist() == [[128], [128]]


def test_values_outside_the_range_are_clamped() -> None:
    extreme = torch.tensor([-9.0, 9.0, float("inf"), -float("inf"), float("nan")])
    assert to_uint8(extreme).tolist() == [0, 255, 255, 0, 0]


def test_the_input_is_not_changed() -> None:
    images = torch.zeros(2, 3, 4, 4)
    to_uint8(images)
    assert not images.any()


def test_a_png_holds_the_picture_and_equal_pictures_equal_bytes(tmp_path: Path) -> None:
    image = torch.linspace(-1, 1, 3 * 50 * 70).reshape(3, 50, 70)
    first = save_png(image, tmp_path / "deep" / "a.png")
    second = save_png(image.clone(), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert np.array_equal(read(first).transpose(2, 0, 1), to_uint8(image).numpy())
    plain = io.BytesIO()  # the bytes are part of the promise: they are Pillow's at its usual level
    Image.fromarray(read(first)).save(plain, format="PNG", compress_level=6)
    assert first.read_bytes() == plain.getvalue()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "deep"]
    grey = save_png(torch.zeros(1, 4, 6), str(tmp_path / "c.png"))
    assert read(grey).shape == (4, 6, 3)
    assert np.unique(read(grey)).tolist() == [128]
    kept = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)
    assert np.array_equal(read(save_png(kept, tmp_path / "d.png")).transpose(2, 0, 1), kept.numpy())


def test_a_grid_puts_every_picture_in_its_place(tmp_path: Path) -> None:
    images = torch.stack([torch.full((3, 4, 5), i / 10) for i in range(7)])
    page = grid(images, columns=3, gap=1)
    assert page.shape == (3, 3 * 5 + 1, 3 * 6 + 1)
    for i in range(7):
        row, column = divmod(i, 3)
        assert torch.equal(page[:, 1 + 5 * row : 5 + 5 * row, 1 + 6 * column : 6 + 6 * column], to_uint8(images[i]))
    assert bool((page[:, 11:, 7:] == 255).all())
    assert grid(images).shape == (3, 3 * 6 + 2, 3 * 7 + 2)
    assert bool((page[:, 0] == 255).all() and (page[:, :, 0] == 255).all() and (page[:, 5] == 255).all())
    # About square: the rounded-up root of the number of pictures to a row, never more columns than pictures.
    shapes = {1: (1, 1), 2: (1, 2), 4: (2, 2), 5: (2, 3), 9: (3, 3), 10: (3, 4)}
    for count, (rows, columns) in shapes.items():
        assert grid(torch.zeros(count, 1, 4, 5)).shape == (1, 6 * rows + 2, 7 * columns + 2)
    assert grid(images, columns=9).shape == grid(images, columns=7).shape == (3, 8, 51)
    assert torch.equal(grid(to_uint8(images), columns=3, gap=1), page)
    assert read(save_grid(images, tmp_path / "grid.png", columns=7)).shape == (8, 7 * 7 + 2, 3)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        save_png(torch.zeros(2, 4, 4), tmp_path / "x.png")
    with pytest.raises(ValueError, match="shape"):
        save_png(torch.zeros(3, 4), tmp_path / "x.png")
    with pytest.raises(ValueError, match="N ≥ 1"):
        grid(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="N ≥ 1"):
        grid(torch.zeros(0, 3, 4, 4))
