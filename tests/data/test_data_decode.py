"""Every kind of image becomes a square RGB picture or one clear reason."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import UnreadableError, batches, open_source
from ornstein.data.decode import MAX_PIXELS, decode, decode_file, extensions, formats, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, colour: object, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def colour_of(data: bytes) -> list[int]:
    picture = decode(data, 8)
    assert picture.shape == (3, 8, 8)
    assert picture.dtype == torch.uint8
    assert picture.is_contiguous()
    return picture[:, 4, 4].tolist()


def test_grey_and_two_level_pictures_become_rgb() -> None:
    assert colour_of(encoded(flat("L", 77))) == [77, 77, 77]
    assert colour_of(encoded(flat("1", 1))) == [255, 255, 255]


def test_transparency_lies_on_white() -> None:
    assert colour_of(encoded(flat("RGBA", (10, 20, 30, 255)))) == [10, 20, 30]
    assert colour_of(encoded(flat("RGBA", (10, 20, 30, 0)))) == [255, 255, 255]
    assert colour_of(encoded(flat("RGBA", (0, 0, 0, 51)))) == [204, 204, 204]
    assert colour_of(encoded(flat("LA", (0, 51)))) == [204, 204, 204]
    palette = flat("P", 1)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert colour_of(encoded(palette)) == [0, 255, 0]
    assert colour_of(encoded(palette, transparency=1)) == [255, 255, 255]
    assert colour_of(encoded(palette, transparency=b"\xff\x00\xff")) == [255, 255, 255]
    assert colour_of(encoded(flat("RGB", (9, 9, 9)), transparency=(9, 9, 9))) == [255, 255, 255]
    assert colour_of(encoded(flat("RGBA", (0, 0, 0, 51)), "WEBP", lossless=True)) == [204, 204, 204]


def test_sixteen_bits_and_floats_are_rescaled() -> None:
    deep = Image.fromarray(np.full((12, 12), 257 * 100, np.uint16))
    assert deep.mode == "I;16"
    assert colour_of(encoded(deep)) == [100, 100, 100]
    assert colour_of(encoded(deep, "TIFF")) == [100, 100, 100]
    assert colour_of(encoded(Image.fromarray(np.full((12, 12), 0.4, np.float32)), "TIFF")) == [102, 102, 102]
    ramp = np.linspace(-5.0, 5.0, 144, dtype=np.float32).reshape(12, 12)
    ramp[0, 1] = np.nan
    picture = decode(encoded(Image.fromarray(ramp), "TIFF"), 12)
    assert (int(picture.min()), int(picture.max())) == (0, 255)


def grey_of(values: np.ndarray) -> list[int]:
    """What a one-row deep grey image becomes, pixel by pixel."""
    found = to_rgb(Image.fromarray(values.reshape(1, -1)))
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found)[..., 0], np.asarray(found)[..., 2])
    return np.asarray(found)[0, :, 1].tolist()


def test_the_range_of_deep_grey_is_its_kinds_or_its_own() -> None:
    """16-bit values stand for 0 … 65535 and floats for 0 … 1; whatever leaves these is stretched by its own range."""
    assert grey_of(np.array([0, 128, 129, 30000, 65535], np.uint16)) == [0, 0, 1, 117, 255]
    assert grey_of(np.array([1, 65535], np.int32)) == [0, 255]
    assert grey_of(np.array([100, 65536], np.int32)) == [0, 255]
    assert grey_of(np.array([-1, 0, 3], np.int32)) == [0, 64, 255]
    assert grey_of(np.array([100, 400], np.int32)) == [0, 2]
    assert grey_of(np.array([0, 400], np.int32)) == [0, 2]
    assert grey_of(np.array([0.25, 0.5, 1.0], np.float32)) == [64, 128, 255]
    assert grey_of(np.array([0.0, 0.5], np.float32)) == [0, 128]
    assert grey_of(np.array([0.25, 0.5, 1.5], np.float32)) == [0, 51, 255]
    assert grey_of(np.array([-0.5, 0.0, 0.5], np.float32)) == [0, 128, 255]
    assert grey_of(np.array([0.5, 1.0, 65535.0], np.float32)) == [0, 0, 255]
    assert grey_of(np.array([7.0, 7.0], np.float32)) == [0, 0]
    # What is not a number counts as the darkest that is one.
    assert grey_of(np.array([0.2, 0.6, np.nan, np.inf, -np.inf], np.float32)) == [51, 153, 51, 51, 51]
    assert grey_of(np.array([np.nan, np.inf], np.float32)) == [0, 0]


def test_every_mode_with_transparency_lies_on_white() -> None:
    for mode, colour in (("RGBA", (10, 20, 30, 51)), ("LA", (10, 51))):
        expected = to_rgb(flat(mode, colour)).getpixel((0, 0))
        assert expected == tuple(round(255 * 0.8 + value * 0.2) for value in (colour[:-1] * 3)[:3])
        # Premultiplied: the same picture with colours times coverage, rounded to bytes.
        other = to_rgb(flat(mode, colour).convert(f"{mode[:-1]}a")).getpixel((0, 0))
        assert max(abs(a - b) for a, b in zip(expected, other, strict=True)) <= 2
    pale = flat("PA", (3, 51))
    pale.putpalette(list(range(30)))
    assert to_rgb(pale).getpixel((0, 0)) == (206, 206, 206)
    plain = flat("RGB", (1, 2, 3))
    assert to_rgb(plain) is plain
    assert to_rgb(flat("YCbCr", (0, 128, 128))).getpixel((0, 0)) == (0, 0, 0)


def test_cmyk_becomes_rgb() -> None:
    red, green, blue = colour_of(encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 240
    assert max(green, blue) < 15
    assert colour_of(encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF")) == [255, 0, 0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [flat("RGB", c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert colour_of(data) == [255, 0, 0]


def test_exif_rotation_is_applied_and_damaged_exif_ignored() -> None:
    half = np.zeros((16, 16, 3), np.uint8)
    half[:8] = 255  # white above black
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    picture = decode(encoded(Image.fromarray(half), "PNG", exif=exif), 16)
    assert torch.equal(picture, torch.from_numpy(half[::-1].copy()).permute(2, 0, 1))
    assert colour_of(encoded(flat("RGB", (0, 0, 99)), "PNG", exif=b"Exif\0\0garbage")) == [0, 0, 99]


def test_the_centre_square_is_kept_whole() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    wide[:, 10] = 100
    assert torch.equal(decode(encoded(Image.fromarray(wide)), 10), torch.from_numpy(wide[:, 10:20]).permute(2, 0, 1))
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    assert torch.equal(decode(encoded(Image.fromarray(tall)), 10), torch.from_numpy(tall[10:20]).permute(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (24, 24), (16, 41), (41, 16), (16, 16)])
@pytest.mark.parametrize("size", [7, 16, 40])
def test_resizing_is_pillows_on_the_centre_square(height: int, width: int, size: int) -> None:
    """Lanczos downwards and bicubic upwards, in one step from the box of half pixels; bit for bit."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    side = min(height, width)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    how = Image.Resampling.LANCZOS if side >= size else Image.Resampling.BICUBIC
    expected = picture.resize((size, size), how, box=box)
    found = decode(encoded(picture), size).permute(1, 2, 0).numpy()
    if side == size and (height - width) % 2 == 0:  # nothing to resample
        assert np.array_equal(found, np.asarray(picture.crop(tuple(map(int, box)))))
    else:
        assert np.array_equal(found, np.asarray(expected))


def test_a_jpeg_is_decoded_at_no_less_than_twice_the_size() -> None:
    """The scale of the draft is that of Pillow for twice the size, whichever side is the shorter."""
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 60, 3), dtype=np.uint8))
    for tall, size in ((rough, 64), (rough, 70), (rough.transpose(Image.Transpose.ROTATE_90), 64)):
        picture = tall.resize((tall.width * 10, tall.height * 10), Image.Resampling.BICUBIC)
        data = encoded(picture, "JPEG", quality=95)
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft(None, (2 * size * opened.width // 600, 2 * size * opened.height // 600))
            side = min(opened.size)
            assert 2 * size <= side < 600
            box = ((opened.width - side) / 2, (opened.height - side) / 2)
            expected = opened.resize((size, size), Image.Resampling.LANCZOS, box=(*box, box[0] + side, box[1] + side))
        assert np.array_equal(decode(data, size).permute(1, 2, 0).numpy(), np.asarray(expected))


def test_resizing_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    picture = decode(encoded(Image.fromarray(board)), 16)
    assert bool(((picture.int() - 127).abs() <= 3)[:, 2:-2, 2:-2].all())


def test_a_large_jpeg_drafted_is_nearly_the_same() -> None:
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    detailed = rough.resize((1024, 768), Image.Resampling.BICUBIC)
    via_jpeg, via_png = decode(encoded(detailed, "JPEG", quality=95), 128), decode(encoded(detailed), 128)
    assert float((via_jpeg.float() - via_png.float()).abs().mean()) < 1.0


def bomb(width: int, height: int | None = None, depth: int = 8, kind: int = 2) -> bytes:
    """A PNG of width × height pixels (square without a height) that is some hundred bytes long."""
    height = width if height is None else height

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
JPEG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)), "JPEG")

BAD = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"hello, I am a text file\n", "not an image in any known format"),
    "cut.png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    "header.png": (PNG[:20], ""),
    "corrupt.png": (PNG[:300] + bytes(b ^ 0x55 for b in PNG[300:600]) + PNG[600:], "cannot be decoded"),
    "bomb.png": (bomb(20_000), f"more than {MAX_PIXELS} pixels"),
    "big.png": (bomb(10_000), f"more than {MAX_PIXELS} pixels"),
    "program.eps": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "not an image in any known format",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_image_is_one_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(UnreadableError) as caught:
        decode(data, 8, name)
    assert caught.value.name == name
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)
    with pytest.raises(UnreadableError) as again:  # the reason is the same every time
        decode(data, 8, name)
    assert str(again.value) == str(caught.value)


def test_the_largest_number_of_pixels_is_the_one_at_which_pillow_warns() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    for width, height, reason in ((17_895_697, 5, "cannot be decoded"), (14_913_081, 6, "more than 89478485 pixels")):
        assert width * height - MAX_PIXELS == (height == 6)
        with pytest.raises(UnreadableError, match=reason):
            decode(bomb(width, height, depth=1, kind=0), 8)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("broken <plugin object at 0x7f3a> here", "cannot be decoded (broken the file here)"),
        ("two\n lines", "cannot be decoded (two lines)"),
        ("x" * 300, f"cannot be decoded ({'x' * 160})"),
        ("", "cannot be decoded (OSError)"),
    ],
)
def test_a_reason_is_one_short_line_without_addresses(
    monkeypatch: pytest.MonkeyPatch, message: str, reason: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(message)

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(UnreadableError) as caught:
        decode(b"data", 8, "x")
    assert caught.value.reason == reason


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.png", 4, "a").flatten(1)[:, 0].tolist() == [1, 2, 3]
    for place, reason in ((tmp_path / "b.png", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(UnreadableError) as caught:
            decode_file(place, 4, "called b")
        assert (caught.value.name, caught.value.reason) == ("called b", reason)
    with pytest.raises(UnreadableError, match=r"^called c: the file is empty$"):
        decode(b"", 4, "called c")
    with pytest.raises(UnreadableError, match=r"^image: the file is empty$"):
        decode(b"", 4)


def test_damage_anywhere_never_raises_anything_else() -> None:
    random = np.random.default_rng(1)
    for original in (PNG, JPEG, encoded(flat("P", 1), "GIF"), encoded(flat("RGB", 1), "TIFF")):
        for _ in range(60):
            data = bytearray(original)
            for place in random.integers(0, len(data), 6):
                data[place] = random.integers(0, 256)
            with contextlib.suppress(UnreadableError):
                assert decode(bytes(data), 8).shape == (3, 8, 8)


def test_a_folder_of_horrors_trains_on(folder: Path) -> None:
    for name, (data, _) in BAD.items():
        if name != "program.eps":  # not an ending that counts as an image here
            (folder / name).write_bytes(data)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    flat("CMYK", (0, 9, 9, 0)).save(folder / "cmyk.jpg")
    flat("RGBA", (0, 9, 9, 0)).save(folder / "clear.webp")
    source = open_source(str(folder), size=8)
    assert len(source) == 10 + len(BAD) - 1 + 1 + 2
    runs = []
    for workers in (0, 2):
        stream = batches(source, batch=len(source), seed=0, workers=workers)
        runs.append(next(stream))
        stream.close()  # type: ignore[attr-defined]
    assert torch.equal(runs[0].images, runs[1].images)
    assert runs[0].skipped == runs[1].skipped
    assert {name for name, _ in runs[0].skipped} == {*BAD, "dangling.png"} - {"program.eps"}
    assert dict(runs[0].skipped)["dangling.png"] == "no such file or directory"


def test_common_endings_are_known_and_programs_are_not() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"} <= extensions()
    assert not extensions() & {".eps", ".ps", ".pdf", ".txt", ".json", ".mpg"}
    # What would start a program, needs a handler that is not there, or is no picture.
    assert not {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"} & set(formats())
    assert {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"} <= set(formats())
    assert formats() == tuple(sorted(formats()))
