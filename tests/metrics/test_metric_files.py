"""Files of metrics: statistics with a checksum of every bit, and image files by the rules under which they are read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from ornstein.data.base import UnreadableError
from ornstein.data.decode import MAX_PIXELS
from ornstein.data.folder import Entry, Folder
from ornstein.errors import CheckpointError, DataError
from ornstein.metrics import Statistics, files, images, statistics
from ornstein.storage.statedicts import read_state

KEEP = ("spatial", "classes", "vectors")


class Net:
    """Three of the bytes, two and four others, all as they are."""

    name, width, heads = "net", 3, ("pooled", "spatial", "classes")

    def outputs(self, images_):
        flat = images_.flatten(1).double() / 64.0
        return {"pooled": flat[:, :3], "spatial": flat[:, 3:5], "classes": flat[:, 5:9]}

    def __call__(self, images_):
        return self.outputs(images_)["pooled"]


def pictures(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 2, 5), generator=g, dtype=torch.uint8)


@pytest.fixture(scope="module")
def part():
    """Half of a set, with everything that may be kept."""
    return statistics(pictures(50), Net(), keep=KEEP, rank=1, world=2, capacity=11, about={"source": "x", "how": "é"})


# ----------------------------------------------------------------------------------------------------------- statistics


def test_all_of_the_statistics_comes_back(part, tmp_path):
    part.save(tmp_path / "file")
    back = Statistics.load(tmp_path / "file")
    for name in ("features", "resolution", "count", "fingerprint", "skipped", "parts", "world", "about", "complete"):
        assert getattr(back, name) == getattr(part, name), name
    assert (back.resolution, back.parts, back.world, back.count) == ((2, 5), frozenset({1}), 2, 18)
    assert back.about == {"source": "x", "how": "é"}
    assert back.moments == part.moments
    assert back.spatial == part.spatial
    assert back.sample.capacity == 11
    assert back.sample.indices == part.sample.indices
    assert back.sample.rows(3).tobytes() == part.sample.rows(3).tobytes()
    assert back.classes.splits == 10
    for name in ("counts", "entropies", "totals"):
        assert getattr(back.classes, name).tobytes() == getattr(part.classes, name).tobytes()
    assert back.vectors.indices.tolist() == list(range(32, 50))
    assert back.vectors.rows.tobytes() == part.vectors.rows.tobytes()
    # It is still a part: the other one completes it.
    other = statistics(pictures(50), Net(), keep=KEEP, rank=0, world=2, capacity=11)
    whole = statistics(pictures(50), Net(), keep=KEEP, capacity=11)
    merged = back.merge(other)
    assert merged.complete
    assert merged.fingerprint == whole.fingerprint
    assert merged.moments == whole.moments
    assert merged.classes.totals.tobytes() == whole.classes.totals.tobytes()
    bare = statistics(pictures(5), Net())
    bare.save(tmp_path / "bare")
    back = Statistics.load(tmp_path / "bare")
    assert (back.spatial, back.classes, back.vectors) == (None, None, None)


def test_one_flipped_bit_anywhere_is_noticed(part, tmp_path):
    """In the header, in the description, and in every array."""
    path = tmp_path / "file"
    part.save(path)
    good = path.read_bytes()
    places = np.random.default_rng(0).choice(len(good), 150, replace=False).tolist()
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
    start = 8 + int.from_bytes(good[:8], "little")
    offsets = [value["data_offsets"] for key, value in json.loads(good[8:start]).items() if key != "__metadata__"]
    places += [start + first for first, _ in offsets] + [start + last - 1 for _, last in offsets]
    assert len(names) == len(offsets) == 11
    same = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 7)
        path.write_bytes(bytes(bad))
        with contextlib.suppress(DataError):  # or it is white space of the header, which says nothing
            assert kept(Statistics.load(path)) == kept(part), place
            same += 1
    assert same < 10


def kept(one):
    return (
        *(one.features, one.resolution, one.count, one.fingerprint, one.skipped, one.parts, one.world, dict(one.about)),
        *(one.sample.capacity, one.moments.total.tolist(), one.moments.products.tolist(), one.sample.rows(3).tolist()),
        *(one.vectors.rows.tolist(), one.vectors.indices.tolist(), one.spatial.products.tolist()),
        *(one.classes.totals.tolist(), one.classes.entropies.tolist(), one.classes.counts.tolist()),
    )


def test_what_the_file_says_of_itself(part, tmp_path):
    files.write(tmp_path / "file", [part])
    with safe_open(tmp_path / "file", framework="numpy") as file:
        document = json.loads(file.metadata()["ornstein.statistics"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert (document["format"], document["quantum"], len(document["checksum"])) == (2, 2.0**-16, 32)
    assert document["sets"] == [
        {
            "features": "net",
            "resolution": [2, 5],
            "count": 18,
            "capacity": 11,
            "fingerprint": f"{part.fingerprint:032x}",
            "skipped": 0,
            "parts": [1],
            "world": 2,
            "about": {"source": "x", "how": "é"},
        }
    ]

    def written(arrays, **changes):
        text = json.dumps(document | changes)
        save_file(arrays, tmp_path / "other", metadata={"ornstein.statistics": text})
        return Statistics.load(tmp_path / "other")

    assert written(arrays).count == 18
    for changes, message in (
        ({"format": 1}, "has format 1, this version reads 2: make it again"),
        ({"format": 3}, "has format 3"),
        ({"quantum": 2.0**-15}, "has format 2, this version reads 2"),
        ({"checksum": None}, "its checksum does not match"),
        ({"checksum": "0" * 32}, "its checksum does not match"),
        ({"sets": []}, "its checksum does not match"),
    ):
        with pytest.raises(DataError, match=message):
            written(arrays, **changes)
    # The same bytes under another name, kind or shape are other numbers.
    name = "0.products"
    for other in (arrays[name].view(np.uint64), arrays[name].reshape(1, 9)):
        with pytest.raises(DataError, match="checksum"):
            written(arrays | {name: other})
    swapped = arrays | {
        "0.classes_counts": arrays["0.classes_entropies"],
        "0.classes_entropies": arrays["0.classes_counts"],
    }
    with pytest.raises(DataError, match="checksum"):
        written(swapped)


def test_weights_are_read_from_tensors_alone(tmp_path):
    from safetensors.torch import save_file as save_tensors

    state = {"a": torch.ones(2)}
    save_tensors(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(read_state(tmp_path / name)["a"], state["a"])
    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth holds no state dict of tensors: give a published file"):
        read_state(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read as a state dict .*: give mine$"):
        read_state(tmp_path / "absent.pth", "mine")


# --------------------------------------------------------------------------------------------------------------- images


def save(path: Path, height=6, width=9, seed=0, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_quarter_turn_exchanges_height_and_width(tmp_path, orientation):
    expected = save(tmp_path / "0.png", exif=turned(orientation))
    found = images.read_image(tmp_path / "0.png", None, "0.png")
    size = (9, 6) if orientation >= 5 else (6, 9)
    assert tuple(found.shape[1:]) == size
    assert images.resolutions(images.list_folder(tmp_path), 1) == [size]
    assert torch.equal(found, expected) == (orientation == 1)


def test_the_images_of_a_folder_with_all_that_is_known_of_them(tmp_path):
    for i, name in enumerate(("cat/0.png", "red_dog/1.png", "red_dog/2.png")):
        save(tmp_path / name, 6, 6 + i, seed=i)
    folder = images.list_folder(tmp_path)
    source = images.Files(folder=folder, size=None)
    assert (source.name, source.classes, source.fingerprint) == (str(tmp_path), ("cat", "red_dog"), folder.fingerprint)
    assert len(source) == 3
    example = source[2]
    assert (example.label, example.caption, example.name) == (1, "red dog", "red_dog/2.png")
    assert example.image.shape == (3, 6, 8)
    assert images.Files(folder=folder, size=5)[2].image.shape == (3, 5, 5)
    part = images.spread(source, 2)
    assert (part.name, part.classes, len(part)) == (str(tmp_path), ("cat", "red_dog"), 2)
    assert [part[i].name for i in range(2)] == ["cat/0.png", "red_dog/1.png"]
    for wrong in (-1, 2):
        with pytest.raises(IndexError):
            part[wrong]
    assert images.resolutions(folder, 99) == [(6, 6), (6, 7), (6, 8)]
    assert images.resolutions(folder, 2) == [(6, 6), (6, 7)]
    assert images.one_resolution([(6, 7), (6, 6)], "here") == (6, 7)


def test_which_folders_are_of_image_files(tmp_path, monkeypatch):
    for name in ("critters", "openmoji", "dicebear", "dylan", "own"):
        save(tmp_path / name / "0.png")
    monkeypatch.chdir(tmp_path)
    assert [images.list_folder(name) for name in ("critters", "critters:4", "openmoji", "dicebear:dylan", "dylan")] == [
        None
    ] * 5
    for where in ("./critters", "own", Path("own"), "./dylan"):
        assert isinstance(images.list_folder(where), Folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(images.list_folder("~/own")) == 1
    (tmp_path / "own" / "deep").mkdir()
    for packed in ("own/a.parquet", "own/deep/a.parquet", "own/a.tar"):
        (tmp_path / packed).touch()
        assert images.list_folder("own") is None
        (tmp_path / "own" / "metadata.jsonl").write_text('{"file_name": "0.png"}')
        assert len(images.list_folder("own")) == 1  # what is listed counts
        (tmp_path / "own" / "metadata.jsonl").unlink()
        (tmp_path / packed).unlink()
    (tmp_path / "own" / "a.png").write_bytes((tmp_path / "own" / "0.png").read_bytes())
    assert len(images.list_folder("own")) == 2


@pytest.mark.parametrize(
    ("height", "width", "size"), [(6, 9, 6), (6, 10, 6), (9, 6, 6), (10, 6, 6), (6, 6, 6), (7, 12, 5)]
)
def test_squares_are_cut_or_resampled(tmp_path, height, width, size):
    """As they are where the middle begins at a whole pixel, else by Pillow's bicubic filter on the half pixels."""
    picture = save(tmp_path / "0.png", height, width)
    found = images.read_image(tmp_path / "0.png", size, "0.png")
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    if side == size and (width - height) % 2 == 0:
        expected = picture[:, int(top) : int(top) + side, int(left) : int(left) + side]
    else:
        with Image.open(tmp_path / "0.png") as file:
            box = (left, top, left + side, top + side)
            expected = torch.from_numpy(np.array(file.resize((size, size), Image.Resampling.BICUBIC, box=box)))
            expected = expected.permute(2, 0, 1)
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_pictures_that_are_too_large_are_named(tmp_path):
    """At the number of pixels at which Pillow warns, one more is too many; such files are headers only."""
    import struct
    import zlib

    def header(width, height):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    for width, height, reason in ((17_895_697, 5, "cannot be decoded"), (14_913_081, 6, "more than 89478485 pixels")):
        assert (width * height > MAX_PIXELS) == (height == 6)
        (tmp_path / "0.png").write_bytes(header(width, height))
        with pytest.raises(UnreadableError, match=f"^called x: {reason}"):
            images.read_image(tmp_path / "0.png", 4, "called x")


def test_every_ending_of_jpeg_is_one(tmp_path):
    def folder(name, *paths):
        entries = tuple(Entry(path) for path in paths)
        return Folder(root=tmp_path / name, size=8, classes=(), entries=entries, fingerprint="")

    png = folder("png", "a.png")
    where = str(tmp_path / "j")
    for ending in (".jpg", ".jpeg", ".jpe", ".jfif", ".JPG"):
        jpeg = folder("j", f"a{ending}")
        assert images.cautions(jpeg, None) == [
            f"{where} holds JPEG files: their compression is part of what is measured"
        ]
        assert len(images.cautions(jpeg, png)) == len(images.cautions(png, jpeg)) == 2
        assert len(images.cautions(jpeg, jpeg)) == 2
    both = folder("j", "a.jpg", "b.webp", "c.webp")
    assert images.cautions(both, None) == [
        f"{where} holds JPEG files and other files: their compression is part of what is measured"
    ]
    assert images.cautions(folder("j", "a.jp2", "b.jpgs"), png) == []
    assert images.cautions(images.spread(images.Files(folder=both, size=3), 2), png)[0].startswith(where)
    nothing = type("Source", (), {"name": "n"})()
    assert images.cautions(nothing, both) == images.cautions(both, None)
