"""Pictures that are kept in memory are those of the source, and no more than were allowed."""

from pathlib import Path

import pytest
import torch

from ornstein.data import open_source, save_png
from ornstein.data.base import UnreadableError
from ornstein.data.remembered import Remembered


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures and a torn one in two class folders."""
    for i in range(3):
        save_png(torch.full((3, 9, 9), i / 3), tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "photos" / "a" / "9.png").write_bytes(b"torn")
    return tmp_path / "photos"


def test_what_is_remembered_is_the_source(photos: Path) -> None:
    source = open_source(photos, size=8)
    kept = Remembered(source=source)
    for name in ("name", "classes", "size", "fingerprint"):
        assert getattr(kept, name) == getattr(source, name)
    readable = [0, 1, 3]
    before = [kept[i] for i in readable]
    for i, example in zip(readable, before, strict=True):
        assert torch.equal(example.image, source[i].image)
        assert (example.label, example.caption, example.name) == (source[i].label, source[i].caption, source[i].name)
    for _ in range(2):
        with pytest.raises(UnreadableError):
            kept[2]
    with pytest.raises(IndexError):
        kept[4]
    for path in photos.rglob("*.png"):
        path.unlink()
    assert torch.equal(kept[-1].image, before[-1].image), "no file is opened twice"


def test_no_more_is_kept_than_allowed(photos: Path) -> None:
    kept = Remembered(source=open_source(photos, size=8), limit=3 * 8 * 8)
    first = kept[0]
    _ = kept[1]
    for path in photos.rglob("*.png"):
        path.unlink()
    assert kept[0] is first
    with pytest.raises(UnreadableError):
        kept[1]
