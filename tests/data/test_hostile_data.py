"""Data from anywhere: FIFOs, claims of terabytes, bombs and broken names are refused by name, at once."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ornstein.data import UnreadableError, open_source
from ornstein.data.base import captions_of
from ornstein.data.decode import decode
from ornstein.errors import DataError, printable
from ornstein.metrics import images


def png(size: tuple[int, int] = (8, 8), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_among_pictures_is_skipped_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png())
    (tmp_path / "c.png").symlink_to("/dev/zero")
    began = time.monotonic()
    source = open_source(str(tmp_path), size=8)
    for place in (0, 2):
        with pytest.raises(UnreadableError, match=r"^[ac]\.png: not a regular file$"):
            source[place]
        with pytest.raises(UnreadableError, match="not a regular file"):
            images.Files(folder=images.list_folder(tmp_path), size=None)[place]
    assert images.resolutions(images.list_folder(tmp_path), 9) == [(8, 8)]
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(DataError, match=r"metadata\.jsonl cannot be read \(not a regular file\)"):
        open_source(str(tmp_path), size=8)
    assert time.monotonic() - began < 5.0


def pack(path: Path, members: dict[str, bytes], *, size: int | None = None, kind: bytes = b"0") -> None:
    """A tar by hand, whose last header claims ``size`` bytes."""
    blocks = b""
    for name, data in members.items():
        last = size is not None and name == list(members)[-1]
        claimed = size if last else len(data)
        number = (
            f"{claimed:011o}".encode() if 0 <= claimed < 8**11 else b"\x80" + claimed.to_bytes(11, "big", signed=True)
        )
        if claimed < 0:
            number = b"\xff" + claimed.to_bytes(11, "big", signed=True)
        head = bytearray(512)
        head[: len(name)] = name.encode()
        head[100:108], head[124:136], head[156:157] = b"0000644\0", number.ljust(12, b"\0"), kind if last else b"0"
        head[257:265] = b"ustar\00000"
        head[148:156] = b" " * 8
        head[148:156] = f"{sum(head):06o}\0 ".encode()
        blocks += bytes(head) + data + bytes(-len(data) % 512)
    path.write_bytes(blocks + bytes(1024))


@pytest.mark.parametrize("size", [10**12, 2**70, -512, -1, 10**6])
@pytest.mark.parametrize("name", ["2.png", "1.cls", "1.txt", "1.json", "PaxHeader", "long"])
def test_a_member_that_claims_more_than_the_shard_holds(tmp_path: Path, size: int, name: str) -> None:
    kind = {"PaxHeader": b"x", "long": b"L"}.get(name, b"0")
    pack(tmp_path / "s.tar", {"1.png": png(), name: b"30 path=x\n"}, size=size, kind=kind)
    began = time.monotonic()
    tracemalloc.start()
    said = []
    try:
        source = open_source(str(tmp_path / "s.tar"), size=8)
        for place in range(len(source)):
            try:
                assert source[place].image.shape == (3, 8, 8)
            except UnreadableError as error:
                said.append(error.reason)
        assert captions_of(source) == [""] * len(source)
    except DataError as error:
        said.append(str(error))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert all(line.isprintable() and len(line) < 400 for line in said)
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    "where",
    ["x-{0..99999999}.tar", "x-{00..10000000000000000000}.tar", "x-" + "{a,b}" * 40 + ".tar", "x-{1..400}{1..400}.tar"],
    ids=range(4),
)
def test_brace_ranges_are_counted_before_they_are_expanded(where: str) -> None:
    pytest.importorskip("braceexpand")
    tracemalloc.start()
    with pytest.raises(DataError, match="names more than 100000 shards"):
        open_source(where, size=8)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


def one_bit(width: int, height: int) -> bytes:
    """A white PNG of one bit a pixel, small however large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (-(-width // 8))
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_that_would_fill_the_memory_is_skipped_by_name(tmp_path: Path) -> None:
    """By what it takes, not by its pixels alone: four bytes a pixel in colour, and twice that with transparency."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode(one_bit(9400, 9500), 8).unique().tolist() == [255]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 260_000  # kilobytes; it took 513 MiB
    data = bytearray(png())
    for width, height, why in ((9000, 9000, "takes 308 MiB of memory decoded"), (20_000, 20_000, "pixels")):
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with pytest.raises(UnreadableError, match=why):
            decode(bytes(data), 8)
        (tmp_path / "x.png").write_bytes(data)
        with pytest.raises(UnreadableError, match=why):
            images.read_image(tmp_path / "x.png", None, "x.png")


# ------------------------------------------------------------------------------------------------------------- metadata


def listed(folder: Path, text: str | bytes) -> Path:
    (folder / "a.png").write_bytes(png())
    (folder / "metadata.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a\\u0000.png"}', "line 1: file_name holds the character NUL"),
        ('{"file_name": "\\ud800.png"}', "line 1: file_name holds half of a surrogate pair"),
        ('{"file_name": "a.png", "caption": "\\udfff"}', "line 1: caption holds half of a surrogate pair"),
        ('{"file_name": "a.png", "label": "\\u0000"}', "line 1: label holds the character NUL"),
        ("[" * 5000, "line 1 is not a JSON object"),
        ('{"file_name": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
        (b"\xff\xfe{\x00", "line 1 is not UTF-8 text"),
    ],
    ids=range(7),
)
def test_metadata_that_no_name_can_come_of_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        open_source(str(listed(tmp_path, line)), size=8)
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_metadata_is_split_at_newlines_alone_and_may_begin_with_a_mark(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "caption": c} for c in ("one\u2028line", "next\u0085line", "x\x0cy")]
    text = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    source = open_source(str(listed(tmp_path, text.replace("\x0c", "\\f"))), size=8)
    assert captions_of(source) == [row["caption"] for row in rows]


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20) | st.integers() | st.none())
@settings(max_examples=60, deadline=None)
def test_any_row_opens_or_is_one_line(tmp_path_factory, name: str, caption: str, label: object) -> None:
    folder = tmp_path_factory.mktemp("rows")
    row, said = json.dumps({"file_name": name, "caption": caption, "label": label}), ""
    try:
        source = open_source(str(listed(folder, row)), size=8)
        assert captions_of(source) == [caption.strip()]
        source[0]
    except DataError as error:
        said = str(error)
    assert said == printable(said)


# ------------------------------------------------------------------------------------------------------------- captions


class Silent:
    """A source of many captions whose pictures must not be looked at."""

    name, classes, size, fingerprint = "silent", (), 8, "f"

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int):
        raise AssertionError("a picture was decoded")

    def read_captions(self) -> list[str]:
        return [f"word{i}" for i in range(len(self))]


def test_every_caption_gives_its_words_and_no_picture_is_decoded() -> None:
    from ornstein.data.base import First
    from ornstein.training.conditions import Text, conditioning_of

    assert len(conditioning_of("text", Text(words=20_000), Silent()).text.vocabulary) == 10_000
    assert captions_of(First(source=Silent(), count=3)) == ["word0", "word1", "word2"]


def test_captions_of_every_kind_of_source_are_those_of_its_examples(tmp_path: Path) -> None:
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words" / "a.png").write_bytes(png())
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in {"1.png": png(), "1.txt": b" a caption ", "2.png": png(), "2.json": b'{"text": "t"}'}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for where in (
        str(tmp_path / "two words"),
        str(tmp_path / "s.tar"),
        "critters:4",
        "dicebear:5",
        "critters:4+planets:3",
    ):
        source = open_source(where, size=8)
        assert captions_of(source) == [source[i].caption for i in range(len(source))], where
