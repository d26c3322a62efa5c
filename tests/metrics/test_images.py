"""Files as they are measured: without loss where nothing is resized, by Pillow's antialiased filter where it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_source
from ornstein.data.base import UnreadableError
from ornstein.data.folder import open_folder
from ornstein.errors import DataError
from ornstein.metrics import images


def save(folder, name, side=24, seed=0, **how):
    folder.mkdir(parents=True, exist_ok=True)
    height, width = (side, side) if isinstance(side, int) else side
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **how)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_files_are_read_as_they_are(tmp_path):
    expected = save(tmp_path / "a", "0.png", (20, 31))
    source = images.Files(folder=images.list_folder(tmp_path / "a"), size=None)
    assert torch.equal(source[0].image, expected)
    assert source[0].name == "0.png"


@pytest.mark.parametrize("size", [7, 16, 40])
def test_resizing_is_pillows_bicubic_with_antialiasing_in_bytes(tmp_path, size):
    save(tmp_path, "0.png", (20, 31))
    found = images.read_image(tmp_path / "0.png", size, "0.png")
    with Image.open(tmp_path / "0.png") as file:
        # The centre square begins at a half pixel: Pillow's box takes it as it is.
        expected = file.resize((size, size), Image.Resampling.BICUBIC, box=(5.5, 0, 25.5, 20))
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_shrinking_does_not_alias(tmp_path):
    # A checkerboard of single pixels is grey from afar; without antialiasing it stays black and white.
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(board.astype(np.uint8)).convert("RGB").save(tmp_path / "0.png")
    assert images.read_image(tmp_path / "0.png", 16, "0.png").float().std() < 3


def test_what_no_longer_needs_resizing_is_left_alone(tmp_path):
    expected = save(tmp_path, "0.png", 24)
    assert torch.equal(images.read_image(tmp_path / "0.png", 24, "0.png"), expected)
    wide = save(tmp_path, "1.png", (24, 40))
    assert torch.equal(images.read_image(tmp_path / "1.png", 24, "1.png"), wide[:, :, 8:32])


def test_rotation_transparency_and_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    save(tmp_path / "a", "0.png", (20, 31), exif=exif)
    folder = images.list_folder(tmp_path / "a")
    assert images.resolutions(folder, 9) == [(31, 20)]
    assert images.read_image(tmp_path / "a" / "0.png", None, "0.png").shape == (3, 31, 20)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert images.read_image(tmp_path / "clear.png", None, "x").unique().tolist() == [255]
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert images.read_image(tmp_path / "grey.png", None, "x").unique().tolist() == [7]


def test_damaged_files_have_one_reason(tmp_path):
    save(tmp_path, "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    (tmp_path / "2.png").write_bytes(b"no picture")
    for name in ("1.png", "2.png", "absent.png"):
        with pytest.raises(UnreadableError, match=r"cannot be decoded|not an image|no such file"):
            images.read_image(tmp_path / name, None, name)
    assert images.resolutions(images.list_folder(tmp_path), 9) == [(24, 24)]


def test_resolutions_are_those_of_the_images_taken(tmp_path):
    for i, side in enumerate((16, 24, 16, 24)):
        save(tmp_path, f"{i}.png", side)
    folder = images.list_folder(tmp_path)
    assert images.resolutions(folder, 4) == [(16, 16), (24, 24)]
    assert images.resolutions(folder, 2) == [(16, 16)]
    with pytest.raises(DataError, match="no readable image"):
        images.one_resolution([], "here")


def test_other_data_is_no_folder_of_files(tmp_path):
    assert images.list_folder("critters:8") is None
    assert images.list_folder("openmoji") is None
    assert images.list_folder(tmp_path / "absent") is None
    (tmp_path / "x.tar").touch()
    assert images.list_folder(tmp_path) is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        images.list_folder(tmp_path / "empty")


def test_a_part_of_a_folder_is_evenly_spread(tmp_path):
    for i in range(10):
        save(tmp_path / "abc"[i // 4], f"{i}.png", 8, seed=i)
    source = images.Files(folder=images.list_folder(tmp_path), size=None)
    part = images.spread(source, 5)
    assert [part[i].name for i in range(5)] == ["a/0.png", "a/2.png", "b/4.png", "b/6.png", "c/8.png"]
    assert images.spread(source, 10) is source
    assert len({images.spread(source, n).fingerprint for n in (4, 5, 10)}) == 3
    with pytest.raises(IndexError):
        part[5]


def test_jpeg_is_cautioned_against_and_jpeg_beside_png_twice(tmp_path):
    save(tmp_path / "png", "0.png")
    save(tmp_path / "jpeg", "0.jpg")
    save(tmp_path / "both", "0.JPEG")
    save(tmp_path / "both", "1.png")
    png, jpeg, both = (open_folder(tmp_path / name, size=8) for name in ("png", "jpeg", "both"))
    assert images.cautions(png, png) == images.cautions(png, None) == images.cautions(None, None) == []
    (alone,) = images.cautions(None, jpeg)
    assert "JPEG" in alone
    _, second = images.cautions(png, jpeg)
    assert "one side is JPEG and the other is not" in second
    assert "and other files" in images.cautions(both, None)[0]
    assert len(images.cautions(open_source("critters:2", size=16), jpeg)) == 1, "it does not say what it holds"
    assert len(images.cautions(jpeg, jpeg)) == 2, "one for each folder, none about a difference"
    wrapped = images.spread(images.Files(folder=jpeg, size=None), 0)
    assert images.cautions(wrapped, png)[-1] == second
