"""The cache of drawn pictures: where it lies, what it is keyed by, who draws, and what any kind of damage costs."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest

from ornstein.data import cache
from ornstein.data.base import First, UnreadableError, checked
from ornstein.data.cache import pictures
from ornstein.data.embedded import open_drawn
from ornstein.storage.files import atomic, cache_folder, digest, digest_files, read_json, write_json


def draw(index: int) -> tuple[np.ndarray, dict[str, str]]:
    """A picture of its number, and the process that drew it."""
    return np.full((3, 8, 8), index % 256, dtype=np.uint8), {"number": str(index), "by": str(os.getpid())}


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "deep" / "fresh"))
    return tmp_path / "deep" / "fresh"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("ORNSTEIN_CACHE", "~/here")
    assert cache_folder() == Path("/home/somebody/here")
    monkeypatch.setenv("ORNSTEIN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/ornstein")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/somebody/.cache/ornstein")


def test_an_atomic_file_is_hidden_until_it_is_whole_and_open_to_the_group(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic(tmp_path / "file") as file:
            (there,) = tmp_path.iterdir()
            assert there.name.startswith(".file.")
            file.write(b"whole")
    finally:
        assert os.umask(before) == 0o027
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_documents_come_back_or_are_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"key": [1, 2], "text": "é"})
    assert (tmp_path / "a.json").read_bytes() == b'{"key":[1,2],"text":"\\u00e9"}'
    assert read_json(tmp_path / "a.json") == {"key": [1, 2], "text": "é"}
    for content in (b"{", b"\xff\xfe", b""):
        (tmp_path / "b.json").write_bytes(content)
        assert read_json(tmp_path / "b.json") is None
    assert read_json(tmp_path / "absent.json") is None


def test_another_key_count_or_size_is_another_entry(fresh: Path) -> None:
    def drawn(key: object, count: int, size: int) -> int:
        seen: list[int] = []

        def counted(index: int) -> tuple[np.ndarray, dict[str, str]]:
            seen.append(index)
            return np.full((3, size, size), index, dtype=np.uint8), {}

        found = pictures({"what": key}, count, size, counted)
        assert found.array.shape == (count, 3, size, size)
        return len(seen)

    assert [drawn("a", 3, 8), drawn("a", 4, 8), drawn("a", 3, 9), drawn("b", 3, 8)] == [3, 4, 3, 3]
    assert drawn(("a", 1), 3, 8) == 3
    assert [drawn(["a", 1], 3, 8), drawn("a", 3, 8), drawn("a", 4, 8)] == [0, 0, 0]
    assert len(list(fresh.glob("pictures-*.npy"))) == len(list(fresh.glob("pictures-*.json"))) == 5
    # The name of an entry is for good, or every picture is drawn again after an update.
    assert (fresh / "pictures-ee3423b74524f29e883d558ecc1099e6.npy").is_file()


@pytest.mark.parametrize(
    "harm", ["kind of number", "axes", "first byte", "sum", "key", "format", "list", "binary", "header"]
)
def test_any_kind_of_damage_is_drawn_over(fresh: Path, harm: str) -> None:
    good = np.array(pictures({"what": "numbers"}, 5, 8, draw).array)
    (file,), (notes,) = fresh.glob("*.npy"), fresh.glob("*.json")
    data, document = file.read_bytes(), json.loads(notes.read_text())
    if harm == "kind of number":  # the same bytes, which the checksum cannot tell
        np.save(file, good.view(np.int8))
    elif harm == "axes":
        np.save(file, good.reshape(3, 5, 8, 8))
    elif harm == "first byte":
        file.write_bytes(data[:128] + bytes([data[128] ^ 0x80]) + data[129:])
    elif harm == "sum":
        notes.write_text(json.dumps(document | {"crc32": document["crc32"] + 1}))
    elif harm in ("key", "format"):
        changed = {"key": {"what": "other"}, "format": {"format": 2}}[harm]
        notes.write_text(json.dumps(document | {"key": document["key"] | changed}))
    elif harm == "header":
        file.write_bytes(b"no array at all")
    else:
        notes.write_bytes(b"[1]" if harm == "list" else b"\xff\xff")
    seen: list[int] = []
    again = pictures({"what": "numbers"}, 5, 8, lambda index: seen.append(index) or draw(index))
    assert seen == [0, 1, 2, 3, 4]
    assert again.array.dtype == np.uint8
    assert np.array_equal(again.array, good)
    assert [note["number"] for note in again.notes] == ["0", "1", "2", "3", "4"]
    assert file.read_bytes() == data


def test_few_are_drawn_here_and_many_by_several_processes(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    here = str(os.getpid())
    few = pictures({"what": "few"}, 255, 8, draw)
    assert {note["by"] for note in few.notes} == {here}
    seen: list[tuple[int, int]] = []
    many = pictures({"what": "many"}, 256, 8, draw, lambda *done: seen.append(done))
    assert [note["by"] for note in many.notes[:32]] == [here] * 32
    others = [note["by"] for note in many.notes[32:]]
    assert here not in others
    assert len(set(others)) <= 3
    assert np.array_equal(many.array[:, 0, 0, 0], np.arange(256))
    assert [note["number"] for note in many.notes] == [str(i) for i in range(256)]
    assert seen == [(64, 256), (128, 256), (192, 256), (256, 256)]
    seen.clear()
    pictures({"what": "odd"}, 70, 8, draw, lambda *done: seen.append(done))
    assert seen == [(64, 70), (70, 70)]
    monkeypatch.setattr(cache, "get_all_start_methods", lambda: ["spawn"])  # as on Windows
    assert {note["by"] for note in pictures({"what": "no fork"}, 256, 8, draw).notes} == {here}
    monkeypatch.undo()
    monkeypatch.setenv("ORNSTEIN_CACHE", str(fresh))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert {note["by"] for note in pictures({"what": "alone"}, 256, 8, draw).notes} == {here}
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert {note["by"] for note in pictures({"what": "unknown"}, 256, 8, draw).notes} == {here}


def _in_a_daemon() -> None:
    """A worker may have no children of its own."""
    assert {note["by"] for note in pictures({"what": "daemon"}, 256, 8, draw).notes} == {str(os.getpid())}


def test_a_worker_draws_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    child = multiprocessing.get_context("fork").Process(target=_in_a_daemon, daemon=True)
    child.start()
    child.join()
    assert child.exitcode == 0


def test_without_a_cache_pictures_travel_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "file"))
    seen: list[tuple[int, int]] = []
    found = pictures({"what": "numbers"}, 5, 8, draw, lambda *done: seen.append(done))
    assert seen == [(5, 5)]
    copy = pickle.loads(pickle.dumps(found))
    assert np.array_equal(copy.array, found.array)
    assert copy.notes == found.notes
    assert [note["number"] for note in found.notes] == ["0", "1", "2", "3", "4"]


def test_kept_pictures_are_mapped_again_elsewhere(fresh: Path) -> None:
    pictures({"what": "numbers"}, 50, 8, draw)
    found = pictures({"what": "numbers"}, 50, 8, draw)
    assert isinstance(found.array, np.memmap)
    copy = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 50 * 192
    assert isinstance(copy.array, np.memmap)
    assert np.array_equal(copy.array, found.array)


# ------------------------------------------------------------------------------------------------------------- digests


def test_digests_are_the_same_everywhere_and_know_where_parts_end() -> None:
    assert digest() == "cae66941d9efbd404e4d88758ea67670"
    assert digest("drawn", 3, ("a",), "é\udcff") == "6b862c31aaf591730cacb37553c8ebde"
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", ""), digest("c", "ab")}) == 5
    assert digest(1) == digest("1")


def test_a_digest_of_files_knows_name_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"123")
    os.utime(file, ns=(5, 7))
    first = digest_files([("a", file)])
    assert digest_files([("a", file)]) == first
    found = {first, digest_files([("b", file)]), digest_files([("a", tmp_path / "absent")])}
    os.utime(file, ns=(9, 7))  # read, not changed
    assert digest_files([("a", file)]) == first
    os.utime(file, ns=(9, 8))
    found.add(digest_files([("a", file)]))
    file.write_bytes(b"1234")
    os.utime(file, ns=(9, 7))
    found.add(digest_files([("a", file)]))
    found |= {digest_files([("a", file), ("c", file)]), digest_files([("c", file), ("a", file)])}
    assert len(found) == 7


# ------------------------------------------------------------------------------------------------------------- indices


def test_indices_count_from_both_ends() -> None:
    assert [checked(i, 3) for i in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for wrong in (3, -4, 100):
        with pytest.raises(IndexError, match=f"index {wrong} of a source with 3 examples"):
            checked(wrong, 3)


def test_the_first_ones_are_the_source_cut_short() -> None:
    whole = open_drawn("critters:6", ("critters",), size=16, count=6)
    part = First(source=whole, count=4)
    assert (part.name, part.classes, part.size, len(part)) == (whole.name, whole.classes, 16, 4)
    assert part[-1].name == whole[3].name == "critters/3"
    with pytest.raises(IndexError):
        part[4]


def test_an_unreadable_example_says_who_and_why_in_every_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableError("a.png", "torn")))
    assert (error.name, error.reason, str(error)) == ("a.png", "torn", "a.png: torn")
