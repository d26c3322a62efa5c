"""Fingerprints by content, and the rules by which folders, tars and tables are read: labels, captions, order, names."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ornstein.data import Source, UnreadableError, open_source
from ornstein.data.folder import caption_of, name_labels, open_folder
from ornstein.data.shards import is_shards, open_shards
from ornstein.errors import DataError
from ornstein.storage.files import digest


def png(value: int = 0, side: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(file, kind)
    return file.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Files of equal content and time, so that nothing but what a test changes tells two folders apart."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
        os.utime(root / name, ns=(0, 0))
    return root


def tar(path: Path, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            file.addfile(info, io.BytesIO(data))
    os.utime(path, ns=(0, 0))
    return path


def listed(root: Path, *rows: dict[str, object]) -> str:
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return open_source(root, size=8).fingerprint


def all_different(prints: list[str]) -> bool:
    return len(set(prints)) == len(prints)


# -------------------------------------------------------------------------------------------------------- fingerprints


def test_metadata_is_part_of_a_folders_fingerprint(tmp_path: Path) -> None:
    """Labels, captions, their order and the choice of files: the files themselves stay as they are."""
    root = fill(tmp_path, "a.png", "b.png")
    a, b = {"file_name": "a.png"}, {"file_name": "b.png"}
    prints = [
        open_source(root, size=8).fingerprint,
        listed(root, a, b),
        listed(root, b, a),
        listed(root, a),
        listed(root, a | {"caption": "red"}, b),
        listed(root, a, b | {"caption": "red"}),
        listed(root, a | {"caption": "green"}, b),
        listed(root, a | {"label": 0}, b | {"label": 1}),
        listed(root, a | {"label": 1}, b | {"label": 0}),
        listed(root, a | {"label": "x"}, b | {"label": "y"}),
        listed(root, a | {"label": "x"}, b | {"label": "z"}),
        listed(root, a | {"label": "y"}, b | {"label": "x"}),
    ]
    assert all_different(prints)
    assert listed(root, a | {"text": "red"}, b) == prints[4]
    assert open_source(root, size=9).fingerprint != listed(root, a | {"text": "red"}, b)


def test_classes_are_part_of_a_folders_fingerprint(tmp_path: Path) -> None:
    one = open_source(fill(tmp_path / "one", "x/1.png", "y/1.png"), size=8)
    other = open_source(fill(tmp_path / "two", "x/1.png", "z/1.png"), size=8)
    again = open_source(fill(tmp_path / "three", "x/1.png", "y/1.png"), size=8)
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_shards_are_known_by_names_content_time_and_size(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", [("1.png", png())])
    first = open_source(str(file), size=8).fingerprint
    prints = [first, open_source(str(file), size=9).fingerprint]
    assert open_source(str(file), size=8).fingerprint == first
    os.utime(file, ns=(0, 1))
    prints.append(open_source(str(file), size=8).fingerprint)
    prints.append(open_source(str(file.rename(tmp_path / "b.tar")), size=8).fingerprint)
    tar(tmp_path / "a.tar", [("1.png", png()), ("2.txt", b" " * 10_000)])
    prints.append(open_source(str(tmp_path / "a.tar"), size=8).fingerprint)
    prints.append(open_source(str(tmp_path / "*.tar"), size=8).fingerprint)
    assert all_different(prints)


def test_a_changed_tar_is_indexed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "deep" / "cache"))
    file = tar(tmp_path / "a.tar", [("1.png", png(1))])
    assert open_source(str(file), size=8)[0].image.unique().tolist() == [1]
    tar(file, [("1.txt", b"word" * 3_000), ("1.png", png(2))])
    assert open_source(str(file), size=8)[0].image.unique().tolist() == [2]
    same_size = [("2.txt", b"word" * 3_000), ("2.png", png(2))]
    os.utime(tar(file, same_size), ns=(0, 5))  # the same size and name, another time
    assert open_source(str(file), size=8)[0].name == "a.tar/2"
    kept = tmp_path / "deep" / "cache"
    assert len(list(kept.glob("shard-*.json"))) == 3
    assert (kept / f"shard-{digest(str(file.resolve()), file.stat().st_size, 5, 1)}.json").is_file()
    monkeypatch.setenv("ORNSTEIN_CACHE", str(file / "cache"))  # no folder: indexed every time
    assert open_source(str(file), size=8)[0].name == "a.tar/2"


def test_drawn_sets_are_known_by_style_count_and_size() -> None:
    texts = ("critters:3", "critters:4", "stack:3", "dicebear:stack,critters:3", "dicebear:critters,stack:3")
    where = [(text, 16) for text in texts] + [("critters:3", 17)]
    prints = [open_source(text, size=size).fingerprint for text, size in where]
    assert all_different(prints)
    assert [open_source(text, size=size).fingerprint for text, size in where] == prints


# ------------------------------------------------------------------------------------------------------------- folders


def test_what_counts_as_a_picture_of_a_folder(tmp_path: Path) -> None:
    others = (".hidden.png", ".git/d.png", "__MACOSX/e.png", "notes.txt", "f.eps")
    fill(tmp_path, "b.PNG", "a.jpg", "sub/c.webp", "grid.png", *others)
    found = open_folder(tmp_path, size=8)
    assert [entry.path for entry in found.entries] == ["a.jpg", "b.PNG", "grid.png", "sub/c.webp"]
    assert found.classes == ()
    assert {(entry.label, entry.caption) for entry in found.entries} == {(-1, "")}
    assert found.name == str(tmp_path)
    fill(tmp_path, "000123.png")  # what `sample` writes: its overview is no sample
    names = ["000123.png", "a.jpg", "b.PNG", "sub/c.webp"]
    assert [entry.path for entry in open_folder(tmp_path, size=8).entries] == names
    fill(tmp_path / "short", "00123.png", "grid.png", "grid.jpg")
    assert len(open_folder(tmp_path / "short", size=8)) == 3


def test_class_folders_have_sorted_names_and_readable_captions(tmp_path: Path) -> None:
    fill(tmp_path, "red_fox/z/1.png", "ant/2.png", "ant/1.png", "Bee_hive_big/1.png")
    (tmp_path / "empty").mkdir()
    found = open_folder(tmp_path, size=8)
    assert found.classes == ("Bee_hive_big", "ant", "red_fox")
    assert [(e.path, e.label, e.caption) for e in found.entries] == [
        ("Bee_hive_big/1.png", 0, "Bee hive big"),
        ("ant/1.png", 1, "ant"),
        ("ant/2.png", 1, "ant"),
        ("red_fox/z/1.png", 2, "red fox"),
    ]
    assert (found[3].label, found[3].caption, found[3].name) == (2, "red fox", "red_fox/z/1.png")


def test_metadata_lists_the_files_in_its_own_order(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "sub/b.png", "c.png")
    rows = [{"file_name": "./sub/b.png", "label": 4, "prompt": " p "}, {"file_name": "c.png", "label": -1}]
    rows += [{"file_name": "a.png", "label": 0, "caption": None, "text": "t", "prompt": "p"}, {"file_name": "a.png"}]
    listed(tmp_path, *rows)
    found = open_folder(tmp_path, size=8)
    assert found.classes == ("0", "1", "2", "3", "4")
    assert [(e.path, e.label, e.caption) for e in found.entries] == [
        ("sub/b.png", 4, "p"),
        ("c.png", -1, ""),
        ("a.png", 0, "t"),
        ("a.png", -1, ""),
    ]
    for name in ("sub/../../x.png", "sub/..", "", 3):
        with pytest.raises(DataError, match="line 1: file_name must be a path inside"):
            listed(tmp_path, {"file_name": name})
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "\xff.png"}')
    with pytest.raises(DataError, match=r"line 1 is not UTF-8 text \(byte 15\)"):
        open_folder(tmp_path, size=8)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n \t\n7\n')
    with pytest.raises(DataError, match="line 3 is not a JSON object: '7'"):
        open_folder(tmp_path, size=8)


def test_a_folder_that_cannot_be_entered_is_one_line_and_a_part_of_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.png", "closed/b.png")
    scan = os.scandir

    def closing(closed: Path) -> Callable[[object], object]:
        def scandir(where: object) -> object:
            if str(where) == str(closed):
                raise PermissionError(13, "Permission denied", str(where))
            return scan(where)  # type: ignore[call-overload]

        return scandir

    monkeypatch.setattr(os, "scandir", closing(tmp_path / "closed"))
    assert [entry.path for entry in open_folder(tmp_path, size=8).entries] == ["a.png"]
    monkeypatch.setattr(os, "scandir", closing(tmp_path))
    with pytest.raises(DataError, match=r"cannot be read: permission denied$"):
        open_folder(tmp_path, size=8)


def test_a_caption_is_the_first_of_three_that_is_text() -> None:
    assert caption_of({"prompt": "p", "text": "t", "caption": " c\n"}) == "c"
    assert caption_of({"prompt": "p", "text": "t", "caption": 3}) == "t"
    assert caption_of({"prompt": "p", "text": ["t"]}) == "p"
    assert caption_of({"words": "w"}) == ""


def test_labels_at_the_edges() -> None:
    assert name_labels([-1, 1, -1], "x") == (("0", "1"), {-1: -1, 1: 1})
    assert name_labels([-1], "x") == ((), {-1: -1})
    assert name_labels([], "x") == ((), {})
    assert len(name_labels([999_999], "x")[0]) == 1_000_000
    for wrong in ([1_000_000], [-2, 5], [True], [0, True], ["a", 1], [["a"]], [0.0]):
        with pytest.raises(DataError, match="labels in x must be"):
            name_labels(wrong, "x")


# --------------------------------------------------------------------------------------------------------------- shards


def read(tmp_path: Path, *members: tuple[str, bytes]) -> Source:
    return open_source(str(tar(tmp_path / "a.tar", list(members))), size=8)


def test_members_of_a_tar_are_grouped_by_the_name_before_the_first_dot(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        ("x/1.TXT", b" words \n"),
        ("x/1.caption", b"not these"),
        ("x/1.json", b'{"caption": "nor these", "label": 7}'),
        ("x/1.cls", b" 2\n"),
        ("x/1.webp", png(3, kind="WEBP")),
        ("x/1.Png", png(4)),
        ("y/1.json", b'{"caption": "from json", "label": 1}'),
        ("y/1.bmp", png(5, kind="BMP")),
        ("2.jpeg", png(6, kind="JPEG")),
        ("2.jpg", png(7, kind="JPEG")),
        ("2.text", b"\xff\xfe"),
        ("3.seg.png", png(8)),
        (".png", png(9)),
        ("z/.png", png(9)),
        ("4.cls", b"1"),
        ("5.gif", png(10, kind="GIF")),
        ("5.json", b"[1]"),
    )
    assert [(source[i].name, source[i].label, source[i].caption) for i in range(len(source))] == [
        ("a.tar/x/1", 2, "words"),
        ("a.tar/y/1", 1, "from json"),
        ("a.tar/2", -1, "��"),
        ("a.tar/5", -1, ""),
    ]
    assert [int(source[i].image[0, 4, 4]) for i in range(4)] == [4, 5, 7, 10]
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"cls": b"12"}, 12),
        ({"cls": b"-1"}, -1),
        ({"cls": b"fox "}, "fox"),
        ({"cls": b"1234567890"}, "1234567890"),
        ({"cls": b"1.5"}, "1.5"),
        ({"cls": b" "}, None),
        ({"cls": b"", "json": b'{"label": 3}'}, None),
        ({"json": b'{"label": 3}'}, 3),
        ({"json": b'{"label": "fox"}'}, "fox"),
        ({"json": b'{"label": true}'}, None),
        ({"json": b'{"label": 1.5}'}, None),
        ({"json": b"{"}, None),
        ({"json": b'"label"'}, None),
    ],
    ids=str,
)
def test_labels_of_a_tar(tmp_path: Path, label: dict[str, bytes], expected: object) -> None:
    members = [(f"1.{kind}", data) for kind, data in label.items()]
    source = open_shards(str(tar(tmp_path / "a.tar", [*members, ("1.png", png())])), size=8)
    assert [member.label for member in source.members] == [expected]


def test_only_regular_members_count(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.png", b"")], kind=tarfile.DIRTYPE)
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    with pytest.raises(DataError, match="holds no images"):
        open_source(str(tmp_path / "a.tar"), size=8)


def test_a_shard_that_is_gone_costs_its_examples_alone(tmp_path: Path) -> None:
    source = read(tmp_path, ("1.png", png()))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UnreadableError, match=r"^a\.tar/1: no such file or directory$"):
        source[0]


def test_which_texts_name_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("a.tar", "x/a-{0..1}.tar", "{a,b.tar}", "http://host/a", "https://host/a.tar?x"):
        assert is_shards(where)
    for where in ("a.tar.gz", "ftp://host/a", "tar", "x-http://a", "{a,b}"):
        assert not is_shards(where)
    for name in ("b-1.tar", "b-0.tar", "a.tar"):
        tar(tmp_path / name, [("1.png", png())])
    monkeypatch.setenv("HOME", str(tmp_path))
    where = {"~/b-*.tar": ["b-0", "b-1"], "~/{b-1,a}.tar": ["b-1", "a"], "~/{a,b-*}.tar": ["a", "b-0", "b-1"]}
    for text, files in where.items():
        source = open_shards(text, size=8)
        assert [file.stem for file in source.files] == files
        assert [member.shard for member in source.members] == list(range(len(files)))
        assert (source.name, len(source)) == (text, len(files))
    with pytest.raises(DataError, match=r"cannot expand the braces of 'a-\{0\.\.1\.tar\}\{'"):
        open_shards("a-{0..1.tar}{", size=8)


def test_fetched_shards_keep_a_readable_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    library = pytest.importorskip("webdataset.cache")
    made = tar(tmp_path / "made.tar", [("1.png", png(3))])
    monkeypatch.setattr(library, "download", lambda url, dest, **_: Path(dest).write_bytes(made.read_bytes()))
    for address, ending in (
        ("https://example.org/x/a b.tar", None),
        ("https://example.org/x/y+z.tar?token=1", "-y_z.tar"),
        ("https://example.org/x/", "-shard.tar"),
        ("http://example.org/x/plain.tar", "-plain.tar"),
    ):
        if ending is None:
            with pytest.raises(DataError, match="not a plain http"):
                open_shards(address, size=8)
            continue
        source = open_shards(address, size=8)
        assert source.files[0].parent == cache / "shards"
        assert source.files[0].name[16:] == ending
        assert source[0].image.unique().tolist() == [3]

    def broken(url: str, dest: str, **_: object) -> None:
        raise RuntimeError("no\nroute")

    monkeypatch.setattr(library, "download", broken)
    with pytest.raises(DataError, match=r"^cannot fetch https://example\.org/q\.tar …: .*no route"):
        open_shards("https://example.org/q.tar", size=8)
